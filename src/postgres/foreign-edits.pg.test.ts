import assert from 'node:assert/strict'
import {randomBytes} from 'node:crypto'
import {cp, mkdtemp, readdir, rm} from 'node:fs/promises'
import {tmpdir} from 'node:os'
import {join} from 'node:path'
import {DatabaseSync} from 'node:sqlite'
import {afterAll, beforeAll, describe, test} from 'vitest'
import {emptyDatabase, type TestDatabase} from '../../test/database.ts'
import {editorOf} from '../../test/editor.ts'
import {codeOf, evolve, hostWithClient, testClient, testHost} from '../../test/host.ts'
import {leadingClient, leadingHost, type LeadingHost} from '../../test/leading-host.ts'
import {withChanges} from '../net/endpoint.ts'
import {rotatePassword, transferClient} from './admin.ts'
import {connect} from './connect.ts'
import {migrate} from './migrate.ts'
import {raw, type Pool, type Sql} from './sql.ts'

let leader: LeadingHost
beforeAll(async () => {
  leader = await leadingHost('edits')
})
afterAll(() => leader[Symbol.asyncDispose]())

let clients = 0

/** A synced client whose source has these tables, and an editor of it. */
async function edited(ddl: string) {
  const stack = new AsyncDisposableStack()
  const name = `edited-${++clients}`
  const client = stack.use(await leadingClient(leader, name))
  const app = stack.use(new DatabaseSync(client.file))
  app.exec(ddl)
  await client.sync()
  const editor = stack.use(await editorOf(leader.admin, name))
  const schema = name.replaceAll('-', '_')
  const rows = (table: string, columns: string) =>
    leader.admin`${raw(`select ${columns} from ${schema}.${table} order by _sync_key collate "C"`)}`
  const marks = async (table: string) =>
    (await rows(table, '_sync_edited_by is not null as marked')).filter(({marked}) => marked === true).length
  const run = (sql: string, as: Sql = editor) => as`${raw(sql.replaceAll('$schema', schema))}`
  return {client, app, editor, schema, rows, marks, run, [Symbol.asyncDispose]: () => stack.disposeAsync()}
}

const chats = `create table chat (id text primary key, title text, n integer, meta json, updated_at bigint);
  insert into chat values ('a', 'A', 1, '{"x": 1}', 10), ('b', 'B', 2, '[1,  2]', 20), ('c', 'C', 3, null, 30)`

describe('a row that somebody else changes', () => {
  test('is marked with who it was; one that is written as it was is not', async () => {
    await using t = await edited(chats)
    await t.run(`update $schema.chat set title = 'edited' where id = 'a'`)
    await t.run(`update $schema.chat set title = title, meta = meta where id = 'b'`)
    assert.deepEqual(await t.rows('chat', 'id, title, _sync_edited_by as by'), [
      {id: 'a', title: 'edited', by: t.editor.role},
      {id: 'b', title: 'B', by: null},
      {id: 'c', title: 'C', by: null},
    ])
  })

  test('is marked when only the white space of its json is another', async () => {
    await using t = await edited(chats)
    await t.run(`update $schema.chat set meta = '[1, 2]' where id = 'b'`)
    assert.deepEqual(await t.rows('chat', 'id, _sync_edited_by is not null as marked'), [
      {id: 'a', marked: false},
      {id: 'b', marked: true},
      {id: 'c', marked: false},
    ])
  })

  test('tells the role that was taken on, not the one that logged in', async () => {
    await using t = await edited(chats)
    await leader.admin`${raw(`create role person_${t.schema}; grant ${t.editor.role} to person_${t.schema}`)}`
    try {
      await leader.admin.begin(async tx => {
        await tx`${raw(`set local role person_${t.schema}`)}`
        await t.run(`update $schema.chat set n = 7 where id = 'a'`, tx)
      })
      const [row] = await t.rows('chat', '_sync_edited_by as by')
      assert.equal(row!['by'], `person_${t.schema}`)
    } finally {
      await leader.admin`${raw(`drop role person_${t.schema}`)}`
    }
  })

  test('is not marked by its own host, whatever that host writes', async () => {
    await using t = await edited(chats)
    await t.run(`update $schema.chat set title = 'by the host' where id = 'a'`, leader.host)
    assert.deepEqual(await t.marks('chat'), 0)
  })

  test('keeps its bookkeeping, whatever was to be written there', async () => {
    await using t = await edited(chats)
    const before = await t.rows('chat', '_sync_key, _sync_hash, _sync_at, _sync_diverged, _sync_raw')
    await t.run(`update $schema.chat set n = n + 1, _sync_hash = null, _sync_at = 'epoch', _sync_edited_by = 'nobody',
      _sync_diverged = gen_random_uuid(), _sync_raw = '{"n": "i9;"}'`)
    assert.deepEqual(
      await t.rows('chat', '_sync_key, _sync_hash, _sync_at, _sync_diverged, _sync_raw'),
      before,
    )
    assert.deepEqual(
      (await t.rows('chat', '_sync_edited_by as by')).map(({by}) => by),
      [t.editor.role, t.editor.role, t.editor.role],
    )
  })

  test('cannot get another key', async () => {
    await using t = await edited(chats)
    for (const column of ['id', '_sync_key'])
      assert.equal(await codeOf(t.run(`update $schema.chat set ${column} = 'z' where id = 'a'`)), 'OS006')
  })

  test('says what its columns say: what a column could not say exactly goes with the change of it', async () => {
    await using t = await edited(`create table t (id text primary key, n integer, m integer, j json);
      insert into t values ('a', 'five', 'six', 3)`)
    const raw = async () => (await t.rows('t', '_sync_raw as raw'))[0]!['raw']
    assert.deepEqual(Object.keys((await raw()) as object).sort(), ['j'])
    await t.run(`update $schema.t set n = '8'`)
    assert.deepEqual(Object.keys((await raw()) as object).sort(), ['j'])
    await t.run(`update $schema.t set j = '{}'`)
    assert.equal(await raw(), null)
  })
})

describe('a row that somebody else inserts', () => {
  test('gets the key that the source would give it', async () => {
    await using t = await edited(`
      create table plain (id text primary key, v text);
      create table tilde (id text primary key, v text);
      create table number (id integer primary key, v text);
      create table pair (a text, b integer, c real, v text, primary key (a, b, c));
      create table blob (id blob primary key, v text);
      create table flag (id boolean primary key, v text);
      create table numeric (id numeric primary key, v text);
      create table json (id json primary key, v text);
      insert into plain values ('x', ''); insert into tilde values ('x', ''); insert into number values (1, '');
      insert into pair values ('x', 1, 1.5, ''); insert into blob values (x'00', ''); insert into flag values (1, '');
      insert into numeric values (2.5, ''); insert into json values ('"x"', '')`)
    const inserts: [string, string, string][] = [
      ['plain', `'ordinary', 'v'`, `'ordinary', 'v'`],
      ['plain', `'${'é'.repeat(600)}', 'v'`, `'${'é'.repeat(600)}', 'v'`],
      ['plain', `'', 'v'`, `'', 'v'`],
      ['tilde', `'~wavy', 'v'`, `'~wavy', 'v'`],
      ['number', `-5, 'v'`, `-5, 'v'`],
      ['pair', `'ü', 7, 0.1, 'v'`, `'ü', 7, 0.1, 'v'`],
      ['pair', `'', -1, 1e300, 'v'`, `'', -1, 1e300, 'v'`],
      ['blob', `'\\x00ff', 'v'`, `x'00ff', 'v'`],
      ['flag', `false, 'v'`, `0, 'v'`],
      ['numeric', `3, 'v'`, `3, 'v'`],
      ['numeric', `0.25, 'v'`, `0.25, 'v'`],
      ['json', `'{"k":  1}', 'v'`, `'{"k":  1}', 'v'`],
    ]
    for (const [table, there] of inserts) await t.run(`insert into $schema.${table} values (${there})`)
    const marked = async (table: string) =>
      (
        await t.rows(
          table,
          `_sync_key as key, _sync_edited_by is not null as marked, _sync_hash is null as own`,
        )
      )
        .filter(row => row['marked'] === true)
        .map(row => row['key'])
    const keys = new Map<string, unknown[]>()
    for (const [table] of inserts) keys.set(table, await marked(table))
    // The same rows from the source have the same keys: they meet.
    for (const [table, , here] of inserts) t.app.exec(`insert into ${table} values (${here})`)
    await t.client.sync({accept: true})
    for (const [table, there] of keys) {
      const now = (await t.rows(table, '_sync_key as key')).map(row => row['key'])
      assert.equal(new Set(now).size, now.length)
      assert.equal(now.length, there.length + 1, `${table}: ${JSON.stringify(now)}`)
    }
  })

  test('in a table without a key, or without a value in it, gets one that SQLite does not give', async () => {
    await using t =
      await edited(`create table loose (v text); create table pair (a text, b text, primary key (a, b));
      insert into loose values ('x'); insert into pair values ('x', 'y')`)
    await t.run(`insert into $schema.loose (v) values ('one'), ('two')`)
    await t.run(`insert into $schema.pair (a, b) values ('one', null)`)
    const keys = [
      ...(await t.rows('loose', '_sync_key as key')),
      ...(await t.rows('pair', '_sync_key as key')),
    ]
    const own = keys.map(row => row['key'] as string).filter(key => /^~[i0]-\d+;$/.test(key))
    assert.equal(new Set(own).size, 3)
  })

  test('under the key of one that was deleted brings that one back', async () => {
    await using t = await edited(chats)
    t.app.exec(`delete from chat where id = 'a'`)
    await t.client.sync({accept: true})
    await t.run(`delete from $schema.chat where id = 'b'`)
    await t.run(`insert into $schema.chat (id, title) values ('a', 'again'), ('b', 'again')`)
    assert.deepEqual(
      await t.rows(
        'chat',
        'id, title, n, _sync_deleted_at as gone, _sync_edited_by is not null as marked, _sync_hash is null as unknown',
      ),
      [
        // The source has no such row; it still has the other.
        {id: 'a', title: 'again', n: null, gone: null, marked: true, unknown: true},
        {id: 'b', title: 'again', n: null, gone: null, marked: true, unknown: false},
        {id: 'c', title: 'C', n: 3n, gone: null, marked: false, unknown: false},
      ],
    )
  })

  test('a second time is refused, or is an update when it says so', async () => {
    await using t = await edited(chats)
    assert.equal(await codeOf(t.run(`insert into $schema.chat (id) values ('a')`)), 'SYNC_DATA')
    await t.run(`insert into $schema.chat (id, title) values ('a', 'upserted')
      on conflict (_sync_key) do update set title = excluded.title`)
    assert.equal((await t.rows('chat', 'title'))[0]!['title'], 'upserted')
  })
})

describe('a row that somebody else deletes', () => {
  test('becomes a marked tombstone with its last values, and counts as none deleted', async () => {
    await using t = await edited(chats)
    assert.deepEqual(await t.run(`delete from $schema.chat where id <> 'c' returning id`), [])
    assert.deepEqual(
      await t.rows('chat', 'id, title, _sync_deleted_at is not null as gone, _sync_edited_by as by'),
      [
        {id: 'a', title: 'A', gone: true, by: t.editor.role},
        {id: 'b', title: 'B', gone: true, by: t.editor.role},
        {id: 'c', title: 'C', gone: false, by: null},
      ],
    )
  })

  test('is not there to be changed or deleted again', async () => {
    await using t = await edited(chats)
    t.app.exec(`delete from chat where id = 'a'`)
    await t.client.sync({accept: true})
    const before = await t.rows('chat', '*')
    assert.deepEqual(await t.run(`update $schema.chat set title = 'x' where id = 'a' returning id`), [])
    await t.run(`delete from $schema.chat where id = 'a'`)
    assert.deepEqual(await t.rows('chat', '*'), before)
  })

  test('may be one of all: TRUNCATE is refused', async () => {
    await using t = await edited(chats)
    assert.equal(await codeOf(t.run('truncate $schema.chat')), 'SYNC_PERMISSION')
    assert.equal(await codeOf(t.run('truncate $schema.chat', leader.admin)), 'OS006')
    await t.run('delete from $schema.chat')
    assert.deepEqual(await t.marks('chat'), 3)
  })
})

test('a table that the app adds later has its triggers and its rights too', async () => {
  await using t = await edited(chats)
  t.app.exec(
    `create table added (id text primary key, v text); insert into added values ('a', 'A'), ('b', 'B')`,
  )
  await t.client.sync({accept: true})
  await t.run(`update $schema.added set v = 'edited' where id = 'a'`)
  await t.run(`delete from $schema.added where id = 'b'`)
  await t.run(`insert into $schema.added values ('c', 'C')`)
  assert.deepEqual(await t.rows('added', 'id, _sync_edited_by is not null as marked'), [
    {id: 'a', marked: true},
    {id: 'b', marked: true},
    {id: 'c', marked: true},
  ])
})

test('a table whose first load goes on is not there to be edited', async () => {
  await using t = await edited(chats)
  const {deploymentId} = await t.client.deployment()
  const operations = [{op: 'create_table', table: 'loading', columns: [{name: 'id', type: 'text'}]}]
  await leader.host`select sync_metadata.evolve_schema(${deploymentId}, ${JSON.stringify(operations)})`
  await t.run(`insert into $schema.loading (id, _sync_key) values ('a', 'a')`, leader.host)
  for (const sql of [
    `insert into $schema.loading (id, _sync_key) values ('b', 'b')`,
    `update $schema.loading set id = 'b'`,
    'delete from $schema.loading',
  ])
    assert.equal(await codeOf(t.run(sql)), 'OS006', sql)
})

test('a reader may change nothing', async () => {
  await using t = await edited(chats)
  await using reader = await editorOf(leader.admin, t.client.name, 'read')
  for (const sql of [
    `update $schema.chat set n = 1`,
    'delete from $schema.chat',
    `insert into $schema.chat (id) values ('z')`,
  ])
    assert.equal(await codeOf(t.run(sql, reader)), 'SYNC_PERMISSION', sql)
})

test('marks announce themselves, once a transaction; a sync does not', async () => {
  await using t = await edited(chats)
  await using connection = await leader.host.reserve()
  const heard: string[] = []
  connection.onNotify((_, payload) => heard.push(payload))
  const [row] = await connection<{channel: string}>`
    select sync_metadata.channel_of(host_id) as channel from sync_metadata.hosts`
  await connection`listen ${connection(row!.channel)}`
  await t.editor.begin(async tx => {
    await t.run(`update $schema.chat set n = 4 where id = 'a'`, tx)
    await t.run(`update $schema.chat set n = 5 where id = 'b'`, tx)
    await t.run(`delete from $schema.chat where id = 'c'`, tx)
  })
  await connection`select 1`
  t.app.exec(`insert into chat (id) values ('d')`)
  await t.client.sync({accept: true})
  await connection`select 1`
  assert.deepEqual(
    heard.filter(payload => payload === 'marks'),
    ['marks'],
  )
})

test('tables with marks are found, and no others', async () => {
  await using t = await edited(
    `${chats}; create table other (id text primary key); insert into other values ('a')`,
  )
  const marked = async () =>
    (await leader.host<{name: string}>`select * from sync_metadata.marked_tables(${t.schema}) as name`).map(
      ({name}) => name,
    )
  assert.deepEqual(await marked(), [])
  await t.run(`delete from $schema.other`)
  assert.deepEqual(await marked(), ['other'])
  await t.run(`update $schema.other set _sync_edited_by = null`, leader.host)
  assert.deepEqual(await marked(), [])
})

describe('a host of the client', () => {
  const table = [
    {op: 'create_table', table: 't', columns: [{name: 'id', type: 'text'}]},
    {op: 'finish_table', table: 't'},
  ]

  /** Writes a row as somebody. @returns whether that left a mark. */
  async function marks(admin: Sql, as: Sql, key: string): Promise<boolean> {
    await as`update acme.t set id = ${key} where _sync_key = 'x'`
    const [row] = await admin<{
      by: string | null
    }>`select _sync_edited_by as by from acme.t where _sync_key = 'x'`
    await admin`alter table acme.t disable trigger user`
    await admin`update acme.t set _sync_edited_by = null`
    await admin`alter table acme.t enable trigger user`
    return row!.by !== null
  }

  async function withRow() {
    const client = await hostWithClient()
    await evolve(client.host, client.id, ...table)
    await client.host`insert into acme.t (id, _sync_key) values ('x', 'x')`
    return client
  }

  /** Somebody with the rights of a host, given by hand: by name as `db grant-access` would never. */
  async function impostor(db: TestDatabase, role: string): Promise<AsyncDisposable & Pool> {
    const password = randomBytes(12).toString('hex')
    await db`${raw(`create role ${role} login password '${password}'`)}`
    await db`${raw(`grant usage on schema acme to ${role}; grant all on all tables in schema acme to ${role};
      grant all on all functions in schema acme to ${role}`)}`
    const pool = connect(withChanges(db.endpoint, {user: role, password}), {
      max: 1,
      applicationName: 'owsync-test',
    })
    return Object.assign(pool, {
      async [Symbol.asyncDispose]() {
        await pool.end()
        await db`${raw(`drop owned by ${role} cascade; drop role ${role}`)}`
      },
    })
  }

  test('is not who is only called like one', async () => {
    await using client = await withRow()
    const role = `sync_host_${randomBytes(6).toString('hex')}`
    await using other = await impostor(client.db, role)
    assert.equal(await marks(client.db, client.host, 'mine'), false)
    assert.equal(await marks(client.db, other, 'edited'), true)
    // No sync has said what its key is: the guard has looked at it, which spares none but hosts.
    assert.equal(
      await codeOf(Promise.resolve(other`insert into acme.t (id, _sync_key) values ('y', 'y')`)),
      'OS006',
    )
    await other`delete from acme.t where _sync_key = 'x'`
    assert.deepEqual(
      await client.db`select _sync_deleted_at is not null as gone, _sync_edited_by as by from acme.t`,
      [{gone: true, by: role}],
    )
  })

  test('is not who has a table and not the right to be looked at: every change is refused', async () => {
    await using client = await withRow()
    const role = `sync_host_${randomBytes(6).toString('hex')}`
    await using other = await impostor(client.db, role)
    await client.db`${raw(`revoke all on all functions in schema acme from ${role}`)}`
    for (const sql of [
      'update acme.t set id = null',
      'delete from acme.t',
      `insert into acme.t values ('y', 'y')`,
    ])
      assert.equal(await codeOf(Promise.resolve(other`${raw(sql)}`)), 'SYNC_PERMISSION', sql)
  })

  test('is not another host, whatever rights it was given', async () => {
    await using client = await withRow()
    await using other = await testHost(client.db, 'host-b')
    await client.db`${raw(`grant usage on schema acme to ${other.role}; grant all on acme.t to ${other.role}`)}`
    assert.equal(await marks(client.db, other, 'edited'), true)
    assert.equal(await codeOf(Promise.resolve(other`truncate acme.t`)), 'OS006')
  })

  test('is not the superuser', async () => {
    await using client = await withRow()
    assert.equal(await marks(client.db, client.db, 'edited'), true)
  })

  test('is each of its roles while its password is rotated, and none whose time is over', async () => {
    await using client = await withRow()
    const {db, host} = client
    const next = await rotatePassword(db, db.endpoint, {cluster: 'host-a', graceMs: 3_600_000})
    await using second = connect(next.endpoint, {max: 1, applicationName: 'owsync-test'})
    assert.equal(await marks(db, second, 'new'), false)
    assert.equal(await marks(db, host, 'old'), false)
    // Its session goes on, and its rights with it until they are taken.
    await db`update sync_metadata.host_roles set valid_until = now() where db_role = ${host.role}`
    assert.equal(await marks(db, host, 'late'), true)
    assert.equal(await marks(db, second, 'new again'), false)
  })

  test('is the new one after a transfer, for tables that were there and for others', async () => {
    await using client = await withRow()
    const {db, host, id} = client
    await using other = await testHost(db, 'host-b')
    await transferClient(db, {client: 'acme', toCluster: 'host-b'})
    assert.equal(await marks(db, other, 'theirs'), false)
    await db`${raw(`grant usage on schema acme to ${host.role}; grant all on acme.t to ${host.role}`)}`
    assert.equal(await marks(db, host, 'not mine any more'), true)
    await evolve(other, id, {...table[0], table: 'u'}, {...table[1], table: 'u'})
    await other`insert into acme.u (id, _sync_key) values ('x', 'x')`
    assert.deepEqual(await db`select _sync_edited_by as by from acme.u`, [{by: null}])
  })

  test('is known to clients of an earlier version once the control schema is migrated', async () => {
    await using db = await emptyDatabase()
    await using folder = await sqlUpTo(12)
    await migrate(db, {sqlFolder: folder.path})
    await using host = await testHost(db)
    const id = await testClient(host)
    await evolve(host, id, ...table, {...table[0], table: 'loading'})
    await host`insert into acme.t (id, _sync_key) values ('x', 'x')`
    const role = `sync_host_${randomBytes(6).toString('hex')}`
    await using other = await impostor(db, role)
    assert.equal(await marks(db, other, 'as one was called'), false)
    await migrate(db)
    await db`${raw(`grant execute on all functions in schema acme to ${role}`)}`
    assert.equal(await marks(db, other, 'as one is'), true)
    assert.equal(await marks(db, host, 'mine'), false)
    assert.equal(await codeOf(Promise.resolve(other`delete from acme.loading`)), 'OS006')
    await host`insert into acme.loading (id, _sync_key) values ('x', 'x')`
    await evolve(host, id, {op: 'finish_table', table: 'loading'})
    assert.deepEqual(
      await db`select count(*)::int as triggers from pg_trigger where tgrelid = 'acme.loading'::regclass`,
      [{triggers: 4}],
    )
  })
})

/** The control schema's files up to a version. */
async function sqlUpTo(version: number): Promise<AsyncDisposable & {readonly path: string}> {
  const own = new URL('../../sql', import.meta.url)
  const path = await mkdtemp(join(tmpdir(), 'owsync-sql-'))
  await cp(own, path, {recursive: true})
  for (const name of await readdir(path)) if (Number(name.slice(0, 4)) > version) await rm(join(path, name))
  return {path, [Symbol.asyncDispose]: () => rm(path, {recursive: true, force: true})}
}

test('clients from before the triggers get them, and editors their right to delete', async () => {
  await using t = await edited(chats)
  // As an earlier version had left it.
  await t.run(
    `drop trigger _sync_1_guard on $schema.chat; drop trigger _sync_2_mark on $schema.chat;
     drop trigger _sync_3_announce on $schema.chat; drop trigger _sync_truncate on $schema.chat;
     revoke delete on $schema.chat from ${t.editor.role}; delete from sync_metadata.table_keys`,
    leader.admin,
  )
  const {readFile} = await import('node:fs/promises')
  const sql = await readFile(new URL('../../sql/0011_foreign_edits.sql', import.meta.url), 'utf8')
  const block = /do \$\$[\s\S]*\$\$;/.exec(sql)![0]
  await using admin = connect(leader.admin.endpoint, {max: 1, applicationName: 'owsync-test'})
  await admin`${raw(block)}`
  await t.run(`delete from $schema.chat where id = 'a'`)
  await t.run(`insert into $schema.chat (id) values ('z')`)
  assert.deepEqual(await t.marks('chat'), 2)
})
