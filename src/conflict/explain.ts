import type {Value} from '../core/value.ts'
import {rulingOn, type Conflict, type ConflictType, type RowValues} from './conflict.ts'
import type {MergeRule} from './merge-field.ts'
import {ruleFor, type RuleEntry, type Rules} from './rules.ts'
import type {Strategy} from './strategies.ts'

// What the rules mean, told to people: by ruling on examples, so that it cannot say anything else than what happens.

/** What would happen to conflicts in one table, and why; ready to be printed as JSON. */
export type Explanation = {
  readonly table: string
  readonly strategy: Strategy
  /** The entry that applies and where it was written. */
  readonly rule: string
  readonly place: string
  /** Why people chose it, as they wrote it; `null` when they did not say. */
  readonly reason: string | null
  readonly notify: boolean
  readonly compare_field: string
  readonly merge_rules: readonly {
    readonly field: string
    readonly rule: string
    readonly key?: string
    readonly member_of?: string
    readonly place: string
  }[]
  readonly outcomes: readonly {
    readonly type: ConflictType
    readonly when: string
    readonly keeps: 'source' | 'target' | 'merged' | 'target, pending'
    readonly why: string
  }[]
}

/**
 * Explains what the rules do with a table.
 *
 * @param columns the table's columns; left out, it is assumed to have the one that is compared.
 */
export function explain(
  rules: Rules,
  table: string,
  {direction = 'one_way', columns}: {direction?: 'one_way' | 'two_way'; columns?: readonly string[]} = {},
): Explanation {
  const {strategy, entry, place, why, notify, compareField, mergeRules} = ruleFor(rules, table)
  const hasTime = columns?.includes(compareField) ?? true
  const outcomes = examples(compareField, strategy).map(({type, when, source, target}) => {
    const conflict: Conflict = {
      table,
      key: '',
      type,
      columns: [...(hasTime ? [compareField] : []), otherColumn],
      source,
      target,
      base: exampleBase,
      direction,
      now: exampleNow,
    }
    const {verdict, reason} = rulingOn(conflict, rules)
    const isMerge = verdict.keep === 'merged'
    const isPending = verdict.keep === 'target' && verdict.isPending === true
    return {
      type,
      when,
      keeps: isPending ? ('target, pending' as const) : verdict.keep,
      why: strategy !== 'merge' ? reason : isMerge ? mergeTold : isPending ? mergeRefused : reason,
    }
  })
  return {
    table,
    strategy,
    rule: entry,
    place,
    reason: why ?? null,
    notify,
    compare_field: compareField,
    merge_rules: mergeRules.map(({path, rule, key, memberOf, place}) => ({
      field: pathText(path),
      rule,
      ...(key !== undefined && {key}),
      ...(memberOf && {member_of: pathText(memberOf)}),
      place,
    })),
    outcomes,
  }
}

/** The rules as a document that {@link readRules} takes: everything that applies, whoever wrote it. */
export function documentOf({
  standard,
  tables,
  resolutionLog,
  notification,
}: Rules): Readonly<Record<string, unknown>> {
  return {
    default_strategy: entryDocument(standard),
    table_strategies: Object.fromEntries(
      [...tables].map(([table, entry]) => [table, entryDocument(entry)] as const),
    ),
    resolution_log: {
      enabled: resolutionLog.enabled,
      retention_days: resolutionLog.retentionDays,
      include_data_snapshot: resolutionLog.includeDataSnapshot,
    },
    notification: {
      high_conflict_rate: {
        threshold: notification.highConflictRate.threshold,
        time_window_minutes: notification.highConflictRate.windowMinutes,
      },
    },
  }
}

const mergeTold = 'field by field: as the merge rules say, and from the newer side where they say nothing'

const mergeRefused = 'the source cannot take what the merge makes; a person decides'

type Example = Pick<Conflict, 'type' | 'source' | 'target'> & {readonly when: string}

const exampleNow = new Date(1_700_100_000_000)
const [before, sooner, later] = [1_700_000_000n, 1_700_000_060n, 1_700_000_120n]

/** A column that each side may have changed beside the compared one. */
const otherColumn = 'another column'
const exampleBase = new Map<string, Value>([[otherColumn, 'before']])

function examples(compareField: string, strategy: Strategy): Example[] {
  const row = (at: Value, other: Value): RowValues =>
    new Map([
      [compareField, at],
      [otherColumn, other],
    ])
  const dependsOnTime = strategy === 'newest_wins'
  const mine = (at: Value) => row(at, 'before')
  const theirs = (at: Value) => row(at, 'edited')
  const both = (type: ConflictType, when: string): Example[] =>
    dependsOnTime
      ? [
          {type, when: `${when}, the target later`, source: mine(sooner), target: theirs(later)},
          {type, when: `${when}, the source later`, source: mine(later), target: theirs(sooner)},
          {type, when: `${when}, at no time that can be told`, source: mine(null), target: theirs(null)},
        ]
      : [{type, when, source: mine(later), target: theirs(sooner)}]
  return [
    ...both('update_update', 'both have changed the row'),
    {
      type: 'update_delete',
      when: 'the source has changed it, the target deleted it',
      source: mine(before),
      target: undefined,
    },
    {
      type: 'delete_update',
      when: 'the source has deleted it, the target changed it',
      source: undefined,
      target: theirs(before),
    },
    ...both('insert_insert', 'both have inserted it'),
    ...both('drift', 'only the target has changed it'),
    {type: 'drift', when: 'only the target has inserted it', source: undefined, target: theirs(before)},
    {type: 'drift', when: 'only the target has deleted it', source: mine(before), target: undefined},
    ...both('constraint_violation', 'the source’s constraints refuse the target’s row'),
    ...both('type_mismatch', 'the source cannot hold the target’s values'),
  ]
}

function entryDocument({strategy, compareField, mergeRules, notify, why}: RuleEntry): unknown {
  return {
    ...(strategy && {strategy}),
    ...(compareField !== undefined && {compare_field: compareField}),
    ...(mergeRules && {
      merge_rules: Object.fromEntries(mergeRules.map(rule => [pathText(rule.path), ruleDocument(rule)])),
    }),
    ...(notify !== undefined && {notify}),
    ...(why !== undefined && {reason: why}),
  }
}

function ruleDocument({rule, key, memberOf}: MergeRule): unknown {
  if (key === undefined && !memberOf) return rule
  return {rule, ...(key !== undefined && {key}), ...(memberOf && {member_of: pathText(memberOf)})}
}

function pathText(path: readonly string[]): string {
  return path.map(name => (name.includes('.') ? `"${name}"` : name)).join('.')
}
