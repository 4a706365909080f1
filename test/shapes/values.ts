import type {DatabaseSync} from 'node:sqlite'
import type {Shape} from '../shapes.ts'
import {insert, run} from './statements.ts'

const extremes = [
  ...['9223372036854775807', '-9223372036854775808', '0', '-1', '9007199254740993', '-9007199254740993'],
  ...['0.0', '-0.0', '5e-324', '-5e-324', '2.2250738585072014e-308', '1e308', '1.7976931348623157e308'],
  ...[
    '1e999',
    '-1e999',
    '0.1',
    '1.0',
    '9007199254740992.0',
    '9.2233720368547758e18',
    '1e20',
    '-1e20',
    '100.0',
  ],
  ...['null', `''`, `x''`, `x'00'`, `x'ff'`, `zeroblob(5000)`, `'null'`, `'NULL'`, `'\\N'`, `'\\\\'`, `'"'`],
  ...[
    `'1'`,
    `'1.0'`,
    `'01'`,
    `'-0'`,
    `'+1'`,
    `' 1'`,
    `'1 '`,
    `'1e5 '`,
    `'1e5'`,
    `'9223372036854775808'`,
    `'0x10'`,
  ],
  ...[`'inf'`, `'NaN'`, `'true'`, `'false'`, `'t'`, `'2024-01-01'`, `'2024-01-01 00:00:00.5'`, `'infinity'`],
  ...[
    `'a' || char(0) || 'b'`,
    `char(0)`,
    `'é'`,
    `'e' || char(769)`,
    `char(65533)`,
    `char(1114111)`,
    `char(55357)`,
  ],
  ...[`cast(x'ff' as text)`, `cast(x'6162c3' as text)`, `cast(x'eda080' as text)`, `cast(x'c080' as text)`],
  ...[`cast(x'f4908080' as text)`, `cast(x'00' as text)`, `cast(x'efbfbdff' as text)`, `char(65279, 123)`],
  ...[
    `char(9, 10, 13, 8, 12, 11)`,
    `char(127, 128, 159)`,
    `char(8232, 8233)`,
    `'line one' || char(10) || 'two'`,
  ],
]

const types = ['', 'blob', 'text', 'varchar(3)', 'integer', 'bigint', 'boolean', 'real', 'double', 'numeric']
const moreTypes = [
  'decimal(10,2)',
  'json',
  'jsonb',
  'datetime',
  'date',
  'timestamp',
  'string',
  'floating point',
  'uuid',
]

function buildExtremes(db: DatabaseSync): void {
  db.exec('begin')
  for (const type of [...types, ...moreTypes]) {
    db.exec(`create table "of ${type}" (id integer primary key, v ${type})`)
    for (const extreme of extremes) db.exec(`insert into "of ${type}" (v) values (${extreme})`)
  }
  db.exec('commit')
}

const jsonTexts: readonly string[] = [
  '{}',
  '[]',
  'null',
  'true',
  '"text"',
  '',
  ' {"spaced" :  1 }\n',
  '{"a": 1, "a": 2, "b": {"a": 1, "a": 1}}',
  '{"nul": "\\u0000", "lone": "\\ud83d", "reversed": "\\udc0d\\ud83d", "pair": "\\ud83d\\udc0d"}',
  '{"\\u0000": 1}',
  '{"n": NaN, "i": Infinity, "m": -Infinity}',
  '{"control": "a\u0001b\tc\nd"}',
  '\ufeff{"bom": true}',
  "{'single': 'quotes'}",
  '[1, 2, 3,]',
  '{"unfinished": ',
  '[1e400, -0, 1.0, 1E+2, 0.1e-7, 12345678901234567890123]',
  '{"é": "ü", "escaped": "\\u00e9", "slash": "\\/", "emoji": "🐍"}',
  '{"__proto__": 1, "": 2, " ": 3}',
  `${'['.repeat(900)}${']'.repeat(900)}`,
]

function buildJson(db: DatabaseSync): void {
  db.exec('create table document (id integer primary key, body json, loose text)')
  for (const text of jsonTexts) db.prepare('insert into document (body, loose) values (?, ?)').run(text, text)
  db.exec(
    "insert into document (body) values (3), (0.5), (1.0), (null), (1e999), (-0.0), (x'7b7d'), (zeroblob(3))",
  )
}

/** The values themselves: storage classes, encodings, types that lie. */
export const values: readonly Shape[] = [
  {
    name: 'extremes of every storage class in every declared type',
    build: buildExtremes,
    change: [
      // Each value moves to the next row: every transition between two storage classes once.
      db => {
        for (const type of [...types, ...moreTypes])
          db.exec(
            `update "of ${type}" set v = n.v from (select id, lag(v) over (order by id) as v from "of ${type}") n
             where n.id = "of ${type}".id`,
          )
      },
      run("update \"of text\" set v = x'31' where v = '1'", 'update "of " set v = 1.0 where v = 1'),
    ],
  },
  {
    name: 'JSON columns with everything that is not JSON',
    build: buildJson,
    change: [
      run(
        `update document set body = 'null' where body is null`,
        `update document set body = null where body = 'true'`,
        `update document set body = 4 where body = 3`,
        `update document set body = ' ' || body where body = '[]'`,
      ),
    ],
  },
  {
    name: 'JSON 5,000 deep, a number of 200,000 digits, 10 MB in one value',
    build: db => {
      db.exec('create table heavy (id integer primary key, body json)')
      insert(db, 'heavy', [
        [1n, `${'['.repeat(5_000)}${']'.repeat(5_000)}`],
        [2n, `${'{"a":'.repeat(5_000)}1${'}'.repeat(5_000)}`],
        [3n, `{"n": ${'7'.repeat(200_000)}}`],
        [4n, `{"big": "${'0123456789abcdef'.repeat(640_000)}"}`],
        [5n, JSON.stringify(Array.from({length: 100_000}, (_, i) => ({id: i, said: 'ümlaut', at: null})))],
      ])
    },
    change: [
      run(`update heavy set body = replace(body, 'f', 'F') where id = 4`, 'delete from heavy where id = 3'),
    ],
  },
  {
    name: '10 MB of text, of bytes, and of text that is not valid',
    build: db => {
      db.exec('create table heavy (id text primary key, t text, b blob)')
      const bytes = Buffer.alloc(10_000_000, 0xc3)
      insert(db, 'heavy', [
        ['text', 'größer '.repeat(1_200_000), null],
        ['blob', null, bytes],
        ['line', '\n'.repeat(1_000_000), Buffer.alloc(100)],
      ])
      db.prepare(`insert into heavy values ('invalid', cast(? as text), null)`).run(
        bytes.subarray(0, 100_000),
      )
    },
    change: [
      // Same length, so only an overflow page changes.
      run(`update heavy set t = substr(t, 1, 5000000) || 'X' || substr(t, 5000002) where id = 'text'`),
    ],
  },
  {
    name: 'times declared one way and stored another',
    build: run(
      'create table timed (id integer primary key, at datetime not null, day date, ns bigint, flag boolean)',
      `insert into timed values (1, 1730958200, '2024-01-01', 1756458036750333184, 1),
         (2, '2024-01-01 10:00:00', 19700, 0, 0), (3, '', null, -1, 2), (4, 1730958200.5, '0000-00-00', 1e30, 'true'),
         (5, '2024-01-01T10:00:00.123456Z', 'now', '12', null), (6, x'00', '', 'soon', -1)`,
    ),
    change: [
      run(`update timed set at = '1730958200' where id = 1`, `update timed set flag = 'false' where id = 1`),
      run(`update timed set at = cast(id as integer), day = null, ns = id, flag = id % 2`),
    ],
  },
  {
    name: 'the same column turns from one storage class to another',
    build: run(
      'create table turning (id integer primary key, n integer, j json, t text)',
      ...Array.from({length: 50}, (_, i) => `insert into turning values (${i}, ${i}, '{}', 'x')`),
    ),
    change: [
      run(`update turning set n = 'not a number' where id = 7`),
      run(`update turning set j = id, t = x'00' where id % 2`),
      run(`update turning set n = id + 0.5`),
      run(`update turning set n = null, j = null, t = null`),
    ],
  },
  {
    name: 'STRICT tables, ANY among them',
    build: run(
      'create table exact (id int primary key, t text, r real, b blob, i integer, a any) strict',
      `insert into exact values (1, 'x', 1, x'00', 9223372036854775807, '1'), (2, '', -0.0, x'', 0, 1),
         (3, null, 1e999, null, null, 1.0), (4, 'a', 2.5, x'61', -1, '1e5 '), (5, 'b', 0.1, null, 1, x'31')`,
    ),
    change: [run(`update exact set a = '2' where a = 1`, `update exact set a = 1 where id = 5`)],
  },
]
