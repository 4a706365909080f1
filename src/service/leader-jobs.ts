import {randomUUID} from 'node:crypto'
import {setTimeout as sleep} from 'node:timers/promises'
import {fenced, type Lease} from '../cluster/lease.ts'
import type {Config} from '../config/config.ts'
import {backoffMs} from '../core/backoff.ts'
import {Bell} from '../core/bell.ts'
import {SyncError, UsageError} from '../core/errors.ts'
import {together} from '../core/together.ts'
import type {Endpoint} from '../net/endpoint.ts'
import {FencedOutError} from '../postgres/refusals.ts'
import type {Pool, Tx} from '../postgres/sql.ts'
import {dueInMs} from '../schedule/due.ts'
import {scheduleOf, type Schedule} from '../schedule/interval.ts'
import {sourceWatcher} from '../source/watch.ts'
import {moveSource} from '../state/deployments.ts'
import {
  claim,
  failJob,
  failRun,
  findCancelled,
  finishJob,
  forgetRun,
  readQueue,
  requeueLost,
  requeueOlder,
  saveProgress,
  showRun,
  type AfterFailure,
  type Failure,
  type Job,
  type JobOptions,
  type JobType,
  type Run,
  type TriggeredBy,
} from '../state/jobs.ts'
import {
  claimRetention,
  countMarks,
  listScheduled,
  purgeHistory,
  purgeTombstones,
  saveChecks,
  type Scheduled,
} from '../state/scheduled.ts'
import type {SyncResult} from '../sync/sync.ts'
import type {Log} from '../telemetry/log.ts'
import {observePool, type Metrics} from '../telemetry/metrics.ts'
import {announce, webhookOf} from './announce.ts'
import {Freshness} from './freshness.ts'
import {countSync, statusOf, type RunStatus} from './job-metrics.ts'
import {asJson, failureOf, orderOf} from './job-orders.ts'
import type {AnyOrder, OutcomeOf} from './worker-messages.ts'
import {Workers, workersOptions} from './workers.ts'

/** What looking after a host's deployments takes. */
export type LeadJobs = {
  /** Its connections bear the epoch of the lease. */
  readonly pool: Pool
  readonly endpoint: Endpoint
  readonly config: Config
  readonly lease: Lease
  readonly log: Log
  readonly metrics: Metrics
  /** Hints that there is something to look at; what they miss is found by polling. */
  readonly notices: {on(listener: (what: 'lease' | 'cache' | 'jobs' | 'connected') => void): Disposable}
  /** Told of each run that has ended. */
  readonly onEnd?: (ended: EndedRun) => void
  /** For tests, which cannot wait so long. */
  readonly pace?: Partial<typeof usualPace>
}

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

export const usualPace = {
  /** Jobs are looked for so often when no notice comes of them, */
  pollMs: 5_000,
  /** and deployments. */
  reloadMs: 30_000,
  /** How often the files are looked at, and what was found is kept. */
  lookMs: 5_000,
  progressMs: 1_000,
  /** A run that nobody has queued is shown among the jobs when it takes so long. */
  showAfterMs: 2_000,
  marksMs: 60_000,
  retentionMs: 24 * 3_600_000,
}

/** The longest sleep of the scheduler: the clock may have been set meanwhile. */
const TICK_MS = 60_000
/** A deployment whose job waits for another try is left alone for this much longer. */
const RETRY_MARGIN_MS = 60_000
/** How long what is kept in bulk waits for a row that a cut has locked. */
const CHECK_LOCK_TIMEOUT = '2s'
const pauses = {firstMs: 250, mostMs: 10_000}
const livePauses = {firstMs: 1_000, mostMs: 300_000}

/**
 * Looks after the deployments of a host for as long as the lease lasts: runs the jobs that are asked for, syncs what is
 * due and what has changed, notes how fresh each target is, and removes what need not be kept.
 *
 * What it has in hand when it ends, the next leader takes back.
 *
 * @throws what neither passes by itself nor concerns one deployment alone.
 */
export async function leadJobs(deps: LeadJobs, signal: AbortSignal): Promise<void> {
  const either = AbortSignal.any([signal, deps.lease.signal])
  try {
    await using leading = new Leading(deps, either)
    await leading.begin()
    await leading.lead()
  } catch (error) {
    if (!either.aborted) throw error
  }
}

/**
 * One pass: every job that waits and may begin, and every deployment that is due or followed, once.
 *
 * @throws the signal's reason, or that of the lease.
 */
export async function passOnce(deps: LeadJobs, signal: AbortSignal): Promise<void> {
  const either = AbortSignal.any([signal, deps.lease.signal])
  await using leading = new Leading(deps, either)
  await leading.begin()
  await leading.pass()
}

/** A deployment that we look after. */
type Entry = {
  place: Scheduled
  schedule: Schedule
  /** When its last run began, or had begun when we took over. */
  lastAt: number | undefined
  /** Runs that have failed for good, in a row. */
  failures: number
  /** Not before then is it worth asking whether it is due. */
  nextAt: number
  /** Until then a job of it waits for its next try. */
  retriesUntil: number
  inFlight: Promise<void> | undefined
  /** Why the guard held its last run back. */
  heldFor: string | undefined
  /** Of the one who follows its file. */
  following: {readonly path: string; readonly stop: AbortController} | undefined
  /** Rows of the target that somebody has edited; the gate must not pass over them once they mean something. */
  marks: bigint
}

/** A run in hand. */
type Running = {
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
  progressSince: number | undefined
  isProgressNew: boolean
  /** It has a row of its own. */
  isShown: boolean
  /** What is being written of its progress. */
  saving: Promise<void>
  isOver: boolean
}

class Leading implements AsyncDisposable {
  readonly #deps: LeadJobs
  readonly #pace: typeof usualPace
  readonly #over = new AbortController()
  readonly #signal: AbortSignal
  readonly #workers: Workers
  readonly #freshness = new Freshness()
  readonly #entries = new Map<string, Entry>()
  readonly #running = new Map<string, Running>()
  readonly #tasks = new Set<Promise<void>>()
  readonly #failed = Promise.withResolvers<never>()
  readonly #jobsBell = new Bell()
  readonly #reloadBell = new Bell()
  readonly #tickBell = new Bell()
  readonly #lookBell = new Bell()
  readonly #ear: Disposable
  readonly #watch
  /** Files are followed. */
  #isFollowing = false
  /** A claim may have been committed without our having heard of it. */
  #mayHaveLost = false

  constructor(deps: LeadJobs, signal: AbortSignal) {
    const {config, endpoint, lease, log, metrics, notices} = deps
    this.#deps = deps
    this.#pace = {...usualPace, ...deps.pace}
    this.#signal = AbortSignal.any([signal, this.#over.signal])
    this.#watch = sourceWatcher(log)
    this.#workers = new Workers(workersOptions(config, endpoint, lease, log, observePool(metrics, 'workers')))
    this.#failed.promise.catch(() => undefined)
    this.#ear = notices.on(what => {
      if (what === 'jobs' || what === 'connected') this.#jobsBell.ring()
      if (what === 'cache' || what === 'connected') this.#reloadBell.ring()
    })
  }

  async begin(): Promise<void> {
    const {lease, log} = this.#deps
    const requeued = await this.#write(tx => requeueOlder(tx, lease.epoch))
    if (requeued > 0) log.info({jobs: requeued}, 'jobs of an earlier leader are begun anew')
    await this.#load()
  }

  async lead(): Promise<void> {
    const {pollMs, reloadMs, lookMs, progressMs, marksMs, retentionMs} = this.#pace
    const loop = (what: string, bell: Bell, work: () => Promise<number>) => (signal: AbortSignal) =>
      this.#keep(what, bell, work, signal)
    this.#isFollowing = true
    for (const entry of this.#entries.values()) this.#followAsAsked(entry)
    await together(
      this.#signal,
      loop('jobs', this.#jobsBell, () => this.#claim(pollMs)),
      loop('deployments', this.#reloadBell, async () => {
        await this.#load()
        return reloadMs
      }),
      loop('schedule', this.#tickBell, () => Promise.resolve(this.#tick())),
      loop('freshness', this.#lookBell, async () => {
        await this.#look()
        return lookMs
      }),
      loop('progress', new Bell(), async () => {
        await this.#saveProgress()
        return progressMs
      }),
      loop('marks', new Bell(), async () => {
        await this.#countMarks()
        return marksMs
      }),
      loop('retention', new Bell(), async () => {
        await this.#purge()
        return Math.min(retentionMs, 3_600_000)
      }),
      signal => this.#raise(signal),
    )
  }

  async pass(): Promise<void> {
    for (const entry of this.#entries.values()) {
      const isDue = entry.schedule.kind === 'live' || this.#dueInMs(entry) <= 0
      if (isScheduled(entry) && isDue) void this.#runScheduled(entry, 'scheduler')
    }
    for (;;) {
      while ((await this.#claim(Infinity)) === 0);
      if (this.#tasks.size === 0) break
      // Each that ends may make room for a job.
      await Promise.race([...this.#tasks, this.#failed.promise])
      this.#signal.throwIfAborted()
    }
    await this.#look()
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#ear[Symbol.dispose]()
    this.#over.abort(new Error('the leader looks after its jobs no more'))
    await this.#workers[Symbol.asyncDispose]()
    await Promise.all(this.#tasks)
    this.#deps.metrics.jobsActive.set(0)
    this.#deps.metrics.queueSize.set(0)
  }

  /** Does `work` again and again, when the bell rings or the time is over that it says; failures that pass are borne. */
  async #keep(what: string, bell: Bell, work: () => Promise<number>, signal: AbortSignal): Promise<void> {
    for (let failures = 0; ;) {
      let waitMs: number
      try {
        waitMs = await work()
        failures = 0
      } catch (error) {
        signal.throwIfAborted()
        if (!passes(error)) throw error
        waitMs = backoffMs(++failures, pauses)
        this.#deps.log.warn({err: error, what, failures, retry_ms: waitMs}, 'the leader is held up')
      }
      await bell.wait(waitMs, signal)
    }
  }

  /** @throws what a run has met that ends all of this. */
  async #raise(signal: AbortSignal): Promise<void> {
    const aborted = Promise.withResolvers<undefined>()
    signal.addEventListener('abort', () => {
      aborted.resolve(undefined)
    })
    if (signal.aborted) aborted.resolve(undefined)
    await Promise.race([this.#failed.promise, aborted.promise])
  }

  /** Writes behind the fence, again until it has worked or the lease is over. */
  async #write<T>(work: (tx: Tx) => Promise<T>): Promise<T> {
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

  // Jobs that somebody has asked for.

  #queued(): number {
    return [...this.#running.values()].filter(({waitedMs}) => waitedMs !== undefined).length
  }

  /** @returns when to come again, in milliseconds. */
  async #claim(pollMs: number): Promise<number> {
    const {pool, lease, config, metrics, log} = this.#deps
    const {nodeId, epoch} = lease
    if (this.#mayHaveLost) {
      const known = [...this.#running.keys()]
      const lost = await this.#write(tx => requeueLost(tx, {epoch, known}))
      this.#mayHaveLost = false
      if (lost > 0) log.info({jobs: lost}, 'jobs are begun anew whose claim was not answered')
    }
    await this.#stopCancelled()
    const {waiting, nextInMs} = await readQueue(pool)
    metrics.queueSize.set(waiting)
    const most = config.maxSyncWorkers - this.#queued()
    if (nextInMs === undefined || most <= 0) return pollMs
    if (nextInMs > 0) return Math.min(nextInMs + 1, pollMs)
    let jobs: Job[]
    try {
      jobs = await fenced(pool, lease, tx => claim(tx, {nodeId, epoch, most}))
    } catch (error) {
      this.#mayHaveLost = true
      throw error
    }
    for (const job of jobs) void this.#start(() => this.#runJob(job))
    return jobs.length > 0 ? 0 : pauses.firstMs
  }

  async #stopCancelled(): Promise<void> {
    const shown = [...this.#running.values()].filter(({isShown}) => isShown).map(({jobId}) => jobId)
    if (shown.length === 0) return
    for (const jobId of await findCancelled(this.#deps.pool, shown))
      this.#running.get(jobId)?.stop.abort(new Error('the job was cancelled'))
  }

  async #runJob(job: Job): Promise<void> {
    if (!this.#entries.has(job.deploymentId)) await this.#load()
    const entry = this.#entries.get(job.deploymentId)
    const {jobId, syncType, triggeredBy, options} = job
    if (entry === undefined) {
      const failure = failureOf(
        new UsageError(`${job.clientName} has no SQLite file`, 'Jobs are for clients with a SQLite file.'),
      )
      await this.#write(tx => failJob(tx, {jobId, epoch: this.#deps.lease.epoch, durationMs: 0, failure}))
      return
    }
    entry.retriesUntil = 0
    await this.#perform({
      ...newRunning(entry),
      jobId,
      syncType,
      triggeredBy,
      options,
      waitedMs: Math.max(0, Number(job.startedAt) - Number(job.runAfter)),
      isShown: true,
    })
  }

  // What is due, or has changed.

  #tick(): number {
    let waitMs = TICK_MS
    for (const entry of this.#entries.values()) {
      if (!isScheduled(entry) || entry.inFlight !== undefined || this.#isSynced(entry)) continue
      const now = performance.now()
      if (now < entry.retriesUntil) {
        waitMs = Math.min(waitMs, entry.retriesUntil - now)
        continue
      }
      if (now >= entry.nextAt) {
        const inMs = this.#dueInMs(entry)
        if (inMs <= 0) {
          void this.#runScheduled(entry, 'scheduler')
          continue
        }
        entry.nextAt = now + Math.min(inMs, TICK_MS)
      }
      waitMs = Math.min(waitMs, Math.max(1, entry.nextAt - now))
    }
    return waitMs
  }

  #dueInMs({schedule, place, lastAt, failures}: Entry): number {
    const sinceMs = lastAt === undefined ? undefined : performance.now() - lastAt
    return dueInMs({schedule, deploymentId: place.deploymentId, sinceMs, failures, now: new Date()})
  }

  /** A job syncs it. */
  #isSynced(entry: Entry): boolean {
    return [...this.#running.values()].some(
      running =>
        running.entry === entry && (running.syncType === 'incremental' || running.syncType === 'full'),
    )
  }

  /** One run that nobody has queued; the one in hand when there is one. */
  async #runScheduled(entry: Entry, triggeredBy: 'scheduler' | 'change'): Promise<void> {
    entry.inFlight ??= this.#start(async () => {
      try {
        await this.#perform({
          ...newRunning(entry),
          jobId: randomUUID(),
          syncType: 'incremental',
          triggeredBy,
          options: {},
          waitedMs: undefined,
          isShown: false,
        })
      } finally {
        entry.inFlight = undefined
      }
    })
    await entry.inFlight
  }

  /** Syncs it whenever its file may have changed. */
  async #follow(entry: Entry, path: string, signal: AbortSignal): Promise<void> {
    try {
      for await (const {since} of this.#watch(path, signal)) {
        if (entry.failures > 0) await sleep(backoffMs(entry.failures, livePauses), undefined, {signal})
        // What is in hand may have begun before the change.
        await entry.inFlight
        signal.throwIfAborted()
        if (performance.now() < entry.retriesUntil) continue
        await this.#runScheduled(entry, 'change')
        this.#deps.log.debug(
          {client: entry.place.clientName, lag_ms: Math.round(performance.now() - since)},
          'a change was followed',
        )
      }
    } catch (error) {
      if (!signal.aborted) throw error
    }
  }

  // One run.

  /** Runs something that ends by itself, or with us; what it throws ends us. */
  #start(work: () => Promise<void>): Promise<void> {
    const task = work().catch((error: unknown) => {
      if (!this.#signal.aborted) this.#failed.reject(error)
    })
    this.#tasks.add(task)
    void task.then(() => {
      this.#tasks.delete(task)
      this.#jobsBell.ring()
      this.#tickBell.ring()
    })
    return task
  }

  async #perform(running: Running): Promise<void> {
    const {metrics} = this.#deps
    const {jobId, entry, stop} = running
    const isSync = running.syncType === 'incremental' || running.syncType === 'full'
    this.#running.set(jobId, running)
    metrics.jobsActive.set(this.#running.size)
    try {
      const path = running.options.sqlite_path ?? entry.place.sqlitePath
      const before: Before = {
        version: isSync && path !== null ? await this.#freshness.versionOf(path) : undefined,
        generation: entry.place.generation,
      }
      let outcome: OutcomeOf<AnyOrder>
      try {
        outcome = await this.#workers.run(
          orderOf(running, entry.place),
          AbortSignal.any([this.#signal, stop.signal]),
          (table, rows) => {
            running.progress.set(table, rows)
            running.progressSince ??= performance.now()
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
    if (!isDry) {
      entry.heldFor = held
      entry.failures = 0
      if (result.generation > entry.place.generation)
        entry.place = {...entry.place, generation: result.generation}
      if (result.status === 'success') {
        await this.#keepPath(running)
        await this.#freshness.note(entry.place.deploymentId, before.version, startedAt)
      }
      countSync(metrics, {result, ms, isApplied})
      metrics.syncLag.set({client}, this.#freshness.behindMs(entry.place.deploymentId) / 1_000)
    }
    const {upserted, tombstoned, quarantined} = result.rows
    const facts = {client, job: running.jobId, generation: Number(result.generation), ms}
    if (held !== undefined)
      log.warn({...facts, reason: held}, 'a sync is held back until a person has looked')
    else if (quarantined > 0)
      log.warn({...facts, quarantined, reason: result.reason}, 'rows could not be applied')
    if (isApplied) {
      log.info({...facts, mode: result.mode, upserted, tombstoned, bytes: result.bytes}, 'cut applied')
      this.#announce(entry, result)
    } else log.debug(facts, 'nothing to apply')
    this.#end(running, statusOf(result), result)
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
      await this.#write(tx =>
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
    const isNews = held !== undefined && held !== entry.heldFor && held !== entry.place.statusReason
    if (isNews && result.mode !== 'unchanged') {
      const failure = {...whyHeld(result), name: 'Quarantine', next: null, retryable: false}
      await this.#write(tx => failRun(tx, this.#runOf(running), failure))
    } else if (running.isShown && !isApplied) await this.#write(tx => forgetRun(tx, jobId))
  }

  /** The file is where the deployment lives from now on, once a sync of it has held. */
  async #keepPath({entry, options: {sqlite_path: path}}: Running): Promise<void> {
    if (path === undefined || path === entry.place.sqlitePath) return
    await this.#write(tx => moveSource(tx, entry.place.deploymentId, path))
    await this.#load()
  }

  async #settleOther(running: Running, outcome: Exclude<OutcomeOf<AnyOrder>, SyncResult>): Promise<void> {
    const {metrics, log, lease} = this.#deps
    const {jobId, startedAt, syncType} = running
    const client = running.entry.place.clientName
    const {result, ...details} = outcome
    await this.#write(tx =>
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
      after = await this.#write(tx =>
        running.waitedMs === undefined
          ? failRun(tx, this.#runOf(running), failure)
          : failJob(tx, {jobId, epoch: lease.epoch, durationMs, failure}),
      )
    } catch (cause) {
      this.#signal.throwIfAborted()
      if (cause instanceof FencedOutError || !(cause instanceof SyncError)) throw cause
      // It is not ours to write about any more: the client has gone to another host.
      log.error({err: cause, client, job: jobId}, 'a failure cannot be kept')
      this.#reloadBell.ring()
      after = {then: 'failed'}
    }
    const facts = {err: error, client, job: jobId, next: failure.next ?? undefined}
    if (after.then === 'retry') {
      entry.retriesUntil = performance.now() + after.inMs + RETRY_MARGIN_MS
      log.warn({...facts, retry_ms: after.inMs}, 'a job failed and is tried again')
    } else if (after.then === 'failed') {
      if (isSync) entry.failures++
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
    void this.#start(async () => {
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

  // Progress.

  async #saveProgress(): Promise<void> {
    await Promise.all(
      [...this.#running.values()].map(async running => {
        if (running.isOver || running.progressSince === undefined) return
        running.saving = this.#saveProgressOf(running, running.progressSince)
        await running.saving
      }),
    )
  }

  async #saveProgressOf(running: Running, since: number): Promise<void> {
    if (!running.isShown) {
      if (performance.now() - since < this.#pace.showAfterMs) return
      running.isShown = await fenced(this.#deps.pool, this.#deps.lease, tx =>
        showRun(tx, this.#runOf(running)),
      )
    }
    if (!running.isShown || !running.isProgressNew) return
    running.isProgressNew = false
    await saveProgress(this.#deps.pool, running.jobId, progressOf(running, 'running'))
  }

  /** Says how its tables ended. From then on nothing else is written of its progress. */
  async #endProgress(running: Running, status: 'success' | 'failed'): Promise<void> {
    running.isOver = true
    await running.saving.catch(() => undefined)
    if (!running.isShown || running.progress.size === 0) return
    await this.#write(tx => saveProgress(tx, running.jobId, progressOf(running, status)))
  }

  // What is known of the deployments.

  async #load(): Promise<void> {
    const {pool, metrics} = this.#deps
    const all = await listScheduled(pool)
    const now = performance.now()
    for (const place of all) {
      const known = this.#entries.get(place.deploymentId)
      const schedule = this.#scheduleOf(place, known)
      if (known === undefined) {
        this.#entries.set(place.deploymentId, {
          place,
          schedule,
          lastAt: place.freshMs === null ? undefined : now - place.freshMs,
          failures: 0,
          nextAt: 0,
          retriesUntil: 0,
          inFlight: undefined,
          heldFor: undefined,
          following: undefined,
          marks: 0n,
        })
      } else {
        known.place = place
        known.schedule = schedule
        known.nextAt = 0
      }
    }
    this.#freshness.know(all)
    const ids = new Set(all.map(({deploymentId}) => deploymentId))
    for (const [id, entry] of this.#entries) {
      if (ids.has(id)) this.#followAsAsked(entry)
      else {
        this.#entries.delete(id)
        entry.following?.stop.abort()
        void this.#start(async () => {
          await entry.inFlight
          await this.#workers.release(id)
        })
        metrics.syncLag.remove({client: entry.place.clientName})
      }
    }
    this.#tickBell.ring()
  }

  #scheduleOf(place: Scheduled, known: Entry | undefined): Schedule {
    const isSame =
      known?.place.syncInterval === place.syncInterval && known.place.syncSchedule === place.syncSchedule
    if (isSame) return known.schedule
    try {
      return scheduleOf(place)
    } catch (error) {
      this.#deps.log.error({err: error, client: place.clientName}, 'a schedule cannot be understood')
      return {kind: 'manual'}
    }
  }

  #followAsAsked(entry: Entry): void {
    if (!this.#isFollowing) return
    const path = entry.schedule.kind === 'live' && isScheduled(entry) ? entry.place.sqlitePath : null
    if (path === (entry.following?.path ?? null)) return
    entry.following?.stop.abort()
    entry.following = undefined
    if (path === null) return
    const stop = new AbortController()
    entry.following = {path, stop}
    void this.#start(() => this.#follow(entry, path, AbortSignal.any([this.#signal, stop.signal])))
  }

  /** Looks at all files, and keeps what was found out since the last time. */
  async #look(): Promise<void> {
    const {pool, lease, metrics} = this.#deps
    await this.#freshness.look(this.#signal)
    for (const {place} of this.#entries.values())
      metrics.syncLag.set({client: place.clientName}, this.#freshness.behindMs(place.deploymentId) / 1_000)
    const takenAt = performance.now()
    const checks = this.#freshness.take()
    if (checks.length === 0) return
    try {
      await pool.begin(
        async tx => {
          await saveChecks(
            tx,
            checks.map(check => ({...check, dueInMs: this.#nextInMs(check.deploymentId)})),
          )
          await tx`select sync_metadata.assert_lease(${lease.epoch})`
        },
        {setLocal: {lock_timeout: CHECK_LOCK_TIMEOUT}},
      )
    } catch (error) {
      this.#freshness.putBack(checks, takenAt)
      throw error
    }
  }

  #nextInMs(deploymentId: string): number | null {
    const entry = this.#entries.get(deploymentId)
    if (entry === undefined || !isScheduled(entry)) return null
    const inMs = this.#dueInMs(entry)
    return inMs === Infinity ? null : Math.max(0, inMs)
  }

  async #countMarks(): Promise<void> {
    const {pool, log} = this.#deps
    for (const entry of [...this.#entries.values()]) {
      const {deploymentId, clientName: client, generation} = entry.place
      if (generation === 0n) continue
      this.#signal.throwIfAborted()
      const marks = await countMarks(pool, deploymentId)
      if (marks !== entry.marks) log.info({client, rows: Number(marks)}, 'rows of the target were edited')
      entry.marks = marks
    }
  }

  async #purge(): Promise<void> {
    const {pool, config, log} = this.#deps
    if (!(await claimRetention(pool, this.#pace.retentionMs))) return
    const jobs = await purgeHistory(pool)
    let tombstones = 0n
    for (const {place} of [...this.#entries.values()]) {
      this.#signal.throwIfAborted()
      tombstones += await purgeTombstones(pool, place.deploymentId, config.tombstoneRetentionMs)
    }
    log.info({jobs: Number(jobs), tombstones: Number(tombstones)}, 'what need not be kept was removed')
  }
}

/** What was so before a sync began. */
type Before = {readonly version: string | undefined; readonly generation: bigint}

function newRunning(
  entry: Entry,
): Omit<Running, 'jobId' | 'syncType' | 'triggeredBy' | 'options' | 'waitedMs' | 'isShown'> {
  return {
    entry,
    startedAt: performance.now(),
    stop: new AbortController(),
    progress: new Map(),
    progressSince: undefined,
    isProgressNew: false,
    saving: Promise.resolve(),
    isOver: false,
  }
}

/** Whether it is synced without being asked for. */
function isScheduled({place: {isEnabled, status, sqlitePath}}: Entry): boolean {
  return isEnabled && (status === 'active' || status === 'quarantined') && sqlitePath !== null
}

function progressOf({progress}: Running, status: 'running' | 'success' | 'failed') {
  return [...progress].map(([table, rows]) => ({
    table,
    rowsTotal: null,
    rowsProcessed: BigInt(rows),
    status,
  }))
}

function whyHeld({reason = '', rows}: SyncResult): {code: string; message: string} {
  return rows.quarantined > 0
    ? {code: 'SYNC_ROWS_QUARANTINED', message: reason}
    : {code: 'SYNC_QUARANTINED', message: reason}
}

/** Whether it is worth trying again under this lease. */
function passes(error: unknown): boolean {
  return error instanceof SyncError && error.retryable && !(error instanceof FencedOutError)
}
