import assert from 'node:assert/strict'
import {connect} from '../src/postgres/connect.ts'
import {grantHost, type HostLogin} from '../src/postgres/admin.ts'
import type {Pool} from '../src/postgres/sql.ts'
import {testDatabase, type TestDatabase} from './database.ts'

/** A pool that is logged in as a host's own role: what a node has. */
export type TestHost = Pool & Pick<HostLogin, 'cluster' | 'role' | 'endpoint'>

/** Adds a host to the test database and logs in as it. Tests of rights that run as the superuser prove nothing. */
export async function testHost(db: TestDatabase, cluster = 'host-a', max = 4): Promise<TestHost> {
  const {role, endpoint} = await grantHost(db, db.endpoint, {cluster, hostname: `${cluster}.example`})
  return Object.assign(connect(endpoint, {max, applicationName: 'owsync-test'}), {cluster, role, endpoint})
}

/** Registers a client of the host. @returns its deployment id. */
export async function testClient(host: Pool, name = 'acme', settings: object = {}): Promise<string> {
  const [row] = await host<{id: string}>`
    select sync_metadata.register_deployment(${name}, ${JSON.stringify(settings)}) as id`
  if (!row) throw new Error('register_deployment gave no row')
  return row.id
}

/** Changes a client's schema by operations of `evolve_schema`. */
export async function evolve(
  host: Pool,
  deployment: string,
  ...operations: readonly object[]
): Promise<void> {
  await host`select sync_metadata.evolve_schema(${deployment}, ${JSON.stringify(operations)})`
}

/** A database with a host and its client `acme`, which go together. */
export async function hostWithClient() {
  const stack = new AsyncDisposableStack()
  const db = stack.use(await testDatabase())
  const host = stack.use(await testHost(db))
  const id = await testClient(host)
  return {db, host, id, [Symbol.asyncDispose]: () => stack.disposeAsync()}
}

/** @returns what `work` throws; fails when it does not. */
export async function refusal(work: Promise<unknown>): Promise<unknown> {
  return work.then(
    () => assert.fail('it was not refused'),
    (error: unknown) => error,
  )
}

/** @returns the code of what `work` throws. */
export async function codeOf(work: Promise<unknown>): Promise<unknown> {
  return ((await refusal(work)) as {code?: unknown}).code
}
