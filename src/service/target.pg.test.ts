import assert from 'node:assert/strict'
import {mkdtemp, readFile, rm, stat, writeFile} from 'node:fs/promises'
import {tmpdir} from 'node:os'
import {join} from 'node:path'
import {afterAll, beforeAll, describe, test} from 'vitest'
import {emptyDatabase, testDatabase} from '../../test/database.ts'
import {Secret} from '../config/secret.ts'
import {urlOf} from '../net/endpoint.ts'
import {grantHost} from '../postgres/admin.ts'
import {openAdmin, openTarget, WrongClusterError, type TargetSettings} from './target.ts'

const options = {max: 2, applicationName: 'owsync-test'}
let stateDir = ''
let settings: TargetSettings

beforeAll(async () => {
  stateDir = await mkdtemp(join(tmpdir(), 'owsync-target-'))
  settings = {
    databaseUrl: undefined,
    adminDatabaseUrl: undefined,
    dbSsl: 'verify-full',
    dbSslCaFile: undefined,
    stateDir,
    clusterName: 'host-1',
  }
})

afterAll(async () => {
  await rm(stateDir, {recursive: true, force: true})
})

describe('without a DATABASE_URL', () => {
  test('both nodes, starting at once, share one login of the embedded Postgres, which is no admin’s', async () => {
    const opened = await Promise.all([openTarget(settings, options), openTarget(settings, options)])
    await using both = new AsyncDisposableStack()
    for (const target of opened) both.use(target)
    const who = await Promise.all(opened.map(({pool}) => whoAmI(pool)))
    assert.match(who[0]!.me, /^sync_host_/)
    assert.equal(who[0]!.me, who[1]!.me)
    assert.ok(who.every(({canBypass}) => !canBypass))
    assert.ok(opened.every(({isEmbedded}) => isEmbedded))
  })

  test('the login is kept for the next time, readable by its user alone', async () => {
    const file = join(stateDir, 'logins/host-1.json')
    const before = await readFile(file, 'utf8')
    assert.equal((await stat(file)).mode & 0o777, 0o600)
    {
      await using target = await openTarget(settings, options)
      assert.equal((await whoAmI(target.pool)).me, (JSON.parse(before) as {role: string}).role)
    }
    assert.equal(await readFile(file, 'utf8'), before)
  })

  for (const [what, spoil] of [
    ['lost', (file: string) => rm(file)],
    ['cut short', (file: string) => writeFile(file, '{"role":')],
    ['of another database', (file: string) => writeFile(file, '{"role": "sync_host_x", "password": "x"}')],
  ] as const) {
    test(`a login that is ${what} is replaced`, async () => {
      await spoil(join(stateDir, 'logins/host-1.json'))
      await using target = await openTarget(settings, options)
      assert.match((await whoAmI(target.pool)).me, /^sync_host_/)
    })
  }

  test('another cluster has another login', async () => {
    await using first = await openTarget(settings, options)
    await using second = await openTarget({...settings, clusterName: 'host-2'}, options)
    assert.notEqual((await whoAmI(first.pool)).me, (await whoAmI(second.pool)).me)
  })

  test('the admin is there for who asks for it', async () => {
    await using admin = await openAdmin(settings, options)
    assert.equal((await whoAmI(admin.pool)).me, 'postgres')
  })

  test('but not as a stand-in for the database whose admin was named', async () => {
    const adminDatabaseUrl = new Secret('postgres://postgres@localhost/postgres')
    await assert.rejects(openTarget({...settings, adminDatabaseUrl}, options), {
      code: 'SYNC_USAGE',
      message: 'ADMIN_DATABASE_URL is set and DATABASE_URL is not',
    })
  })
})

describe('with a DATABASE_URL', () => {
  test('that database is used', async () => {
    await using database = await testDatabase()
    const databaseUrl = new Secret(urlOf(database.endpoint))
    await using target = await openTarget({...settings, databaseUrl}, options)
    assert.equal(target.endpoint.database, database.endpoint.database)
    assert.equal(target.isEmbedded, false)
  })

  test('a database without the control schema is refused', async () => {
    await using database = await emptyDatabase()
    const databaseUrl = new Secret(urlOf(database.endpoint))
    await assert.rejects(openTarget({...settings, databaseUrl}, options), {code: 'SYNC_SCHEMA_MISSING'})
  })

  test('its role is not taken for the admin', async () => {
    const databaseUrl = new Secret('postgres://host@localhost/postgres')
    await assert.rejects(openAdmin({...settings, databaseUrl}, options), {code: 'SYNC_USAGE'})
  })
})

async function whoAmI(sql: Awaited<ReturnType<typeof openTarget>>['pool']) {
  const [row] = await sql<{me: string; canBypass: boolean}>`
    select session_user::text as me, rolsuper or rolbypassrls or rolcreaterole as "canBypass"
    from pg_roles where rolname = session_user`
  return row!
}

describe('with the DATABASE_URL of a host', () => {
  test('the cluster is the role’s, and a setting that names another one is refused by name', async () => {
    await using database = await testDatabase()
    const login = await grantHost(database, database.endpoint, {cluster: 'theirs', hostname: 'theirs'})
    const own = {
      ...settings,
      databaseUrl: new Secret(login.url),
      clusterName: 'some-hostname',
      isClusterNamed: false,
    }
    {
      await using target = await openTarget(own, options)
      assert.equal(target.clusterName, 'theirs')
    }
    await assert.rejects(openTarget({...own, isClusterNamed: true}, options), WrongClusterError)
  })
})
