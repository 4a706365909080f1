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
  type Role,
} from '../nodes.ts'
import {testSite, type Site} from '../site.ts'

// Three nodes of one host, as while it is being moved: whichever leads is killed, frozen or stopped, and of the other two
// exactly one follows.

const roles: readonly Role[] = ['node-a', 'node-b', 'node-c']

let site: Site
let client: BusyClient
let nodes: Map<Role, NodeProcess>

beforeEach(async () => {
  const seed = seedOf()
  process.stderr.write(`OWSYNC_SEED=${seed}\n`)
  site = await testSite()
  client = await busyClient(site, 'acme', chanceOf(seed))
  nodes = new Map(roles.map(role => [role, startNode(site, role)]))
})

afterEach(async () => {
  client.rest()
  await Promise.all(all().map(node => node[Symbol.asyncDispose]()))
  await site[Symbol.asyncDispose]()
})

test('three nodes: leaders are killed in turn, and one of the others follows each time', async () => {
  for (let round = 0; round < 4; round++) {
    const leader = await leaderOf(site, all())
    await isSynced(site.db, client)
    await holdingCommits(site, client, async isHeld => {
      await isHeld()
      leader.kill('SIGKILL')
      await isFollowed(leader)
    })
    await isSynced(site.db, client)
    restart(leader)
  }
  await holdsAfterwards(site, all(), client)
  assert.ok(all().every(node => node.isRunning()))
})

test('three nodes: leaders are frozen in turn; resumed, they commit nothing and stand by', async () => {
  const frozen: NodeProcess[] = []
  // Two of three: whoever is left leads although the one before the last leader is frozen still.
  for (let round = 0; round < 2; round++) {
    const leader = await leaderOf(site, all())
    await isSynced(site.db, client)
    await holdingCommits(site, client, async isHeld => {
      await isHeld()
      leader.killAll('SIGSTOP')
    })
    frozen.push(leader)
    await isFollowed(leader)
    await isSynced(site.db, client)
  }
  assert.equal(new Set(frozen).size, 2)
  for (const node of frozen) {
    node.killAll('SIGCONT')
    await expect
      .poll(() => node.log.some(({msg}) => msg === 'this node does not lead any more'), patient)
      .toBe(true)
  }
  await isSynced(site.db, client)
  await noStaleWrites(site.db)
  await holdsAfterwards(site, all(), client)
  assert.ok(all().every(node => node.isRunning()))
})

test('three nodes: a leader that is stopped hands over, and the wish for one of the others is met', async () => {
  const first = await leaderOf(site, all())
  await isSynced(site.db, client)
  const wanted = all().find(node => node !== first) as NodeProcess
  await site.host`select sync_metadata.prefer_node(${wanted.nodeId}, 60000)`
  await expect.poll(() => leaderId(site.db), patient).toBe(wanted.nodeId)
  await isSynced(site.db, client)
  const epoch = await epochOf(site.db)
  wanted.kill('SIGTERM')
  await isFollowed(wanted)
  assert.equal(await wanted.ended, 0)
  assert.ok((await epochOf(site.db)) > epoch)
  await isSynced(site.db, client)
  const left = all().filter(node => node !== wanted)
  assert.ok(left.includes(await holdsAfterwards(site, left, client)))
})

function all(): NodeProcess[] {
  return [...nodes.values()]
}

async function isFollowed(before: NodeProcess): Promise<void> {
  const others = all()
    .filter(node => node !== before)
    .map(({nodeId}) => nodeId)
  await expect.poll(async () => others.includes((await leaderId(site.db)) ?? ''), patient).toBe(true)
}

function restart(dead: NodeProcess): void {
  for (const [role, node] of nodes) if (node === dead) nodes.set(role, startNode(site, role))
}
