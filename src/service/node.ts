import {randomUUID} from 'node:crypto'
import {setTimeout as sleep} from 'node:timers/promises'
import {isLoginRefused, pauseAfter} from '../cluster/backoff.ts'
import {runElection, type ClusterView, type ElectionPorts} from '../cluster/election.ts'
import type {Lease} from '../cluster/lease.ts'
import type {Config} from '../config/config.ts'
import {SyncError, UsageError} from '../core/errors.ts'
import {together} from '../core/together.ts'
import type {Endpoint} from '../net/endpoint.ts'
import {applicationName} from '../postgres/application-name.ts'
import {connect} from '../postgres/connect.ts'
import type {Connection, Pool} from '../postgres/sql.ts'
import type {Log} from '../telemetry/log.ts'
import {observePool, type Metrics} from '../telemetry/metrics.ts'
import {startApi} from './http.ts'
import {runAlerts} from './leader-alerts.ts'
import {leadJobs} from './leader-jobs.ts'
import {watchLeader} from './leader-watch.ts'
import {hasEnded, lockNode} from './node-lock.ts'
import {Notices} from './notices.ts'
import {locateTarget, requireOwnHost, WrongClusterError} from './target.ts'
import {endOlderWorkers} from './worker-files.ts'

/** What a node writes to. */
export type NodeTelemetry = {readonly log: Log; readonly metrics: Metrics; readonly version: string}

/** One for the election; a second one shows whether the first is a session; others are on their way out. */
const SESSION_CONNECTIONS = 4
/** Of each node, for what its API and its watch over the leader read. */
const API_CONNECTIONS = 3
/** Of the leader, for jobs, schedule and alerts. */
const LEADER_CONNECTIONS = 3
/** Of each process that syncs. */
const WORKER_CONNECTIONS = 3
const ANSWER_WITHIN_MS = 10_000

/** The most connections to Postgres that a leading node has open. */
function mostConnections({maxSyncWorkers}: Pick<Config, 'maxSyncWorkers'>): number {
  return 1 + API_CONNECTIONS + LEADER_CONNECTIONS + maxSyncWorkers * WORKER_CONNECTIONS
}

/**
 * Runs one node until `signal` aborts. The only place where its parts meet.
 *
 * It lives through whatever happens to Postgres; what only a person can correct it says in words, and waits.
 *
 * @throws {UsageError} and {WrongClusterError} for settings that can never do; {NodeRunsError} when this node runs already.
 */
export async function runNode(
  config: Config,
  {log: baseLog, metrics, version}: NodeTelemetry,
  signal: AbortSignal,
): Promise<void> {
  await using resources = new AsyncDisposableStack()
  const name = applicationName(`${config.clusterName}-${config.role}`)
  const place = resources.use(await locateTarget(config, {applicationName: name}, signal))
  const clusterName = await clusterOf(config, place.endpoint, {log: baseLog, signal})
  if (clusterName === undefined) return
  const nodeId = `${clusterName}-${config.role}`
  const log = baseLog.child({node: nodeId})
  const instance = randomUUID()
  resources.use(lockNode(config.stateDir, nodeId, instance))
  const node: Node = {
    config: {...config, clusterName, isClusterNamed: true},
    endpoint: place.endpoint,
    nodeId,
    log,
    metrics,
    notices: new Notices(),
  }
  metrics.buildInfo.set({version, node_version: process.versions.node}, 1)

  const sessions = resources.use(
    connect(place.endpoint, {
      max: SESSION_CONNECTIONS,
      applicationName: applicationName(nodeId),
      observer: observePool(metrics, 'session'),
    }),
  )
  let view: ClusterView | undefined
  const isAsked = Promise.withResolvers<undefined>()
  const pool = gated(
    resources.use(
      connect(place.endpoint, {
        max: API_CONNECTIONS,
        applicationName: applicationName(nodeId, 'api'),
        answerWithinMs: ANSWER_WITHIN_MS,
        observer: observePool(metrics, 'api'),
      }),
    ),
    // What the election has met is the news: while the server must not be asked, nobody of this process asks it.
    isAsked.promise,
    () => (view?.isConnected === false && isLoginRefused(view.error) ? view.error : undefined),
  )
  const {role, apiHost} = config
  const startedAt = performance.now()
  const isLeader = () => view?.leads === true
  const about = {nodeId, role, clusterName, version, startedAt, isLeader}
  const api = resources.use(
    await startApi({config: node.config, pool, node: about, notices: node.notices, log, metrics}),
  )
  const connections = {standby: 1 + API_CONNECTIONS, leader: mostConnections(config)}
  log.info(
    {version, cluster: clusterName, database: place.endpoint.display, api: api.url, connections},
    'the node has started',
  )
  const noteLeader = viewer(log)
  const election = {
    nodeId,
    clusterName,
    role,
    version,
    address: `${apiHost}:${api.port}`,
    instance,
    durationMs: config.leaseDurationMs,
    renewEveryMs: config.heartbeatIntervalMs,
    log,
    metrics,
  }
  const ports: ElectionPorts = {
    connect: () => connectSession(sessions, node.config),
    lead: lease => lead(node, lease),
    onNotice: what => {
      node.notices.emit(what)
    },
    onView: seen => {
      view = seen
      isAsked.resolve(undefined)
      noteLeader(seen)
    },
    isGone: (otherId, otherInstance) => hasEnded(config.stateDir, otherId, otherInstance),
    isFatal,
  }
  await together(
    signal,
    async signal => {
      try {
        await runElection(election, ports, signal)
      } finally {
        // However it ended: nobody must wait for its news for ever.
        isAsked.resolve(undefined)
      }
    },
    signal => watchLeader({pool, config: node.config, nodeId, log, metrics}, signal),
  )
  log.info({}, 'the node has stopped')
}

type Node = {
  readonly config: Config
  readonly endpoint: Endpoint
  readonly nodeId: string
  readonly log: Log
  readonly metrics: Metrics
  readonly notices: Notices
}

function isFatal(error: unknown): boolean {
  return error instanceof UsageError || error instanceof WrongClusterError
}

/** @returns `pool`, which asks the server nothing before `isOpen` or while `refusal` gives a reason; that is thrown then. */
function gated(pool: Pool, isOpen: Promise<unknown>, refusal: () => unknown): Pool {
  const after = async <T>(work: () => Promise<T>): Promise<T> => {
    await isOpen
    const reason = refusal()
    if (reason instanceof Error) throw reason
    return await work()
  }
  return new Proxy(pool, {
    apply: (target, self, args: Parameters<Pool>): unknown => {
      const call = () => Reflect.apply(target, self, args) as unknown
      return typeof args[0] === 'string' ? call() : after(call as () => Promise<unknown>)
    },
    get: (target, name): unknown => {
      const value: unknown = Reflect.get(target, name)
      if (name !== 'begin' && name !== 'reserve') return value
      return (...args: unknown[]) => after(() => (value as (...args: unknown[]) => Promise<unknown>)(...args))
    },
  })
}

/** A connection for the election, of which we know that the database fits. */
async function connectSession(pool: Pool, config: Config): Promise<Connection> {
  const connection = await pool.reserve()
  try {
    await requireOwnHost(connection, config)
    return connection
  } catch (error) {
    void connection[Symbol.asyncDispose]()
    throw error
  }
}

/** The cluster that the settings name, else the one that the role is of: then we cannot begin before Postgres answers. */
async function clusterOf(
  config: Config,
  endpoint: Endpoint,
  {log, signal}: {readonly log: Log; readonly signal: AbortSignal},
): Promise<string | undefined> {
  if (config.isClusterNamed || config.databaseUrl === undefined) return config.clusterName
  for (let failures = 1; ; failures++) {
    try {
      await using pool = connect(endpoint, {max: 1, applicationName: 'owsync/node'})
      return await requireOwnHost(pool, config)
    } catch (error) {
      if (signal.aborted) return undefined
      if (!(error instanceof SyncError) || isFatal(error)) throw error
      const pauseMs = pauseAfter(error, failures)
      log.error(
        {err: error, next: error.next, failures, retry_ms: pauseMs},
        'Postgres does not say which cluster this is',
      )
      try {
        await sleep(pauseMs, undefined, {signal})
      } catch {
        return undefined
      }
    }
  }
}

/** Logs who leads when that changes. */
function viewer(log: Log): (view: ClusterView) => void {
  let known: string | undefined
  return ({leaderId, epoch, isConnected}) => {
    if (!isConnected || leaderId === known) return
    known = leaderId
    log.info({leader: leaderId, epoch}, leaderId === undefined ? 'nobody leads' : 'the leader is known')
  }
}

/** What the leader does, and only it: everything on connections that bear its epoch. */
async function lead({config, endpoint, log: nodeLog, metrics, notices}: Node, lease: Lease): Promise<void> {
  const log = nodeLog.child({epoch: lease.epoch})
  await endOlderWorkers(config.stateDir, config.clusterName, lease.epoch, log)
  await using pool = connect(endpoint, {
    max: LEADER_CONNECTIONS,
    applicationName: applicationName(lease.nodeId, lease.epoch),
    answerWithinMs: config.syncTimeoutMs + 10_000,
    observer: observePool(metrics, 'leader'),
  })
  // What waits for an answer of a network that is gone must not keep the term from ending.
  lease.signal.addEventListener('abort', () => void pool.end())
  const work = {pool, endpoint, config, lease, log, metrics, notices}
  await together(
    lease.signal,
    signal => leadJobs(work, signal),
    signal => runAlerts(work, signal),
  )
}
