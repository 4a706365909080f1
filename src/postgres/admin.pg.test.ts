import assert from 'node:assert/strict'
import {randomBytes} from 'node:crypto'
import {describe, test} from 'vitest'
import {testDatabase, type TestDatabase} from '../../test/database.ts'
import {evolve, testClient, testHost} from '../../test/host.ts'
import {waitsForLock} from '../../test/waits-for-lock.ts'
import {UsageError} from '../core/errors.ts'
import {parseEndpoint, withChanges} from '../net/endpoint.ts'
import {
  dbStatus,
  grantAccess,
  grantHost,
  HostExistsError,
  removeHost,
  revokeAccess,
  rotatePassword,
  transferClient,
  type Rotation,
} from './admin.ts'
import {connect} from './connect.ts'
import {FencedOutError, NameRefusedError, NameTakenError, NotYoursError} from './refusals.ts'
import {generatePassword, scramVerifier} from './scram.ts'
import {raw, type Pool, type Tx} from './sql.ts'

const table = {op: 'create_table', table: 't', columns: [{name: 'id', type: 'text'}]}
const finish = {op: 'finish_table', table: 't'}

describe('granting a host', () => {
  test('prints a URL that works, for a role that says nothing, with guard-rails', async () => {
    await using db = await testDatabase()
    const login = await grantHost(db, db.endpoint, {cluster: 'prod-1', hostname: 'prod-1.example'})
    assert.match(login.role, /^sync_host_[0-9a-f]{12}$/)
    await using host = connect(parseEndpoint(login.url), {applicationName: 'owsync-test'})
    const [limits] = await host`
      select session_user::text as me, sync_metadata.my_cluster() as cluster, rolconnlimit as connections, rolsuper, rolbypassrls,
        rolcreaterole, rolcreatedb, current_setting('idle_in_transaction_session_timeout') as idle,
        current_setting('lock_timeout') as lock, current_setting('statement_timeout') as statement
      from pg_roles where rolname = current_user`
    assert.deepEqual(limits, {
      me: login.role,
      cluster: 'prod-1',
      connections: 24,
      rolsuper: false,
      rolbypassrls: false,
      rolcreaterole: false,
      rolcreatedb: false,
      idle: '5s',
      lock: '10s',
      statement: '2min',
    })
  })

  test('stores a SCRAM verifier; the password is in no statement', async () => {
    await using db = await testDatabase()
    const password = generatePassword()
    const role = `plain_${randomBytes(6).toString('hex')}`
    await db`create role ${db(role)} login password ${raw(`'${scramVerifier(password)}'`)}`
    await using pool = connect(withChanges(db.endpoint, {user: role, password}), {
      applicationName: 'owsync-test',
    })
    await pool`select 1`
    await using wrong = connect(withChanges(db.endpoint, {user: role, password: `${password}x`}), {
      applicationName: 'owsync-test',
    })
    await assert.rejects(async () => wrong`select 1`, {code: 'SYNC_WRONG_PASSWORD'})
    const [stored] = await db<{
      hash: string
    }>`select rolpassword as hash from pg_authid where rolname = ${role}`
    assert.match(stored!.hash, /^SCRAM-SHA-256\$4096:/)
  })

  test('is for one cluster once', async () => {
    await using db = await testDatabase()
    await using host = await testHost(db, 'host-a')
    await assert.rejects(
      grantHost(db, db.endpoint, {cluster: host.cluster, hostname: 'again'}),
      (error: unknown) => error instanceof HostExistsError && error.next.includes('rotate-password'),
    )
    await assert.rejects(grantHost(db, db.endpoint, {cluster: "a'; drop", hostname: 'x'}), NameRefusedError)
    assert.equal((await dbStatus(db)).hosts.length, 1)
  })

  test('behind a pooler names the project too', async () => {
    await using db = await testDatabase()
    const pooled = withChanges(db.endpoint, {user: 'postgres.abcdef', host: 'aws-1-eu.pooler.supabase.com'})
    const {role, endpoint} = await grantHost(db, pooled, {cluster: 'host-a', hostname: 'x'})
    assert.equal(endpoint.user, `${role}.abcdef`)
  })

  test('is not for hosts', async () => {
    await using db = await testDatabase()
    await using host = await testHost(db)
    await assert.rejects(grantHost(host, host.endpoint, {cluster: 'evil', hostname: 'x'}), {
      code: 'SYNC_PERMISSION',
    })
    await assert.rejects(transferClient(host, {client: 'acme', toCluster: 'host-a'}), {
      code: 'SYNC_PERMISSION',
    })
    await assert.rejects(grantAccess(host, {client: 'acme', role: host.role, mode: 'edit'}), {
      code: 'SYNC_PERMISSION',
    })
    await assert.rejects(rotatePassword(host, host.endpoint, {cluster: 'host-a', graceMs: 0}), {
      code: 'SYNC_PERMISSION',
    })
  })
})

describe('rotating a password', () => {
  test('gives a second login with the same rights, old tables and new; the first ends when its grace is over', async () => {
    await using db = await testDatabase()
    await using old = await testHost(db)
    const id = await testClient(old)
    await evolve(old, id, table, finish)

    const rotation = await rotatePassword(db, db.endpoint, {cluster: old.cluster, graceMs: 60_000})
    assert.deepEqual(rotation.dropped, [])
    assert.ok(rotation.oldValidUntil.getTime() > Date.now() + 30_000)
    await using fresh = connect(rotation.endpoint, {applicationName: 'owsync-test'})
    await fresh`insert into acme.t (_sync_key) values ('fresh')`
    await evolve(fresh, id, {...table, table: 'u'})
    for (const host of [old, fresh]) {
      await host`update acme.t set id = 'x'`
      await host`insert into acme.u (_sync_key) values (gen_random_uuid()::text)`
      assert.equal((await host`select 1 from sync_metadata.client_deployments`).length, 1)
    }

    await db`update sync_metadata.host_roles set valid_until = now() - interval '1 second' where db_role = ${old.role}`
    const next = await rotatePassword(db, db.endpoint, {cluster: old.cluster, graceMs: 60_000})
    assert.deepEqual(next.dropped, [old.role])
    assert.deepEqual(await db`select 1 from pg_roles where rolname = ${old.role}`, [])
    await assert.rejects(async () => old`select 1`)
    await fresh`select * from acme.live_t`
  })

  test('ends the old login itself at that time', async () => {
    await using db = await testDatabase()
    await using old = await testHost(db)
    await rotatePassword(db, db.endpoint, {cluster: old.cluster, graceMs: 0})
    await assert.rejects(async () => old`select 1`, {code: 'SYNC_WRONG_PASSWORD'})
  })

  test('waits for clients and tables that are being made, so that none is left out', async () => {
    await using db = await testDatabase()
    await using old = await testHost(db)
    const id = await testClient(old)
    for (const make of [
      (tx: Tx) => tx`select sync_metadata.evolve_schema(${id}, ${JSON.stringify([table])})`,
      (tx: Tx) => tx`select sync_metadata.register_deployment('beta')`,
    ]) {
      let rotating: Promise<Rotation> | undefined
      await old.begin(async tx => {
        await make(tx)
        rotating = rotatePassword(db, db.endpoint, {cluster: old.cluster, graceMs: 600_000})
        await waitsForLock(db)
      })
      await using fresh = connect((await rotating)!.endpoint, {applicationName: 'owsync-test'})
      await fresh`insert into acme.t (_sync_key) values (gen_random_uuid()::text)`
      const schemas = await fresh<{usable: boolean}>`
        select has_schema_privilege(schema_name, 'usage') as usable from sync_metadata.client_deployments`
      assert.ok(schemas.every(({usable}) => usable))
    }
  })

  test('a role that holds something elsewhere stays, and cannot log in', async () => {
    await using db = await testDatabase()
    await using old = await testHost(db)
    await old`select lo_create(0)`
    await old.end()
    await rotatePassword(db, db.endpoint, {cluster: old.cluster, graceMs: 0})
    const {dropped} = await rotatePassword(db, db.endpoint, {cluster: old.cluster, graceMs: 0})
    assert.deepEqual(dropped, [old.role])
    assert.deepEqual(await db`select rolcanlogin from pg_roles where rolname = ${old.role}`, [
      {rolcanlogin: false},
    ])
  })

  test('of a cluster that does not exist is a mistake', async () => {
    await using db = await testDatabase()
    await assert.rejects(rotatePassword(db, db.endpoint, {cluster: 'nope', graceMs: 0}), UsageError)
    assert.deepEqual((await dbStatus(db)).hosts, [])
  })
})

describe('access to a client', () => {
  test('to read: its tables and views, those to come too, and nothing else', async () => {
    await using client = await setup()
    const {db, host, id} = client
    await using analyst = await login(db)
    await grantAccess(db, {client: 'acme', role: analyst.role, mode: 'read'})
    await evolve(host, id, {...table, table: 'u'}, {...finish, table: 'u'})
    for (const name of ['t', 'live_t', 'u', 'live_u']) await analyst`select * from ${analyst('acme', name)}`
    await assert.rejects(async () => analyst`update acme.t set id = 'x'`, {code: 'SYNC_PERMISSION'})
    await assert.rejects(async () => analyst`select 1 from sync_metadata.hosts`, {code: 'SYNC_PERMISSION'})
    await revokeAccess(db, {client: 'acme', role: analyst.role})
    await revokeAccess(db, {client: 'acme', role: analyst.role})
    await assert.rejects(async () => analyst`select * from acme.t`, {code: 'SYNC_PERMISSION'})
    await evolve(host, id, {...table, table: 'v'})
    await assert.rejects(async () => analyst`select * from acme.v`, {code: 'SYNC_PERMISSION'})
  })

  test('to edit: rows, but not the schema; less when it becomes to read', async () => {
    await using client = await setup()
    await using editor = await login(client.db)
    await grantAccess(client.db, {client: 'acme', role: editor.role, mode: 'edit'})
    await client.host`insert into acme.t (_sync_key) values ('x')`
    await editor`update acme.t set id = 'y'`
    await editor`delete from acme.t`
    const [row] = await editor<{gone: boolean}>`select _sync_deleted_at is not null as gone from acme.t`
    assert.equal(row!.gone, true)
    await assert.rejects(async () => editor`truncate acme.t`, {code: 'SYNC_PERMISSION'})
    await assert.rejects(async () => editor`create table acme.x ()`, {code: 'SYNC_PERMISSION'})
    await grantAccess(client.db, {client: 'acme', role: editor.role, mode: 'read'})
    await assert.rejects(async () => editor`update acme.t set id = 'z'`, {code: 'SYNC_PERMISSION'})
    await editor`select * from acme.live_t`
  })

  test('is not for roles that stand for many, for hosts, or for what is not there', async () => {
    await using client = await setup()
    const {db, host} = client
    for (const role of [
      'sync_service',
      'sync_viewer',
      'sync_owner',
      'public',
      'pg_read_all_data',
      host.role,
      'nobody-here',
      'a"b',
    ]) {
      await assert.rejects(grantAccess(db, {client: 'acme', role, mode: 'read'}), NameRefusedError, role)
    }
    const {role} = host
    await assert.rejects(grantAccess(db, {client: 'nope', role, mode: 'read'}), UsageError)
    await assert.rejects(grantAccess(db, {client: 'acme', role, mode: 'own' as 'edit'}), UsageError)
  })
})

describe('transferring a client', () => {
  test('moves every right to the new host and fences the old', async () => {
    await using client = await setup()
    const {db, host, id} = client
    await using other = await testHost(db, 'host-b')
    const [lease] = await host<{
      epoch: bigint
    }>`select epoch from sync_metadata.acquire_lease('host-a-node-a', 60000)`
    await host`insert into sync_metadata.sync_jobs (deployment_id) values (${id})`

    const inFlight = host.begin(async tx => {
      await tx`update acme.t set id = 'too late'`
      await transferClient(db, {client: 'acme', toCluster: 'host-b'})
      await tx`select sync_metadata.assert_lease(${lease!.epoch})`
    })
    await assert.rejects(inFlight, FencedOutError)

    await other`update acme.t set id = 'theirs'`
    await other`select * from acme.live_t`
    await evolve(other, id, {op: 'add_column', table: 't', column: 'x', type: 'text'})
    await assert.rejects(async () => host`select * from acme.t`, {code: 'SYNC_PERMISSION'})
    await assert.rejects(evolve(host, id), NotYoursError)
    assert.deepEqual(await host`select 1 from sync_metadata.client_deployments`, [])
    assert.deepEqual(await other`select status from sync_metadata.sync_jobs`, [{status: 'cancelled'}])
    assert.equal(await testClient(other, 'acme'), id)
    await assert.rejects(testClient(host, 'acme'), NameTakenError)
    // The old host goes on with what is left to it, under the next epoch but one.
    assert.deepEqual(await host`select epoch from sync_metadata.acquire_lease('host-a-node-a', 60000)`, [
      {epoch: 3n},
    ])
  })

  test('waits for a cut that is about to commit, and does not deadlock with it', async () => {
    await using client = await setup()
    const {db, host, id} = client
    await using other = await testHost(db, 'host-b')
    await host`select sync_metadata.acquire_lease('host-a-node-a', 60000)`
    let transferring: Promise<void> | undefined
    await host.begin(async tx => {
      await tx`select sync_metadata.advance_generation(${id}, 0, gen_random_uuid(), 1)`
      transferring = transferClient(db, {client: 'acme', toCluster: 'host-b'})
      await waitsForLock(db)
    })
    await transferring
    assert.deepEqual(await other`select generation from sync_metadata.client_deployments`, [{generation: 1n}])
  })

  test('attaches a client whose host is gone', async () => {
    await using client = await setup()
    const {db, host, id} = client
    await using other = await testHost(db, 'host-b')
    await assert.rejects(removeHost(db, {cluster: 'host-a'}), {message: /acme/})
    await host`update sync_metadata.client_deployments set sync_enabled = false`
    assert.deepEqual(await removeHost(db, {cluster: 'host-a'}), [host.role])
    assert.deepEqual(await db`select 1 from pg_roles where rolname = ${host.role}`, [])
    assert.equal((await dbStatus(db)).deployments[0]!.cluster, undefined)
    await transferClient(db, {client: 'acme', toCluster: 'host-b'})
    assert.equal(await testClient(other, 'acme'), id)
  })

  test('of or to what does not exist is a mistake', async () => {
    await using client = await setup()
    await assert.rejects(transferClient(client.db, {client: 'nope', toCluster: 'host-a'}), UsageError)
    await assert.rejects(transferClient(client.db, {client: 'acme', toCluster: 'nope'}), UsageError)
  })
})

test('the status shows hosts, clients and leases', async () => {
  await using client = await setup()
  await client.host`select sync_metadata.acquire_lease('host-a-node-a', 60000)`
  const status = await dbStatus(client.db)
  assert.ok(status.sizeBytes > 0n && status.schemaVersion >= 6)
  assert.deepEqual(
    status.hosts.map(({cluster, roles, clients}) => ({cluster, roles, clients})),
    [{cluster: 'host-a', roles: [{role: client.host.role, validUntil: undefined}], clients: 1}],
  )
  assert.deepEqual(
    status.deployments.map(({client: name, schema, cluster, generation}) => ({
      name,
      schema,
      cluster,
      generation,
    })),
    [{name: 'acme', schema: 'acme', cluster: 'host-a', generation: 0n}],
  )
  assert.ok(status.deployments[0]!.sizeBytes > 0n)
  assert.deepEqual(
    status.leases.map(({leader, epoch, paused}) => ({leader, epoch, paused})),
    [{leader: 'host-a-node-a', epoch: 1n, paused: false}],
  )
})

async function setup() {
  const stack = new AsyncDisposableStack()
  const db = stack.use(await testDatabase())
  const host = stack.use(await testHost(db))
  const id = await testClient(host)
  await evolve(host, id, table, finish)
  await host`insert into acme.t (id, _sync_key) values ('1', '1')`
  return {db, host, id, [Symbol.asyncDispose]: () => stack.disposeAsync()}
}

async function login(db: TestDatabase): Promise<Pool & {readonly role: string}> {
  const role = `plain_${randomBytes(6).toString('hex')}`
  const password = generatePassword()
  await db`create role ${db(role)} login password ${raw(`'${scramVerifier(password)}'`)}`
  return Object.assign(
    connect(withChanges(db.endpoint, {user: role, password}), {applicationName: 'owsync-test'}),
    {role},
  )
}
