import type {Conflict, FieldRuling, Verdict} from './conflict.ts'
import type {TableRule} from './rules.ts'

/** A verdict with its reason; which rule led to it is known to whoever asked. */
export type Decision = {
  readonly verdict: Verdict
  readonly reason: string
  readonly fields?: readonly FieldRuling[]
}

/** Every strategy. The names in the config, its validation and help are the keys. */
export const strategies = {
  newest_wins: () => ({verdict: {keep: 'source'}, reason: 'not built yet'}),
  source_wins: () => ({verdict: {keep: 'source'}, reason: 'the rule keeps the source'}),
  target_wins: () => ({verdict: {keep: 'target'}, reason: 'the rule keeps the target'}),
  merge: () => ({verdict: {keep: 'source'}, reason: 'not built yet'}),
  manual: () => ({verdict: {keep: 'target', isPending: true}, reason: 'the rule leaves it to a person'}),
} as const satisfies Record<string, (conflict: Conflict, rule: TableRule) => Decision>

export type Strategy = keyof typeof strategies
