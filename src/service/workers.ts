import type {Lease} from '../cluster/lease.ts'
import type {Config} from '../config/config.ts'
import {urlOf, type Endpoint} from '../net/endpoint.ts'
import type {PoolObserver, PoolSeen} from '../postgres/observe.ts'
import type {SyncResult} from '../sync/sync.ts'
import type {Log} from '../telemetry/log.ts'
import {assign, type WorkerView} from './assign.ts'
import {limitsOf} from './sync-once.ts'
import {Worker, WorkerLostError, type Progress, type WorkerOptions} from './worker.ts'
import type {AnyOrder, Order, OutcomeOf} from './worker-messages.ts'

export type WorkersOptions = Omit<WorkerOptions, 'onEnd' | 'onDatabase'> & {
  /** The most processes at once. */
  readonly most: number
  /** Told of what all of them do in Postgres, their pools taken as one. */
  readonly observer?: PoolObserver | undefined
}

/** What the settings say about workers, under one lease. */
export function workersOptions(
  config: Config,
  endpoint: Endpoint,
  lease: Lease,
  log: Log,
  observer?: PoolObserver,
): WorkersOptions {
  const {stateDir, syncTimeoutMs, maxSyncWorkers} = config
  const {nodeId, epoch} = lease
  return {
    settings: {
      databaseUrl: urlOf(endpoint),
      ssl: endpoint.ssl,
      stateDir,
      limits: limitsOf(config),
      conflictConfig: config.conflictResolutionConfig,
      // Longer than any statement may take: the server has stopped it by then, or is not there any more.
      answerWithinMs: syncTimeoutMs + 10_000,
      nodeId,
      epoch,
    },
    lease,
    log,
    stallMs: syncTimeoutMs,
    most: maxSyncWorkers,
    observer,
  }
}

/** What a process that runs syncs is doing. */
export type WorkerState = {
  readonly pid: number | undefined
  /** How many deployments it holds open. */
  readonly deployments: number
  readonly inHand: {readonly client: string; readonly forMs: number} | undefined
}

/** A run waits this long after the first one that took its worker along, then twice as long, and so on, */
const FIRST_REST_MS = 1_000
/** up to this. */
const LONGEST_REST_MS = 300_000

/**
 * The sync workers of a leader: at most so many processes, started when they are needed, each with the deployments that
 * it holds open. They live under one lease and end with it: the next one begins with new ones.
 *
 * A worker that dies fails the run that it had in hand, and no other. Its deployments go to others; the one that was
 * running rests before it may try again, longer each time.
 */
export class Workers implements AsyncDisposable {
  readonly #options: WorkersOptions
  readonly #workers = new Set<Worker>()
  readonly #held = new Map<Worker, Set<string>>()
  readonly #pools = new Map<Worker, PoolSeen>()
  readonly #inHand = new Map<Worker, {readonly order: AnyOrder; readonly since: number}>()
  /** In the order in which they came. */
  readonly #waiting: Waiting[] = []
  /** Deployments that their workers are letting go of, until they have. */
  readonly #leaving = new Map<string, Promise<void>>()
  readonly #losses = new Map<string, {readonly count: number; readonly restsUntil: number}>()
  readonly #closed = new AbortController()
  #alarm: NodeJS.Timeout | undefined

  constructor(options: WorkersOptions) {
    this.#options = options
  }

  get states(): readonly WorkerState[] {
    const now = performance.now()
    return [...this.#workers].map(worker => {
      const inHand = this.#inHand.get(worker)
      return {
        pid: worker.pid,
        deployments: this.#held.get(worker)?.size ?? 0,
        inHand: inHand && {client: inHand.order.clientName, forMs: now - inHand.since},
      }
    })
  }

  /** How many runs wait for a worker. */
  get queued(): number {
    return this.#waiting.length
  }

  /** One sync; see {@link run}. */
  async sync(order: Order, signal: AbortSignal, onProgress?: Progress): Promise<SyncResult> {
    return await this.run(order, signal, onProgress)
  }

  /**
   * One sync, verification or restore, as soon as a worker is free for it.
   *
   * @throws what the run throws, as it was there; {@link WorkerLostError} or {@link StalledError} when there is no end
   * of it; the signal's reason, or that of the lease, when one of them stops it.
   */
  async run<O extends AnyOrder>(
    order: O,
    signal: AbortSignal,
    onProgress: Progress = () => undefined,
  ): Promise<OutcomeOf<O>> {
    const either = AbortSignal.any([signal, this.#options.lease.signal, this.#closed.signal])
    either.throwIfAborted()
    const waiting: Waiting = {order, since: performance.now(), worker: Promise.withResolvers()}
    const leave = () => {
      const at = this.#waiting.indexOf(waiting)
      if (at >= 0) this.#waiting.splice(at, 1)
      waiting.worker.reject(either.reason)
    }
    either.addEventListener('abort', leave)
    this.#waiting.push(waiting)
    this.#dispatch()
    try {
      const worker = await waiting.worker.promise
      try {
        return await this.#run(worker, order, onProgress, either)
      } finally {
        this.#inHand.delete(worker)
        this.#dispatch()
      }
    } finally {
      either.removeEventListener('abort', leave)
    }
  }

  /** Closes a deployment, so that another process can have it. One that is in hand stays open. */
  async release(deploymentId: string): Promise<void> {
    const [holder] = [...this.#held].find(([, held]) => held.has(deploymentId)) ?? []
    if (holder === undefined || this.#inHand.get(holder)?.order.deploymentId === deploymentId) return
    await (this.#leaving.get(deploymentId) ?? this.#letGo(deploymentId, holder))
  }

  /** Stops what is under way and ends every worker. */
  async [Symbol.asyncDispose](): Promise<void> {
    this.#closed.abort(new Error('the sync workers are being closed'))
    clearTimeout(this.#alarm)
    await Promise.all([...this.#workers].map(worker => worker[Symbol.asyncDispose]()))
  }

  async #run<O extends AnyOrder>(
    worker: Worker,
    order: O,
    onProgress: Progress,
    signal: AbortSignal,
  ): Promise<OutcomeOf<O>> {
    const {deploymentId, clientName: client} = order
    try {
      const result = await worker.run(order, onProgress, signal)
      this.#losses.delete(deploymentId)
      return result
    } catch (error) {
      if (!(error instanceof WorkerLostError)) this.#losses.delete(deploymentId)
      else {
        const count = (this.#losses.get(deploymentId)?.count ?? 0) + 1
        const restMs = Math.min(FIRST_REST_MS * 2 ** (count - 1), LONGEST_REST_MS)
        this.#losses.set(deploymentId, {count, restsUntil: performance.now() + restMs})
        this.#options.log.warn(
          {err: error, client, in_a_row: count, rest_ms: restMs},
          'a sync worker was lost',
        )
      }
      throw error
    }
  }

  /** Gives every run that can begin a worker. */
  #dispatch(): void {
    clearTimeout(this.#alarm)
    while (!this.#closed.signal.aborted) {
      const ready = this.#waiting.filter(({order}) => !this.#leaving.has(order.deploymentId))
      const workers = [...this.#workers]
      const now = performance.now()
      const next = assign(
        ready.map(({order: {deploymentId}}) => ({
          deployment: deploymentId,
          notBefore: this.#losses.get(deploymentId)?.restsUntil ?? 0,
        })),
        workers.map(worker => this.#viewOf(worker)),
        this.#options.most,
        now,
      )
      if (next.do === 'wait') {
        if (next.until < Infinity)
          this.#alarm = setTimeout(() => {
            this.#dispatch()
          }, next.until - now)
        return
      }
      const waiting = ready[next.waiting] as Waiting
      if (next.do === 'move') void this.#letGo(waiting.order.deploymentId, workers[next.from] as Worker)
      else this.#begin(waiting, next.worker === 'new' ? undefined : workers[next.worker])
    }
  }

  #begin(waiting: Waiting, free: Worker | undefined): void {
    const {order} = waiting
    this.#waiting.splice(this.#waiting.indexOf(waiting), 1)
    let worker: Worker
    try {
      worker = free ?? this.#start()
    } catch (cause) {
      // The system has no room for one more process.
      const how = `did not start: ${cause instanceof Error ? cause.message : String(cause)}`
      waiting.worker.reject(new WorkerLostError(order.clientName, how, {cause}))
      return
    }
    this.#held.get(worker)?.add(order.deploymentId)
    this.#inHand.set(worker, {order, since: performance.now()})
    waiting.worker.resolve(worker)
  }

  /**
   * Takes a deployment from its worker. Runs of it wait until that has answered: one that began before would open it
   * again, and what is noted then would be wrong for good.
   */
  #letGo(deploymentId: string, holder: Worker): Promise<void> {
    const left = holder.release(deploymentId).then(() => {
      this.#held.get(holder)?.delete(deploymentId)
      this.#leaving.delete(deploymentId)
      this.#dispatch()
    })
    this.#leaving.set(deploymentId, left)
    return left
  }

  #start(): Worker {
    const worker = new Worker({
      ...this.#options,
      onEnd: (ended, how) => {
        const deployments = this.#held.get(ended)?.size
        this.#workers.delete(ended)
        this.#held.delete(ended)
        this.#pools.delete(ended)
        this.#countConnections()
        // Else when its run has been told as failed, and must rest.
        if (this.#inHand.has(ended)) return
        if (!this.#closed.signal.aborted)
          this.#options.log.warn({pid: ended.pid, deployments}, `an idle sync worker ${how}`)
        this.#dispatch()
      },
      onDatabase: (from, statements, pool) => {
        for (const statement of statements) this.#options.observer?.onStatement(statement)
        this.#pools.set(from, pool)
        this.#countConnections()
      },
    })
    this.#workers.add(worker)
    this.#held.set(worker, new Set())
    return worker
  }

  #countConnections(): void {
    const pools = [...this.#pools.values()]
    const sum = (of: keyof PoolSeen) => pools.reduce((total, pool) => total + pool[of], 0)
    this.#options.observer?.onPool({open: sum('open'), available: sum('available')})
  }

  #viewOf(worker: Worker): WorkerView {
    const inHand = this.#inHand.get(worker)
    return {
      holds: this.#held.get(worker) ?? new Set(),
      inHand: inHand && {deployment: inHand.order.deploymentId, since: inHand.since},
    }
  }
}

type Waiting = {
  readonly order: AnyOrder
  readonly since: number
  readonly worker: PromiseWithResolvers<Worker>
}
