import {randomBytes} from 'node:crypto'
import {setTimeout as sleep} from 'node:timers/promises'
import type {FeedEvent} from '../api/ports.ts'
import {refusals} from '../api/problem.ts'
import type {Sql} from '../postgres/sql.ts'
import {readFeed, type FeedDeployment, type FeedJob, type FeedState} from '../state/feed.ts'
import type {Log} from '../telemetry/log.ts'

export type FeedOptions = {
  readonly sql: Sql
  readonly log: Log
  /** How often it is looked without a notice: progress has none. */
  readonly pollEveryMs?: number
  readonly mostListeners?: number
}

/** However many notices come, it is looked no more often than this. */
const LEAST_PAUSE_MS = 200
/** Who was away for fewer events than these is told what he has missed. */
const REMEMBERED = 1_000

type Listener = {
  readonly send: (event: FeedEvent) => void
  readonly after: string | undefined
  isCurrent: boolean
}

/**
 * Tells listeners what changes on this host, out of Postgres, so that it makes no difference which node is asked. Nothing
 * is read while nobody listens.
 */
export class EventFeed {
  readonly #options: FeedOptions
  readonly #listeners = new Set<Listener>()
  /** Told apart from the events of another process, whose numbers mean something else. */
  readonly #series = randomBytes(6).toString('hex')
  #sequence = 0
  #remembered: FeedEvent[] = []
  #known: FeedState | undefined
  #running: Promise<void> | undefined
  #wake = new AbortController()

  constructor(options: FeedOptions) {
    this.#options = options
  }

  /** There may be something new. */
  look(): void {
    this.#wake.abort()
  }

  /** Sends events until `signal` aborts: what was missed since `after` when that is known, else a snapshot first. */
  subscribe(after: string | undefined, send: (event: FeedEvent) => void, signal: AbortSignal): void {
    if (signal.aborted) return
    if (this.#listeners.size >= (this.#options.mostListeners ?? 100)) throw refusals.tooMany('listeners')
    const listener: Listener = {send, after, isCurrent: false}
    this.#listeners.add(listener)
    signal.addEventListener(
      'abort',
      () => {
        this.#listeners.delete(listener)
        this.look()
      },
      {once: true},
    )
    this.look()
    this.#running ??= this.#run()
  }

  /** Resolves when nobody listens any more and nothing is being read. */
  async ended(): Promise<void> {
    await this.#running
  }

  async #run(): Promise<void> {
    const {log, pollEveryMs = 1_000} = this.#options
    let isFailing = false
    while (this.#listeners.size > 0) {
      this.#wake = new AbortController()
      try {
        await this.#step()
        if (isFailing) log.info({}, 'events can be read again')
        isFailing = false
      } catch (err) {
        if (!isFailing) log.warn({err}, 'events cannot be read; listeners wait')
        isFailing = true
      }
      await sleep(LEAST_PAUSE_MS)
      await sleep(pollEveryMs - LEAST_PAUSE_MS, undefined, {signal: this.#wake.signal}).catch(() => undefined)
    }
    // At once: whoever comes next must not take this run for one that goes on.
    this.#running = undefined
  }

  async #step(): Promise<void> {
    const before = this.#known
    const {jobs, ...others} = await readFeed(this.#options.sql, before?.jobs.map(({job_id}) => job_id) ?? [])
    const open = jobs.filter(isOpen)
    this.#known = {...others, jobs: open}
    for (const [event, data] of before ? changes(before, {...others, jobs}) : []) this.#tell(event, data)
    for (const listener of this.#listeners) if (!listener.isCurrent) this.#welcome(listener, this.#known)
  }

  #tell(event: FeedEvent['event'], data: unknown): void {
    const told = {id: `${this.#series}-${++this.#sequence}`, event, data}
    this.#remembered.push(told)
    if (this.#remembered.length > REMEMBERED) this.#remembered = this.#remembered.slice(-REMEMBERED / 2)
    for (const listener of this.#listeners) if (listener.isCurrent) listener.send(told)
  }

  #welcome(listener: Listener, known: FeedState): void {
    listener.isCurrent = true
    const missed = this.#since(listener.after)
    if (missed) for (const event of missed) listener.send(event)
    else listener.send({id: `${this.#series}-${this.#sequence}`, event: 'snapshot', data: known})
  }

  /** @returns the events after the one with that id; `undefined` when they are not all known. */
  #since(id: string | undefined): readonly FeedEvent[] | undefined {
    const [, series, number] = /^([0-9a-f]+)-(\d{1,15})$/.exec(id ?? '') ?? []
    const missing = this.#sequence - Number(number)
    if (series !== this.#series || !(missing >= 0 && missing <= this.#remembered.length)) return undefined
    return missing === 0 ? [] : this.#remembered.slice(-missing)
  }
}

function isOpen({status}: FeedJob): boolean {
  return status === 'pending' || status === 'running'
}

/** What is different, as events. `after.jobs` also has those that have ended since. */
function* changes(before: FeedState, after: FeedState): Generator<[FeedEvent['event'], unknown]> {
  if (!isSame(before.leader, after.leader)) yield ['leader', after.leader]
  const jobs = new Map(before.jobs.map(job => [job.job_id, job]))
  for (const job of after.jobs) {
    if (!isSame(jobs.get(job.job_id), job)) yield ['job', job]
    jobs.delete(job.job_id)
  }
  // A scheduled run that found nothing leaves no trace.
  for (const job of jobs.values()) yield ['job', {...job, status: 'unchanged'}]
  const deployments = new Map(before.deployments.map(each => [each.client_name, each]))
  for (const deployment of after.deployments) {
    const {client_name: client, pending_conflicts: pending} = deployment
    const known: FeedDeployment | undefined = deployments.get(client)
    if (!isSame(known, deployment)) yield ['deployment', deployment]
    if ((known?.pending_conflicts ?? 0) !== pending) yield ['conflict', {client, pending}]
    deployments.delete(client)
  }
  for (const {client_name} of deployments.values())
    yield ['deployment', {client_name, status: 'deregistered'}]
}

function isSame(a: unknown, b: unknown): boolean {
  return JSON.stringify(a) === JSON.stringify(b)
}
