import assert from 'node:assert/strict'
import {DatabaseSync} from 'node:sqlite'
import {describe, test} from 'vitest'
import {SourceUnreadableError} from './errors.ts'
import {introspect} from './introspect.ts'
import {TableReader, type Position} from './read.ts'

const BUDGET = {ms: 60_000, bytes: 1e6, rows: 9}

/** Keys of the rows that are read, and of those that are refused, a page after the other. */
function readAll(db: DatabaseSync): {read: string[]; refused: string[]} {
  const [table] = introspect(db).tables
  assert.ok(table !== undefined)
  const reader = new TableReader(db, table)
  const keys = {read: [] as string[], refused: [] as string[]}
  let at: Position | undefined
  // What goes on for ever is not read whole.
  for (let pages = 0; pages < 20; pages++) {
    const page = reader.page(at, BUDGET)
    keys.read.push(...page.rows.map(({key}) => key))
    keys.refused.push(...page.refused.map(({key}) => key))
    at = page.next
    if (at === undefined) break
  }
  return keys
}

test.each([-9223372036854775808n, 9223372036854775807n])(
  'a value that is too long is set aside in the row with the rowid %s',
  rowid => {
    using db = new DatabaseSync(':memory:')
    db.exec(`create table t (v); insert into t (rowid, v) values (${rowid}, zeroblob(200000)), (1, 'short')`)
    db.limits.length = 100_000
    const [table] = introspect(db).tables
    assert.ok(table !== undefined)
    const {rows, refused} = new TableReader(db, table).fetch([rowid, 1n], BUDGET)
    assert.deepEqual(
      rows.map(row => row.rowid),
      [1n],
    )
    assert.deepEqual(
      refused.map(row => [row.rowid, /column v holds 200000 bytes/.test(row.reason)]),
      [[rowid, true]],
    )
  },
)

describe.each(['', 'without rowid'])('a value that is too long, in a table %s', kind => {
  test('is set aside by the key that its row has, whatever JavaScript makes of that', () => {
    using db = new DatabaseSync(':memory:')
    db.exec(`create table t (k text primary key, v) ${kind};
      insert into t values ('a', 1), (cast(x'6180' as text), zeroblob(200000)), ('a\u00e9', 2), ('a\u20ac', 3), ('b', 4),
        (cast(x'62ff' as text), zeroblob(200000)), ('c' || char(0) || 'd', zeroblob(200000)), ('z', 5)`)
    db.limits.length = 100_000
    const {read, refused} = readAll(db)
    assert.deepEqual(read.toSorted(), ['a', 'aé', 'a€', 'b', 'z'])
    assert.deepEqual(refused, ['~x6180;', '~x62ff;', '~x630064;'])
  })
})

test.each([
  ['a NULL in a key', `k primary key, v`, `(null, zeroblob(200000)), ('a', 1), ('b', 2)`],
  ['a NULL in a descending key', `k primary key desc, v`, `(null, zeroblob(200000)), ('a', 1), ('b', 2)`],
  ['a NULL in a key that is not the rowid', `k integer primary key desc, v`, `(null, 1), (null, 2), (3, 3)`],
])('rows without an address are refused: %s', (_, columns, rows) => {
  using db = new DatabaseSync(':memory:')
  db.exec(`create table t (${columns}, rowid, oid, _rowid_); insert into t (k, v) values ${rows}`)
  db.limits.length = 100_000
  assert.throws(() => readAll(db), SourceUnreadableError)
})

test('an integer key that is not the rowid has whatever values it has', () => {
  using db = new DatabaseSync(':memory:')
  db.exec(
    `create table t (k integer primary key desc, rowid, oid, _rowid_); insert into t (k) values (3), (1), ('x'), (1.5)`,
  )
  assert.deepEqual(readAll(db), {read: ['x', '~i3;', '~r3ff8000000000000;', '~i1;'], refused: []})
})
