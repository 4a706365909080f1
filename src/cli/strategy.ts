import {readFile} from 'node:fs/promises'
import type {Config} from '../config/config.ts'
import {documentOf, explain as explained, type Explanation} from '../conflict/explain.ts'
import {strategyNames} from '../conflict/read-rules.ts'
import {ruleFor, rulesOf, type Rules} from '../conflict/rules.ts'
import type {Strategy} from '../conflict/strategies.ts'
import {UsageError} from '../core/errors.ts'
import {
  getClientRules,
  ownRulesOf,
  requireTable,
  setClientRules,
  withStrategy,
  type ClientRules,
} from '../service/conflict-rules.ts'
import {actorName} from './client-change.ts'
import {openHost} from './client.ts'
import {command, type Context} from './command.ts'
import {counted, table} from './table.ts'

export const strategy = command({
  details:
    'Shows how conflicts are decided: for one client, or for all that have no rules of their own. --explain says, case by case, what would happen to conflicts in a table and why. The other options change the client’s own rules, which go before those of CONFLICT_RESOLUTION_CONFIG, which go before the default ones; docs/conflicts.md says what may stand in them.',
  examples: [
    'client strategy',
    'client strategy acme --explain chat',
    'client strategy acme --use target_wins --table note',
    'client strategy acme --set acme-conflicts.json',
  ],
  positionals: {
    name: {about: 'Which client; those without rules of their own when left out.', optional: true},
  },
  options: {
    explain: {type: 'string', about: 'Say what would happen in this table.', value: 'TABLE'},
    use: {
      type: 'string',
      about: 'The client’s strategy from now on.',
      choices: strategyNames,
      value: 'STRATEGY',
    },
    table: {type: 'string', about: 'With --use: for this table alone.', value: 'TABLE'},
    set: {type: 'path', about: 'Make this JSON file the client’s own rules.'},
    reset: {type: 'boolean', about: 'Take the client’s own rules away.'},
  },
  async run({name, explain, use, table, set, reset}, context) {
    const changes = [use, set, reset || undefined].filter(change => change !== undefined)
    if (changes.length > 1)
      throw new UsageError('--use, --set and --reset exclude each other', 'Give one of them.')
    if (table !== undefined && use === undefined)
      throw new UsageError('--table goes with --use', 'Give both, or --explain TABLE.')
    if (changes.length > 0 && name === undefined)
      throw new UsageError(
        'only the rules of a client can be changed',
        'Name the client; for all, write the file that CONFLICT_RESOLUTION_CONFIG names.',
      )
    const config = await context.config()
    if (name === undefined) {
      const rules = rulesOf(config.conflictResolutionConfig)
      show({rules, explain}, context)
      return 0
    }
    await using target = await openHost(context)
    const before = await getClientRules(target.pool, config, name).catch((error: unknown) => {
      // Rules with mistakes can be replaced, but not built upon.
      if (set === undefined && !reset) throw error
      return undefined
    })
    if (before) for (const named of [explain, table]) if (named !== undefined) requireTable(before, named)
    if (changes.length === 0 && before) {
      show({...before, explain}, context)
      return 0
    }
    const own = reset
      ? null
      : set === undefined
        ? changedRules(before, use, table)
        : await rulesIn(set, config)
    const actor = actorName()
    const change = {client: name, own, actor, ...(before && {expected: before.version})}
    show({...(await setClientRules(target.pool, config, change)), explain}, context)
    return 0
  },
})

function changedRules(before: ClientRules | undefined, use: Strategy | undefined, table: string | undefined) {
  return use === undefined ? null : withStrategy(before?.own ?? null, use, table)
}

async function rulesIn(file: string, config: Config): Promise<Readonly<Record<string, unknown>>> {
  let document: unknown
  try {
    document = JSON.parse(await readFile(file, 'utf8'))
  } catch (cause) {
    const why =
      cause instanceof SyntaxError
        ? `is not JSON (${cause.message})`
        : `cannot be read (${cause instanceof Error && 'code' in cause ? String(cause.code) : String(cause)})`
    throw new UsageError(`${file} ${why}`, 'Give another file.', {cause})
  }
  return ownRulesOf(document, file, config)
}

type Shown = Pick<ClientRules, 'rules'> & Partial<ClientRules> & {readonly explain: string | undefined}

function show({client, rules, own = null, direction, columns, explain}: Shown, {out}: Context): void {
  if (explain !== undefined) {
    const known = columns?.get(explain)
    const told = explained(rules, explain, {...(direction && {direction}), ...(known && {columns: known})})
    out({client: client ?? null, ...told}, explanationText(told))
    return
  }
  const entries = entriesOf(rules)
  out(
    {client: client ?? null, strategies: entries, own, conflict_resolution: documentOf(rules)},
    rulesText(entries, rules, client),
  )
}

type Entry = {
  /** `null`: every other table. */
  readonly table: string | null
  readonly strategy: Strategy
  readonly compare_field: string
  readonly merge_rules: number
  readonly notify: boolean
  readonly reason: string | null
  readonly place: string
}

function entriesOf(rules: Rules): Entry[] {
  const entry = (table: string | null, named: string): Entry => {
    const {strategy, compareField, mergeRules, notify, why, place} = ruleFor(rules, named)
    return {
      table,
      strategy,
      compare_field: compareField,
      merge_rules: mergeRules.length,
      notify,
      reason: why ?? null,
      place,
    }
  }
  const tables = [...rules.tables.keys()].sort().map(table => entry(table, table))
  // No table is called nothing.
  return [...tables, entry(null, '')]
}

function rulesText(
  entries: readonly Entry[],
  {resolutionLog, notification}: Rules,
  client: string | undefined,
): string {
  const {threshold, windowMinutes} = notification.highConflictRate
  const kept = resolutionLog.includeDataSnapshot ? 'both rows' : 'the changed fields and digests'
  const log = resolutionLog.enabled
    ? `Decisions are kept for ${counted(resolutionLog.retentionDays, 'day')}, with ${kept}.`
    : 'Decisions are not kept once they are made.'
  return [
    `How conflicts are decided${client === undefined ? '' : ` for ${client}`}:`,
    '',
    table(
      ['table', 'strategy', 'by', 'tells', 'from'],
      entries.map(entry => [
        entry.table ?? '(any other)',
        entry.strategy,
        byText(entry),
        entry.notify ? 'yes' : undefined,
        entry.place,
      ]),
    ),
    '',
    log,
    `More than ${counted(threshold, 'conflict')} in ${counted(windowMinutes, 'minute')} are reported.`,
  ].join('\n')
}

function byText({strategy, compare_field, merge_rules}: Entry): string | undefined {
  if (strategy === 'newest_wins') return compare_field
  return strategy === 'merge' ? `${counted(merge_rules, 'rule')}, ${compare_field}` : undefined
}

function explanationText({
  table: name,
  strategy,
  rule,
  place,
  reason,
  merge_rules,
  outcomes,
}: Explanation): string {
  const fields = merge_rules.map(({field, rule, key, member_of, place}) => {
    const more = [
      key === undefined ? '' : `by ${key}`,
      member_of === undefined ? '' : `always one of ${member_of}`,
    ].filter(part => part !== '')
    return [field, [rule, ...more].join(', '), place]
  })
  return [
    `${name}: ${strategy} (${rule}, ${place})${reason === null ? '' : `: ${reason}`}`,
    ...(strategy === 'merge' && fields.length > 0 ? ['', table(['field', 'rule', 'from'], fields)] : []),
    '',
    table(
      ['when', 'keeps', 'because'],
      outcomes.map(({when, keeps, why}) => [when, keeps, why]),
    ),
  ].join('\n')
}
