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
import {raw} from '../postgres/sql.ts'

// Every endpoint, over HTTP, on a real Postgres: what it answers, and what it does with input that is wrong, missing,
// too large or hostile.

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

describe('deployments', () => {
  test('are registered, shown, changed and given up', async () => {
    const made = await send('POST', '/api/v1/deployments', {
      client_name: 'chat.made.example',
      sqlite_path: '/opt/openwebui/made/webui.db',
      interval: '5m',
      history_days: 7,
    })
    assert.equal(made.status, 201, made.text)
    assert.equal(made.headers.get('location'), '/api/v1/deployments/chat.made.example')
    const {
      client_name,
      schema_name,
      fqdn,
      interval,
      sync_interval,
      enabled,
      status,
      history_days,
      generation,
    } = made.body
    assert.deepEqual(
      {client_name, schema_name, fqdn, interval, sync_interval, enabled, status, history_days, generation},
      {
        client_name: 'chat.made.example',
        schema_name: 'chat_made_example',
        fqdn: 'chat.made.example',
        interval: '300',
        sync_interval: 300,
        enabled: true,
        status: 'active',
        history_days: 7,
        generation: 0,
      },
    )
    assert.equal((await get('/api/v1/deployments/chat-made-example')).body.client_name, 'chat.made.example')
    isProblem(
      await send('POST', '/api/v1/deployments', {client_name: 'chat_made_example'}),
      409,
      'SYNC_CLIENT_EXISTS',
    )
    const changed = await send('PATCH', '/api/v1/deployments/chat-made-example', {
      enabled: false,
      interval: '0 3 * * *',
    })
    assert.deepEqual(
      [changed.body.enabled, changed.body.status, changed.body.interval, changed.body.sync_interval],
      [false, 'paused', '0 3 * * *', null],
    )
    assert.deepEqual(
      (await audit()).slice(0, 3).map(({action, client_name, actor}) => [action, client_name, actor]),
      [
        ['client.configured', 'chat.made.example', 'api:operator'],
        ['client.configured', 'chat.made.example', 'api:operator'],
        ['client.registered', 'chat.made.example', host.role],
      ],
    )
    const path = '/api/v1/deployments/chat.made.example'
    assert.equal((await send('PATCH', path, {status: 'active'})).body.enabled, true)
    isProblem(await send('DELETE', path), 409, 'SYNC_STILL_SYNCED')
    assert.deepEqual((await send('DELETE', `${path}?force=true`)).body, {
      success: true,
      client: 'chat.made.example',
      status: 'deregistered',
    })
    assert.equal((await audit())[0]?.actor, 'api:operator')
    isProblem(await get(path), 404, 'SYNC_UNKNOWN_CLIENT')
    isProblem(await send('PATCH', path, {enabled: true}), 404, 'SYNC_UNKNOWN_CLIENT')
    isProblem(await send('DELETE', path), 404, 'SYNC_UNKNOWN_CLIENT')
    isProblem(await get('/api/v1/state/deployment.chat-made-example'), 404, 'SYNC_API_NOT_FOUND')
  })

  test('that are registered without an interval get the one of the settings; disabled ones are paused', async () => {
    const {body} = await send('POST', '/api/v1/deployments', {client_name: 'plain', enabled: false})
    assert.deepEqual([body.sync_interval, body.enabled, body.status], [300, false, 'paused'])
    const manual = await send('POST', '/api/v1/deployments', {client_name: 'manual-one', interval: 'manual'})
    assert.deepEqual([manual.body.interval, manual.body.sync_interval], ['manual', null])
  })

  test('are switched to two_way after a report of what would be written, and to one_way at once', async () => {
    const {name, id} = await client({sqlite_path: '/opt/openwebui/two/webui.db'})
    const another = await client()
    const path = `/api/v1/deployments/${name}`
    const document = `/api/v1/state/deployment.${name}`
    const direction = async () => (await get(path)).body.direction
    // Nothing of it is in Postgres yet, so that nothing can be written.
    assert.equal((await send('PATCH', path, {direction: 'two_way'})).body.direction, 'two_way')
    assert.equal((await send('PATCH', path, {direction: 'one_way'})).body.direction, 'one_way')
    await db`update sync_metadata.client_deployments set generation = 3 where deployment_id in (${id}, ${another.id})`

    isProblem(await send('PATCH', path, {direction: 'two_way'}), 409, 'SYNC_REPORT_FIRST')
    isProblem(await send('PUT', document, {value: {direction: 'two_way'}}), 409, 'SYNC_REPORT_FIRST')
    const trigger = {client_name: name, dry_run: true, direction: 'two_way'}
    isProblem(
      await send('POST', '/api/v1/sync/trigger', {...trigger, dry_run: false}),
      400,
      'SYNC_API_INVALID',
    )
    const {status, body} = await send('POST', '/api/v1/sync/trigger', trigger)
    assert.equal(status, 202)
    const report = body.job_id as string
    assert.deepEqual((await get(`/api/v1/jobs/${report}`)).body.options, {
      dry_run: true,
      direction: 'two_way',
    })
    const refused = async (given: object) => {
      isProblem(await send('PATCH', path, {direction: 'two_way', ...given}), 409, 'SYNC_REPORT_FIRST')
    }
    await refused({report})
    const ends = async (set: string) => {
      await db`${raw(`update sync_metadata.sync_jobs set ${set}`)} where job_id = ${report}`
    }
    await ends(`status = 'failed', finished_at = now()`)
    await refused({report})
    await ends(`status = 'success', finished_at = now() - interval '2 hours'`)
    await refused({report})
    await ends(`finished_at = now(), options = '{"dry_run": true}'`)
    await refused({report})
    await ends(`options = '{"dry_run": true, "direction": "two_way"}'`)
    await refused({report: another.id})
    const others = await send('PATCH', `/api/v1/deployments/${another.name}`, {direction: 'two_way', report})
    isProblem(others, 409, 'SYNC_REPORT_FIRST')
    isProblem(await send('PATCH', path, {report}), 400, 'SYNC_API_INVALID')
    assert.equal(await direction(), 'one_way')

    assert.equal((await send('PATCH', path, {direction: 'two_way', report})).body.direction, 'two_way')
    const [{action, client_name, actor, details}] = (await audit()) as [any]
    assert.deepEqual(
      [action, client_name, actor, details.direction, details.report],
      ['client.configured', name, 'api:operator', 'two_way', report],
    )
    // What was read may be sent back whole.
    const {value} = (await get(document)).body
    assert.equal((await send('PUT', document, {value})).status, 200)
    assert.equal(
      (await send('PUT', document, {value: {direction: 'one_way'}})).body.value.direction,
      'one_way',
    )
    assert.equal((await send('PUT', document, {value: {direction: 'two_way', report}})).status, 200)
    assert.equal(await direction(), 'two_way')
  })

  test('take no conflict rules that are none, whichever way they come', async () => {
    const {name} = await client()
    const config = {conflict_resolution: {default_strategy: 'sideways'}}
    for (const [method, path, body] of [
      ['PATCH', `/api/v1/deployments/${name}`, {config}],
      ['PUT', `/api/v1/deployments/${name}/conflict-config`, config],
      ['PUT', `/api/v1/state/deployment.${name}`, {value: {config}}],
      ['POST', '/api/v1/deployments', {client_name: 'with-bad-rules', config}],
    ] as const) {
      const refused = await send(method, path, body)
      isProblem(refused, 400, 'SYNC_CONFLICT_RULES')
      assert.match(refused.body.detail, /default_strategy.*sideways/)
    }
    const path = `/api/v1/deployments/${name}`
    const good = {conflict_resolution: {default_strategy: 'manual'}}
    assert.equal((await send('PATCH', path, {config: good})).status, 200)
    assert.equal((await send('PATCH', path, {config: {conflict_resolution: null}})).status, 200)
  })

  for (const [what, body] of [
    ['no name', {}],
    ['a bad name', {client_name: 'No Name'}],
    ['a reserved name', {client_name: 'public'}],
    ['SQL for a name', {client_name: "x'; drop schema sync_metadata; --"}],
    ['a number for a name', {client_name: 1}],
    ['a name that is too long', {client_name: 'x'.repeat(64)}],
    ['an unknown setting', {client_name: 'fine', colour: 'red'}],
    ['a relative path', {client_name: 'fine', sqlite_path: 'webui.db'}],
    ['a path that climbs', {client_name: 'fine', sqlite_path: '/data/../etc/shadow'}],
    ['a path with NUL', {client_name: 'fine', sqlite_path: '/data/\0'}],
    ['a path that is too long', {client_name: 'fine', sqlite_path: `/${'x'.repeat(4_096)}`}],
    ['an interval that is too short', {client_name: 'fine', interval: 9}],
    ['an interval that is none', {client_name: 'fine', interval: 'sometimes'}],
    ['a cron expression that is none', {client_name: 'fine', interval: '61 * * * *'}],
    ['a direction that is none', {client_name: 'fine', direction: 'sideways'}],
    ['a port that is none', {client_name: 'fine', port: 70_000}],
    ['a switch that is none', {client_name: 'fine', enabled: 'yes'}],
    ['switches that disagree', {client_name: 'fine', enabled: true, status: 'paused'}],
    ['days that are none', {client_name: 'fine', history_days: -1}],
    ['a configuration that is too large', {client_name: 'fine', config: {x: 'y'.repeat(70_000)}}],
    ['a list', [{client_name: 'fine'}]],
    ['null', null],
  ] as const)
    test(`are not registered from ${what}`, async () => {
      isProblem(await send('POST', '/api/v1/deployments', body), 400, 'SYNC_API_INVALID')
      isProblem(await get('/api/v1/deployments/fine'), 404, 'SYNC_UNKNOWN_CLIENT')
    })

  test('that another host has cannot be registered, seen or changed', async () => {
    isProblem(await send('POST', '/api/v1/deployments', {client_name: 'theirs'}), 409, 'SYNC_NAME_TAKEN')
    isProblem(await get('/api/v1/deployments/theirs'), 404, 'SYNC_UNKNOWN_CLIENT')
    isProblem(await send('PATCH', '/api/v1/deployments/theirs', {enabled: false}), 404, 'SYNC_UNKNOWN_CLIENT')
    isProblem(await send('POST', '/api/v1/sync/trigger/theirs'), 404, 'SYNC_UNKNOWN_CLIENT')
    assert.ok(!(await get('/api/v1/deployments?limit=1000')).text.includes('theirs'))
  })

  test('an empty change and one of a name are refused', async () => {
    const {name} = await client()
    for (const body of [{}, {client_name: 'x'}, {generation: 7}, {status: 'quarantined'}, null, 'x'])
      isProblem(await send('PATCH', `/api/v1/deployments/${name}`, body), 400, 'SYNC_API_INVALID')
  })

  test('show their failures, conflicts, quarantined rows, verification, open job and size', async () => {
    const {name, id} = await client()
    await host`insert into sync_metadata.sync_jobs (deployment_id, status, error_code, error_message, finished_at)
      values (${id}, 'failed', 'SYNC_SOURCE_BUSY', 'it is locked', now())`
    await host`insert into sync_metadata.sync_jobs (deployment_id, status) values (${id}, 'running')`
    await host`insert into sync_metadata.sync_progress (job_id, table_name, rows_total, rows_processed)
      select job_id, 'chat', 100, 40 from sync_metadata.sync_jobs where deployment_id = ${id} and status = 'running'`
    await host`insert into sync_metadata.conflict_log (deployment_id, table_name, record_key, conflict_type)
      values (${id}, 't', '1', 'drift')`
    await host`insert into sync_metadata.row_quarantine (deployment_id, table_name, record_key, code, reason)
      values (${id}, 't', '1', 'X', 'x')`
    await host`insert into sync_metadata.verifications (deployment_id, generation, difference_count) values (${id}, 1, 3)`
    const path = `/api/v1/deployments/${name}`
    await until(async () => (await get(path)).body.size_bytes === 0)
    const {body} = await get(path)
    assert.deepEqual(body.last_error, {code: 'SYNC_SOURCE_BUSY', message: 'it is locked'})
    const {job_id, ...job} = body.open_job
    assert.deepEqual(job, {sync_type: 'incremental', status: 'running', rows_total: 100, rows_processed: 40})
    assert.deepEqual([body.pending_conflicts, body.quarantined_rows, body.last_differences], [1, 1, 3])
    assert.equal((await get(`/api/v1/jobs/${job_id}`)).body.client, name)
  })

  test('have conflict rules of their own, or not', async () => {
    const {name} = await client()
    const path = `/api/v1/deployments/${name}/conflict-config`
    assert.deepEqual((await get(path)).body, {client: name, conflict_resolution: null})
    const rules = {tables: {chat: {strategy: 'merge'}}}
    assert.deepEqual((await send('PUT', path, {conflict_resolution: rules})).body.conflict_resolution, rules)
    assert.deepEqual((await get(path)).body.conflict_resolution, rules)
    assert.equal((await send('PUT', path, {conflict_resolution: null})).body.conflict_resolution, null)
    for (const body of [
      {},
      {conflict_resolution: 1},
      {rules},
      {conflict_resolution: {x: 'y'.repeat(70_000)}},
    ])
      isProblem(await send('PUT', path, body), 400, 'SYNC_API_INVALID')
    isProblem(await get('/api/v1/deployments/nobody/conflict-config'), 404, 'SYNC_UNKNOWN_CLIENT')
  })

  test('are verified, and confirmed only when they are held back', async () => {
    const {name, id} = await client()
    const queued = await send('POST', `/api/v1/deployments/${name}/verify`, {repair: true})
    assert.equal(queued.status, 202, queued.text)
    const job = (await get(`/api/v1/jobs/${queued.body.job_id}`)).body
    assert.deepEqual([job.sync_type, job.options], ['verify', {quick: false, repair: true}])
    await send('POST', `/api/v1/jobs/${queued.body.job_id}/cancel`)
    isProblem(await send('POST', `/api/v1/deployments/${name}/confirm`), 409, 'SYNC_NOT_QUARANTINED')
    await host`update sync_metadata.client_deployments set status = 'quarantined' where deployment_id = ${id}`
    const confirmed = await send('POST', `/api/v1/deployments/${name}/confirm`)
    assert.equal(confirmed.status, 202)
    assert.deepEqual((await get(`/api/v1/jobs/${confirmed.body.job_id}`)).body.options, {accept: true})
    isProblem(await send('POST', `/api/v1/deployments/${name}/verify`, {fast: true}), 400, 'SYNC_API_INVALID')
    isProblem(await send('POST', '/api/v1/deployments/nobody/verify'), 404, 'SYNC_UNKNOWN_CLIENT')
    isProblem(await send('POST', '/api/v1/deployments/nobody/confirm'), 404, 'SYNC_UNKNOWN_CLIENT')
  })

  test('are listed page by page, each once', async () => {
    for (let i = 0; i < 5; i++) await client()
    const all = (await get('/api/v1/deployments')).body
    assert.equal(all.count, all.deployments.length)
    assert.equal(all.next, null)
    const names: string[] = []
    for (let next: string | null = ''; next !== null;) {
      const {body} = await get(`/api/v1/deployments?limit=2${next === '' ? '' : `&cursor=${next}`}`)
      assert.ok(body.count <= 2)
      names.push(...body.deployments.map((each: {client_name: string}) => each.client_name))
      next = body.next
    }
    assert.deepEqual(
      names,
      all.deployments.map((each: {client_name: string}) => each.client_name),
    )
    assert.equal((await get('/api/v1/deployments?status=quarantined')).body.count, 1)
  })

  test('are listed at most a thousand at once, and from places that a page has given', async () => {
    for (const query of ['limit=0', 'limit=1001', 'limit=x', 'limit=1.5', 'limit=-1', 'limit=', 'status=odd'])
      isProblem(await get(`/api/v1/deployments?${query}`), 400, 'SYNC_API_INVALID')
    for (const cursor of ['x', 'bmFtZSA', Buffer.from("name ' or 1=1").toString('base64url')])
      isProblem(await get(`/api/v1/deployments?cursor=${cursor}`), 400, 'SYNC_USAGE')
    isProblem(await get(`/api/v1/deployments?cursor=${'x'.repeat(501)}`), 400, 'SYNC_API_INVALID')
    assert.equal((await get('/api/v1/deployments?limit=1000')).status, 200)
  })
})

describe('syncs', () => {
  test('are triggered by either form, once at a time', async () => {
    const {name} = await client()
    const queued = await send('POST', '/api/v1/sync/trigger', {client_name: name, full_sync: true})
    assert.equal(queued.status, 202, queued.text)
    const {job_id} = queued.body
    assert.deepEqual(queued.body, {success: true, job_id, sync_id: job_id, status: 'queued', client: name})
    const job = (await get(`/api/v1/jobs/${job_id}`)).body
    assert.deepEqual([job.sync_type, job.triggered_by, job.status], ['full', 'api', 'pending'])
    for (const again of [
      await send('POST', '/api/v1/sync/trigger', {client_name: name}),
      await send('POST', `/api/v1/sync/trigger/${name.replace('-', '_')}`),
    ]) {
      isProblem(again, 409, 'SYNC_JOB_OPEN')
      assert.equal(again.body.job_id, job_id)
      assert.equal(again.body.client, name)
    }
    const [entry] = await audit()
    assert.deepEqual([entry?.action, entry?.client_name, entry?.details.job_id], ['job.queued', name, job_id])
    await send('POST', `/api/v1/jobs/${job_id}/cancel`)
    const short = await send('POST', `/api/v1/sync/trigger/${name}`)
    assert.equal((await get(`/api/v1/jobs/${short.body.job_id}`)).body.sync_type, 'incremental')
    await send('POST', `/api/v1/jobs/${short.body.job_id}/cancel`)
    const long = await send('POST', `/api/v1/sync/trigger/${name}`, {full_sync: true})
    assert.equal((await get(`/api/v1/jobs/${long.body.job_id}`)).body.sync_type, 'full')
  })

  test('wake the leader', async () => {
    const {name} = await client()
    await using connection = await host.reserve()
    const heard: string[] = []
    connection.onNotify((_, payload) => heard.push(payload))
    const [row] = await host<{channel: string}>`
      select sync_metadata.channel_of(sync_metadata.my_host()) as channel`
    await connection`listen ${connection(row!.channel)}`
    await send('POST', `/api/v1/sync/trigger/${name}`)
    await until(() => heard.includes('jobs'))
  })

  test('are not triggered for nobody, or by what is no request', async () => {
    isProblem(await send('POST', '/api/v1/sync/trigger', {client_name: 'nobody'}), 404, 'SYNC_UNKNOWN_CLIENT')
    isProblem(await send('POST', '/api/v1/sync/trigger/nobody'), 404, 'SYNC_UNKNOWN_CLIENT')
    for (const body of [{}, {client_name: ''}, {client_name: 'acme', full_sync: 'yes'}, {client: 'acme'}, []])
      isProblem(await send('POST', '/api/v1/sync/trigger', body), 400, 'SYNC_API_INVALID')
    isProblem(await send('POST', '/api/v1/sync/trigger'), 400, 'SYNC_API_INVALID')
    isProblem(await send('POST', '/api/v1/sync/trigger/Bad%20Name'), 400, 'SYNC_API_INVALID')
    isProblem(await send('GET', '/api/v1/sync/trigger/acme'), 404, 'SYNC_API_NOT_FOUND')
  })

  test('wait in a queue that has an end', async () => {
    const {name} = await client()
    await using full = await testApi({pool: host, cluster: 'host-a', config: {syncQueueSize: 1}})
    const refused = await full.call(`/api/v1/sync/trigger/${name}`, {method: 'POST'})
    isProblem(refused, 503, 'SYNC_QUEUE_FULL')
    assert.equal(refused.headers.get('retry-after'), '5')
  })
})

describe('jobs', () => {
  test('are shown with each table’s progress, and cancelled while they are open', async () => {
    const {name} = await client()
    const {job_id} = (await send('POST', `/api/v1/sync/trigger/${name}`)).body
    await host`insert into sync_metadata.sync_progress (job_id, table_name, rows_total, rows_processed, status)
      values (${job_id}, 'chat', 10, 4, 'running')`
    assert.deepEqual((await get(`/api/v1/jobs/${job_id}`)).body.tables, [
      {table: 'chat', rows_total: 10, rows_processed: 4, status: 'running'},
    ])
    const cancelled = await send('POST', `/api/v1/jobs/${job_id}/cancel`)
    assert.deepEqual(
      [cancelled.status, cancelled.body.success, cancelled.body.status],
      [200, true, 'cancelled'],
    )
    assert.equal((await audit())[0]?.action, 'job.cancelled')
    const again = await send('POST', `/api/v1/jobs/${job_id}/cancel`)
    isProblem(again, 409, 'SYNC_JOB_OVER')
    assert.equal(again.body.job_status, 'cancelled')
  })

  test('that do not exist, or are another host’s, are not found', async () => {
    const [theirs] = await other<{job_id: string}>`
      insert into sync_metadata.sync_jobs (deployment_id)
      select deployment_id from sync_metadata.client_deployments returning job_id`
    for (const id of [theirs!.job_id, '00000000-0000-0000-0000-000000000000', 'x', "'", '1'.repeat(2_000)]) {
      isProblem(await get(`/api/v1/jobs/${id}`), 404, 'SYNC_API_NOT_FOUND')
      isProblem(await send('POST', `/api/v1/jobs/${id}/cancel`), 404, 'SYNC_API_NOT_FOUND')
    }
  })

  test('are listed the newest first, page by page, filtered', async () => {
    const {name, id} = await client()
    await host`insert into sync_metadata.sync_jobs (deployment_id, status, sync_type, error_code, error_message)
      select ${id}, case when n % 2 = 0 then 'success' else 'failed' end, 'full', 'SYNC_X', 'x'
      from generate_series(1, 5) n`
    const list = async (query: string) => (await get(`/api/v1/jobs?client_name=${name}&${query}`)).body
    assert.equal((await list('')).count, 5)
    assert.equal((await list('status=failed')).count, 3)
    assert.equal((await list('sync_type=verify')).count, 0)
    const first = await list('limit=3')
    const second = await list(`limit=3&cursor=${first.next}`)
    assert.deepEqual([first.count, second.count, second.next], [3, 2, null])
    assert.equal(new Set([...first.jobs, ...second.jobs].map(({job_id}) => job_id)).size, 5)
    assert.deepEqual(first.jobs[0].error, {code: 'SYNC_X', message: 'x'})
    isProblem(await get('/api/v1/jobs?cursor=zzz'), 400, 'SYNC_USAGE')
    isProblem(await get('/api/v1/jobs?status=odd'), 400, 'SYNC_API_INVALID')
    assert.equal((await get('/api/v1/jobs?client_name=nobody')).body.count, 0)
  })
})

describe('conflicts', () => {
  test('are listed, and shown field by field', async () => {
    const {name, id} = await client()
    const [row] = await host<{conflict_id: string}>`
      insert into sync_metadata.conflict_log (deployment_id, table_name, record_key, conflict_type, source_data, target_data)
      values (${id}, 'chat', 'c1', 'update_update', '{"_sync_digest": "00", "id": "c1", "title": "a"}',
        '{"_sync_digest": "01", "id": "c1", "title": "b", "new": 1}')
      returning conflict_id`
    const list = (await get(`/api/v1/conflicts?client_name=${name}&status=pending`)).body
    assert.deepEqual([list.count, list.conflicts[0].conflict_id, list.next], [1, row!.conflict_id, null])
    assert.deepEqual([list.conflicts[0].table, list.conflicts[0].type], ['chat', 'update_update'])
    const {body} = await get(`/api/v1/conflicts/${row!.conflict_id}`)
    assert.deepEqual(body.fields, [
      {field: 'id', source: 'c1', target: 'c1', resolved: null, differs: false},
      {field: 'title', source: 'a', target: 'b', resolved: null, differs: true},
      {field: 'new', source: null, target: 1, resolved: null, differs: true},
    ])
    const path = `/api/v1/conflicts/${row!.conflict_id}`
    assert.deepEqual(body.target, {id: 'c1', title: 'b', new: 1})
    // Nothing of the client has been synced: there is no row to decide about.
    isProblem(await send('POST', `${path}/resolve`, {choice: 'source'}), 409, 'SYNC_CONFLICT_MOVED')
    isProblem(await send('POST', `${path}/undo`), 409, 'SYNC_CONFLICT_MOVED')
    for (const body of [
      {},
      {choice: 'both'},
      {choice: 'row'},
      {choice: 'row', row: 1},
      {choice: 'source', row: {}},
    ])
      isProblem(await send('POST', `${path}/resolve`, body), 400, 'SYNC_API_INVALID')
  })

  test('are paged, and not found where there is none', async () => {
    const {name, id} = await client()
    await host`insert into sync_metadata.conflict_log (deployment_id, table_name, record_key, conflict_type, detected_at)
      select ${id}, 't', n::text, 'drift', now() - (n % 3) * interval '1 second' from generate_series(1, 5) n`
    const first = (await get(`/api/v1/conflicts?client_name=${name}&limit=3`)).body
    const second = (await get(`/api/v1/conflicts?client_name=${name}&limit=3&cursor=${first.next}`)).body
    const ids = [...first.conflicts, ...second.conflicts].map(({conflict_id}) => conflict_id)
    assert.deepEqual([ids.length, new Set(ids).size, second.next], [5, 5, null])
    for (const missing of ['x', '00000000-0000-0000-0000-000000000000']) {
      isProblem(await get(`/api/v1/conflicts/${missing}`), 404, 'SYNC_API_NOT_FOUND')
      isProblem(
        await send('POST', `/api/v1/conflicts/${missing}/resolve`, {choice: 'target'}),
        404,
        'SYNC_API_NOT_FOUND',
      )
      isProblem(await send('POST', `/api/v1/conflicts/${missing}/undo`), 404, 'SYNC_API_NOT_FOUND')
    }
    isProblem(await get('/api/v1/conflicts?cursor=eA'), 400, 'SYNC_USAGE')
  })
})
