import assert from 'node:assert/strict'
import {afterAll, beforeAll, test} from 'vitest'
import {runCli} from '../../test/cli.ts'
import {syncedHost, type SyncedHost} from '../../test/synced-host.ts'

let m: SyncedHost

beforeAll(async () => {
  m = await syncedHost()
  const source = m.source('acme', db => {
    db.exec(
      `create table chat (id text primary key, title text); insert into chat values ('a', 'one'), ('b', 'two')`,
    )
  })
  await m.sync('acme', source)
})

afterAll(async () => {
  await m[Symbol.asyncDispose]()
})

const verify = (...more: string[]) => runCli(['verify', '--client', 'acme', ...more], {env: m.env})

test('equal sides: exit 0, and what SPEC says', async () => {
  const {code, json} = await verify('--json')
  assert.equal(code, 0)
  const {duration_ms, ...rest} = json() as {duration_ms: number}
  assert.ok(duration_ms > 0)
  assert.deepEqual(rest, {
    client: 'acme',
    generation: 1,
    tables: 1,
    rows_compared: 2,
    differences: [],
    accepted: 0,
    pending: 0,
    moving: 0,
    repaired: 0,
  })
  const {out} = await verify()
  assert.match(out, /^acme: no differences in 2 rows of 1 table, generation 1, \d+\.\d s\n$/)
})

test('what the app has changed since is no reason for exit 2', async () => {
  m.source('acme', db => {
    db.exec(`update chat set title = 'uno' where id = 'a'`)
  })
  const {code, out} = await verify()
  assert.equal(code, 0)
  assert.match(out, /no differences in 2 rows of 1 table \(1 not synced yet\)/)
  await m.sync('acme')
})

test('differences: exit 2 until they are repaired', async () => {
  await m.admin.tamper`update acme.chat set title = 'dos' where id = 'b'`
  const found = await verify('--json')
  assert.equal(found.code, 2)
  const {differences} = found.json() as {differences: unknown}
  assert.deepEqual(differences, [{table: 'chat', key: 'b', kind: 'changed', columns: ['title']}])

  const told = await verify()
  assert.match(told.out, /1 difference in 2 rows/)
  assert.match(told.out, /^chat +b +changed +title$/m)
  assert.match(told.out, /owsync verify --client acme --repair$/m)

  const planned = await verify('--repair', '--dry-run', '--json')
  assert.equal(planned.code, 2)
  assert.deepEqual((planned.json() as {repaired: number; dry_run: boolean}).repaired, 0)
  assert.equal((await verify('--quick')).code, 0)

  const repaired = await verify('--repair')
  assert.equal(repaired.code, 0)
  assert.match(repaired.out, /All 1 have been repaired\./)
  assert.equal((await verify()).code, 0)
  const [row] = await m.admin`select title from acme.chat where id = 'b'`
  assert.equal(row!['title'], 'two')
})

test('a repair leads the cluster of the role when CLUSTER_NAME is not set', async () => {
  await m.admin.tamper`update acme.chat set title = 'tres' where id = 'b'`
  const {DATABASE_URL = '', STATE_DIR = ''} = m.env
  const {code, out, err} = await runCli(['verify', '--client', 'acme', '--repair'], {
    env: {DATABASE_URL, STATE_DIR},
  })
  assert.equal(code, 0, out + err)
  assert.match(out, /All 1 have been repaired\./)
})

test('a dry run without a repair is misuse', async () => {
  assert.equal((await verify('--dry-run')).code, 64)
})
