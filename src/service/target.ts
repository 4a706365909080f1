import {randomUUID} from 'node:crypto'
import {chmod, open, readFile, rename, rm} from 'node:fs/promises'
import {hostname} from 'node:os'
import {dirname, join} from 'node:path'
import type {Config} from '../config/config.ts'
import {SyncError, UsageError} from '../core/errors.ts'
import {makeFolder} from '../core/folder.ts'
import {parseEndpoint, withChanges, type Endpoint} from '../net/endpoint.ts'
import {grantHost, HostExistsError, rotatePassword} from '../postgres/admin.ts'
import {connect, type ConnectOptions} from '../postgres/connect.ts'
import {useEmbedded} from '../postgres/embedded.ts'
import {migrate, requireSchema} from '../postgres/migrate.ts'
import {NotYoursError} from '../postgres/refusals.ts'
import type {Pool, Sql} from '../postgres/sql.ts'

/** The settings that say which database is used. */
export type TargetSettings = Pick<
  Config,
  'databaseUrl' | 'adminDatabaseUrl' | 'dbSsl' | 'dbSslCaFile' | 'stateDir' | 'clusterName'
> & {readonly isClusterNamed?: boolean}

/** An open database. Disposing of it closes the pool; the embedded Postgres stops with its last user. */
export type Target = AsyncDisposable & {
  readonly pool: Pool
  readonly endpoint: Endpoint
  readonly isEmbedded: boolean
  /** The cluster that the role belongs to; `undefined` when it is no host's. */
  readonly clusterName: string | undefined
}

/** The database role is another cluster's than the settings say. */
export class WrongClusterError extends SyncError {
  override readonly name = 'WrongClusterError'
  readonly code = 'SYNC_WRONG_CLUSTER'
  readonly next =
    'Set CLUSTER_NAME to the cluster of the role, leave it out, or use the DATABASE_URL of the cluster that is meant.'

  constructor(named: string, actual: string) {
    super(`CLUSTER_NAME is ${named}, but the role in DATABASE_URL belongs to cluster ${actual}`)
  }
}

/**
 * Opens the database as this host's own role: the one `DATABASE_URL` names, otherwise the embedded Postgres, which is
 * started, migrated and given a role for this cluster when it has none.
 *
 * @throws {UsageError} when only `ADMIN_DATABASE_URL` is set: nothing runs as the admin, nor beside what was meant.
 */
export async function openTarget(
  config: TargetSettings,
  options: ConnectOptions,
  signal?: AbortSignal,
): Promise<Target> {
  if (config.databaseUrl) {
    const endpoint = parseEndpoint(config.databaseUrl.reveal(), endpointSettings(config))
    return await asHost(config, await withSchema(opened(endpoint, options, false)))
  }
  if (config.adminDatabaseUrl) {
    throw new UsageError(
      'ADMIN_DATABASE_URL is set and DATABASE_URL is not',
      `Run "owsync db grant-host --cluster ${config.clusterName}" once and put the URL it prints into DATABASE_URL.`,
    )
  }
  const server = await useEmbedded(config.stateDir, signal)
  return await on(server, async () => {
    const admin = parseEndpoint(server.adminUrl)
    const {role: user, password} = await ownLogin(config, admin, options)
    return await withSchema(opened(withChanges(admin, {user, password}), options, true))
  })
}

/** Where this host's database is, found without asking it anything when `DATABASE_URL` names it. */
export type Place = AsyncDisposable & {
  readonly endpoint: Endpoint
  readonly isEmbedded: boolean
}

/**
 * The place that {@link openTarget} opens, for whoever has to live with a database that is not there yet.
 *
 * @throws {UsageError} when only `ADMIN_DATABASE_URL` is set.
 */
export async function locateTarget(
  config: TargetSettings,
  options: ConnectOptions,
  signal?: AbortSignal,
): Promise<Place> {
  if (config.databaseUrl) {
    const endpoint = parseEndpoint(config.databaseUrl.reveal(), endpointSettings(config))
    return {endpoint, isEmbedded: false, [Symbol.asyncDispose]: () => Promise.resolve()}
  }
  const {endpoint, isEmbedded, pool, ...target} = await openTarget(config, options, signal)
  await pool.end()
  return {endpoint, isEmbedded, [Symbol.asyncDispose]: () => target[Symbol.asyncDispose]()}
}

/**
 * Makes sure that the role is this cluster's and that the control schema and this program fit.
 *
 * @throws {WrongClusterError} when the settings name another cluster than the role's.
 */
export async function requireOwnHost(sql: Sql, config: TargetSettings): Promise<string> {
  await requireSchema(sql)
  const [row] = await sql<{cluster: string | null}>`select sync_metadata.my_cluster() as cluster`
  if (row?.cluster == null) throw new NotYoursError('the database role is not the role of a host (any more)')
  if (config.isClusterNamed === true && row.cluster !== config.clusterName)
    throw new WrongClusterError(config.clusterName, row.cluster)
  return row.cluster
}

/**
 * Opens the database as its owner: the one `ADMIN_DATABASE_URL` names, or the embedded Postgres. The control schema
 * need not be there yet.
 *
 * @throws {UsageError} when `DATABASE_URL` names a database whose admin is not known here.
 */
export async function openAdmin(
  config: TargetSettings,
  options: ConnectOptions,
  signal?: AbortSignal,
): Promise<Target> {
  if (config.adminDatabaseUrl) {
    return opened(parseEndpoint(config.adminDatabaseUrl.reveal(), endpointSettings(config)), options, false)
  }
  if (config.databaseUrl) {
    throw new UsageError(
      'this needs the database’s owner, and ADMIN_DATABASE_URL is not set',
      'Set ADMIN_DATABASE_URL for this one command, to the URL of the user `postgres` for example.',
    )
  }
  const server = await useEmbedded(config.stateDir, signal)
  return await on(server, () => Promise.resolve(opened(parseEndpoint(server.adminUrl), options, true)))
}

/** A host's login to the embedded Postgres, as it is kept in `STATE_DIR`. */
export type Login = {readonly role: string; readonly password: string}

/** Keeps the login of this cluster to the embedded Postgres, readable by this user alone. */
export async function saveLogin(config: TargetSettings, {role, password}: Login): Promise<void> {
  const file = loginFile(config)
  const fresh = `${file}.${randomUUID()}`
  makeFolder(dirname(file))
  try {
    const handle = await open(fresh, 'wx', 0o600)
    try {
      await handle.writeFile(`${JSON.stringify({role, password})}\n`)
      await handle.sync()
    } finally {
      await handle.close()
    }
    await rename(fresh, file)
  } finally {
    await rm(fresh, {force: true})
  }
}

/** Opens a target that holds on to `server`, and lets go of it when that fails. */
async function on(server: AsyncDisposable, open: () => Promise<Target>): Promise<Target> {
  await using resources = new AsyncDisposableStack()
  resources.use(server)
  const target = resources.use(await open())
  const kept = resources.move()
  return {...target, [Symbol.asyncDispose]: () => kept.disposeAsync()}
}

/** The kept login when it still works, else a new one. Both nodes of a host may ask at the same instant. */
async function ownLogin(
  config: TargetSettings,
  endpoint: Endpoint,
  {applicationName}: ConnectOptions,
): Promise<Login> {
  const {clusterName: cluster} = config
  await using admin = connect(endpoint, {max: 2, applicationName})
  await migrate(admin)
  return await admin.begin(async tx => {
    await tx`select pg_advisory_xact_lock(hashtext('openwebui-sync'), hashtext(${`login ${cluster}`}))`
    const kept = await readLogin(config)
    if (kept && (await isValid(tx, cluster, kept.role))) return kept
    const granted = await grantHost(admin, endpoint, {cluster, hostname: hostname()}).catch(
      (error: unknown) => {
        if (error instanceof HostExistsError)
          return rotatePassword(admin, endpoint, {cluster, graceMs: rotationGraceMs})
        throw error
      },
    )
    const login = {role: granted.role, password: granted.endpoint.password ?? ''}
    await saveLogin(config, login)
    return login
  })
}

/** A node that was started with the old login keeps working until it is restarted. */
const rotationGraceMs = 3_600_000

async function isValid(sql: Sql, cluster: string, role: string): Promise<boolean> {
  const rows = await sql`
    select from sync_metadata.host_roles r
    join sync_metadata.hosts h using (host_id)
    join pg_catalog.pg_roles p on p.rolname = r.db_role
    where r.db_role = ${role} and h.cluster_name = ${cluster} and r.valid_until is null and p.rolcanlogin`
  return rows.length > 0
}

async function readLogin(config: TargetSettings): Promise<Login | undefined> {
  const file = loginFile(config)
  try {
    const login = JSON.parse(await readFile(file, 'utf8')) as Login
    await chmod(file, 0o600)
    return login
  } catch (error) {
    // Lost or cut short: a new login replaces it.
    if (error instanceof SyntaxError || (error as NodeJS.ErrnoException).code === 'ENOENT') return undefined
    throw error
  }
}

/** A cluster name holds no slash and begins with a letter or digit: it is a file name. */
function loginFile({stateDir, clusterName}: TargetSettings): string {
  return join(stateDir, 'logins', `${clusterName}.json`)
}

function opened(endpoint: Endpoint, options: ConnectOptions, isEmbedded: boolean): Target {
  const pool = connect(endpoint, options)
  return {pool, endpoint, isEmbedded, clusterName: undefined, [Symbol.asyncDispose]: () => pool.end()}
}

/** @throws {WrongClusterError} when the settings name another cluster than the role's. */
async function asHost(config: TargetSettings, target: Target): Promise<Target> {
  const [row] = await target.pool<{cluster: string | null}>`select sync_metadata.my_cluster() as cluster`
  const cluster = row?.cluster ?? undefined
  if (cluster !== undefined && config.isClusterNamed === true && cluster !== config.clusterName) {
    await target[Symbol.asyncDispose]()
    throw new WrongClusterError(config.clusterName, cluster)
  }
  return {...target, clusterName: cluster}
}

async function withSchema(target: Target): Promise<Target> {
  try {
    await requireSchema(target.pool)
    return target
  } catch (error) {
    await target[Symbol.asyncDispose]()
    throw error
  }
}

function endpointSettings({dbSsl, dbSslCaFile}: TargetSettings) {
  return {ssl: dbSsl, caFile: dbSslCaFile}
}
