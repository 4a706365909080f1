import type {ConflictRules} from '../config/config.ts'
import {SyncError} from '../core/errors.ts'
import type {MergeRule} from './merge-field.ts'
import {readDocument} from './read-rules.ts'
import type {Strategy} from './strategies.ts'

/** What one entry says; what it leaves out comes from the default strategy. */
export type RuleEntry = {
  readonly strategy?: Strategy
  readonly compareField?: string
  readonly mergeRules?: readonly MergeRule[]
  readonly notify?: boolean
  /** Why people chose it, as they wrote it. */
  readonly why?: string
  /** The last document that says something about it. */
  readonly place: string
}

/** How conflicts in one table are decided. */
export type TableRule = {
  readonly strategy: Strategy
  /** The column whose time is compared. */
  readonly compareField: string
  readonly mergeRules: readonly MergeRule[]
  readonly notify: boolean
  readonly why: string | undefined
  /** `table_strategies.chat` or `default_strategy`. */
  readonly entry: string
  /** Where the entry was written: `default rules`, a file, `config of acme`. */
  readonly place: string
}

/** Everything that conflict rules say. */
export type Rules = {
  readonly standard: RuleEntry & Required<Pick<RuleEntry, 'strategy' | 'compareField'>>
  readonly tables: ReadonlyMap<string, RuleEntry>
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
        ? `a conflict rule of ${place} cannot be used: ${first}`
        : `${problems.length} conflict rules of ${place} cannot be used:\n${problems.map(problem => `  - ${problem}`).join('\n')}`,
    )
    this.problems = problems
  }
}

/** The rules that apply where nothing else is written, in the form of any rules document. */
export const defaultDocument = {
  default_strategy: 'newest_wins',
  compare_field: 'updated_at',
  table_strategies: {
    auth: {strategy: 'source_wins', reason: 'Logins are the app’s own business.'},
    oauth_session: {strategy: 'source_wins', reason: 'Sessions in use must not be overwritten.'},
    user: 'newest_wins',
    tag: 'newest_wins',
    chat: {
      strategy: 'merge',
      merge_rules: {
        'chat.history.messages': 'union',
        'chat.history.messages.*.childrenIds': 'union',
        'chat.history.currentId': {rule: 'newest_wins', member_of: 'chat.history.messages'},
        'chat.messages': {rule: 'union', key: 'id'},
        'chat.messages.*.childrenIds': 'union',
        'chat.files': 'union',
        'chat.tags': 'union',
        'meta.tags': 'union',
      },
    },
    message: {strategy: 'merge', merge_rules: {data: 'union', meta: 'union'}},
    config: {strategy: 'manual', notify: true, reason: 'Settings of the app are reviewed.'},
    function: {strategy: 'manual', notify: true, reason: 'Code that the app runs is reviewed.'},
  },
  resolution_log: {enabled: true, retention_days: 30, include_data_snapshot: false},
  notification: {high_conflict_rate: {threshold: 10, time_window_minutes: 10}},
} as const

/** What applies where nothing is configured. */
export const defaultRules: Rules = readRules(defaultDocument, 'default rules', {
  standard: {strategy: 'newest_wins', compareField: 'updated_at', place: 'default rules'},
  tables: new Map(),
  resolutionLog: {enabled: true, retentionDays: 30, includeDataSnapshot: false},
  notification: {highConflictRate: {threshold: 10, windowMinutes: 10}},
})

/**
 * Reads a rules document: the rules at top level, or under `conflict_resolution`.
 *
 * @param place what a person calls the document.
 * @param under the rules it is laid over, setting by setting.
 * @throws {ConflictRulesError} with every mistake and its place.
 */
export function readRules(document: unknown, place: string, under: Rules = defaultRules): Rules {
  const problems: string[] = []
  const rules = readDocument(document, {place, under, problems})
  if (problems.length > 0) throw new ConflictRulesError(place, problems)
  return rules
}

/**
 * The rules that hold for a client: its own (`conflict_resolution` in its config) over the configured ones over the
 * default ones.
 *
 * @param client left out: what holds for clients without rules of their own. `config` is its row's `config`.
 * @throws {ConflictRulesError} for the first of the documents that has mistakes.
 */
export function rulesOf(
  configured: ConflictRules | undefined,
  client?: {readonly name: string; readonly config: unknown},
): Rules {
  const shared = configured ? readRules(configured.document, configured.place) : defaultRules
  const {config} = client ?? {}
  if (!client || typeof config !== 'object' || config === null || !('conflict_resolution' in config))
    return shared
  const {conflict_resolution} = config
  return readRules({conflict_resolution}, `config of ${client.name}`, shared)
}

/** The rule that decides conflicts in a table: what its entry says, else what the default strategy says. */
export function ruleFor({standard, tables}: Rules, table: string): TableRule {
  const entry = tables.get(table)
  const {strategy, compareField, notify, place} = {...standard, ...entry}
  const own = entry?.mergeRules ?? []
  const ownNames = new Set(own.map(({path}) => JSON.stringify(path)))
  return {
    strategy,
    compareField,
    mergeRules: [
      ...own,
      ...(standard.mergeRules ?? []).filter(({path}) => !ownNames.has(JSON.stringify(path))),
    ],
    notify: notify ?? false,
    why: (entry ?? standard).why,
    entry: entry ? `table_strategies.${table}` : 'default_strategy',
    place,
  }
}
