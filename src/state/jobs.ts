import {backoffMs} from '../core/backoff.ts'
import {SyncError, UsageError} from '../core/errors.ts'
import {fragment, join, json, type Fragment, type Sql} from '../postgres/sql.ts'

export type JobType = 'full' | 'incremental' | 'verify' | 'restore'
export type TriggeredBy = 'scheduler' | 'api' | 'cli' | 'change' | 'user'
export type JobStatus = 'pending' | 'running' | 'success' | 'failed' | 'cancelled'

/** What a job is asked to do beside its type. */
export type JobOptions = {
  /** Of a sync: confirm what the guard holds back, apply nothing, take this file (and keep to it when it worked). */
  readonly accept?: boolean
  readonly dry_run?: boolean
  readonly sqlite_path?: string
  /** Of a dry run: as if the deployment had this direction. */
  readonly direction?: 'two_way'
  /** Of a verification: trust stored hashes, put right what differs. */
  readonly quick?: boolean
  readonly repair?: boolean
  /** Of a restore: the file to write, whether one that exists is replaced, and a generation as decimal text. */
  readonly to?: string
  readonly force?: boolean
  readonly as_of?: string
}

/** One row of the queue, which is the history too. */
export type Job = {
  readonly jobId: string
  readonly deploymentId: string
  readonly clientName: string
  readonly syncType: JobType
  readonly triggeredBy: TriggeredBy
  readonly status: JobStatus
  readonly options: JobOptions
  readonly nodeId: string | null
  readonly epoch: bigint | null
  /** How many times it has been begun. */
  readonly attempt: number
  readonly runAfter: Date
  readonly createdAt: Date
  readonly startedAt: Date | null
  readonly finishedAt: Date | null
  /** The deployment's generation after it; `null` when it applied nothing. */
  readonly generation: bigint | null
  readonly rowsUpserted: bigint
  readonly rowsTombstoned: bigint
  readonly rowsUnchanged: bigint
  readonly rowsQuarantined: bigint
  readonly conflictsDetected: bigint
  readonly conflictsResolved: bigint
  readonly bytes: bigint
  readonly durationMs: bigint | null
  /** Of its last failure; a job that waits for another try has one too. */
  readonly errorCode: string | null
  readonly errorMessage: string | null
  /** Of a failure: `{name, next, retryable}`; of a sync whose audit found something: `{audit}`; of a verification: `{totals}`. */
  readonly errorDetails: unknown
  /** What the command that does the same prints as JSON; `null` when it failed. */
  readonly result: unknown
}

export type NewJob = {
  readonly deploymentId: string
  readonly syncType: JobType
  readonly triggeredBy: TriggeredBy
  readonly options?: JobOptions
  /** `SYNC_QUEUE_SIZE`: when so many jobs of the host wait, no more are taken. */
  readonly mostWaiting: number
}

export type JobFilter = {
  readonly deploymentId?: string
  readonly status?: readonly JobStatus[]
  readonly syncType?: readonly JobType[]
}

export type Page = {
  /** At most so many. */
  readonly limit: number
  /** What the page before gave as `next`. */
  readonly cursor?: string
}

export type JobPage = {
  readonly jobs: readonly Job[]
  /** `null` after the last page. */
  readonly next: string | null
}

export type TableProgress = {
  readonly table: string
  /** `null` while nobody knows. */
  readonly rowsTotal: bigint | null
  readonly rowsProcessed: bigint
  readonly status: 'pending' | 'running' | 'success' | 'failed'
}

/** Why a job did not end well, without anything of a row that is not in the message. */
export type Failure = {
  readonly code: string
  readonly message: string
  readonly name: string
  readonly next: string | null
  readonly retryable: boolean
}

/** What happened to a job that failed: it waits for its next try, it is over, or it had ended otherwise. */
export type AfterFailure =
  {readonly then: 'retry'; readonly inMs: number} | {readonly then: 'failed'} | {readonly then: 'ended'}

/** A run that nobody has queued: the schedule's, or the file's that has changed. */
export type Run = {
  readonly jobId: string
  readonly deploymentId: string
  readonly syncType: 'full' | 'incremental'
  readonly triggeredBy: TriggeredBy
  readonly nodeId: string
  readonly epoch: bigint
  /** How long ago it began. */
  readonly forMs: number
}

/** So many jobs wait already that no more are taken. */
export class QueueFullError extends SyncError {
  override readonly name = 'QueueFullError'
  readonly code = 'SYNC_QUEUE_FULL'
  override readonly retryable = true
  readonly next = 'Wait until some are done, or cancel some; SYNC_QUEUE_SIZE says how many may wait.'

  constructor(waiting: number) {
    super(`${waiting} jobs wait already, no more are taken`)
  }
}

/** A job is begun so often before it is given up. */
export const MOST_ATTEMPTS = 6
/** The pauses between its attempts: a minute in all. */
const pauses = {firstMs: 2_000, mostMs: 300_000}

/**
 * Asks for a job. A deployment has one open job at most: when it has one, that one is returned.
 *
 * @throws {QueueFullError} when `mostWaiting` jobs wait and the deployment has none of them.
 */
export async function enqueue(
  sql: Sql,
  {deploymentId, syncType, triggeredBy, options = {}, mostWaiting}: NewJob,
): Promise<{jobId: string; isNew: boolean}> {
  // The open job that is in the way may end before it is read.
  for (;;) {
    const [found] = await sql<{jobId: string | null; isNew: boolean; waiting: number}>`
      with waiting as (
        select count(*)::int as jobs from sync_metadata.sync_jobs where status = 'pending'
      ), inserted as (
        insert into sync_metadata.sync_jobs (deployment_id, sync_type, triggered_by, options)
        select ${deploymentId}, ${syncType}, ${triggeredBy}, ${json(options)}
        from waiting where jobs < ${mostWaiting}
        on conflict (deployment_id) where status in ('pending', 'running') do nothing
        returning job_id
      )
      select coalesce(i.job_id, j.job_id) as "jobId", i.job_id is not null as "isNew", w.jobs as waiting
      from waiting w
      left join inserted i on true
      left join sync_metadata.sync_jobs j
        on j.deployment_id = ${deploymentId} and j.status in ('pending', 'running')`
    const {jobId, isNew, waiting} = found as {jobId: string | null; isNew: boolean; waiting: number}
    if (jobId !== null) return {jobId, isNew}
    if (waiting >= mostWaiting) throw new QueueFullError(waiting)
  }
}

/**
 * Takes jobs that are due: whoever has waited longest comes first, and two claimers never get the same one. Each
 * deployment has one open job at most, so nobody's jobs push out another's. To be fenced by the caller.
 */
export async function claim(
  sql: Sql,
  {nodeId, epoch, most}: {readonly nodeId: string; readonly epoch: bigint; readonly most: number},
): Promise<Job[]> {
  return await sql<Job>`
    with due as (
      select job_id from sync_metadata.sync_jobs
      where status = 'pending' and run_after <= clock_timestamp()
      order by run_after, job_id
      limit ${most}
      for update skip locked
    ), j as (
      update sync_metadata.sync_jobs u
      set status = 'running', node_id = ${nodeId}, epoch = ${epoch}, attempt = u.attempt + 1,
        started_at = clock_timestamp(), finished_at = null
      from due where u.job_id = due.job_id
      returning u.*
    )
    select ${columns} from j join sync_metadata.client_deployments d using (deployment_id) order by j.run_after, j.job_id`
}

/** @returns how many jobs wait, and in how many milliseconds the next of them may begin; `undefined` when none waits. */
export async function readQueue(sql: Sql): Promise<{waiting: number; nextInMs: number | undefined}> {
  const [row] = await sql<{waiting: number; ms: number | null}>`
    select count(*)::int as waiting,
      greatest(0, extract(epoch from min(run_after) - clock_timestamp()) * 1000)::float8 as ms
    from sync_metadata.sync_jobs where status = 'pending'`
  const {waiting, ms} = row as {waiting: number; ms: number | null}
  return {waiting, nextInMs: waiting === 0 ? undefined : (ms ?? 0)}
}

/** @returns which of these jobs somebody has cancelled. */
export async function findCancelled(sql: Sql, jobIds: readonly string[]): Promise<string[]> {
  const rows = await sql<{jobId: string}>`
    select job_id as "jobId" from sync_metadata.sync_jobs
    where job_id = any(${jobIds}::uuid[]) and status = 'cancelled'`
  return rows.map(row => row.jobId)
}

export async function findJob(sql: Sql, jobId: string): Promise<Job | undefined> {
  if (!isUuid(jobId)) return undefined
  const [job] = await sql<Job>`
    select ${columns} from sync_metadata.sync_jobs j join sync_metadata.client_deployments d using (deployment_id)
    where j.job_id = ${jobId}`
  return job
}

/** The newest first. @throws {UsageError} when the cursor is not one of ours. */
export async function listJobs(sql: Sql, filter: JobFilter, {limit, cursor}: Page): Promise<JobPage> {
  const conditions: Fragment[] = [fragment`true`]
  if (filter.deploymentId !== undefined) conditions.push(fragment`j.deployment_id = ${filter.deploymentId}`)
  if (filter.status !== undefined) conditions.push(fragment`j.status = any(${filter.status}::text[])`)
  if (filter.syncType !== undefined) conditions.push(fragment`j.sync_type = any(${filter.syncType}::text[])`)
  if (cursor !== undefined) {
    const {micros, jobId} = parseCursor(cursor)
    conditions.push(
      fragment`(j.created_at, j.job_id) < (timestamptz 'epoch' + ${micros}::bigint * interval '1 microsecond', ${jobId}::uuid)`,
    )
  }
  const rows = await sql<Job & {micros: bigint}>`
    select ${columns}, (extract(epoch from j.created_at) * 1000000)::bigint as micros
    from sync_metadata.sync_jobs j join sync_metadata.client_deployments d using (deployment_id)
    where ${join(conditions, ' and ')}
    order by j.created_at desc, j.job_id desc
    limit ${limit + 1}`
  const shown = rows.slice(0, limit).map(({micros, ...job}) => ({job, at: cursorOf(micros, job.jobId)}))
  return {
    jobs: shown.map(({job}) => job),
    next: rows.length > limit ? (shown.at(-1)?.at ?? null) : null,
  }
}

/**
 * Cancels a job that is open: one that waits is not begun, one that runs is stopped by its leader within moments, unless
 * its cut commits before that (then the history has both).
 *
 * @returns the job as it is now, and whether this has cancelled it; `undefined` when there is no such job.
 */
export async function cancelJob(
  sql: Sql,
  jobId: string,
): Promise<{job: Job; isCancelled: boolean} | undefined> {
  if (!isUuid(jobId)) return undefined
  const [cancelled] = await sql`
    update sync_metadata.sync_jobs set status = 'cancelled', finished_at = clock_timestamp()
    where job_id = ${jobId} and status in ('pending', 'running') returning job_id`
  const job = await findJob(sql, jobId)
  return job && {job, isCancelled: cancelled !== undefined}
}

/**
 * Ends a job that has applied nothing; one with a cut was ended by that cut's transaction, and is left as it is.
 *
 * @returns whether it was still running under this epoch.
 */
export async function finishJob(
  sql: Sql,
  {
    jobId,
    epoch,
    durationMs,
    result,
    status = 'success',
    error,
    details,
  }: {
    readonly jobId: string
    readonly epoch: bigint
    readonly durationMs: number
    /** As the command prints it; with a generation as text or number. */
    readonly result: unknown
    readonly status?: 'success' | 'failed'
    /** Why a result is no success. */
    readonly error?: {readonly code: string; readonly message: string}
    /** What is worth knowing beside the result. */
    readonly details?: unknown
  },
): Promise<boolean> {
  const ended = await sql`
    update sync_metadata.sync_jobs
    set status = ${status}, finished_at = clock_timestamp(), duration_ms = ${Math.round(durationMs)},
      result = ${json(result)}, error_code = ${error?.code ?? null}, error_message = ${error?.message ?? null},
      error_details = ${details === undefined ? null : json(details)}
    where job_id = ${jobId} and epoch = ${epoch} and status = 'running' returning job_id`
  return ended.length > 0
}

/**
 * Notes that an attempt failed: when it may help, another one comes after a pause that doubles, {@link MOST_ATTEMPTS} in
 * all; else the job has failed, and its deployment says so.
 */
export async function failJob(
  sql: Sql,
  {
    jobId,
    epoch,
    durationMs,
    failure,
    random = Math.random(),
  }: {
    readonly jobId: string
    readonly epoch: bigint
    readonly durationMs: number
    readonly failure: Failure
    readonly random?: number
  },
): Promise<AfterFailure> {
  const pausesMs = Array.from({length: MOST_ATTEMPTS - 1}, (_, i) => backoffMs(i + 1, pauses, random))
  const {code, message, name, next, retryable} = failure
  const [row] = await sql<{status: JobStatus; attempt: number}>`
    with j as (
      update sync_metadata.sync_jobs
      set status = case when ${retryable} and attempt < ${MOST_ATTEMPTS} then 'pending' else 'failed' end,
        run_after = case when ${retryable} and attempt < ${MOST_ATTEMPTS}
          then clock_timestamp() + (${pausesMs}::bigint[])[attempt] * interval '1 millisecond' else run_after end,
        finished_at = case when ${retryable} and attempt < ${MOST_ATTEMPTS} then null else clock_timestamp() end,
        duration_ms = ${Math.round(durationMs)}, error_code = ${code}, error_message = ${message},
        error_details = ${json({name, next, retryable})}
      where job_id = ${jobId} and epoch = ${epoch} and status = 'running'
      returning deployment_id, sync_type, status, attempt
    ), d as (
      update sync_metadata.client_deployments c set last_sync_status = 'failed', updated_at = now()
      from j where c.deployment_id = j.deployment_id and j.status = 'failed'
        and j.sync_type in ('full', 'incremental')
    )
    select status, attempt from j`
  if (row === undefined) return {then: 'ended'}
  return row.status === 'pending' ? {then: 'retry', inMs: pausesMs[row.attempt - 1] ?? 0} : {then: 'failed'}
}

/**
 * Gives back what leaders of older epochs had in hand: it is begun anew, or has failed when it had been begun too often.
 * Once per takeover, fenced by the caller.
 *
 * @returns how many jobs there were.
 */
export async function requeueOlder(sql: Sql, epoch: bigint): Promise<number> {
  const rows = await sql`
    update sync_metadata.sync_jobs
    set status = case when attempt < ${MOST_ATTEMPTS} then 'pending' else 'failed' end,
      run_after = clock_timestamp(),
      finished_at = case when attempt < ${MOST_ATTEMPTS} then null else clock_timestamp() end,
      error_code = 'SYNC_FENCED_OUT',
      error_message = 'the node that ran it leads no more',
      error_details = jsonb_build_object('name', 'FencedOutError', 'retryable', true)
    where status = 'running' and coalesce(epoch, 0) < ${epoch} returning job_id`
  return rows.length
}

/**
 * Gives back what is in this epoch's hand by the table, but not by what its leader knows: the answer to a claim was lost.
 * Fenced by the caller.
 *
 * @returns how many jobs there were.
 */
export async function requeueLost(
  sql: Sql,
  {epoch, known}: {readonly epoch: bigint; readonly known: readonly string[]},
): Promise<number> {
  const rows = await sql`
    update sync_metadata.sync_jobs set status = 'pending', attempt = attempt - 1
    where status = 'running' and epoch = ${epoch} and job_id <> all (${known}::uuid[]) returning job_id`
  return rows.length
}

/**
 * Shows a run that nobody has queued, because it takes long.
 *
 * @returns false when the deployment has another open job: then it is not shown.
 */
export async function showRun(sql: Sql, run: Run): Promise<boolean> {
  const rows = await sql`
    insert into sync_metadata.sync_jobs
      (job_id, deployment_id, sync_type, triggered_by, status, node_id, epoch, attempt, created_at, started_at)
    select ${run.jobId}, ${run.deploymentId}, ${run.syncType}, ${run.triggeredBy}, 'running', ${run.nodeId}, ${run.epoch},
      1, began, began
    from (select clock_timestamp() - ${run.forMs}::float8 * interval '1 millisecond' as began) b
    on conflict do nothing returning job_id`
  return rows.length > 0
}

/** Takes a shown run that found nothing to do out of the history. */
export async function forgetRun(sql: Sql, jobId: string): Promise<void> {
  await sql`select sync_metadata.forget_run(${jobId})`
}

/**
 * Notes that a run that nobody has queued failed. From now on it is a job like any other: with more attempts when they may
 * help. When the deployment has another open job, that one is the next attempt.
 */
export async function failRun(
  sql: Sql,
  run: Run,
  failure: Failure,
  random = Math.random(),
): Promise<AfterFailure> {
  const {jobId, epoch, forMs: durationMs} = run
  await showRun(sql, run)
  const after = await failJob(sql, {jobId, epoch, durationMs, failure, random})
  if (after.then !== 'ended') return after
  const {code, message, name, next, retryable} = failure
  const rows = await sql`
    with failed as (
      insert into sync_metadata.sync_jobs (job_id, deployment_id, sync_type, triggered_by, status, node_id, epoch, attempt,
        started_at, finished_at, duration_ms, error_code, error_message, error_details)
      values (${jobId}, ${run.deploymentId}, ${run.syncType}, ${run.triggeredBy}, 'failed', ${run.nodeId}, ${epoch}, 1,
        clock_timestamp() - ${durationMs}::float8 * interval '1 millisecond', clock_timestamp(), ${Math.round(durationMs)},
        ${code}, ${message}, ${json({name, next, retryable})})
      on conflict (job_id) do nothing
      returning deployment_id
    ), d as (
      update sync_metadata.client_deployments c set last_sync_status = 'failed', updated_at = now()
      from failed where c.deployment_id = failed.deployment_id
    )
    select from failed`
  return rows.length > 0 ? {then: 'failed'} : {then: 'ended'}
}

/** Says how far a job is; at most once a second, please. */
export async function saveProgress(sql: Sql, jobId: string, tables: readonly TableProgress[]): Promise<void> {
  if (tables.length === 0) return
  await sql`
    insert into sync_metadata.sync_progress as p (job_id, table_name, rows_total, rows_processed, status)
    select ${jobId}, t.name, t.total, t.processed, t.status
    from unnest(${tables.map(each => each.table)}::text[], ${tables.map(each => each.rowsTotal)}::bigint[],
      ${tables.map(each => each.rowsProcessed)}::bigint[], ${tables.map(each => each.status)}::text[])
      as t (name, total, processed, status)
    where exists (select from sync_metadata.sync_jobs j where j.job_id = ${jobId})
    on conflict (job_id, table_name) do update
    set rows_total = coalesce(excluded.rows_total, p.rows_total), rows_processed = excluded.rows_processed,
      status = excluded.status, updated_at = now()`
}

export async function readProgress(sql: Sql, jobId: string): Promise<TableProgress[]> {
  return await sql<TableProgress>`
    select table_name as "table", rows_total as "rowsTotal", rows_processed as "rowsProcessed", status
    from sync_metadata.sync_progress where job_id = ${jobId} order by updated_at, table_name`
}

// Of `j`, a job, and `d`, its deployment.
const columns = fragment`
  j.job_id as "jobId", j.deployment_id as "deploymentId", d.client_name as "clientName", j.sync_type as "syncType",
  j.triggered_by as "triggeredBy", j.status, j.options, j.node_id as "nodeId", j.epoch, j.attempt,
  j.run_after as "runAfter", j.created_at as "createdAt", j.started_at as "startedAt", j.finished_at as "finishedAt",
  j.generation, j.rows_upserted as "rowsUpserted", j.rows_tombstoned as "rowsTombstoned",
  j.rows_unchanged as "rowsUnchanged", j.rows_quarantined as "rowsQuarantined",
  j.conflicts_detected as "conflictsDetected", j.conflicts_resolved as "conflictsResolved", j.bytes,
  j.duration_ms as "durationMs", j.error_code as "errorCode", j.error_message as "errorMessage",
  j.error_details as "errorDetails", j.result`

function cursorOf(micros: bigint, jobId: string): string {
  return Buffer.from(`${micros} ${jobId}`).toString('base64url')
}

function parseCursor(cursor: string): {micros: string; jobId: string} {
  const [micros = '', jobId = ''] = Buffer.from(cursor, 'base64url').toString().split(' ')
  if (!/^\d{1,18}$/.test(micros) || !isUuid(jobId))
    throw new UsageError('the cursor is not one that a page of jobs has given', 'Begin without a cursor.')
  return {micros, jobId}
}

function isUuid(text: string): boolean {
  return /^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$/i.test(text)
}
