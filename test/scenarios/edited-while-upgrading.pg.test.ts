import assert from 'node:assert/strict'
import {DatabaseSync} from 'node:sqlite'
import {afterAll, beforeAll, describe, test} from 'vitest'
import {raw} from '../../src/postgres/sql.ts'
import {resolveConflict} from '../../src/sync/resolve.ts'
import {compareFiles} from '../compare.ts'
import {editorOf} from '../editor.ts'
import {codeOf} from '../host.ts'
import {leadingClient, leadingHost, type LeadingHost} from '../leading-host.ts'

// The app is upgraded while rows that somebody has edited in Postgres wait to be decided: its tables get other names and
// other keys, lose columns, or go. Every edit is decided as what it is, and none is gone without a line in the ledger.

let leader: LeadingHost
beforeAll(async () => {
  leader = await leadingHost('upgrading')
})
afterAll(() => leader[Symbol.asyncDispose]())

let clients = 0

/** A synced client whose source has these tables, an editor of it, and a strategy for all of them. */
async function edited(strategy: string, ddl: string) {
  const stack = new AsyncDisposableStack()
  const name = `upgrading-${++clients}`
  const schema = name.replaceAll('-', '_')
  const client = stack.use(await leadingClient(leader, name))
  const app = stack.use(new DatabaseSync(client.file))
  app.exec(ddl)
  const conflictConfig = {place: 'test', document: {default_strategy: strategy}}
  const sync = async () => {
    const options = {conflictConfig, accept: true, marks: true}
    const planned = await client.sync({...options, dryRun: true})
    const result = await client.sync(options)
    assert.equal(result.status, 'success')
    assert.deepEqual(planned.conflicts, result.conflicts, 'a dry run tells the same')
    return result
  }
  await client.sync({conflictConfig})
  const editor = stack.use(await editorOf(leader.admin, name))
  const run = (sql: string) => editor`${raw(sql.replaceAll('$.', `${schema}.`))}`
  const rows = async (table: string, columns: string) =>
    await leader.admin`${raw(`select ${columns} from ${schema}.${table} where _sync_deleted_at is null order by 1`)}`
  const ledger = async () =>
    await leader.admin<{
      table: string
      key: string
      type: string
      status: string
      outcome: string
      target: object
    }>`
      select table_name as table, record_key as key, conflict_type as type, c.status, outcome, target_data as target
      from sync_metadata.conflict_log c join sync_metadata.client_deployments d using (deployment_id)
      where d.client_name = ${name} order by table_name, record_key, detected_at`
  const entries = async () =>
    (await ledger()).map(({table, key, type, status, outcome}) => ({table, key, type, status, outcome}))
  /** Nothing is left to be decided, and both sides are equal but for what may differ. */
  const settled = async (accepted: number) => {
    assert.equal((await sync()).mode, 'unchanged')
    assert.equal((await client.deployment()).hasMarks, false)
    for (const quick of [false, true]) {
      const verified = await client.verify({quick})
      assert.deepEqual([verified.differences, verified.accepted], [[], accepted])
    }
    assert.deepEqual(compareFiles(client.file, await client.restore({asSource: true})), [])
    await client.restore()
  }
  return {
    client,
    app,
    sync,
    run,
    rows,
    ledger,
    entries,
    settled,
    schema,
    [Symbol.asyncDispose]: () => stack.disposeAsync(),
  }
}

const many = (table: string, columns: string, values: string) => `
  with recursive n (n) as (select 1 union all select n + 1 from n where n < 20)
  insert into ${table} (${columns}) select ${values} from n;`

describe.each(['source_wins', 'target_wins', 'manual'] as const)('under %s', strategy => {
  const isSource = strategy === 'source_wins'
  const outcome = {source_wins: 'source', target_wins: 'target', manual: null}[strategy]
  const status = strategy === 'manual' ? 'pending' : 'resolved'

  test('a table that is renamed, and another that takes its name', async () => {
    await using t = await edited(
      strategy,
      `create table config (id integer primary key, data text); ${many('config', 'data', `'data ' || n`)}`,
    )
    await t.run(`update $.config set data = 'edited' where id = 1`)
    await t.run(`delete from $.config where id = 2`)
    t.app
      .exec(`alter table config rename to config_old; create table config (key text primary key, value text);
      insert into config values ('theme', 'dark')`)
    await t.sync()
    const kept = await t.rows('config_old', 'id::int as id, data')
    assert.deepEqual(kept[0], {id: 1, data: isSource ? 'data 1' : 'edited'})
    assert.equal(kept.length, isSource ? 20 : 19)
    assert.deepEqual(await t.rows('config', 'key, value'), [{key: 'theme', value: 'dark'}])
    assert.deepEqual(
      await t.entries(),
      ['~i1;', '~i2;'].map(key => ({table: 'config_old', key, type: 'drift', status, outcome})),
    )
    await t.settled(isSource ? 0 : 2)
  })

  test('a table that gets another key', async () => {
    await using t = await edited(
      strategy,
      `create table label (id text primary key, user_id text, name text, updated_at integer);
       ${many('label', 'id, user_id, name, updated_at', `'t' || n, 'u' || (n % 3), 'name ' || n, 1700000000`)}`,
    )
    await t.run(`update $.label set name = 'edited' where id in ('t1', 't2', 't3')`)
    await t.run(`delete from $.label where id = 't4'`)
    await t.run(`insert into $.label (id, user_id, name) values ('new', 'u9', 'inserted')`)
    t.app
      .exec(`create table label_2 (id text, user_id text, name text, updated_at integer, primary key (id, user_id));
      insert into label_2 select * from label; drop table label; alter table label_2 rename to label;
      update label set name = 'upgraded' where id = 't2'; delete from label where id = 't3'`)
    await t.sync()
    const rows = new Map((await t.rows('label', 'id, name')).map(row => [row['id'], row['name']]))
    const want: Record<string, string | undefined> = isSource
      ? {t1: 'name 1', t2: 'upgraded', t3: undefined, t4: 'name 4', new: undefined}
      : {t1: 'edited', t2: 'edited', t3: 'edited', t4: undefined, new: 'inserted'}
    for (const [id, name] of Object.entries(want)) assert.equal(rows.get(id), name, id)
    assert.equal(rows.size, isSource ? 19 : 20, 'no row is there twice')
    assert.deepEqual(
      (await t.ledger()).map(({key, type}) => [key, type]),
      [
        // The source has deleted it: nobody knows its key in the new table.
        ['t3', 'delete_update'],
        ['~t2:t1t2:u1', 'drift'],
        ['~t2:t2t2:u2', 'update_update'],
        ['~t2:t4t2:u1', 'drift'],
        ['~t3:newt2:u9', 'drift'],
      ],
    )
    await t.settled(isSource ? 0 : 5)
  })

  test('a table that had no key and gets one', async () => {
    await using t = await edited(
      strategy,
      `create table pref (name text, value text); ${many('pref', 'name, value', `'p' || n, 'value ' || n`)}`,
    )
    await t.run(`update $.pref set value = 'edited' where name = 'p1'`)
    await t.run(`insert into $.pref (name, value) values ('new', 'inserted')`)
    t.app
      .exec(`create table pref_2 (name text primary key, value text); insert into pref_2 select * from pref;
      drop table pref; alter table pref_2 rename to pref`)
    await t.sync()
    const rows = new Map((await t.rows('pref', 'name, value')).map(row => [row['name'], row['value']]))
    assert.equal(rows.get('p1'), isSource ? 'value 1' : 'edited')
    assert.equal(rows.get('new'), isSource ? undefined : 'inserted')
    assert.equal(rows.size, isSource ? 20 : 21)
    assert.deepEqual(
      (await t.ledger()).map(({key}) => key),
      ['new', 'p1'],
    )
    await t.settled(isSource ? 0 : 2)
  })

  test('a table that is dropped: what was edited stays or goes, and is told', async () => {
    await using t = await edited(
      strategy,
      `create table note (id text primary key, v text); create table other (id text primary key);
       ${many('note', 'id, v', `'n' || n, 'v'`)} insert into other values ('o')`,
    )
    await t.run(`update $.note set v = 'edited' where id = 'n1'`)
    await t.run(`delete from $.note where id = 'n2'`)
    await t.run(`insert into $.note (id, v) values ('mine', 'inserted')`)
    t.app.exec('drop table note')
    const {conflicts} = await t.sync()
    // Nobody can be asked: there is nothing to choose from.
    assert.deepEqual(conflicts, {detected: 2, resolved: 2, pending: 0})
    assert.deepEqual(
      await t.rows('note', 'id, v'),
      isSource
        ? []
        : [
            {id: 'mine', v: 'inserted'},
            {id: 'n1', v: 'edited'},
          ],
    )
    assert.deepEqual(await t.entries(), [
      {
        table: 'note',
        key: 'mine',
        type: 'drift',
        status: 'resolved',
        outcome: isSource ? 'source' : 'target',
      },
      {
        table: 'note',
        key: 'n1',
        type: 'delete_update',
        status: 'resolved',
        outcome: isSource ? 'source' : 'target',
      },
    ])
    for (const sql of [`update $.note set v = 'late'`, `insert into $.note (id) values ('x')`])
      assert.equal(await codeOf(Promise.resolve(t.run(sql))), 'OS006', sql)
    if (!isSource) assert.equal(await codeOf(Promise.resolve(t.run('delete from $.note'))), 'OS006')
    await t.settled(0)
    // It comes back, and with it what differs.
    t.app.exec(
      `create table note (id text primary key, v text); insert into note values ('n1', 'back'), ('n2', 'back')`,
    )
    await t.sync()
    const back = new Map((await t.rows('note', 'id, v')).map(row => [row['id'], row['v']]))
    assert.deepEqual([back.get('n1'), back.get('n2')], [isSource ? 'back' : 'edited', 'back'])
    assert.equal(back.get('mine'), isSource ? undefined : 'inserted')
  })
})

test('what waits for a person follows its table and its row, and is decided there', async () => {
  await using t = await edited(
    'manual',
    `create table old (id text primary key, user_id text, v text);
     ${many('old', 'id, user_id, v', `'o' || n, 'u', 'source ' || n`)}`,
  )
  await t.run(`update $.old set v = 'edited' where id in ('o1', 'o2')`)
  await t.sync()
  t.app.exec('alter table old rename to renamed')
  await t.sync()
  t.app.exec(`create table rekeyed (id text, user_id text, v text, primary key (user_id, id));
    insert into rekeyed select * from renamed; drop table renamed; alter table rekeyed rename to renamed`)
  await t.sync()
  assert.deepEqual(
    (await t.ledger()).map(({table, key, status}) => [table, key, status]),
    [
      ['renamed', '~t1:ut2:o1', 'pending'],
      ['renamed', '~t1:ut2:o2', 'pending'],
    ],
  )
  const ids = await leader.admin<{id: string}>`
    select conflict_id as id from sync_metadata.conflict_log c join sync_metadata.client_deployments d using (deployment_id)
    where d.client_name = ${t.client.name} order by record_key`
  await resolveConflict(leader.host, ids[0]!.id, {choice: 'source'}, 'somebody')
  await resolveConflict(leader.host, ids[1]!.id, {choice: 'target'}, 'somebody')
  const rows = new Map((await t.rows('renamed', 'id, v')).map(row => [row['id'], row['v']]))
  assert.deepEqual([rows.get('o1'), rows.get('o2')], ['source 1', 'edited'])
  await t.settled(1)
})

test('an edit of a column that the app drops is told, and its value stays in the column', async () => {
  await using t = await edited(
    'source_wins',
    `create table note (id text primary key, v text, w text); ${many('note', 'id, v, w', `'n' || n, 'v', 'w'`)}`,
  )
  await t.run(`update $.note set w = 'edited' where id = 'n1'`)
  await t.run(`update $.note set v = 'edited', w = 'edited' where id = 'n2'`)
  await t.run(`update $.note set v = 'edited' where id = 'n3'`)
  t.app.exec('alter table note drop column w')
  await t.sync()
  const entries = await t.ledger()
  assert.deepEqual(
    entries.map(({key}) => key),
    ['n1', 'n2', 'n3'],
  )
  assert.deepEqual(
    entries.map(({target}) => (target as {w: string}).w),
    ['edited', 'edited', 'w'],
  )
  const rows = await t.rows('note', 'id, v, w')
  assert.deepEqual(
    rows.filter(({id}) => id === 'n1' || id === 'n2'),
    [
      {id: 'n1', v: 'v', w: 'edited'},
      {id: 'n2', v: 'v', w: 'edited'},
    ],
  )
  await t.settled(0)
})

test.for(['source_wins', 'target_wins', 'manual'] as const)(
  'rows that would all get one key in a table that gets one are not lost, under %s',
  async strategy => {
    await using t = await edited(
      strategy,
      `create table pref (name text, value text); ${many('pref', 'name, value', `'p' || n, 'value ' || n`)}`,
    )
    await t.run(`insert into $.pref (name, value) values ('same', 'one'), ('same', 'two'), ('p2', 'three')`)
    await t.run(`update $.pref set value = 'edited' where name = 'p2' and value <> 'three'`)
    t.app
      .exec(`create table pref_2 (name text primary key, value text); insert into pref_2 select * from pref;
      drop table pref; alter table pref_2 rename to pref`)
    await t.sync()
    const told = (await t.ledger()).map(({target}) => (target as {value?: string}).value)
    const stands = (await t.rows('pref', 'value')).map(({value}) => value as string)
    for (const value of ['one', 'two', 'three', 'edited'])
      assert.ok(told.includes(value) || stands.includes(value), `${value} is gone`)
    assert.equal((await t.sync()).mode, 'unchanged')
    assert.equal((await t.client.deployment()).hasMarks, false)
  },
)
