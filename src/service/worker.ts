import {fork, type ChildProcess} from 'node:child_process'
import {readFileSync} from 'node:fs'
import {setTimeout as sleep} from 'node:timers/promises'
import {fileURLToPath} from 'node:url'
import type {Lease} from '../cluster/lease.ts'
import {SyncError} from '../core/errors.ts'
import type {PoolSeen, StatementSeen} from '../postgres/observe.ts'
import {exitOf} from '../postgres/server.ts'
import type {SyncResult} from '../sync/sync.ts'
import type {Log} from '../telemetry/log.ts'
import {
  errorOf,
  factsOf,
  sharedInstant,
  type AnyOrder,
  type FromWorker,
  type OutcomeOf,
  type ToWorker,
  type WorkerSettings,
} from './worker-messages.ts'

/** The process that had a run in hand is gone; nothing of the run is left but what Postgres has committed. */
export class WorkerLostError extends SyncError {
  override readonly name = 'WorkerLostError'
  readonly code = 'SYNC_WORKER_LOST'
  override readonly retryable = true
  readonly next =
    'Nothing: another worker takes over. When it comes again for one client, look for an out-of-memory kill (`dmesg`).'

  constructor(clientName: string, how: string, options?: ErrorOptions) {
    super(`the worker process that synced ${clientName} ${how}`, options)
  }
}

/** A run got nowhere for `SYNC_TIMEOUT` and was stopped. */
export class StalledError extends SyncError {
  override readonly name = 'StalledError'
  readonly code = 'SYNC_STALLED'
  override readonly retryable = true
  readonly next =
    'Look at the load of Postgres and of the disk; raise SYNC_TIMEOUT when they are only slow. It is tried again.'

  constructor(clientName: string, seconds: number) {
    super(`the sync of ${clientName} made no progress for ${Math.round(seconds)} s`)
  }
}

export type Progress = (table: string, rows: number) => void

export type WorkerOptions = {
  readonly settings: WorkerSettings
  readonly lease: Lease
  /** A run without progress for longer is stopped. */
  readonly stallMs: number
  readonly log: Log
  /** Called once, before a run that it had in hand is told as failed, with how it ended. */
  readonly onEnd: (worker: Worker, how: string) => void
  /** What it has done in Postgres since the last call. What it did in its last half second is lost when it is killed. */
  readonly onDatabase?: (worker: Worker, statements: readonly StatementSeen[], pool: PoolSeen) => void
  /** What a sync that has failed tells of its locks. */
  readonly onFailedLock?: ((client: string, lock: SyncResult['lock']) => void) | undefined
  /** After so many beats without an answer it is taken for frozen, and killed. */
  readonly mostUnanswered?: number
}

/** The lease's news reach a worker this often: several times within the shortest lease. */
const BEAT_MS = 500
/** Half a minute without an answer and without work. What it does at one go, such as SQLite's check of a large file, may take longer. */
const MOST_UNANSWERED = 60
/** A worker's lease ends this much before ours. */
const MARGIN_MS = 100
/** How long a worker may take to let go of a run, or to end. */
const STOP_WITHIN_MS = 3_000

// The program of worker-main.ts: its source in a checkout, compiled in a package.
const extension = import.meta.url.endsWith('.ts') ? '.ts' : '.js'
const program = fileURLToPath(new URL(`./worker-main${extension}`, import.meta.url))

const ignore = () => undefined

/** One sync worker, as the process sees it that has started it: `worker-main.ts` in a process of its own. */
export class Worker implements AsyncDisposable {
  readonly #child: ChildProcess
  readonly #options: WorkerOptions
  readonly #ended: Promise<void>
  readonly #over = new AbortController()
  readonly #beating: Promise<void>
  /** Beats that it owes an answer. Counted, not timed: a pause of ours must not look like one of its own. */
  #unanswered = 0
  /** Of those, the ones since it was last seen to work. */
  #still = 0
  #cpuTicks: number | undefined
  /** Until it listens nothing is sent: what a message says of the lease would be old by then. */
  #isReady = false
  #run: Run | undefined
  /** Why we have killed it. */
  #why: string | undefined
  /** Who waits for deployments to be let go of. It answers in the order in which it was asked. */
  readonly #releasing: PromiseWithResolvers<undefined>[] = []

  constructor(options: WorkerOptions) {
    this.#options = options
    this.#child = fork(program, {
      serialization: 'advanced',
      stdio: ['ignore', 'ignore', 'inherit', 'ipc'],
      execArgv: ['--disable-warning=ExperimentalWarning', '--max-semi-space-size=8'],
      // Long texts come and go by the thousand: without these, freed memory stays with the process.
      env: {
        MALLOC_ARENA_MAX: '2',
        MALLOC_MMAP_THRESHOLD_: '65536',
        MALLOC_TRIM_THRESHOLD_: '131072',
        ...process.env,
      },
    })
    // What cannot be sent shows in the end of the process.
    this.#child.on('error', ignore)
    this.#child.on('message', (message: FromWorker) => {
      this.#hear(message)
    })
    this.#ended = exitOf(this.#child).then(how => {
      this.#end(how)
    })
    this.#beating = this.#beat()
  }

  get pid(): number | undefined {
    return this.#child.pid
  }

  /**
   * One run; the worker must have none in hand.
   *
   * @throws what the worker says; {@link WorkerLostError} when it ends; {@link StalledError}; or the signal's reason.
   */
  async run<O extends AnyOrder>(order: O, onProgress: Progress, signal: AbortSignal): Promise<OutcomeOf<O>> {
    if (this.#over.signal.aborted) throw new WorkerLostError(order.clientName, 'ended before it began')
    const run: Run = {order, onProgress, outcome: Promise.withResolvers(), stopping: undefined}
    const stop = () => {
      this.#stop(run, signal.reason)
    }
    this.#run = run
    if (this.#isReady) this.#send({type: 'run', order})
    signal.addEventListener('abort', stop)
    if (signal.aborted) stop()
    try {
      // Of the run in hand, and that is this one.
      return (await run.outcome.promise) as OutcomeOf<O>
    } finally {
      signal.removeEventListener('abort', stop)
      clearTimeout(run.stopping?.timer)
    }
  }

  /** Lets go of a deployment, so that another process can have it. Resolves when it has, or when the worker has ended. */
  async release(deploymentId: string): Promise<void> {
    const released = Promise.withResolvers<undefined>()
    // One that does not listen yet has nothing open.
    if (this.#over.signal.aborted || !this.#isReady) return
    this.#releasing.push(released)
    this.#send({type: 'release', deploymentId})
    await released.promise
  }

  /** Ends it: in good order when it can, else by force. */
  async [Symbol.asyncDispose](): Promise<void> {
    if (this.#child.connected) this.#child.disconnect()
    const force = setTimeout(() => {
      this.#kill('was killed: it did not end when asked to')
    }, STOP_WITHIN_MS)
    await this.#ended
    clearTimeout(force)
    await this.#beating
  }

  #hear(message: FromWorker): void {
    this.#unanswered = 0
    this.#still = 0
    const run = this.#run
    switch (message.type) {
      case 'ready':
        this.#isReady = true
        this.#send({type: 'begin', settings: this.#options.settings, leaseEndsAt: this.#leaseEndsAt()})
        if (run !== undefined) this.#send({type: 'run', order: run.order})
        if (run?.stopping !== undefined) this.#send({type: 'stop', reason: factsOf(run.stopping.reason)})
        break
      case 'beat': {
        const {stallMs} = this.#options
        if (run !== undefined && message.stillMs > stallMs)
          this.#stop(run, new StalledError(run.order.clientName, stallMs / 1_000))
        break
      }
      case 'database':
        this.#options.onDatabase?.(this, message.statements, message.pool)
        break
      case 'progress':
        run?.onProgress(message.table, message.rows)
        break
      case 'lock':
        if (run !== undefined) this.#options.onFailedLock?.(run.order.clientName, message.lock)
        break
      case 'done':
        this.#run = undefined
        run?.outcome.resolve(message.result)
        break
      case 'failed':
        this.#run = undefined
        // What a run that was stopped says is of no interest: it was in the middle of something.
        run?.outcome.reject(run.stopping === undefined ? errorOf(message.error) : run.stopping.reason)
        break
      case 'released':
        this.#releasing.shift()?.resolve(undefined)
        break
      case 'log':
        this.#options.log[message.level](message.fields, message.message)
    }
  }

  #end(how: string): void {
    this.#over.abort()
    const why = this.#why ?? how
    this.#options.onEnd(this, why)
    for (const released of this.#releasing) released.resolve(undefined)
    const run = this.#run
    this.#run = undefined
    run?.outcome.reject(
      run.stopping === undefined ? new WorkerLostError(run.order.clientName, why) : run.stopping.reason,
    )
  }

  #stop(run: Run, reason: unknown): void {
    if (run.stopping !== undefined) return
    if (this.#isReady) this.#send({type: 'stop', reason: factsOf(reason)})
    const timer = setTimeout(() => {
      this.#kill('was killed: it did not stop when asked to')
    }, STOP_WITHIN_MS)
    run.stopping = {reason, timer}
  }

  async #beat(): Promise<void> {
    for (;;) {
      await sleep(BEAT_MS, undefined, {signal: this.#over.signal}).catch(ignore)
      if (this.#over.signal.aborted) return
      const most = (this.#isReady ? this.#options.mostUnanswered : undefined) ?? MOST_UNANSWERED
      this.#unanswered++
      this.#still = this.#hasWorked() ? 0 : this.#still + 1
      if (this.#still > most)
        this.#kill(`was killed: it gave no sign of life for ${(most * BEAT_MS) / 1_000} s`)
      // It does something, and nothing comes of it.
      else if (this.#unanswered * BEAT_MS > this.#options.stallMs + most * BEAT_MS)
        this.#kill(`was killed: it did not answer for ${(this.#unanswered * BEAT_MS) / 1_000} s`)
      if (this.#isReady) this.#send({type: 'beat', leaseEndsAt: this.#leaseEndsAt()})
    }
  }

  /** Whether one that does not answer has had the processor since the last beat: a frozen one has not. */
  #hasWorked(): boolean {
    if (this.#unanswered < 2 || this.#child.pid === undefined) return false
    const before = this.#cpuTicks
    this.#cpuTicks = cpuTicksOf(this.#child.pid)
    return before !== undefined && this.#cpuTicks !== undefined && this.#cpuTicks > before
  }

  /** Of a lease that has been taken from us, nothing is left, whatever its time was. */
  #leaseEndsAt(): bigint {
    const {lease} = this.#options
    return sharedInstant(lease.signal.aborted ? performance.now() : lease.endsAt() - MARGIN_MS)
  }

  #kill(why: string): void {
    this.#why ??= why
    this.#child.kill('SIGKILL')
  }

  #send(message: ToWorker): void {
    if (this.#child.connected) this.#child.send(message, ignore)
  }
}

/** @returns how long a process has had the processor, in the kernel's ticks: proc(5); `undefined` where there is no /proc. */
function cpuTicksOf(pid: number): number | undefined {
  try {
    const stat = readFileSync(`/proc/${pid}/stat`, 'utf8')
    const [utime, stime] = stat
      .slice(stat.lastIndexOf(')') + 2)
      .split(' ')
      .slice(11, 13)
    return Number(utime) + Number(stime)
  } catch {
    return undefined
  }
}

type Run = {
  readonly order: AnyOrder
  readonly onProgress: Progress
  readonly outcome: PromiseWithResolvers<OutcomeOf<AnyOrder>>
  stopping: {readonly reason: unknown; readonly timer: NodeJS.Timeout} | undefined
}
