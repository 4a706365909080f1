import type {Shape} from '../shapes.ts'
import {run} from './statements.ts'

const chats = [
  'create table chat (id varchar(255) not null, title text, archived integer not null)',
  'create unique index chat_id on chat (id)',
  `insert into chat values ('a', 'one', 0), ('b', 'two', 1), ('c', 'three', 0)`,
]

/** Tables that appear, vanish, change places or are rebuilt; columns too. */
export const comingAndGoing: readonly Shape[] = [
  {
    name: 'tables that come, vanish and come back',
    build: run('create table stays (id text primary key)', `insert into stays values ('a')`),
    change: [
      run('create table guest (id text primary key, v)', `insert into guest values ('a', 1), ('b', 2)`),
      run('drop table guest'),
      run('create table guest (id text primary key, v)', `insert into guest values ('b', 3)`),
      run('drop table guest', 'create table guest (n int)', 'insert into guest values (1), (1)'),
      run('drop table guest', 'drop table stays'),
    ],
  },
  {
    name: 'a table renamed, and its name given to another',
    build: run(
      'create table config (id integer not null primary key, data json not null)',
      `insert into config values (1, '{"ui": {"theme": "dark"}}')`,
    ),
    change: [
      run('alter table config rename to config_old'),
      run(
        'create table config ("key" text not null primary key, value json not null)',
        `insert into config values ('ui.theme', '"dark"'), ('rag.top_k', 3), ('rag.weight', 0.5)`,
      ),
      run('drop table config_old'),
    ],
  },
  {
    name: 'renamed and replaced in one step',
    build: run(...chats),
    change: [
      run(
        'alter table chat rename to old_chat',
        'create table chat (id text primary key, subject text)',
        'insert into chat select id, title from old_chat',
        'drop table old_chat',
      ),
    ],
  },
  {
    name: 'two tables that swap names',
    build: run(
      'create table left_one (id text primary key, v)',
      'create table right_one (id text primary key, v)',
      `insert into left_one values ('a', 'left'), ('b', 'left')`,
      `insert into right_one values ('a', 'right')`,
    ),
    change: [
      run(
        'alter table left_one rename to tmp',
        'alter table right_one rename to left_one',
        'alter table tmp rename to right_one',
      ),
    ],
  },
  {
    name: 'a rebuild by Alembic that adds a primary key and reorders columns',
    build: run(...chats),
    change: [
      run(
        `create table _alembic_tmp_chat (archived boolean not null, id varchar(255) not null, title text,
           constraint pk_chat primary key (id))`,
        'insert into _alembic_tmp_chat (id, title, archived) select id, title, archived from chat order by title',
        'drop table chat',
        'alter table _alembic_tmp_chat rename to chat',
        'create unique index chat_id on chat (id)',
      ),
      run(`update chat set title = 'uno' where id = 'a'`),
    ],
  },
  {
    name: 'a rebuild met half-way, one step at a time',
    build: run(...chats),
    change: [
      run('create table _alembic_tmp_chat (id varchar(255) not null primary key, title text)'),
      run(`insert into _alembic_tmp_chat select id, title from chat where id < 'c'`),
      run(`insert into _alembic_tmp_chat select id, title from chat where id >= 'c'`),
      run('drop table chat'),
      run('alter table _alembic_tmp_chat rename to chat'),
    ],
  },
  {
    name: 'a table rebuilt with new keys for every row',
    build: run(
      'create table prompt (id integer not null primary key, command text not null, title text)',
      'create unique index prompt_command on prompt (command)',
      `insert into prompt values (1, '/a', 'A'), (2, '/b', 'B')`,
    ),
    change: [
      run(
        'create table prompt_new (id text not null primary key, command varchar, name text not null)',
        `insert into prompt_new select 'uuid-' || id, substr(command, 2), title from prompt`,
        'drop table prompt',
        'alter table prompt_new rename to prompt',
        'create unique index ix_prompt_new_command on prompt (command)',
      ),
      run(`insert into prompt values ('uuid-9', 'c', 'C')`, `delete from prompt where id = 'uuid-1'`),
    ],
  },
  {
    name: 'the key of a table changes without its rows',
    build: run(...chats),
    change: [
      run('drop index chat_id'),
      run(`insert into chat values ('a', 'a second a', 0)`),
      run('delete from chat where rowid = 4', 'create unique index again on chat (title)'),
      run('create unique index chat_id on chat (id)'),
    ],
  },
  {
    name: 'columns added, dropped, renamed, swapped',
    build: run(
      'create table t (id text primary key, a int, b text)',
      `insert into t values ('x', 1, 'one'), ('y', 2, 'two')`,
    ),
    change: [
      run('alter table t add column c json', `update t set c = '{}' where id = 'x'`),
      run('alter table t rename column a to first'),
      run(
        'alter table t rename column b to tmp',
        'alter table t rename column c to b',
        'alter table t rename column tmp to c',
      ),
      run('alter table t drop column first'),
      run('alter table t add column a text', `update t set a = 'text now'`),
    ],
  },
  {
    name: 'a column whose declared type changes by rebuild',
    build: run(
      'create table user (id text primary key, settings text, info text)',
      `insert into user values ('a', 'null', '{"x": 1}'), ('b', null, '3'), ('c', '1.0', 'x')`,
    ),
    change: [
      run(
        'create table user_new (id text primary key, settings json, info json)',
        `insert into user_new select id, nullif(settings, 'null'), info from user`,
        'drop table user',
        'alter table user_new rename to user',
      ),
    ],
  },
  {
    name: 'a table emptied, filled again and replaced whole',
    build: run(
      'create table model (id text primary key, name text)',
      `insert into model values ('a', 'A'), ('b', 'B'), ('c', 'C')`,
    ),
    change: [
      run('delete from model'),
      run(`insert into model values ('c', 'C'), ('d', 'D')`),
      run(
        'begin',
        'delete from model',
        `insert into model values ('d', 'D'), ('c', 'C'), ('e', 'E')`,
        'commit',
      ),
    ],
  },
  {
    name: 'a table that turns into a view, and one into a virtual table',
    build: run(
      'create table thing (id text primary key, body text)',
      'create table other (id text primary key, body text)',
      `insert into thing values ('a', 'x')`,
      `insert into other values ('a', 'y')`,
    ),
    change: [
      run('drop table thing', `create view thing as select 'a' as id, 'x' as body`),
      run(
        'drop table other',
        'create virtual table other using fts5(id, body)',
        `insert into other values ('a', 'y')`,
      ),
      run('drop view thing', 'create table thing (id text primary key)', `insert into thing values ('b')`),
    ],
  },
  {
    name: 'WITHOUT ROWID and STRICT gained and lost',
    build: run('create table t (id text primary key, v int)', `insert into t values ('a', 1), ('b', 2)`),
    change: [
      run(
        'create table n (id text primary key, v int) without rowid, strict',
        'insert into n select * from t',
        'drop table t',
        'alter table n rename to t',
      ),
      run(
        'create table n (id text, v int)',
        'insert into n select * from t',
        'drop table t',
        'alter table n rename to t',
      ),
    ],
  },
]
