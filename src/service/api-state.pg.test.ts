// Answers are looked at field by field, whatever is in them.
/* eslint-disable @typescript-eslint/no-explicit-any, @typescript-eslint/no-unsafe-argument,
   @typescript-eslint/no-unsafe-assignment, @typescript-eslint/no-unsafe-call,
   @typescript-eslint/no-unsafe-member-access, @typescript-eslint/no-unsafe-return */
import assert from 'node:assert/strict'
import {afterAll, beforeAll, describe, test} from 'vitest'
import {isProblem, testApi, type TestApi} from '../../test/api.ts'
import {testDatabase, type TestDatabase} from '../../test/database.ts'
import {testClient, testHost, type TestHost} from '../../test/host.ts'
import {until} from '../../test/until.ts'

// Control documents, over HTTP, on a real Postgres; what may be in a body at all; and what the API says of itself.

let db: TestDatabase
let host: TestHost
let other: TestHost
let api: TestApi

beforeAll(async () => {
  db = await testDatabase()
  host = await testHost(db, 'host-a', 8)
  other = await testHost(db, 'host-b', 2)
  await testClient(other, 'theirs')
  api = await testApi({pool: host, cluster: 'host-a'})
})

afterAll(async () => {
  await api[Symbol.asyncDispose]()
  await host.end()
  await other.end()
  await db[Symbol.asyncDispose]()
})

const get = (path: string) => api.call(path)
const send = (method: string, path: string, body?: unknown) => api.call(path, {method, body})

async function audit(): Promise<{actor: string; action: string; client_name: string | null; details: any}[]> {
  return await host`select actor, action, client_name, details from sync_metadata.audit_log order by audit_id desc limit 5`
}

let count = 0
/** A client of its own for a test. */
async function client(settings: object = {}): Promise<{name: string; id: string}> {
  const name = `client-${++count}`
  return {name, id: await testClient(host, name, settings)}
}

describe('control documents', () => {
  test('are written and read under their key, with their version', async () => {
    const written = await send('PUT', '/api/v1/state/colour', {value: {is: 'grün'}})
    assert.equal(written.status, 200)
    const {updated_at, ...others} = written.body
    assert.deepEqual(others, {success: true, key: 'colour', value: {is: 'grün'}, version: 1, cached: false})
    assert.ok(Math.abs(Date.parse(updated_at) - Date.now()) < 3_600_000)
    const read = await get('/api/v1/state/colour')
    assert.deepEqual(read.body, {key: 'colour', value: {is: 'grün'}, version: 1, cached: false, updated_at})
    assert.equal(read.headers.get('etag'), '"1"')
    await until(async () => (await get('/api/v1/state/colour')).body.cached === true)
    const again = (await get('/api/v1/state?key=colour')).body
    assert.deepEqual({...again, cached: false}, read.body)
    assert.deepEqual((await audit())[0], {
      actor: 'api:operator',
      action: 'state.written',
      client_name: null,
      details: {key: 'colour', version: 1, node: 'host-a-node-a'},
    })
  })

  for (const [what, body, value] of [
    ['{value}', {value: 1}, 1],
    ['{key, value}', {key: 'shape', value: [1]}, [1]],
    ['{value: null}', {value: null}, null],
    ['another object', {colour: 'red'}, {colour: 'red'}],
    ['an object with value and more', {value: 1, unit: 's'}, {value: 1, unit: 's'}],
    ['an object with a key and no value', {key: 'shape'}, {key: 'shape'}],
    ['a list', [1, 2], [1, 2]],
    ['a number', 7, 7],
    ['a text', 'seven', 'seven'],
    ['an empty object', {}, {}],
  ] as const)
    test(`a body may be ${what}`, async () => {
      const written = await send('PUT', '/api/v1/state/shape', body)
      assert.equal(written.status, 200, written.text)
      assert.deepEqual(written.body.value, value)
      assert.deepEqual((await get('/api/v1/state/shape')).body.value, value)
    })

  test('may be written with the key in the body', async () => {
    assert.deepEqual((await send('PUT', '/api/v1/state', {key: 'in body', value: 1})).body.value, 1)
    assert.equal((await get('/api/v1/state/in%20body')).body.value, 1)
    isProblem(await send('PUT', '/api/v1/state', {key: 'x'}), 400, 'SYNC_API_INVALID')
    isProblem(await send('PUT', '/api/v1/state', {value: 1}), 400, 'SYNC_API_INVALID')
    isProblem(await send('PUT', '/api/v1/state', {key: 'x', value: 1, more: 1}), 400, 'SYNC_API_INVALID')
    isProblem(await send('PUT', '/api/v1/state/x', {key: 'y', value: 1}), 400, 'SYNC_API_INVALID')
    isProblem(await send('PUT', '/api/v1/state/x'), 400, 'SYNC_API_INVALID')
  })

  test('may have any text as key', async () => {
    for (const key of [
      'a/b',
      'ключ 🔑',
      '..',
      'a?b#c',
      '%41',
      '__proto__',
      'constructor',
      'x'.repeat(512),
      "'; --",
    ]) {
      const path = `/api/v1/state/${encodeURIComponent(key)}`
      // A client resolves dots in a path by itself, encoded or not.
      const written =
        key === '..'
          ? await send('PUT', '/api/v1/state', {key, value: key})
          : await send('PUT', path, {value: key})
      assert.equal(written.status, 200, written.text)
      const query = new URLSearchParams({key})
      assert.equal((await get(`/api/v1/state?${query.toString()}`)).body.value, key)
    }
  })

  test('have no key that is empty, too long or no text', async () => {
    for (const key of ['x'.repeat(513), 'é'.repeat(257), 'a\0b'])
      isProblem(await send('PUT', '/api/v1/state', {key, value: 1}), 400, 'SYNC_API_INVALID')
    isProblem(await get('/api/v1/state?key='), 400, 'SYNC_API_INVALID')
    isProblem(await get('/api/v1/state'), 400, 'SYNC_API_INVALID')
    isProblem(await get('/api/v1/state?key=a&key=b'), 400, 'SYNC_API_INVALID')
    isProblem(await get('/api/v1/state/%00'), 400, 'SYNC_API_INVALID')
    isProblem(await get('/api/v1/state/%ff'), 400, 'SYNC_API_INVALID')
    isProblem(await get('/api/v1/state/none'), 404, 'SYNC_API_NOT_FOUND')
  })

  test('hold no text that Postgres cannot', async () => {
    for (const text of ['{"value": "a\\u0000b"}', '{"value": {"a\\u0000": 1}}', '{"value": ["\\ud83d"]}'])
      isProblem(await api.call('/api/v1/state/text', {method: 'PUT', text}), 400, 'SYNC_API_INVALID')
    const spelled = {value: 'a\\u0000b 😀'}
    assert.equal((await send('PUT', '/api/v1/state/text', spelled)).body.value, spelled.value)
  })

  test('are changed only as they were read, when that is asked', async () => {
    const put = (match: string, value: unknown) =>
      api.call('/api/v1/state/guarded', {method: 'PUT', body: {value}, headers: {'if-match': match}})
    isProblem(await put('*', 1), 412, 'SYNC_VERSION_MOVED')
    await send('PUT', '/api/v1/state/guarded', {value: 1})
    assert.equal((await put('"1"', 2)).headers.get('etag'), '"2"')
    isProblem(await put('"1"', 3), 412, 'SYNC_VERSION_MOVED')
    assert.equal((await put('*', 3)).body.version, 3)
    for (const wrong of ['1', '"x"', 'W/"1"', '"1", "2"', `"${'9'.repeat(30)}"`])
      isProblem(await put(wrong, 4), 400, 'SYNC_API_INVALID')
    assert.equal((await get('/api/v1/state/guarded')).body.value, 3)
  })

  test('of another host do not exist', async () => {
    await other`insert into sync_metadata.state (key, value) values ('secret', '1')`
    isProblem(await get('/api/v1/state/secret'), 404, 'SYNC_API_NOT_FOUND')
    isProblem(await get('/api/v1/state/deployment.theirs'), 404, 'SYNC_API_NOT_FOUND')
    isProblem(
      await send('PUT', '/api/v1/state/deployment.theirs', {value: {enabled: false}}),
      404,
      'SYNC_UNKNOWN_CLIENT',
    )
  })

  test('deployment.<client> reads and writes that deployment’s settings, as far as they are named', async () => {
    const {name} = await client({sqlite_path: '/data/webui.db'})
    const path = `/api/v1/state/deployment.${name}`
    const {body} = await get(path)
    assert.equal(body.value.sqlite_path, '/data/webui.db')
    const written = await send('PUT', path, {value: {sync_interval: 120, fqdn: 'Chat.Example.com'}})
    assert.equal(written.status, 200, written.text)
    assert.deepEqual(
      [written.body.value.sync_interval, written.body.value.fqdn, written.body.value.sqlite_path],
      [120, 'chat.example.com', '/data/webui.db'],
    )
    assert.equal((await send('PUT', path, {interval: 'live'})).body.value.sync_schedule, 'live')
    const whole = (await get(path)).body.value
    assert.equal(whole.sync_interval, null)
    const same = await send('PUT', path, {value: whole})
    assert.equal(same.status, 200, same.text)
    assert.deepEqual(same.body.value, whole, 'what was read may be sent back')
    for (const value of [
      {client_name: 'x'},
      {schema_name: 'x'},
      {status: 'quarantined'},
      {nonsense: 1},
      {},
      [],
      1,
    ])
      isProblem(await send('PUT', path, {value}), 400, 'SYNC_API_INVALID')
    const [{action, client_name, details}] = (await audit()) as [any]
    assert.deepEqual([action, client_name, details.sync_schedule], ['client.configured', name, 'live'])
    isProblem(await get('/api/v1/state/deployment.No%20Name'), 400, 'SYNC_USAGE')
    isProblem(await send('PUT', '/api/v1/state/deployment.pg_x', {value: {enabled: true}}), 400, 'SYNC_USAGE')
  })

  test('that somebody else changed are read anew within the time that is promised', async () => {
    await send('PUT', '/api/v1/state/shared', {value: 1})
    await get('/api/v1/state/shared')
    await using second = await testApi({pool: host, cluster: 'host-a', role: 'node-b'})
    await second.call('/api/v1/state/shared', {method: 'PUT', body: {value: 2}})
    api.notify('cache')
    await until(async () => (await get('/api/v1/state/shared')).body.value === 2)
    await second.call('/api/v1/state/shared', {method: 'PUT', body: {value: 3}})
    await until(
      async () => (await get('/api/v1/state/shared')).body.value === 3,
      'without a notice, by the poll',
    )
  })
})

describe('bodies', () => {
  const put = (text: string, headers = {}) => api.call('/api/v1/state/body', {method: 'PUT', text, headers})

  test('that are too large are refused', async () => {
    const most = 1_048_576 - '{"value":""}'.length
    assert.equal((await put(`{"value":"${'x'.repeat(most)}"}`)).status, 200)
    isProblem(await put(`{"value":"${'x'.repeat(most + 1)}"}`), 413, 'SYNC_API_TOO_LARGE')
  })

  test('that are nested without end are refused', async () => {
    for (const depth of [101, 500_000])
      isProblem(await put(`{"value":${'['.repeat(depth)}${']'.repeat(depth)}}`), 400, 'SYNC_API_INVALID')
    const value = `${'['.repeat(99)}${']'.repeat(99)}`
    assert.equal((await put(`{"value":${value}}`)).status, 200)
    assert.equal(
      (await put(`{"value":"${'['.repeat(500)}\\"${'{'.repeat(500)}"}`)).status,
      200,
      'in a text they may',
    )
  })

  for (const [what, text] of [
    ['half of JSON', '{"value":'],
    ['no JSON', 'value=1'],
    ['nothing', ''],
    ['blanks', '  '],
    ['a prototype', '{"__proto__": {"polluted": true}}'],
    ['a prototype within', '{"value": [{"\\u005f_proto__": 1}]}'],
    ['an unclosed text full of escapes', `"${'\\"'.repeat(200_000)}`],
  ] as const)
    test(`of ${what} are refused`, async () => {
      isProblem(await put(text), 400, 'SYNC_API_INVALID')
    })

  test('of another type are refused', async () => {
    for (const type of ['text/plain', 'application/x-www-form-urlencoded', 'multipart/form-data; boundary=x'])
      isProblem(await put('{"value":1}', {'content-type': type}), 415, 'SYNC_API_MEDIA_TYPE')
  })
})

describe('the documentation', () => {
  test('is OpenAPI, and has every endpoint with who may call it', async () => {
    const {status, body} = await get('/docs/json')
    assert.equal(status, 200)
    assert.equal(body.openapi, '3.1.0')
    const operations: string[] = []
    for (const [path, methods] of Object.entries<Record<string, any>>(body.paths))
      for (const [method, operation] of Object.entries(methods)) {
        operations.push(`${method.toUpperCase()} ${path}`)
        assert.ok(operation.summary && Object.keys(operation.responses).length > 0, path)
        const named = [...path.matchAll(/\{(\w+)\}/g)].map(([, name]) => name)
        const declared = (operation.parameters ?? []).filter((each: any) => each.in === 'path')
        assert.deepEqual(
          declared.map((each: any) => each.name),
          named,
          path,
        )
        const isOpen = !path.startsWith('/api/')
        assert.equal(operation.security.length, isOpen ? 0 : 1, path)
      }
    assert.equal(JSON.stringify(body).includes('"$ref"'), false, 'nothing refers to what is not there')
    assert.deepEqual(operations.sort(), [
      'DELETE /api/v1/deployments/{client}',
      'GET /api/v1/cluster/status',
      'GET /api/v1/conflicts',
      'GET /api/v1/conflicts/{id}',
      'GET /api/v1/deployments',
      'GET /api/v1/deployments/{client}',
      'GET /api/v1/deployments/{client}/conflict-config',
      'GET /api/v1/events',
      'GET /api/v1/jobs',
      'GET /api/v1/jobs/{id}',
      'GET /api/v1/state',
      'GET /api/v1/state/{key}',
      'GET /health',
      'GET /leader',
      'GET /livez',
      'GET /metrics',
      'GET /readyz',
      'PATCH /api/v1/deployments/{client}',
      'POST /api/v1/cluster/promote',
      'POST /api/v1/cluster/step-down',
      'POST /api/v1/conflicts/{id}/resolve',
      'POST /api/v1/conflicts/{id}/undo',
      'POST /api/v1/deployments',
      'POST /api/v1/deployments/{client}/confirm',
      'POST /api/v1/deployments/{client}/verify',
      'POST /api/v1/jobs/{id}/cancel',
      'POST /api/v1/sync/trigger',
      'POST /api/v1/sync/trigger/{client}',
      'PUT /api/v1/deployments/{client}/conflict-config',
      'PUT /api/v1/state',
      'PUT /api/v1/state/{key}',
    ])
  })

  test('is a page for people', async () => {
    const page = await get('/docs')
    assert.match(page.text, /openwebui-sync API/)
    assert.equal((await get('/docs/static/swagger-ui.css')).status, 200)
    isProblem(await get('/docs/static/..%2f..%2f..%2fpackage.json'), 404, 'SYNC_API_NOT_FOUND')
  })
})
