import assert from 'node:assert/strict'
import {afterAll, beforeAll, describe, test} from 'vitest'
import {snapshot} from './changed-rows.ts'
import {compareFiles} from './compare.ts'
import {leadingClient, leadingHost, type LeadingHost} from './leading-host.ts'
import {openShape} from './shapes.ts'

// Changes of which no `updated_at` tells: Open WebUI makes nearly all of them (for one, whoever deletes leaves none).

let leader: LeadingHost
let clients = 0
beforeAll(async () => {
  leader = await leadingHost()
})
afterAll(async () => {
  await leader[Symbol.asyncDispose]()
})

const seed = [
  'create table chat (id varchar(255) not null primary key, title text, share_id text, updated_at bigint)',
  'create unique index chat_share_id on chat (share_id)',
  `insert into chat values ('a', 'one', 's1', 300), ('b', 'two', 's2', 200), ('c', 'three', null, 100),
     ('d', 'four', 's4', 400)`,
  `delete from chat where id = 'd'`,
  'create table prompt (id integer primary key autoincrement, command text)',
  `insert into prompt (command) values ('/a'), ('/b'), ('/c')`,
  'create table note (id text primary key, value)',
  `insert into note values ('n', 1), ('other', null)`,
]

type Step = {
  readonly does: readonly string[]
  readonly upserted?: number
  readonly tombstoned?: number
  /** The schema changes with it, so that there is a cut to apply although no row has changed. */
  readonly isNewSchema?: boolean
}

/** What changes, statement by statement; each step is found as exactly so many rows. */
const cases: Readonly<Record<string, readonly Step[]>> = {
  'an update that leaves the time alone': [
    {does: [`update chat set title = 'uno' where id = 'a'`], upserted: 1},
  ],
  'an update that sets the time back': [
    {does: [`update chat set title = 'zwei', updated_at = 1 where id = 'b'`], upserted: 1},
  ],
  'an insert of long ago': [{does: [`insert into chat values ('old', 'imported', null, 1)`], upserted: 1}],
  'a delete': [{does: [`delete from chat where id = 'b'`], tombstoned: 1}],
  'the newest row deleted': [{does: [`delete from chat where id = 'c'`], tombstoned: 1}],
  'a key deleted and inserted again with the same content': [
    {does: [`delete from chat where id = 'a'`, `insert into chat values ('a', 'one', 's1', 300)`]},
  ],
  'a key deleted and inserted again with other content': [
    {
      does: [`delete from chat where id = 'a'`, `insert into chat values ('a', 'other', 's1', 300)`],
      upserted: 1,
    },
  ],
  'a deleted key that comes back later': [
    {does: [`delete from chat where id = 'a'`], tombstoned: 1},
    {does: [`insert into chat values ('a', 'one', 's1', 300)`], upserted: 1},
  ],
  'unique values swapped between two rows': [
    {
      does: [
        `update chat set share_id = 'tmp' where id = 'a'`,
        `update chat set share_id = 's1' where id = 'b'`,
        `update chat set share_id = 's2' where id = 'a'`,
      ],
      upserted: 2,
    },
  ],
  'a unique value that goes over to another row': [
    {
      does: [
        `update chat set share_id = null where id = 'a'`,
        `update chat set share_id = 's1' where id = 'c'`,
      ],
      upserted: 2,
    },
  ],
  // The first one lists the schema in another order, which a restored file keeps too.
  'VACUUM, which changes no row': [
    {does: ['vacuum'], isNewSchema: true},
    {does: ['vacuum']},
    {does: [`delete from chat where id = 'a'`, 'vacuum'], tombstoned: 1},
  ],
  'a rebuild as Alembic does it': [
    {
      does: [
        `create table _alembic_tmp_chat (id varchar(255) not null, title text, share_id text, updated_at bigint,
           constraint pk_chat primary key (id))`,
        'insert into _alembic_tmp_chat select * from chat order by title',
        'drop table chat',
        'alter table _alembic_tmp_chat rename to chat',
        'create unique index chat_share_id on chat (share_id)',
      ],
      isNewSchema: true,
    },
  ],
  'a rebuild as Alembic does it, with a change in passing': [
    {
      does: [
        `create table _alembic_tmp_chat (updated_at bigint, id varchar(255) not null primary key, title text, share_id text)`,
        `insert into _alembic_tmp_chat select updated_at, id, nullif(title, 'two'), share_id from chat where id <> 'c'`,
        'drop table chat',
        'alter table _alembic_tmp_chat rename to chat',
      ],
      upserted: 1,
      tombstoned: 1,
    },
  ],
  'INSERT OR REPLACE with what was there': [
    {does: [`insert or replace into chat values ('a', 'one', 's1', 300)`]},
  ],
  'INSERT OR REPLACE that pushes out another row by a unique value': [
    {does: [`insert or replace into chat values ('e', 'five', 's1', 300)`], upserted: 1, tombstoned: 1},
  ],
  'a row moved to another rowid': [{does: [`update chat set rowid = 1000 where id = 'a'`]}],
  'rows that exchange their rowids': [
    {
      does: [
        `update chat set rowid = 1000 where id = 'a'`,
        `update chat set rowid = 1 where id = 'b'`,
        `update chat set rowid = 2 where id = 'a'`,
      ],
    },
  ],
  'keys that two rows exchange': [
    {
      does: [
        `update chat set id = 'tmp' where id = 'a'`,
        `update chat set id = 'a' where id = 'b'`,
        `update chat set id = 'b' where id = 'tmp'`,
      ],
      upserted: 2,
    },
  ],
  'a key taken over from a deleted row': [
    {
      does: [`delete from chat where id = 'b'`, `update chat set id = 'b' where id = 'a'`],
      upserted: 1,
      tombstoned: 1,
    },
  ],
  'a small number used again for another row': [
    {
      does: [
        'delete from prompt where id = 3',
        `update sqlite_sequence set seq = 2`,
        `insert into prompt (command) values ('/other')`,
      ],
      upserted: 1,
    },
  ],
  'a counter of AUTOINCREMENT that moves without a row': [
    {does: ['update sqlite_sequence set seq = 1000'], upserted: 1},
    {does: [`insert into prompt (command) values ('/d')`, 'delete from prompt where id > 1000'], upserted: 1},
    {does: ['delete from sqlite_sequence'], tombstoned: 1},
  ],
  'a value that changes nothing but its storage class': [
    {does: [`update note set value = 1.0 where id = 'n'`], upserted: 1},
    {does: [`update note set value = '1' where id = 'n'`], upserted: 1},
    {does: [`update note set value = x'31' where id = 'n'`], upserted: 1},
    {does: [`update note set value = 1 where id = 'n'`], upserted: 1},
  ],
  'zero that changes its sign, an empty text that becomes an empty blob, or NULL': [
    {does: [`update note set value = 0.0 where id = 'n'`], upserted: 1},
    {does: [`update note set value = -0.0 where id = 'n'`], upserted: 1},
    {does: [`update note set value = '' where id = 'n'`], upserted: 1},
    {does: [`update note set value = x'' where id = 'n'`], upserted: 1},
    {does: [`update note set value = null where id = 'n'`], upserted: 1},
  ],
  'a change that is taken back': [
    {does: [`update chat set title = 'x' where id = 'a'`, `update chat set title = 'one' where id = 'a'`]},
  ],
  'a change that is rolled back': [{does: ['begin', 'delete from chat', 'rollback']}],
}

for (const capture of ['digests', 'pages'] as const)
  for (const journalMode of ['delete', 'wal'] as const)
    describe(`no updated_at tells, and it is found (${capture}, ${journalMode})`, () => {
      for (const [what, steps] of Object.entries(cases))
        test(what, async () => {
          await using client = await leadingClient(leader, `unseen-${++clients}`)
          using app = openShape(client.file)
          for (const statement of [`pragma journal_mode = ${journalMode}`, ...seed]) app.exec(statement)
          await client.sync({capture})
          await client.sync({capture})
          for (const {does, upserted = 0, tombstoned = 0, isNewSchema = false} of steps) {
            for (const statement of does) app.exec(statement)
            const {mode, rows} = await client.sync({capture})
            const isNothing = upserted + tombstoned === 0 && !isNewSchema
            assert.deepEqual(
              {mode, upserted: rows.upserted, tombstoned: rows.tombstoned},
              {mode: isNothing ? 'unchanged' : 'incremental', upserted, tombstoned},
            )
            const counts = new Map([...snapshot(client.file)].map(([name, table]) => [name, table.rows.size]))
            assert.deepEqual(await client.differences(counts), [])
            assert.deepEqual(compareFiles(client.file, await client.restore()), [])
          }
        })
    })
