import {randomBytes} from 'node:crypto'
import pg from 'pg'
import {SyncError, UsageError} from '../core/errors.ts'
import {urlOf, withChanges, type Endpoint} from '../net/endpoint.ts'
import {ensureDatabaseGrants, schemaVersion} from './migrate.ts'
import {NameTakenError} from './refusals.ts'
import {generatePassword, scramVerifier} from './scram.ts'
import type {Pool, Sql, Tx} from './sql.ts'
import {TransactionConflictError} from './sqlstate.ts'

// What is done with the admin's URL. The SQL behind it is sql/0006_administration.sql; a host role may call none of it.

/** A host's own login. `url` holds its password, which is kept nowhere: show it once, or write it to a secrets file. */
export type HostLogin = {
  readonly cluster: string
  readonly role: string
  readonly endpoint: Endpoint
  readonly url: string
}

/** A host's new login, and what became of the old ones. */
export type Rotation = HostLogin & {
  /** Until when the old login works. */
  readonly oldValidUntil: Date
  /** Logins of earlier rotations that were removed now. */
  readonly dropped: readonly string[]
}

/** What may be given to a database role that is no host's. */
export type AccessMode = 'read' | 'edit'

export type HostStatus = {
  readonly hostId: string
  readonly cluster: string
  readonly hostname: string
  readonly status: string
  readonly lastHeartbeat: Date | undefined
  readonly roles: readonly {readonly role: string; readonly validUntil: Date | undefined}[]
  readonly clients: number
}

export type DeploymentStatus = {
  readonly client: string
  readonly schema: string
  /** `undefined`: detached, no host syncs it. */
  readonly cluster: string | undefined
  readonly status: string
  readonly generation: bigint
  readonly lastSyncAt: Date | undefined
  readonly sizeBytes: bigint
}

export type LeaseStatus = {
  readonly cluster: string
  readonly leader: string | undefined
  readonly epoch: bigint
  readonly expiresAt: Date
  readonly paused: boolean
}

/** What `owsync db status` shows. */
export type DbStatus = {
  readonly schemaVersion: number
  readonly server: string
  readonly sizeBytes: bigint
  readonly hosts: readonly HostStatus[]
  readonly deployments: readonly DeploymentStatus[]
  readonly leases: readonly LeaseStatus[]
}

/** The host has a login already; a second one would go unnoticed. */
export class HostExistsError extends SyncError {
  override readonly name = 'HostExistsError'
  readonly code = 'SYNC_HOST_EXISTS'
  readonly next: string

  constructor(cluster: string, options?: ErrorOptions) {
    super(`the cluster "${cluster}" has a login already`, options)
    this.next = `For a new one run \`owsync db rotate-password --cluster ${cluster}\`; the old one stays valid for a while.`
  }
}

/** The leader with two workers (13), two standbys (4 each), and a person at the command line. */
const CONNECTIONS_PER_HOST = 24

/**
 * Adds a host: a role of its own with a generated password, in one transaction.
 *
 * @param admin the endpoint that `pool` uses; the host's URL is made from it.
 * @throws {HostExistsError} when there is a cluster of that name.
 */
export async function grantHost(
  pool: Pool,
  admin: Endpoint,
  {cluster, hostname}: {readonly cluster: string; readonly hostname: string},
): Promise<HostLogin> {
  return asAdmin(() =>
    pool.begin(async tx => {
      await ensureDatabaseGrants(tx)
      const login = await createLogin(tx, admin, cluster)
      try {
        await tx`select sync_metadata.add_host(${cluster}, ${hostname}, ${login.role})`
      } catch (error) {
        throw error instanceof NameTakenError ? new HostExistsError(cluster, {cause: error}) : error
      }
      return login
    }),
  )
}

/**
 * Gives a host a second login. The one it has works until `graceMs` from now, so that nodes can be restarted one after
 * the other; logins whose time was over already are removed.
 */
export async function rotatePassword(
  pool: Pool,
  admin: Endpoint,
  {cluster, graceMs}: {readonly cluster: string; readonly graceMs: number},
): Promise<Rotation> {
  return asAdmin(() =>
    pool.begin(async tx => {
      const dropped = await dropExpired(tx, cluster)
      const login = await createLogin(tx, admin, cluster)
      const [row] = await tx<{until: Date}>`
        select sync_metadata.add_host_role(${cluster}, ${login.role}, ${graceMs} * interval '1 millisecond') as until`
      if (!row) throw new Error('add_host_role gave no row')
      await tx`
        select sync_metadata.expire_host_login(r.db_role, r.valid_until)
        from sync_metadata.host_roles r
        join sync_metadata.hosts h using (host_id)
        where h.cluster_name = ${cluster} and r.valid_until is not null`
      return {...login, oldValidUntil: row.until, dropped}
    }),
  )
}

/**
 * Removes a host and its logins. Its clients stay, with their data and history, detached until {@link transferClient}.
 *
 * @returns the roles that were removed.
 * @throws {UsageError} naming the clients that are still to be synced, or when there is no such cluster.
 */
export async function removeHost(
  pool: Pool,
  {cluster}: {readonly cluster: string},
): Promise<readonly string[]> {
  return asAdmin(() =>
    pool.begin(async tx => {
      const rows = await tx<{role: string}>`select sync_metadata.remove_host(${cluster}) as role`
      for (const {role} of rows) await dropLogin(tx, role)
      return rows.map(({role}) => role)
    }),
  )
}

/**
 * Lets a role that exists read, or read and edit, a client's tables: those there are and those to come.
 *
 * @throws {NameRefusedError} for a role that stands for many, or for a host.
 */
export async function grantAccess(
  sql: Sql,
  {client, role, mode}: {readonly client: string; readonly role: string; readonly mode: AccessMode},
): Promise<void> {
  await asAdmin(() => sql`select sync_metadata.set_access(${client}, ${role}, ${mode})`)
}

/** Takes back what {@link grantAccess} gave. Nothing to take back is no error. */
export async function revokeAccess(
  sql: Sql,
  {client, role}: {readonly client: string; readonly role: string},
): Promise<void> {
  await asAdmin(() => sql`select sync_metadata.set_access(${client}, ${role}, null)`)
}

/**
 * Moves a client's rights to another host. The old host is fenced: what it has in flight for any client cannot commit,
 * and it goes on with the others under a new epoch.
 *
 * A transaction of the old host that changes tables is waited for, for {@link TRANSFER_PATIENCE_MS}; then its sessions
 * are ended: it may be frozen or cut off, and that must not keep a client from a host that lives.
 */
export async function transferClient(
  pool: Pool,
  {client, toCluster}: {readonly client: string; readonly toCluster: string},
): Promise<void> {
  await insist(pool, client, tx => tx`select sync_metadata.transfer_client(${client}, ${toCluster})`)
}

/**
 * Removes a client for good: its schema with every row in it, and all that is recorded of it but the audit log. Its
 * host is kept waiting no longer than by {@link transferClient}.
 *
 * @throws {StillSyncedError} while its sync is enabled, unless forced.
 * @throws {UsageError} when there is no such client.
 */
export async function dropClient(
  pool: Pool,
  {client, actor, force}: {readonly client: string; readonly actor: string; readonly force: boolean},
): Promise<void> {
  await insist(pool, client, tx => tx`select sync_metadata.drop_client(${client}, ${actor}, ${force})`)
}

/** Does it; when the client's host holds on to something for too long, its sessions are ended first. */
async function insist(pool: Pool, client: string, work: (tx: Tx) => Promise<unknown>): Promise<void> {
  const attempt = () =>
    asAdmin(() => pool.begin(work, {setLocal: {lock_timeout: `${TRANSFER_PATIENCE_MS}ms`}}))
  try {
    await attempt()
  } catch (error) {
    if (!(error instanceof TransactionConflictError)) throw error
    await pool`
      select pg_terminate_backend(a.pid)
      from sync_metadata.client_deployments d
      join sync_metadata.host_roles r using (host_id)
      join pg_stat_activity a on a.usename = r.db_role
      where d.schema_name = sync_metadata.schema_of(${client}) and a.datname = current_database()`
    await attempt()
  }
}

const TRANSFER_PATIENCE_MS = 3_000

/** Reads what the control schema holds, over all hosts. */
export async function dbStatus(pool: Pool): Promise<DbStatus> {
  const version = await schemaVersion(pool)
  const [server] = await pool<{version: string; size: bigint}>`
    select current_setting('server_version') as version, pg_database_size(current_database()) as size`
  return {
    schemaVersion: version,
    server: server?.version ?? '',
    sizeBytes: server?.size ?? 0n,
    hosts: await readHosts(pool),
    deployments: await readDeployments(pool),
    leases: await readLeases(pool),
  }
}

async function readHosts(sql: Sql): Promise<HostStatus[]> {
  const rows = await sql<{
    host_id: string
    cluster_name: string
    hostname: string
    status: string
    last_heartbeat: Date | null
    roles: {role: string; until: string | null}[]
    clients: number
  }>`
    select h.host_id, h.cluster_name, h.hostname, h.status, h.last_heartbeat,
      (select coalesce(jsonb_agg(jsonb_build_object('role', r.db_role, 'until', r.valid_until) order by r.created_at), '[]')
        from sync_metadata.host_roles r where r.host_id = h.host_id) as roles,
      (select count(*)::int from sync_metadata.client_deployments d where d.host_id = h.host_id) as clients
    from sync_metadata.hosts h
    order by h.cluster_name`
  return rows.map(row => ({
    hostId: row.host_id,
    cluster: row.cluster_name,
    hostname: row.hostname,
    status: row.status,
    lastHeartbeat: row.last_heartbeat ?? undefined,
    roles: row.roles.map(({role, until}) => ({
      role,
      validUntil: until === null ? undefined : new Date(until),
    })),
    clients: row.clients,
  }))
}

async function readDeployments(sql: Sql): Promise<DeploymentStatus[]> {
  const rows = await sql<{
    client_name: string
    schema_name: string
    cluster_name: string | null
    status: string
    generation: bigint
    last_sync_at: Date | null
    size_bytes: bigint
  }>`
    select client_name, schema_name, cluster_name, status, generation, last_sync_at, size_bytes
    from sync_metadata.v_sync_status
    order by client_name`
  return rows.map(row => ({
    client: row.client_name,
    schema: row.schema_name,
    cluster: row.cluster_name ?? undefined,
    status: row.status,
    generation: row.generation,
    lastSyncAt: row.last_sync_at ?? undefined,
    sizeBytes: row.size_bytes,
  }))
}

async function readLeases(sql: Sql): Promise<LeaseStatus[]> {
  const rows = await sql<{
    cluster_name: string
    leader_id: string | null
    epoch: bigint
    expires_at: Date
    paused: boolean
  }>`
    select cluster_name, case when expires_at > now() then leader_id end as leader_id, epoch, expires_at, paused
    from sync_metadata.leader_election
    order by cluster_name`
  return rows.map(row => ({
    cluster: row.cluster_name,
    leader: row.leader_id ?? undefined,
    epoch: row.epoch,
    expiresAt: row.expires_at,
    paused: row.paused,
  }))
}

async function createLogin(tx: Tx, admin: Endpoint, cluster: string): Promise<HostLogin> {
  // Every role of the database can list role names, so the name says nothing.
  const role = `sync_host_${randomBytes(6).toString('hex')}`
  const password = generatePassword()
  await tx`select sync_metadata.create_host_login(${role}, ${scramVerifier(password)}, ${CONNECTIONS_PER_HOST})`
  const [row] = await tx<{me: string}>`select current_user::text as me`
  // A pooler tells projects apart by what follows the role: `postgres.REF` becomes `sync_host_….REF`.
  const me = row?.me ?? ''
  const project = admin.user.startsWith(`${me}.`) ? admin.user.slice(me.length) : ''
  const endpoint = withChanges(admin, {user: role + project, password})
  return {cluster, role, endpoint, url: urlOf(endpoint)}
}

async function dropExpired(tx: Tx, cluster: string): Promise<string[]> {
  const rows = await tx<{role: string}>`select sync_metadata.retire_host_roles(${cluster}) as role`
  for (const {role} of rows) await dropLogin(tx, role)
  return rows.map(({role}) => role)
}

async function dropLogin(tx: Tx, role: string): Promise<void> {
  try {
    await tx.savepoint(async () => {
      await tx`select pg_terminate_backend(pid) from pg_stat_activity where usename = ${role}`
      await tx`drop role if exists ${tx(role)}`
    })
  } catch (error) {
    if (error instanceof SyncError && error.retryable) throw error
    // It holds something elsewhere (another database, a large object), so the role stays, without the means to log in.
    await tx`alter role ${tx(role)} nologin password null`
  }
}

/** What a person typed wrong is a usage error here; when a program's own sync asks, it is a bug. */
async function asAdmin<T>(work: () => Promise<T>): Promise<T> {
  try {
    return await work()
  } catch (error) {
    if (error instanceof pg.DatabaseError && error.code === 'OS006') {
      throw new UsageError(error.message, error.hint ?? '`owsync db status` lists clusters and clients.', {
        cause: error,
      })
    }
    throw error
  }
}
