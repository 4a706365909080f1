import type {Lease} from '../cluster/lease.ts'
import {parseEndpoint, withChanges} from '../net/endpoint.ts'
import {applicationName} from '../postgres/application-name.ts'
import {connect} from '../postgres/connect.ts'
import type {PoolSeen, StatementSeen} from '../postgres/observe.ts'
import type {Pool} from '../postgres/sql.ts'
import {restore} from '../restore/restore.ts'
import {findDeployment, UnknownClientError} from '../state/deployments.ts'
import {waitForDeployment} from '../sync/lock.ts'
import {forgetPages, Session, type Place, type SessionRun} from '../sync/session.ts'
import {verifyDeployment} from '../sync/verify.ts'
import type {Fields, Log} from '../telemetry/log.ts'
import {RunProgress} from './run-progress.ts'
import {registerWorker} from './worker-files.ts'
import {WorkerLease} from './worker-lease.ts'
import {
  errorOf,
  factsOf,
  ownInstant,
  type AnyOrder,
  type FromWorker,
  type Level,
  type Order,
  type OutcomeOf,
  type RestoreOrder,
  type ToWorker,
  type VerifyOrder,
  type WorkerSettings,
} from './worker-messages.ts'

// A sync worker: a process that holds the deployments it is given open, and runs one sync at a time for whoever started
// it. It owns their SQLite files: closing any descriptor of one drops all locks that its process has on it, so nobody
// else in this process, and nobody who has other things to do, may open them. Started by worker.ts.

/** What all sessions of a worker may keep in memory of the pages of their sources; their sidecars have it too. */
const PAGE_BYTES = 48 * 1024 * 1024
/** An idle session takes some hundred kilobytes and a handful of descriptors. */
const MOST_SESSIONS = 400
/** How long a run waits for another process of this host to let go of the deployment. */
const PATIENCE_MS = 3_000
const PROGRESS_EVERY_MS = 250
/** How long an orphan takes to end in good order. */
const LAST_MS = 2_000

class Worker {
  readonly #settings: WorkerSettings
  readonly #tell: (message: FromWorker) => void
  readonly #pool: Pool
  readonly #lease: WorkerLease
  readonly #file: Disposable
  readonly #log: Log
  /** Whoever ran last comes last. */
  readonly #sessions = new Map<string, Session>()
  #inHand: {readonly deploymentId: string; readonly stop: AbortController} | undefined
  #running: Promise<void> | undefined
  #progressAt = 0
  #toldAt = 0
  readonly #untold = new RunProgress()
  #statements: StatementSeen[] = []
  #connections: PoolSeen = {open: 0, available: 0}
  #toldConnections = this.#connections

  constructor(settings: WorkerSettings, tell: (message: FromWorker) => void) {
    this.#settings = settings
    this.#tell = tell
    this.#file = registerWorker(settings.stateDir, settings.nodeId, settings.epoch)
    this.#lease = new WorkerLease(settings.epoch, () => {
      // Who leads next must find the deployments free, also when the process that leads now is frozen.
      this.#closeIdle()
    })
    const endpoint = withChanges(parseEndpoint(settings.databaseUrl), {ssl: settings.ssl})
    this.#pool = connect(endpoint, {
      // A first load copies on two connections and builds indexes on a third.
      max: 3,
      applicationName: applicationName(settings.nodeId, settings.epoch),
      answerWithinMs: settings.answerWithinMs,
      onAnswer: () => {
        this.#progressAt = performance.now()
      },
      observer: {
        onStatement: statement => {
          this.#statements.push(statement)
        },
        onPool: pool => {
          this.#connections = pool
        },
      },
    })
    const at = (level: Level) => (fields: Fields, message: string) => {
      tell({type: 'log', level, fields, message})
    }
    this.#log = {
      fatal: at('fatal'),
      error: at('error'),
      warn: at('warn'),
      info: at('info'),
      debug: at('debug'),
      trace: at('trace'),
      child: () => this.#log,
    }
  }

  hear(message: Exclude<ToWorker, {type: 'begin'}>): void {
    switch (message.type) {
      case 'run': {
        const stop = new AbortController()
        this.#progressAt = performance.now()
        this.#untold.clear()
        this.#inHand = {deploymentId: message.order.deploymentId, stop}
        this.#running = this.#run(message.order, stop.signal)
        break
      }
      case 'beat':
        this.#lease.extend(ownInstant(message.leaseEndsAt))
        this.#tell({
          type: 'beat',
          stillMs: this.#inHand === undefined ? 0 : performance.now() - this.#progressAt,
        })
        this.#tellOfDatabase()
        break
      case 'stop':
        this.#inHand?.stop.abort(errorOf(message.reason))
        break
      case 'release':
        this.#close(message.deploymentId)
        this.#tell({type: 'released', deploymentId: message.deploymentId})
    }
  }

  /** @param leaseEndsAt see {@link ToWorker}. */
  begin(leaseEndsAt: bigint): void {
    this.#lease.extend(ownInstant(leaseEndsAt))
  }

  /** Ends what is in hand and gives everything back. */
  async end(): Promise<void> {
    this.#inHand?.stop.abort(new Error('the process that started this worker has gone'))
    await this.#running
    this.#closeIdle()
    this.#lease[Symbol.dispose]()
    await this.#pool.end()
    this.#file[Symbol.dispose]()
  }

  /** Does what is asked and tells how it ended. Never rejects. */
  async #run(order: AnyOrder, stop: AbortSignal): Promise<void> {
    const signal = AbortSignal.any([stop, this.#lease.signal])
    let told: FromWorker
    try {
      signal.throwIfAborted()
      told = {type: 'done', result: await this.#outcome(order, signal)}
    } catch (error) {
      told = {type: 'failed', error: factsOf(error)}
    }
    this.#inHand = undefined
    if (this.#lease.signal.aborted) this.#closeIdle()
    this.#economize()
    this.#tellProgress()
    this.#tellOfDatabase()
    this.#tell(told)
  }

  #tellOfDatabase(): void {
    const statements = this.#statements
    if (statements.length === 0 && this.#connections === this.#toldConnections) return
    this.#statements = []
    this.#toldConnections = this.#connections
    this.#tell({type: 'database', statements, pool: this.#connections})
  }

  async #outcome(order: AnyOrder, signal: AbortSignal): Promise<OutcomeOf<AnyOrder>> {
    switch (order.task) {
      case 'verify':
        return await this.#verify(order, signal)
      case 'restore':
        return await this.#restore(order, signal)
      default:
        return await this.#sync(order, signal)
    }
  }

  async #sync(order: Order, signal: AbortSignal): Promise<OutcomeOf<Order>> {
    const {deploymentId, clientName, schemaName, ...wanted} = order
    const run: SessionRun = {
      ...wanted,
      pool: this.#pool,
      lease: this.#leaseUnder(signal),
      limits: this.#settings.limits,
      conflictConfig: this.#settings.conflictConfig,
      log: this.#log,
      onProgress: this.#onProgress,
      onFailedLock: lock => {
        this.#tell({type: 'lock', lock})
      },
    }
    const session = await this.#session({deploymentId, clientName, schemaName}, signal)
    return await session.run(run, signal)
  }

  /** Looking disturbs no session; what a repair changes, the session must not believe to know. */
  async #verify(order: VerifyOrder, signal: AbortSignal): Promise<OutcomeOf<VerifyOrder>> {
    const {stateDir, limits} = this.#settings
    const {clientName, schemaName, deploymentId, sqlitePath, quick, jobId} = order
    const deployment = await findDeployment(this.#pool, schemaName)
    if (deployment === undefined) throw new UnknownClientError(clientName)
    const run = {
      pool: this.#pool,
      deployment,
      sqlitePath,
      stateDir,
      lockBudgetMs: limits.lockBudgetMs,
      quick,
      ...(jobId === undefined ? {} : {jobId}),
      onProgress: this.#onProgress,
    }
    if (!order.repair) return await verifyDeployment(run, signal)
    this.#close(deploymentId)
    using _lock = await waitForDeployment(stateDir, deployment, PATIENCE_MS, signal)
    const {batchRows, statementTimeoutMs} = limits
    const repair = {lease: this.#leaseUnder(signal), batchRows, statementTimeoutMs}
    return await verifyDeployment({...run, repair}, signal)
  }

  async #restore(order: RestoreOrder, signal: AbortSignal): Promise<OutcomeOf<RestoreOrder>> {
    const {clientName, schemaName, to, force, asOf} = order
    return await restore(
      {
        pool: this.#pool,
        clientName,
        schemaName,
        to,
        force,
        ...(asOf === undefined ? {} : {asOf}),
        onProgress: this.#onProgress,
      },
      signal,
    )
  }

  #leaseUnder(signal: AbortSignal): Lease {
    const {nodeId, epoch} = this.#settings
    return {nodeId, epoch, signal, endsAt: () => this.#lease.endsAt}
  }

  readonly #onProgress = (table: string, rows: number): void => {
    this.#progress(table, rows)
  }

  #progress(table: string, rows: number): void {
    this.#progressAt = performance.now()
    this.#untold.see(table, rows)
    if (this.#progressAt - this.#toldAt >= PROGRESS_EVERY_MS) this.#tellProgress()
  }

  #tellProgress(): void {
    this.#toldAt = performance.now()
    for (const [table, rows] of this.#untold.take()) this.#tell({type: 'progress', table, rows})
  }

  async #session(place: Omit<Place, 'stateDir'>, signal: AbortSignal): Promise<Session> {
    const {stateDir} = this.#settings
    const open = this.#sessions.get(place.deploymentId)
    const before = [...this.#sessions.values()].at(-1)
    if (before !== open) before?.shrink()
    const session =
      open ?? new Session({stateDir, ...place}, await waitForDeployment(stateDir, place, PATIENCE_MS, signal))
    this.#sessions.delete(place.deploymentId)
    this.#sessions.set(place.deploymentId, session)
    return session
  }

  /** Forgets what only makes things faster, from the session on that has not run for longest. */
  #economize(): void {
    const tooMany = Math.max(0, this.#sessions.size - MOST_SESSIONS)
    for (const deploymentId of [...this.#sessions.keys()].slice(0, tooMany)) this.#close(deploymentId)
    forgetPages(this.#sessions.values(), PAGE_BYTES)
  }

  #closeIdle(): void {
    for (const deploymentId of this.#sessions.keys())
      if (deploymentId !== this.#inHand?.deploymentId) this.#close(deploymentId)
  }

  #close(deploymentId: string): void {
    this.#sessions.get(deploymentId)?.[Symbol.dispose]()
    this.#sessions.delete(deploymentId)
  }
}

function tell(message: FromWorker): void {
  // Whoever started us may be gone: 'disconnect' says so.
  if (process.connected) process.send?.(message, undefined, undefined, () => undefined)
}

if (import.meta.main) {
  // Ctrl-C reaches all processes of a terminal, and systemd signals all of a unit: ours is ended by who started it.
  for (const name of ['SIGINT', 'SIGTERM', 'SIGHUP'] as const) process.on(name, () => undefined)
  let worker: Worker | undefined
  process.on('message', (message: ToWorker) => {
    if (message.type !== 'begin') worker?.hear(message)
    else {
      worker = new Worker(message.settings, tell)
      worker.begin(message.leaseEndsAt)
    }
  })
  process.once('disconnect', () => {
    setTimeout(() => process.kill(process.pid, 'SIGKILL'), LAST_MS).unref()
    void worker?.end()
  })
  tell({type: 'ready'})
}
