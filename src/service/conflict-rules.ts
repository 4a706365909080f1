import type {Config} from '../config/config.ts'
import {readRules, rulesOf, type Rules} from '../conflict/rules.ts'
import type {Strategy} from '../conflict/strategies.ts'
import {parseClientName} from '../core/client-name.ts'
import {UsageError} from '../core/errors.ts'
import {recordAudit} from '../postgres/audit-log.ts'
import type {Pool} from '../postgres/sql.ts'
import {changeSettings, findSettings} from '../state/deployment-settings.ts'
import {findSourceSchema, UnknownClientError} from '../state/deployments.ts'

/** The conflict rules that hold for a client. */
export type ClientRules = {
  readonly client: string
  readonly direction: 'one_way' | 'two_way'
  readonly rules: Rules
  /** What was set for this client alone, as it was written; `null` when nothing was. */
  readonly own: Readonly<Record<string, unknown>> | null
  /** The number that the client's settings had. */
  readonly version: bigint
  /** The columns of each of its tables, by their source names; empty before the first sync. */
  readonly columns: ReadonlyMap<string, readonly string[]>
}

/** How a client's own rules are to change. `null` takes them away. */
export type RulesChange = {
  readonly client: string
  readonly own: Readonly<Record<string, unknown>> | null
  /** The version that the change was made from; whatever it is when left out. */
  readonly expected?: bigint
  readonly actor: string
}

/**
 * The rules that hold for a client, and where they come from.
 *
 * @throws {UnknownClientError} when this host has no such client.
 * @throws {ConflictRulesError} when one of the documents has mistakes.
 */
export async function getClientRules(
  pool: Pool,
  {conflictResolutionConfig}: Pick<Config, 'conflictResolutionConfig'>,
  name: string,
): Promise<ClientRules> {
  const found = await findSettings(pool, parseClientName(name).schema)
  if (!found) throw new UnknownClientError(name)
  const {client_name: client, direction, config} = found.settings
  const schema = await findSourceSchema(pool, found.deploymentId)
  const own = config['conflict_resolution'] ?? null
  return {
    client,
    direction,
    rules: rulesOf(conflictResolutionConfig, {name: client, config}),
    own: isDocument(own) ? own : null,
    version: found.version,
    columns: new Map(
      schema?.tables.map(({source, columns}) => [source, columns.map(column => column.source)] as const),
    ),
  }
}

/**
 * Sets a client's own rules, once they have been found right; later conflicts are decided by them.
 *
 * @throws {ConflictRulesError} with every mistake; nothing was changed.
 * @throws {VersionMovedError} when the client's settings have been changed since.
 */
export async function setClientRules(
  pool: Pool,
  {conflictResolutionConfig}: Pick<Config, 'conflictResolutionConfig'>,
  {client, own, expected, actor}: RulesChange,
): Promise<ClientRules> {
  if (own) rulesOf(conflictResolutionConfig, {name: client, config: {conflict_resolution: own}})
  await pool.begin(async tx => {
    const change = {config: {conflict_resolution: own}}
    const {settings} = await changeSettings(tx, client, change, expected)
    await recordAudit(tx, {actor, action: 'client.configured', client: settings.client_name, details: change})
  })
  return await getClientRules(pool, {conflictResolutionConfig}, client)
}

/**
 * A document of rules as a client's own: without the `conflict_resolution` around it.
 *
 * @param place what a person calls the document.
 * @throws {ConflictRulesError} with every mistake.
 */
export function ownRulesOf(
  document: unknown,
  place: string,
  {conflictResolutionConfig}: Pick<Config, 'conflictResolutionConfig'>,
): Readonly<Record<string, unknown>> {
  readRules(document, place, rulesOf(conflictResolutionConfig))
  const inner =
    isDocument(document) && 'conflict_resolution' in document ? document['conflict_resolution'] : document
  // Checked just now.
  return inner as Readonly<Record<string, unknown>>
}

/** A client's own rules with another strategy for a table, or as its default strategy. */
export function withStrategy(
  own: ClientRules['own'],
  strategy: Strategy,
  table: string | undefined,
): Readonly<Record<string, unknown>> {
  const rules = own ?? {}
  const [standards, tables] = [
    'default' in rules ? 'default' : 'default_strategy',
    'tables' in rules ? 'tables' : 'table_strategies',
  ]
  const named = (entry: unknown) => (isDocument(entry) ? {...entry, strategy} : strategy)
  if (table === undefined) return {...rules, [standards]: named(rules[standards])}
  const entries = isDocument(rules[tables]) ? rules[tables] : {}
  return {...rules, [tables]: {...entries, [table]: named(entries[table])}}
}

/** @throws {UsageError} when the client is known to have no such table. */
export function requireTable({client, columns}: ClientRules, table: string): void {
  if (columns.size === 0 || columns.has(table)) return
  throw new UsageError(`${client} has no table ${table}`, `It has ${[...columns.keys()].sort().join(', ')}.`)
}

function isDocument(value: unknown): value is Readonly<Record<string, unknown>> {
  return typeof value === 'object' && value !== null && !Array.isArray(value)
}
