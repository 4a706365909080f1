import {randomUUID} from 'node:crypto'
import {setTimeout as sleep} from 'node:timers/promises'
import type {Notice} from '../cluster/election.ts'
import {fenced, type Lease} from '../cluster/lease.ts'
import type {Config} from '../config/config.ts'
import {backoffMs} from '../core/backoff.ts'
import {Bell} from '../core/bell.ts'
import {UsageError} from '../core/errors.ts'
import {together} from '../core/together.ts'
import type {Endpoint} from '../net/endpoint.ts'
import type {Pool} from '../postgres/sql.ts'
import {dueInMs} from '../schedule/due.ts'
import {scheduleOf, type Schedule} from '../schedule/interval.ts'
import type {SchemaMovedError, SourceBusyError, SourceUnreadableError} from '../source/errors.ts'
import {sourceWatcher} from '../source/watch.ts'
import {claim, failJob, readQueue, requeueLost, requeueOlder, type Job} from '../state/jobs.ts'
import {listScheduled, saveChecks, type Scheduled} from '../state/scheduled.ts'
import type {Log} from '../telemetry/log.ts'
import {observePool, type Metrics} from '../telemetry/metrics.ts'
import {Freshness} from './freshness.ts'
import {countLock, forgetClient, forgetClients} from './job-metrics.ts'
import {failureOf} from './job-orders.ts'
import {newRunning, passes, Runs, type EndedRun, type Entry} from './job-runs.ts'
import {pollMarks, purge} from './upkeep.ts'
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
  readonly notices: {on(listener: (what: Notice) => void): Disposable}
  /** Told of each run that has ended. */
  readonly onEnd?: (ended: EndedRun) => void
  /** For tests, which cannot wait so long. */
  readonly pace?: Partial<typeof usualPace>
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
/** Edits of the target are looked for no more often than this. */
const MARKS_REST_MS = 1_000
/** How long what is kept in bulk waits for a row that a cut has locked. */
const CHECK_LOCK_TIMEOUT = '2s'
const pauses = {firstMs: 250, mostMs: 10_000}
const livePauses = {firstMs: 1_000, mostMs: 300_000}
/** After a failure that was about the file: its next change may be the cure. */
const sourcePauses = {firstMs: 1_000, mostMs: 10_000}
const sourceCodes = new Set<string>([
  'SYNC_SOURCE_UNREADABLE',
  'SYNC_SOURCE_BUSY',
  'SYNC_SCHEMA_MOVED',
] satisfies (SourceUnreadableError | SourceBusyError | SchemaMovedError)['code'][])

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
  } finally {
    forgetClients(deps.metrics)
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

class Leading implements AsyncDisposable {
  readonly #deps: LeadJobs
  readonly #pace: typeof usualPace
  readonly #over = new AbortController()
  readonly #signal: AbortSignal
  readonly #workers: Workers
  readonly #freshness = new Freshness()
  readonly #entries = new Map<string, Entry>()
  readonly #runs: Runs
  readonly #tasks = new Set<Promise<void>>()
  readonly #failed = Promise.withResolvers<never>()
  readonly #jobsBell = new Bell()
  readonly #reloadBell = new Bell()
  readonly #tickBell = new Bell()
  readonly #lookBell = new Bell()
  readonly #marksBell = new Bell()
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
    this.#workers = new Workers({
      ...workersOptions(config, endpoint, lease, log, observePool(metrics, 'workers')),
      onFailedLock: (client, lock) => {
        countLock(metrics, client, lock)
      },
    })
    this.#runs = new Runs(
      {
        ...deps,
        workers: this.#workers,
        freshness: this.#freshness,
        showAfterMs: this.#pace.showAfterMs,
        onEnd: deps.onEnd,
        reload: () => this.#load(),
        reloadSoon: () => {
          this.#reloadBell.ring()
        },
        countMarksSoon: () => {
          this.#marksBell.ring()
        },
        start: work => void this.#start(work),
      },
      this.#signal,
    )
    this.#failed.promise.catch(() => undefined)
    this.#ear = notices.on(what => {
      if (what === 'jobs' || what === 'connected') this.#jobsBell.ring()
      if (what === 'marks' || what === 'connected') this.#marksBell.ring()
      if (what === 'cache' || what === 'connected') this.#reloadBell.ring()
    })
  }

  async begin(): Promise<void> {
    const {lease, log} = this.#deps
    const requeued = await this.#runs.write(tx => requeueOlder(tx, lease.epoch))
    if (requeued > 0) log.info({jobs: requeued}, 'jobs of an earlier leader are begun anew')
    await this.#load()
  }

  async lead(): Promise<void> {
    const {pollMs, reloadMs, lookMs, progressMs, marksMs, retentionMs} = this.#pace
    const {pool, log, config} = this.#deps
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
        await this.#runs.saveProgress()
        return progressMs
      }),
      loop('marks', this.#marksBell, async () => {
        // What is decided about them is decided by the settings of now.
        await this.#load()
        await pollMarks({pool, log, entries: this.#entries})
        for (const entry of this.#entries.values())
          if (entry.marks > 0n && isScheduled(entry)) void this.#runScheduled(entry, 'change')
        // An editor who types on is met once a second, whatever the number of notices.
        await sleep(MARKS_REST_MS, undefined, {signal: this.#signal})
        return marksMs
      }),
      loop('retention', new Bell(), async () => {
        await purge(
          {pool, log, entries: this.#entries},
          {
            everyMs: retentionMs,
            tombstonesMs: config.tombstoneRetentionMs,
            conflictConfig: config.conflictResolutionConfig,
          },
          this.#signal,
        )
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

  // Jobs that somebody has asked for.

  /** @returns when to come again, in milliseconds. */
  async #claim(pollMs: number): Promise<number> {
    const {pool, lease, config, metrics, log} = this.#deps
    const {nodeId, epoch} = lease
    if (this.#mayHaveLost) {
      const known = this.#runs.ids
      const lost = await this.#runs.write(tx => requeueLost(tx, {epoch, known}))
      this.#mayHaveLost = false
      if (lost > 0) log.info({jobs: lost}, 'jobs are begun anew whose claim was not answered')
    }
    await this.#runs.stopCancelled()
    const {waiting, nextInMs} = await readQueue(pool)
    metrics.queueSize.set(waiting)
    const most = config.maxSyncWorkers - this.#runs.queued
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

  async #runJob(job: Job): Promise<void> {
    if (!this.#entries.has(job.deploymentId)) await this.#load()
    const entry = this.#entries.get(job.deploymentId)
    const {jobId, syncType, triggeredBy, options} = job
    if (entry === undefined) {
      const failure = failureOf(
        new UsageError(`${job.clientName} has no SQLite file`, 'Jobs are for clients with a SQLite file.'),
      )
      await this.#runs.write(tx =>
        failJob(tx, {jobId, epoch: this.#deps.lease.epoch, durationMs: 0, failure}),
      )
      return
    }
    entry.retriesUntil = 0
    await this.#runs.perform({
      ...newRunning(entry),
      jobId,
      syncType,
      triggeredBy,
      options,
      waitedMs: Math.max(0, Number(job.startedAt) - Number(job.runAfter)),
      isShown: true,
    })
    await this.#releaseIfGone(job)
  }

  // What is due, or has changed.

  #tick(): number {
    let waitMs = TICK_MS
    for (const entry of this.#entries.values()) {
      if (!isScheduled(entry) || entry.inFlight !== undefined || this.#runs.isSynced(entry)) continue
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

  /** One run that nobody has queued; the one in hand when there is one. */
  async #runScheduled(entry: Entry, triggeredBy: 'scheduler' | 'change'): Promise<void> {
    entry.inFlight ??= this.#start(async () => {
      try {
        await this.#runs.perform({
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
        const {failures, failedBy = ''} = entry
        const rests = sourceCodes.has(failedBy) ? sourcePauses : livePauses
        if (failures > 0) await sleep(backoffMs(failures, rests), undefined, {signal})
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

  // What is known of the deployments.

  async #load(): Promise<void> {
    const {pool} = this.#deps
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
          failedBy: undefined,
          nextAt: 0,
          retriesUntil: 0,
          inFlight: undefined,
          heldFor: undefined,
          refused: undefined,
          following: undefined,
          marks: 0n,
          countedAt: -Infinity,
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
        this.#forgetIfGone(entry.place.clientName)
        void this.#start(async () => {
          await entry.inFlight
          await this.#releaseIfGone(entry.place)
        })
      }
    }
    this.#tickBell.ring()
  }

  /** Closes what we look after no more. What a job still has in hand is closed when that is over. */
  async #releaseIfGone({
    deploymentId,
    clientName,
  }: Pick<Scheduled, 'deploymentId' | 'clientName'>): Promise<void> {
    if (this.#entries.has(deploymentId)) return
    // What came of it has been shown once more.
    this.#forgetIfGone(clientName)
    await this.#workers.release(deploymentId)
  }

  /** Another client may have its name by now. */
  #forgetIfGone(clientName: string): void {
    for (const {place} of this.#entries.values()) if (place.clientName === clientName) return
    forgetClient(this.#deps.metrics, clientName)
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
}

/** Whether it is synced without being asked for. */
function isScheduled({place: {isEnabled, status, sqlitePath}}: Entry): boolean {
  return isEnabled && (status === 'active' || status === 'quarantined') && sqlitePath !== null
}
