import assert from 'node:assert/strict'
import {randomUUID} from 'node:crypto'
import {describe, test} from 'vitest'
import {testDatabase} from '../../test/database.ts'
import {evolve, testClient, testHost} from '../../test/host.ts'
import {NameRefusedError, NameTakenError, NotYoursError} from './refusals.ts'
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
    const ids = await Promise.all(Array.from({length: 8}, () => testClient(host, 'acme')))
    assert.equal(new Set(ids).size, 1)
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
    await using client = await setup()
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
    await using client = await setup()
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
    await using client = await setup()
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
    await using client = await setup()
    const {host, id} = client
    await evolve(host, id, table)
    const long = noise()
    await host`insert into acme.chat (title, _sync_key) values (${long}, 'a')`
    await evolve(host, id, finish)
    assert.ok((await indexes(client.db)).includes('chat_title USING hash (title)'))
    assert.match(await comment(client.db), /index chat_n_title left out: a value is too long/)
  })

  test('takes them later too, once its indexes are loosened', async () => {
    await using client = await setup()
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
    await using client = await setup()
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
    await using client = await setup()
    const {host, id} = client
    const index = {op: 'create_index', table: 'chat', name: 'by "n"', columns: ['n']}
    await evolve(host, id, table, index, index)
    assert.deepEqual(await indexes(client.db), ['"by ""n""" USING btree (n)'])
    await evolve(host, id, {op: 'drop_index', table: 'chat', name: 'by "n"'})
    await evolve(host, id, {op: 'drop_index', table: 'chat', name: 'by "n"'})
    assert.deepEqual(await indexes(client.db), [])
  })

  test('is renamed with its view and its indexes', async () => {
    await using client = await setup()
    const {host, id} = client
    await evolve(host, id, table, finish)
    await evolve(host, id, {op: 'rename_table', table: 'chat', to: 'chat "old"'})
    await host`select * from acme."live_chat ""old"""`
    assert.equal(await codeOf(host`select * from acme.live_chat`), '42P01')
  })

  test('keeps what the source dropped, marked, until it comes back', async () => {
    await using client = await setup()
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
    await using client = await setup()
    const {host, id, db} = client
    await refusal(evolve(host, id, table, {op: 'add_column', table: 'chat', column: 'x', type: 'money'}))
    assert.deepEqual(await db`select to_regclass('acme.chat') as chat`, [{chat: null}])
  })

  test('takes no operation that is not exactly as described', async () => {
    await using client = await setup()
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
    await using client = await setup()
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
    await using client = await setup()
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
    await using client = await setup()
    const {host, id} = client
    await evolve(host, id, {op: 'create_table', table: 'chat', columns: [{name: 'c', type: 'text'}]})
    await host`insert into acme.chat (c, _sync_key, _sync_raw) values ('1.5', 'a', '{"c": "r3ff8000000000000;"}')`
    await evolve(host, id, {op: 'set_type', table: 'chat', column: 'c', type: 'double precision'})
    assert.deepEqual(await host`select c, _sync_raw as raw from acme.chat`, [
      {c: 1.5, raw: {c: 'r3ff8000000000000;'}},
    ])
  })
})

describe('the end of a cut', () => {
  test('is one call: generation, cut, result and job', async () => {
    await using client = await setup()
    const {host, id} = client
    const epoch = await lead(host)
    const cut = randomUUID()
    const result = {
      sync_type: 'full',
      triggered_by: 'cli',
      rows_upserted: 5,
      duration_ms: 1000,
      source_version: 'v7',
    }
    assert.equal(await advance(host, id, 0, epoch, cut, result), 1n)
    const [deployment] = await host`
      select generation, cut_id, last_sync_status, source_version, load_position, last_sync_at is not null as synced
      from sync_metadata.client_deployments`
    assert.deepEqual(deployment, {
      generation: 1n,
      cut_id: cut,
      last_sync_status: 'success',
      source_version: 'v7',
      load_position: null,
      synced: true,
    })
    assert.deepEqual(
      await host`select status, sync_type, triggered_by, generation, epoch, rows_upserted, rows_tombstoned,
        round(extract(epoch from finished_at - started_at))::int as seconds from sync_metadata.sync_jobs`,
      [
        {
          status: 'success',
          sync_type: 'full',
          triggered_by: 'cli',
          generation: 1n,
          epoch,
          rows_upserted: 5n,
          rows_tombstoned: 0n,
          seconds: 1,
        },
      ],
    )
  })

  test('finishes the job that was queued for it', async () => {
    await using client = await setup()
    const {host, id} = client
    const epoch = await lead(host)
    const [job] = await host<{job_id: string}>`
      insert into sync_metadata.sync_jobs (deployment_id, triggered_by) values (${id}, 'api') returning job_id`
    await advance(host, id, 0, epoch, randomUUID(), {job_id: job!.job_id, rows_tombstoned: 2})
    assert.deepEqual(
      await host`select job_id, status, triggered_by, rows_tombstoned from sync_metadata.sync_jobs`,
      [{job_id: job!.job_id, status: 'success', triggered_by: 'api', rows_tombstoned: 2n}],
    )
  })

  test('is refused when another cut came first', async () => {
    await using client = await setup()
    const epoch = await lead(client.host)
    await advance(client.host, client.id, 0, epoch)
    assert.equal(await codeOf(advance(client.host, client.id, 0, epoch)), 'SYNC_GENERATION_MOVED')
    assert.equal(await advance(client.host, client.id, 1, epoch), 2n)
  })

  test('is refused under an epoch that has passed, and leaves nothing', async () => {
    await using client = await setup()
    const epoch = await lead(client.host)
    await lead(client.host)
    assert.equal(await codeOf(advance(client.host, client.id, 0, epoch)), 'SYNC_FENCED_OUT')
    assert.deepEqual(await client.host`select generation from sync_metadata.client_deployments`, [
      {generation: 0n},
    ])
    assert.deepEqual(await client.host`select 1 from sync_metadata.sync_jobs`, [])
  })

  test('is not taken for the client’s if it is another host’s', async () => {
    await using client = await setup()
    await using other = await testHost(client.db, 'host-b')
    assert.ok((await refusal(advance(other, client.id, 0, await lead(other)))) instanceof NotYoursError)
  })

  test('lifts a quarantine: what waited for a person has been applied', async () => {
    await using client = await setup()
    const {host, id} = client
    await host`update sync_metadata.client_deployments set status = 'quarantined', status_reason = 'many deletes'`
    await advance(host, id, 0, await lead(host))
    assert.deepEqual(await host`select status, status_reason from sync_metadata.client_deployments`, [
      {status: 'active', status_reason: null},
    ])
  })

  test('chunks of a first load are remembered without moving the generation, and only then', async () => {
    await using client = await setup()
    const {host, id} = client
    const epoch = await lead(host)
    const step = (position: string, at = epoch) =>
      host`select sync_metadata.record_load_step(${id}, ${randomUUID()}, ${at}, ${position})`
    await step('{"table": 1}')
    await step('{"table": 2}')
    assert.deepEqual(await host`select generation, load_position from sync_metadata.client_deployments`, [
      {generation: 0n, load_position: {table: 2}},
    ])
    assert.equal(await codeOf(step('{}', epoch - 1n)), 'SYNC_FENCED_OUT')
    await advance(host, id, 0, epoch)
    assert.equal(await codeOf(step('{}')), 'OS006')
  })
})

describe('what is removed', () => {
  test('tombstones that are old, unless a conflict still speaks of them', async () => {
    await using client = await setup()
    const {host, id} = client
    await evolve(host, id, table)
    await host`insert into acme.chat (_sync_key, _sync_deleted_at, _sync_edited_by, _sync_diverged) values
      ('lives', null, null, null), ('old', now() - interval '2 days', null, null), ('young', now(), null, null),
      ('marked', now() - interval '2 days', 'eve', null), ('kept', now() - interval '2 days', null, gen_random_uuid())`
    assert.deepEqual(await host`select sync_metadata.purge_tombstones(${id}, '1 day') as n`, [{n: 1n}])
    assert.deepEqual(
      (await host<{k: string}>`select _sync_key as k from acme.chat order by 1`).map(({k}) => k),
      ['kept', 'lives', 'marked', 'young'],
    )
    assert.equal(await codeOf(host`select sync_metadata.purge_tombstones(${id}, '-1 day')`), 'OS006')
  })

  test('history of the calling host, and of no other', async () => {
    await using client = await setup()
    const {host, id, db} = client
    await using other = await testHost(db, 'host-b')
    const theirs = await testClient(other, 'theirs')
    for (const deployment of [id, theirs]) {
      await db`insert into sync_metadata.sync_jobs (deployment_id, status, finished_at)
        values (${deployment}, 'success', now() - interval '1 year'), (${deployment}, 'success', now()),
          (${deployment}, 'pending', null)`
      await db`insert into sync_metadata.conflict_log
          (deployment_id, table_name, record_key, conflict_type, status, detected_at, source_data)
        values (${deployment}, 't', 'old', 'drift', 'resolved', now() - interval '1 year', '{}'),
          (${deployment}, 't', 'month', 'drift', 'resolved', now() - interval '40 days', '{}'),
          (${deployment}, 't', 'open', 'drift', 'pending', now() - interval '1 year', '{}')`
    }
    await db`update sync_metadata.cache_events set created_at = now() - interval '2 days'`
    assert.deepEqual(
      await host`select jobs, snapshots, events > 0 as events from sync_metadata.purge_history()`,
      [{jobs: 1n, snapshots: 1n, events: true}],
    )
    const left = (deployment: string) => db`
      select (select count(*)::int from sync_metadata.sync_jobs where deployment_id = ${deployment}) as jobs,
        count(*)::int as conflicts, count(source_data)::int as snapshots
      from sync_metadata.conflict_log where deployment_id = ${deployment}`
    assert.deepEqual(await left(id), [{jobs: 2, conflicts: 2, snapshots: 1}])
    assert.deepEqual(await left(theirs), [{jobs: 3, conflicts: 3, snapshots: 3}])
    assert.deepEqual(await other`select 1 from sync_metadata.cache_events limit 1`, [{'?column?': 1}])
  })

  test('one row, everywhere', async () => {
    await using client = await setup()
    const {host, id, db} = client
    await evolve(host, id, table)
    await host`insert into acme.chat (title, _sync_key, _sync_deleted_at) values ('secret', 'k', now()), ('x', 'l', null)`
    await host`insert into sync_metadata.conflict_log (deployment_id, table_name, record_key, conflict_type, source_data)
      values (${id}, 'chat', 'k', 'drift', '{"title": "secret"}'), (${id}, 'chat', 'l', 'drift', '{"title": "x"}')`
    await host`insert into sync_metadata.row_quarantine (deployment_id, table_name, record_key, code, reason)
      values (${id}, 'chat', 'k', '22P02', 'secret')`
    await host`insert into sync_metadata.verifications (deployment_id, generation, differences)
      values (${id}, 1, '[{"table": "chat", "key": "k"}, {"table": "chat", "key": "l"}]')`
    const erase = (key: string) =>
      host<{erased: boolean}>`select sync_metadata.erase_row(${id}, 'chat', ${key}) as erased`
    assert.deepEqual(await erase('k'), [{erased: true}])
    assert.deepEqual(await erase('k'), [{erased: false}])
    assert.equal(await codeOf(erase('l')), 'OS006', 'a row that lives would be copied again')
    for (const {name} of await db<{name: string}>`
        select format('%I.%I', schemaname, tablename) as name from pg_tables where schemaname in ('acme', 'sync_metadata')`) {
      assert.deepEqual(await db`select from ${raw(name)} t where t::text like '%secret%'`, [], name)
    }
    assert.deepEqual(await host`select differences from sync_metadata.verifications`, [
      {differences: [{table: 'chat', key: 'l'}]},
    ])
    assert.equal((await host`select from sync_metadata.conflict_log where source_data is not null`).length, 1)
  })
})

async function setup() {
  const stack = new AsyncDisposableStack()
  const db = stack.use(await testDatabase())
  const host = stack.use(await testHost(db))
  const id = await testClient(host)
  return {db, host, id, [Symbol.asyncDispose]: () => stack.disposeAsync()}
}

async function lead(host: Pool & {readonly cluster: string}): Promise<bigint> {
  const [row] = await host<{epoch: bigint}>`
    select epoch from sync_metadata.acquire_lease(${`${host.cluster}-node-a`}, 60000, true)`
  return row!.epoch
}

async function advance(
  host: Pool,
  id: string,
  expected: number | bigint,
  epoch: bigint,
  cut: string = randomUUID(),
  result: object = {},
): Promise<bigint> {
  const [row] = await host<{generation: bigint}>`
    select sync_metadata.advance_generation(${id}, ${expected}, ${cut}, ${epoch}, ${JSON.stringify(result)}) as generation`
  return row!.generation
}

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

async function refusal(work: Promise<unknown>): Promise<unknown> {
  return work.then(
    () => assert.fail('it was not refused'),
    (error: unknown) => error,
  )
}

async function codeOf(work: Promise<unknown>): Promise<unknown> {
  return ((await refusal(work)) as {code?: unknown}).code
}
