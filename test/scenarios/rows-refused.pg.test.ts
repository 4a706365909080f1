import assert from 'node:assert/strict'
import {randomBytes} from 'node:crypto'
import {join} from 'node:path'
import {DatabaseSync, type SQLInputValue} from 'node:sqlite'
import {afterAll, beforeAll, describe, test} from 'vitest'
import {raw} from '../../src/postgres/sql.ts'
import {longestValue} from '../../src/source/open.ts'
import {paged} from '../../src/sync/sync.ts'
import {assertMirror, compareMirror} from '../mirror.ts'
import {testSite, type Site} from '../site.ts'

// A row that Postgres refuses, for whatever reason, is set aside with its reason and tried again with every sync. All
// others are applied, and no run that leaves one out says success.

let site: Site
let clients = 0

beforeAll(async () => {
  site = await testSite()
})

afterAll(() => site[Symbol.asyncDispose]())

describe('a row that a rule of the target’s owner refuses', () => {
  test('is set aside, named, tried again, and applied once it is fine', async () => {
    const {client, file, write} = newClient()
    await site.syncHere(client, {sqlite: file})
    await forbid(client)
    write("insert into chat values ('a', 'fine', 1), ('b', 'forbidden', 1), ('c', 'fine', 1)")

    const run = await site.sync(client)
    assert.equal(run.code, 2, run.out + run.err)
    const {status, rows, reason} = run.result!
    assert.deepEqual(
      {status, rows},
      {
        status: 'quarantined',
        rows: {upserted: 2, tombstoned: 0, unchanged: 2, quarantined: 1},
      },
    )
    assert.match(reason!, /table chat.*23514.*not_forbidden/)
    assert.deepEqual(await missing(client, file), ['chat b'])
    assert.deepEqual(await waiting(client), [{key: 'b', code: 'SYNC_DATA', attempts: 1}])
    assert.equal(await lastStatus(client), 'failed')

    const again = await site.syncHere(client)
    assert.deepEqual([again.status, again.generation], ['quarantined', 2n], 'nothing new, yet not well')
    assert.deepEqual(await waiting(client), [{key: 'b', code: 'SYNC_DATA', attempts: 2}])

    write("update chat set title = 'fine after all' where id = 'b'")
    assert.equal((await site.syncHere(client)).status, 'success')
    assert.deepEqual(await waiting(client), [])
    assert.equal(await lastStatus(client), 'success')
    await assertMirror(site.db, client, file)
  })

  test('is applied without a change of the file once the rule is gone', async () => {
    const {client, file, write} = newClient()
    await site.syncHere(client, {sqlite: file})
    await forbid(client)
    write("insert into chat values ('b', 'forbidden', 1)")
    assert.equal((await site.syncHere(client)).status, 'quarantined')
    await site.db`alter table ${site.db(client, 'chat')} drop constraint not_forbidden`
    assert.equal((await site.syncHere(client)).status, 'success')
    await assertMirror(site.db, client, file)
  })

  test('is found among many that are staged, and so are its kin', async () => {
    const {client, file, write} = newClient()
    await site.syncHere(client, {sqlite: file})
    await forbid(client)
    write(`with recursive n (i) as (select 1 union all select i + 1 from n where i < 1500)
      insert into chat select 'c' || i, case when i in (1, 700, 701, 1500) then 'forbidden' else 'fine' end, i from n`)
    const {status, rows} = await site.syncHere(client)
    assert.equal(status, 'quarantined')
    assert.deepEqual([rows.upserted, rows.quarantined], [1_496, 4])
    assert.deepEqual(await missing(client, file), ['chat c1', 'chat c1500', 'chat c700', 'chat c701'])
  })

  for (const [how, change] of [
    ['changed', "update chat set title = 'forbidden' where id = 'one'"],
    ['changed and moved', "replace into chat values ('one', 'forbidden', 1)"],
  ] as const) {
    test(`keeps what the target has of it, and becomes a tombstone when it is deleted (${how})`, async () => {
      const {client, file, write} = newClient()
      await site.syncHere(client, {sqlite: file})
      await forbid(client)
      write(`${change}; insert into chat values ('beside', 'fine', 1)`)
      assert.equal((await site.syncHere(client)).status, 'quarantined')
      const [kept] = await site.db<{
        title: string
      }>`select title from ${site.db(client, 'chat')} where id = 'one'`
      assert.equal(kept?.title, 'first')
      write("delete from chat where id = 'one'")
      assert.equal((await site.syncHere(client)).status, 'success')
      const {dead} = await assertMirror(site.db, client, file)
      assert.deepEqual([...dead], ['chat one'])
    })
  }

  test('is met again when it comes back just as it was, in a file that is captured by pages', async () => {
    const {bytes} = paged
    using _ = {[Symbol.dispose]: () => (paged.bytes = bytes)}
    paged.bytes = 0
    const {client, file, write} = newClient()
    const set = (n: number) => {
      write(`update chat set n = ${n} where id = 'one'`)
    }
    set(2)
    await site.syncHere(client, {sqlite: file})
    await site.db`alter table ${site.db(client, 'chat')} add constraint not_nine check (n <> 9)`
    set(9)
    assert.equal((await site.syncHere(client)).status, 'quarantined')
    set(2)
    assert.equal((await site.syncHere(client)).status, 'success')
    set(9)
    assert.equal((await site.syncHere(client)).status, 'quarantined')
  })

  test('that never came is forgotten when it is deleted', async () => {
    const {client, file, write} = newClient()
    await site.syncHere(client, {sqlite: file})
    await forbid(client)
    write("insert into chat values ('b', 'forbidden', 1)")
    assert.equal((await site.syncHere(client)).status, 'quarantined')
    write("delete from chat where id = 'b'")
    assert.equal((await site.syncHere(client)).status, 'success')
    assert.deepEqual(await waiting(client), [])
    await assertMirror(site.db, client, file)
  })

  test('may be refused by a trigger', async () => {
    const {client, file, write} = newClient()
    await site.syncHere(client, {sqlite: file})
    await site.db`${raw(`
      create function ${client}.refuse() returns trigger language plpgsql as $$
        begin raise exception 'not %', new.title; end $$;
      create trigger refuse before insert on ${client}.chat for each row when (new.title = 'forbidden')
        execute function ${client}.refuse()`)}`
    write("insert into chat values ('a', 'fine', 1), ('b', 'forbidden', 1)")
    assert.equal((await site.syncHere(client)).status, 'quarantined')
    assert.deepEqual(await missing(client, file), ['chat b'])
  })

  test('does not stop the sync when more than a hundred are refused: it fails as a whole', async () => {
    const {client, file, write} = newClient()
    await site.syncHere(client, {sqlite: file})
    await forbid(client)
    write(`with recursive n (i) as (select 1 union all select i + 1 from n where i < 150)
      insert into chat select 'c' || i, 'forbidden', i from n`)
    const run = await site.sync(client)
    assert.deepEqual([run.code, run.error?.code], [1, 'SYNC_TABLE_REFUSED'], run.out + run.err)
    assert.equal((await compareMirror(site.db, client, file)).liveRows, 2)
  })
})

describe('a long value in an indexed column, which no btree of Postgres takes, is no refusal', () => {
  const long = () => randomBytes(6_000).toString('base64')

  test('at the first load', async () => {
    const {client, file, insert} = newClient()
    insert(long())
    assert.equal((await site.syncHere(client, {sqlite: file})).status, 'success')
    await assertMirror(site.db, client, file)
  })

  test('in an increment, few rows or many', async () => {
    const {client, file, insert, write} = newClient()
    await site.syncHere(client, {sqlite: file})
    insert(long())
    assert.equal((await site.syncHere(client)).status, 'success')
    insert(long())
    write(`with recursive n (i) as (select 1 union all select i + 1 from n where i < 1500)
      insert into chat select 'c' || i, 'fine', i from n`)
    assert.equal((await site.syncHere(client)).status, 'success')
    await assertMirror(site.db, client, file)
  })
})

describe('a value that is too large', () => {
  const {bytes} = longestValue
  beforeAll(() => {
    longestValue.bytes = 1024 * 1024
  })
  afterAll(() => {
    longestValue.bytes = bytes
  })

  test('is set aside in an increment, and comes when it has shrunk', async () => {
    const {client, file, write} = newClient()
    await site.syncHere(client, {sqlite: file})
    write("insert into chat values ('a', 'fine', 1), ('huge', zeroblob(1200000), 1), ('z', 'fine', 1)")
    const {status, reason} = await site.syncHere(client)
    assert.equal(status, 'quarantined')
    assert.match(reason!, /table chat: column title holds 1200000 bytes/)
    assert.deepEqual(await waiting(client), [{key: 'huge', code: 'SYNC_VALUE_TOO_LARGE', attempts: 1}])
    assert.equal(await lastStatus(client), 'failed')
    assert.deepEqual(await liveIds(client), ['a', 'one', 'two', 'z'])

    write("update chat set title = 'smaller' where id = 'huge'")
    assert.equal((await site.syncHere(client)).status, 'success')
    assert.deepEqual(await waiting(client), [])
    await assertMirror(site.db, client, file)
  })

  test('leaves what the target has of its row, until that is deleted', async () => {
    const {client, file, write} = newClient()
    await site.syncHere(client, {sqlite: file})
    write("update chat set title = zeroblob(1200000) where id = 'one'")
    for (let i = 0; i < 2; i++) {
      assert.equal((await site.syncHere(client)).status, 'quarantined')
      assert.deepEqual(await liveIds(client), ['one', 'two'])
    }
    assert.equal(await lastStatus(client), 'failed', 'also when there was nothing else to do')
    write("delete from chat where id = 'one'")
    assert.equal((await site.syncHere(client)).status, 'success')
    assert.deepEqual(await liveIds(client), ['two'])
  })

  test('is set aside wherever in its table it stands, and there may be several', async () => {
    const {client, file, write} = newClient()
    const fill = (from: number) => {
      write(`insert into chat with recursive n (i) as (select ${from} union all select i + 1 from n where i < ${from} + 2999)
        select printf('row-%d', i), iif(i % 1000 > 700 and i % 1000 < 703, zeroblob(1200000), 'fine'), i from n`)
    }
    const refused = (from: number) => [701, 702, 1701, 1702, 2701, 2702].map(i => `row-${from + i}`)
    fill(0)
    assert.equal((await site.syncHere(client, {sqlite: file})).status, 'quarantined')
    const keys = async () => (await waiting(client)).map(({key}) => key).sort()
    assert.deepEqual(await keys(), refused(0).sort())
    assert.equal((await liveIds(client)).length, 2 + 3_000 - 6)
    fill(3_000)
    assert.equal((await site.syncHere(client)).status, 'quarantined')
    assert.deepEqual(await keys(), [...refused(0), ...refused(3_000)].sort())
    write("update chat set title = 'smaller' where octet_length(title) > 1000000")
    assert.equal((await site.syncHere(client)).status, 'success')
    await assertMirror(site.db, client, file)
  })

  test('is set aside at a first load, and the rest of the file is there', async () => {
    const {client, file, write} = newClient()
    write("insert into chat values ('huge', zeroblob(1200000), 1), ('z', 'fine', 1)")
    assert.equal((await site.syncHere(client, {sqlite: file})).status, 'quarantined')
    assert.deepEqual(await liveIds(client), ['one', 'two', 'z'])
    write("delete from chat where id = 'huge'")
    assert.equal((await site.syncHere(client)).status, 'success')
    await assertMirror(site.db, client, file)
  })
})

async function liveIds(client: string): Promise<string[]> {
  const rows = await site.db<{id: string}>`select id from ${site.db(client, 'live_chat')} order by id`
  return rows.map(row => row.id)
}

type Client = {
  readonly client: string
  readonly file: string
  readonly write: (sql: string) => void
  readonly insert: (title: SQLInputValue) => void
}

function newClient(): Client {
  const client = `client${++clients}`
  const file = join(site.folder, `${client}.db`)
  const write = (sql: string, ...values: SQLInputValue[]) => {
    using db = new DatabaseSync(file)
    db.exec('pragma synchronous = off')
    if (values.length === 0) db.exec(sql)
    else db.prepare(sql).run(...values)
  }
  write(`create table chat (id text primary key, title text, n integer); create index chat_title on chat (title, n);
    insert into chat values ('one', 'first', 1), ('two', 'second', 2)`)
  const insert = (title: SQLInputValue) => {
    write('insert into chat values (?, ?, 1)', `row-${randomBytes(4).toString('hex')}`, title)
  }
  return {client, file, write, insert}
}

async function forbid(client: string): Promise<void> {
  await site.db`alter table ${site.db(client, 'chat')}
    add constraint not_forbidden check (title <> 'forbidden')`
}

async function missing(client: string, file: string): Promise<string[]> {
  const {differences} = await compareMirror(site.db, client, file)
  return differences.map(line => line.replace(/: missing$/, '')).sort()
}

async function waiting(client: string): Promise<{key: string; code: string; attempts: number}[]> {
  return site.db<{key: string; code: string; attempts: number}>`
    select record_key as key, code, attempts from sync_metadata.row_quarantine
    join sync_metadata.client_deployments using (deployment_id)
    where schema_name = ${client} and resolved_at is null`
}

async function lastStatus(client: string): Promise<string | undefined> {
  const [row] = await site.db<{status: string}>`
    select last_sync_status as status from sync_metadata.client_deployments where schema_name = ${client}`
  return row?.status
}
