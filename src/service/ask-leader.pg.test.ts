import assert from 'node:assert/strict'
import {copyFileSync, rmSync} from 'node:fs'
import {join} from 'node:path'
import {DatabaseSync} from 'node:sqlite'
import {setTimeout as sleep} from 'node:timers/promises'
import {afterAll, beforeAll, describe, test} from 'vitest'
import {SyncError} from '../core/errors.ts'
import {cancelJob} from '../state/jobs.ts'
import {listScheduled} from '../state/scheduled.ts'
import {refusal} from '../../test/host.ts'
import {askFor, jobsConfig, jobsOf, leadingJobs, until, type LeadingJobs} from '../../test/leading-jobs.ts'
import {leadingHost, type LeadingClient, type LeadingHost} from '../../test/leading-host.ts'
import {assertMirror} from '../../test/mirror.ts'
import {chanceOf, mutate, seedOf, type Chance} from '../../test/mutator.ts'
import {syncedHost} from '../../test/synced-host.ts'
import {holdingUp, workerClient} from '../../test/workers.ts'
import {JobCancelledError} from './ask-leader.ts'
import {Freshness} from './freshness.ts'
import {syncOnce, type SyncRequest} from './sync-once.ts'
import {verifyOnce} from './verify-once.ts'

let leader: LeadingHost
let jobs: LeadingJobs
let chance: Chance
let clients = 0

beforeAll(async () => {
  const seed = seedOf()
  process.stderr.write(`OWSYNC_SEED=${seed}\n`)
  chance = chanceOf(seed)
  leader = await leadingHost('host-a', 'node-a')
  jobs = await leadingJobs(leader, {env: {DELETE_GUARD: '0,0%'}})
})
afterAll(async () => {
  await jobs[Symbol.asyncDispose]()
  await leader[Symbol.asyncDispose]()
})

const newClient = () => workerClient(leader, `asked-${++clients}`, chance)
const mirrors = (client: LeadingClient, file = client.file) =>
  assertMirror(leader.admin, client.name.replaceAll('-', '_'), file)
async function sync(
  client: LeadingClient,
  request: Partial<SyncRequest> = {},
  signal = new AbortController().signal,
) {
  const whole = {client: client.name, full: false, dryRun: false, accept: false, ...request}
  return await syncOnce(leader.host, await jobsConfig(leader), whole, signal)
}

describe('where a node leads, a sync that is asked for on the command line', () => {
  test('is a job of that node, and says the same as one that leads itself', async () => {
    await using client = await newClient()
    const first = await sync(client)
    const {generation, mode, status, consistent, rows} = first
    assert.deepEqual([generation, mode, status, consistent], [1n, 'full', 'success', true])
    assert.ok(rows.upserted > 0)
    assert.ok(!('details' in first))
    const [job] = await jobsOf(leader, client)
    assert.deepEqual([job!.triggeredBy, job!.nodeId, job!.status], ['cli', 'host-a-node-a', 'success'])
    assert.equal((await sync(client)).mode, 'unchanged')
    await mirrors(client)

    mutate(client.file, chance)
    const dry = await sync(client, {dryRun: true, accept: true})
    assert.deepEqual([dry.mode, dry.generation], ['incremental', 1n])
    assert.equal((await client.deployment()).generation, 1n)
    assert.equal((await sync(client, {full: true, accept: true})).generation, 2n)
    await mirrors(client)
  })

  test('takes the file that is named, and keeps to it once that worked', async () => {
    await using client = await newClient()
    await sync(client)
    const moved = join(leader.folder, `${client.name}-moved.db`)
    copyFileSync(client.file, moved)
    mutate(moved, chance)
    const result = await sync(client, {sqlite: moved, accept: true})
    assert.deepEqual([result.status, result.generation], ['success', 2n])
    assert.equal((await client.deployment()).sqlitePath, moved)
    await mirrors(client, moved)
    rmSync(moved)
  })

  test('fails with the code, the words and the way on that the worker met', async () => {
    await using client = await newClient()
    rmSync(client.file)
    const error = await refusal(sync(client))
    assert.ok(error instanceof SyncError)
    assert.deepEqual(
      [error.name, error.code, error.retryable],
      ['SourceUnreadableError', 'SYNC_SOURCE_UNREADABLE', false],
    )
    assert.match(error.next, /Check the path/)
  })

  test('tells what is held back, and how it went once that is confirmed', async () => {
    await using client = await newClient()
    const change = (statement: string) => {
      using db = new DatabaseSync(client.file)
      db.exec(statement)
    }
    change('create table guarded (id integer primary key); insert into guarded values (1), (2)')
    await sync(client)
    change('delete from guarded')
    const held = await sync(client)
    assert.equal(held.status, 'quarantined')
    assert.match(held.reason!, /guarded/)
    const [job] = await jobsOf(leader, client)
    assert.deepEqual([job!.status, job!.errorCode], ['failed', 'SYNC_QUARANTINED'])
    assert.equal((await sync(client, {accept: true})).status, 'success')
    await mirrors(client)
  })

  test('lets another job of the client go first, and is then done', async () => {
    await using client = await newClient()
    await sync(client)
    mutate(client.file, chance)
    const {second, first} = await holdingUp(leader, client, async isHeld => {
      const first = await askFor(leader, client, 'incremental', {accept: true})
      await isHeld()
      const second = sync(client, {full: true, accept: true})
      second.catch(() => undefined)
      return {second, first}
    })
    const result = await second
    assert.equal(result.status, 'success')
    const [mine, other] = await jobsOf(leader, client)
    assert.deepEqual([other!.jobId, mine!.syncType, mine!.triggeredBy], [first, 'full', 'cli'])
  })

  test('is cancelled when nobody waits for it any more, and says so when somebody cancels it', async () => {
    await using client = await newClient()
    await sync(client)
    mutate(client.file, chance)
    await holdingUp(leader, client, async isHeld => {
      const stop = new AbortController()
      const given = sync(client, {accept: true}, stop.signal)
      given.catch(() => undefined)
      await isHeld()
      stop.abort(new Error('the person has gone'))
      await assert.rejects(given, /the person has gone/)
      // Let go before the worker is stopped, the cut would be committed after all.
      await until('the worker to be stopped', async () => {
        const waiting = await leader.admin`
          select from pg_stat_activity where datname = current_database()
            and application_name like 'owsync/%/%' and wait_event_type = 'Lock'`
        return waiting.length === 0 ? true : undefined
      })
    })
    const [left] = await jobsOf(leader, client)
    assert.equal(left!.status, 'cancelled')

    await holdingUp(leader, client, async isHeld => {
      const given = sync(client, {accept: true})
      given.catch(() => undefined)
      await isHeld()
      const open = await until('the job', async () =>
        (await jobsOf(leader, client)).find(({status}) => status === 'running'),
      )
      await cancelJob(leader.host, open.jobId)
      assert.ok((await refusal(given)) instanceof JobCancelledError)
    })
    assert.equal((await sync(client, {accept: true})).status, 'success')
    await mirrors(client)
  })
})

test('where a node leads, a repair is a job of that node', async () => {
  await using client = await newClient()
  await sync(client)
  const [table] = (await client.schema()).tables
  const schema = client.name.replaceAll('-', '_')
  await leader.admin`update ${leader.admin(schema, table!.target)} set _sync_deleted_at = now()`
  const request = {client: client.name, quick: false, repair: true}
  const config = await jobsConfig(leader)
  const {result, totals} = await verifyOnce(leader.host, config, request, new AbortController().signal)
  assert.deepEqual([result.generation, result.repaired], [1n, totals.differences])
  assert.ok(totals.differences > 0)
  await mirrors(client)
  const [job] = await jobsOf(leader, client)
  assert.deepEqual([job!.syncType, job!.triggeredBy], ['verify', 'cli'])
})

test('a node that leads no more while a sync waits for it: the command leads itself', async () => {
  await using m = await syncedHost()
  const file = m.source('acme', db => {
    db.exec(`create table t (id text primary key); insert into t values ('a')`)
  })
  await m.host`select * from sync_metadata.acquire_lease(${`${m.host.cluster}-node-a`}, 2500)`
  const config = {...m.config, leaseDurationMs: 2_000, heartbeatIntervalMs: 500}
  const request = {client: 'acme', sqlite: file, full: false, dryRun: false, accept: false}
  const result = await syncOnce(m.host, config, request, new AbortController().signal)
  assert.deepEqual([result.status, result.generation], ['success', 1n])
  assert.deepEqual(
    await m.host`select status, triggered_by from sync_metadata.sync_jobs order by created_at`,
    [
      {status: 'cancelled', triggered_by: 'cli'},
      {status: 'success', triggered_by: 'cli'},
    ],
  )
})

test('what a command has synced where no node leads is not behind for the node that comes', async () => {
  await using m = await syncedHost()
  const file = m.source('acme', db => {
    db.exec('pragma journal_mode = wal; create table t (id text primary key)')
  })
  const {signal} = new AbortController()
  const behindMs = async () => {
    const [deployment] = await listScheduled(m.host)
    const freshness = new Freshness()
    freshness.know([deployment!])
    await freshness.look(signal)
    // Time goes on for what is behind.
    await sleep(1)
    return freshness.behindMs(deployment!.deploymentId)
  }
  for (const id of ['a', 'b']) {
    m.source('acme', db => db.prepare('insert into t values (?)').run(id))
    if (id !== 'a') assert.ok((await behindMs()) > 0)
    await m.sync('acme', file)
    assert.equal(await behindMs(), 0)
  }
})
