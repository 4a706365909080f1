import assert from 'node:assert/strict'
import {DatabaseSync} from 'node:sqlite'
import {describe, test} from 'vitest'
import {introspect, sampleClasses} from './introspect.ts'

const classes = {bit: 1, integer: 2, wideInteger: 4, real: 8, text: 16, blob: 32}

test('the classes of every column are found, of more columns than a statement is given, and of no rows', () => {
  using db = new DatabaseSync(':memory:')
  db.exec(`
    create table wide (${Array.from({length: 1_990}, (_, i) => `c${i}`).join(', ')});
    insert into wide (c0, c7, c1800) values
      (1, 9007199254740993, 'a'), (5, null, x'00'), (null, 1.5, 2), (9007199254740992, -9223372036854775808, 0);
    create table keyed (k text primary key, v) without rowid;
    insert into keyed values (1, 1), (2, null);
    create table bare (a, b)`)
  const found = Object.fromEntries(
    introspect(db).tables.map(table => [table.name, sampleClasses(db, table, classes, () => undefined)]),
  )
  const expected = Array.from({length: 1_990}, () => 0)
  expected[0] = classes.bit | classes.integer
  expected[7] = classes.wideInteger | classes.real
  expected[1_800] = classes.bit | classes.integer | classes.text | classes.blob
  assert.deepEqual(found, {wide: expected, keyed: [classes.text, classes.bit], bare: [0, 0]})
})

test('a sample is looked at some rows at a time, each time under a lock of its own, at both ends of a table', () => {
  using db = new DatabaseSync(':memory:')
  db.exec(`
    create table long (a, b, c);
    insert into long with recursive n (i) as (select 1 union all select i + 1 from n where i < 20000)
      select hex(zeroblob(20)), iif(i = 1, 1.5, 'text'), iif(i = 20000, x'00', iif(i = 10000, 0.5, 7)) from n;
    create table keyed (k primary key, v) without rowid;
    insert into keyed select rowid, iif(rowid = 20000, x'00', 7) from long`)
  const sample = () => {
    const holds: number[] = []
    const found = introspect(db).tables.map(table => sampleClasses(db, table, classes, ms => holds.push(ms)))
    return {holds: holds.length, found}
  }
  const {holds, found} = sample()
  assert.deepEqual(found, [
    // What stands in the middle is not looked at.
    [classes.text, classes.text | classes.real, classes.integer | classes.blob],
    // Nor is the end, where rows have no rowid.
    [classes.bit | classes.integer, classes.integer],
  ])
  assert.ok(holds >= 6, `${holds} locks`)
  db.exec('begin')
  assert.deepEqual(sample(), {holds: 0, found})
})

describe('whether a unique index can be the key of a table', () => {
  const shapes = [
    'on t (a, b)',
    'on t (a desc, b)',
    'on t (a collate nocase, b desc)',
    'on t (b, a)',
    'on t (b collate nocase desc, a collate nocase desc)',
  ]

  test.each(shapes)('is seen in each of its rows: %s', index => {
    using db = new DatabaseSync(':memory:')
    db.exec(`create table t (a text not null, b); create unique index i ${index};
      with recursive n (i) as (select 1 union all select i + 1 from n where i < 120)
        insert into t select char(97 + i / 40), iif(i % 3, i, 'B' || i) from n`)
    const key = () => introspect(db).tables[0]?.key.toSorted()
    assert.deepEqual(key(), ['a', 'b'])
    for (let rowid = 1; rowid <= 120; rowid++) {
      db.exec(`savepoint s; update t set b = null where rowid = ${rowid}`)
      assert.deepEqual(key(), [], `NULL in row ${rowid}`)
      db.exec('rollback to s; release s')
    }
  })

  test('is seen whatever its columns are called', () => {
    using db = new DatabaseSync(':memory:')
    db.exec(`create table t (id text not null, has_null, count); create unique index i on t (id, has_null, count);
      with recursive n (i) as (select 1 union all select i + 1 from n where i < 200)
        insert into t select 'x', iif(i = 5, null, i), i from n`)
    assert.deepEqual(introspect(db).tables[0]?.key, [])
    db.exec('delete from t where has_null is null')
    assert.deepEqual(introspect(db).tables[0]?.key, ['id', 'has_null', 'count'])
  })

  test('is seen some rows at a time, each time under a lock of its own', () => {
    using db = new DatabaseSync(':memory:')
    db.exec(`create table t (a text, b text); create unique index i on t (a, b);
      with recursive n (i) as (select 1 union all select i + 1 from n where i < 300000)
        insert into t select 'one', printf('%07d', i) from n`)
    const locks = () => {
      let count = 0
      const [table] = introspect(db, () => count++).tables
      return {count, key: table?.key}
    }
    const {count, key} = locks()
    assert.deepEqual(key, ['a', 'b'])
    // 8 rows, twice as many, and so on.
    assert.ok(count >= 10, `${count} locks`)
    db.exec('begin')
    assert.deepEqual(locks(), {count: 0, key: ['a', 'b']})
  })

  test('is seen without the collation that only the app has', () => {
    using db = new DatabaseSync(':memory:')
    // As an app leaves it that has registered a collation of its own.
    db.enableDefensive(false)
    for (const [name, last] of [
      ['whole', `'z'`],
      ['with_null', 'null'],
    ])
      db.exec(`create table ${name} (a text collate nocase, b text); create unique index i_${name} on ${name} (a, b);
        with recursive n (i) as (select 1 union all select i + 1 from n where i < 50)
          insert into ${name} select 'a', i from n;
        insert into ${name} values ('z', ${last})`)
    db.exec(`pragma writable_schema = on;
      update sqlite_schema set sql = replace(sql, 'nocase', 'mine'); pragma writable_schema = reset`)
    assert.throws(() => db.prepare('select * from whole order by a'), /no such collation sequence: mine/)
    const keys = introspect(db).tables.map(({name, key}) => [name, key])
    assert.deepEqual(keys, [
      ['whole', ['a', 'b']],
      ['with_null', []],
    ])
  })
})
