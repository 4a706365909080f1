import assert from 'node:assert/strict'
import {join} from 'node:path'
import {afterEach, beforeEach, expect, test} from 'vitest'
import type {Sql} from '../../src/postgres/sql.ts'
import {chanceOf, seedOf, type Chance} from '../mutator.ts'
import {
  busyClient,
  epochOf,
  generationOf,
  holdingCommits,
  holdsAfterwards,
  isSynced,
  leaderId,
  leaderOf,
  noStaleWrites,
  patient,
  startNode,
  type BusyClient,
  type NodeProcess,
} from '../nodes.ts'
import {testSite, type Site} from '../site.ts'
import {isGone} from '../workers.ts'

// What becomes of a leader that is killed, frozen or busy, on real processes, while a client's file keeps changing.

let site: Site
let chance: Chance
let client: BusyClient
let nodes: NodeProcess[]

beforeEach(async () => {
  const seed = seedOf()
  process.stderr.write(`OWSYNC_SEED=${seed}\n`)
  chance = chanceOf(seed)
  site = await testSite()
  client = await busyClient(site, 'acme', chance)
  nodes = []
})

afterEach(async () => {
  client.rest()
  await Promise.all(nodes.map(node => node[Symbol.asyncDispose]()))
  await site[Symbol.asyncDispose]()
})

test('of two nodes that start at once one leads within 5 s of its start, and only that one syncs', async () => {
  start()
  const leader = await leaderOf(site, nodes)
  await isSynced(site.db, client)
  assert.equal(await epochOf(site.db), 1n)
  assert.deepEqual(
    nodes.map(node => node.workers().length > 0),
    nodes.map(node => node === leader),
  )
  await holdsAfterwards(site, nodes, client)
})

test('a leader that is stopped during a sync gives the lease back at once, and its process ends well', async () => {
  start()
  const leader = await leaderOf(site, nodes)
  const next = other(leader)
  await isSynced(site.db, client)
  await holdingCommits(site, client, async isHeld => {
    await isHeld()
    leader.kill('SIGTERM')
    await expect.poll(() => leaderId(site.db), patient).toBe(next.nodeId)
  })
  assert.equal(await leader.ended, 0)
  await holdsAfterwards(site, [next], client)
})

test('a leader that is killed with a cut written and not committed is followed at once', async () => {
  start({LEASE_DURATION: '60s', HEARTBEAT_INTERVAL: '2s'})
  const leader = await leaderOf(site, nodes)
  const next = other(leader)
  await isSynced(site.db, client)
  const workers = leader.workers()
  await holdingCommits(site, client, async isHeld => {
    await isHeld()
    leader.kill('SIGKILL')
    await expect.poll(() => leaderId(site.db), patient).toBe(next.nodeId)
  })
  await isGone(workers, 20_000)
  await holdsAfterwards(site, [next], client)
})

test('a leader that is frozen with all it has started is followed; resumed, it commits nothing and stands by', async () => {
  start()
  const leader = await leaderOf(site, nodes)
  const next = other(leader)
  await isSynced(site.db, client)
  await holdingCommits(site, client, async isHeld => {
    await isHeld()
    leader.killAll('SIGSTOP')
  })
  await expect.poll(() => leaderId(site.db), patient).toBe(next.nodeId)
  await isSynced(site.db, client, 2n)
  leader.killAll('SIGCONT')
  await expect
    .poll(() => leader.log.some(({msg}) => msg === 'this node does not lead any more'), patient)
    .toBe(true)
  await isSynced(site.db, client, 2n)
  await noStaleWrites(site.db)
  await holdsAfterwards(site, nodes, client)
  assert.ok(leader.isRunning())
})

test('what nothing else can stop, the fence does: a worker that goes on while its frozen node is forced out', async () => {
  // The next leader can end neither its sessions nor its processes: another role, another machine.
  await site.db`
    create or replace function sync_metadata.end_older_sessions(p_epoch bigint) returns int language sql as $$ select 0 $$`
  nodes = [
    startNode(site, 'node-a', {env: {LEASE_DURATION: '60s'}}),
    startNode(site, 'node-b', {env: {LEASE_DURATION: '60s', STATE_DIR: join(site.folder, 'other-state')}}),
  ]
  const leader = await leaderOf(site, nodes)
  const next = other(leader)
  await isSynced(site.db, client)
  let before = 0n
  await holdingCommits(site, client, async isHeld => {
    await isHeld()
    before = await generationOf(site.db, client)
    leader.kill('SIGSTOP')
    await site.host`select sync_metadata.prefer_node(${next.nodeId}, p_force => true)`
    await expect.poll(() => leaderId(site.db), patient).toBe(next.nodeId)
    assert.ok(leader.workers().length > 0)
  })
  await isSynced(site.db, client)
  await noStaleWrites(site.db)
  assert.ok((await generationOf(site.db, client)) > before)
  leader.kill('SIGCONT')
  await holdsAfterwards(site, nodes, client)
})

test('a leader that is killed in the middle of a COPY of a first load is followed, and the load is completed', async () => {
  await using large = await busyClient(site, 'large', chance, {rows: 3_000, everyMs: 500})
  start()
  const leader = await leaderOf(site, nodes)
  await isCopying(site.db)
  leader.kill('SIGKILL')
  const next = other(leader)
  await expect.poll(() => leaderId(site.db), patient).toBe(next.nodeId)
  await isSynced(site.db, large)
  large.rest()
  await holdsAfterwards(site, [next], large)
  await holdsAfterwards(site, [next], client)
})

test('a promotion during a long batch does not wait for it, and the batch is not committed under the old epoch', async () => {
  start()
  const leader = await leaderOf(site, nodes)
  const next = other(leader)
  await isSynced(site.db, client)
  const generation = await generationOf(site.db, client)
  await holdingCommits(site, client, async isHeld => {
    await isHeld()
    await site.host`select sync_metadata.prefer_node(${next.nodeId})`
    await expect.poll(() => leaderId(site.db), patient).toBe(next.nodeId)
    assert.equal(await generationOf(site.db, client), generation)
  })
  await isSynced(site.db, client)
  assert.equal(await holdsAfterwards(site, nodes, client), next)
})

test('a node whose event loop stands still for 5 s keeps the lease, leading or not', async () => {
  const env = {LEASE_DURATION: '12s', HEARTBEAT_INTERVAL: '1s'}
  start(env, 'blocks-on-signal.ts')
  const leader = await leaderOf(site, nodes)
  await isSynced(site.db, client)
  for (const node of nodes) {
    node.kill('SIGUSR2')
    await expect
      .poll(() => node.log.some(({msg}) => msg === 'the event loop was blocked'), patient)
      .toBe(true)
    await isSynced(site.db, client)
  }
  assert.equal(await epochOf(site.db), 1n)
  assert.equal(await holdsAfterwards(site, nodes, client), leader)
})

test('a node whose clock jumps back and forth keeps the lease', async () => {
  start({}, 'stepping-clock.ts')
  const leader = await leaderOf(site, nodes)
  await isSynced(site.db, client, 3n)
  assert.equal(await epochOf(site.db), 1n)
  assert.equal(await holdsAfterwards(site, nodes, client), leader)
})

/** Waits until a worker is within a COPY into a client's table. */
async function isCopying(sql: Sql): Promise<void> {
  await expect
    .poll(
      async () => {
        const rows = await sql`
        select from pg_stat_progress_copy c join pg_stat_activity a using (pid)
        where a.application_name ~ '^owsync/.*/[0-9]+$' and c.type = 'PIPE'
          and c.datname = current_database()`
        return rows.length
      },
      {timeout: 60_000, interval: 1},
    )
    .toBeGreaterThan(0)
}

function start(env: NodeJS.ProcessEnv = {}, preload?: string): void {
  const options = {env, ...(preload === undefined ? {} : {preload})}
  nodes = [startNode(site, 'node-a', options), startNode(site, 'node-b', options)]
}

function other(leader: NodeProcess): NodeProcess {
  return nodes.find(node => node !== leader) as NodeProcess
}
