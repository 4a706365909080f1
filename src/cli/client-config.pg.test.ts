import assert from 'node:assert/strict'
import {readFile, stat, writeFile} from 'node:fs/promises'
import {join} from 'node:path'
import {test} from 'vitest'
import {runCli} from '../../test/cli.ts'
import {syncedHost, type SyncedHost} from '../../test/synced-host.ts'

type Entry = Record<string, unknown> & {client: string}
type File = {format: string; version: number; clients: Entry[]}

async function config(m: SyncedHost, ...more: string[]) {
  return await runCli(['client', 'config', ...more, '--json'], {env: m.env})
}

test('what was exported is imported on a host that has nothing, and again changes nothing', async () => {
  await using from = await syncedHost()
  const source = from.source('acme', db => {
    db.exec('create table chat (id text primary key)')
  })
  const client = (...words: string[]) => runCli(['client', ...words], {env: from.env})
  await client('register', 'acme', '--sqlite', source, '--interval', 'daily', '--container', 'openwebui-acme')
  await client('register', 'chat.beta.com', '--sqlite', source, '--paused')
  await from.host`update sync_metadata.client_deployments set config = '{"webhook": "https://x.example"}'
    where client_name = 'acme'`
  const file = join(from.folder, 'clients.json')
  assert.deepEqual((await config(from, 'export', file)).json(), {file, count: 2})
  assert.equal((await stat(file)).mode & 0o777, 0o600)
  const exported = JSON.parse(await readFile(file, 'utf8')) as File
  assert.deepEqual(exported.clients[0], {
    client: 'acme',
    sqlite_path: source,
    container_name: 'openwebui-acme',
    fqdn: null,
    port: null,
    direction: 'one_way',
    enabled: true,
    interval: null,
    schedule: 'daily',
    config: {webhook: 'https://x.example'},
  })

  await using to = await syncedHost()
  const dry = (await config(to, 'import', file, '--dry-run')).json() as {clients: Entry[]}
  assert.deepEqual(
    dry.clients.map(({client, what}) => [client, what]),
    [
      ['acme', 'registered'],
      ['chat.beta.com', 'registered'],
    ],
  )
  assert.deepEqual(await to.host`select 1 from sync_metadata.client_deployments`, [])
  assert.equal((await config(to, 'import', file)).code, 0)
  const {clients} = (await config(to, 'export')).json() as File
  assert.deepEqual(clients, exported.clients)
  const again = (await config(to, 'import', file)).json() as {clients: Entry[]}
  assert.deepEqual(
    again.clients.map(({what}) => what),
    ['unchanged', 'unchanged'],
  )
  assert.deepEqual(
    await to.host`select client_name from sync_metadata.audit_log where action = 'client.imported' order by 1`,
    [{client_name: 'acme'}, {client_name: 'chat.beta.com'}],
  )
})

test('an import changes what differs, names it, and leaves other clients alone', async () => {
  await using m = await syncedHost()
  const source = m.source('acme', db => {
    db.exec('create table chat (id text primary key)')
  })
  for (const name of ['acme', 'other'])
    await runCli(['client', 'register', name, '--sqlite', source, '--interval', '5m'], {env: m.env})
  await m.host`update sync_metadata.client_deployments set config = '{"a": 1, "b": 2}' where client_name = 'acme'`
  const file = join(m.folder, 'clients.json')
  const entry = {client: 'acme', schedule: 'live', config: {a: 1}, sqlite_path: '/not/here.db'}
  await writeFile(file, JSON.stringify({format: 'owsync-clients', version: 1, clients: [entry]}))
  const {err, json} = await config(m, 'import', file)
  assert.match(err, /the file of acme is not here/)
  assert.deepEqual(json(), {
    clients: [
      {
        client: 'acme',
        what: 'changed',
        changes: ['sqlite_path', 'schedule', 'config', 'interval'],
        file_missing: true,
      },
    ],
    count: 1,
    dry_run: false,
  })
  assert.deepEqual(
    await m.host`select client_name, sync_interval, sync_schedule, config from sync_metadata.client_deployments order by 1`,
    [
      {client_name: 'acme', sync_interval: null, sync_schedule: 'live', config: {a: 1}},
      {client_name: 'other', sync_interval: 300, sync_schedule: null, config: {}},
    ],
  )
})

test('an import does not switch a client that has been synced to two_way: nobody was told what that writes', async () => {
  await using m = await syncedHost()
  const source = m.source('acme', db => {
    db.exec('create table chat (id text primary key)')
  })
  await m.sync('acme', source)
  const file = join(m.folder, 'clients.json')
  const directions = async () =>
    await m.host`select client_name as name, direction from sync_metadata.client_deployments order by 1`
  const importing = async (...clients: object[]) => {
    await writeFile(file, JSON.stringify({format: 'owsync-clients', version: 1, clients}))
    return await config(m, 'import', file)
  }
  const acme = {client: 'acme', direction: 'two_way'}
  const refused = await importing({client: 'new', direction: 'two_way'}, acme)
  assert.equal(refused.code, 1)
  assert.match(refused.out, /owsync client direction acme two_way/)
  assert.deepEqual(await directions(), [{name: 'acme', direction: 'one_way'}])
  // Of a client that is new nothing is in Postgres that could be written.
  assert.equal((await importing({client: 'new', direction: 'two_way'})).code, 0)
  const [audited] = await m.host<{details: object}>`
    select details from sync_metadata.audit_log where action = 'client.imported'`
  assert.deepEqual(audited?.details, {what: 'registered', changes: [], direction: 'two_way'})
  await m.host`update sync_metadata.client_deployments set direction = 'two_way' where client_name = 'acme'`
  assert.equal((await importing(acme)).code, 0)
  assert.equal((await importing({client: 'acme', direction: 'one_way'})).code, 0)
  assert.deepEqual(await directions(), [
    {name: 'acme', direction: 'one_way'},
    {name: 'new', direction: 'two_way'},
  ])
})

test('a file that cannot be is refused as a whole, with everything that is wrong', async () => {
  await using m = await syncedHost()
  const file = join(m.folder, 'clients.json')
  const good = {client: 'good', sqlite_path: null}
  for (const [what, clients, expected] of [
    ['a name', [good, {client: 'No Name'}], /clients\.1 \(No Name\)/],
    ['a name twice', [{client: 'a.b'}, {client: 'a-b'}], /clients\.1 \(a-b\): is in it twice, as a\.b too/],
    ['an unknown key', [good, {client: 'x1', colour: 'red'}], /clients\.1: .*colour/],
    ['a schedule', [good, {client: 'x1', schedule: 'often'}], /"often" says not when/],
    ['two times', [good, {client: 'x1', schedule: 'live', interval: 60}], /an interval and a schedule/],
    [
      'rules',
      [good, {client: 'x1', config: {conflict_resolution: {default_strategy: 'sideways'}}}],
      /clients\.1 \(x1\): .*default_strategy.*sideways/,
    ],
    ['a short interval', [good, {client: 'x1', interval: 5}], /clients\.1\.interval/],
  ] as const) {
    await writeFile(file, JSON.stringify({format: 'owsync-clients', version: 1, clients}))
    const {code, json} = await config(m, 'import', file)
    const {error} = json() as {error: {code: string; message: string}}
    assert.deepEqual([code, error.code], [1, 'SYNC_CLIENT_CONFIG'], what)
    assert.match(error.message, expected, what)
  }
  await writeFile(file, 'clients: none')
  assert.match((await config(m, 'import', file)).out, /it is not JSON/)
  assert.equal((await config(m, 'import', join(m.folder, 'missing.json'))).code, 64)
  assert.equal((await config(m, 'import')).code, 64)
  assert.deepEqual(await m.host`select 1 from sync_metadata.client_deployments`, [])
})

test('an import that fails half-way leaves nothing', async () => {
  await using m = await syncedHost()
  const file = join(m.folder, 'clients.json')
  // Names of roles are not known beforehand: a schema called like one is refused by the database.
  const clients = [{client: 'first'}, {client: m.host.role}]
  await writeFile(file, JSON.stringify({format: 'owsync-clients', version: 1, clients}))
  const {code, out} = await config(m, 'import', file)
  assert.equal(code, 1)
  assert.match(out, /SYNC_NAME_REFUSED/)
  assert.deepEqual(await m.host`select 1 from sync_metadata.client_deployments`, [])
})
