import assert from 'node:assert/strict'
import {spawn} from 'node:child_process'
import {once} from 'node:events'
import {mkdirSync, readdirSync, renameSync, statSync, writeFileSync} from 'node:fs'
import {join} from 'node:path'
import {DatabaseSync} from 'node:sqlite'
import {afterAll, beforeAll, describe, test} from 'vitest'
import {bothWays, keepsTarget, notes} from '../../test/both-ways.ts'
import {leadingHost, tapped, type LeadingHost} from '../../test/leading-host.ts'
import {until} from '../../test/until.ts'
import type {Pool} from '../postgres/sql.ts'
import {resolveConflict, undoConflict} from './resolve.ts'

// What could go wrong on the way to a source, beside what its constraints forbid.

let leader: LeadingHost
beforeAll(async () => {
  leader = await leadingHost('written-rows')
})
afterAll(() => leader[Symbol.asyncDispose]())

const stage = async (ddl: string, mode?: 'wal' | 'delete') => await bothWays(leader, ddl, mode)

type Stage = Awaited<ReturnType<typeof stage>>

async function pending(s: Stage) {
  return await leader.admin<{id: string; key: string; type: string; notes: string}>`
    select conflict_id as id, record_key as key, conflict_type as type, notes from sync_metadata.conflict_log
    where status = 'pending' and deployment_id = ${(await s.client.deployment()).deploymentId} order by record_key`
}

async function entries(s: Stage) {
  return await leader.admin<{
    id: string
    key: string
    type: string
    status: string
    outcome: string
    by: string | null
    standing: boolean
  }>`
    select conflict_id as id, record_key as key, conflict_type as type, status, outcome, edited_by as by, is_standing as standing
    from sync_metadata.conflict_log
    where deployment_id = ${(await s.client.deployment()).deploymentId} order by detected_at, record_key`
}

test('values change places under an index that is partial', async () => {
  await using s = await stage(`create table person (id text primary key, tag text, live integer);
    create unique index u on person (tag) where live = 1;
    insert into person values ('a', 'x', 1), ('b', 'y', 1), ('c', 'x', 0)`)
  await s.edit(`update $.person set tag = case tag when 'x' then 'y' else 'x' end where live = 1`)
  const {written_to_source: wrote} = await s.client.sync({conflictConfig: keepsTarget})
  assert.deepEqual(wrote, {inserted: 0, updated: 2, deleted: 0, refused: 0, left: 0})
  await s.equal()
})

test('a value passes on along rows under an index over an expression', async () => {
  await using s = await stage(`create table person (id text primary key, tag text);
    create unique index u on person (lower(tag));
    insert into person values ('a', 't1'), ('b', 't2'), ('c', 't3'), ('d', 't4')`)
  await s.edit(`update $.person set tag = 't' || (substr(tag, 2)::int + 1)`)
  const {written_to_source: wrote} = await s.client.sync({conflictConfig: keepsTarget})
  assert.deepEqual(wrote, {inserted: 0, updated: 4, deleted: 0, refused: 0, left: 0})
  await s.equal()
})

test('no row is deleted so that values can change places', async () => {
  await using s = await stage(`create table person (id text primary key, mail text unique not null);
    create table thing (id text primary key, owner text);
    create trigger d after delete on person begin delete from thing where owner = old.id; end;
    insert into person values ('a', 'x'), ('b', 'y'); insert into thing values ('t', 'a'), ('u', 'b')`)
  await s.edit(`update $.person set mail = case mail when 'x' then 'y' else 'x' end`)
  const {written_to_source: wrote} = await s.client.sync({conflictConfig: keepsTarget})
  assert.deepEqual(s.rows('select id from thing order by id'), [{id: 't'}, {id: 'u'}])
  assert.deepEqual(wrote, {inserted: 0, updated: 2, deleted: 0, refused: 0, left: 0})
  await s.equal()
})

test('what the app does to one of those that change places stays, and none of them is written', async () => {
  await using s = await stage(`create table person (id text primary key, mail text unique not null, v text);
    insert into person values ('a', 'x', 'one'), ('b', 'y', 'two')`)
  await s.edit(`update $.person set mail = case mail when 'x' then 'y' else 'x' end`)
  let times = 0
  const pool = tapped(leader.host, 'w.conflict', () => {
    // One by one, to learn who waits for whom, and together.
    if (++times === 3) s.app.exec(`update person set v = 'app' where id = 'a'`)
  })
  const {written_to_source: wrote} = await s.client.sync({pool, conflictConfig: keepsTarget})
  assert.equal(times, 3)
  assert.deepEqual([wrote?.updated, wrote?.refused, wrote?.left], [0, 0, 2])
  assert.deepEqual(s.rows('select * from person order by id'), [
    {id: 'a', mail: 'x', v: 'app'},
    {id: 'b', mail: 'y', v: 'two'},
  ])
  // Decided anew, the app's row keeps its value, which is in the other one's way for good now.
  await s.client.sync()
  assert.deepEqual(s.rows('select id, mail from person order by id'), [
    {id: 'a', mail: 'x'},
    {id: 'b', mail: 'y'},
  ])
  assert.deepEqual(
    (await pending(s)).map(({key, type}) => [key, type]),
    [['b', 'constraint_violation']],
  )
})

test('what waits for a row that has moved is not given up', async () => {
  await using s = await stage(`create table person (id text primary key, mail text unique not null, v text);
    insert into person values ('a', 'x', 'one'), ('b', 'y', 'two')`)
  await s.edit(`update $.person set mail = 'z' where id = 'b'`)
  await s.edit(`update $.person set mail = 'y' where id = 'a'`)
  let times = 0
  const pool = tapped(leader.host, 'w.conflict', () => {
    if (++times === 1) s.app.exec(`update person set v = 'app' where id = 'b'`)
  })
  const {written_to_source: wrote} = await s.client.sync({pool, conflictConfig: keepsTarget})
  assert.deepEqual([wrote?.updated, wrote?.refused, wrote?.left], [0, 0, 2])
  const merging = {place: 'test', document: {default_strategy: 'merge'}}
  const then = await s.client.sync({conflictConfig: merging})
  assert.deepEqual([then.written_to_source?.updated, then.written_to_source?.refused], [2, 0])
  assert.deepEqual(s.rows('select * from person order by id'), [
    {id: 'a', mail: 'y', v: 'one'},
    {id: 'b', mail: 'z', v: 'app'},
  ])
  await s.equal()
})

test('columns in another order than the target has them are told right', async () => {
  await using s = await stage(`create table t (id text primary key, a text, n integer check (n < 10));
    insert into t values ('p', 'x', 1)`)
  s.app.exec(`create table _alembic_tmp_t (n integer check (n < 10), a text, id text primary key);
    insert into _alembic_tmp_t select n, a, id from t; drop table t; alter table _alembic_tmp_t rename to t`)
  await s.client.sync()
  await s.edit(`update $.t set n = 11, a = 'y'`)
  await s.client.sync({conflictConfig: keepsTarget})
  const [asked] = await pending(s)
  assert.equal(asked?.type, 'constraint_violation')
  await resolveConflict(leader.host, asked.id, {choice: 'source'}, 'test')
  await s.client.sync()
  assert.deepEqual(s.rows('select id, a, n from t'), [{id: 'p', a: 'x', n: 1}])
  await s.equal()
})

test('who made an edit that the source refuses stays known', async () => {
  await using s = await stage(
    `create table t (id text primary key, n integer check (n < 10)); insert into t values ('p', 1)`,
  )
  await s.edit(`update $.t set n = 11`)
  await s.client.sync({conflictConfig: keepsTarget})
  const all = await entries(s)
  assert.equal(all.length, 2)
  assert.equal(all[1]?.by, all[0]?.by)
  assert.ok(all[1]?.by)
})

/** A pool in whose next transaction an edit begins when the row has been read, and what becomes of it is to be written. */
function editedMeanwhile(s: Stage, sql: string): {readonly pool: Pool; readonly over: () => Promise<void>} {
  let edit: Promise<void> | undefined
  const settling = async () => {
    if (edit !== undefined) return
    let isOver = false
    edit = s.edit(sql).finally(() => {
      isOver = true
    })
    await until(async () => {
      const [waiting] = await leader.admin`
        select from pg_stat_activity where wait_event_type = 'Lock' and query like '%edited again%' and pid <> pg_backend_pid()`
      return isOver || waiting !== undefined
    })
  }
  const pool = new Proxy<Pool>(leader.host, {
    get(host, name) {
      if (name !== 'begin') return Reflect.get(host, name) as unknown
      const begin: Pool['begin'] = (work, options) =>
        host.begin(tx => work(tapped(tx, ' t set ', settling)), options)
      return begin
    },
  })
  return {
    pool,
    over: async () => {
      assert.ok(edit, 'nothing was to be written')
      await edit
    },
  }
}

test('an edit that comes while one before it is decided waits for that, and is decided next', async () => {
  await using s = await stage(notes)
  await s.direct('one_way')
  await s.edit(`update $.note set v = 'edited' where id = 'a'`)
  const {pool, over} = editedMeanwhile(s, `update $.note set v = 'edited again' where id = 'a'`)
  await s.client.sync({pool, conflictConfig: keepsTarget})
  await over()
  await s.client.sync({conflictConfig: keepsTarget})
  const decided = await leader.admin<{v: string}>`
    select target_data ->> 'v' as v from sync_metadata.conflict_log
    where deployment_id = ${(await s.client.deployment()).deploymentId} order by detected_at`
  assert.deepEqual(decided, [{v: 'edited'}, {v: 'edited again'}])
  assert.deepEqual(await s.target(`select v from $.note where id = 'a'`), [{v: 'edited again'}])
})

test('an edit that comes while a person decides about the row waits for that, and is decided next', async () => {
  await using s = await stage(notes)
  const conflictConfig = {place: 'test', document: {default_strategy: 'manual'}}
  await s.edit(`update $.note set v = 'edited' where id = 'a'`)
  await s.client.sync({conflictConfig})
  const [asked] = await pending(s)
  const {pool, over} = editedMeanwhile(s, `update $.note set v = 'edited again' where id = 'a'`)
  await resolveConflict(pool, asked!.id, {choice: 'source'}, 'test')
  await over()
  assert.deepEqual(await s.target(`select v from $.note where id = 'a'`), [{v: 'edited again'}])
  await s.client.sync({conflictConfig})
  assert.equal((await pending(s)).length, 1)
  assert.deepEqual(s.rows(`select v from note where id = 'a'`), [{v: 'one'}])
})

test('an edit that comes while the source refuses the one before is decided about, and not lost', async () => {
  await using s = await stage(
    `create table t (id text primary key, n integer check (n < 10), v text); insert into t values ('p', 1, 'x')`,
  )
  await s.edit(`update $.t set n = 11`)
  let step: 'deciding' | 'writing' | 'done' = 'deciding'
  const writing = tapped(leader.host, 'w.conflict', () => {
    step = 'writing'
  })
  const pool = new Proxy(writing, {
    get(_, name) {
      if (name !== 'begin') return Reflect.get(leader.host, name) as unknown
      const begin: Pool['begin'] = async (work, options) => {
        // It is about to be told that the row was refused.
        if (step === 'writing') await s.edit(`update $.t set n = 9, v = 'again'`)
        if (step === 'writing') step = 'done'
        return await leader.host.begin(work, options)
      }
      return begin
    },
  })
  await s.client.sync({pool, conflictConfig: keepsTarget})
  assert.equal(step, 'done')
  assert.deepEqual(await pending(s), [])
  await s.client.sync({conflictConfig: keepsTarget})
  assert.deepEqual(s.rows('select * from t'), [{id: 'p', n: 9, v: 'again'}])
  await s.equal()
  assert.equal((await entries(s)).length, 2)
})

test('while a cut is held back nothing is written to the file it is of', async () => {
  const rows = Array.from({length: 300}, (_, i) => `('n${i}', 'x', 1)`).join(', ')
  await using s = await stage(`${notes}; insert into note values ${rows}`)
  await s.edit(`update $.note set v = 'edited' where id = 'a'; insert into $.note values ('new', 'n', 1)`)
  s.app.exec(`delete from note where id like 'n%'`)
  for (let n = 0; n < 2; n++) {
    const held = await s.client.sync({conflictConfig: keepsTarget, marks: true})
    assert.deepEqual([held.status, held.written_to_source], ['quarantined', undefined])
    assert.deepEqual(s.rows('select id, v from note order by id'), [
      {id: 'a', v: 'one'},
      {id: 'b', v: 'two'},
      {id: 'c', v: 'three'},
    ])
  }
  const then = await s.client.sync({conflictConfig: keepsTarget, accept: true})
  assert.deepEqual([then.written_to_source?.updated, then.written_to_source?.inserted], [1, 1])
  await s.equal()
})

describe.each(['delete', 'wal'] as const)('in journal mode %s', mode => {
  test.runIf(mode === 'delete')(
    'what a crashed app has left before the file is opened is the app’s to roll back',
    async () => {
      const rows = Array.from({length: 300}, (_, i) => `('n${i}', hex(randomblob(500)), 1)`).join(', ')
      await using s = await stage(`${notes}; insert into note values ${rows}`, mode)
      await s.edit(`update $.note set v = 'edited' where id = 'a'`)
      await s.client.sync({conflictConfig: keepsTarget, lease: {...leader.lease, endsAt: () => 0}})
      let times = 0
      // The file has been copied already; the app crashes before it is opened for writing.
      const pool = tapped(leader.host, 'source_backup', async () => {
        if (times++ > 0) return
        const script = `
        const db = new (require('node:sqlite').DatabaseSync)(${JSON.stringify(s.client.file)})
        db.exec("pragma cache_size = 5; pragma cache_spill = 1; begin; update note set v = hex(randomblob(2000))")
        process.kill(process.pid, 'SIGKILL')`
        await once(spawn(process.execPath, ['-e', script], {stdio: 'ignore'}), 'close')
      })
      const {written_to_source: wrote} = await s.client.sync({pool, conflictConfig: keepsTarget})
      assert.deepEqual([wrote?.updated, wrote?.left], [0, 1])
      assert.ok(statSync(`${s.client.file}-journal`).size > 0)
    },
  )

  test('the file that takes its name while rows are on their way is not written', async () => {
    await using s = await stage(notes, mode)
    await s.edit(`update $.note set v = 'edited' where id = 'a'`)
    let times = 0
    const pool = tapped(leader.host, 'w.conflict', () => {
      if (times++ > 0) return
      s.app.exec(`vacuum into '${s.client.file}.new'`)
      renameSync(`${s.client.file}.new`, s.client.file)
    })
    const {written_to_source: wrote} = await s.client.sync({pool, conflictConfig: keepsTarget})
    assert.deepEqual([wrote?.updated, wrote?.left], [0, 1])
    using now = new DatabaseSync(s.client.file)
    assert.deepEqual({...now.prepare(`select v from note where id = 'a'`).get()}, {v: 'one'})
    await s.client.sync({conflictConfig: keepsTarget})
    assert.deepEqual({...now.prepare(`select v from note where id = 'a'`).get()}, {v: 'edited'})
    // It is another file: it has been copied too.
    const [copies] = await leader.admin<{n: number}>`
      select count(*)::int as n from sync_metadata.audit_log where action = 'client.copied' and client_name = ${s.client.name}`
    assert.equal(copies?.n, 2)
  })
})

test('what a killed process has left of a copy is removed', async () => {
  await using s = await stage(notes)
  const folder = join(leader.stateDir, 'backups')
  mkdirSync(folder, {recursive: true, mode: 0o700})
  const {schemaName} = await s.client.deployment()
  writeFileSync(join(folder, `${schemaName}-20260101T000000Z.db.copying`), 'a part')
  writeFileSync(join(folder, `${schemaName}x-20260101T000000Z.db.copying`), 'of another client')
  await s.edit(`update $.note set v = 'edited' where id = 'a'`)
  await s.client.sync()
  const left = readdirSync(folder).filter(name => name.startsWith(schemaName) && name.endsWith('.copying'))
  assert.deepEqual(left, [`${schemaName}x-20260101T000000Z.db.copying`])
})

for (const encoding of ['UTF-8', 'UTF-16le', 'UTF-16be'])
  test(`a row that is brought back has every value and storage class, in ${encoding}`, async () => {
    await using s = await stage(
      `create table t (id text primary key, v, w, x real, y integer, z blob);
      insert into t values ('p', cast(x'6100000062' as text), 9223372036854775807, 3.0, 'text', x'00ff'),
        ('q', 'é😀', 1e300, 'r', 2.5, 'text'), ('r', '1', 1.5, -0.0, 1e19, null), ('s', cast(x'fffe6161ffff' as text), 1, 2.5, 3, null)`.replace(
        /^/,
        `pragma encoding = '${encoding}';`,
      ),
    )
    const types = () =>
      s.rows(
        `select id, hex(v) as v, typeof(v) tv, w, typeof(w) tw, x, typeof(x) tx, y, typeof(y) ty, hex(z) as z, typeof(z) tz from t order by id`.replace(
          'w, typeof',
          `cast(w as text) as w, typeof`,
        ),
      )
    const before = types()
    await s.edit(`delete from $.t`)
    const gone = await s.client.sync({conflictConfig: keepsTarget, accept: true})
    assert.deepEqual(gone.written_to_source?.deleted, 4)
    for (const {id} of await entries(s)) await undoConflict(leader.host, id, 'test')
    const back = await s.client.sync({conflictConfig: keepsTarget})
    assert.deepEqual(back.written_to_source, {inserted: 4, updated: 0, deleted: 0, refused: 0, left: 0})
    assert.deepEqual(types(), before)
    await s.equal()
  })

test('numbers that SQLite does not hold are conflicts; all others reach it as they are', async () => {
  await using s = await stage(`create table t (id text primary key, x real, b blob);
    insert into t values ('a', 1.5, x'01'), ('b', 1.5, x'01'), ('c', 1.5, x'01'), ('d', 1.5, x'01'), ('e', 1.5, x'01')`)
  await s.edit(`update $.t set x = 'NaN' where id = 'a'`)
  await s.edit(`update $.t set x = 'Infinity' where id = 'b'`)
  await s.edit(`update $.t set x = 3 where id = 'c'`)
  await s.edit(`update $.t set x = -0.0::float8 where id = 'd'`)
  await s.edit(`update $.t set b = '\\x' where id = 'e'`)
  await s.client.sync({conflictConfig: keepsTarget})
  assert.deepEqual(
    (await pending(s)).map(({key, type}) => [key, type]),
    [
      ['a', 'type_mismatch'],
      ['d', 'type_mismatch'],
    ],
  )
  assert.deepEqual(s.rows('select id, x, typeof(x) as tx, hex(b) as b from t'), [
    {id: 'a', x: 1.5, tx: 'real', b: '01'},
    {id: 'b', x: Infinity, tx: 'real', b: '01'},
    {id: 'c', x: 3, tx: 'real', b: '01'},
    {id: 'd', x: 1.5, tx: 'real', b: '01'},
    {id: 'e', x: 1.5, tx: 'real', b: ''},
  ])
  const again = await s.client.sync({conflictConfig: keepsTarget, marks: true})
  assert.equal(again.mode, 'unchanged')
})

test('keys that the source’s collation takes for one are a conflict', async () => {
  await using s = await stage(
    `create table t (id text primary key collate nocase, v text); insert into t values ('p', 'x')`,
  )
  await s.edit(`insert into $.t values ('P', 'y')`)
  await s.edit(`update $.t set v = 'z' where id = 'p'`)
  const {written_to_source: wrote} = await s.client.sync({conflictConfig: keepsTarget})
  assert.deepEqual(wrote, {inserted: 0, updated: 1, deleted: 0, refused: 1, left: 0})
  assert.deepEqual(s.rows('select * from t'), [{id: 'p', v: 'z'}])
  const [asked] = await pending(s)
  await resolveConflict(leader.host, asked!.id, {choice: 'source'}, 'test')
  await s.client.sync()
  await s.equal()
})

test('keys of every class, and names that Postgres does not take, are found again', async () => {
  const long = 'column_'.repeat(12)
  await using s = await stage(`create table t (id primary key, v text) without rowid;
    insert into t values (cast(x'610062' as text), 'x'), (cast(x'ff' as text), 'x'), (x'00ff', 'x'), (1.5, 'x'), (1, 'x'), ('1', 'x'),
      (9223372036854775807, 'x'), (-1e300, 'x'), ('~i1;', 'x'), ('', 'x'), (x'', 'x');
    create table "${long}" (id text primary key, "${long}" text, ctid text, _sync_hash text, "Ä" text);
    insert into "${long}" values ('p', 'a', 'b', 'c', 'd')`)
  const n = 11
  await s.edit(`update $.t set v = 'y'`)
  const {tables} = await s.client.schema()
  const named = tables.find(({source}) => source === long)!
  const columns = named.columns.filter(({source}) => source !== 'id').map(({target}) => `"${target}" = 'e'`)
  await s.edit(`update $."${named.target}" set ${columns.join(', ')}`)
  const {written_to_source: wrote} = await s.client.sync({conflictConfig: keepsTarget})
  assert.deepEqual(wrote, {inserted: 0, updated: n + 1, deleted: 0, refused: 0, left: 0})
  assert.deepEqual(s.rows(`select count(*) as n from t where v = 'y'`), [{n}])
  assert.deepEqual(s.rows(`select * from "${long}"`), [
    {id: 'p', [long]: 'e', ctid: 'e', _sync_hash: 'e', Ä: 'e'},
  ])
  await s.equal()
  await s.edit(`delete from $.t`)
  const then = await s.client.sync({conflictConfig: keepsTarget, accept: true})
  assert.deepEqual(then.written_to_source, {inserted: 0, updated: 0, deleted: n, refused: 0, left: 0})
  await s.equal()
})

test('switched off while rows are on their way, no transaction more begins', async () => {
  await using s = await stage(`create table t (id integer primary key, v text);
    insert into t with recursive n (i) as (select 1 union all select i + 1 from n where i < 200) select i, 'x' from n`)
  await s.edit(`update $.t set v = 'edited'`)
  let batches = 0
  const pool = tapped(leader.host, 'w.conflict', async () => {
    if (++batches === 2) await s.direct('one_way')
  })
  const {written_to_source: wrote} = await s.client.sync({pool, conflictConfig: keepsTarget})
  assert.deepEqual([wrote?.updated, wrote?.left, wrote?.reason], [50, 150, 'the client is one_way now'])
  assert.deepEqual(s.rows(`select count(*) as n from t where v = 'edited'`), [{n: 50}])
  await s.direct('two_way')
  await s.client.sync({conflictConfig: keepsTarget})
  await s.equal()
})

test('counters of AUTOINCREMENT follow the rows that are written', async () => {
  await using s = await stage(
    `create table t (id integer primary key autoincrement, v text); insert into t (v) values ('x'), ('y')`,
  )
  await s.edit(`insert into $.t values (50, 'n')`)
  await s.edit(`delete from $.t where id = 2`)
  const {written_to_source: wrote} = await s.client.sync({conflictConfig: keepsTarget})
  assert.deepEqual(wrote, {inserted: 1, updated: 0, deleted: 1, refused: 0, left: 0})
  s.app.exec(`insert into t (v) values ('app')`)
  assert.deepEqual(s.rows('select id from t order by id'), [{id: 1}, {id: 50}, {id: 51}])
  await s.client.sync({conflictConfig: keepsTarget})
  await s.equal()
})

test('triggers of the app that our write fires are its own changes', async () => {
  await using s =
    await stage(`create table t (id text primary key, v text); create table log (id integer primary key, what text);
    create trigger u after update on t begin insert into log (what) values (new.v); end; insert into t values ('p', 'x')`)
  await s.edit(`update $.t set v = 'edited'`)
  await s.client.sync({conflictConfig: keepsTarget})
  assert.deepEqual(s.rows('select what from log'), [{what: 'edited'}])
  await s.equal()
  const again = await s.client.sync({conflictConfig: keepsTarget, marks: true})
  assert.deepEqual([again.mode, again.written_to_source], ['unchanged', undefined])
})

test('without a ledger, and without copies of rows, edits reach the file and can be told', async () => {
  const conflictConfig = {
    place: 'test',
    document: {
      default_strategy: 'target_wins',
      resolution_log: {enabled: false, include_data_snapshot: false},
    },
  }
  await using s = await stage(
    `create table t (id text primary key, n integer check (n < 10), v text); insert into t values ('p', 1, 'x'), ('q', 2, 'y'), ('r', 3, 'z')`,
  )
  await s.edit(`update $.t set n = 11, v = 'e' where id = 'p'`)
  await s.edit(`update $.t set n = 5 where id = 'q'`)
  await s.edit(`delete from $.t where id = 'r'`)
  await s.edit(`insert into $.t values ('s', 4, 'n')`)
  const {written_to_source: wrote} = await s.client.sync({conflictConfig})
  assert.deepEqual(wrote, {inserted: 1, updated: 1, deleted: 1, refused: 1, left: 0})
  const [asked] = await pending(s)
  await resolveConflict(leader.host, asked!.id, {choice: 'source'}, 'test')
  await s.client.sync({conflictConfig})
  await s.equal()
  for (const {id, status, key} of await entries(s))
    if (status === 'resolved' && key === 'r') await undoConflict(leader.host, id, 'test')
  await s.client.sync({conflictConfig})
  assert.deepEqual(s.rows(`select * from t where id = 'r'`), [{id: 'r', n: 3, v: 'z'}])
  await s.equal()
})

test('an edit of a table that the app drops does not keep nodes busy for ever', async () => {
  await using s = await stage(
    `${notes}; create table gone (id text primary key, v text); insert into gone values ('g', 'x')`,
  )
  await s.edit(`update $.gone set v = 'edited'`)
  s.app.exec('drop table gone')
  await s.client.sync({conflictConfig: keepsTarget, accept: true})
  assert.equal((await s.client.deployment()).hasUnwritten, false)
})

test('an edited row of a person that the source’s type refuses is asked about again', async () => {
  await using s = await stage(
    `create table t (id text primary key, n integer, v text); insert into t values ('p', 1, 'x')`,
  )
  await s.edit(`update $.t set v = 'e'`)
  const conflictConfig = {place: 'test', document: {default_strategy: 'manual'}}
  s.app.exec(`update t set v = 'app'`)
  await s.client.sync({conflictConfig})
  const [asked] = await pending(s)
  await resolveConflict(leader.host, asked!.id, {choice: 'row', row: {n: '12', v: 'z'}}, 'test')
  const {written_to_source: wrote} = await s.client.sync({conflictConfig})
  assert.deepEqual([wrote?.updated, wrote?.refused], [0, 1])
  const [again] = await pending(s)
  assert.equal(again?.type, 'type_mismatch')
  await resolveConflict(leader.host, again.id, {choice: 'row', row: {n: 12, v: 'z'}}, 'test')
  await s.client.sync({conflictConfig})
  assert.deepEqual(s.rows('select * from t'), [{id: 'p', n: 12, v: 'z'}])
  await s.equal()
})
