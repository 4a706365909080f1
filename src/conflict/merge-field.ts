import type {FieldRuling} from './conflict.ts'
import type {Newer} from './newest.ts'

// One place that a merge looks at, and the rules that hold there and below.

/** What a merge can do with one field on which the sides differ. */
export const mergeRuleNames = [
  'append',
  'union',
  'newest_wins',
  'source_wins',
  'target_wins',
  'max',
  'min',
] as const

export type MergeRuleName = (typeof mergeRuleNames)[number]

/** The rule of one field: a column, or a place in a column's JSON. */
export type MergeRule = {
  /** Column, then names of members; `*` stands for any. */
  readonly path: readonly string[]
  readonly rule: MergeRuleName
  /** For `union` of lists of objects: the member that tells which item is which. */
  readonly key?: string
  /** Where the value has to be a member's name, or an item's `id`, after the merge. */
  readonly memberOf?: readonly string[]
  /** Where the rule was written. */
  readonly place: string
}

/** What holds for the whole row. */
export type Scene = {
  readonly newer: Newer
  readonly note: (field: Field, from: FieldRuling['from'], reason: string) => void
}

/** A column, or a place in its JSON. */
export type Field = {
  readonly path: readonly string[]
  /** Rules for here and for deeper places; the more exact path first. */
  readonly rules: readonly {readonly rest: readonly string[]; readonly rule: MergeRule}[]
  /** What decides where no rule does. */
  readonly fallback: 'newest_wins' | 'source_wins' | 'target_wins'
  /** True for a member or item of a union: one that differs is merged member by member. */
  readonly isInUnion: boolean
  /** True below a union, which is told as a whole: the names in there are content. */
  readonly isQuiet: boolean
}

/** The place above all columns. */
export function rowField(rules: readonly MergeRule[]): Field {
  return {
    path: [],
    rules: rules.map(rule => ({rest: rule.path, rule})),
    fallback: 'newest_wins',
    isInUnion: false,
    isQuiet: false,
  }
}

/** The place of a column, a member or an item. */
export function inner(field: Field, name: string, isInUnion = false): Field {
  const rule = ownRule(field)?.rule
  const below = (wanted: string) =>
    field.rules.filter(({rest}) => rest[0] === wanted).map(({rest, rule}) => ({rest: rest.slice(1), rule}))
  return {
    path: [...field.path, name],
    rules: name === '*' ? below('*') : [...below(name), ...below('*')],
    fallback:
      rule === 'newest_wins' || rule === 'source_wins' || rule === 'target_wins' ? rule : field.fallback,
    isInUnion,
    isQuiet: field.isQuiet || isInUnion,
  }
}

/** The rule for the very place, if there is one. */
export function ownRule({rules}: Field): MergeRule | undefined {
  return rules.find(({rest}) => rest.length === 0)?.rule
}

/** The rules for places below. */
export function deeperRules({rules}: Field): MergeRule[] {
  return rules.filter(({rest}) => rest.length > 0).map(({rule}) => rule)
}

/** True when something here or below is to be put together from both sides. */
export function unites(field: Field): boolean {
  return [ownRule(field), ...deeperRules(field)].some(
    found => found?.rule === 'union' || found?.rule === 'append',
  )
}

/** The side that one of them is taken from, whole. */
export function sideOf(field: Field, {newer}: Scene): Pick<Newer, 'side' | 'reason'> {
  const rule = ownRule(field)?.rule ?? field.fallback
  if (rule === 'source_wins') return {side: 'source', reason: 'the rule keeps the source'}
  if (rule === 'target_wins') return {side: 'target', reason: 'the rule keeps the target'}
  return newer
}
