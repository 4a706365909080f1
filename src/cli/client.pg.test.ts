import assert from 'node:assert/strict'
import {copyFile, rename, symlink} from 'node:fs/promises'
import {join} from 'node:path'
import type {DatabaseSync} from 'node:sqlite'
import {afterAll, beforeAll, describe, test} from 'vitest'
import {runCli} from '../../test/cli.ts'
import {syncedHost, type SyncedHost} from '../../test/synced-host.ts'
import {urlOf} from '../net/endpoint.ts'

let m: SyncedHost

beforeAll(async () => {
  m = await syncedHost()
})

afterAll(async () => {
  await m[Symbol.asyncDispose]()
})

type Document = Record<string, unknown>

const client = (...more: string[]) => runCli(['client', ...more], {env: m.env})

async function json(...more: string[]): Promise<Document> {
  const {code, out, err, json} = await client(...more, '--json')
  assert.equal(code, 0, out + err)
  return json() as Document
}

async function errorOf(
  ...more: string[]
): Promise<{code: string; message: string; next: string; exit: number}> {
  const {code, json} = await client(...more, '--json')
  const {error} = json() as {error: {code: string; message: string; next: string}}
  return {...error, exit: code}
}

/** A source with two chats, and its client, which has been synced. */
async function synced(name: string): Promise<string> {
  const file = m.source(name, db => {
    db.exec(
      `create table if not exists chat (id text primary key, title text);
       insert or ignore into chat values ('a', 'one'), ('b', 'two')`,
    )
  })
  await m.sync(name, file)
  return file
}

async function audited(name: string): Promise<string[]> {
  const rows = await m.host<{action: string}>`
    select action from sync_metadata.audit_log where client_name = ${name} order by audit_id`
  return rows.map(({action}) => action)
}

describe('client register', () => {
  test('opens the file first: a wrong path registers nothing', async () => {
    const {code, exit} = await errorOf('register', 'nobody', '--sqlite', join(m.folder, 'missing.db'))
    assert.deepEqual([code, exit], ['SYNC_SOURCE_UNREADABLE', 1])
    assert.deepEqual(
      await m.host`select 1 from sync_metadata.client_deployments where client_name = 'nobody'`,
      [],
    )
  })

  test('makes it known with its file and schedule, and again changes no more than is asked', async () => {
    const file = m.source('reg', db => {
      db.exec('create table chat (id text primary key)')
    })
    const first = await json('register', 'reg', '--sqlite', file, '--interval', '5m')
    const {new: isNew, sqlite_path, interval, schedule, enabled, generation, status} = first
    assert.deepEqual(
      {isNew, sqlite_path, interval, schedule, enabled, generation, status},
      {
        isNew: true,
        sqlite_path: file,
        interval: 300,
        schedule: null,
        enabled: true,
        generation: 0,
        status: 'active',
      },
    )
    assert.deepEqual(await json('register', 'reg', '--sqlite', file), {...first, new: false})
    assert.equal((await json('register', 'reg', '--interval', 'live'))['schedule'], 'live')
    assert.deepEqual(await audited('reg'), [
      'client.registered',
      'client.configured',
      'client.configured',
      'client.configured',
    ])
  })

  test('keeps a registered client from getting another file by mistake', async () => {
    const other = m.source('other file', db => {
      db.exec('create table chat (id text primary key)')
    })
    await synced('kept')
    const {code, next, exit} = await errorOf('register', 'kept', '--sqlite', other)
    assert.deepEqual([code, exit], ['SYNC_USAGE', 64])
    assert.match(next, /--from-target/)
  })

  test('keeps a link as it is named: where it leads later is synced', async () => {
    const build = (db: DatabaseSync) => {
      db.exec(`create table chat (id text primary key, title text); insert into chat values ('a', 'one')`)
    }
    const first = m.source('linked-1', build)
    const second = m.source('linked-2', db => {
      build(db)
      db.exec(`insert into chat values ('b', 'two')`)
    })
    const link = join(m.folder, 'linked')
    await symlink(first, link)
    assert.equal((await json('register', 'linked', '--sqlite', link))['sqlite_path'], link)
    const {code} = await errorOf('register', 'linked', '--sqlite', second)
    assert.equal(code, 'SYNC_USAGE')
    assert.equal((await json('register', 'linked', '--sqlite', first))['sqlite_path'], first)
    assert.equal((await json('register', 'linked', '--sqlite', link))['sqlite_path'], link)
    const sync = async () => {
      const {json: result} = await runCli(['sync', '--client', 'linked', '--json'], {env: m.env})
      return ((result() as Document)['rows'] as {upserted: number}).upserted
    }
    assert.equal(await sync(), 1)
    await symlink(second, `${link}.new`)
    await rename(`${link}.new`, link)
    assert.equal(await sync(), 1)
    assert.equal((await json('register', 'linked', '--interval', '5m'))['sqlite_path'], link)
    const attached = await json('register', 'linked', '--sqlite', link, '--from-target')
    assert.deepEqual([attached['attached'], attached['sqlite_path']], [true, link])
  })

  test('--from-target attaches a copy, and the next sync is incremental', async () => {
    const file = await synced('moved')
    const copy = join(m.folder, 'moved-copy.db')
    await copyFile(file, copy)
    const attached = await json('register', 'moved', '--sqlite', copy, '--from-target')
    assert.deepEqual([attached['attached'], attached['sqlite_path']], [true, copy])
    assert.deepEqual((attached['preview'] as {rows: unknown}).rows, {
      upserted: 0,
      tombstoned: 0,
      unchanged: 2,
      quarantined: 0,
    })
    m.source('moved-copy', db => {
      db.exec(`insert into chat values ('c', 'three')`)
    })
    const {code, json: result} = await runCli(['sync', '--client', 'moved', '--json'], {env: m.env})
    const {mode, generation, rows} = result() as Document
    assert.deepEqual([code, mode, generation], [0, 'incremental', 2])
    assert.equal((rows as {upserted: number}).upserted, 1)
  })

  test('--from-target does not attach another client’s file', async () => {
    const file = m.source('many', db => {
      db.exec('create table chat (id text primary key, title text)')
      for (let i = 0; i < 20; i++) db.exec(`insert into chat values ('${i}', 'x')`)
    })
    await m.sync('many', file)
    const wrong = m.source('wrong', db => {
      db.exec(`create table chat (id text primary key, title text); insert into chat values ('z', 'x')`)
    })
    const {code, out} = await client('register', 'many', '--sqlite', wrong, '--from-target')
    assert.equal(code, 2)
    assert.match(out, /^many: not attached: this is another file .* 20 of 20 rows/)
    assert.equal((await json('status', 'many'))['sqlite_path'], file)
  })

  test('--from-target needs a client that Postgres has something of', async () => {
    const file = m.source('new one', db => {
      db.exec('create table chat (id text primary key)')
    })
    const {code} = await errorOf('register', 'new-one', '--sqlite', file, '--from-target')
    assert.equal(code, 'SYNC_UNKNOWN_CLIENT')
  })
})

test('client pause and start switch the sync off and on, and say who did it', async () => {
  await synced('switch')
  const paused = await json('pause', 'switch', '--reason', 'disk is being replaced')
  assert.deepEqual(
    [paused['enabled'], paused['status'], paused['status_reason']],
    [false, 'paused', 'disk is being replaced'],
  )
  const started = await json('start', 'switch')
  assert.deepEqual([started['enabled'], started['status'], started['status_reason']], [true, 'active', null])
  const rows = await m.host<{action: string; actor: string; details: unknown}>`
    select action, actor, details from sync_metadata.audit_log
    where client_name = 'switch' and action in ('client.paused', 'client.started') order by audit_id`
  assert.deepEqual(
    rows.map(({action, details}) => [action, details]),
    [
      ['client.paused', {sync_enabled: false, reason: 'disk is being replaced'}],
      ['client.started', {sync_enabled: true}],
    ],
  )
  assert.ok(rows.every(({actor}) => actor.startsWith('cli:')))
})

for (const [typed, interval, schedule] of [
  ['realtime', 60, null],
  ['1m', 60, null],
  ['5m', 300, null],
  ['hourly', 3_600, null],
  ['4h', 14_400, null],
  ['manual', null, null],
  ['live', null, 'live'],
  ['90', 90, null],
  ['15 2 * * 1-5', null, '15 2 * * 1-5'],
] as const)
  test(`client interval takes ${typed}`, async () => {
    await synced('timed')
    const set = await json('interval', 'timed', typed)
    assert.deepEqual([set['interval'], set['schedule']], [interval, schedule])
  })

test('client interval refuses what makes no sense, and changes nothing', async () => {
  await synced('timed')
  await json('interval', 'timed', '90')
  for (const typed of ['9', 'often', '61 * * * *', '-5', ''])
    assert.equal((await errorOf('interval', 'timed', typed)).exit, 64, typed)
  assert.equal((await json('status', 'timed'))['interval'], 90)
})

test('client status --count counts both sides', async () => {
  await synced('counted')
  m.source('counted', db => {
    db.exec(`delete from chat where id = 'a'`)
  })
  await m.sync('counted')
  m.source('counted', db => {
    db.exec(
      `insert into chat values ('c', 'x'), ('d', 'y'); create table later (x); insert into later values (1)`,
    )
  })
  const {tables, source_error} = await json('status', 'counted', '--count')
  assert.equal(source_error, null)
  assert.deepEqual(tables, [
    {table: 'chat', source: 3, target: 1, deleted: 1},
    {table: 'later', source: 1, target: null, deleted: null},
  ])
  const {out} = await client('status', 'counted', '--count')
  assert.match(out, /^chat +3 +1 +\+2 +1$/m)
})

test('client status --count shows the target even when the file is gone', async () => {
  await synced('lost')
  await m.host`update sync_metadata.client_deployments set sqlite_path = '/nowhere/webui.db' where client_name = 'lost'`
  const {tables, source_error} = await json('status', 'lost', '--count')
  assert.deepEqual(tables, [{table: 'chat', source: null, target: 2, deleted: 0}])
  assert.equal((source_error as {code: string}).code, 'SYNC_SOURCE_UNREADABLE')
})

test('client history shows syncs and failures, and its log who did what', async () => {
  await synced('past')
  await m.host`update sync_metadata.client_deployments set sqlite_path = '/nowhere/webui.db' where client_name = 'past'`
  assert.equal((await runCli(['sync', '--client', 'past'], {env: m.env})).code, 1)
  await json('pause', 'past')
  const {jobs, count} = await json('history', 'past')
  assert.equal(count, 2)
  assert.deepEqual(
    (jobs as Document[]).map(job => [job['client'], job['status'], job['generation'], job['error_code']]),
    [
      ['past', 'failed', null, 'SYNC_SOURCE_UNREADABLE'],
      ['past', 'success', 1, null],
    ],
  )
  const {log} = await json('history', 'past', '--log')
  assert.deepEqual(
    (log as Document[]).map(({kind, what}) => `${kind as string} ${what as string}`),
    ['audit client.registered', 'job success', 'job failed', 'audit client.paused'],
  )
  const {out} = await client('history', 'past')
  assert.match(out, /SYNC_SOURCE_UNREADABLE: .*\/nowhere\/webui\.db/)
})

describe('client confirm', () => {
  test('applies what is held back, and only that', async () => {
    await synced('held')
    assert.equal((await errorOf('confirm', 'held', '--yes')).code, 'SYNC_USAGE')
    m.source('held', db => {
      db.exec('delete from chat')
    })
    assert.equal((await runCli(['sync', '--client', 'held'], {env: m.env})).code, 2)
    const {status, status_reason} = await json('status', 'held')
    assert.deepEqual([status, status_reason], ['quarantined', 'the file has lost all its 2 rows'])
    assert.equal((await errorOf('confirm', 'held')).code, 'SYNC_USAGE', 'nobody was there to ask')
    const confirmed = await json('confirm', 'held', '--yes')
    assert.deepEqual([confirmed['generation'], (confirmed['rows'] as Document)['tombstoned']], [2, 2])
    assert.equal((await json('status', 'held'))['status'], 'active')
    assert.equal((await audited('held')).at(-1), 'client.confirmed')
  })
})

describe('client purge', () => {
  test('erases a row that the source has deleted, and refuses one that it has', async () => {
    await synced('erase')
    const living = await errorOf('purge', 'erase', 'chat', 'a', '--yes')
    assert.equal(living.code, 'SYNC_ERASE_REFUSED')
    assert.match(living.next, /Delete it in Open WebUI/)
    m.source('erase', db => {
      db.exec(`delete from chat where id = 'a'`)
    })
    await m.sync('erase')
    assert.deepEqual(await json('purge', 'erase', 'chat', 'a', '--yes'), {
      client: 'erase',
      table: 'chat',
      key: 'a',
      erased: true,
    })
    assert.equal((await json('purge', 'erase', 'chat', 'a', '--yes'))['erased'], false)
    assert.deepEqual(await m.host`select _sync_key from erase.chat`, [{_sync_key: 'b'}])
    assert.equal((await errorOf('purge', 'erase', 'nope', 'a', '--yes')).code, 'SYNC_ERASE_REFUSED')
    const said = await m.host`select details from sync_metadata.audit_log where action = 'client.purged'`
    assert.ok(!JSON.stringify(said).includes('"a"'), 'the key is not kept')
  })

  test('takes a row that was deleted in Postgres only for one that is still in the source', async () => {
    await synced('edited')
    await m.admin`update edited.chat set _sync_deleted_at = now(), _sync_edited_by = 'analyst' where _sync_key = 'a'`
    assert.equal((await errorOf('purge', 'edited', 'chat', 'a', '--yes')).code, 'SYNC_ERASE_REFUSED')
  })
})

describe('client deregister', () => {
  test('refuses a client that is synced, then gives it up and keeps its schema', async () => {
    await synced('leave')
    const {code, next} = await errorOf('deregister', 'leave', '--yes')
    assert.equal(code, 'SYNC_STILL_SYNCED')
    assert.match(next, /owsync client pause leave/)
    await json('pause', 'leave')
    assert.deepEqual(await json('deregister', 'leave', '--yes'), {
      client: 'leave',
      schema: 'leave',
      detached: true,
      dropped: false,
    })
    assert.equal((await errorOf('status', 'leave')).code, 'SYNC_UNKNOWN_CLIENT')
    await assert.rejects(m.host`select 1 from leave.chat`, {code: 'SYNC_PERMISSION'})
    assert.deepEqual(await m.admin`select count(*)::int as n from leave.chat`, [{n: 2}])
    assert.equal((await audited('leave')).at(-1), 'client.detached')
    // Back by `db transfer`, with all it had.
    const admin = {...m.env, ADMIN_DATABASE_URL: urlOf(m.admin.endpoint)}
    const back = ['db', 'transfer', '--client', 'leave', '--to-cluster', m.host.cluster]
    assert.equal((await runCli(back, {env: admin})).code, 0)
    assert.equal((await json('status', 'leave'))['generation'], 1)
    assert.deepEqual(await m.host`select count(*)::int as n from leave.chat`, [{n: 2}])
  })

  test('--drop-schema needs the admin, and leaves nothing but the audit log', async () => {
    await synced('gone')
    assert.equal((await errorOf('deregister', 'gone', '--drop-schema', '--yes')).code, 'SYNC_USAGE')
    const env = {...m.env, ADMIN_DATABASE_URL: urlOf(m.admin.endpoint)}
    const drop = ['client', 'deregister', 'gone', '--drop-schema', '--yes', '--json']
    const refused = await runCli(drop, {env})
    assert.match(refused.out, /SYNC_STILL_SYNCED/)
    const {code, json: dropped} = await runCli([...drop, '--force'], {env})
    assert.equal(code, 0)
    assert.deepEqual(dropped(), {client: 'gone', schema: 'gone', detached: true, dropped: true})
    assert.deepEqual(await m.admin`select 1 from pg_namespace where nspname = 'gone'`, [])
    assert.deepEqual(
      await m.admin`select 1 from sync_metadata.client_deployments where client_name = 'gone'`,
      [],
    )
    assert.equal((await audited('gone')).at(-1), 'client.dropped')
    // The name is free again.
    const file = m.source('gone', () => undefined)
    assert.equal((await json('register', 'gone', '--sqlite', file))['new'], true)
  })

  test('does not take another cluster’s client for its own', async () => {
    await synced('theirs')
    const env = {
      ADMIN_DATABASE_URL: urlOf(m.admin.endpoint),
      CLUSTER_NAME: 'elsewhere',
      STATE_DIR: m.env['STATE_DIR']!,
    }
    const {code, out} = await runCli(
      ['client', 'deregister', 'theirs', '--drop-schema', '--force', '--yes', '--json'],
      {env},
    )
    assert.equal(code, 64)
    assert.match(out, /belongs to cluster/)
  })

  test('what is in flight when a client is given up cannot be committed', async () => {
    await synced('inflight')
    await json('pause', 'inflight')
    const [row] = await m.host<{id: string}>`
      select deployment_id as id from sync_metadata.client_deployments where client_name = 'inflight'`
    const late = m.host.begin(async tx => {
      await tx`update inflight.chat set title = 'late'`
      await json('deregister', 'inflight', '--yes')
      await tx`select sync_metadata.advance_generation(${row!.id}, 1, gen_random_uuid(), 1)`
    })
    await assert.rejects(late, {code: 'SYNC_NOT_YOURS'})
  })
})

test('no command about a client has an answer for one that is not there', async () => {
  for (const words of [
    ['status', 'nobody'],
    ['start', 'nobody'],
    ['pause', 'nobody'],
    ['interval', 'nobody', '5m'],
    ['history', 'nobody'],
    ['confirm', 'nobody', '--yes'],
    ['purge', 'nobody', 'chat', 'a', '--yes'],
    ['deregister', 'nobody', '--yes'],
  ])
    assert.equal((await errorOf(...words)).code, 'SYNC_UNKNOWN_CLIENT', words.join(' '))
})

test('what is printed for a person fits a terminal of 80 columns', async () => {
  await synced('chat.a-rather-long.example.com')
  for (const words of [
    ['list'],
    ['status', 'chat.a-rather-long.example.com', '--count'],
    ['history', 'chat.a-rather-long.example.com'],
  ]) {
    const {out} = await client(...words)
    const wide = out
      .split('\n')
      .filter(line => line.length > 80 && !line.includes('SYNC_') && !line.includes('/'))
    assert.deepEqual(wide, [], words.join(' '))
  }
})
