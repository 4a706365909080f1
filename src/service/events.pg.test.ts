// Answers are looked at field by field, whatever is in them.
/* eslint-disable @typescript-eslint/no-explicit-any, @typescript-eslint/no-unsafe-assignment,
   @typescript-eslint/no-unsafe-member-access, @typescript-eslint/no-unsafe-return */
import assert from 'node:assert/strict'
import {writeFile} from 'node:fs/promises'
import {join} from 'node:path'
import {afterAll, beforeAll, test} from 'vitest'
import {isProblem, testApi, type TestApi} from '../../test/api.ts'
import {testDatabase, type TestDatabase} from '../../test/database.ts'
import {testClient, testHost, type TestHost} from '../../test/host.ts'
import {until} from '../../test/until.ts'
import type {Pool} from '../postgres/sql.ts'
import {silentLog} from '../telemetry/log.ts'
import {EventFeed} from './event-feed.ts'

let db: TestDatabase
let host: TestHost
let api: TestApi
let id: string

beforeAll(async () => {
  db = await testDatabase()
  host = await testHost(db, 'host-a', 8)
  id = await testClient(host, 'acme')
  api = await testApi({pool: host, cluster: 'host-a'})
})

afterAll(async () => {
  await api[Symbol.asyncDispose]()
  await host.end()
  await db[Symbol.asyncDispose]()
})

type Event = {readonly id: string; readonly event: string; readonly data: any}

/** A listener over HTTP. */
async function listen(to = api, after?: string) {
  const stop = new AbortController()
  const response = await fetch(`${to.url}/api/v1/events`, {
    headers: {
      authorization: `Bearer ${to.tokens.read}`,
      ...(after !== undefined && {'last-event-id': after}),
    },
    signal: stop.signal,
  })
  assert.equal(response.status, 200)
  assert.match(response.headers.get('content-type')!, /^text\/event-stream/)
  const events: Event[] = []
  const state = {comments: 0, isOver: false}
  const reading = (async () => {
    let text = ''
    const decoder = new TextDecoder()
    for await (const chunk of response.body!) {
      text += decoder.decode(chunk as Uint8Array, {stream: true})
      const parts = text.split('\n\n')
      text = parts.pop()!
      for (const part of parts) {
        if (part.startsWith(':')) state.comments++
        else {
          const [, eventId, event, data] = /^id: (.*)\nevent: (.*)\ndata: (.*)$/.exec(part)!
          events.push({id: eventId!, event: event!, data: JSON.parse(data!) as unknown})
        }
      }
    }
  })()
    .catch(() => undefined)
    .finally(() => {
      state.isOver = true
    })
  return {
    events,
    state,
    named: (name: string) => events.filter(({event}) => event === name).map(({data}) => data),
    async close() {
      stop.abort()
      await reading
    },
  }
}

test('a listener gets a snapshot, and then what changes: jobs to their end, the leader, conflicts, deployments', async () => {
  const listener = await listen()
  await until(() => listener.events.length > 0)
  const [{event, data}] = listener.events as [Event]
  assert.equal(event, 'snapshot')
  assert.deepEqual([data.leader.leader_id, data.jobs, data.deployments.length], [null, [], 1])

  const {job_id} = (await api.call('/api/v1/sync/trigger/acme', {method: 'POST'})).body
  api.notify('jobs')
  await until(() => listener.named('job').some(job => job.job_id === job_id && job.status === 'pending'))
  await host`update sync_metadata.sync_jobs set status = 'running', started_at = now() where job_id = ${job_id}`
  await host`insert into sync_metadata.sync_progress (job_id, table_name, rows_total, rows_processed)
    values (${job_id}, 'chat', 10, 4)`
  await until(() => listener.named('job').some(job => job.rows_processed === 4 && job.rows_total === 10))
  await host`update sync_metadata.sync_jobs set status = 'failed', finished_at = now(), error_code = 'SYNC_X',
    error_message = 'x' where job_id = ${job_id}`
  await until(() => listener.named('job').some(job => job.status === 'failed'))
  assert.deepEqual(listener.named('job').at(-1).error, {code: 'SYNC_X', message: 'x'})

  await host`select * from sync_metadata.acquire_lease('host-a-node-a', 60000)`
  api.notify('lease')
  await until(() => listener.named('leader').some(leader => leader.leader_id === 'host-a-node-a'))

  await host`insert into sync_metadata.conflict_log (deployment_id, table_name, record_key, conflict_type)
    values (${id}, 't', '1', 'drift')`
  await until(() => listener.named('conflict').length > 0)
  assert.deepEqual(listener.named('conflict'), [{client: 'acme', pending: 1}])

  await api.call('/api/v1/deployments/acme', {method: 'PATCH', body: {enabled: false}})
  await until(() => listener.named('deployment').some(each => each.status === 'paused'))
  const seen = listener.events.length
  await new Promise(resolve => setTimeout(resolve, 2_500))
  assert.equal(listener.events.length, seen, 'nothing is told while nothing changes')
  await listener.close()
})

test('a listener that comes back is told what it has missed, once', async () => {
  const first = await listen()
  await until(() => first.events.length > 0)
  const last = first.events.at(-1)!.id
  const stays = await listen()
  await until(() => stays.events.length > 0)
  await first.close()
  const {job_id} = (await api.call('/api/v1/sync/trigger/acme', {method: 'POST'})).body
  await until(() => stays.named('job').some(job => job.job_id === job_id))
  await api.call(`/api/v1/jobs/${job_id}/cancel`, {method: 'POST'})
  await until(() => stays.named('job').some(job => job.status === 'cancelled'))

  const back = await listen(api, last)
  await until(() => back.named('job').some(job => job.status === 'cancelled'))
  assert.deepEqual(
    back.events.map(({id}) => id),
    stays.events.slice(1).map(({id}) => id),
    'the same events under the same ids, and no snapshot',
  )
  await back.close()
  await stays.close()
})

test('what happens while nobody listens is told to who comes back', async () => {
  const first = await listen()
  await until(() => first.events.length > 0)
  await first.close()
  const last = first.events.at(-1)!.id
  await api.call('/api/v1/deployments/acme', {method: 'PATCH', body: {enabled: true}})
  const back = await listen(api, last)
  await until(() => back.named('deployment').some(each => each.status === 'active'))
  assert.equal(back.named('snapshot').length, 0)
  await back.close()
})

test('an id of another node, of long ago or of nobody begins with a snapshot', async () => {
  await using other = await testApi({pool: host, cluster: 'host-a', role: 'node-b'})
  const here = await listen()
  await until(() => here.events.length > 0)
  const {id: known} = here.events[0]!
  for (const [to, after] of [
    [other, known],
    [api, `${known.split('-')[0]!}-999999`],
    [api, `${known.split('-')[0]!}--1`],
    [api, 'nonsense'],
  ] as const) {
    const listener = await listen(to, after)
    await until(() => listener.events.length > 0)
    assert.equal(listener.events[0]!.event, 'snapshot')
    await listener.close()
  }
  await here.close()
})

test('needs a token, and there are places for so many', async () => {
  isProblem(await api.call('/api/v1/events', {token: null}), 401, 'SYNC_API_TOKEN')
  const feed = new EventFeed({sql: host, log: silentLog, mostListeners: 1})
  const stop = new AbortController()
  feed.subscribe(undefined, () => undefined, stop.signal)
  assert.throws(
    () => {
      feed.subscribe(undefined, () => undefined, stop.signal)
    },
    {code: 'SYNC_API_BUSY', status: 503},
  )
  stop.abort()
  feed.subscribe(undefined, () => undefined, AbortSignal.timeout(10))
  await feed.ended()
})

test('a stream ends when its token is taken away, and says meanwhile that it is alive', async () => {
  await using own = await testApi({pool: host, cluster: 'host-a', keepAliveMs: 100})
  const listener = await listen(own)
  await until(() => listener.state.comments > 1)
  await writeFile(join(own.folder, 'api-tokens'), '')
  await until(() => listener.state.isOver)
})

test('streams do not hold up the end of the API, and nothing is read while nobody listens', async () => {
  let statements = 0
  const counting = new Proxy(host, {
    apply(target, self, args) {
      statements++
      return Reflect.apply(target, self, args) as unknown
    },
  }) as Pool
  const feed = new EventFeed({sql: counting, log: silentLog})
  const stop = new AbortController()
  const got: string[] = []
  feed.subscribe(undefined, ({event}) => got.push(event), stop.signal)
  await until(() => got.length > 0)
  stop.abort()
  await feed.ended()
  const before = statements
  feed.look()
  await new Promise(resolve => setTimeout(resolve, 1_500))
  assert.equal(statements, before)

  const own = await testApi({pool: host, cluster: 'host-a'})
  const listener = await listen(own)
  await until(() => listener.events.length > 0)
  await own[Symbol.asyncDispose]()
  await until(() => listener.state.isOver)
})

test('a database that does not answer for a while ends no stream', async () => {
  let isDown = false
  const shaky = new Proxy(host, {
    apply: (target, self, args) =>
      isDown ? Promise.reject(new Error('down')) : (Reflect.apply(target, self, args) as unknown),
  }) as Pool
  await using own = await testApi({pool: shaky, cluster: 'host-a'})
  const listener = await listen(own)
  await until(() => listener.events.length > 0)
  isDown = true
  await new Promise(resolve => setTimeout(resolve, 1_500))
  isDown = false
  await api.call('/api/v1/deployments/acme', {method: 'PATCH', body: {port: 8081, enabled: false}})
  await until(() => listener.named('deployment').some(each => each.status === 'paused'))
  await listener.close()
})
