import {existsSync} from 'node:fs'
import {isDeepStrictEqual} from 'node:util'
import {z} from 'zod'
import {rulesOf} from '../conflict/rules.ts'
import {parseClientName} from '../core/client-name.ts'
import {SyncError} from '../core/errors.ts'
import {recordAudit} from '../postgres/audit-log.ts'
import type {Pool} from '../postgres/sql.ts'
import {parseInterval} from '../schedule/interval.ts'
import {registerClient} from '../state/client-actions.ts'
import {readDeployments, type ListedDeployment} from '../state/deployment-list.ts'
import {changeSettings, type SettingsChange} from '../state/deployment-settings.ts'

// What clients are set to, as a file: to keep, to compare, and to set up a host anew.

/** A file of settings that cannot be used; nothing was changed. */
export class ClientConfigError extends SyncError {
  override readonly name = 'ClientConfigError'
  readonly code = 'SYNC_CLIENT_CONFIG'
  readonly next = 'Correct the file; `owsync client config export` shows what one looks like.'

  constructor(problems: readonly string[], options?: ErrorOptions) {
    super(`the file of clients cannot be used: ${problems.join('; ')}`, options)
  }
}

const ClientEntry = z
  .strictObject({
    client: z.string(),
    sqlite_path: z.string().min(1).nullable(),
    container_name: z.string().min(1).nullable(),
    fqdn: z.string().min(1).nullable(),
    port: z.int().min(1).max(65_535).nullable(),
    direction: z.enum(['one_way', 'two_way']),
    enabled: z.boolean(),
    interval: z.int().min(10).nullable(),
    schedule: z.string().min(1).nullable(),
    config: z.record(z.string(), z.unknown()),
  })
  .partial()
  .required({client: true})

const ClientFile = z.strictObject({
  format: z.literal('owsync-clients'),
  version: z.literal(1),
  cluster_name: z.string().optional(),
  clients: z.array(ClientEntry),
})

/** Settings of a host's clients. What an entry leaves out stays as it is. */
export type ClientFile = z.infer<typeof ClientFile>

type Entry = ClientFile['clients'][number]

/** @returns the settings of all clients of this host: no state, no data. */
export async function exportClients(pool: Pool, clusterName: string): Promise<ClientFile> {
  const deployments = await readDeployments(pool, {limit: 100_000})
  return {
    format: 'owsync-clients',
    version: 1,
    cluster_name: clusterName,
    clients: deployments.map(entryOf),
  }
}

/** What an import did, or would do, to one client. */
export type Imported = {
  readonly client: string
  readonly what: 'registered' | 'changed' | 'unchanged'
  /** Settings that differ, by name. */
  readonly changes: readonly string[]
  /** The file that it names is not here (yet). */
  readonly isFileMissing: boolean
}

/**
 * Sets clients up as a file says: those that are not known are registered, those that are get its settings; all of them
 * or none. Clients that the file does not name are left alone.
 *
 * @throws {ClientConfigError} naming everything in the file that cannot be.
 */
export async function importClients(
  pool: Pool,
  text: string,
  {dryRun, actor}: {readonly dryRun: boolean; readonly actor: string},
): Promise<Imported[]> {
  const {clients} = parseClientFile(text)
  const known = new Map(
    (await readDeployments(pool, {limit: 100_000})).map(deployment => [deployment.schema_name, deployment]),
  )
  const imported = clients.map((entry): Imported => {
    const present = known.get(parseClientName(entry.client).schema)
    const changes = present === undefined ? [] : differing(entry, entryOf(present))
    const isFileMissing = entry.sqlite_path != null && !existsSync(entry.sqlite_path)
    const what = present === undefined ? 'registered' : changes.length > 0 ? 'changed' : 'unchanged'
    return {client: present?.client_name ?? entry.client, what, changes, isFileMissing}
  })
  const switched = imported.flatMap(({client, changes}, i) => {
    const present = known.get(parseClientName(client).schema)
    const isTwoWay = changes.includes('direction') && clients[i]?.direction === 'two_way'
    return isTwoWay && present !== undefined && present.generation > 0n ? [client] : []
  })
  // A file cannot say that somebody has seen what would be written.
  if (switched.length > 0)
    throw new ClientConfigError(
      switched.map(
        client => `${client} is switched to two_way by \`owsync client direction ${client} two_way\``,
      ),
    )
  if (dryRun) return imported
  await pool.begin(async tx => {
    for (const [i, entry] of clients.entries()) {
      const {what, client, changes} = imported[i] as Imported
      if (what === 'unchanged') continue
      if (what === 'registered') await registerClient(tx, entry.client, {})
      const present = known.get(parseClientName(entry.client).schema)
      await changeSettings(tx, client, settingsOf(entry, present), undefined)
      const {direction} = entry
      const details = {what, changes, ...(direction !== undefined && {direction})}
      await recordAudit(tx, {actor, action: 'client.imported', client, details})
    }
  })
  return imported
}

/** @throws {ClientConfigError} */
function parseClientFile(text: string): ClientFile {
  let document: unknown
  try {
    document = JSON.parse(text)
  } catch (cause) {
    throw new ClientConfigError(['it is not JSON'], {cause})
  }
  const parsed = ClientFile.safeParse(document)
  if (!parsed.success)
    throw new ClientConfigError(
      parsed.error.issues.map(
        ({path, message}) => `${path.length === 0 ? 'it' : path.join('.')}: ${message}`,
      ),
    )
  const seen = new Map<string, string>()
  const problems = parsed.data.clients.flatMap(({client, interval, schedule, config}, i) => {
    const at = `clients.${i} (${client})`
    const faults = [
      faultOf(() => {
        const {schema} = parseClientName(client)
        const before = seen.get(schema)
        seen.set(schema, client)
        if (before !== undefined) throw new Error(`is in it twice, as ${before} too`)
      }),
      faultOf(() => schedule != null && parseInterval(schedule)),
      faultOf(() => config?.['conflict_resolution'] != null && rulesOf(undefined, {name: client, config})),
      interval != null && schedule != null ? 'has an interval and a schedule' : undefined,
    ]
    return faults.filter(fault => fault !== undefined).map(fault => `${at}: ${fault}`)
  })
  if (problems.length > 0) throw new ClientConfigError(problems)
  return parsed.data
}

function faultOf(check: () => unknown): string | undefined {
  try {
    check()
    return undefined
  } catch (error) {
    return error instanceof Error ? error.message : String(error)
  }
}

function entryOf(deployment: ListedDeployment) {
  return {
    client: deployment.client_name,
    sqlite_path: deployment.sqlite_path,
    container_name: deployment.container_name,
    fqdn: deployment.fqdn,
    port: deployment.port,
    direction: deployment.direction,
    enabled: deployment.sync_enabled,
    interval: deployment.sync_interval,
    schedule: deployment.sync_schedule,
    config: deployment.config,
  } satisfies Entry
}

/** An interval takes the place of a schedule, and the other way round, whether the other is named or not. */
function settingsOf(entry: Entry, present: ListedDeployment | undefined): SettingsChange {
  const {enabled, interval, schedule, config} = entry
  const isTimed = interval !== undefined || schedule !== undefined
  // A change merges; a file says all there is to be.
  const gone = Object.keys(present?.config ?? {}).filter(key => config !== undefined && !(key in config))
  return {
    ...(entry.sqlite_path !== undefined && {sqlite_path: entry.sqlite_path}),
    ...(entry.container_name !== undefined && {container_name: entry.container_name}),
    ...(entry.fqdn !== undefined && {fqdn: entry.fqdn}),
    ...(entry.port !== undefined && {port: entry.port}),
    ...(entry.direction !== undefined && {direction: entry.direction}),
    ...(enabled !== undefined && {sync_enabled: enabled}),
    ...(isTimed && {sync_interval: interval ?? null, sync_schedule: schedule ?? null}),
    ...(config !== undefined && {config: {...Object.fromEntries(gone.map(key => [key, null])), ...config}}),
  }
}

function differing(wanted: Entry, present: Entry): string[] {
  const {interval, schedule} = wanted
  const isTimed = interval !== undefined || schedule !== undefined
  const whole: Entry = isTimed ? {...wanted, interval: interval ?? null, schedule: schedule ?? null} : wanted
  return Object.entries(whole).flatMap(([key, value]) =>
    key === 'client' || value === undefined || isDeepStrictEqual(value, present[key as keyof Entry])
      ? []
      : [key],
  )
}
