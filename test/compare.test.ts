import assert from 'node:assert/strict'
import {copyFileSync} from 'node:fs'
import {mkdtemp, rm} from 'node:fs/promises'
import {tmpdir} from 'node:os'
import {join} from 'node:path'
import {afterAll, beforeAll, describe, test} from 'vitest'
import {compareFiles, tableRows} from './compare.ts'
import {openShape, shapes} from './shapes.ts'

let folder: string
beforeAll(async () => {
  folder = await mkdtemp(join(tmpdir(), 'owsync-compare-'))
})
afterAll(() => rm(folder, {recursive: true}))

/** Runs `statements` on `file`, which is made when missing. */
function change(file: string, ...statements: readonly string[]): void {
  using db = openShape(file)
  for (const statement of statements) db.exec(statement)
}

const base = [
  'pragma page_size = 4096',
  'create table keyed (id text primary key, v, r real)',
  'create table indexed (id varchar(255) not null, v)',
  'create unique index indexed_id on indexed (id)',
  'create table plain (v)',
  'create table nulls (id text primary key, v)',
  'create table pair (a int, b text, v, primary key (b, a)) without rowid',
  'create table taken (rowid, oid, _rowid_)',
  "create table computed (id integer primary key, a, b as (a || '!'))",
  'create table counted (id integer primary key autoincrement)',
  'create virtual table words using fts5(body)',
  'create index keyed_v on keyed (v)',
  'create view seen as select 1',
  'create trigger after_plain after delete on plain begin select 1; end',
  `insert into keyed values ('a', 1, 1.5), ('b', 'text', 0.1), ('c', x'00', null), ('d', null, 1e300), ('~', 0.0, 2)`,
  `insert into indexed values ('a', 1), ('b', 2)`,
  `insert into plain values ('x'), ('x'), ('y')`,
  `insert into nulls values (null, 1), (null, 1), (null, 2), ('a', 3)`,
  `insert into pair values (1, 'x', 'v'), (2, 'x', 'v')`,
  'insert into taken values (1, 2, 3), (1, 2, 3), (4, 5, 6)',
  'insert into computed (a) values (1)',
  'insert into counted values (5)',
  `insert into words values ('hello there')`,
]

describe('a planted difference is found:', () => {
  const planted: readonly (readonly [what: string, statement: string, found: RegExp])[] = [
    ['a missing row', `delete from keyed where id = 'a'`, /^table keyed \(id=text "a" .*\): missing$/],
    ['an extra row', `insert into keyed values ('e', 1, 1)`, /^table keyed \(id=text "e" .*\): extra$/],
    ['another value', `update keyed set v = 2 where id = 'a'`, /"v": integer 1 → integer 2$/],
    ['integer for text', `update keyed set v = '1' where id = 'a'`, /"v": integer 1 → text "1" /],
    ['real for integer', `update keyed set v = 1.0 where id = 'a'`, /"v": integer 1 → real 1 /],
    ['text for blob', `update keyed set v = cast(v as text) where id = 'c'`, /"v": blob x'00' .* → text /],
    ['empty text for NULL', `update keyed set v = '' where id = 'd'`, /"v": NULL → text "" /],
    ['no bytes for NULL', `update keyed set v = x'' where id = 'd'`, /"v": NULL → blob x'' /],
    ['the text null for NULL', `update keyed set v = 'null' where id = 'd'`, /"v": NULL → text "null" /],
    ['the last bit of a real', `update keyed set r = 0.10000000000000002 where id = 'b'`, /"r": real 0\.1 /],
    ['minus zero', `update keyed set v = -0.0 where id = '~'`, /"v": real 0 .* → real -0 /],
    ['text after a NUL', `update keyed set v = 'text' || char(0) || 'x' where id = 'b'`, /"v": text "text"/],
    ['bytes that are no text', `update keyed set v = cast(x'ff' as text) where id = 'b'`, /\(ff, 1 bytes\)/],
    ['U+FFFD for another', `update keyed set id = char(65533) where id = 'b'`, /id=text "b" .*: missing$/],
    ['a key of another class', `update keyed set id = cast(x'ff' as text) where id = 'b'`, /: extra$/],
    [
      'a row found by unique index',
      `update indexed set v = 20 where id = 'b'`,
      /^table indexed \(id=text "b"/,
    ],
    ['a row without key', `update plain set v = 'z' where rowid = 2`, /^table plain \(rowid=integer 2\)/],
    [
      'another rowid without key',
      'update plain set rowid = 9 where rowid = 3',
      /^table plain \(rowid=integer 3\): missing/,
    ],
    ['fewer rows under a NULL key', 'delete from nulls where rowid = 2', /^table nulls \(id=NULL\): missing/],
    [
      'other content under a NULL key',
      'update nulls set v = 9 where rowid = 1',
      /^table nulls \(id=NULL\): "v": integer 1 → /,
    ],
    ['a composite key', `update pair set v = 'w' where a = 2`, /^table pair \(a=integer 2, b=text "x"/],
    ['a row whose rowid is out of reach', 'delete from taken where _rowid_ = 6', /^table taken .*missing$/],
    ['a counter', 'update sqlite_sequence set seq = 6', /^table sqlite_sequence \(name=text "counted"/],
    ['a shadow table', `update words_content set c0 = 'other'`, /^table words_content \(id=integer 1\)/],
    ['an index', 'drop index keyed_v', /^index keyed_v: missing$/],
    ['a view', 'drop view seen', /^view seen: missing$/],
    ['a trigger', 'drop trigger after_plain', /^trigger after_plain: missing$/],
    ['a table', 'create table more (v)', /^table more: extra$/],
    ['a column', 'alter table plain add column w', /^table plain: CREATE TABLE plain/i],
    ['user_version', 'pragma user_version = 3', /^pragma user_version: 0 → 3$/],
    ['application_id', 'pragma application_id = 4', /^pragma application_id: 0 → 4$/],
    ['journal mode', 'pragma journal_mode = wal', /^pragma journal_mode: delete → wal$/],
    ['page size', 'pragma page_size = 8192; vacuum', /^pragma page_size: 4096 → 8192$/],
    ['auto_vacuum', 'pragma auto_vacuum = 1; vacuum', /^pragma auto_vacuum: 0 → 1$/],
  ]
  for (const [what, statement, found] of planted)
    test(what, () => {
      const [one, other] = [join(folder, `${what} 1`), join(folder, `${what} 2`)]
      change(one, ...base)
      copyFileSync(one, other)
      assert.deepEqual(compareFiles(one, other), [])
      change(other, statement)
      const lines = compareFiles(one, other)
      assert.ok(
        lines.some(line => found.test(line)),
        lines.join('\n') || 'no difference found',
      )
      assert.ok(compareFiles(other, one).length > 0, 'and seen from the other side')
    })
})

test('the encoding of a file counts, even when its text reads the same', () => {
  const [one, other] = [join(folder, 'utf-8'), join(folder, 'utf-16')]
  change(one, 'create table t (id text primary key)', `insert into t values ('a')`)
  change(
    other,
    `pragma encoding = 'UTF-16le'`,
    'create table t (id text primary key)',
    `insert into t values ('a')`,
  )
  const lines = compareFiles(one, other)
  assert.deepEqual(lines[0], 'pragma encoding: UTF-8 → UTF-16le')
  assert.equal(lines.length, 3)
})

test('the order of rows and the rowids of keyed tables do not count', () => {
  const [one, other] = [join(folder, 'order 1'), join(folder, 'order 2')]
  const tables = ['create table k (id text primary key, v)', 'create table u (id text not null unique, v)']
  change(one, ...tables, `insert into k values ('a', 1), ('b', 2)`, `insert into u values ('a', 1), ('b', 2)`)
  change(
    other,
    ...tables,
    `insert into u values ('b', 2), ('a', 1)`,
    `insert into k values ('b', 2), ('a', 1)`,
  )
  assert.deepEqual(compareFiles(one, other), [])
})

test('rows of ignored tables are not compared, and the list ends at the most that was asked for', () => {
  const [one, other] = [join(folder, 'ignored 1'), join(folder, 'ignored 2')]
  change(one, 'create table t (id integer primary key)')
  copyFileSync(one, other)
  change(
    other,
    `with recursive n (v) as (select 1 union all select v + 1 from n where v < 500) insert into t select v from n`,
  )
  assert.equal(compareFiles(one, other).length, 100)
  assert.equal(compareFiles(one, other, {most: 3}).length, 3)
  assert.deepEqual(compareFiles(one, other, {ignoreRows: table => table === 't'}), [])
  assert.deepEqual(tableRows(other), {t: 500n})
})

describe('every shape can be built, changed, and compared with its copy:', () => {
  for (const [i, shape] of shapes.entries())
    test(shape.name, () => {
      const [file, copy] = [join(folder, `shape ${i}`), join(folder, `shape ${i} copy`)]
      for (const step of [shape.build, ...(shape.change ?? [])]) {
        {
          using db = openShape(file)
          step(db)
        }
        copyFileSync(file, copy)
        assert.deepEqual(compareFiles(file, copy), [])
      }
    })
})

test('no two shapes share a name', () => {
  assert.equal(new Set(shapes.map(shape => shape.name)).size, shapes.length)
})
