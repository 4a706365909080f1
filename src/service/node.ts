import {randomUUID} from 'node:crypto'
import {setTimeout as sleep} from 'node:timers/promises'
import {pauseAfter} from '../cluster/backoff.ts'
import {runElection, type ClusterView} from '../cluster/election.ts'
import type {Lease} from '../cluster/lease.ts'
import type {Config} from '../config/config.ts'
import {SyncError, UsageError} from '../core/errors.ts'
import type {Endpoint} from '../net/endpoint.ts'
import {connect} from '../postgres/connect.ts'
import type {Connection, Pool} from '../postgres/sql.ts'
import type {Log} from '../telemetry/log.ts'
import {observePool, type Metrics} from '../telemetry/metrics.ts'
import {hasEnded, lockNode} from './node-lock.ts'
import {Notices} from './notices.ts'
import {locateTarget, requireOwnHost, WrongClusterError} from './target.ts'
import {endOlderWorkers} from './worker-files.ts'
import {Workers, workersOptions} from './workers.ts'

/** What a node writes to. */
export type NodeTelemetry = {readonly log: Log; readonly metrics: Metrics; readonly version: string}

/** One for the election; a second one shows whether the first is a session; others are on their way out. */
const SESSION_CONNECTIONS = 4
const LEADER_CONNECTIONS = 3

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
  const applicationName = `owsync/${config.clusterName}-${config.role}`
  const place = resources.use(await locateTarget(config, {applicationName}, signal))
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
      applicationName: `owsync/${nodeId}`,
      observer: observePool(metrics, 'session'),
    }),
  )
  log.info({version, cluster: clusterName, database: place.endpoint.display}, 'the node has started')
  await runElection(
    {
      nodeId,
      clusterName,
      role: config.role,
      version,
      address: `${config.apiHost}:${config.apiPort}`,
      instance,
      durationMs: config.leaseDurationMs,
      renewEveryMs: config.heartbeatIntervalMs,
      log,
      metrics,
    },
    {
      connect: () => connectSession(sessions, node.config),
      lead: lease => lead(node, lease),
      onNotice: what => {
        node.notices.emit(what)
      },
      onView: viewer(log),
      isGone: (otherId, otherInstance) => hasEnded(config.stateDir, otherId, otherInstance),
      isFatal,
    },
    signal,
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
async function lead(node: Node, lease: Lease): Promise<void> {
  const {config, endpoint, log, metrics} = node
  await endOlderWorkers(config.stateDir, config.clusterName, lease.epoch, log)
  await using pool = connect(endpoint, {
    max: LEADER_CONNECTIONS,
    applicationName: `owsync/${lease.nodeId}/${lease.epoch}`,
    answerWithinMs: config.syncTimeoutMs + 10_000,
    observer: observePool(metrics, 'leader'),
  })
  // What waits for an answer of a network that is gone must not keep the term from ending.
  lease.signal.addEventListener('abort', () => void pool.end())
  await using workers = new Workers(
    workersOptions(config, endpoint, lease, log, observePool(metrics, 'workers')),
  )
  for (;;) {
    await syncAll(pool, workers, lease, log)
    try {
      await sleep(300, undefined, {signal: lease.signal})
    } catch {
      return
    }
  }
}

async function syncAll(pool: Pool, workers: Workers, {signal}: Lease, log: Log): Promise<void> {
  try {
    const due = await pool<{
      deploymentId: string
      clientName: string
      schemaName: string
      sqlitePath: string
    }>`
      select deployment_id as "deploymentId", client_name as "clientName", schema_name as "schemaName",
        sqlite_path as "sqlitePath"
      from sync_metadata.client_deployments
      where host_id = (select sync_metadata.my_host()) and sync_enabled and status = 'active' and sqlite_path is not null`
    await Promise.allSettled(
      due.map(place => workers.sync({...place, full: false, dryRun: false, accept: true}, signal)),
    )
  } catch (error) {
    if (!signal.aborted) log.warn({err: error}, 'the deployments cannot be synced')
  }
}
