import assert from 'node:assert/strict'
import {afterAll, beforeAll, test} from 'vitest'
import {runCli} from '../../test/cli.ts'
import {syncedHost, type SyncedHost} from '../../test/synced-host.ts'
import {rowsInTarget, rowsToLoad, tablesInTarget} from '../service/rows-ahead.ts'
import {syncOnce} from '../service/sync-once.ts'

let m: SyncedHost

beforeAll(async () => {
  m = await syncedHost()
})

afterAll(async () => {
  await m[Symbol.asyncDispose]()
})

const sync = (...more: string[]) => runCli(['sync', '--client', 'acme', ...more], {env: m.env})

test('what SPEC says of a sync, name by name, and a line for a person', async () => {
  const source = m.source('acme', db => {
    db.exec(
      `create table chat (id text primary key, title text); insert into chat values ('a', 'one'), ('b', 'two')`,
    )
  })
  const first = await sync('--sqlite', source, '--json')
  assert.equal(first.code, 0, first.out + first.err)
  const {bytes, duration_ms, lock, ...rest} = first.json() as Record<string, unknown>
  assert.deepEqual(rest, {
    client: 'acme',
    generation: 1,
    mode: 'full',
    status: 'success',
    consistent: true,
    tables: 1,
    rows: {upserted: 2, tombstoned: 0, unchanged: 0, quarantined: 0},
    conflicts: {detected: 0, resolved: 0, pending: 0},
  })
  assert.ok(Number(bytes) > 0 && Number(duration_ms) > 0)
  const {max_hold_ms, busy_retries} = lock as Record<string, unknown>
  assert.ok(Number(max_hold_ms) > 0 && busy_retries === 0, JSON.stringify(lock))

  m.source('acme', db => {
    db.exec(`update chat set title = 'uno' where id = 'a'; delete from chat where id = 'b'`)
  })
  const {code, out} = await sync()
  assert.equal(code, 0)
  assert.match(out, /^acme: generation 2: 1 upserted, 1 deleted, 0 unchanged in 1 table, \d+ B, \d+\.\d s\n$/)
})

test('what is held back says how to confirm that very file', async () => {
  const other = m.source("an other's", db => {
    db.exec('create table chat (id text primary key, title text)')
  })
  const held = await sync('--sqlite', other)
  assert.equal(held.code, 2, held.out + held.err)
  const [, ...words] = /owsync (.*) --sqlite '(.*)' (--accept)$/m.exec(held.out) ?? []
  assert.deepEqual(words, ['sync --client acme', other.replace("'", "'\\''"), '--accept'])
  assert.equal((await sync('--sqlite', other, '--accept')).code, 0)
})

for (const journalMode of ['delete', 'wal'])
  test(`a first load says of each table how far it is, and how far it has to go (${journalMode})`, async () => {
    const client = `far-${journalMode}`
    const sqlite = m.source(client, db => {
      db.exec(`pragma journal_mode = ${journalMode}`)
      db.exec(`create table chat (id text primary key, title text); create table pair (a, b, primary key (a, b)) without rowid;
        create table file (rowid_less text, oid, _rowid_, rowid, primary key (oid))`)
      for (let i = 0; i < 1_200; i++) db.exec(`insert into chat values ('c${i}', 'x')`)
      for (let i = 0; i < 30; i++) db.exec(`insert into pair values (${i}, 'y')`)
      db.exec('delete from chat where rowid % 5 = 0')
    })
    const {signal} = new AbortController()
    assert.equal(await rowsToLoad(m.host, m.config, {client, sqlite}, signal), 990)
    const most = new Map<string, number>()
    const onProgress = (table: string, rows: number) => {
      if (table !== '') most.set(table, Math.max(rows, most.get(table) ?? 0))
    }
    const request = {client, sqlite, full: false, dryRun: false, accept: false, onProgress}
    assert.equal((await syncOnce(m.host, m.config, request, signal)).status, 'success')
    assert.deepEqual([most.get('chat'), most.get('pair')], [960, 30])
    assert.equal(await rowsToLoad(m.host, m.config, {client, sqlite}, signal), undefined)
    assert.equal(await rowsInTarget(m.host, client, signal), 990)
    const [place] = await m.host<{deploymentId: string; schemaName: string}>`
      select deployment_id as "deploymentId", schema_name as "schemaName" from sync_metadata.client_deployments
      where client_name = ${client}`
    const tables = await tablesInTarget(m.host, place!, signal)
    assert.deepEqual([tables?.get('chat'), tables?.get('pair')], [960, 30])
  })
