import assert from 'node:assert/strict'
import {randomUUID} from 'node:crypto'
import {describe, test} from 'vitest'
import {testDatabase} from '../../test/database.ts'
import {codeOf, evolve, hostWithClient, refusal, testClient, testHost} from '../../test/host.ts'
import {NameRefusedError, NameTakenError} from './refusals.ts'
import {raw, type Pool} from './sql.ts'

const table = {
  op: 'create_table',
  table: 'chat',
  columns: [
    {name: 'id', type: 'text'},
    {name: 'title', type: 'text'},
    {name: 'n', type: 'bigint'},
    {name: 'meta', type: 'json'},
  ],
}
const finish = {
  op: 'finish_table',
  table: 'chat',
  indexes: [
    {name: 'chat_title', columns: ['title']},
    {name: 'chat_n_title', columns: ['n', 'title']},
    {name: 'chat_meta', columns: ['meta']},
  ],
  view_columns: [
    {name: 'id', as: 'id'},
    {name: 'title', as: 'Title of the chat'},
    {name: 'n', as: 'n'},
  ],
}

describe('registering a client', () => {
  test('one client, however its name is punctuated; shown as it was first registered', async () => {
    await using db = await testDatabase()
    await using host = await testHost(db)
    const id = await testClient(host, 'chat-acme-com')
    assert.equal(await testClient(host, 'chat.acme.com'), id)
    assert.equal(await testClient(host, 'chat_acme_com', {sqlite_path: '/elsewhere'}), id)
    assert.deepEqual(
      await host`select client_name, schema_name, fqdn, sqlite_path from sync_metadata.client_deployments`,
      [
        {
          client_name: 'chat-acme-com',
          schema_name: 'chat_acme_com',
          fqdn: 'chat.acme.com',
          sqlite_path: null,
        },
      ],
    )
  })

  test('eight at once give one client', async () => {
    await using db = await testDatabase()
    await using host = await testHost(db, 'host-a', 8)
    for (let round = 0; round < 20; round++) {
      const ids = await Promise.all(Array.from({length: 8}, () => testClient(host, `acme-${round}`)))
      assert.equal(new Set(ids).size, 1)
    }
  })

  test('another host name that would share the schema is refused, with a name that would do', async () => {
    await using db = await testDatabase()
    await using host = await testHost(db)
    await testClient(host, 'chat.acme.com')
    const error = await refusal(testClient(host, 'chat-acme.com'))
    assert.ok(error instanceof NameTakenError)
    const suggested = /"(chat.+)"/.exec(error.next)?.[1]
    assert.notEqual(await testClient(host, suggested), undefined)
  })

  test('another host’s client is taken, and whose it is stays unsaid', async () => {
    await using db = await testDatabase()
    await using a = await testHost(db, 'host-a')
    await using b = await testHost(db, 'host-b')
    await testClient(a, 'acme')
    const error = await refusal(testClient(b, 'acme'))
    assert.ok(error instanceof NameTakenError)
    assert.doesNotMatch(JSON.stringify([error.message, error.next]), /host-a/)
  })

  test('a schema that is there already is not taken over', async () => {
    await using db = await testDatabase()
    await using host = await testHost(db)
    await db`create schema billing`
    assert.ok((await refusal(testClient(host, 'billing'))) instanceof NameTakenError)
    assert.deepEqual(await host`select 1 from sync_metadata.client_deployments`, [])
  })

  test('names that break a rule are refused', async () => {
    await using db = await testDatabase()
    await using host = await testHost(db)
    for (const name of [
      '',
      'a',
      'Acme',
      '-acme',
      'acme-',
      'a b',
      'a"b',
      "a'b",
      'a;drop schema public',
      'a\nb',
      'acme\n',
      'ä'.repeat(3),
      'a'.repeat(64),
      'pg_evil',
      'pg.evil',
      'public',
      'auth',
      'storage',
      'realtime',
      'extensions',
      'vault',
      'sync_metadata',
      'sync-metadata',
      'information_schema',
      'postgres',
      'sync_owner',
    ]) {
      assert.ok((await refusal(testClient(host, name))) instanceof NameRefusedError, JSON.stringify(name))
    }
  })

  test('settings that make no sense are refused', async () => {
    await using db = await testDatabase()
    await using host = await testHost(db)
    for (const [what, settings] of [
      ['an unknown key', {generation: 7}],
      ['a port out of range', {port: 99_999}],
      ['a port that is no number', {port: 'http'}],
      ['an unknown direction', {direction: 'sideways'}],
      ['an interval under ten seconds', {sync_interval: 1}],
      ['no object', []],
    ] as const) {
      assert.equal(await codeOf(testClient(host, 'acme', settings)), 'OS006', what)
    }
  })
})

describe('a client table', () => {
  test('has the source’s columns, then the bookkeeping', async () => {
    await using client = await hostWithClient()
    await evolve(client.host, client.id, table)
    const columns = await client.db<{column: string; type: string; storage: string; compression: string}>`
      select attname as column, format_type(atttypid, null) as type, attstorage::text as storage,
        attcompression::text as compression
      from pg_attribute where attrelid = 'acme.chat'::regclass and attnum > 0 order by attnum`
    assert.deepEqual(
      columns.map(({column, type}) => `${column} ${type}`),
      [
        'id text',
        'title text',
        'n bigint',
        'meta json',
        '_sync_key text',
        '_sync_hash bytea',
        '_sync_at timestamp with time zone',
        '_sync_deleted_at timestamp with time zone',
        '_sync_edited_by text',
        '_sync_diverged uuid',
        '_sync_raw jsonb',
      ],
    )
    const [server] = await client.db<{lz4: boolean}>`
      select 'lz4' = any (enumvals) as lz4 from pg_settings where name = 'default_toast_compression'`
    assert.equal(columns.find(({column}) => column === 'meta')?.compression, server!.lz4 ? 'l' : '')
    assert.equal(columns.find(({column}) => column === '_sync_hash')?.storage, 'p')
  })

  test('is finished with a key, indexes, the queue of marks and a view of what lives', async () => {
    await using client = await hostWithClient()
    const {host, id} = client
    await evolve(host, id, table)
    await host`insert into acme.chat (id, title, _sync_key, _sync_deleted_at)
      values ('a', 'x', 'a', null), ('b', 'y', 'b', now())`
    await evolve(host, id, finish)
    await evolve(host, id, finish)
    assert.deepEqual(
      await indexes(client.db),
      [
        'chat__sync_key_idx1 USING btree (_sync_key) WHERE (_sync_edited_by IS NOT NULL)',
        'chat__sync_key_idx USING btree (_sync_key)',
        'chat_n_title USING btree (n, title)',
        'chat_title USING btree (title)',
      ].sort(),
    )
    assert.deepEqual(await host`select * from acme.live_chat`, [{id: 'a', 'Title of the chat': 'x', n: null}])
    assert.equal(await comment(client.db), 'index chat_meta left out: json has no order')
  })

  test('loses the rows that a load brought twice, and keeps the newest', async () => {
    await using client = await hostWithClient()
    const {host, id} = client
    await evolve(host, id, table)
    await host`insert into acme.chat (title, _sync_key, _sync_at) values
      ('old', 'a', '2020-01-01'), ('new', 'a', '2021-01-01'), ('older', 'a', '2019-01-01'), ('b', 'b', now()),
      ('first', 'c', '2020-01-01'), ('last', 'c', '2020-01-01')`
    await evolve(host, id, finish)
    assert.deepEqual(await host`select title from acme.chat order by _sync_key`, [
      {title: 'new'},
      {title: 'b'},
      {title: 'last'},
    ])
  })

  test('takes values that are too long for an index', async () => {
    await using client = await hostWithClient()
    const {host, id} = client
    await evolve(host, id, table)
    const long = noise()
    await host`insert into acme.chat (title, _sync_key) values (${long}, 'a')`
    await evolve(host, id, finish)
    assert.ok((await indexes(client.db)).includes('chat_title USING hash (title)'))
    assert.match(await comment(client.db), /index chat_n_title left out: a value is too long/)
  })

  test('takes them later too, once its indexes are loosened', async () => {
    await using client = await hostWithClient()
    const {host, id} = client
    const insert = () => host`insert into acme.chat (title, _sync_key) values (${noise()}, 'a')`
    await evolve(host, id, table, finish)
    assert.equal(await codeOf(insert()), 'SYNC_DATA')
    await evolve(host, id, {op: 'loosen_indexes', table: 'chat'})
    await insert()
    assert.deepEqual(
      (await indexes(client.db)).filter(index => index.startsWith('chat_')),
      [
        'chat__sync_key_idx USING btree (_sync_key)',
        'chat__sync_key_idx1 USING btree (_sync_key) WHERE (_sync_edited_by IS NOT NULL)',
        'chat_title USING hash (title)',
      ],
    )
    assert.match(await comment(client.db), /chat_n_title left out/)
  })

  test('has an index whose name something else in the schema has', async () => {
    await using client = await hostWithClient()
    const {host, id} = client
    await evolve(host, id, table, finish, {op: 'rename_table', table: 'chat', to: 'chat_old'}, table, finish)
    const names = await client.db<{table: string; n: number}>`
      select tablename as table, count(*)::int as n from pg_indexes where schemaname = 'acme' group by 1 order by 1`
    assert.deepEqual(names, [
      {table: 'chat', n: 4},
      {table: 'chat_old', n: 4},
    ])
    await evolve(host, id, {op: 'drop_index', table: 'chat', name: 'chat_title'})
    assert.equal((await client.db`select 1 from pg_indexes where schemaname = 'acme'`).length, 7)
  })

  test('gets and loses single indexes', async () => {
    await using client = await hostWithClient()
    const {host, id} = client
    const index = {op: 'create_index', table: 'chat', name: 'by "n"', columns: ['n']}
    await evolve(host, id, table, index, index)
    assert.deepEqual(await indexes(client.db), ['"by ""n""" USING btree (n)'])
    await evolve(host, id, {op: 'drop_index', table: 'chat', name: 'by "n"'})
    await evolve(host, id, {op: 'drop_index', table: 'chat', name: 'by "n"'})
    assert.deepEqual(await indexes(client.db), [])
  })

  test('is renamed with its view and its indexes', async () => {
    await using client = await hostWithClient()
    const {host, id} = client
    await evolve(host, id, table, finish)
    await evolve(host, id, {op: 'rename_table', table: 'chat', to: 'chat "old"'})
    await host`select * from acme."live_chat ""old"""`
    assert.equal(await codeOf(host`select * from acme.live_chat`), '42P01')
  })

  test('keeps what the source dropped, marked, until it comes back', async () => {
    await using client = await hostWithClient()
    const {host, id, db} = client
    await evolve(host, id, table, finish)
    await evolve(
      host,
      id,
      {op: 'mark_dropped', table: 'chat', column: 'n'},
      {op: 'mark_dropped', table: 'chat'},
    )
    await evolve(host, id, {op: 'mark_dropped', table: 'chat'}, {op: 'replace_view', table: 'chat'})
    assert.match(await comment(db), /^index .*\ndropped from the source$/)
    assert.deepEqual(
      Object.keys((await host`select v from (select 1) one left join acme.live_chat v on true`)[0]!),
      ['v'],
    )
    assert.deepEqual(await viewColumns(db), ['id', 'title', 'meta'])
    await evolve(
      host,
      id,
      {op: 'unmark_dropped', table: 'chat', column: 'n'},
      {op: 'unmark_dropped', table: 'chat'},
    )
    await evolve(host, id, {op: 'replace_view', table: 'chat'})
    assert.deepEqual(await viewColumns(db), ['id', 'title', 'n', 'meta'])
    assert.doesNotMatch(await comment(db), /dropped/)
  })

  test('is what the operations say, all of them or none', async () => {
    await using client = await hostWithClient()
    const {host, id, db} = client
    await refusal(evolve(host, id, table, {op: 'add_column', table: 'chat', column: 'x', type: 'money'}))
    assert.deepEqual(await db`select to_regclass('acme.chat') as chat`, [{chat: null}])
  })

  test('takes no operation that is not exactly as described', async () => {
    await using client = await hostWithClient()
    await evolve(client.host, client.id, table, finish)
    for (const [what, operation, code] of [
      ['an unknown operation', {op: 'drop_table', table: 'chat'}, 'OS006'],
      ['no operation', {table: 'chat'}, 'OS006'],
      ['an array for an operation', [], 'OS006'],
      [
        'an unknown key',
        {op: 'add_column', table: 'chat', column: 'x', type: 'text', default: 'now()'},
        'OS006',
      ],
      [
        'an unknown type',
        {op: 'add_column', table: 'chat', column: 'x', type: 'text default evil()'},
        'OS006',
      ],
      ['a table that is not there', {op: 'add_column', table: 'nope', column: 'x', type: 'text'}, 'OS006'],
      ['a table of another schema', {op: 'mark_dropped', table: 'sync_metadata.hosts'}, 'OS006'],
      ['a column that is there', {op: 'add_column', table: 'chat', column: 'id', type: 'text'}, 'OS006'],
      ['a column that is not', {op: 'set_type', table: 'chat', column: 'x', type: 'text'}, 'OS006'],
      ['a bookkeeping column', {op: 'set_type', table: 'chat', column: '_sync_key', type: 'bigint'}, 'OS006'],
      [
        'a new bookkeeping column',
        {op: 'add_column', table: 'chat', column: '_sync_x', type: 'text'},
        'SYNC_NAME_REFUSED',
      ],
      [
        'a system column',
        {op: 'add_column', table: 'chat', column: 'xmin', type: 'text'},
        'SYNC_NAME_REFUSED',
      ],
      [
        'a column name too long',
        {op: 'add_column', table: 'chat', column: 'x'.repeat(64), type: 'text'},
        'SYNC_NAME_REFUSED',
      ],
      ['a table named like a view', {...table, table: 'live_x'}, 'SYNC_NAME_REFUSED'],
      ['a table named like bookkeeping', {...table, table: '_sync_history'}, 'SYNC_NAME_REFUSED'],
      ['a table that is there', table, 'OS006'],
      ['a table without columns', {...table, table: 'x', columns: []}, 'OS006'],
      ['a column twice', {...table, table: 'x', columns: [table.columns[0], table.columns[0]]}, 'OS006'],
      ['a column that is a text', {...table, table: 'x', columns: ['id text']}, 'OS006'],
      ['a column without a name', {...table, table: 'x', columns: [{name: '', type: 'text'}]}, 'OS006'],
      ['columns that are no array', {...table, table: 'x', columns: {name: 'id', type: 'text'}}, 'OS006'],
      [
        'an index on an expression',
        {op: 'create_index', table: 'chat', name: 'x', columns: ['lower(id)']},
        'OS006',
      ],
      ['an index without columns', {op: 'create_index', table: 'chat', name: 'x', columns: []}, 'OS006'],
      [
        'a view of an expression',
        {op: 'replace_view', table: 'chat', columns: [{name: '1', as: 'x'}]},
        'OS006',
      ],
      ['a narrowing', {op: 'set_type', table: 'chat', column: 'meta', type: 'bigint'}, 'OS006'],
      ['a rename onto something', {op: 'rename_table', table: 'chat', to: 'live_chat'}, 'SYNC_NAME_REFUSED'],
    ] as const) {
      assert.equal(await codeOf(evolve(client.host, client.id, operation)), code, what)
    }
  })

  test('names in it are only ever names', async () => {
    await using client = await hostWithClient()
    const {host, id} = client
    const hostile = `"; drop table x; --'%I %s $1 \\`
    await evolve(host, id, {op: 'create_table', table: hostile, columns: [{name: hostile, type: 'text'}]})
    const columns = [{name: hostile, as: `${hostile}!`}]
    await evolve(host, id, {
      op: 'finish_table',
      table: hostile,
      indexes: [{name: hostile, columns: [hostile]}],
      view_columns: columns,
    })
    await evolve(host, id, {op: 'set_type', table: hostile, column: hostile, type: 'bigint'})
    await evolve(host, id, {op: 'mark_dropped', table: hostile, column: hostile})
    await evolve(host, id, {op: 'mark_dropped', table: hostile}, {op: 'loosen_indexes', table: hostile})
    await evolve(host, id, {op: 'rename_table', table: hostile, to: `${hostile}2`})
    assert.deepEqual(await host`select * from ${host('acme', `live_${hostile}2`)}`, [])
  })
})

describe('a column that becomes wider', () => {
  test('holds what it can, and keeps exactly what it cannot', async () => {
    await using client = await hostWithClient()
    const {host, id} = client
    let table = 0
    for (const [from, to, before, after, kept] of [
      ['boolean', 'bigint', 'true', '1', null],
      ['boolean', 'text', 'false', '0', null],
      ['bigint', 'text', '42', '42', null],
      ['bigint', 'text', '1234567890123456789', '1234567890123456789', 'i1234567890123456789;'],
      ['bigint', 'double precision', '9007199254740992', '9.007199254740992e+15', null],
      ['bigint', 'double precision', '9007199254740993', '9.007199254740992e+15', 'i9007199254740993;'],
      ['double precision', 'bigint', '42', '42', null],
      ['double precision', 'bigint', '1.5', null, 'r3ff8000000000000;'],
      ['double precision', 'bigint', '1e300', null, 'r7e37e43c8800759c;'],
      ['double precision', 'bigint', 'NaN', null, 'r7ff8000000000000;'],
      ['double precision', 'bigint', '-Infinity', null, 'rfff0000000000000;'],
      ['text', 'bigint', '-17', '-17', null],
      ['text', 'bigint', '007', null, 't3:007'],
      ['text', 'bigint', '9'.repeat(30), null, `t30:${'9'.repeat(30)}`],
      ['text', 'bigint', 'ä', null, 't2:ä'],
      ['text', 'bigint', '12\n', null, 't3:12\n'],
      ['text', 'double precision', '17', '17', null],
      ['text', 'double precision', '1.5', '1.5', 't3:1.5'],
      ['text', 'double precision', '1e999', null, 't5:1e999'],
    ] as const) {
      const name = `t${++table}`
      await evolve(host, id, {op: 'create_table', table: name, columns: [{name: 'c', type: from}]})
      await evolve(host, id, {op: 'finish_table', table: name})
      const t = host('acme', name)
      await host`insert into ${t} (c, _sync_key) values (${raw(`$$${before}$$`)}, 'a'), (null, 'b')`
      await evolve(host, id, {op: 'set_type', table: name, column: 'c', type: to})
      assert.deepEqual(
        await host`select c::text, _sync_raw ->> 'c' as raw from ${t} order by _sync_key`,
        [
          {c: after, raw: kept},
          {c: null, raw: null},
        ],
        `${from} to ${to}: ${before}`,
      )
      await host`select c from ${host('acme', `live_${name}`)}`
    }
  })

  test('keeps an exact value that was kept before', async () => {
    await using client = await hostWithClient()
    const {host, id} = client
    await evolve(host, id, {op: 'create_table', table: 'chat', columns: [{name: 'c', type: 'text'}]})
    await host`insert into acme.chat (c, _sync_key, _sync_raw) values ('1.5', 'a', '{"c": "r3ff8000000000000;"}')`
    await evolve(host, id, {op: 'set_type', table: 'chat', column: 'c', type: 'double precision'})
    assert.deepEqual(await host`select c, _sync_raw as raw from acme.chat`, [
      {c: 1.5, raw: {c: 'r3ff8000000000000;'}},
    ])
  })
})

async function indexes(db: Pool): Promise<string[]> {
  const rows = await db<{definition: string}>`
    select indexdef as definition from pg_indexes where schemaname = 'acme' and tablename = 'chat'`
  return rows
    .map(({definition}) => definition.replace(/^CREATE (UNIQUE )?INDEX (.*) ON acme.chat/, '$2'))
    .sort()
}

async function comment(db: Pool): Promise<string> {
  const [row] = await db<{text: string | null}>`select obj_description('acme.chat'::regclass) as text`
  return row?.text ?? ''
}

async function viewColumns(db: Pool): Promise<string[]> {
  const rows = await db<{column: string}>`
    select attname as column from pg_attribute where attrelid = 'acme.live_chat'::regclass order by attnum`
  return rows.map(({column}) => column)
}

/** Text that no compression makes short enough for an index. */
function noise(): string {
  return Array.from({length: 400}, () => randomUUID()).join('')
}
