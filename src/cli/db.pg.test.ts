import assert from 'node:assert/strict'
import {randomBytes} from 'node:crypto'
import {describe, test} from 'vitest'
import {runCli} from '../../test/cli.ts'
import {emptyDatabase, testDatabase, type TestDatabase} from '../../test/database.ts'
import {parseEndpoint, urlOf} from '../net/endpoint.ts'
import {connect} from '../postgres/connect.ts'

test('db migrate creates the control schema, and again changes nothing', async () => {
  await using database = await emptyDatabase()
  const first = (await db(database, 'migrate')).json() as {applied: string[]; version: number}
  assert.ok(first.applied.length > 0 && first.applied.length === first.version)
  const second = await db(database, 'migrate')
  assert.equal(second.code, 0)
  assert.deepEqual(second.json(), {version: first.version, applied: []})
})

test('before db migrate, every other command says to run it', async () => {
  await using database = await emptyDatabase()
  const {code, json} = await db(database, 'status')
  assert.equal(code, 1)
  assert.equal((json() as {error: {code: string}}).error.code, 'SYNC_SCHEMA_MISSING')
})

describe('db grant-host', () => {
  test('prints a login once, which is no admin’s', async () => {
    await using database = await testDatabase()
    const cluster = newCluster()
    const {url, role} = (await db(database, 'grant-host', '--cluster', cluster)).json() as {
      url: string
      role: string
    }
    await using pool = connect(parseEndpoint(url), {max: 1, applicationName: 'owsync-test'})
    const [row] = await pool<{me: string; is_super: boolean}>`
      select session_user::text as me, rolsuper as is_super from pg_roles where rolname = session_user`
    assert.deepEqual(row, {me: role, is_super: false})
  })

  test('refuses a cluster that has a login, and says how to get another', async () => {
    await using database = await testDatabase()
    const cluster = newCluster()
    await db(database, 'grant-host', '--cluster', cluster)
    const {code, json} = await db(database, 'grant-host', '--cluster', cluster)
    assert.equal(code, 1)
    const {error} = json() as {error: {code: string; next: string}}
    assert.equal(error.code, 'SYNC_HOST_EXISTS')
    assert.match(error.next, /rotate-password/)
  })
})

test('db rotate-password gives a second login while the first still works', async () => {
  await using database = await testDatabase()
  const cluster = newCluster()
  const first = (await db(database, 'grant-host', '--cluster', cluster)).json() as {url: string}
  const second = (await db(database, 'rotate-password', '--cluster', cluster)).json() as {url: string}
  assert.notEqual(first.url, second.url)
  for (const {url} of [first, second]) {
    const {code} = await runCli(['db', 'status', '--json'], {env: {DATABASE_URL: url}})
    assert.equal(code, 0)
  }
})

test('db status shows hosts to the admin, and to a host what it may see', async () => {
  await using database = await testDatabase()
  const [cluster, other] = [newCluster(), newCluster()]
  const {url} = (await db(database, 'grant-host', '--cluster', cluster)).json() as {url: string}
  await db(database, 'grant-host', '--cluster', other, '--hostname', 'h2')
  type Status = {hosts: {cluster_name: string; hostname: string}[]; schema_version: number}

  const all = (await db(database, 'status')).json() as Status
  assert.deepEqual(all.hosts.map(({hostname}) => hostname).toSorted(), [cluster, 'h2'].toSorted())

  const own = (await runCli(['db', 'status', '--json'], {env: {DATABASE_URL: url}})).json() as Status
  assert.deepEqual(
    own.hosts.map(({cluster_name}) => cluster_name),
    [cluster],
  )
})

test('db url prints the URL that is in use', async () => {
  await using database = await testDatabase()
  const {url} = (await db(database, 'grant-host', '--cluster', newCluster())).json() as {url: string}
  const env = {ADMIN_DATABASE_URL: urlOf(database.endpoint), DATABASE_URL: url}
  assert.equal((await runCli(['db', 'url'], {env})).out, `${url}\n`)
  assert.equal((await runCli(['db', 'url', '--admin'], {env})).out, `${urlOf(database.endpoint)}\n`)
})

describe('what cannot be done is exit 64', () => {
  for (const [what, args, code] of [
    ['an unknown client', ['transfer', '--client', 'nobody', '--to-cluster', 'c'], 'SYNC_USAGE'],
    [
      'a name that is none',
      ['grant-access', '--client', 'A B', '--role', 'r', '--mode', 'read'],
      'SYNC_USAGE',
    ],
    ['an unknown cluster', ['rotate-password', '--cluster', 'nowhere'], 'SYNC_USAGE'],
    ['a time that is none', ['rotate-password', '--cluster', 'c', '--grace', 'soon'], 'SYNC_USAGE'],
  ] as const) {
    test(what, async () => {
      await using database = await testDatabase()
      const result = await db(database, ...args)
      assert.equal(result.code, 64, result.out)
      assert.equal((result.json() as {error: {code: string}}).error.code, code)
    })
  }

  test('what needs the admin, with a host’s URL alone', async () => {
    await using database = await testDatabase()
    const {url} = (await db(database, 'grant-host', '--cluster', newCluster())).json() as {url: string}
    const {code, err} = await runCli(['db', 'grant-host', '--cluster', 'x'], {env: {DATABASE_URL: url}})
    assert.equal(code, 64)
    assert.match(err, /ADMIN_DATABASE_URL is not set/)
  })
})

/** Roles belong to the whole server, so each test's hosts have names of their own. */
function newCluster(): string {
  return `c-${randomBytes(4).toString('hex')}`
}

function db(database: TestDatabase, ...args: string[]) {
  return runCli(['db', ...args, '--json'], {env: {ADMIN_DATABASE_URL: urlOf(database.endpoint)}})
}
