import {SyncError} from '../core/errors.ts'
import type {Strategy} from './strategies.ts'

/** What a merge does with one field on which the sides differ. */
export type MergeRuleName = 'append' | 'union' | 'newest_wins' | 'source_wins' | 'target_wins' | 'max' | 'min'

/** The rule of one field: a column, or a place in a column's JSON. */
export type MergeRule = {
  /** Column, then member names; `*` stands for every member or item. */
  readonly path: readonly string[]
  readonly rule: MergeRuleName
  /** For `union` of lists of objects: the member that tells which item is which. */
  readonly key?: string
  /** The value has to be a key of the object, or of the list, at this path after the merge. */
  readonly memberOf?: readonly string[]
}

/** How conflicts in one table are decided. */
export type TableRule = {
  readonly strategy: Strategy
  /** The column whose time `newest_wins` compares. */
  readonly compareField: string
  readonly mergeRules: readonly MergeRule[]
  readonly notify: boolean
  /** Why people chose it, as they wrote it. */
  readonly why: string | undefined
  /** `table_strategies.chat` or `default_strategy`. */
  readonly entry: string
  /** Where the entry was written. */
  readonly place: string
}

/** Everything the conflict config says. */
export type Rules = {
  readonly standard: TableRule
  readonly tables: ReadonlyMap<string, TableRule>
  readonly resolutionLog: {
    readonly enabled: boolean
    readonly retentionDays: number
    /** True: the ledger keeps both rows whole; false: changed fields and digests only. */
    readonly includeDataSnapshot: boolean
  }
  readonly notification: {
    /** People are told when more than `threshold` conflicts come up within the window. */
    readonly highConflictRate: {readonly threshold: number; readonly windowMinutes: number}
  }
}

/** A document with conflict rules cannot be used. Carries all mistakes, each with its place. */
export class ConflictRulesError extends SyncError {
  override readonly name = 'ConflictRulesError'
  readonly code = 'SYNC_CONFLICT_RULES'
  readonly next = 'Correct the rules; docs/conflicts.md says what may stand in them.'
  readonly problems: readonly string[]

  constructor(place: string, problems: readonly string[]) {
    const [first = '', ...others] = problems
    super(
      others.length === 0
        ? `a conflict rule cannot be used: ${place}: ${first}`
        : `${problems.length} conflict rules of ${place} cannot be used:\n${problems.map(problem => `  - ${problem}`).join('\n')}`,
    )
    this.problems = problems
  }
}

/** What applies where nothing is configured. */
export const defaultRules: Rules = {
  standard: {
    strategy: 'newest_wins',
    compareField: 'updated_at',
    mergeRules: [],
    notify: false,
    why: undefined,
    entry: 'default_strategy',
    place: 'default rules',
  },
  tables: new Map(),
  resolutionLog: {enabled: true, retentionDays: 30, includeDataSnapshot: false},
  notification: {highConflictRate: {threshold: 10, windowMinutes: 10}},
}

/**
 * Reads a rules document: the rules at top level, or under `conflict_resolution`.
 *
 * @param place what a person calls the document.
 * @param under the rules it is laid over, entry by entry.
 * @throws {ConflictRulesError} with every mistake and its place.
 */
export function readRules(document: unknown, place: string, under: Rules = defaultRules): Rules {
  if (document === undefined) return under
  throw new ConflictRulesError(place, ['reading is not built yet'])
}

/** The rule that decides conflicts in a table. */
export function ruleFor(rules: Rules, table: string): TableRule {
  return rules.tables.get(table) ?? rules.standard
}
