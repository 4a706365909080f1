import assert from 'node:assert/strict'
import {appendFile, cp, mkdtemp, readdir, rm, writeFile} from 'node:fs/promises'
import {tmpdir} from 'node:os'
import {join} from 'node:path'
import {describe, test} from 'vitest'
import {adminEndpoint, emptyDatabase, testDatabase} from '../../test/database.ts'
import {evolve, testClient, testHost} from '../../test/host.ts'
import {supabaseServer} from '../../test/supabase.ts'
import {withChanges, type Endpoint} from '../net/endpoint.ts'
import {grantHost, removeHost, rotatePassword, transferClient} from './admin.ts'
import {connect} from './connect.ts'
import {
  migrate,
  MigrationEditedError,
  MigrationFailedError,
  NotUtf8Error,
  requireSchema,
  SchemaMissingError,
  SchemaNewerError,
  SchemaOutdatedError,
  schemaVersion,
} from './migrate.ts'

const applicationName = 'owsync-test'
const own = new URL('../../sql', import.meta.url)

describe('migrating', () => {
  test('applies every file once, in order', async () => {
    await using db = await emptyDatabase()
    await assert.rejects(schemaVersion(db), SchemaMissingError)
    const first = await migrate(db)
    assert.deepEqual(first.applied, [...first.applied].sort())
    assert.equal(first.applied[0], '0001_roles_and_tables.sql')
    assert.deepEqual(await migrate(db), {applied: [], version: first.version})
    assert.equal(await schemaVersion(db), first.version)
    assert.equal(await requireSchema(db), first.version)
  })

  test('eight at once apply them once', async () => {
    await using db = await emptyDatabase()
    const runs = await Promise.all(Array.from({length: 8}, () => migrate(db)))
    assert.equal(runs.filter(({applied}) => applied.length > 0).length, 1)
    assert.equal(new Set(runs.map(({version}) => version)).size, 1)
  })

  test('in two databases of one server at once, which share its roles, works', async () => {
    await using one = await emptyDatabase()
    await using two = await emptyDatabase()
    await Promise.all([migrate(one), migrate(two)])
    assert.equal(await schemaVersion(one), await schemaVersion(two))
  })

  test('refuses a file that was edited, or is gone, after it was applied', async () => {
    await using db = await testDatabase()
    await using folder = await copyOfSql()
    await appendFile(join(folder.path, '0002_leases.sql'), '\n-- edited\n')
    await assert.rejects(migrate(db, {sqlFolder: folder.path}), MigrationEditedError)
    await cp(own, folder.path, {recursive: true})
    await rm(join(folder.path, '0002_leases.sql'))
    await writeFile(join(folder.path, '0002_other.sql'), 'select 1')
    await assert.rejects(migrate(db, {sqlFolder: folder.path}), MigrationEditedError)
  })

  test('that fails changes nothing, and says in which file', async () => {
    await using db = await testDatabase()
    await using folder = await copyOfSql()
    const next = await version(db)
    await writeFile(join(folder.path, nameOf(next + 1, 'good')), 'create table sync_metadata.good ()')
    await writeFile(join(folder.path, nameOf(next + 2, 'bad')), 'create table nonsense')
    await assert.rejects(
      migrate(db, {sqlFolder: folder.path}),
      (error: unknown) => error instanceof MigrationFailedError && error.file === nameOf(next + 2, 'bad'),
    )
    assert.deepEqual(await db`select to_regclass('sync_metadata.good') as good`, [{good: null}])
    assert.equal(await version(db), next)
  })

  test('gives the owner a part in roles that were made before, so that a takeover can end their sessions', async () => {
    await using db = await emptyDatabase()
    await using folder = await copyOfSql()
    for (const name of await readdir(folder.path)) if (name >= '0015') await rm(join(folder.path, name))
    await migrate(db, {sqlFolder: folder.path})
    await using host = await testHost(db)
    const isMember = async () =>
      (await db<{is: boolean}>`select pg_has_role('sync_owner', ${host.role}, 'usage') as is`)[0]?.is
    assert.equal(await isMember(), false)
    await migrate(db)
    assert.equal(await isMember(), true)
  })

  test('is refused where text is not UTF-8', async () => {
    await using other = await latin1Database()
    await assert.rejects(migrate(other.pool), NotUtf8Error)
  })
})

describe('a node and a schema fit together', () => {
  test('when the schema is its own version or the next', async () => {
    await using db = await testDatabase()
    await using folder = await copyOfSql()
    const known = await version(db)
    await writeFile(join(folder.path, nameOf(known + 1, 'next')), 'select 1')
    await migrate(db, {sqlFolder: folder.path})
    assert.equal(await requireSchema(db), known + 1)
    await assert.rejects(migrate(db), SchemaNewerError)
    await writeFile(join(folder.path, nameOf(known + 2, 'after')), 'select 1')
    await migrate(db, {sqlFolder: folder.path})
    await assert.rejects(requireSchema(db), SchemaNewerError)
    await writeFile(join(folder.path, nameOf(known + 3, 'latest')), 'select 1')
    await assert.rejects(requireSchema(db, {sqlFolder: folder.path}), SchemaOutdatedError)
  })

  test('as a host role sees it, with a schema and without', async () => {
    await using db = await testDatabase()
    await using host = await testHost(db)
    assert.equal(await requireSchema(host), await version(db))
    await using empty = await emptyDatabase()
    await using lost = connect(withChanges(host.endpoint, {database: empty.endpoint.database}), {
      applicationName,
    })
    await assert.rejects(requireSchema(lost), SchemaMissingError)
  })
})

test('on Supabase, as its postgres that is no superuser, everything works that an admin does', async () => {
  await using supabase = await supabaseServer()
  await using admin = connect(supabase.admin, {applicationName})
  assert.deepEqual(await admin`select rolsuper from pg_roles where rolname = current_user`, [
    {rolsuper: false},
  ])

  // Another database of the same server makes the same roles at the same time.
  await admin`create database beside`
  await using beside = connect(withChanges(supabase.admin, {database: 'beside'}), {applicationName})
  const runs = await Promise.all([migrate(beside), ...Array.from({length: 8}, () => migrate(admin))])
  assert.equal(runs.filter(({applied}) => applied.length > 0).length, 2)
  await migrate(admin)

  const login = await grantHost(admin, supabase.admin, {cluster: 'host-a', hostname: 'a'})
  await using host = connect(login.endpoint, {applicationName})
  const id = await testClient(host)
  await evolve(
    host,
    id,
    {op: 'create_table', table: 't', columns: [{name: 'id', type: 'text'}]},
    {op: 'finish_table', table: 't'},
  )
  await host`insert into acme.t (id, _sync_key) values ('1', '1')`
  await host`select * from sync_metadata.acquire_lease('host-a-node-a', 60000)`
  await host`select sync_metadata.advance_generation(${id}, 0, gen_random_uuid(), 1)`
  await assert.rejects(async () => host`delete from acme.t`, {code: 'SYNC_PERMISSION'})

  const next = await rotatePassword(admin, supabase.admin, {cluster: 'host-a', graceMs: 0})
  const {dropped} = await rotatePassword(admin, supabase.admin, {cluster: 'host-a', graceMs: 0})
  assert.deepEqual(dropped, [login.role])
  assert.deepEqual(await admin`select 1 from pg_roles where rolname = ${login.role}`, [])
  assert.notEqual(next.role, login.role)

  const other = await grantHost(admin, supabase.admin, {cluster: 'host-b', hostname: 'b'})
  await transferClient(admin, {client: 'acme', toCluster: 'host-b'})
  await using second = connect(other.endpoint, {applicationName})
  assert.deepEqual(await second`select id from acme.live_t`, [{id: '1'}])
  await removeHost(admin, {cluster: 'host-a'})

  await assertPrivate(supabase.superuser)
})

/** The API's roles reach nothing, and nothing lies where Supabase opens whatever appears. */
async function assertPrivate(superuser: Endpoint): Promise<void> {
  await using pool = connect(superuser, {applicationName})
  const reachable = await pool`
    select r.role, n.nspname
    from unnest(array['anon', 'authenticated', 'service_role', 'public']) r (role),
      pg_namespace n
    where n.nspname in ('sync_metadata', 'acme') and has_schema_privilege(r.role, n.oid, 'usage, create')
    union all
    select r.role, p.proname
    from unnest(array['anon', 'authenticated', 'service_role', 'public']) r (role), pg_proc p
    where p.pronamespace = 'sync_metadata'::regnamespace and has_function_privilege(r.role, p.oid, 'execute')
    union all
    select r.role, c.relname
    from unnest(array['anon', 'authenticated', 'service_role', 'public']) r (role), pg_class c
    where c.relnamespace in ('sync_metadata'::regnamespace, 'acme'::regnamespace) and c.relkind in ('r', 'v')
      and has_any_column_privilege(r.role, c.oid, 'select, insert, update, references')
    union all
    select 'public', relname from pg_class where relnamespace = 'public'::regnamespace`
  assert.deepEqual(reachable, [])
}

async function version(db: Parameters<typeof schemaVersion>[0]): Promise<number> {
  return schemaVersion(db)
}

function nameOf(number: number, name: string): string {
  return `${String(number).padStart(4, '0')}_${name}.sql`
}

async function copyOfSql(): Promise<AsyncDisposable & {readonly path: string}> {
  const path = await mkdtemp(join(tmpdir(), 'owsync-sql-'))
  await cp(own, path, {recursive: true})
  return {path, [Symbol.asyncDispose]: () => rm(path, {recursive: true, force: true})}
}

async function latin1Database() {
  const name = `latin1_${Math.random().toString(36).slice(2, 10)}`
  const server = connect(adminEndpoint(), {max: 1, applicationName})
  await server`create database ${server(name)} template template0 encoding 'LATIN1'`
  const pool = connect(adminEndpoint(name), {max: 1, applicationName})
  return {
    pool,
    async [Symbol.asyncDispose]() {
      await pool.end()
      await server`drop database ${server(name)} with (force)`
      await server.end()
    },
  }
}
