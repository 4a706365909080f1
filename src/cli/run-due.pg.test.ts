import assert from 'node:assert/strict'
import {rmSync} from 'node:fs'
import {afterAll, beforeAll, test} from 'vitest'
import {runCli} from '../../test/cli.ts'
import {syncedHost, type SyncedHost} from '../../test/synced-host.ts'

let m: SyncedHost
const files: Record<string, string> = {}

beforeAll(async () => {
  m = await syncedHost()
  for (const name of ['acme', 'beta', 'gamma']) {
    const file = m.source(name, db => {
      db.exec(`create table t (id text primary key); insert into t values ('a'), ('b')`)
    })
    files[name] = file
    const interval = name === 'gamma' ? null : 3_600
    await m.host`select sync_metadata.register_deployment(${name},
      ${JSON.stringify({sqlite_path: file, sync_interval: interval})})`
  }
})
afterAll(() => m[Symbol.asyncDispose]())

const runDue = (...more: string[]) => runCli(['run-due', ...more], {env: m.env})
type Pass = {cluster: string; leader: string | null; runs: Record<string, unknown>[]}

test('every client that is due is synced once, and those that wait to be asked for are not', async () => {
  const first = await runDue('--json')
  assert.equal(first.code, 0, first.out + first.err)
  const {cluster, leader, runs} = first.json() as Pass
  assert.deepEqual([cluster, leader], [m.host.cluster, null])
  assert.deepEqual(
    runs.sort((a, b) => (String(a['client']) < String(b['client']) ? -1 : 1)),
    ['acme', 'beta'].map(client => ({
      client,
      sync_type: 'incremental',
      triggered_by: 'scheduler',
      status: 'success',
      generation: 1,
      error: null,
    })),
  )
  const again = await runDue()
  assert.deepEqual([again.code, again.out], [0, 'Nothing is due.\n'])
})

test('a client that cannot be synced is told, and fails the command; the others are synced', async () => {
  await m.host`update sync_metadata.client_deployments set sync_interval = 10,
    checked_at = now() - interval '1 hour', last_sync_at = now() - interval '1 hour'`
  rmSync(files['acme']!)
  const {code, json} = await runDue('--json')
  assert.equal(code, 1)
  const runs = new Map((json() as Pass).runs.map(run => [run['client'], run]))
  assert.equal(runs.get('beta')!['status'], 'unchanged')
  assert.deepEqual(
    [runs.get('acme')!['status'], (runs.get('acme')!['error'] as {code: string}).code],
    ['failed', 'SYNC_SOURCE_UNREADABLE'],
  )
})

test('where a node leads, nothing is done here', async () => {
  await m.host`select * from sync_metadata.acquire_lease(${`${m.host.cluster}-node-a`}, 600000)`
  const {code, json} = await runDue('--json')
  assert.equal(code, 0)
  assert.deepEqual(json(), {cluster: m.host.cluster, leader: `${m.host.cluster}-node-a`, runs: []})
})
