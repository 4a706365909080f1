import assert from 'node:assert/strict'
import {join} from 'node:path'
import {setTimeout as sleep} from 'node:timers/promises'
import {afterAll, beforeAll, beforeEach, describe, test} from 'vitest'
import {transferClient} from '../../src/postgres/admin.ts'
import {assertMirror, compareMirror} from '../mirror.ts'
import {addColumn, chanceOf, makeFile, mutate, mutateRows, seedOf, type Chance} from '../mutator.ts'
import {proxyTo} from '../proxy.ts'
import {testHost} from '../host.ts'
import {testSite, type Run, type Running, type RunOptions, type Site} from '../site.ts'

// Whoever else is at work, at most one cut is applied at a time, and never by someone whose turn is over.

let site: Site
let chance: Chance

beforeAll(async () => {
  const seed = seedOf()
  process.stderr.write(`OWSYNC_SEED=${seed}\n`)
  chance = chanceOf(seed)
  site = await testSite()
})

afterAll(() => site[Symbol.asyncDispose]())

test('several syncs of one client at once take turns', async () => {
  const {client, file} = await loaded('turns')
  mutate(file, chance)
  const runs = await Promise.all([
    site.sync(client),
    site.sync(client),
    site.sync(client, {flags: ['--full']}),
  ])
  assert.deepEqual(
    runs.map(run => run.code),
    [0, 0, 0],
    runs.map(run => run.out + run.err).join(''),
  )
  await assertMirror(site.db, client, file)
})

test('syncs of several clients of one host at once take turns', async () => {
  const clients = ['first', 'second', 'third'].map(client => {
    const file = join(site.folder, `${client}.db`)
    makeFile(file, chance, {rows: 150})
    return {client, file}
  })
  const runs = await Promise.all(clients.map(({client, file}) => site.sync(client, {sqlite: file})))
  assert.deepEqual(
    runs.map(run => run.code),
    [0, 0, 0],
    runs.map(run => run.out + run.err).join(''),
  )
  for (const {client, file} of clients) await assertMirror(site.db, client, file)
})

describe('in the middle of a transaction', () => {
  const client = 'held'
  let file: string
  let hosts = 0

  beforeAll(async () => {
    ;({file} = await loaded(client))
  })

  beforeEach(() => {
    mutateRows(file, chance)
  })

  test('the lease is taken over: nothing of it is committed', async () => {
    // So long a lease that nobody notices before the fence does.
    const long = {env: {LEASE_DURATION: '90s', HEARTBEAT_INTERVAL: '30s'}}
    const run = await whileBlocked(long, async () => {
      const [row] = await site.host<{epoch: bigint}>`
        select epoch from sync_metadata.acquire_lease('host-a-node-b', 10000, true)`
      assert.ok(row)
      await site.host`select sync_metadata.release_lease('host-a-node-b', ${row.epoch})`
    })
    assert.deepEqual([run.code, run.error?.code], [75, 'SYNC_FENCED_OUT'], run.out + run.err)
  })

  test('the lease is taken over and the holder notices: it stops at once', async () => {
    const short = {env: {LEASE_DURATION: '2s', HEARTBEAT_INTERVAL: '200ms'}}
    const run = await whileBlocked(short, async running => {
      await site.host`select from sync_metadata.acquire_lease('host-a-node-b', 100, true)`
      await Promise.race([running.ended, sleep(8_000)])
      assert.ok(running.hasEnded(), 'it went on waiting for its transaction')
    })
    assert.deepEqual([run.code, run.error?.code], [75, 'SYNC_FENCED_OUT'], run.out + run.err)
  })

  test('the connection of the lease is cut: it stops at once', async () => {
    const run = await whileBlocked({}, async running => {
      await site.db`
        select pg_terminate_backend(pid) from pg_locks
        where locktype = 'advisory' and database = (select oid from pg_database where datname = current_database())`
      await Promise.race([running.ended, sleep(8_000)])
      assert.ok(running.hasEnded(), 'it went on waiting for its transaction')
    })
    assert.deepEqual([run.code, run.error?.code], [75, 'SYNC_CONNECTION_LOST'], run.out + run.err)
  })

  test('the network goes silent: it stops when its lease is over', async () => {
    await using proxy = await proxyTo(site.host.endpoint)
    const short = {endpoint: proxy.endpoint, env: {LEASE_DURATION: '2s', HEARTBEAT_INTERVAL: '500ms'}}
    const run = await whileBlocked(short, async running => {
      proxy.silence('up', 'down')
      await Promise.race([running.ended, sleep(12_000)])
      assert.ok(running.hasEnded(), 'it went on waiting for an answer')
    })
    assert.deepEqual([run.code, run.error?.code], [75, 'SYNC_FENCED_OUT'], run.out + run.err)
  })

  test('the client is given to another host: nothing of it is committed, and that host goes on', async () => {
    const run = await whileGivenAway()
    assert.deepEqual([run.code, run.error?.code], [1, 'SYNC_NOT_YOURS'], run.out + run.err)
  })

  test('the client is given to another host while its tables change: that host does not wait for it', async () => {
    addColumn(file, chance)
    const run = await whileGivenAway()
    // Its sessions were ended: whether it learns why depends on whether it asks before the transfer is done.
    assert.ok(run.error?.code === 'SYNC_NOT_YOURS' ? run.code === 1 : run.code === 75, run.out + run.err)
  })

  /** Gives the client to another host while a sync waits, syncs it there, and takes it back. */
  async function whileGivenAway(): Promise<Run> {
    const cluster = `host-${++hosts}`
    await using other = await testHost(site.db, cluster)
    const run = await whileBlocked({}, async () => {
      const since = performance.now()
      await transferClient(site.db, {client, toCluster: cluster})
      assert.ok(performance.now() - since < 8_000, 'it waited for the old host')
    })
    const next = await site.sync(client, {
      endpoint: other.endpoint,
      env: {CLUSTER_NAME: cluster, STATE_DIR: join(site.folder, cluster)},
    })
    assert.equal(next.code, 0, next.out + next.err)
    await assertMirror(site.db, client, file)
    await transferClient(site.db, {client, toCluster: 'host-a'})
    return run
  }

  /** Runs a sync whose transaction waits for a lock, does something meanwhile, and lets it go on. */
  async function whileBlocked(options: RunOptions, act: (running: Running) => Promise<void>): Promise<Run> {
    const before = await deployment()
    let running: Running | undefined
    await site.db.begin(async tx => {
      for (const table of ['chat', 'message', 'tag', 'note', 'config', 'preference', 'measure'])
        await tx`lock table ${tx(client, table)} in exclusive mode`
      running = site.start(client, options)
      await isWaiting(running)
      await act(running)
    })
    const run = await running!.ended
    assert.deepEqual(await deployment(), before, 'something was committed')
    const {differences} = await compareMirror(site.db, client, file)
    assert.notDeepEqual(differences, [])
    return run
  }

  async function deployment(): Promise<{generation: bigint; cut_id: string}> {
    const [row] = await site.db<{generation: bigint; cut_id: string}>`
      select generation, cut_id from sync_metadata.client_deployments where client_name = ${client}`
    return row!
  }
})

test('after all that, a sync does what is left to do', async () => {
  assert.equal((await site.sync('held')).code, 0)
  await assertMirror(site.db, 'held', join(site.folder, 'held.db'))
})

async function loaded(client: string): Promise<{client: string; file: string}> {
  const file = join(site.folder, `${client}.db`)
  makeFile(file, chance, {rows: 60})
  assert.equal((await site.syncHere(client, {sqlite: file})).status, 'success')
  return {client, file}
}

async function isWaiting(running: Running): Promise<void> {
  for (const deadline = performance.now() + 20_000; performance.now() < deadline && !running.hasEnded();) {
    const rows = await site.db`
      select from pg_stat_activity
      where datname = current_database() and wait_event_type = 'Lock' and application_name like 'owsync/%'`
    if (rows.length > 0) return
    await sleep(20)
  }
  const {out, err} = await running.ended
  assert.fail(`it did not come to wait: ${out}${err}`)
}
