import type {Conflict, FieldRuling, Verdict} from './conflict.ts'
import {mergeRows} from './merge.ts'
import {newerSide} from './newest.ts'
import type {TableRule} from './rules.ts'

/** A verdict with its reason; which rule led to it is known to whoever asked. */
export type Decision = {
  readonly verdict: Verdict
  readonly reason: string
  readonly fields?: readonly FieldRuling[]
}

/** Every strategy. The names in the config, its validation and help are the keys. */
export const strategies = {
  newest_wins: newest,
  source_wins: () => ({verdict: {keep: 'source'}, reason: 'the rule keeps the source'}),
  target_wins: () => ({verdict: {keep: 'target'}, reason: 'the rule keeps the target'}),
  merge: mergeRows,
  manual: () => ({verdict: {keep: 'target', isPending: true}, reason: 'the rule leaves it to a person'}),
} as const satisfies Record<string, (conflict: Conflict, rule: TableRule) => Decision>

export type Strategy = keyof typeof strategies

function newest(conflict: Conflict, {compareField}: TableRule): Decision {
  const {side, isDecided, reason} = newerSide(conflict, compareField)
  const isTargetsAlone = conflict.type === 'drift' && conflict.direction === 'two_way'
  // Nothing contradicts it: what only one of two equal sides has changed is the newest, whether or not it says so.
  if (!isDecided && isTargetsAlone)
    return {verdict: {keep: 'target'}, reason: 'only the target has changed the row'}
  return {verdict: {keep: side}, reason}
}
