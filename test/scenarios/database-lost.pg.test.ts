import assert from 'node:assert/strict'
import {setTimeout as sleep} from 'node:timers/promises'
import {afterEach, beforeEach, expect, test} from 'vitest'
import {chanceOf, seedOf} from '../mutator.ts'
import {
  busyClient,
  holdsAfterwards,
  isSynced,
  leaderOf,
  patient,
  startNode,
  type BusyClient,
  type NodeProcess,
} from '../nodes.ts'
import {ownServer, type OwnServer} from '../own-server.ts'
import {testSite, type Site} from '../site.ts'

// Postgres itself goes: for a moment (database-outage.ts: for long), or one kind of its sessions at a time. No node ends of it, and
// nothing that the app wrote meanwhile is missing afterwards.

let server: OwnServer
let site: Site
let client: BusyClient
let nodes: NodeProcess[]

beforeEach(async () => {
  const seed = seedOf()
  process.stderr.write(`OWSYNC_SEED=${seed}\n`)
  server = await ownServer()
  site = await testSite('host-a', () => server.database())
  client = await busyClient(site, 'acme', chanceOf(seed))
  nodes = [startNode(site, 'node-a'), startNode(site, 'node-b')]
})

afterEach(async () => {
  client.rest()
  await Promise.all(nodes.map(node => node[Symbol.asyncDispose]()))
  await site[Symbol.asyncDispose]()
  await server[Symbol.asyncDispose]()
})

for (const how of ['fast', 'immediate'] as const) {
  test(`Postgres is restarted (${how}) during syncs`, async () => {
    await leaderOf(site, nodes)
    await isSynced(site.db, client)
    for (let round = 0; round < 2; round++) {
      await server.stop(how)
      await server.start()
      await leaderOf(site, nodes)
      await isSynced(site.db, client)
    }
    await holdsAfterwards(site, nodes, client)
    allRun()
  })
}

test('nodes that start while Postgres is away lead when it is there', async () => {
  await server.stop('fast')
  await Promise.all(nodes.map(node => node[Symbol.asyncDispose]()))
  nodes = [startNode(site, 'node-a'), startNode(site, 'node-b')]
  await expect
    .poll(() => nodes.every(({log}) => log.some(({msg}) => msg.startsWith('the election has no'))), patient)
    .toBe(true)
  await server.start()
  await leaderOf(site, nodes)
  await holdsAfterwards(site, nodes, client)
})

test('every kind of session is ended, again and again', async () => {
  await leaderOf(site, nodes)
  await isSynced(site.db, client)
  for (const kind of ['^owsync/host-a-node-a$', '^owsync/host-a-node-b$', '^owsync/.*/[0-9]+$', '^owsync/']) {
    for (let round = 0; round < 3; round++) {
      await expect
        .poll(async () => {
          const ended = await site.db`
            select pg_terminate_backend(pid) from pg_stat_activity
            where datname = current_database() and application_name ~ ${kind} and pid <> pg_backend_pid()`
          return ended.length
        }, patient)
        .toBeGreaterThan(0)
      await sleep(300)
    }
    await leaderOf(site, nodes)
    await isSynced(site.db, client)
  }
  await holdsAfterwards(site, nodes, client)
  allRun()
})

function allRun(): void {
  assert.ok(nodes.every(node => node.isRunning()))
}
