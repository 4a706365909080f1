import assert from 'node:assert/strict'
import {mkdtemp, rm, writeFile} from 'node:fs/promises'
import {tmpdir} from 'node:os'
import {join} from 'node:path'
import type {GuessPace} from '../src/api/guesses.ts'
import {newToken} from '../src/api/tokens.ts'
import type {Notice} from '../src/cluster/election.ts'
import type {Pool} from '../src/postgres/sql.ts'
import {startApi, type ApiConfig, type RunningApi} from '../src/service/http.ts'
import {silentLog, type Log} from '../src/telemetry/log.ts'
import {createMetrics, type Metrics} from '../src/telemetry/metrics.ts'
import {networks} from '../src/config/kinds.ts'

/** An API of a node, which a test calls over HTTP, with tokens of both scopes. */
export type TestApi = RunningApi & {
  readonly folder: string
  readonly tokens: Readonly<Record<'read' | 'operate', string>>
  readonly metrics: Metrics
  /** Tells the API's parts of a notice, as the node's connection would. */
  notify(what: Notice): void
  /** Sends a request, with the operator's token unless told otherwise. */
  call(path: string, options?: CallOptions): Promise<Reply>
}

export type CallOptions = {
  readonly method?: string
  /** Sent as JSON. */
  readonly body?: unknown
  /** Sent as it is. */
  readonly text?: string
  /** `null`: without. */
  readonly token?: string | null
  readonly headers?: Readonly<Record<string, string>>
}

// Whatever a reply holds is looked at field by field.

export type Reply = {
  readonly status: number
  readonly headers: Headers
  readonly text: string
  /** JSON, which tests look at field by field. */
  // eslint-disable-next-line @typescript-eslint/no-explicit-any
  readonly body: any
}

export type TestApiOptions = {
  readonly pool: Pool
  readonly cluster: string
  readonly role?: 'node-a' | 'node-b'
  readonly config?: Partial<ApiConfig>
  readonly isLeader?: () => boolean
  readonly log?: Log
  readonly keepAliveMs?: number
  readonly guessPace?: GuessPace
}

/** Starts an API on a free port of loopback. */
export async function testApi({
  pool,
  cluster,
  role = 'node-a',
  config = {},
  isLeader = () => false,
  log = silentLog,
  keepAliveMs,
  guessPace,
}: TestApiOptions): Promise<TestApi> {
  await using resources = new AsyncDisposableStack()
  const folder = await mkdtemp(join(tmpdir(), 'owsync-api-'))
  resources.defer(() => rm(folder, {recursive: true, force: true}))
  const [reader, operator] = [newToken('reader', 'read'), newToken('operator', 'operate')]
  await writeFile(join(folder, 'api-tokens'), `${reader.line}\n${operator.line}\n`)
  const listeners = new Set<(what: Notice) => void>()
  const metrics = createMetrics()
  const api = resources.use(
    await startApi({
      config: {...defaults, stateDir: folder, ...config},
      pool,
      node: {
        nodeId: `${cluster}-${role}`,
        role,
        clusterName: cluster,
        version: '1.2.3',
        startedAt: performance.now(),
        isLeader,
      },
      notices: {
        on(listener) {
          listeners.add(listener)
          return {[Symbol.dispose]: () => void listeners.delete(listener)}
        },
      },
      log,
      metrics,
      ...(keepAliveMs !== undefined && {keepAliveMs}),
      ...(guessPace !== undefined && {guessPace}),
    }),
  )
  const kept = resources.move()
  return {
    ...api,
    folder,
    tokens: {read: reader.token, operate: operator.token},
    metrics,
    notify(what) {
      for (const listener of listeners) listener(what)
    },
    call: (path, options) => call(api.url + path, {token: operator.token, ...options}),
    [Symbol.asyncDispose]: () => kept.disposeAsync(),
  }
}

/** Fails unless it is a problem with that status and code, and leaks nothing of how it came about. */
export function isProblem({status, headers, text, body}: Reply, expected: number, code: string): void {
  const problem = (body ?? {}) as Readonly<Record<string, unknown>>
  assert.deepEqual([status, problem['code']], [expected, code], text)
  assert.equal(headers.get('content-type'), 'application/problem+json')
  for (const name of ['type', 'title', 'detail', 'next']) assert.match(String(problem[name]), /./, name)
  assert.equal(headers.get('x-request-id'), problem['request_id'])
  assert.doesNotMatch(text, /node_modules|\bat .*\.ts:|select |insert into/i)
}

const defaults: Omit<ApiConfig, 'stateDir'> = {
  conflictResolutionConfig: undefined,
  apiHost: '127.0.0.1',
  apiPort: 0,
  apiTokensFile: undefined,
  apiTlsCertFile: undefined,
  apiTlsKeyFile: undefined,
  apiLocalNetworks: networks('X', '', '127.0.0.0/8,::1').absent,
  enableMetrics: true,
  cacheTtlMs: 300_000,
  leaseDurationMs: 10_000,
  heartbeatIntervalMs: 2_500,
  defaultSyncIntervalMs: 300_000,
  syncQueueSize: 1_000,
}

async function call(url: string, {method, body, text, token, headers}: CallOptions): Promise<Reply> {
  const sent = text ?? (body === undefined ? undefined : JSON.stringify(body))
  const response = await fetch(url, {
    method: method ?? (sent === undefined ? 'GET' : 'POST'),
    headers: {
      ...(sent !== undefined && {'content-type': 'application/json'}),
      ...(token != null && {authorization: `Bearer ${token}`}),
      ...headers,
    },
    ...(sent !== undefined && {body: sent}),
    redirect: 'manual',
  })
  const answered = await response.text()
  const isJson = /json/.test(response.headers.get('content-type') ?? '')
  return {
    status: response.status,
    headers: response.headers,
    text: answered,
    body: isJson && answered !== '' ? (JSON.parse(answered) as unknown) : undefined,
  }
}
