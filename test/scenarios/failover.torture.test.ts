import assert from 'node:assert/strict'
import {setTimeout as sleep} from 'node:timers/promises'
import {expect, test} from 'vitest'
import {chanceOf, seedOf} from '../mutator.ts'
import {
  busyClient,
  epochOf,
  holdsAfterwards,
  isSynced,
  leaderId,
  leaderOf,
  noStaleWrites,
  patient,
  startNode,
  type NodeProcess,
} from '../nodes.ts'
import {proxyTo} from '../proxy.ts'
import {testSite, type Site} from '../site.ts'

// What the scenarios show once, often: OWSYNC_STARTS (100) times two nodes at once, OWSYNC_FAILOVERS (30) times each
// fault, at any instant, under the lease that is usual, with a client whose file keeps changing.

const starts = Number(process.env['OWSYNC_STARTS'] ?? 100)
const failovers = Number(process.env['OWSYNC_FAILOVERS'] ?? 30)
const usual = {LEASE_DURATION: '10s', HEARTBEAT_INTERVAL: '2500ms'}

test(`of two nodes that are started at once, ${starts} times, always one leads within 5 s`, async () => {
  await using site = await testSite()
  const times: number[] = []
  for (let round = 1; round <= starts; round++) {
    const since = performance.now()
    await using a = startNode(site, 'node-a', {env: usual})
    await using b = startNode(site, 'node-b', {env: usual})
    const leader = await leaderOf(site, [a, b])
    times.push(performance.now() - since)
    assert.equal(await epochOf(site.db), BigInt(round))
    // The other one has seen it, and is content.
    const other = leader === a ? b : a
    await expect.poll(() => other.log.some(({msg}) => msg === 'the leader is known'), patient).toBe(true)
    assert.equal(await epochOf(site.db), BigInt(round))
    for (const node of [other, leader]) {
      node.kill('SIGTERM')
      assert.equal(await node.ended, 0)
    }
  }
  tell('first leader', times, 5_000)
})

for (const [what, limitMs, strike] of [
  [
    'stopped',
    1_000,
    (node: NodeProcess) => {
      node.kill('SIGTERM')
    },
  ],
  [
    'killed',
    3_000,
    (node: NodeProcess) => {
      node.killAll('SIGKILL')
    },
  ],
  [
    'killed without its workers',
    3_000,
    (node: NodeProcess) => {
      node.kill('SIGKILL')
    },
  ],
  [
    'frozen',
    15_000,
    (node: NodeProcess) => {
      node.killAll('SIGSTOP')
    },
  ],
] as const) {
  test(`a leader that is ${what}, ${failovers} times, is followed within ${limitMs / 1_000} s`, async () => {
    await rounds(
      async (site, nodes, leader, next) => {
        const ms = await timed(site, next, () => {
          strike(leader)
        })
        if (what === 'frozen') {
          await isSynced(site.db, {name: 'acme'})
          leader.killAll('SIGCONT')
          await sleep(1_000)
        }
        leader.killAll('SIGTERM')
        await leader.ended
        const index = nodes.indexOf(leader)
        nodes[index] = startNode(site, leader.nodeId.endsWith('a') ? 'node-a' : 'node-b', {env: usual})
        return ms
      },
      {limitMs, waits: what === 'frozen'},
    )
  })
}

test(`a leader whose network swallows everything, ${failovers} times, is followed within 15 s`, async () => {
  await using site = await testSite()
  const seed = seedOf()
  process.stderr.write(`OWSYNC_SEED=${seed}\n`)
  await using client = await busyClient(site, 'acme', chanceOf(seed))
  await using one = await proxyTo(site.host.endpoint)
  await using two = await proxyTo(site.host.endpoint)
  await using a = startNode(site, 'node-a', {env: usual, endpoint: one.endpoint})
  await using b = startNode(site, 'node-b', {env: usual, endpoint: two.endpoint})
  const times: number[] = []
  for (let round = 0; round < failovers; round++) {
    const leader = await leaderOf(site, [a, b])
    await isSynced(site.db, client)
    await sleep(Math.random() * 2_500)
    const proxy = leader === a ? one : two
    times.push(
      await timed(site, leader === a ? b : a, () => {
        proxy.silence('up', 'down')
      }),
    )
    proxy.heal()
    proxy.cut()
    await noStaleWrites(site.db)
    // Until it stands by again there is nobody to follow the other one.
    const since = leader.log.length
    await expect
      .poll(
        () => leader.log.slice(since - 5).some(({msg}) => msg.startsWith('connected to Postgres again')),
        patient,
      )
      .toBe(true)
  }
  await holdsAfterwards(site, [a, b], client)
  tell('cut off', times, 15_000)
})

/** Failovers one after the other between two nodes; each time what has failed is started anew. */
async function rounds(
  round: (site: Site, nodes: NodeProcess[], leader: NodeProcess, next: NodeProcess) => Promise<number>,
  {limitMs, waits}: {readonly limitMs: number; readonly waits: boolean},
): Promise<void> {
  await using site = await testSite()
  const seed = seedOf()
  process.stderr.write(`OWSYNC_SEED=${seed}\n`)
  await using client = await busyClient(site, 'acme', chanceOf(seed), {waits})
  const nodes = [startNode(site, 'node-a', {env: usual}), startNode(site, 'node-b', {env: usual})]
  try {
    const times: number[] = []
    for (let i = 0; i < failovers; i++) {
      const leader = await leaderOf(site, nodes)
      const next = nodes.find(node => node !== leader) as NodeProcess
      await isSynced(site.db, client)
      await expect.poll(() => next.log.some(({msg}) => msg === 'the leader is known'), patient).toBe(true)
      await sleep(Math.random() * 2_500)
      times.push(await round(site, nodes, leader, next))
      await noStaleWrites(site.db)
    }
    await holdsAfterwards(site, nodes, client)
    tell('failover', times, limitMs)
  } finally {
    await Promise.all(nodes.map(node => node[Symbol.asyncDispose]()))
  }
}

async function timed(site: Site, next: NodeProcess, strike: () => void): Promise<number> {
  const since = performance.now()
  strike()
  while ((await leaderId(site.db)) !== next.nodeId) {
    if (performance.now() - since > 60_000) throw new Error(`${next.nodeId} does not lead`)
    await sleep(5)
  }
  return performance.now() - since
}

function tell(what: string, times: readonly number[], limitMs: number): void {
  const worst = Math.max(...times)
  process.stderr.write(`${what}: worst of ${times.length}: ${Math.round(worst)} ms (at most ${limitMs} ms)\n`)
  assert.ok(worst <= limitMs, `${what}: ${times.map(Math.round).join(', ')} ms`)
}
