import type {Value} from '../core/value.ts'
import {ruleFor, type Rules, type TableRule} from './rules.ts'
import {strategies, type Decision, type Strategy} from './strategies.ts'

/** What the two sides did to one row, the source's side named first. `drift`: the target changed alone. */
export const conflictTypes = [
  'update_update',
  'update_delete',
  'delete_update',
  'insert_insert',
  'drift',
  'constraint_violation',
  'type_mismatch',
] as const

export type ConflictType = (typeof conflictTypes)[number]

/** What one side did to a row since the last state both had. */
export type SideChange = 'none' | 'insert' | 'update' | 'delete'

/**
 * The type of a conflict by what the source did and then by what the target did; `undefined` where there is none.
 * A row that a side has kept or dropped by an earlier ruling can be inserted where the other has it still.
 */
// prettier-ignore
export const conflictTypeOf: Readonly<Record<SideChange, Readonly<Record<SideChange, ConflictType | undefined>>>> = {
  none:   {none: undefined, insert: 'drift',         update: 'drift',         delete: 'drift'},
  insert: {none: undefined, insert: 'insert_insert', update: 'insert_insert', delete: 'update_delete'},
  update: {none: undefined, insert: 'update_update', update: 'update_update', delete: 'update_delete'},
  delete: {none: undefined, insert: 'delete_update', update: 'delete_update', delete: undefined},
}

/** A row by source column names. */
export type RowValues = ReadonlyMap<string, Value>

/** One row on which the sides disagree, as both have it now. */
export type Conflict = {
  /** The table's name in the source. */
  readonly table: string
  /** Its `_sync_key`. */
  readonly key: string
  readonly type: ConflictType
  /** Source names of the columns that hold content, in the table's order; a merged row has exactly these. */
  readonly columns: readonly string[]
  /** `undefined`: deleted, or never there. */
  readonly source: RowValues | undefined
  readonly target: RowValues | undefined
  /** The last state both sides had, where it is known. For `drift` it is the source's row, whatever is given. */
  readonly base?: RowValues | undefined
  /** The columns a side has changed since the last common state, where that is known. */
  readonly changed?:
    | {
        readonly source?: ReadonlySet<string> | undefined
        readonly target?: ReadonlySet<string> | undefined
      }
    | undefined
  /** The deployment's direction; `one_way` when left out. In `two_way` the target's edits are changes of equal right. */
  readonly direction?: 'one_way' | 'two_way' | undefined
  /** Times of rows that lie well after this are not believed. */
  readonly now: Date
}

/** What becomes of the row. A side that is kept may be the absence of the row. */
export type Verdict =
  | {readonly keep: 'source'}
  /** `isPending`: a person decides; until then the target stays as it is. */
  | {readonly keep: 'target'; readonly isPending?: true}
  | {readonly keep: 'merged'; readonly row: RowValues}

/** How a merge came by one field (a column, or a place in a column's JSON) on which the sides differ. */
export type FieldRuling = {
  /** `title`, `chat.history.messages`, `meta.tags`. */
  readonly field: string
  readonly from: 'source' | 'target' | 'both'
  readonly reason: string
}

/** A verdict and why. */
export type Ruling = {
  readonly verdict: Verdict
  readonly strategy: Strategy
  /** The entry of the rules that was applied: `table_strategies.chat`, `default_strategy`. */
  readonly rule: string
  /** Where that entry was written: `default rules`, a file, `config of acme`. */
  readonly place: string
  /** One clause without row contents: `the target's updated_at is later by 30 s`. */
  readonly reason: string
  /** The fields that a merge looked at, in the table's order; empty for the other strategies. */
  readonly fields: readonly FieldRuling[]
  /** True when the rule asks that people are told. A pending verdict always is worth telling. */
  readonly notify: boolean
}

/** Decides one conflict. Pure: reads nothing, changes nothing, cannot fail. */
export function rulingOn(conflict: Conflict, rules: Rules): Ruling {
  const rule = ruleFor(rules, conflict.table)
  const decide: (conflict: Conflict, rule: TableRule) => Decision = strategies[rule.strategy]
  const {verdict, reason, fields = []} = decide(conflict, rule)
  const {strategy, entry, place, notify} = rule
  const ruling = {verdict, strategy, rule: entry, place, reason, fields, notify}
  const couldNotBeWritten = conflict.type === 'constraint_violation' || conflict.type === 'type_mismatch'
  if (!couldNotBeWritten || verdict.keep === 'source') return ruling
  // What was to be kept is what the other side has just refused: deciding the same again would never end.
  return {
    ...ruling,
    verdict: {keep: 'target', isPending: true},
    reason: `the source cannot take what the rule would keep (${reason}); a person decides`,
  }
}
