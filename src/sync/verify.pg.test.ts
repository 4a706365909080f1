import assert from 'node:assert/strict'
import {rmSync} from 'node:fs'
import {join} from 'node:path'
import {setTimeout as sleep} from 'node:timers/promises'
import {afterAll, beforeAll, describe, test} from 'vitest'
import {raw} from '../postgres/sql.ts'
import {syncedHost, type SyncedHost} from '../../test/synced-host.ts'
import type {Difference} from './findings.ts'
import type {VerifyResult} from './verify.ts'

let m: SyncedHost

beforeAll(async () => {
  m = await syncedHost()
})

afterAll(async () => {
  await m[Symbol.asyncDispose]()
})

const rows = 3_000

/** A client of two tables that was synced a while ago: its file is at rest. */
async function client(name: string): Promise<string> {
  const source = m.source(name, db => {
    db.exec(`
      create table chat (id text primary key, title text, body json, n integer);
      create table plain (v, w real);
      with recursive i (n) as (select 1 union all select n + 1 from i where n < ${rows})
        insert into chat select 'id-' || n, 'title ' || n, '{"n": ' || n || '}', n from i;
      insert into plain values ('x' || char(0), 1.5), (null, null), (9007199254740993, 0.1)`)
  })
  await m.sync(name, source)
  return name
}

type Tampering = readonly [
  what: string,
  sql: string,
  differences: readonly Difference[],
  quick?: 'missed' | undefined,
]

const changed = (table: string, key: string, ...columns: string[]): Difference => ({
  table,
  key,
  kind: 'changed',
  columns,
})
const missing = (table: string, key: string | null): Difference => ({
  table,
  key,
  kind: 'missing',
  columns: [],
})
const extra = (table: string, key: string): Difference => ({table, key, kind: 'extra', columns: []})

const tamperings: readonly Tampering[] = [
  [
    'a changed text',
    `update $.chat set title = 'other' where id = 'id-7'`,
    [changed('chat', 'id-7', 'title')],
    'missed',
  ],
  [
    'a changed number',
    `update $.chat set n = n + 1 where id = 'id-7'`,
    [changed('chat', 'id-7', 'n')],
    'missed',
  ],
  [
    'JSON with other spaces',
    `update $.chat set body = '{"n":7}' where id = 'id-7'`,
    [changed('chat', 'id-7', 'body')],
    'missed',
  ],
  [
    'two columns, one now NULL',
    `update $.chat set title = null, n = 0 where id = 'id-7'`,
    [changed('chat', 'id-7', 'title', 'n')],
    'missed',
  ],
  [
    'a key column',
    `update $.chat set id = 'other' where id = 'id-7'`,
    [changed('chat', 'id-7', 'id')],
    'missed',
  ],
  ['a removed row', `delete from $.chat where id = 'id-7'`, [missing('chat', 'id-7')]],
  [
    'many removed rows',
    `delete from $.chat where n <= 1500`,
    Array.from({length: 1_500}, (_, i) => missing('chat', `id-${i + 1}`)),
  ],
  [
    'a row marked deleted',
    `update $.chat set _sync_deleted_at = now() where id = 'id-7'`,
    [missing('chat', 'id-7')],
  ],
  ['an added row', `insert into $.chat (id, _sync_key) values ('new', 'new')`, [extra('chat', 'new')]],
  [
    'an added row with a hash',
    `insert into $.chat (id, _sync_key, _sync_hash) select 'new', 'new', _sync_hash from $.chat where id = 'id-1'`,
    [extra('chat', 'new')],
  ],
  [
    'a row under another key',
    `update $.chat set _sync_key = 'moved' where id = 'id-7'`,
    [missing('chat', 'id-7'), extra('chat', 'moved')],
  ],
  [
    'an exact value',
    `update $.plain set _sync_raw = '{"v": "t1:y"}' where _sync_key = '~i1;'`,
    [changed('plain', '~i1;', 'v')],
    'missed',
  ],
  [
    'an exact value that is gone',
    `update $.plain set _sync_raw = null where _sync_key = '~i1;'`,
    [changed('plain', '~i1;', 'v')],
    'missed',
  ],
  [
    'an exact value that was not needed',
    `update $.chat set _sync_raw = '{"title": "i1;"}' where id = 'id-7'`,
    [changed('chat', 'id-7', 'title')],
    'missed',
  ],
  [
    'a hash',
    `update $.chat set _sync_hash = '\\x00' where id = 'id-7'`,
    [changed('chat', 'id-7', '_sync_hash')],
  ],
  [
    'a hash that is gone',
    `update $.chat set _sync_hash = null where id = 'id-7'`,
    [changed('chat', 'id-7', '_sync_hash')],
  ],
  [
    'a value together with its hash',
    `update $.chat c set title = o.title, body = o.body, n = o.n, id = o.id, _sync_hash = o._sync_hash
     from $.chat o where c.id = 'id-7' and o.id = 'id-8'`,
    [changed('chat', 'id-7', 'id', 'title', 'body', 'n')],
  ],
  [
    'two rows that changed places',
    `update $.chat c set title = o.title from $.chat o
     where c.id in ('id-7', 'id-8') and o.id in ('id-7', 'id-8') and c.id <> o.id`,
    [changed('chat', 'id-7', 'title'), changed('chat', 'id-8', 'title')],
    'missed',
  ],
  ['an emptied table', `delete from $.plain`, ['~i1;', '~i2;', '~i3;'].map(key => missing('plain', key))],
  ['a dropped table', `drop table $.plain cascade`, [missing('plain', null)]],
  [
    'a dropped column',
    `alter table $.chat drop column title cascade`,
    [{table: 'chat', key: null, kind: 'changed', columns: ['title']}],
  ],
  [
    'a column of another type',
    `drop view $.live_chat; alter table $.chat alter n type double precision`,
    [{table: 'chat', key: null, kind: 'changed', columns: ['n']}],
  ],
]

describe('whatever somebody changes in the target is found and put right', () => {
  for (const [i, [what, sql, differences, quick]] of tamperings.entries()) {
    test(what, async () => {
      const name = await client(`tampered-${i}`)
      const schema = name.replace('-', '_')
      // A later change of the app must not hide it.
      m.source(name, db => {
        db.exec(`insert into chat (id, title) values ('later', 'x')`)
      })
      await m.admin.tamper`${raw(sql.replaceAll('$', schema))}`

      const found = await m.verify(name)
      assert.deepEqual(sorted(found), sortedDifferences(differences).slice(0, 1_000))
      assert.equal(found.repaired, 0)
      assert.equal(found.moving, 0)
      const isStructure = differences[0]!.key === null
      if (!isStructure) assert.equal(found.pending, 1)
      const quickly = await m.verify(name, {quick: true})
      assert.deepEqual(sorted(quickly).length > 0, quick !== 'missed')

      const repaired = await m.verify(name, {repair: true})
      assert.equal(repaired.repaired, differences.length)
      const after = await m.verify(name)
      assert.deepEqual(after.differences, [])
      await m.sync(name)
      await equal(name)
    })
  }
})

test('a mark of a foreign edit is looked at even quickly, and goes with the repair', async () => {
  const name = await client('marked')
  await m.admin`update marked.chat set title = 'edited' where id = 'id-7'`
  assert.deepEqual((await m.verify(name, {quick: true})).differences, [changed('chat', 'id-7', 'title')])
  await m.verify(name, {quick: true, repair: true})
  const [row] = await m.admin`select title, _sync_edited_by from marked.chat where id = 'id-7'`
  assert.deepEqual(row, {title: 'title 7', _sync_edited_by: null})
  const [entry] = await m.admin`
    select record_key, outcome, edited_by, target_data ->> 'title' as title from sync_metadata.conflict_log
    join sync_metadata.client_deployments d using (deployment_id) where d.client_name = 'marked'`
  assert.deepEqual(entry, {record_key: 'id-7', outcome: 'source', edited_by: 'postgres', title: 'edited'})
})

test('a row that the source has changed as well is left to the next sync, and never wrong for good', async () => {
  const name = await client('twosided')
  const titleInSource = (title: string) => {
    m.source(name, db => {
      db.prepare('update chat set title = ? where id = ?').run(title, 'id-7')
    })
  }
  await m.admin.tamper`update twosided.chat set title = 'edited' where id = 'id-7'`
  titleInSource('changed')
  const {repaired, differences} = await m.verify(name, {repair: true})
  assert.deepEqual([repaired, differences.length], [0, 1])
  titleInSource('title 7')
  await m.sync(name)
  assert.equal((await m.verify(name, {repair: true})).repaired, 1)
  await equal(name)
})

test('nor is one of a table whose structure was repaired, changed, added or deleted meanwhile', async () => {
  const name = await client('rebuilt')
  await m.admin.tamper`alter table rebuilt.chat drop column title cascade`
  m.source(name, db => {
    db.exec(`
      update chat set title = 'changed' where id = 'id-7';
      insert into chat (id, title) values ('brief', 'x');
      delete from chat where id = 'id-8'`)
  })
  assert.equal((await m.verify(name, {repair: true})).repaired, 1)
  m.source(name, db => {
    db.exec(`
      update chat set title = 'title 7' where id = 'id-7';
      delete from chat where id = 'brief';
      insert into chat values ('id-8', 'title 8', '{"n": 8}', 8)`)
  })
  await m.sync(name)
  await equal(name)
})

test('accepted differences are counted and no differences; without their mark they are', async () => {
  const name = await client('accepted')
  await m.admin
    .tamper`update accepted.chat set title = 'kept', _sync_diverged = gen_random_uuid() where n <= 2`
  await m.admin
    .tamper`update accepted.chat set _sync_deleted_at = now(), _sync_diverged = gen_random_uuid() where n = 3`
  const {differences, accepted} = await m.verify(name)
  assert.deepEqual({differences, accepted}, {differences: [], accepted: 3})
  await m.admin.tamper`update accepted.chat set _sync_diverged = null`
  assert.equal((await m.verify(name)).differences.length, 3)
})

describe('what the source has changed since the last sync', () => {
  test('is pending: new, changed and deleted rows, new and dropped tables and columns', async () => {
    const name = await client('newer')
    const change = (sql: string) =>
      m.source(name, db => {
        db.exec(sql)
      })
    change(`insert into chat (id) values ('new'); update chat set title = 'later' where n = 5; delete from chat where n = 6;
      insert into plain values (1, 2)`)
    assert.deepEqual(await summary(name), {differences: [], pending: 4})
    change('create table fresh (v); insert into fresh values (1), (2)')
    assert.deepEqual(await summary(name), {differences: [], pending: 6})
    change('drop table plain')
    assert.deepEqual(await summary(name), {differences: [], pending: 8})
    change('alter table chat add column more text')
    assert.deepEqual(await summary(name), {differences: [], pending: rows + 5})
    await m.sync(name)
    assert.deepEqual(await summary(name), {differences: [], pending: 0})
  })

  test('is pending without a sidecar too', async () => {
    const name = await client('forgetful')
    m.source(name, db => {
      db.exec(
        `insert into chat (id) values ('new'); update chat set title = 'later' where n = 5; delete from chat where n = 6`,
      )
    })
    rmSync(join(m.config.stateDir, 'sidecars'), {recursive: true})
    await m.admin.tamper`update forgetful.chat set title = 'edited' where n = 7`
    assert.deepEqual(await summary(name), {differences: [changed('chat', 'id-7', 'title')], pending: 3})
  })

  test('is a difference when the file is the one that was synced', async () => {
    const source = m.source('settled', db => {
      db.exec(`create table t (id text primary key, v); insert into t values ('a', 1), ('b', 2)`)
    })
    await sleep(2_100) // younger files have no fingerprint
    await m.sync('settled', source)
    await equal('settled')
    // Tampered so well that it looks like a row that is only behind.
    await m.admin.tamper`update settled.t set v = null, _sync_raw = null, _sync_hash = null where id = 'a'`
    rmSync(join(m.config.stateDir, 'sidecars'), {recursive: true})
    await m.sync('settled')
    await m.admin.tamper`delete from settled.t where id = 'b'`
    assert.deepEqual((await m.verify('settled')).differences, [missing('t', 'b')])
  })
})

test('a row that changes at each read is moving, not different', async () => {
  const name = await client('restless')
  m.source(name, db => {
    db.exec(`update chat set title = 'once' where n = 1`)
  })
  let n = 0
  // Progress is told in the middle of each read.
  const result = await m.verify(name, {
    onProgress: () => {
      m.source(name, db => {
        db.exec(`update plain set w = ${++n} where rowid = 1`)
      })
    },
  })
  assert.deepEqual(result.differences, [])
  assert.ok(n > 2)
  assert.deepEqual([result.moving, result.pending], [1, 1])
})

test('a verify beside syncs finds nothing', async () => {
  const name = await client('busy')
  const running = new AbortController()
  const syncing = (async () => {
    for (let n = 1; !running.signal.aborted; n++) {
      m.source(name, db => {
        db.exec(
          `update chat set title = 'round ${n}' where n % 7 = ${n % 7}; delete from plain; insert into plain values (${n}, 1)`,
        )
      })
      await m.sync(name)
    }
  })()
  try {
    for (let i = 0; i < 6; i++) assert.deepEqual((await m.verify(name)).differences, [])
  } finally {
    running.abort()
    await syncing
  }
})

test('rows that cannot be applied are differences, not pending', async () => {
  const name = await client('held')
  m.source(name, db => {
    db.exec(`insert into chat (id) values ('refused')`)
  })
  await m.admin`
    insert into sync_metadata.row_quarantine (deployment_id, table_name, record_key, code, reason)
    select deployment_id, 'chat', 'refused', 'SYNC_X', 'x' from sync_metadata.client_deployments where client_name = 'held'`
  assert.deepEqual(await summary(name), {differences: [missing('chat', 'refused')], pending: 0})
})

test('each run is recorded, with its cut and what it found', async () => {
  const name = await client('recorded')
  await m.admin`delete from recorded.chat where n = 1`
  const result = await m.verify(name, {quick: true})
  const [row] = await m.admin`
    select v.generation, v.cut_id = d.cut_id as same_cut, v.quick, v.tables, v.rows_compared, v.differences,
      v.difference_count, v.repaired
    from sync_metadata.verifications v join sync_metadata.client_deployments d using (deployment_id)
    where d.client_name = 'recorded'`
  assert.deepEqual(row, {
    generation: 1n,
    same_cut: true,
    quick: true,
    tables: 2,
    rows_compared: BigInt(rows + 3),
    differences: result.differences,
    difference_count: 1n,
    repaired: 0n,
  })
})

test('what was never synced cannot be verified', async () => {
  const source = m.source('unsynced', db => {
    db.exec('create table t (v)')
  })
  await m.host`select sync_metadata.register_deployment('unsynced')`
  await assert.rejects(m.verify('unsynced', {sqlite: source}), {code: 'SYNC_NOTHING_TO_VERIFY'})
  await assert.rejects(m.verify('unsynced'), {code: 'SYNC_USAGE'})
  await assert.rejects(m.verify('nobody'), {code: 'SYNC_UNKNOWN_CLIENT'})
})

async function equal(name: string): Promise<void> {
  for (const quick of [false, true]) {
    const {differences, pending, moving, accepted, repaired} = await m.verify(name, {quick})
    assert.deepEqual(
      {differences, pending, moving, accepted, repaired},
      {differences: [], pending: 0, moving: 0, accepted: 0, repaired: 0},
    )
  }
}

async function summary(name: string) {
  const {differences, pending} = await m.verify(name)
  return {differences, pending}
}

function sorted({differences}: VerifyResult): Difference[] {
  return sortedDifferences(differences)
}

function sortedDifferences(differences: readonly Difference[]): Difference[] {
  return [...differences].sort((a, b) => (`${a.kind} ${a.key ?? ''}` < `${b.kind} ${b.key ?? ''}` ? -1 : 1))
}
