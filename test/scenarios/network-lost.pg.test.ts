import assert from 'node:assert/strict'
import {afterEach, beforeEach, expect, test} from 'vitest'
import {chanceOf, seedOf} from '../mutator.ts'
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
import {proxyTo, type Proxy} from '../proxy.ts'
import {testSite, type Site} from '../site.ts'

// The network between the nodes and Postgres fails: each node has a proxy of its own before the server.

let site: Site
let client: BusyClient
let nodes: NodeProcess[]
let proxies: Map<NodeProcess, Proxy>

beforeEach(async () => {
  const seed = seedOf()
  process.stderr.write(`OWSYNC_SEED=${seed}\n`)
  site = await testSite()
  client = await busyClient(site, 'acme', chanceOf(seed))
  nodes = []
  proxies = new Map()
  for (const role of ['node-a', 'node-b'] as const) {
    const proxy = await proxyTo(site.host.endpoint)
    const node = startNode(site, role, {endpoint: proxy.endpoint})
    nodes.push(node)
    proxies.set(node, proxy)
  }
})

afterEach(async () => {
  client.rest()
  await Promise.all(nodes.map(node => node[Symbol.asyncDispose]()))
  for (const proxy of proxies.values()) await proxy[Symbol.asyncDispose]()
  await site[Symbol.asyncDispose]()
})

for (const [what, directions] of [
  ['both ways', ['up', 'down']],
  ['on the way to Postgres', ['up']],
  ['on the way back', ['down']],
] as const) {
  test(`a leader whose network swallows everything ${what} is followed, and stands by when it is back`, async () => {
    const leader = await leaderOf(site, nodes)
    const next = other(leader)
    await isSynced(site.db, client)
    proxyOf(leader).silence(...directions)
    await expect.poll(() => leaderId(site.db), patient).toBe(next.nodeId)
    await isSynced(site.db, client)
    proxyOf(leader).heal()
    proxyOf(leader).cut()
    await standsBy(leader)
    await holdsAfterwards(site, nodes, client)
  })
}

test('a leader that is cut off with a cut written and not committed commits nothing', async () => {
  const leader = await leaderOf(site, nodes)
  const next = other(leader)
  await isSynced(site.db, client)
  await holdingCommits(site, client, async isHeld => {
    await isHeld()
    proxyOf(leader).silence('up', 'down')
    await expect.poll(() => leaderId(site.db), patient).toBe(next.nodeId)
  })
  await isSynced(site.db, client)
  proxyOf(leader).heal()
  await standsBy(leader)
  await noStaleWrites(site.db)
  await holdsAfterwards(site, nodes, client)
})

test('a standby that listens on a dead connection takes over none the less', async () => {
  const leader = await leaderOf(site, nodes)
  const next = other(leader)
  await isSynced(site.db, client)
  // The server has ended the session; to the node it looks alive.
  proxyOf(next).silence('down')
  await site.db`select pg_terminate_backend(pid) from pg_stat_activity
    where datname = current_database() and application_name = ${`owsync/${next.nodeId}`}`
  await expect
    .poll(() => next.log.some(({msg}) => msg.startsWith('the election has no connection')), patient)
    .toBe(true)
  proxyOf(next).heal()
  proxyOf(next).cut()
  leader.kill('SIGTERM')
  await expect.poll(() => leaderId(site.db), patient).toBe(next.nodeId)
  await holdsAfterwards(site, [next], client)
})

test('lost notifications only make things slower', async () => {
  await site.db`
    create or replace function sync_metadata.wake(p_host uuid, p_what text) returns void language sql
    as $$ select null::void $$`
  const leader = await leaderOf(site, nodes)
  const next = other(leader)
  await isSynced(site.db, client)
  await site.host`select sync_metadata.prefer_node(${next.nodeId}, 60000)`
  await expect.poll(() => leaderId(site.db), patient).toBe(next.nodeId)
  await isSynced(site.db, client)
  next.kill('SIGTERM')
  await expect.poll(() => leaderId(site.db), patient).toBe(leader.nodeId)
  await holdsAfterwards(site, [leader], client)
})

test('a slow network costs nobody the lease', async () => {
  const leader = await leaderOf(site, nodes)
  await isSynced(site.db, client)
  const epoch = await epochOf(site.db)
  for (const proxy of proxies.values()) proxy.delay(50)
  await isSynced(site.db, client)
  assert.equal(await epochOf(site.db), epoch)
  for (const proxy of proxies.values()) proxy.heal()
  assert.equal(await holdsAfterwards(site, nodes, client), leader)
})

async function standsBy(node: NodeProcess): Promise<void> {
  await expect
    .poll(() => node.log.some(({msg}) => msg === 'this node does not lead any more'), patient)
    .toBe(true)
  await expect
    .poll(() => node.log.findLast(({msg}) => msg === 'the leader is known')?.['leader'], patient)
    .toBe(other(node).nodeId)
  assert.ok(node.isRunning())
}

function other(leader: NodeProcess): NodeProcess {
  return nodes.find(node => node !== leader) as NodeProcess
}

function proxyOf(node: NodeProcess): Proxy {
  return proxies.get(node) as Proxy
}
