import {randomUUID} from 'node:crypto'
import {resolve} from 'node:path'
import {withLease} from '../cluster/lease.ts'
import type {Config} from '../config/config.ts'
import {parseClientName} from '../core/client-name.ts'
import {UsageError} from '../core/errors.ts'
import {NotYoursError} from '../postgres/refusals.ts'
import type {Pool} from '../postgres/sql.ts'
import {PermissionError} from '../postgres/sqlstate.ts'
import {readSchema} from '../source/capture.ts'
import type {SourceSpec, TableSpec} from '../source/introspect.ts'
import {explain, openSource, type Source} from '../source/open.ts'
import {TableReader} from '../source/read.ts'
import {versionSeen} from '../source/seen.ts'
import {
  findDeployment,
  moveSource,
  recordFailure,
  registerDeployment,
  UnknownClientError,
  type Deployment,
} from '../state/deployments.ts'
import {waitForDeployment} from '../sync/lock.ts'
import {Session} from '../sync/session.ts'
import {Sidecar} from '../sync/sidecar.ts'
import {syncDeployment, type SyncResult, type SyncRun} from '../sync/sync.ts'
import {refuseTooWide} from '../target/plan.ts'
import {askLeader} from './ask-leader.ts'

/** What `owsync sync` is asked to do. */
export type SyncRequest = {
  readonly client: string
  /** The source; needed for a client that is not registered yet. */
  readonly sqlite?: string | undefined
  readonly full: boolean
  readonly dryRun: boolean
  readonly accept: boolean
  /** Of a dry run: as if the deployment had this direction. */
  readonly asDirection?: 'two_way'
  readonly onProgress?: (table: string, rows: number) => void
  readonly onWait?: (holder: string) => void
}

/** How long a run waits for another one on this cluster to end. */
const PATIENCE_MS = 60_000

/**
 * One sync now: by the node that leads the cluster, as a job that is followed; where none does, leading it as
 * `<cluster>-cli` meanwhile.
 *
 * An unknown client with a file is registered first; the file is opened before that, so that a wrong path registers
 * nothing.
 */
export async function syncOnce(
  pool: Pool,
  config: Config,
  request: SyncRequest,
  signal: AbortSignal,
): Promise<SyncResult> {
  const {name, schema} = parseClientName(request.client)
  const sqlite = request.sqlite === undefined ? undefined : resolve(request.sqlite)
  const client = {name, schema, sqlite}
  if (request.dryRun && sqlite !== undefined && (await findDeployment(pool, schema)) === undefined)
    return await dryRunOf({...client, sqlite}, pool, config, request, signal)
  const deployment = await resolveDeployment(pool, config, client, signal)
  const path = sqlite ?? deployment.sqlitePath
  if (path === null)
    throw new UsageError(`${deployment.clientName} has no SQLite file yet`, 'Give it with --sqlite FILE.')
  const elsewhere = await byLeader(pool, config, deployment, {...request, sqlite}, signal)
  if (elsewhere !== undefined) return elsewhere
  const lock = await waitForDeployment(config.stateDir, deployment, PATIENCE_MS, signal)
  using session = new Session({stateDir: config.stateDir, ...deployment}, lock)
  const asksNothing = !request.full && !request.accept && !request.dryRun
  const unchanged =
    asksNothing && path === deployment.sqlitePath ? session.unchangedSince(deployment, path) : undefined
  if (unchanged !== undefined) return unchanged
  const nodeId = `${config.clusterName}-cli`
  return await withLease(
    pool,
    {
      nodeId,
      clusterName: config.clusterName,
      durationMs: config.leaseDurationMs,
      renewEveryMs: config.heartbeatIntervalMs,
      patienceMs: PATIENCE_MS,
      ...(request.onWait ? {onWait: request.onWait} : {}),
    },
    async lease => {
      const startedAt = performance.now()
      // For the next node: it looks at files, and did not see this run.
      const seen = await versionSeen(path)
      try {
        const {full, dryRun, accept, asDirection, onProgress} = request
        const result = await session.run(
          {
            pool,
            lease,
            sqlitePath: path,
            limits: limitsOf(config),
            conflictConfig: config.conflictResolutionConfig,
            full,
            dryRun,
            accept,
            asDirection,
            versionSeen: seen,
            ...(onProgress ? {onProgress} : {}),
          },
          lease.signal,
        )
        // The file is where the deployment lives from now on, once a sync of it has held.
        if (
          sqlite !== undefined &&
          !dryRun &&
          result.status === 'success' &&
          sqlite !== deployment.sqlitePath
        )
          await moveSource(pool, deployment.deploymentId, sqlite)
        return result
      } catch (error) {
        if (!request.dryRun && !lease.signal.aborted)
          await remember(pool, deployment, error, {
            epoch: lease.epoch,
            durationMs: performance.now() - startedAt,
            full: request.full,
          })
        throw await whyRefused(pool, deployment, error)
      }
    },
    signal,
  )
}

/** @returns `undefined` when no node leads. */
async function byLeader(
  pool: Pool,
  {clusterName, syncQueueSize, leaseDurationMs}: Config,
  {deploymentId, sqlitePath}: Deployment,
  {full, dryRun, accept, asDirection, sqlite, onProgress, onWait}: SyncRequest,
  signal: AbortSignal,
): Promise<SyncResult | undefined> {
  const job = await askLeader(
    pool,
    {
      clusterName,
      deploymentId,
      syncType: full ? 'full' : 'incremental',
      options: {
        ...(accept && {accept}),
        ...(dryRun && {dry_run: true}),
        ...(asDirection && {direction: asDirection}),
        ...(sqlite !== undefined && sqlite !== sqlitePath && {sqlite_path: sqlite}),
      },
      mostWaiting: syncQueueSize,
      patienceMs: 2 * leaseDurationMs,
      onProgress,
      onWait,
    },
    signal,
  )
  if (job === undefined) return undefined
  const result = job.result as Omit<SyncResult, 'generation'> & {readonly generation: number}
  // The leader keeps it too, once it has heard of the cut; it may not live so long.
  if (sqlite !== undefined && !dryRun && result.status === 'success' && sqlite !== sqlitePath)
    await moveSource(pool, deploymentId, sqlite)
  return {...result, generation: BigInt(result.generation)}
}

/** What the settings say about every sync. */
export function limitsOf(config: Config): SyncRun['limits'] {
  return {
    lockBudgetMs: config.lockBudgetMs,
    batchRows: config.batchSizeRows,
    statementTimeoutMs: config.syncTimeoutMs,
    deleteGuard: config.deleteGuard === 'off' ? undefined : config.deleteGuard,
  }
}

async function resolveDeployment(
  pool: Pool,
  {defaultSyncIntervalMs}: Config,
  client: {readonly name: string; readonly schema: string; readonly sqlite: string | undefined},
  signal: AbortSignal,
): Promise<Deployment> {
  const known = await findDeployment(pool, client.schema)
  if (known !== undefined && client.name === known.clientName) return known
  if (client.sqlite === undefined) {
    if (known !== undefined) return known
    throw new UnknownClientError(client.name)
  }
  if (known === undefined) await requireReadable(client.sqlite, signal)
  // For a known client this checks that the two names really are one.
  const path = known?.sqlitePath ?? client.sqlite
  await registerDeployment(pool, client.name, path, Math.round(defaultSyncIntervalMs / 1_000))
  return (await findDeployment(pool, client.schema)) as Deployment
}

/**
 * Opens a file as a sync would, so that a wrong path registers nothing.
 *
 * @returns what it is.
 * @throws {SourceUnreadableError} when it is not a SQLite file that can be mirrored, {SourceBusyError} when it is locked.
 */
export async function requireReadable(file: string, signal: AbortSignal): Promise<SourceSpec> {
  using source = await openSource(file, signal)
  const spec = await readSchema(source, signal)
  refuseTooWide(spec.tables)
  refuseUnreadable(source, spec.tables)
  return spec
}

/** @throws {SourceUnreadableError} when the rows of a table cannot even be asked for. */
function refuseUnreadable({db, file}: Source, tables: readonly TableSpec[]): void {
  try {
    for (const table of tables) new TableReader(db, table)
  } catch (cause) {
    throw explain(file, cause)
  }
}

/** What a client that nobody knows would bring: told without registering it. */
async function dryRunOf(
  client: {readonly name: string; readonly schema: string; readonly sqlite: string},
  pool: Pool,
  config: Config,
  {full, accept, onProgress}: SyncRequest,
  signal: AbortSignal,
): Promise<SyncResult> {
  const deployment: Deployment = {
    deploymentId: randomUUID(),
    clientName: client.name,
    schemaName: client.schema,
    sqlitePath: null,
    status: 'active',
    statusReason: null,
    direction: 'one_way',
    generation: 0n,
    cutId: null,
    loadPosition: null,
    quarantinedRows: 0,
    pendingConflicts: 0,
    hasMarks: false,
    hasUnwritten: false,
    config: {},
  }
  try {
    return await syncDeployment(
      {
        pool,
        lease: {nodeId: `${config.clusterName}-cli`, epoch: 0n, signal, endsAt: () => Infinity},
        deployment,
        sqlitePath: client.sqlite,
        stateDir: config.stateDir,
        limits: limitsOf(config),
        full,
        dryRun: true,
        accept,
        ...(onProgress ? {onProgress} : {}),
      },
      signal,
    )
  } finally {
    Sidecar.remove(config.stateDir, deployment.deploymentId)
  }
}

/** A role without rights that has no such client any more lacks nothing: the client has another host. */
async function whyRefused(
  pool: Pool,
  {clientName, schemaName}: Deployment,
  error: unknown,
): Promise<unknown> {
  if (!(error instanceof PermissionError)) return error
  const ours = await findDeployment(pool, schemaName).catch(() => 'nobody knows' as const)
  return ours === undefined
    ? new NotYoursError(`${clientName} is not a client of this host any more`, {cause: error})
    : error
}

/** The history shows failed runs too; when even that cannot be written, the failure itself is what counts. */
async function remember(
  pool: Pool,
  deployment: Deployment,
  error: unknown,
  run: {readonly epoch: bigint; readonly durationMs: number; readonly full: boolean},
): Promise<void> {
  const code =
    error instanceof Error && 'code' in error && typeof error.code === 'string'
      ? error.code
      : 'SYNC_UNEXPECTED'
  const message = error instanceof Error ? error.message : String(error)
  try {
    await recordFailure(pool, deployment.deploymentId, {code, message, ...run})
  } catch (cause) {
    if (error instanceof Error) error.cause ??= cause
  }
}
