import {describe, expect, test} from 'vitest'
import assert from 'node:assert/strict'
import {bouncer, noBouncer} from '../bouncer.ts'
import {chanceOf, seedOf} from '../mutator.ts'
import {
  busyClient,
  epochOf,
  holdsAfterwards,
  isSynced,
  leaderId,
  leaderOf,
  patient,
  startNode,
  type NodeProcess,
} from '../nodes.ts'
import {testSite} from '../site.ts'
import type {Sql} from '../../src/postgres/sql.ts'

// A pooler between the nodes and Postgres, as Supabase has one. In transaction mode there are no sessions: no LISTEN, and
// an advisory lock stays with a connection that others use next.

if (noBouncer !== undefined) process.stderr.write(`skipped: ${noBouncer}\n`)

describe.skipIf(noBouncer !== undefined)('PgBouncer', () => {
  for (const mode of ['session', 'transaction'] as const) {
    test(`in ${mode} mode: nodes elect, sync, follow a killed leader and a frozen one, and hand over`, async () => {
      const seed = seedOf()
      process.stderr.write(`OWSYNC_SEED=${seed}\n`)
      await using site = await testSite()
      await using pooler = await bouncer(site.db.endpoint, mode)
      await using client = await busyClient(site, 'acme', chanceOf(seed), {waits: true})
      const endpoint = pooler.through(site.host.endpoint)
      const start = (role: 'node-a' | 'node-b') => startNode(site, role, {endpoint})
      const nodes = {'node-a': start('node-a'), 'node-b': start('node-b')}
      const both = () => Object.values(nodes)
      const other = (node: NodeProcess) => both().find(each => each !== node) as NodeProcess
      try {
        const first = await leaderOf(site, both())
        await isSynced(site.db, client)
        const saysSo = () => both().map(({log}) => log.some(({msg}) => msg.includes('transaction pooler')))
        const isPooled = mode === 'transaction'
        // The node that does not lead may have been slower to connect.
        await expect.poll(() => beatingNodes(site.db), patient).toBe(2)
        await expect.poll(saysSo, patient).toEqual([isPooled, isPooled])
        // Nobody is taken for dead because of a lock that a shared session has kept.
        const epoch = await epochOf(site.db)
        await isSynced(site.db, client, 3n)
        assert.equal(await epochOf(site.db), epoch)
        assert.deepEqual(saysSo(), [isPooled, isPooled])

        first.killAll('SIGKILL')
        const second = other(first)
        await expect.poll(() => leaderId(site.db), patient).toBe(second.nodeId)
        nodes[first.nodeId.endsWith('a') ? 'node-a' : 'node-b'] = start(
          first.nodeId.endsWith('a') ? 'node-a' : 'node-b',
        )
        await isSynced(site.db, client)

        second.killAll('SIGSTOP')
        const third = other(second)
        await expect.poll(() => leaderId(site.db), patient).toBe(third.nodeId)
        await isSynced(site.db, client)
        second.killAll('SIGCONT')
        await isSynced(site.db, client)

        await expect
          .poll(async () => {
            await site.host`select sync_metadata.prefer_node(${second.nodeId})`
            return await leaderId(site.db)
          }, patient)
          .toBe(second.nodeId)
        second.kill('SIGTERM')
        await expect.poll(() => leaderId(site.db), patient).toBe(third.nodeId)
        await holdsAfterwards(site, [third], client)
      } finally {
        client.rest()
        await Promise.all(both().map(node => node[Symbol.asyncDispose]()))
      }
    })
  }
})

async function beatingNodes(sql: Sql): Promise<number> {
  const [row] = await sql<{
    nodes: number
  }>`select count(last_heartbeat)::integer as nodes from sync_metadata.sync_nodes`
  return row?.nodes ?? 0
}
