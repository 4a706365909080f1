import {isIP} from 'node:net'
import {hostname} from 'node:os'
import type {Server} from 'node:https'
import {buildApi} from '../api/app.ts'
import type {GuessPace} from '../api/guesses.ts'
import type {ApiPorts} from '../api/ports.ts'
import {Tokens} from '../api/tokens.ts'
import type {Notice} from '../cluster/election.ts'
import type {Config} from '../config/config.ts'
import {SyncError, UsageError} from '../core/errors.ts'
import type {Pool} from '../postgres/sql.ts'
import {Documents} from '../state/documents.ts'
import type {Log} from '../telemetry/log.ts'
import type {Metrics} from '../telemetry/metrics.ts'
import {apiPorts, type ApiParts} from './api-ports.ts'
import {EventFeed} from './event-feed.ts'
import {HealthWatch, type NodeView} from './health-watch.ts'
import {Sizes} from './sizes.ts'
import {followTls, readTls, type Tls} from './tls-files.ts'
import {tokensFile} from './token-file.ts'

/** What the API of one node is made of. */
export type ApiDeps = {
  readonly config: ApiConfig
  /** For what it reads and writes: a few connections, of any node. */
  readonly pool: Pool
  readonly node: NodeView
  /** Where it hears that there may be something to look at. */
  readonly notices: {on(listener: (what: Notice) => void): Disposable}
  readonly log: Log
  readonly metrics: Metrics
  /** How often event streams say that they are alive. */
  readonly keepAliveMs?: number
  /** How whoever tries tokens is slowed. */
  readonly guessPace?: GuessPace
}

export type ApiConfig = Pick<
  Config,
  | 'apiHost'
  | 'apiPort'
  | 'apiTokensFile'
  | 'apiTlsCertFile'
  | 'apiTlsKeyFile'
  | 'apiLocalNetworks'
  | 'enableMetrics'
  | 'cacheTtlMs'
  | 'leaseDurationMs'
  | 'heartbeatIntervalMs'
  | 'defaultSyncIntervalMs'
  | 'syncQueueSize'
  | 'conflictResolutionConfig'
  | 'stateDir'
>

/** An API that listens. Disposing of it ends its connections and whatever it follows. */
export type RunningApi = AsyncDisposable & {
  readonly url: string
  readonly port: number
  /** The host's control documents, through the cache that this API uses. */
  readonly documents: Documents
}

/** The API cannot listen where it was told to. */
export class ApiAddressError extends SyncError {
  override readonly name = 'ApiAddressError'
  readonly code = 'SYNC_API_ADDRESS'
  readonly next =
    'See what listens there, for example with `ss -ltnp`, or set API_PORT and API_HOST otherwise.'

  constructor(host: string, port: number, cause: unknown) {
    const reason = cause instanceof Error && 'code' in cause ? String(cause.code) : String(cause)
    super(`the API cannot listen on ${host}, port ${port} (${reason})`, {cause})
  }
}

/** Loses a notice at most this long, if notices are lost. */
const MOST_POLL_MS = 2_500

/**
 * Serves the API of one node.
 *
 * @throws {UsageError} for an address that others reach, without what keeps them out; for TLS files that are none.
 * @throws {ApiAddressError} when something else listens there.
 */
export async function startApi(deps: ApiDeps): Promise<RunningApi> {
  const {config, pool, node, notices, log, metrics} = deps
  refuseOpenDoor(config)
  const tls = await readTls(config)
  await using resources = new AsyncDisposableStack()

  const documents = new Documents({
    sql: pool,
    ttlMs: config.cacheTtlMs,
    pollEveryMs: Math.min(config.heartbeatIntervalMs, MOST_POLL_MS),
    metrics,
    onFailure: err => {
      log.warn({err}, 'changes of control state cannot be read')
    },
    onRecovery: () => {
      log.info({}, 'changes of control state can be read again')
    },
  })
  const over = new AbortController()
  const following = documents.follow(over.signal)
  resources.defer(async () => {
    over.abort()
    await following
  })

  const feed = new EventFeed({sql: pool, log})
  const sizes = new Sizes(pool, log)
  resources.defer(async () => {
    await Promise.all([feed.ended(), sizes.settled()])
  })
  resources.use(
    notices.on(what => {
      if (what === 'cache') documents.look()
      else if (what === 'connected') documents.restart()
      feed.look()
    }),
  )

  const parts: ApiParts = {
    pool,
    node,
    documents,
    feed,
    sizes,
    health: new HealthWatch(pool, node, config.leaseDurationMs),
    metrics: config.enableMetrics ? metricsPort(metrics, node) : undefined,
    conflictConfig: config.conflictResolutionConfig,
    defaultIntervalSeconds: Math.max(10, Math.round(config.defaultSyncIntervalMs / 1_000)),
    mostWaiting: config.syncQueueSize,
  }
  const ports = apiPorts(parts)
  const ownNames = [hostname(), node.nodeId, node.role, config.apiHost]
  let hostNames = [...ownNames, ...(tls?.names ?? [])]
  const app = resources.adopt(
    await buildApi(ports, {
      tokens: new Tokens(tokensFile(config), log, deps.guessPace),
      localNetworks: config.apiLocalNetworks,
      hostNames: () => hostNames,
      version: node.version,
      log,
      metrics,
      tls,
      ...(deps.keepAliveMs !== undefined && {keepAliveMs: deps.keepAliveMs}),
    }),
    app => app.close(),
  )
  try {
    await app.listen({host: config.apiHost, port: config.apiPort})
  } catch (cause) {
    throw new ApiAddressError(config.apiHost, config.apiPort, cause)
  }
  if (tls) {
    const onChange = ({cert, key, names}: Tls) => {
      // Whoever is connected stays so; the next handshake has the new one.
      ;(app.server as unknown as Server).setSecureContext({cert, key})
      hostNames = [...ownNames, ...names]
    }
    const followingTls = followTls(config, {log, onChange}, over.signal)
    resources.defer(async () => {
      over.abort()
      await followingTls
    })
  }
  const address = app.server.address()
  const port = typeof address === 'object' && address ? address.port : config.apiPort
  const host = isIP(config.apiHost) === 6 ? `[${config.apiHost}]` : config.apiHost
  const url = `${tls ? 'https' : 'http'}://${host}:${port}`
  log.info({url}, 'the API listens')
  const kept = resources.move()
  return {url, port, documents, [Symbol.asyncDispose]: () => kept.disposeAsync()}
}

/** The settings refuse this already; a mistake here would open every client's data to a network. */
function refuseOpenDoor({apiHost, apiTokensFile, apiTlsCertFile, apiLocalNetworks}: ApiConfig): void {
  if (isLoopback(apiHost)) return
  if (apiTokensFile === undefined)
    throw new UsageError(`API_HOST ${apiHost} is not a loopback address`, 'Set API_TOKENS_FILE.')
  // Published on the host's loopback, from a container's network: then its gateway is named as local.
  const isPublished = apiLocalNetworks.some(network => !/^(127\.|::1\/)/.test(network))
  if (apiTlsCertFile === undefined && !isPublished)
    throw new UsageError(
      `API_HOST ${apiHost} is not a loopback address`,
      'Set API_TLS_CERT_FILE and API_TLS_KEY_FILE.',
    )
}

function isLoopback(host: string): boolean {
  return host === 'localhost' || host === '::1' || (isIP(host) === 4 && host.startsWith('127.'))
}

function metricsPort(metrics: Metrics, {nodeId, startedAt}: NodeView): ApiPorts['metrics'] {
  return {
    contentType: metrics.contentType,
    render: () => {
      metrics.uptime.set({node_id: nodeId}, (performance.now() - startedAt) / 1_000)
      return metrics.render()
    },
  }
}
