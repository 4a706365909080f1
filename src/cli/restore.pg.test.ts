import assert from 'node:assert/strict'
import {readdirSync} from 'node:fs'
import {join} from 'node:path'
import {afterAll, beforeAll, test} from 'vitest'
import {runCli} from '../../test/cli.ts'
import {compareFiles} from '../../test/compare.ts'
import {syncedHost, type SyncedHost} from '../../test/synced-host.ts'

let m: SyncedHost
let source = ''

beforeAll(async () => {
  m = await syncedHost()
  source = m.source('acme', db => {
    db.exec(
      `create table chat (id text primary key, title text); insert into chat values ('a', 'one'), ('b', 'two')`,
    )
  })
  await m.sync('acme', source)
})

afterAll(async () => {
  await m[Symbol.asyncDispose]()
})

test('restore writes the file and tells what SPEC says', async () => {
  const to = join(m.folder, 'out.db')
  const {code, json} = await runCli(['restore', '--client', 'acme', '--to', to, '--json'], {env: m.env})
  assert.equal(code, 0)
  const {duration_ms, ...rest} = json() as {duration_ms: number}
  assert.deepEqual(rest, {client: 'acme', generation: 1, file: to, tables: 1, rows: 2, verified: true})
  assert.ok(duration_ms > 0)
  assert.deepEqual(compareFiles(source, to), [])
})

test('an existing file is refused, and with --force kept', async () => {
  const to = join(m.folder, 'kept.db')
  const args = ['restore', '--client', 'acme', '--to', to]
  assert.equal((await runCli(args, {env: m.env})).code, 0)
  const again = await runCli([...args, '--json'], {env: m.env})
  assert.equal(again.code, 1)
  assert.equal((again.json() as {error: {code: string}}).error.code, 'SYNC_DESTINATION')
  const forced = await runCli([...args, '--force'], {env: m.env})
  assert.equal(forced.code, 0)
  assert.match(forced.err, /The file that was there before is .*kept\.db\.\d{8}T\d{6}Z\.bak/)
  assert.match(forced.out, /acme: generation 1 restored to .*: 2 rows in 1 table, verified/)
  assert.equal(readdirSync(m.folder).filter(name => name.startsWith('kept.db')).length, 2)
})

test('what makes no sense is misuse', async () => {
  for (const args of [
    ['--client', 'acme'],
    ['--client', 'acme', '--to', 'x', '--as-of', 'yesterday'],
  ]) {
    const {code} = await runCli(['restore', ...args], {env: m.env})
    assert.equal(code, 64)
  }
})

test('rows that Postgres refused leave a warning and exit code 2', async () => {
  await m.admin`
    insert into sync_metadata.row_quarantine (deployment_id, table_name, record_key, code, reason)
    select deployment_id, 'chat', 'c', 'SYNC_VALUE_TOO_LARGE', 'too large' from sync_metadata.client_deployments`
  const {code, err} = await runCli(['restore', '--client', 'acme', '--to', join(m.folder, 'lacking.db')], {
    env: m.env,
  })
  assert.equal(code, 2)
  assert.match(err, /Postgres had refused 1 rows of acme/)
})
