import assert from 'node:assert/strict'
import {afterAll, beforeAll, describe, test} from 'vitest'
import {bothWays, keepsTarget} from '../../test/both-ways.ts'
import {leadingHost, type LeadingHost} from '../../test/leading-host.ts'
import {resolveConflict} from './resolve.ts'

// What is written to a source: every kind of row, in an order that its constraints allow, and nothing that it does not take.

let leader: LeadingHost
beforeAll(async () => {
  leader = await leadingHost('write-back')
})
afterAll(() => leader[Symbol.asyncDispose]())

const stage = async (ddl: string, mode?: 'wal' | 'delete') => await bothWays(leader, ddl, mode)

const long = 'é'.repeat(700)

describe('every kind of table', () => {
  for (const [what, ddl, edits, rows] of [
    [
      'an integer key',
      `create table t (id integer primary key, v text); insert into t values (1, 'x'), (2, 'y'), (3, 'z')`,
      [
        `update $.t set v = 'X' where id = 1`,
        `delete from $.t where id = 2`,
        `insert into $.t values (9, 'n')`,
      ],
      [
        {id: 1, v: 'X'},
        {id: 3, v: 'z'},
        {id: 9, v: 'n'},
      ],
    ],
    [
      'no rowid',
      `create table t (a text, b integer, v text, primary key (a, b)) without rowid;
        insert into t values ('p', 1, 'x'), ('p', 2, 'y')`,
      [
        `update $.t set v = 'X' where b = 1`,
        `delete from $.t where b = 2`,
        `insert into $.t values ('q', 1, 'n')`,
      ],
      [
        {a: 'p', b: 1, v: 'X'},
        {a: 'q', b: 1, v: 'n'},
      ],
    ],
    [
      'a unique index for a key',
      `create table t (id text not null, v text); create unique index u on t (id);
        insert into t values ('p', 'x'), ('q', 'y')`,
      [
        `update $.t set v = 'X' where id = 'p'`,
        `delete from $.t where id = 'q'`,
        `insert into $.t values ('r', 'n')`,
      ],
      [
        {id: 'p', v: 'X'},
        {id: 'r', v: 'n'},
      ],
    ],
    [
      'no key',
      `create table t (id text, v text); insert into t values ('p', 'x'), ('p', 'x'), ('q', 'y')`,
      [
        `update $.t set v = 'X' where _sync_key = '~i2;'`,
        `delete from $.t where id = 'q'`,
        `insert into $.t values ('p', 'n')`,
      ],
      [
        {id: 'p', v: 'X'},
        {id: 'p', v: 'n'},
        {id: 'p', v: 'x'},
      ],
    ],
    [
      'a key that holds NULL',
      `create table t (id text primary key, v text); insert into t values (null, 'x'), (null, 'y'), ('q', 'z')`,
      [
        `update $.t set v = 'X' where v = 'x'`,
        `delete from $.t where v = 'y'`,
        `insert into $.t values (null, 'n')`,
      ],
      [
        {id: null, v: 'X'},
        {id: null, v: 'n'},
        {id: 'q', v: 'z'},
      ],
    ],
    [
      'a long key',
      `create table t (id text primary key, v text); insert into t values ('${long}1', 'x'), ('${long}2', 'y')`,
      [
        `update $.t set v = 'X' where v = 'x'`,
        `delete from $.t where v = 'y'`,
        `insert into $.t values ('${long}3', 'n')`,
      ],
      [
        {id: `${long}1`, v: 'X'},
        {id: `${long}3`, v: 'n'},
      ],
    ],
    [
      'computed columns',
      `create table t (id text primary key, v text, up text as (upper(v)) stored, n text as (length(v)));
        insert into t values ('p', 'x'), ('q', 'y')`,
      [
        `update $.t set v = 'xyz' where id = 'p'`,
        `update $.t set up = 'not so' where id = 'q'`,
        `insert into $.t (id, v) values ('r', 'new')`,
      ],
      [
        {id: 'p', v: 'xyz', up: 'XYZ', n: '3'},
        {id: 'q', v: 'y', up: 'Y', n: '1'},
        {id: 'r', v: 'new', up: 'NEW', n: '3'},
      ],
    ],
    [
      'values that Postgres cannot hold beside the edited one',
      `create table t (id text primary key, v, w); insert into t values ('p', 'x', cast(x'610062' as text)),
        ('q', 9223372036854775807, x'00ff')`,
      [`update $.t set v = 'X' where id = 'p'`, `update $.t set v = '5' where id = 'q'`],
      [
        {id: 'p', v: 'X', w: 'a\0b'},
        {id: 'q', v: '5', w: new Uint8Array([0, 255])},
      ],
    ],
    [
      'a name that has to be quoted',
      `create table "t" (id text primary key, v text, "group" text, "a""b" text);
        insert into t values ('p', 'x', 'g', 'h')`,
      [`update $.t set "group" = 'G', "a""b" = 'H'`],
      [{id: 'p', v: 'x', group: 'G', 'a"b': 'H'}],
    ],
  ] as const)
    test(`with ${what}`, async () => {
      await using s = await stage(ddl)
      for (const edit of edits) await s.edit(edit)
      const result = await s.client.sync({conflictConfig: keepsTarget})
      assert.deepEqual([result.written_to_source?.left, result.written_to_source?.refused], [0, 0])
      assert.deepEqual(s.rows('select * from t order by 1, 2'), rows)
      await s.equal()
      const again = await s.client.sync({conflictConfig: keepsTarget, marks: true})
      assert.deepEqual([again.mode, again.written_to_source], ['unchanged', undefined])
    })
})

describe('what the app’s own uniqueness forbids one by one', () => {
  const people = (n: number) =>
    `create table person (id text primary key, mail text unique not null, v blob);
      ${Array.from({length: n}, (_, i) => `insert into person values ('p${i}', 'm${i}', x'00')`).join(';')}`

  test('is done together: values change places', async () => {
    await using s = await stage(people(3))
    await s.edit(`update $.person set mail = 'm' || (substr(id, 2)::int + 1) % 3`)
    const {written_to_source: wrote} = await s.client.sync()
    assert.deepEqual(wrote, {inserted: 0, updated: 3, deleted: 0, refused: 0, left: 0})
    assert.deepEqual(s.rows('select rowid, id, mail from person order by rowid'), [
      {rowid: 1, id: 'p0', mail: 'm1'},
      {rowid: 2, id: 'p1', mail: 'm2'},
      {rowid: 3, id: 'p2', mail: 'm0'},
    ])
    await s.equal()
  })

  test('a value passes on along many rows, further than one transaction reaches', async () => {
    await using s = await stage(people(120))
    // In the order of the keys each waits for the next one.
    await s.edit(`update $.person set mail = 'm' || (substr(id, 2)::int + 1)`)
    const {written_to_source: wrote} = await s.client.sync()
    assert.deepEqual(wrote, {inserted: 0, updated: 120, deleted: 0, refused: 0, left: 0})
    await s.equal()
  })

  test('a new row takes what a deleted one had, and what another gives up', async () => {
    await using s = await stage(people(3))
    await s.edit(`delete from $.person where id = 'p0'`)
    await s.edit(`insert into $.person values ('a', 'm0'), ('b', 'm1')`)
    await s.edit(`update $.person set mail = 'else' where id = 'p1'`)
    const {written_to_source: wrote} = await s.client.sync()
    assert.deepEqual(wrote, {inserted: 2, updated: 1, deleted: 1, refused: 0, left: 0})
    await s.equal()
  })

  test('what cannot be is a conflict for a person, once, and holds up nothing else', async () => {
    await using s = await stage(people(4))
    await s.edit(`update $.person set mail = 'm3' where id = 'p0'`)
    await s.edit(`update $.person set mail = 'fine' where id = 'p1'`)
    await s.edit(`insert into $.person values ('x', null)`)
    const result = await s.client.sync()
    assert.deepEqual(result.written_to_source, {inserted: 0, updated: 1, deleted: 0, refused: 2, left: 0})
    assert.equal(result.conflicts.pending, 2)
    assert.deepEqual(s.rows(`select id, mail from person order by id`), [
      {id: 'p0', mail: 'm0'},
      {id: 'p1', mail: 'fine'},
      {id: 'p2', mail: 'm2'},
      {id: 'p3', mail: 'm3'},
    ])
    const asked = await leader.admin<{id: string; key: string; type: string; notes: string}>`
      select conflict_id as id, record_key as key, conflict_type as type, notes from sync_metadata.conflict_log
      where status = 'pending' and deployment_id = ${(await s.client.deployment()).deploymentId} order by record_key`
    assert.deepEqual(
      asked.map(({key, type}) => [key, type]),
      [
        ['p0', 'constraint_violation'],
        ['x', 'constraint_violation'],
      ],
    )
    assert.match(asked[0]!.notes, /UNIQUE constraint failed: person\.mail/)
    // Nobody has changed anything: it is not tried again.
    const before = await s.client.written()
    for (const options of [{}, {marks: true}, {full: true}]) {
      const again = await s.client.sync(options)
      assert.deepEqual(
        [again.mode, again.written_to_source, again.conflicts.pending],
        ['unchanged', undefined, 2],
      )
    }
    assert.equal(await s.client.written(), before)
    // The app makes room, and a person lets the target's value stand; the other one is given up.
    s.app.exec(`update person set mail = 'gone' where id = 'p3'`)
    await resolveConflict(leader.host, asked[0]!.id, {choice: 'target'}, 'test')
    await resolveConflict(leader.host, asked[1]!.id, {choice: 'source'}, 'test')
    const then = await s.client.sync()
    assert.deepEqual(then.written_to_source, {inserted: 0, updated: 1, deleted: 0, refused: 0, left: 0})
    assert.deepEqual(s.rows(`select mail from person where id = 'p0'`), [{mail: 'm3'}])
    assert.equal(then.conflicts.pending, 0)
    await s.equal()
  })

  test('two that want one value: the first has it, the other is a conflict', async () => {
    await using s = await stage(people(3))
    await s.edit(`update $.person set mail = 'same' where id in ('p0', 'p1')`)
    const {written_to_source: wrote, conflicts} = await s.client.sync()
    assert.deepEqual([wrote?.updated, wrote?.refused, conflicts.pending], [1, 1, 1])
    assert.deepEqual(s.rows('select id, mail from person order by id'), [
      {id: 'p0', mail: 'same'},
      {id: 'p1', mail: 'm1'},
      {id: 'p2', mail: 'm2'},
    ])
  })
})

describe('what a source does not hold as it is', () => {
  for (const [what, ddl, edit, type] of [
    [
      'a type that a STRICT table refuses',
      `create table t (id text primary key, v any, n integer) strict; insert into t values ('p', 'x', 1)`,
      `update $.t set n = null, v = 'y'`,
      undefined,
    ],
    [
      'a check',
      `create table t (id text primary key, n integer check (n < 10)); insert into t values ('p', 1)`,
      `update $.t set n = 11`,
      'constraint_violation',
    ],
    [
      'what would take another row’s place',
      `create table t (id text primary key, n integer unique on conflict replace); insert into t values ('p', 1), ('q', 2)`,
      `update $.t set n = 2 where id = 'p'`,
      'constraint_violation',
    ],
    [
      'a trigger that refuses',
      `create table t (id text primary key, n integer); insert into t values ('p', 1);
        create trigger r before update on t when new.n > 9 begin select raise(abort, 'too many'); end`,
      `update $.t set n = 11`,
      'constraint_violation',
    ],
    [
      'a trigger that ends the transaction',
      `create table t (id text primary key, n integer); insert into t values ('p', 1);
        create trigger r before update on t when new.n > 9 begin select raise(rollback, 'too many'); end`,
      `update $.t set n = 11`,
      'constraint_violation',
    ],
    [
      'a trigger that writes something else',
      `create table t (id text primary key, n integer); insert into t values ('p', 1);
        create trigger r after update of n on t begin update t set n = 5 where id = new.id; end`,
      `update $.t set n = 11`,
      'type_mismatch',
    ],
    [
      'a trigger that ignores it',
      `create table t (id text primary key, n integer); insert into t values ('p', 1);
        create trigger r before delete on t begin select raise(ignore); end`,
      `delete from $.t`,
      'type_mismatch',
    ],
    [
      'a text that the column would make a number',
      `create table t (id text primary key, n integer); insert into t values ('p', 'a')`,
      `update $.t set n = '1.50'`,
      'type_mismatch',
    ],
    [
      'the schema’s own version',
      `create table alembic_version (version_num text primary key); insert into alembic_version values ('abc')`,
      `delete from $.alembic_version`,
      'type_mismatch',
    ],
    [
      'the counters of AUTOINCREMENT',
      `create table t (id integer primary key autoincrement); insert into t values (7)`,
      `update $.sqlite_sequence set seq = 99`,
      'type_mismatch',
    ],
    [
      'the tables behind a full-text index',
      `create virtual table f using fts5 (body); insert into f values ('some words')`,
      `update $.f_content set c0 = 'other words'`,
      'type_mismatch',
    ],
  ] as const)
    test(what, async () => {
      await using s = await stage(
        `${ddl}; create table other (id text primary key, v text); insert into other values ('o', 'x')`,
      )
      await s.edit(edit)
      await s.edit(`update $.other set v = 'written'`)
      const result = await s.client.sync({conflictConfig: keepsTarget})
      assert.deepEqual(s.rows('select v from other'), [{v: 'written'}])
      if (what.startsWith('what would take'))
        assert.deepEqual(s.rows('select count(*) as n from t'), [{n: 2}])
      const refused = await leader.admin<{type: string}>`
        select conflict_type as type from sync_metadata.conflict_log
        where status = 'pending' and deployment_id = ${(await s.client.deployment()).deploymentId}`
      assert.deepEqual(
        refused.map(each => each.type),
        type === undefined ? [] : [type],
      )
      assert.equal(result.written_to_source?.refused, type === undefined ? 0 : 1)
      assert.equal(s.app.prepare('pragma integrity_check').get()?.['integrity_check'], 'ok')
      const before = await s.client.written()
      const again = await s.client.sync({conflictConfig: keepsTarget, marks: true})
      assert.deepEqual([again.mode, again.written_to_source], ['unchanged', undefined])
      assert.equal(await s.client.written(), before)
      assert.deepEqual((await s.client.verify()).differences, [])
    })
})

test('a full-text index follows what is written to the rows that it is over', async () => {
  await using s = await stage(`create table note (id integer primary key, body text);
    create virtual table f using fts5 (body, content = note, content_rowid = id);
    create trigger i after insert on note begin insert into f (rowid, body) values (new.id, new.body); end;
    create trigger d after delete on note begin
      insert into f (f, rowid, body) values ('delete', old.id, old.body); end;
    create trigger u after update on note begin
      insert into f (f, rowid, body) values ('delete', old.id, old.body);
      insert into f (rowid, body) values (new.id, new.body); end;
    insert into note values (1, 'apples'), (2, 'pears')`)
  await s.edit(`update $.note set body = 'plums' where id = 1`)
  await s.edit(`delete from $.note where id = 2`)
  await s.client.sync({conflictConfig: keepsTarget})
  assert.deepEqual(s.rows(`select rowid from f where f match 'plums'`), [{rowid: 1}])
  assert.deepEqual(s.rows(`select rowid from f where f match 'apples or pears'`), [])
  s.app.exec(`insert into f (f, rank) values ('integrity-check', 1)`)
  const {differences} = await s.client.verify()
  assert.deepEqual(differences, [])
})

test('an edit of what SQLite computes is undone, and recorded; nothing is written for it', async () => {
  await using s = await stage(
    `create table t (id text primary key, v text, up text as (upper(v)) stored); insert into t (id, v) values ('p', 'x')`,
  )
  await s.edit(`update $.t set up = 'not so'`)
  const {written_to_source: wrote, conflicts} = await s.client.sync({conflictConfig: keepsTarget})
  assert.deepEqual([wrote, conflicts.resolved], [undefined, 1])
  const entries = await leader.admin<{outcome: string; standing: boolean}>`
    select outcome, is_standing as standing from sync_metadata.conflict_log
    where deployment_id = ${(await s.client.deployment()).deploymentId}`
  assert.deepEqual(entries, [{outcome: 'source', standing: false}])
  await s.equal()
})
