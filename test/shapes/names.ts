import type {DatabaseSync} from 'node:sqlite'
import type {Shape} from '../shapes.ts'
import {run} from './statements.ts'

const quoted = (name: string) => `"${name.replaceAll('"', '""')}"`

const difficult = [
  'a b',
  'a_b',
  'a-b',
  'a.b',
  'a"b',
  "a'b",
  'a`b',
  '[a]',
  'a;--b',
  'a\nb',
  'a\\b',
  '$1',
  '%s',
  '',
  ' ',
  'Ünïcode',
  '名前',
  '🐍',
  'e\u0301',
  'é',
  'İ',
  '1',
  '_',
  'x'.repeat(63),
  'x'.repeat(64),
  'x'.repeat(100),
  `${'x'.repeat(99)}y`,
  'ü'.repeat(40),
  'select',
  'table',
  'user',
  'CamelCase',
]

/** Same letters to Postgres once folded or cut, and names that the target needs for itself. */
const taken = [
  '_sync_key',
  '_sync_hash',
  '_sync_at',
  '_sync_deleted_at',
  '_sync_edited_by',
  '_sync_diverged',
  '_sync_raw',
  '_sync_new',
  'live_x',
  'ctid',
  'xmin',
  'xmax',
  'cmin',
  'cmax',
  'tableoid',
  'pg_x',
]

function table(db: DatabaseSync, name: string, value: string): void {
  db.exec(`create table ${quoted(name)} (id integer primary key, v)`)
  db.prepare(`insert into ${quoted(name)} (v) values (?), (null)`).run(value)
}

/** Names of tables and columns that want quoting, mapping or both. */
export const names: readonly Shape[] = [
  {
    name: 'difficult table names',
    build: db => {
      for (const name of difficult) table(db, name, name)
    },
    change: [
      db => {
        for (const name of difficult) db.exec(`update ${quoted(name)} set v = 'changed' where v is null`)
      },
      run('drop table "a_b"', `update "a b" set v = 'alone'`),
      run('create table "a_b" (id integer primary key, v)', `insert into "a_b" values (1, 'back')`),
    ],
  },
  {
    name: 'difficult column names',
    build: db => {
      // SQLite compares names without case for ASCII letters only, so all of these are different.
      db.exec(`create table t (${difficult.map(quoted).join(', ')})`)
      const marks = difficult.map(() => '?').join(', ')
      db.prepare(`insert into t values (${marks})`).run(...difficult)
    },
    change: [
      run('update t set "" = 1, "a b" = x\'00\', "名前" = null'),
      run('alter table t drop column "a_b"'),
      run('alter table t rename column "a-b" to "a_b"'),
    ],
  },
  {
    name: 'tables and columns named like what the target adds',
    build: db => {
      for (const name of taken) table(db, name, name)
      table(db, 'x', 'has a live_x of its own beside it')
      db.exec(`create table t (${taken.map(quoted).join(', ')}, primary key ("_sync_key"))`)
      db.prepare(`insert into t values (${taken.map(() => '?').join(', ')})`).run(...taken)
    },
    change: [run(`update t set _sync_hash = 'other', ctid = 1, _sync_key = 'moved'`, 'drop table live_x')],
  },
  {
    name: 'rowid, oid and _rowid_ as real columns',
    build: run(
      'create table one (rowid text, v)',
      'create table two (rowid text, oid int, v)',
      'create table all_three (rowid, oid, _rowid_, id integer primary key)',
      'create table cased (RowID text, v)',
      'create table keyed (rowid text primary key, v)',
      `insert into one values ('x', 1), ('x', 1), (null, 2)`,
      `insert into two values ('x', 9, 1), ('x', 9, 1)`,
      `insert into all_three values (1, 2, 3, 7), (1, 2, 3, 8), (null, 'b', x'63', 9)`,
      `insert into cased values ('7', 1), ('7', 1)`,
      `insert into keyed values ('7', 1)`,
    ),
    change: [
      run(`update one set rowid = 'y' where oid = 1`, 'delete from two where _rowid_ = 1'),
      run(`update all_three set oid = 'changed' where rowid is null`, `update keyed set rowid = '8'`),
    ],
  },
  {
    name: 'a name that changes in nothing but case',
    build: run('create table Thing (Id text primary key, Name text)', `insert into Thing values ('a', 'x')`),
    change: [
      run('alter table Thing rename to other', 'alter table other rename to thing'),
      run('alter table thing rename column Name to NAME', `update thing set name = 'y'`),
      run(
        'drop table thing',
        'create table THING (id text primary key, name text)',
        `insert into THING values ('a', 'z')`,
      ),
    ],
  },
  {
    name: 'names that clash once mapped, one after the other',
    build: run('create table "a b" (v)', `insert into "a b" values ('space')`),
    change: [
      run('create table a_b (v)', `insert into a_b values ('underscore')`),
      run('create table "a__b" (v)', `insert into "a__b" values ('two')`, 'drop table "a b"'),
      run('alter table a_b rename to "a b"', 'create table "A_B" (v)'),
    ],
  },
]
