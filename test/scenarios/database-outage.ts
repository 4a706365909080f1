import assert from 'node:assert/strict'
import {setTimeout as sleep} from 'node:timers/promises'
import {test} from 'vitest'
import {chanceOf, seedOf} from '../mutator.ts'
import {
  busyClient,
  generationOf,
  holdsAfterwards,
  isSynced,
  leaderOf,
  startNode,
  type NodeProcess,
} from '../nodes.ts'
import {ownServer} from '../own-server.ts'
import {testSite} from '../site.ts'

// Postgres is away for long, while the app goes on writing: no node ends of it, each says so now and then, and when it is
// there again nothing is missing.

/** Defines the test. @param outageMs for how long Postgres is away. */
export function databaseOutage(outageMs: number): void {
  test(`Postgres is away for ${outageMs / 1_000} s`, {timeout: 240_000 + outageMs}, async () => {
    const seed = seedOf()
    process.stderr.write(`OWSYNC_SEED=${seed}\n`)
    await using server = await ownServer()
    await using site = await testSite('host-a', () => server.database())
    await using client = await busyClient(site, 'acme', chanceOf(seed))
    await using first = startNode(site, 'node-a')
    await using second = startNode(site, 'node-b')
    const nodes = [first, second]
    await leaderOf(site, nodes)
    await isSynced(site.db, client)
    const before = await generationOf(site.db, client)
    const lines = nodes.map(({log}) => log.length)
    await server.stop('fast')
    await sleep(outageMs)
    for (const [i, node] of nodes.entries()) {
      assert.ok(node.isRunning())
      saysSo(node)
      // It pauses longer and longer, and says so each time.
      const more = node.log.length - lines[i]!
      process.stderr.write(`${node.nodeId}: ${more} lines of log\n`)
      assert.ok(more < 40 + outageMs / 1_000, `${more} lines`)
    }
    await server.start()
    const since = performance.now()
    await leaderOf(site, nodes)
    const ledMs = performance.now() - since
    await isSynced(site.db, client)
    process.stderr.write(
      `led again after ${Math.round(ledMs)} ms, synced after ${Math.round(performance.now() - since)} ms\n`,
    )
    assert.ok((await generationOf(site.db, client)) > before)
    await holdsAfterwards(site, nodes, client)
    assert.ok(nodes.every(node => node.isRunning()))
  })
}

function saysSo({log}: NodeProcess): void {
  const told = log.findLast(({msg}) => msg.startsWith('the election has no connection'))
  assert.equal(told?.level, 'error')
  assert.equal((told['err'] as {code: string}).code, 'SYNC_UNREACHABLE')
}
