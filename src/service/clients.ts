import {realpath} from 'node:fs/promises'
import {resolve} from 'node:path'
import type {Config} from '../config/config.ts'
import {parseClientName} from '../core/client-name.ts'
import {SyncError, UsageError} from '../core/errors.ts'
import {recordAudit} from '../postgres/audit-log.ts'
import type {Pool} from '../postgres/sql.ts'
import {countRows} from '../source/count.ts'
import {openSource} from '../source/open.ts'
import {columnsOf, type Schedule} from '../schedule/interval.ts'
import {detachClient, eraseRow, registerClient} from '../state/client-actions.ts'
import {readDeployments, readSizes, type ListedDeployment} from '../state/deployment-list.ts'
import {changeSettings, type SettingsChange} from '../state/deployment-settings.ts'
import {findDeployment, UnknownClientError} from '../state/deployments.ts'
import {DeploymentBusyError, lockDeployment} from '../sync/lock.ts'
import {Sidecar} from '../sync/sidecar.ts'
import type {SyncResult} from '../sync/sync.ts'
import {countTarget} from './rows-ahead.ts'
import {requireReadable, syncOnce} from './sync-once.ts'

// What `owsync client` does, as this host's role and without a node: the nodes see it in the control schema.

/** One client of this host as the commands show it. */
export type Client = ListedDeployment & {readonly size_bytes: bigint}

/** @returns the clients of this host by name; only the one whose schema is given, if one is. */
export async function listClients(pool: Pool, schemaName?: string): Promise<Client[]> {
  const query = {limit: 100_000, ...(schemaName !== undefined && {schemaName})}
  const [deployments, sizes] = await Promise.all([readDeployments(pool, query), readSizes(pool)])
  return deployments.map(deployment => ({
    ...deployment,
    size_bytes: sizes.get(deployment.schema_name) ?? 0n,
  }))
}

/** @throws {UnknownClientError} when this host has no such client. */
export async function getClient(pool: Pool, name: string): Promise<Client> {
  const {schema} = parseClientName(name)
  const [client] = await listClients(pool, schema)
  if (client === undefined) throw new UnknownClientError(name)
  return client
}

export type RegisterRequest = {
  readonly client: string
  readonly sqlite: string | undefined
  readonly schedule: Schedule | undefined
  readonly container?: string | undefined
  readonly fqdn?: string | undefined
  /** Register it with its sync switched off. */
  readonly paused: boolean
  readonly actor: string
}

/** What became of a registration. */
export type Registered = {readonly client: Client; readonly isNew: boolean}

/**
 * Registers a client with its file, which is opened first: a wrong path registers nothing. The same client again with
 * the same file gets the schedule, if one is given, and is otherwise left as it is.
 *
 * @throws {UsageError} without a file, and for a client that has another one.
 */
export async function register(
  pool: Pool,
  {client, sqlite, schedule, container, fqdn, paused, actor}: RegisterRequest,
  signal: AbortSignal,
): Promise<Registered> {
  const {name, schema} = parseClientName(client)
  const known = await findDeployment(pool, schema)
  const named = sqlite ?? known?.sqlitePath ?? undefined
  if (named === undefined)
    throw new UsageError(`${name} has no SQLite file yet`, 'Give it with --sqlite FILE.')
  // A link stays one: where it leads is for each sync to see.
  const path = resolve(named)
  await requireReadable(path, signal)
  const isSame = known?.sqlitePath == null || (await sameFile(known.sqlitePath, path))
  if (!isSame)
    throw new UsageError(
      `${known.clientName} is registered with ${known.sqlitePath}`,
      'Give --from-target to attach another file to what Postgres has; `owsync client status` shows the client.',
    )
  const settings: SettingsChange = {
    sqlite_path: path,
    ...(container !== undefined && {container_name: container}),
    ...(fqdn !== undefined && {fqdn}),
    ...scheduleChange(schedule),
    ...(paused && {sync_enabled: false}),
  }
  await pool.begin(async tx => {
    await registerClient(tx, name, {sqlite_path: path})
    await changeSettings(tx, name, settings, undefined)
    await recordAudit(tx, {
      actor,
      action: 'client.configured',
      client: known?.clientName ?? name,
      details: settings,
    })
  })
  return {client: await getClient(pool, name), isNew: known === undefined}
}

/** What the first sync of an attached file would do; nothing was attached when it is held back. */
export type Attached = {readonly client: Client; readonly preview: SyncResult}

/**
 * Makes a file, such as a restored one, the source of a client that Postgres has already. What the next sync would
 * apply is found out first, without applying it.
 *
 * @throws {UnknownClientError} when this host has no such client.
 */
export async function attach(
  pool: Pool,
  config: Config,
  {client, sqlite, schedule, actor}: RegisterRequest,
  signal: AbortSignal,
): Promise<Attached> {
  const {name, schema} = parseClientName(client)
  const deployment = await findDeployment(pool, schema)
  if (deployment === undefined) throw new UnknownClientError(name)
  if (sqlite === undefined)
    throw new UsageError('--from-target needs the file that is attached', 'Give it with --sqlite FILE.')
  if (deployment.generation === 0n)
    throw new UsageError(
      `Postgres has nothing of ${name} yet`,
      'Leave --from-target out: the first sync copies the whole file.',
    )
  const path = resolve(sqlite)
  await requireReadable(path, signal)
  const look = {client: name, sqlite: path, full: false, dryRun: true, accept: false}
  const preview = await syncOnce(pool, config, look, signal)
  if (preview.status === 'success')
    await pool.begin(async tx => {
      const settings = {sqlite_path: path, sync_enabled: true, ...scheduleChange(schedule)}
      await changeSettings(tx, name, settings, undefined)
      const {clientName} = deployment
      await recordAudit(tx, {actor, action: 'client.attached', client: clientName, details: settings})
    })
  return {client: await getClient(pool, name), preview}
}

/** What a command changes about a client, and how the audit log calls it. */
export type ClientChange = {
  readonly client: string
  readonly settings: SettingsChange
  readonly actor: string
  readonly action: `client.${string}`
  /** Why, for whoever looks next. */
  readonly reason?: string | undefined
}

/**
 * Changes a client's settings, and notes who did.
 *
 * @throws {UnknownClientError} when this host has no such client.
 */
export async function change(
  pool: Pool,
  {client, settings, actor, action, reason}: ClientChange,
): Promise<Client> {
  await pool.begin(async tx => {
    const {settings: now, deploymentId} = await changeSettings(tx, client, settings, undefined)
    if (reason !== undefined)
      await tx`update sync_metadata.client_deployments set status_reason = ${reason}
        where deployment_id = ${deploymentId} and status = 'paused'`
    const details = {...settings, ...(reason !== undefined && {reason})}
    await recordAudit(tx, {actor, action, client: now.client_name, details})
  })
  return await getClient(pool, client)
}

/** @returns the settings that mean a schedule. */
export function scheduleChange(
  schedule: Schedule | undefined,
): Pick<SettingsChange, 'sync_interval' | 'sync_schedule'> {
  if (schedule === undefined) return {}
  const {syncInterval, syncSchedule} = columnsOf(schedule)
  return {sync_interval: syncInterval, sync_schedule: syncSchedule}
}

/** Erases a row that the source has deleted. @returns whether there was anything. */
export async function purge(
  pool: Pool,
  {
    client,
    table,
    key,
    actor,
  }: {readonly client: Client; readonly table: string; readonly key: string; readonly actor: string},
): Promise<boolean> {
  return await pool.begin(async tx => {
    const erased = await eraseRow(tx, {deploymentId: client.deployment_id, table, key})
    // The key is not recorded: it may be what had to be erased.
    const details = {table, erased}
    await recordAudit(tx, {actor, action: 'client.purged', client: client.client_name, details})
    return erased
  })
}

/**
 * Gives a client up; its tables and its history stay. What this host remembers of it goes too.
 *
 * @throws {StillSyncedError} while its sync is enabled, unless forced.
 */
export async function detach(
  pool: Pool,
  config: Config,
  client: Client,
  {actor, force}: {readonly actor: string; readonly force: boolean},
): Promise<void> {
  await detachClient(pool, client.deployment_id, {actor, force})
  forget(config, {deploymentId: client.deployment_id, clientName: client.client_name})
}

/** Removes the sidecar, unless a sync is still at it: it is a cache, and harms nobody. */
export function forget(
  {stateDir}: Config,
  {deploymentId, clientName}: {readonly deploymentId: string; readonly clientName: string},
): void {
  try {
    using lock = lockDeployment(stateDir, deploymentId, clientName)
    Sidecar.remove(stateDir, deploymentId)
  } catch (error) {
    if (!(error instanceof DeploymentBusyError)) throw error
  }
}

/** Rows of one table on both sides. `undefined`: the side does not have it, or could not be asked. */
export type TableCount = {
  readonly table: string
  readonly source: number | undefined
  readonly target: number | undefined
  /** Rows that the source has deleted and the target still keeps. */
  readonly deleted: number | undefined
}

export type Counts = {
  readonly tables: readonly TableCount[]
  /** Why the source could not be counted. */
  readonly sourceError: SyncError | undefined
}

/** Counts the rows of both sides, table by table. A file that cannot be read leaves its side open. */
export async function countBoth(
  pool: Pool,
  {lockBudgetMs}: Config,
  client: Client,
  signal: AbortSignal,
): Promise<Counts> {
  const {deployment_id: deploymentId, schema_name: schemaName} = client
  const target = await countTarget(pool, {deploymentId, schemaName})
  let source: ReadonlyMap<string, number> | undefined
  let sourceError: SyncError | undefined
  try {
    if (client.sqlite_path === null)
      throw new UsageError(`${client.client_name} has no SQLite file yet`, 'Sync it once with --sqlite FILE.')
    using opened = await openSource(client.sqlite_path, signal)
    source = (await countRows(opened, lockBudgetMs, signal)).tables
  } catch (error) {
    if (!(error instanceof SyncError)) throw error
    sourceError = error
  }
  const names = [...new Set([...(source?.keys() ?? []), ...target.keys()])].sort()
  const tables = names.map(table => ({
    table,
    source: source?.get(table),
    target: target.get(table)?.live,
    deleted: target.get(table)?.deleted,
  }))
  return {tables, sourceError}
}

/** Whether both are one path or lead to one file. */
async function sameFile(known: string, path: string): Promise<boolean> {
  const real = await realpath(path)
  return resolve(known) === path || (await realpath(known).catch(() => undefined)) === real
}
