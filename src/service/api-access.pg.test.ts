import assert from 'node:assert/strict'
import {rm, writeFile} from 'node:fs/promises'
import {request} from 'node:http'
import {connect} from 'node:net'
import {join} from 'node:path'
import {PassThrough} from 'node:stream'
import {afterAll, beforeAll, describe, test} from 'vitest'
import {isProblem, testApi, type TestApi} from '../../test/api.ts'
import {testDatabase, type TestDatabase} from '../../test/database.ts'
import {testClient, testHost, type TestHost} from '../../test/host.ts'
import {until} from '../../test/until.ts'
import {usualGuessPace} from '../api/guesses.ts'
import {createLog} from '../telemetry/log.ts'

// Who may call what: without a token, with one to read, with one to operate, from near and from afar, under our name and
// under another, from a page of another site.

let db: TestDatabase
let host: TestHost
let api: TestApi
/** Nothing is near to this one. */
let remote: TestApi
const log = new PassThrough()
let logged = ''
log.on('data', (chunk: Buffer) => (logged += chunk.toString()))

// More wrong tokens than a day brings.
const guessPace = {...usualGuessPace, free: Infinity}

beforeAll(async () => {
  db = await testDatabase()
  host = await testHost(db, 'host-a', 8)
  await testClient(host, 'acme')
  api = await testApi({
    pool: host,
    cluster: 'host-a',
    log: createLog({level: 'debug', format: 'json', stream: log}),
    guessPace,
  })
  remote = await testApi({
    pool: host,
    cluster: 'host-a',
    config: {apiLocalNetworks: ['192.0.2.0/24']},
    guessPace,
  })
})

afterAll(async () => {
  await api[Symbol.asyncDispose]()
  await remote[Symbol.asyncDispose]()
  await host.end()
  await db[Symbol.asyncDispose]()
})

const none = '00000000-0000-0000-0000-000000000000'
const open = [
  '/health',
  '/livez',
  '/readyz',
  '/leader',
  '/metrics',
  '/docs',
  '/docs/json',
  '/docs/static/swagger-ui.css',
]
const reads = [
  '/api/v1/cluster/status',
  '/api/v1/state/x',
  '/api/v1/state?key=x',
  '/api/v1/deployments',
  '/api/v1/deployments/acme',
  '/api/v1/deployments/acme/conflict-config',
  '/api/v1/jobs',
  `/api/v1/jobs/${none}`,
  '/api/v1/conflicts',
  `/api/v1/conflicts/${none}`,
]
const changes = [
  ['POST', '/api/v1/cluster/promote'],
  ['POST', '/api/v1/cluster/step-down'],
  ['PUT', '/api/v1/state/x'],
  ['PUT', '/api/v1/state'],
  ['POST', '/api/v1/deployments'],
  ['PATCH', '/api/v1/deployments/acme'],
  ['DELETE', '/api/v1/deployments/acme'],
  ['POST', '/api/v1/deployments/acme/verify'],
  ['POST', '/api/v1/deployments/acme/confirm'],
  ['PUT', '/api/v1/deployments/acme/conflict-config'],
  ['POST', '/api/v1/sync/trigger'],
  ['POST', '/api/v1/sync/trigger/acme'],
  ['POST', `/api/v1/jobs/${none}/cancel`],
  ['POST', `/api/v1/conflicts/${none}/resolve`],
  ['POST', `/api/v1/conflicts/${none}/undo`],
] as const

test('the lists below have every endpoint', async () => {
  const {paths} = (await api.call('/docs/json')).body as {paths: Record<string, Record<string, unknown>>}
  const known = [...open, ...reads, '/api/v1/events'].map(path => `get ${path}`)
  known.push(...changes.map(([method, path]) => `${method.toLowerCase()} ${path}`))
  const shape = (text: string) =>
    text
      .replace(/\?.*/, '')
      .replace(none, '{id}')
      .replace('/acme', '/{client}')
      .replace('/state/x', '/state/{key}')
  const tested = new Set(known.map(shape))
  for (const [path, methods] of Object.entries(paths))
    for (const method of Object.keys(methods)) assert.ok(tested.has(`${method} ${path}`), `${method} ${path}`)
})

describe.each(open)('%s', path => {
  test('is open to who is near, and to nobody else without a token', async () => {
    assert.ok([200, 503].includes((await api.call(path, {token: null})).status))
    const refused = await remote.call(path, {token: null})
    isProblem(refused, 401, 'SYNC_API_TOKEN')
    assert.match(refused.headers.get('www-authenticate')!, /^Bearer/)
    assert.ok([200, 503].includes((await remote.call(path, {token: remote.tokens.read})).status))
  })

  test('refuses a token that is not valid, also from near', async () => {
    isProblem(await api.call(path, {token: 'wrong'}), 401, 'SYNC_API_TOKEN')
  })
})

describe.each(reads)('GET %s', path => {
  test('needs a token of any scope', async () => {
    isProblem(await api.call(path, {token: null}), 401, 'SYNC_API_TOKEN')
    isProblem(await api.call(path, {token: remote.tokens.operate}), 401, 'SYNC_API_TOKEN')
    for (const token of [api.tokens.read, api.tokens.operate])
      assert.ok([200, 404].includes((await api.call(path, {token})).status))
  })
})

describe.each(changes)('%s %s', (method, path) => {
  // A body that would be taken nowhere: nothing happens, and whoever may call gets as far as that.
  const body = {nonsense: 1}

  test('needs a token to operate', async () => {
    const before = await host`select * from sync_metadata.audit_log`
    isProblem(await api.call(path, {method, body, token: null}), 401, 'SYNC_API_TOKEN')
    isProblem(await api.call(path, {method, body, token: 'x'}), 401, 'SYNC_API_TOKEN')
    isProblem(await api.call(path, {method, body, token: api.tokens.read}), 403, 'SYNC_API_SCOPE')
    assert.deepEqual(await host`select * from sync_metadata.audit_log`, before)
    const {status} = await api.call(path, {method, body})
    assert.ok(status !== 401 && status !== 403 && status < 500, String(status))
  })

  test('is refused from a page of another site, whatever token it has', async () => {
    for (const headers of [
      {origin: 'http://evil.example'},
      {origin: 'null'},
      {'sec-fetch-site': 'cross-site'},
    ])
      isProblem(await api.call(path, {method, body, headers}), 403, 'SYNC_API_ORIGIN')
  })
})

test('a body is not even read for somebody without a token', async () => {
  const text = 'x'.repeat(2_000_000)
  const reply = await api.call('/api/v1/state/x', {method: 'PUT', text, token: null}).catch(() => undefined)
  // The connection may end before the body has been sent.
  if (reply) isProblem(reply, 401, 'SYNC_API_TOKEN')
})

test('whoever calls us by another name is refused, by ours is not', async () => {
  const {port} = api
  const statusOf = (hostHeader: string, path = '/health') =>
    new Promise<number>((resolve, reject) => {
      const asked = request({port, host: '127.0.0.1', path, headers: {host: hostHeader}}, response => {
        response.resume()
        resolve(response.statusCode!)
      })
      asked.once('error', reject)
      asked.end()
    })
  for (const name of [
    'evil.example',
    `evil.example:${port}`,
    '127.0.0.1.evil.example',
    'localhost.evil',
    'a b',
  ])
    for (const path of ['/health', '/metrics', '/docs/json', '/api/v1/jobs', '/nowhere'])
      assert.equal(await statusOf(name, path), 403, `${name} ${path}`)
  for (const name of ['localhost', `127.0.0.1:${port}`, '[::1]', 'host-a-node-a', 'node-a:9443'])
    assert.equal(await statusOf(name), 200, name)
})

test('a request without Host, and what is no HTTP, are refused as problems', async () => {
  const answerTo = (text: string) =>
    new Promise<string>((resolve, reject) => {
      const socket = connect(api.port, '127.0.0.1')
      let answer = ''
      socket.on('data', chunk => (answer += chunk.toString()))
      socket.once('end', () => {
        resolve(answer)
      })
      socket.once('error', reject)
      socket.write(text)
    })
  assert.match(await answerTo('GET /health HTTP/1.1\r\n\r\n'), /^HTTP\/1\.1 400 /)
  for (const text of [
    '\0\0\0\0\r\n\r\n',
    'GET /health HTTP/9.9\r\n\r\n',
    `GET / HTTP/1.1\r\nx: ${'y'.repeat(100_000)}\r\n\r\n`,
  ]) {
    const answer = await answerTo(text)
    assert.match(answer, /^HTTP\/1\.1 4\d\d /)
    assert.match(answer, /"code":"SYNC_API_INVALID"/)
  }
  assert.equal((await api.call('/livez')).status, 200)
})

test('tokens that are added and taken away count at once, and no file lets nobody in', async () => {
  await using own = await testApi({pool: host, cluster: 'host-a'})
  const isIn = async () => (await own.call('/api/v1/jobs')).status === 200
  assert.equal(await isIn(), true)
  await writeFile(join(own.folder, 'api-tokens'), '')
  await until(async () => !(await isIn()))
  await rm(join(own.folder, 'api-tokens'))
  isProblem(await own.call('/api/v1/jobs'), 401, 'SYNC_API_TOKEN')
  assert.equal((await own.call('/livez', {token: null})).status, 200)
})

test('a change is logged with its request, its token’s name and no secret', async () => {
  const id = 'my-request.1'
  const reply = await api.call('/api/v1/state/logged', {
    method: 'PUT',
    body: {value: {password: 'hunter2'}},
    headers: {'x-request-id': id},
  })
  assert.equal(reply.headers.get('x-request-id'), id)
  await until(() => logged.includes(id))
  const lines = logged.split('\n').filter(line => line.includes(id))
  const {time, ms, ...facts} = JSON.parse(lines[0]!) as Record<string, unknown>
  assert.deepEqual([typeof time, typeof ms], ['string', 'number'])
  assert.deepEqual(facts, {
    level: 'info',
    request: id,
    method: 'PUT',
    route: '/api/v1/state/:key',
    status: 200,
    caller: 'operator',
    msg: 'request answered',
  })
  for (const secret of ['hunter2', api.tokens.operate, api.tokens.read]) assert.ok(!logged.includes(secret))
  const forged = await api.call('/livez', {headers: {'x-request-id': 'a "quoted" one'}})
  assert.match(forged.headers.get('x-request-id')!, /^[0-9a-f-]{36}$/)
})

test('every answer says that it is not to be kept, framed or guessed at', async () => {
  for (const path of ['/health', '/api/v1/jobs', '/nowhere', '/docs']) {
    const {headers} = await api.call(path)
    assert.equal(headers.get('x-content-type-options'), 'nosniff')
    assert.equal(headers.get('x-frame-options'), 'DENY')
    assert.equal(headers.get('access-control-allow-origin'), null)
  }
  assert.equal((await api.call('/api/v1/jobs')).headers.get('cache-control'), 'no-store')
})

test('requests are measured by route, and nothing that a stranger sends becomes a label', async () => {
  await api.call('/api/v1/deployments/acme')
  await api.call('/somewhere/strange')
  await api.call('/somewhere/strange', {method: 'PROPFIND'})
  const {text, headers} = await api.call('/metrics', {token: null})
  assert.match(headers.get('content-type')!, /^text\/plain; version=0\.0\.4/)
  assert.match(
    text,
    /http_request_duration_seconds_count\{method="GET",route="\/api\/v1\/deployments\/:client",status="200"\} [1-9]/,
  )
  assert.match(text, /route="none",status="404"/)
  assert.doesNotMatch(text, /strange|PROPFIND/)
  assert.match(text, /container_uptime_seconds\{node_id="host-a-node-a"\} \d/)
  await using without = await testApi({pool: host, cluster: 'host-a', config: {enableMetrics: false}})
  isProblem(await without.call('/metrics'), 404, 'SYNC_API_NOT_FOUND')
})
