import {hash} from 'node:crypto'
import type {Shape} from '../shapes.ts'
import {insert, run} from './statements.ts'

/** @returns `chars` characters that no index compresses: hex of hashes. */
function incompressible(seed: string, chars: number): string {
  const blocks = Array.from({length: Math.ceil(chars / 64)}, (_, i) => hash('sha256', `${seed} ${i}`))
  return blocks.join('').slice(0, chars)
}

const id = (name: string) => incompressible(name, 4_096)
const prefix = incompressible('prefix', 3_000)

/** What identifies a row, and keys that move. */
export const keys: readonly Shape[] = [
  {
    name: 'no primary key, equal rows',
    build: run(
      'create table plain (a, b text)',
      `insert into plain values (1, 'one'), (1, 'one'), (null, null), (null, null), ('1', 'one')`,
    ),
    change: [
      run(`update plain set b = 'uno' where rowid = 2`),
      run('delete from plain where rowid = 1', `insert into plain values (1, 'one')`),
      run('delete from plain where rowid = 3', 'vacuum'),
      run(`insert into plain (rowid, a) values (-5, 'before all'), (9223372036854775807, 'last possible')`),
    ],
  },
  {
    name: 'composite key, in another order than the columns',
    build: run(
      'create table pair (v, b text not null, a integer not null, primary key (a, b))',
      `insert into pair values ('x', 'b', 1), ('y', 'c', 1), ('z', 'b', 2), ('w', 'i1;', 3), ('u', '', 4)`,
    ),
    change: [run(`update pair set v = 'X' where a = 1`, `delete from pair where b = 'c'`)],
  },
  {
    name: 'composite keys that read alike when joined',
    build: run(
      'create table joined (a text, b text, primary key (a, b))',
      `insert into joined values ('a', 'bc'), ('ab', 'c'), ('abc', ''), ('', 'abc'), ('t1:a', 't2:bc'), ('~', '~h')`,
    ),
    change: [run(`delete from joined where a = 'ab'`)],
  },
  {
    name: 'keys that look like our own encoding',
    build: run(
      'create table disguised (id text primary key, v)',
      `insert into disguised values ('~i7;', 1), ('i7;', 2), ('~', 3), ('~~', 4), ('~h00', 5), ('', 6), ('~01;', 7)`,
    ),
    change: [run(`update disguised set v = v + 10`, `delete from disguised where id = '~'`)],
  },
  {
    name: 'one key column, every storage class',
    build: run(
      'create table mixed (k primary key, v)',
      `insert into mixed values (1, 'int'), ('1', 'text'), (x'31', 'blob'), (1.5, 'real'), (2.0, 'two'),
         (9223372036854775807, 'max'), (-9223372036854775808, 'min'), ('', 'empty'), (x'', 'no bytes')`,
    ),
    change: [run(`update mixed set k = 2 where v = 'two'`, `update mixed set k = '1.5' where v = 'real'`)],
  },
  {
    name: 'keys of 4 KB',
    build: db => {
      db.exec('create table long (id text primary key, v)')
      db.exec('create table long_pair (a blob, b text, v, primary key (a, b))')
      insert(
        db,
        'long',
        [id('a'), id('b'), `${prefix}a`, `${prefix}b`, 'short'].map((key, i) => [key, i]),
      )
      insert(db, 'long_pair', [
        [Buffer.from(id('a'), 'hex'), id('b'), 1],
        [Buffer.from(id('a'), 'hex'), id('c'), 2],
      ])
    },
    change: [
      db => {
        db.prepare('delete from long where id = ?').run(id('a'))
        db.prepare('update long set v = 100 where id = ?').run(`${prefix}b`)
        db.prepare('update long_pair set b = ? where v = 2').run(id('d'))
      },
    ],
  },
  {
    name: 'NULL in a primary key',
    build: run(
      'create table nulls (id text primary key, v)',
      `insert into nulls values (null, 1), (null, 2), ('a', 3), (null, 1), ('~01;', 4)`,
      'create table null_pairs (a, b, v, primary key (a, b))',
      `insert into null_pairs values (1, null, 'x'), (1, null, 'x'), (null, null, 'y'), (1, 2, 'z')`,
    ),
    change: [
      run('update nulls set v = 20 where v = 2', `update nulls set id = 'b' where v = 20`),
      run(`update nulls set id = null where id = 'a'`, 'delete from null_pairs where rowid = 1'),
    ],
  },
  {
    name: 'a unique index as key, until it meets a NULL',
    build: run(
      'create table owned (id varchar(255) not null, share text, v)',
      'create unique index owned_share on owned (share)',
      `insert into owned values ('a', 's1', 1), ('b', 's2', 2)`,
      'create table sure (share text, id varchar(255) not null, v)',
      'create unique index sure_share on sure (share)',
      'create unique index sure_id on sure (id)',
      `insert into sure values (null, 'a', 1), ('s', 'b', 2)`,
    ),
    change: [
      run(`insert into owned values ('c', null, 3)`, `update sure set share = 'n' where id = 'a'`),
      run(`update owned set v = 30 where id = 'c'`, `update sure set share = null`),
      run(`delete from owned where share is null`),
      run('drop index owned_share', 'drop index sure_id'),
    ],
  },
  {
    name: 'unique indexes that are no key: partial, over an expression',
    build: run(
      'create table almost (id text, email text, live int)',
      'create unique index almost_live on almost (id) where live',
      'create unique index almost_lower on almost (lower(email))',
      `insert into almost values ('a', 'A@x', 1), ('a', 'b@x', 0), ('a', 'c@x', 0), (null, null, null)`,
    ),
    change: [run(`update almost set email = 'C@x' where email = 'c@x'`, 'delete from almost where live = 1')],
  },
  {
    name: 'keys that change hands',
    build: run(
      'create table seat (id text primary key, holder text unique, v int)',
      `insert into seat values ('a', 'ada', 1), ('b', 'bob', 2), ('c', null, 3)`,
    ),
    change: [
      // The keys of two rows are swapped: each key is still there, with the other row's content.
      run(
        `update seat set id = 'tmp' where id = 'a'`,
        `update seat set id = 'a' where id = 'b'`,
        `update seat set id = 'b' where id = 'tmp'`,
      ),
      // A unique value moves from one row to another.
      run(
        `update seat set holder = null where holder = 'ada'`,
        `update seat set holder = 'ada' where id = 'c'`,
      ),
      // Deleted and inserted again under the same key, at another rowid.
      run(`delete from seat where id = 'a'`, `insert into seat values ('d', null, 4), ('a', 'bob', 2)`),
      run(`insert or replace into seat values ('e', 'ada', 5)`),
      run(`update seat set id = id || '!'`),
    ],
  },
  {
    name: 'small numbers used again after a delete',
    build: run(
      'create table prompt (id integer not null primary key, command text)',
      `insert into prompt (command) values ('a'), ('b'), ('c')`,
    ),
    change: [
      run('delete from prompt where id = 3', `insert into prompt (command) values ('another')`),
      run('delete from prompt', `insert into prompt (command) values ('first again')`),
    ],
  },
  {
    name: 'kinds of integer keys',
    build: run(
      'create table rowid_key (id integer primary key, v)',
      'create table int_key (id int primary key, v)',
      'create table desc_key (id integer primary key desc, v)',
      'create table late_desc_key (id integer, v, primary key (id desc))',
      'create table big_key (id bigint primary key, v)',
      ...['rowid_key', 'late_desc_key'].map(
        table =>
          `insert into ${table} values (-9223372036854775808, 'min'), (0, 0), (9223372036854775807, 'max')`,
      ),
      ...['int_key', 'desc_key', 'big_key'].map(
        table =>
          `insert into ${table} values (9223372036854775807, 'max'), ('text', 't'), (null, 'n'), (1.5, 'r')`,
      ),
    ),
    change: [
      run(`update rowid_key set id = 1 where v = 0`, `update int_key set id = 'other' where id = 'text'`),
    ],
  },
  {
    name: 'AUTOINCREMENT and its counter',
    build: run(
      'create table numbered (id integer primary key autoincrement, v)',
      'create table numbered_too (id integer primary key autoincrement, v)',
      `insert into numbered (v) values ('a'), ('b'), ('c')`,
      `delete from numbered where v = 'c'`,
    ),
    change: [
      run(`insert into numbered (v) values ('d')`),
      run('update sqlite_sequence set seq = 1000', `insert into numbered_too (v) values (1)`),
      run(`delete from sqlite_sequence where name = 'numbered'`, `insert into numbered (v) values ('e')`),
      run('drop table numbered_too', `insert into sqlite_sequence values ('ghost', 5)`),
    ],
  },
  {
    name: 'WITHOUT ROWID, plain, DESC and NOCASE',
    build: run(
      'create table plain (id text primary key, v) without rowid',
      'create table backward (a int, b text, v, primary key (b desc, a)) without rowid',
      'create table caseless (id text collate nocase primary key, v) without rowid',
      'create table trimmed (id text collate rtrim primary key, v) without rowid',
      `insert into plain values ('a', 1), ('A', 2), ('', 3)`,
      `insert into backward values (1, 'x', 10), (2, 'x', 20), (1, 'y', 30)`,
      `insert into caseless values ('a', 1), ('b', 2), ('ä', 3), ('Ä', 4)`,
      `insert into trimmed values ('a  ', 1), (' a', 2)`,
    ),
    change: [
      run(`update caseless set id = 'A' where id = 'a'`, `update trimmed set id = 'a' where id = 'a'`),
      run(
        `delete from caseless where id = 'B'`,
        `insert or replace into caseless values ('a', 'small again')`,
      ),
      run('delete from backward where a = 1', `update plain set id = 'c' where id = 'A'`),
    ],
  },
  {
    name: 'keys that their index tells apart and their columns do not, more than a page of them',
    build: run(
      'create table finer (a text collate nocase, v, primary key (a collate binary)) without rowid',
      'create table trimmed (a text collate rtrim, v, primary key (a collate binary)) without rowid',
      'create table hidden (a text collate nocase, rowid, oid, _rowid_, primary key (a collate binary))',
      'create table twice (v, a text collate nocase, primary key (a, a collate binary)) without rowid',
      'create table rowids (a text collate nocase, v, primary key (a collate binary))',
      ...['finer (a, v)', 'hidden (a, oid)', 'twice (a, v)', 'rowids (a, v)'].map(
        into => `insert into ${into} with recursive n (i) as (select 1 union all select i + 1 from n where i < 700)
          select printf(form, i), i from n, (select 'ab%04d' as form union select 'AB%04d' union select 'Ab%04d')`,
      ),
      `insert into trimmed with recursive n (i) as (select 1 union all select i + 1 from n where i < 700)
        select printf(form, i), i from n, (select '%d' as form union select '%d ' union select '%d  ')`,
    ),
    change: [
      run(
        ...['finer', 'hidden', 'twice', 'rowids'].map(
          name => `delete from ${name} where a = 'AB0084' collate binary`,
        ),
        `delete from trimmed where a = '84' collate binary`,
      ),
      run(
        ...['finer', 'hidden', 'twice', 'rowids'].map(
          name => `update ${name} set a = 'aB' || substr(a, 3) where a = 'ab0400' collate binary`,
        ),
      ),
    ],
  },
  {
    name: 'NOCASE keys with rowids',
    build: run(
      'create table tagged (id text not null, v)',
      'create unique index tagged_id on tagged (id collate nocase)',
      `insert into tagged values ('Work', 1), ('home', 2)`,
    ),
    change: [
      run(
        `update tagged set id = 'WORK' where id = 'Work'`,
        `insert or replace into tagged values ('HOME', 3)`,
      ),
    ],
  },
]
