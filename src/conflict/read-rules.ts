import {mergeRuleNames, type MergeRule} from './merge-field.ts'
import type {RuleEntry, Rules} from './rules.ts'
import {strategies, type Strategy} from './strategies.ts'

// How a document becomes rules. Every mistake is noted with its place, and reading goes on.

/** `problems` is filled with what is wrong with the document. */
export type Reading = {readonly place: string; readonly under: Rules; readonly problems: string[]}

/** The rules as the document says, over `under`; of no use when there were problems. */
export function readDocument(document: unknown, reading: Reading): Rules {
  const outer = new Part(document, '', reading.problems)
  const top = outer.has('conflict_resolution') ? outer.part('conflict_resolution') : outer
  if (top !== outer) outer.knows(['conflict_resolution'])
  top.knows(topKeys)

  const {under, place} = reading
  const standard = readStandard(top, reading)
  const tables = new Map(under.tables)
  const entries = top.oneOf('table_strategies', 'tables')
  for (const [table, entry] of entries?.parts() ?? []) {
    tables.set(table, readEntry(entry, under.tables.get(table), {place, standard}))
  }
  const log = top.maybe('resolution_log')
  log?.knows(['enabled', 'retention_days', 'include_data_snapshot'])
  const notification = top.maybe('notification')
  notification?.knows(['high_conflict_rate'])
  const rate = notification?.maybe('high_conflict_rate')
  rate?.knows(['threshold', 'time_window_minutes'])
  const {resolutionLog} = under
  const {highConflictRate} = under.notification
  return {
    standard,
    tables,
    resolutionLog: {
      enabled: log?.flag('enabled') ?? resolutionLog.enabled,
      retentionDays: log?.count('retention_days') ?? resolutionLog.retentionDays,
      includeDataSnapshot: log?.flag('include_data_snapshot') ?? resolutionLog.includeDataSnapshot,
    },
    notification: {
      highConflictRate: {
        threshold: rate?.count('threshold') ?? highConflictRate.threshold,
        windowMinutes: rate?.count('time_window_minutes') ?? highConflictRate.windowMinutes,
      },
    },
  }
}

/** The strategy's names, as the config writes them. */
export const strategyNames = Object.keys(strategies) as readonly Strategy[]

const topKeys = [
  'default_strategy',
  'default',
  'compare_field',
  'table_strategies',
  'tables',
  'resolution_log',
  'notification',
]
const entryKeys = ['strategy', 'compare_field', 'merge_rules', 'merge', 'notify', 'reason']

function readStandard(top: Part, {under, place}: Reading): Rules['standard'] {
  const written = top.oneOf('default_strategy', 'default')
  const compareField = top.text('compare_field')
  const entry = written
    ? readEntry(written, under.standard, {place, standard: under.standard})
    : under.standard
  return {
    ...under.standard,
    ...entry,
    ...(compareField !== undefined && {compareField, place}),
  }
}

type Context = {readonly place: string; readonly standard: Rules['standard']}

/** An entry is a strategy's name, or an object; what it leaves out stays as it was. */
function readEntry(part: Part, under: RuleEntry | undefined, {place, standard}: Context): RuleEntry {
  if (typeof part.value === 'string') {
    const strategy = part.choice(strategyNames)
    return {...under, ...(strategy && {strategy}), place}
  }
  part.knows(entryKeys)
  const strategy = part.maybe('strategy')?.choice(strategyNames)
  const compareField = part.text('compare_field')
  const notify = part.flag('notify')
  const why = part.text('reason')
  const written = part.oneOf('merge_rules', 'merge')
  const entry = {
    ...under,
    ...(strategy && {strategy}),
    ...(compareField !== undefined && {compareField}),
    ...(notify !== undefined && {notify}),
    ...(why !== undefined && {why}),
    ...(written && {mergeRules: mergeRulesOver(under?.mergeRules ?? [], readMergeRules(written, place))}),
    place,
  }
  const effective = entry.strategy ?? standard.strategy
  const isKnown = strategy !== undefined || !part.has('strategy')
  if (written && effective !== 'merge' && isKnown) {
    written.problem(`is of use only with the strategy merge; here it is ${effective}`)
  }
  return entry
}

function readMergeRules(part: Part, place: string): MergeRule[] {
  return [...part.parts()].flatMap(([written, field]): MergeRule[] => {
    const path = field.path(written)
    if (typeof field.value === 'string') {
      const rule = field.choice(mergeRuleNames)
      return path && rule ? [{path, rule, place}] : []
    }
    field.knows(['rule', 'key', 'member_of'])
    const rule = field.required('rule')?.choice(mergeRuleNames)
    const key = field.text('key')
    if (key !== undefined && rule !== undefined && rule !== 'union')
      field.problem(`key is of use only with union; here the rule is ${rule}`)
    const holder = field.text('member_of')
    const memberOf = holder === undefined ? undefined : field.part('member_of').path(holder)
    if (memberOf && path && (memberOf[0] !== path[0] || [...memberOf, ...path].includes('*')))
      field.part('member_of').problem('has to be a place in the same column, and neither may have a *')
    if (!path || !rule) return []
    return [{path, rule, ...(key !== undefined && {key}), ...(memberOf && {memberOf}), place}]
  })
}

/** A rule for a field that had one takes its place. */
function mergeRulesOver(under: readonly MergeRule[], over: readonly MergeRule[]): MergeRule[] {
  const name = ({path}: MergeRule) => JSON.stringify(path)
  return [...new Map([...under, ...over].map(rule => [name(rule), rule])).values()]
}

/** A part of the document and where it stands; asking it for what it has not is noted as a mistake. */
class Part {
  readonly value: unknown
  readonly #place: string
  readonly #problems: string[]

  constructor(value: unknown, place: string, problems: string[]) {
    this.value = value
    this.#place = place
    this.#problems = problems
  }

  has(key: string): boolean {
    return isObject(this.value) && Object.hasOwn(this.value, key)
  }

  problem(text: string): void {
    this.#problems.push(`${this.#place === '' ? 'the document' : this.#place}: ${text}`)
  }

  knows(keys: readonly string[]): void {
    if (!isObject(this.value)) {
      this.problem(`expected an object, found ${kindOf(this.value)}`)
      return
    }
    for (const key of Object.keys(this.value)) {
      if (!keys.includes(key)) this.part(key).problem(`is not known; known here: ${keys.join(', ')}`)
    }
  }

  part(key: string): Part {
    const value = isObject(this.value) ? this.value[key] : undefined
    const name = /^[\w*-]+$/.test(key) ? key : JSON.stringify(key)
    return new Part(value, this.#place === '' ? name : `${this.#place}.${name}`, this.#problems)
  }

  maybe(key: string): Part | undefined {
    if (!this.has(key)) return undefined
    const part = this.part(key)
    const before = this.#problems.length
    if (part.value === null) part.problem('is null; leave it out instead')
    return this.#problems.length === before ? part : undefined
  }

  required(key: string): Part | undefined {
    if (isObject(this.value) && !this.has(key)) this.problem(`${key} is missing`)
    return this.maybe(key)
  }

  /** Two names for one thing, of which one may be used. */
  oneOf(key: string, other: string): Part | undefined {
    if (this.has(key) && this.has(other)) this.problem(`${key} and ${other} are the same; keep one`)
    return this.maybe(key) ?? this.maybe(other)
  }

  *parts(): Generator<[string, Part]> {
    if (!isObject(this.value)) {
      this.problem(`expected an object, found ${kindOf(this.value)}`)
      return
    }
    for (const key of Object.keys(this.value)) yield [key, this.part(key)]
  }

  choice<const W extends string>(words: readonly W[]): W | undefined {
    const word = words.find(word => word === this.value)
    if (word === undefined) {
      const found = typeof this.value === 'string' ? JSON.stringify(this.value) : kindOf(this.value)
      this.problem(`expected one of ${words.join(', ')}; found ${found}`)
    }
    return word
  }

  text(key: string): string | undefined {
    const part = this.maybe(key)
    if (!part || (typeof part.value === 'string' && part.value !== ''))
      return part?.value as string | undefined
    part.problem(`expected text, found ${part.value === '' ? 'nothing' : kindOf(part.value)}`)
    return undefined
  }

  flag(key: string): boolean | undefined {
    const part = this.maybe(key)
    if (!part || typeof part.value === 'boolean') return part?.value as boolean | undefined
    part.problem(`expected true or false, found ${kindOf(part.value)}`)
    return undefined
  }

  count(key: string): number | undefined {
    const part = this.maybe(key)
    if (!part) return undefined
    const {value} = part
    if (typeof value === 'number' && Number.isInteger(value) && value >= 1 && value <= 1_000_000) return value
    part.problem(
      `expected a whole number from 1 to 1000000, found ${typeof value === 'number' ? value : kindOf(value)}`,
    )
    return undefined
  }

  /** @param written names with dots between them; a name that has dots stands in double quotes. */
  path(written: string): string[] | undefined {
    const names = written.match(/"[^"]*"|[^."]+/g) ?? []
    if (names.length > 0 && names.join('.') === written)
      return names.map(name => (name.startsWith('"') ? name.slice(1, -1) : name))
    this.problem('expected a column, or names with dots between them such as chat.history.messages')
    return undefined
  }
}

function isObject(value: unknown): value is Readonly<Record<string, unknown>> {
  return typeof value === 'object' && value !== null && !Array.isArray(value)
}

function kindOf(value: unknown): string {
  if (value === null) return 'null'
  return Array.isArray(value) ? 'a list' : value === undefined ? 'nothing' : `a ${typeof value}`
}
