import type {DatabaseSync} from 'node:sqlite'
import type {Shape} from '../shapes.ts'
import {run} from './statements.ts'

const rows = [
  'create table chat (id text primary key, title text, body blob)',
  'create table plain (v)',
  ...Array.from(
    {length: 40},
    (_, i) => `insert into chat values ('id-${i}', 'Größe ${i} 🐍', zeroblob(${(i * i * 97) % 9_000}))`,
  ),
  `insert into plain values ('x' || char(0) || 'y'), ('ünï'), (1), (null)`,
]

const someChanges = [
  run(`update chat set title = 'changed 名前' where id = 'id-3'`, `delete from chat where id = 'id-4'`),
  run('vacuum'),
  run(`insert into chat values ('new', '', x'00')`, `delete from plain where v = 1`),
]

function withPragmas(name: string, ...pragmas: readonly string[]): Shape {
  return {name, build: run(...pragmas.map(pragma => `pragma ${pragma}`), ...rows), change: someChanges}
}

const utf16 = (order: 'le' | 'be'): Shape => ({
  name: `UTF-16${order}, with what is no valid UTF-16`,
  build: db => {
    db.exec(`pragma encoding = 'UTF-16${order}'`)
    run(...rows)(db)
    buildBroken16(db, order)
  },
  change: [
    ...someChanges,
    run(
      `update broken set v = 'mended' where id = 1`,
      `insert into broken values (100, 'a' || char(0) || '🐍')`,
    ),
  ],
})

function buildBroken16(db: DatabaseSync, order: 'le' | 'be'): void {
  db.exec('create table broken (id integer primary key, v text)')
  db.exec('create table broken_keys (id text primary key, v)')
  // A lone high surrogate, a lone low one, both reversed, an odd number of bytes, U+FFFD itself, a BOM, and what is no
  // character: one looks like the other order's BOM.
  const bigEndian = ['d83d', 'dc0d', 'dc0dd83d', '0061d8', 'fffd', 'feff0061', '0000', '00610000', 'd83ddc0d']
  bigEndian.push('fffe0061', '0061ffff')
  bigEndian.forEach((hex, i) => {
    const bytes = Buffer.from(hex, 'hex')
    if (order === 'le' && bytes.length % 2 === 0) bytes.swap16()
    db.prepare('insert into broken values (?, cast(? as text))').run(BigInt(i), bytes)
    db.prepare('insert into broken_keys values (cast(? as text), ?)').run(bytes, BigInt(i))
  })
  // More than a page of them, whose place is their key.
  db.exec(`create table broken_places (id text primary key, v) without rowid;
    insert into broken_places with recursive n (i) as (select 1 union all select i + 1 from n where i < 1200)
      select cast(cast(printf('%04d', i) as blob) || x'ffff' as text), cast(x'0000' as text) from n`)
}

/** Kinds of files: pages, encodings, settings, and files with nothing in them. */
export const files: readonly Shape[] = [
  {
    name: 'no table at all, then one, then none',
    build: run('pragma user_version = 1'),
    change: [run('create table t (v)'), run('insert into t values (1)'), run('drop table t')],
  },
  {
    name: 'tables without rows, then a row, then none',
    build: run(
      'create table keyed (id text primary key, v json)',
      'create table plain (a, b)',
      'create table indexed (id varchar(255) not null)',
      'create unique index indexed_id on indexed (id)',
    ),
    change: [
      run(`insert into keyed values ('a', 'null')`, 'insert into plain values (null, null)'),
      run('delete from keyed', 'delete from plain', `insert into indexed values ('x')`),
    ],
  },
  withPragmas('pages of 512 bytes', 'page_size = 512'),
  withPragmas('pages of 65,536 bytes', 'page_size = 65536'),
  withPragmas('WAL', 'journal_mode = wal'),
  withPragmas('WAL and pages of 1,024 bytes', 'page_size = 1024', 'journal_mode = wal'),
  withPragmas('auto_vacuum full', 'auto_vacuum = 1'),
  withPragmas('auto_vacuum incremental', 'auto_vacuum = 2'),
  withPragmas('user_version and application_id', 'user_version = -7', 'application_id = 252006674'),
  {
    name: 'settings that change',
    build: run(...rows),
    change: [
      run('pragma user_version = 41', 'pragma application_id = -1'),
      run('pragma page_size = 8192', 'vacuum'),
      run('pragma auto_vacuum = 1', 'vacuum'),
      run('pragma journal_mode = wal', `insert into plain values ('in the log')`),
      run('pragma journal_mode = delete'),
    ],
  },
  utf16('le'),
  utf16('be'),
]
