import type {Shape} from '../shapes.ts'
import {insert, run} from './statements.ts'

const wide = Array.from({length: 1_400}, (_, i) => `c${i}`)

/** Kinds of tables, and what hangs on them. */
export const tables: readonly Shape[] = [
  {
    name: 'FTS5 in its three forms',
    build: run(
      'create table note (id integer primary key, title text, body text)',
      `insert into note values (1, 'first', 'the quick brown fox'), (2, 'second', 'größer und größer'), (3, 'third', '')`,
      "create virtual table own using fts5(title, body, tokenize = 'porter unicode61')",
      'insert into own select title, body from note',
      `create virtual table outside using fts5(title, body, content = 'note', content_rowid = 'id')`,
      `insert into outside (outside) values ('rebuild')`,
      `create virtual table contentless using fts5(title, body, content = '')`,
      'insert into contentless (rowid, title, body) select id, title, body from note',
      `create virtual table erasable using fts5(body, content = '', contentless_delete = 1)`,
      'insert into erasable (rowid, body) select id, body from note',
    ),
    change: [
      run(
        `insert into note values (4, 'fourth', 'lazy dog')`,
        `insert into own values ('fourth', 'lazy dog')`,
        `insert into outside (rowid, title, body) values (4, 'fourth', 'lazy dog')`,
        `insert into contentless (rowid, title, body) values (4, 'fourth', 'lazy dog')`,
        'delete from erasable where rowid = 2',
      ),
      run(`delete from own where rowid = 1`, `insert into own (own) values ('optimize')`),
      run('drop table outside', 'drop table erasable'),
    ],
  },
  {
    name: 'FTS4 and R*Tree',
    build: run(
      'create virtual table words using fts4(body, notindexed=body)',
      `insert into words values ('one two'), ('three')`,
      'create virtual table box using rtree(id, x0, x1, +label text)',
      `insert into box values (1, 0.5, 1.5, 'a'), (2, -1, 1, null)`,
    ),
    change: [run(`update box set x1 = 9 where id = 1`, 'delete from words where docid = 1')],
  },
  {
    name: 'FTS5 kept up to date by triggers',
    build: run(
      'create table doc (id integer primary key, body text)',
      `create virtual table doc_fts using fts5(body, content = 'doc', content_rowid = 'id')`,
      `create trigger doc_ai after insert on doc begin
         insert into doc_fts (rowid, body) values (new.id, new.body); end`,
      `create trigger doc_ad after delete on doc begin
         insert into doc_fts (doc_fts, rowid, body) values ('delete', old.id, old.body); end`,
      `insert into doc (body) values ('alpha beta'), ('gamma')`,
    ),
    change: [run('delete from doc where id = 1', `insert into doc (body) values ('delta')`)],
  },
  {
    name: 'generated columns, virtual and stored',
    build: run(
      `create table person (
         id integer primary key,
         first text, last text,
         full text generated always as (first || ' ' || last) virtual,
         size int as (length(first)) stored,
         tag any as (id % 2))`,
      'create unique index person_full on person (full)',
      `insert into person (first, last) values ('Ada', 'Lovelace'), ('Grace', 'Hopper')`,
      `create table keyed_by_generated (a text, b text as (a || '!') stored not null unique)`,
      `insert into keyed_by_generated (a) values ('x'), ('y')`,
    ),
    change: [
      run(
        `update person set last = 'Byron' where id = 1`,
        `update keyed_by_generated set a = 'z' where a = 'x'`,
      ),
      run(`alter table person add column initial text as (substr(first, 1, 1)) virtual`),
    ],
  },
  {
    name: 'views and triggers that would act again',
    build: run(
      'create table account (id text primary key, balance int)',
      'create table ledger (account text, change int)',
      'create view rich as select * from account where balance > 10',
      `create trigger noted after update on account begin
         insert into ledger values (new.id, new.balance - old.balance); end`,
      `create trigger counted after insert on account begin insert into ledger values (new.id, new.balance); end`,
      `create trigger kept before delete on ledger begin select raise(abort, 'never'); end`,
      `create trigger through instead of insert on rich begin insert into account values (new.id, new.balance); end`,
      `insert into account values ('a', 5), ('b', 50)`,
      `insert into rich values ('c', 500)`,
    ),
    change: [
      run(`update account set balance = 6 where id = 'a'`),
      run('drop trigger noted', 'create view poor as select * from account except select * from rich'),
      run('drop view rich'),
    ],
  },
  {
    name: 'indexes of every kind',
    build: run(
      'create table t (id text primary key, a int, b text collate nocase, c real, unique (a, b), check (c is not 0))',
      'create index i_desc on t (a desc, b)',
      "create index i_partial on t (a) where a is not null and b <> ''",
      'create index i_expression on t (lower(b), a + 1)',
      'create unique index i_collate on t (b collate rtrim) where c > 1',
      'create index "i odd "" name" on t (c)',
      `insert into t values ('x', 1, 'B', 2.5), ('y', null, '', null), ('z', 2, 'c', 0.5)`,
    ),
    change: [
      run('drop index i_desc', 'create index i_new on t (b, c desc)', `update t set a = 7 where id = 'x'`),
    ],
  },
  {
    name: 'statistics left by ANALYZE',
    build: run(
      'create table t (id text primary key, v int)',
      'create index t_v on t (v)',
      `insert into t values ('a', 1), ('b', 1), ('c', 2)`,
      'analyze',
    ),
    change: [run(`insert into t values ('d', 3)`, 'analyze')],
  },
  {
    name: 'foreign keys with orphans, cycles and themselves',
    build: run(
      'create table parent (id text primary key, favourite text references child (id))',
      'create table child (id text primary key, parent text references parent (id) on delete cascade)',
      'create table node (id int primary key, up int references node (id))',
      'create table lost (v text references nowhere (id))',
      `insert into parent values ('p', 'c'), ('q', 'nobody')`,
      `insert into child values ('c', 'p'), ('d', 'gone')`,
      'insert into node values (1, 2), (2, 1), (3, 99)',
      `insert into lost values ('x')`,
    ),
    change: [run(`delete from parent where id = 'p'`)],
  },
  {
    name: 'tables without a declared type or with only one column',
    build: run(
      "create table made as select 1 as n, 'x' as t, 1.5 as r, x'00' as b, null as empty",
      'create table one (only)',
      'create table key_only (id text primary key)',
      'create table key_only_wr (a, b, primary key (a, b)) without rowid',
      `insert into one values (1), (null), ('1')`,
      `insert into key_only values ('a'), ('b')`,
      `insert into key_only_wr values (1, 'x'), (2, 'x')`,
    ),
    change: [
      run(`delete from key_only where id = 'a'`, `insert into key_only values ('c')`, 'delete from one'),
    ],
  },
  {
    name: 'a table of 1,400 columns',
    build: db => {
      db.exec(`create table wide (${wide.map(name => `${name} text`).join(', ')}, primary key (c700, c3))`)
      insert(db, 'wide', [
        wide.map((_, i) => `value ${i}`),
        wide.map((_, i) => (i === 3 || i === 700 ? 'key' : i % 3 === 0 ? null : '')),
      ])
    },
    change: [run(`update wide set c1399 = 'changed' where c3 = 'key'`)],
  },
  {
    name: 'defaults that older rows never stored',
    build: run(
      'create table grown (id text primary key)',
      `insert into grown values ('a'), ('b')`,
      `alter table grown add column n int default 7`,
      `alter table grown add column t text not null default 'x'`,
      `alter table grown add column j json default '{}'`,
      `insert into grown values ('c', null, 'y', 'null')`,
    ),
    change: [run(`alter table grown add column r real default 1.5`), run('alter table grown drop column n')],
  },
]
