import {resolve} from 'node:path'
import {withLease} from '../cluster/lease.ts'
import type {Config} from '../config/config.ts'
import {parseClientName} from '../core/client-name.ts'
import {UsageError} from '../core/errors.ts'
import type {Pool} from '../postgres/sql.ts'
import {findDeployment, UnknownClientError} from '../state/deployments.ts'
import {waitForDeployment} from '../sync/lock.ts'
import {verifyDeployment, type VerifyResult, type VerifyRun, type VerifyTotals} from '../sync/verify.ts'
import {askLeader} from './ask-leader.ts'

/** What `owsync verify` is asked to do. */
export type VerifyRequest = {
  readonly client: string
  /** The source, when it is elsewhere than at the last sync. */
  readonly sqlite?: string | undefined
  readonly quick: boolean
  /** Put right what differs: by the node that leads, else leading the cluster as `<cluster>-cli` meanwhile. */
  readonly repair: boolean
  readonly onProgress?: (table: string, rows: number) => void
  readonly onWait?: (holder: string) => void
}

/** How long a repair waits for another run on this cluster to end. */
const PATIENCE_MS = 60_000

/** One verification now. Looking needs neither lock nor lease: syncs go on, and so does whoever leads. */
export async function verifyOnce(
  pool: Pool,
  config: Config,
  request: VerifyRequest,
  signal: AbortSignal,
): Promise<{result: VerifyResult; totals: VerifyTotals}> {
  const {name, schema} = parseClientName(request.client)
  const deployment = await findDeployment(pool, schema)
  if (deployment === undefined) throw new UnknownClientError(name)
  const sqlitePath = request.sqlite === undefined ? deployment.sqlitePath : resolve(request.sqlite)
  if (sqlitePath === null)
    throw new UsageError(`${deployment.clientName} has no SQLite file yet`, 'Give it with --sqlite FILE.')
  const run: VerifyRun = {
    pool,
    deployment,
    sqlitePath,
    stateDir: config.stateDir,
    lockBudgetMs: config.lockBudgetMs,
    quick: request.quick,
    ...(request.onProgress ? {onProgress: request.onProgress} : {}),
  }
  if (!request.repair) return await verifyDeployment(run, signal)

  const elsewhere = await byLeader(pool, config, run, request, signal)
  if (elsewhere !== undefined) return elsewhere
  using lock = await waitForDeployment(config.stateDir, deployment, PATIENCE_MS, signal)
  return await withLease(
    pool,
    {
      nodeId: `${config.clusterName}-cli`,
      clusterName: config.clusterName,
      durationMs: config.leaseDurationMs,
      renewEveryMs: config.heartbeatIntervalMs,
      patienceMs: PATIENCE_MS,
      ...(request.onWait ? {onWait: request.onWait} : {}),
    },
    async lease =>
      await verifyDeployment(
        {
          ...run,
          repair: {lease, batchRows: config.batchSizeRows, statementTimeoutMs: config.syncTimeoutMs},
        },
        lease.signal,
      ),
    signal,
  )
}

/** A repair writes, and the node that leads has the deployment open. @returns `undefined` when none leads. */
async function byLeader(
  pool: Pool,
  {clusterName, syncQueueSize, leaseDurationMs}: Config,
  {deployment, sqlitePath, quick}: VerifyRun,
  {onProgress, onWait}: VerifyRequest,
  signal: AbortSignal,
): Promise<{result: VerifyResult; totals: VerifyTotals} | undefined> {
  const job = await askLeader(
    pool,
    {
      clusterName,
      deploymentId: deployment.deploymentId,
      syncType: 'verify',
      options: {
        repair: true,
        ...(quick && {quick}),
        ...(sqlitePath !== deployment.sqlitePath && {sqlite_path: sqlitePath}),
      },
      mostWaiting: syncQueueSize,
      patienceMs: 2 * leaseDurationMs,
      onProgress,
      onWait,
    },
    signal,
  )
  if (job === undefined) return undefined
  const result = job.result as Omit<VerifyResult, 'generation'> & {readonly generation: number}
  const {totals} = job.errorDetails as {totals: VerifyTotals}
  return {result: {...result, generation: BigInt(result.generation)}, totals}
}
