import assert from 'node:assert/strict'
import {afterEach, beforeEach, expect, test} from 'vitest'
import {chanceOf, seedOf, type Chance} from '../mutator.ts'
import {
  busyClient,
  epochOf,
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

function start(env: NodeJS.ProcessEnv = {}): void {
  nodes = [startNode(site, 'node-a', {env}), startNode(site, 'node-b', {env})]
}

function other(leader: NodeProcess): NodeProcess {
  return nodes.find(node => node !== leader) as NodeProcess
}
