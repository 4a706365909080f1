import assert from 'node:assert/strict'
import {afterAll, beforeAll, test} from 'vitest'
import {runCli} from '../../test/cli.ts'
import {syncedHost, type SyncedHost} from '../../test/synced-host.ts'

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
  assert.deepEqual([typeof max_hold_ms, busy_retries], ['number', 0])

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
