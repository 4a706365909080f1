import {setTimeout as sleep} from 'node:timers/promises'
import {fenced, type Lease} from '../cluster/lease.ts'
import {backoffMs} from '../core/backoff.ts'
import {SyncError} from '../core/errors.ts'
import {FencedOutError} from '../postgres/refusals.ts'
import type {Pool, Tx} from '../postgres/sql.ts'
import type {Schedule} from '../schedule/interval.ts'
import {moveSource} from '../state/deployments.ts'
import {
  failJob,
  failRun,
  findCancelled,
  finishJob,
  forgetRun,
  saveProgress,
  showRun,
  type AfterFailure,
  type Failure,
  type JobOptions,
  type JobType,
  type Run,
  type TableProgress,
  type TriggeredBy,
} from '../state/jobs.ts'
import type {Scheduled} from '../state/scheduled.ts'
import type {SyncResult} from '../sync/sync.ts'
import type {Fields, Log} from '../telemetry/log.ts'
import type {Metrics} from '../telemetry/metrics.ts'
import {announce, webhookOf} from './announce.ts'
import type {Freshness} from './freshness.ts'
import {countSync, statusOf, type RunStatus} from './job-metrics.ts'
import {asJson, failureOf, orderOf} from './job-orders.ts'
import {tablesInTarget} from './rows-ahead.ts'
import type {AnyOrder, OutcomeOf} from './worker-messages.ts'
import type {Workers} from './workers.ts'

/** A run that is over. One that is tried again later has failed for now. */
export type EndedRun = {
  readonly client: string
  readonly syncType: JobType
  readonly triggeredBy: TriggeredBy
  readonly status: RunStatus
  /** `null` when nothing came of it. */
  readonly result: OutcomeOf<AnyOrder> | null
  readonly failure: Failure | null
}

/** A deployment that we look after. */
export type Entry = {
  place: Scheduled
  schedule: Schedule
  /** When its last run began, or had begun when we took over. */
  lastAt: number | undefined
  /** Runs that have failed for good, in a row. */
  failures: number
  /** The code of the last one of them. */
  failedBy: string | undefined
  /** Not before then is it worth asking whether it is due. */
  nextAt: number
  /** Until then a job of it waits for its next try. */
  retriesUntil: number
  inFlight: Promise<void> | undefined
  /** Why the guard held its last run back. */
  heldFor: string | undefined
  /** What the log was last told of rows that could not be applied. */
  refused: string | undefined
  /** Of the one who follows its file. */
  following: {readonly path: string; readonly stop: AbortController} | undefined
  /** Rows of the target that somebody has edited and no run has met: the gate must not pass over them. */
  marks: bigint
  /** When they were counted last. */
  countedAt: number
}

/** A run in hand. */
export type Running = {
  readonly jobId: string
  readonly entry: Entry
  readonly syncType: JobType
  readonly triggeredBy: TriggeredBy
  readonly options: JobOptions
  /** What it had waited for before it was claimed, in milliseconds; absent for what nobody has queued. */
  readonly waitedMs: number | undefined
  readonly startedAt: number
  readonly stop: AbortController
  readonly progress: Map<string, number>
  /** Rows of each table, where they are known before it has ended; absent until somebody has counted. */
  totals: ReadonlyMap<string, number> | undefined
  isProgressNew: boolean
  /** It has a row of its own. */
  isShown: boolean
  /** What is being written of its progress. */
  saving: Promise<void>
  isOver: boolean
}

export type RunsDeps = {
  readonly pool: Pool
  readonly lease: Lease
  readonly log: Log
  readonly metrics: Metrics
  readonly workers: Pick<Workers, 'run' | 'states'>
  readonly freshness: Freshness
  /** A run that nobody has queued is shown among the jobs when it takes so long, in milliseconds. */
  readonly showAfterMs: number
  readonly onEnd: ((ended: EndedRun) => void) | undefined
  /** Looks once more at what is known of the deployments. */
  readonly reload: () => Promise<void>
  /** The same, when there is time. */
  readonly reloadSoon: () => void
  /** Counts the edited rows once more, and syncs where there are any. */
  readonly countMarksSoon: () => void
  /** Does something beside the run. */
  readonly start: (work: () => Promise<void>) => void
}

/** A deployment whose job waits for another try is left alone for this much longer. */
const RETRY_MARGIN_MS = 60_000
/** The pauses between tries of what has to be written. */
const pauses = {firstMs: 250, mostMs: 10_000}

/** The runs that a leader has in hand: each is given to a worker, and what comes of it is kept. */
export class Runs {
  readonly #deps: RunsDeps
  readonly #signal: AbortSignal
  readonly #running = new Map<string, Running>()

  constructor(deps: RunsDeps, signal: AbortSignal) {
    this.#deps = deps
    this.#signal = signal
  }

  get ids(): string[] {
    return [...this.#running.keys()]
  }

  /** How many jobs are in hand that somebody has asked for. */
  get queued(): number {
    return [...this.#running.values()].filter(({waitedMs}) => waitedMs !== undefined).length
  }

  /** Whether a run syncs it. */
  isSynced(entry: Entry): boolean {
    return [...this.#running.values()].some(
      running =>
        running.entry === entry && (running.syncType === 'incremental' || running.syncType === 'full'),
    )
  }

  /** Stops what somebody has cancelled. */
  async stopCancelled(): Promise<void> {
    const shown = [...this.#running.values()].filter(({isShown}) => isShown).map(({jobId}) => jobId)
    if (shown.length === 0) return
    for (const jobId of await findCancelled(this.#deps.pool, shown))
      this.#running.get(jobId)?.stop.abort(new Error('the job was cancelled'))
  }

  /** From an order to what is kept of it. @throws when the lease is over, or what ends more than this run. */
  async perform(running: Running): Promise<void> {
    const {metrics} = this.#deps
    const {jobId, entry, stop} = running
    const isSync = running.syncType === 'incremental' || running.syncType === 'full'
    this.#running.set(jobId, running)
    metrics.jobsActive.set(this.#running.size)
    try {
      const path = running.options.sqlite_path ?? entry.place.sqlitePath
      const before: Before = {
        version:
          isSync && path !== null ? await this.#deps.freshness.versionOf(path, this.#signal) : undefined,
        generation: entry.place.generation,
      }
      let outcome: OutcomeOf<AnyOrder>
      try {
        outcome = await this.#deps.workers.run(
          orderOf(running, entry.place, entry.marks > 0n),
          AbortSignal.any([this.#signal, stop.signal]),
          (table, rows) => {
            running.progress.set(table, rows)
            running.isProgressNew = true
          },
        )
      } catch (error) {
        this.#signal.throwIfAborted()
        await this.#endProgress(running, 'failed')
        if (stop.signal.aborted) this.#settleCancelled(running)
        else await this.#settleFailed(running, error, isSync)
        return
      }
      await this.#endProgress(running, 'success')
      if ('mode' in outcome) await this.#settleSync(running, outcome, before)
      else await this.#settleOther(running, outcome)
    } finally {
      if (isSync) {
        entry.lastAt = running.startedAt
        entry.nextAt = 0
      }
      this.#running.delete(jobId)
      metrics.jobsActive.set(this.#running.size)
      if (running.waitedMs !== undefined)
        metrics.queueTime.observe((running.waitedMs + performance.now() - running.startedAt) / 1_000)
    }
  }

  async #settleSync(running: Running, result: SyncResult, before: Before): Promise<void> {
    const {metrics, log} = this.#deps
    const {entry, options, startedAt} = running
    const isDry = options.dry_run === true
    const isApplied = !isDry && result.mode !== 'unchanged' && result.generation > before.generation
    const held =
      result.status === 'quarantined' && !isApplied ? (result.reason ?? 'nobody knows why') : undefined
    const client = entry.place.clientName
    const ms = Math.round(performance.now() - startedAt)
    await this.#record(running, result, held, isApplied)
    this.#tellHeld(running, result, held, {client, job: running.jobId, ms})
    if (!isDry) {
      entry.heldFor = held
      entry.failures = 0
      if (result.generation > entry.place.generation)
        entry.place = {...entry.place, generation: result.generation}
      if (result.status === 'success') {
        await this.#keepPath(running)
        // What was counted since it began it may have passed over, and nobody tells of it twice.
        if (entry.countedAt <= startedAt) entry.marks = 0n
        else if (entry.marks > 0n) this.#deps.countMarksSoon()
        await this.#deps.freshness.note(entry.place.deploymentId, before.version, startedAt, this.#signal)
      }
      countSync(metrics, {result, ms, isApplied})
      metrics.syncLag.set({client}, this.#deps.freshness.behindMs(entry.place.deploymentId) / 1_000)
    }
    const {upserted, tombstoned} = result.rows
    const facts = {client, job: running.jobId, generation: Number(result.generation), ms}
    if (isApplied) {
      log.info({...facts, mode: result.mode, upserted, tombstoned, bytes: result.bytes}, 'cut applied')
      this.#announce(entry, result)
    } else log.debug(facts, 'nothing to apply')
    if (!isDry && result.written_to_source !== undefined) {
      const {left, reason, inserted, updated, deleted, refused} = result.written_to_source
      const wrote = {...facts, inserted, updated, deleted, refused}
      if (left > 0) log.warn({...wrote, left, reason}, 'rows wait to be written to the source')
      else log.info(wrote, 'rows were written to the source')
    }
    this.#end(running, statusOf(result), result)
  }

  /** Says what is held back, and that it is not any more, when that changes: every run meets it until a person has looked. */
  #tellHeld({entry, options}: Running, result: SyncResult, held: string | undefined, facts: Fields): void {
    if (options.dry_run === true) return
    const {log} = this.#deps
    if (held !== undefined) {
      if (!isSameReason(held, entry.heldFor))
        log.warn({...facts, reason: held}, 'a sync is held back until a person has looked')
      return
    }
    if (entry.heldFor !== undefined) log.info(facts, 'a sync is held back no more')
    const {quarantined} = result.rows
    const refused = quarantined > 0 ? (result.reason ?? '') : undefined
    if (refused !== undefined && !isSameReason(refused, entry.refused))
      log.warn({...facts, quarantined, reason: result.reason}, 'rows could not be applied')
    entry.refused = refused
  }

  /** Keeps what a sync came to, unless its cut has. */
  async #record(
    running: Running,
    result: SyncResult,
    held: string | undefined,
    isApplied: boolean,
  ): Promise<void> {
    const {entry, jobId} = running
    const {epoch} = this.#deps.lease
    const durationMs = performance.now() - running.startedAt
    if (running.waitedMs !== undefined) {
      const error = result.status === 'success' ? undefined : whyHeld(result)
      await this.write(tx =>
        finishJob(tx, {
          jobId,
          epoch,
          durationMs,
          result: asJson(result),
          ...(error && {status: 'failed' as const, error}),
        }),
      )
      return
    }
    // Said once: every run meets it again until a person has looked.
    const isNews =
      held !== undefined &&
      !isSameReason(held, entry.heldFor) &&
      !isSameReason(held, entry.place.statusReason ?? undefined)
    if (isNews && result.mode !== 'unchanged') {
      const failure = {...whyHeld(result), name: 'Quarantine', next: null, retryable: false}
      await this.write(tx => failRun(tx, this.#runOf(running), failure))
    } else if (running.isShown && !isApplied) await this.write(tx => forgetRun(tx, jobId))
  }

  /** The file is where the deployment lives from now on, once a sync of it has held. */
  async #keepPath({entry, options: {sqlite_path: path}}: Running): Promise<void> {
    if (path === undefined || path === entry.place.sqlitePath) return
    await this.write(tx => moveSource(tx, entry.place.deploymentId, path))
    await this.#deps.reload()
  }

  async #settleOther(running: Running, outcome: Exclude<OutcomeOf<AnyOrder>, SyncResult>): Promise<void> {
    const {metrics, log, lease} = this.#deps
    const {jobId, startedAt, syncType} = running
    const client = running.entry.place.clientName
    const {result, ...details} = outcome
    await this.write(tx =>
      finishJob(tx, {
        jobId,
        epoch: lease.epoch,
        durationMs: performance.now() - startedAt,
        result: asJson(result),
        details,
      }),
    )
    const facts = {client, job: jobId, generation: Number(result.generation), ms: result.duration_ms}
    if ('totals' in outcome) {
      metrics.lastVerified.set({client}, Date.now() / 1_000)
      const {differences} = outcome.totals
      const level = differences > outcome.result.repaired ? 'warn' : 'info'
      log[level]({...facts, differences, repaired: outcome.result.repaired}, 'verified')
    } else log.info({...facts, type: syncType, rows: outcome.result.rows}, 'restored')
    this.#end(running, 'success', outcome)
  }

  #settleCancelled(running: Running): void {
    const {metrics, log} = this.#deps
    const client = running.entry.place.clientName
    metrics.syncOperations.inc({client, status: 'cancelled'})
    log.info({client, job: running.jobId}, 'a job was cancelled')
    this.#end(running, 'cancelled', null)
  }

  async #settleFailed(running: Running, error: unknown, isSync: boolean): Promise<void> {
    const {metrics, log, lease} = this.#deps
    const {entry, jobId, startedAt} = running
    const {clientName: client} = entry.place
    const failure = failureOf(error)
    if (isSync) {
      metrics.syncOperations.inc({client, status: 'failed'})
      metrics.syncDuration.observe({client}, (performance.now() - startedAt) / 1_000)
    }
    metrics.errors.inc({component: 'sync', error_type: failure.code})
    let after: AfterFailure
    try {
      const durationMs = performance.now() - startedAt
      after = await this.write(tx =>
        running.waitedMs === undefined
          ? failRun(tx, this.#runOf(running), failure)
          : failJob(tx, {jobId, epoch: lease.epoch, durationMs, failure}),
      )
    } catch (cause) {
      this.#signal.throwIfAborted()
      if (cause instanceof FencedOutError || !(cause instanceof SyncError)) throw cause
      // It is not ours to write about any more: the client has gone to another host.
      log.error({err: cause, client, job: jobId}, 'a failure cannot be kept')
      this.#deps.reloadSoon()
      after = {then: 'failed'}
    }
    const facts = {err: error, client, job: jobId, next: failure.next ?? undefined}
    if (after.then === 'retry') {
      entry.retriesUntil = performance.now() + after.inMs + RETRY_MARGIN_MS
      log.warn({...facts, retry_ms: after.inMs}, 'a job failed and is tried again')
    } else if (after.then === 'failed') {
      if (isSync) {
        entry.failures++
        entry.failedBy = failure.code
      }
      log.error({...facts, in_a_row: entry.failures}, 'a job has failed')
    } else log.info({client, job: jobId}, 'a job had ended although its worker could not say so')
    this.#end(running, 'failed', null, failure)
  }

  #end(
    {entry, syncType, triggeredBy}: Running,
    status: RunStatus,
    result: EndedRun['result'],
    failure: Failure | null = null,
  ): void {
    const {clientName: client} = entry.place
    this.#deps.onEnd?.({client, syncType, triggeredBy, status, result, failure})
  }

  #announce({place}: Entry, {client, generation, details}: SyncResult): void {
    const url = webhookOf(place.config)
    if (url === undefined) return
    const tables = (details?.changes ?? []).map(({table}) => table)
    this.#deps.start(async () => {
      await announce(url, {client, generation: Number(generation), tables}, this.#deps.log, this.#signal)
    })
  }

  #runOf({jobId, entry, syncType, triggeredBy, startedAt}: Running): Run {
    const {nodeId, epoch} = this.#deps.lease
    return {
      jobId,
      deploymentId: entry.place.deploymentId,
      syncType: syncType === 'full' ? 'full' : 'incremental',
      triggeredBy,
      nodeId,
      epoch,
      forMs: performance.now() - startedAt,
    }
  }

  /** Writes how far they are, of those that have news. */
  async saveProgress(): Promise<void> {
    const inHand = new Map(
      this.#deps.workers.states.flatMap(({inHand}) => (inHand ? [[inHand.client, inHand.forMs]] : [])),
    )
    await Promise.all(
      [...this.#running.values()].map(async running => {
        const forMs = inHand.get(running.entry.place.clientName)
        if (running.isOver || forMs === undefined) return
        running.saving = this.#saveProgressOf(running, forMs)
        await running.saving
      }),
    )
  }

  /** @param forMs how long a worker has had it: it may have nothing to tell of its progress, and wait. */
  async #saveProgressOf(running: Running, forMs: number): Promise<void> {
    if (!running.isShown) {
      if (forMs < this.#deps.showAfterMs) return
      running.isShown = await fenced(this.#deps.pool, this.#deps.lease, tx =>
        showRun(tx, this.#runOf(running)),
      )
    }
    if (!running.isShown || !running.isProgressNew) return
    this.#countAhead(running)
    running.isProgressNew = false
    await saveProgress(this.#deps.pool, running.jobId, progressOf(running, 'running'))
  }

  /** Counts the rows of a run that goes over what is in Postgres, or over as much. */
  #countAhead(running: Running): void {
    const {syncType, entry} = running
    if (running.totals !== undefined) return
    running.totals = new Map()
    if (syncType === 'incremental' || entry.place.generation === 0n) return
    this.#deps.start(async () => {
      const totals = await tablesInTarget(this.#deps.pool, entry.place, this.#signal)
      if (totals === undefined) return
      running.totals = totals
      running.isProgressNew = true
    })
  }

  /** Says how its tables ended. From then on nothing else is written of its progress. */
  async #endProgress(running: Running, status: 'success' | 'failed'): Promise<void> {
    running.isOver = true
    await running.saving.catch(() => undefined)
    if (!running.isShown || running.progress.size === 0) return
    await this.write(tx => saveProgress(tx, running.jobId, progressOf(running, status)))
  }

  /** Writes behind the fence, again until it has worked or the lease is over. */
  async write<T>(work: (tx: Tx) => Promise<T>): Promise<T> {
    const {pool, lease, log} = this.#deps
    for (let failures = 1; ; failures++) {
      this.#signal.throwIfAborted()
      try {
        return await fenced(pool, lease, work)
      } catch (error) {
        this.#signal.throwIfAborted()
        if (!passes(error)) throw error
        const retryMs = backoffMs(failures, pauses)
        log.warn({err: error, failures, retry_ms: retryMs}, 'the state of a job cannot be written')
        await sleep(retryMs, undefined, {signal: this.#signal})
      }
    }
  }
}

/** What was so before a sync began. */
type Before = {readonly version: string | undefined; readonly generation: bigint}

/** A run that begins now. */
export function newRunning(
  entry: Entry,
): Omit<Running, 'jobId' | 'syncType' | 'triggeredBy' | 'options' | 'waitedMs' | 'isShown'> {
  return {
    entry,
    startedAt: performance.now(),
    stop: new AbortController(),
    progress: new Map(),
    totals: undefined,
    isProgressNew: false,
    saving: Promise.resolve(),
    isOver: false,
  }
}

function progressOf({progress, totals}: Running, status: TableProgress['status']): TableProgress[] {
  return [...progress].map(([table, rows]) => {
    // When it has ended well, what it went over is what there was; what grows meanwhile is not more than all.
    const known = status === 'success' ? rows : totals?.get(table)
    return {
      table,
      rowsTotal: known === undefined ? null : BigInt(Math.max(known, rows)),
      rowsProcessed: BigInt(rows),
      status,
    }
  })
}

function whyHeld({reason = '', rows}: SyncResult): {code: string; message: string} {
  return rows.quarantined > 0
    ? {code: 'SYNC_ROWS_QUARANTINED', message: reason}
    : {code: 'SYNC_QUARANTINED', message: reason}
}

/** Whether two reasons differ in nothing but numbers: those grow while the app goes on. */
function isSameReason(one: string, other: string | undefined): boolean {
  const kindOf = (reason: string) => reason.replace(/\d+/g, '0')
  return other !== undefined && kindOf(one) === kindOf(other)
}

/** Whether it is worth trying again under this lease. */
export function passes(error: unknown): boolean {
  return error instanceof SyncError && error.retryable && !(error instanceof FencedOutError)
}
