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
    introspect(db).tables.map(table => [table.name, sampleClasses(db, table, classes)]),
  )
  const expected = Array.from({length: 1_990}, () => 0)
  expected[0] = classes.bit | classes.integer
  expected[7] = classes.wideInteger | classes.real
  expected[1_800] = classes.bit | classes.integer | classes.text | classes.blob
  assert.deepEqual(found, {wide: expected, keyed: [classes.text, classes.bit], bare: [0, 0]})
})
