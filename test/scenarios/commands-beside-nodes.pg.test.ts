import assert from 'node:assert/strict'
import {join} from 'node:path'
import {afterAll, beforeAll, expect, test} from 'vitest'
import {urlOf} from '../../src/net/endpoint.ts'
import {runCli} from '../cli.ts'
import {leaderOf, patient, startNode, type NodeProcess} from '../nodes.ts'
import {openShape} from '../shapes.ts'
import {testSite, type Site} from '../site.ts'

// What people type while two real nodes run: the node that leads does it, and nobody is in anybody's way.

let site: Site
let nodes: NodeProcess[]

beforeAll(async () => {
  site = await testSite()
  nodes = [startNode(site, 'node-a'), startNode(site, 'node-b')]
})

afterAll(async () => {
  await Promise.all(nodes.map(node => node[Symbol.asyncDispose]()))
  await site[Symbol.asyncDispose]()
})

type Document = Record<string, unknown>

async function json(...words: string[]): Promise<Document> {
  const env = {
    DATABASE_URL: urlOf(site.host.endpoint),
    CLUSTER_NAME: site.host.cluster,
    STATE_DIR: site.stateDir,
  }
  const {code, out, err, json} = await runCli([...words, '--json'], {env})
  assert.equal(code, 0, out + err)
  return json() as Document
}

/** Changes the client's file, as its app does. @returns its path. */
function inFile(name: string, statements: string): string {
  const file = join(site.folder, `${name}.db`)
  using db = openShape(file)
  db.exec(statements)
  return file
}

async function becomes(name: string, what: Document): Promise<void> {
  await expect
    .poll(async () => {
      const client = await json('client', 'status', name)
      return Object.fromEntries(Object.keys(what).map(key => [key, client[key]]))
    }, patient)
    .toEqual(what)
}

const chats = `create table if not exists chat (id text primary key, title text);
  with recursive n (i) as (select 1 union all select i + 1 from n where i < 300)
  insert or replace into chat select 'c' || i, 'x' from n`

test('a client that is registered is synced by the leader, and one that is paused is not', async () => {
  const sqlite = inFile('live', chats)
  await json('client', 'register', 'live', '--sqlite', sqlite, '--interval', 'live')
  await becomes('live', {generation: 1, status: 'active'})
  await json('client', 'pause', 'live')
  inFile('live', `update chat set title = 'y' where id = 'c1'`)
  // Another one's sync shows that the leader has gone on meanwhile.
  await json('client', 'register', 'quick', '--sqlite', inFile('quick', chats), '--interval', 'live')
  await becomes('quick', {generation: 1})
  await becomes('live', {generation: 1, status: 'paused'})
  await json('client', 'start', 'live')
  await becomes('live', {generation: 2, status: 'active'})
})

test('what the leader holds back is confirmed through it', async () => {
  await json('client', 'register', 'held', '--sqlite', inFile('held', chats), '--interval', 'live')
  await becomes('held', {generation: 1})
  inFile('held', 'delete from chat')
  await becomes('held', {status: 'quarantined', generation: 1})
  const confirmed = await json('client', 'confirm', 'held', '--yes')
  assert.deepEqual([confirmed['status'], confirmed['generation']], ['success', 2])
  await becomes('held', {status: 'active', generation: 2})
  const {jobs} = await json('client', 'history', 'held')
  const [last] = jobs as Document[]
  assert.match(last?.['node_id'] as string, /-node-[ab]$/)
  assert.equal(last?.['triggered_by'], 'cli')
})

test('a failover test switches the leader, and syncs go on under the new one', async () => {
  await json('client', 'register', 'switched', '--sqlite', inFile('switched', chats), '--interval', 'live')
  await becomes('switched', {generation: 1})
  await expect.poll(async () => (await json('cluster', 'nodes'))['count'], patient).toBe(2)
  const before = await leaderOf(site, nodes)
  const {ok, from, to} = await json('cluster', 'failover-test', '--yes')
  assert.deepEqual([ok, from], [true, before.nodeId])
  inFile('switched', `update chat set title = 'y' where id = 'c1'`)
  await becomes('switched', {generation: 2})
  const {jobs} = await json('client', 'history', 'switched')
  assert.equal((jobs as Document[])[0]?.['node_id'], to)
  await json('cluster', 'promote', before.nodeId)
  assert.equal((await leaderOf(site, nodes)).nodeId, before.nodeId)
})

test('a client that is given up is left alone by the nodes at once', async () => {
  await json('client', 'register', 'left', '--sqlite', inFile('left', chats), '--interval', 'live')
  await becomes('left', {generation: 1})
  await json('client', 'deregister', 'left', '--force', '--yes')
  inFile('left', `update chat set title = 'y' where id = 'c1'`)
  await json('client', 'register', 'next', '--sqlite', inFile('next', chats), '--interval', 'live')
  await becomes('next', {generation: 1})
  assert.deepEqual(
    await site.db`select generation, host_id from sync_metadata.client_deployments where client_name = 'left'`,
    [{generation: 1n, host_id: null}],
  )
  assert.deepEqual(await site.db`select title from "left".chat where _sync_key = 'c1'`, [{title: 'x'}])
})
