import assert from 'node:assert/strict'
import {DatabaseSync} from 'node:sqlite'
import {test} from 'vitest'
import {introspect} from './introspect.ts'
import {TableReader} from './read.ts'

test.each([-9223372036854775808n, 9223372036854775807n])(
  'a value that is too long is set aside in the row with the rowid %s',
  rowid => {
    using db = new DatabaseSync(':memory:')
    db.exec(`create table t (v); insert into t (rowid, v) values (${rowid}, zeroblob(200000)), (1, 'short')`)
    db.limits.length = 100_000
    const [table] = introspect(db).tables
    assert.ok(table !== undefined)
    const {rows, refused} = new TableReader(db, table).fetch([rowid, 1n], {ms: 60_000, bytes: 1e6, rows: 9})
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
