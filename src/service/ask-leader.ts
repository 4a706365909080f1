import {setTimeout as sleep} from 'node:timers/promises'
import {SyncError} from '../core/errors.ts'
import type {Pool, Sql} from '../postgres/sql.ts'
import {
  cancelJob,
  enqueue,
  findJob,
  readProgress,
  type Job,
  type JobOptions,
  type JobType,
} from '../state/jobs.ts'
import {RelayedError} from './worker-messages.ts'

/** Somebody has cancelled the job that was waited for. */
export class JobCancelledError extends SyncError {
  override readonly name = 'JobCancelledError'
  readonly code = 'SYNC_JOB_CANCELLED'
  readonly next = 'Ask again, if it is still wanted.'

  constructor({jobId, clientName}: Pick<Job, 'jobId' | 'clientName'>) {
    super(`the job of ${clientName} was cancelled (${jobId})`)
  }
}

/** What a node that leads is to do for a command, and who wants to know how far it is. */
export type Request = {
  readonly clusterName: string
  readonly deploymentId: string
  readonly syncType: JobType
  readonly options: JobOptions
  /** `SYNC_QUEUE_SIZE`. */
  readonly mostWaiting: number
  /** With nobody leading for so long, the job is taken back. */
  readonly patienceMs: number
  readonly onProgress?: ((table: string, rows: number) => void) | undefined
  readonly onWait?: ((holder: string) => void) | undefined
}

const LOOK_MS = 250
/** How long it may take to take a job back that nobody waits for any more. */
const TAKE_BACK_MS = 3_000

/** @returns the node that leads the cluster now; `undefined` when nobody does, or a command meanwhile. */
export async function findLeader(sql: Sql, clusterName: string): Promise<string | undefined> {
  const [row] = await sql<{leader: string}>`
    select leader_id as leader from sync_metadata.leader_election
    where cluster_name = ${clusterName} and expires_at > clock_timestamp() and leader_id <> ${`${clusterName}-cli`}`
  return row?.leader
}

/**
 * Has the node that leads do something, and waits for its end. Another job of the deployment that is open goes first.
 *
 * @returns the job, ended well or with a result that says why not; `undefined` when no node leads (any more): nothing is
 * queued then.
 * @throws what the job failed with; {@link JobCancelledError}; {QueueFullError}; the signal's reason, and the job that
 * was asked for is cancelled.
 */
export async function askLeader(pool: Pool, request: Request, signal: AbortSignal): Promise<Job | undefined> {
  if ((await findLeader(pool, request.clusterName)) === undefined) return undefined
  const {deploymentId, syncType, options, mostWaiting} = request
  for (;;) {
    const order = {deploymentId, syncType, triggeredBy: 'cli', options, mostWaiting} as const
    const {jobId, isNew} = await enqueue(pool, order)
    let job: Job | undefined
    try {
      job = await followed(pool, jobId, request, signal)
    } catch (error) {
      if (isNew) await takeBack(pool, jobId)
      signal.throwIfAborted()
      throw error
    }
    if (job === undefined) return undefined
    if (isNew) return ended(job)
  }
}

/** @returns the job once it is over; `undefined` when it was taken back because nobody leads. */
async function followed(
  pool: Pool,
  jobId: string,
  {clusterName, patienceMs, onProgress, onWait}: Request,
  signal: AbortSignal,
): Promise<Job | undefined> {
  let leaderAt = performance.now()
  for (;;) {
    const job = await findJob(pool, jobId)
    if (job === undefined) throw new Error(`the job ${jobId} is gone`)
    if (job.status !== 'pending' && job.status !== 'running') return job
    const leader = await findLeader(pool, clusterName)
    if (leader !== undefined) leaderAt = performance.now()
    else if (
      performance.now() - leaderAt > patienceMs &&
      (await cancelJob(pool, jobId))?.isCancelled === true
    )
      return undefined
    if (job.status === 'pending')
      onWait?.(job.errorMessage === null ? (leader ?? 'a leader') : `its next try: ${job.errorMessage}`)
    else {
      const latest = (await readProgress(pool, jobId)).at(-1)
      if (latest !== undefined) onProgress?.(latest.table, Number(latest.rowsProcessed))
    }
    await sleep(LOOK_MS, undefined, {signal})
  }
}

/** Nobody waits for it any more. When that cannot be said, it is done for nothing. */
async function takeBack(pool: Pool, jobId: string): Promise<void> {
  await Promise.race([
    cancelJob(pool, jobId).catch(() => undefined),
    sleep(TAKE_BACK_MS, undefined, {ref: false}),
  ])
}

function ended(job: Job): Job {
  if (job.status === 'cancelled') throw new JobCancelledError(job)
  if (job.status === 'success' || job.result !== null) return job
  const {name, next, retryable} = job.errorDetails as {
    name?: string
    next?: string | null
    retryable?: boolean
  }
  const message = job.errorMessage ?? 'the job failed, and nobody said why'
  const code = job.errorCode as SyncError['code'] | null
  const named = {
    code: code ?? 'SYNC_UNEXPECTED',
    next: next ?? 'Look at the log of the node that leads.',
    retryable: retryable ?? false,
  }
  throw new RelayedError({name: name ?? 'Error', message, stack: undefined, cause: undefined, named})
}
