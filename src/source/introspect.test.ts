import assert from 'node:assert/strict'
import {DatabaseSync} from 'node:sqlite'
import {test} from 'vitest'
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
