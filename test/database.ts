import {randomBytes} from 'node:crypto'
import {existsSync} from 'node:fs'
import {inject} from 'vitest'
import {parseEndpoint, withChanges, type Endpoint} from '../src/net/endpoint.ts'
import {connect} from '../src/postgres/connect.ts'
import type {Pool} from '../src/postgres/sql.ts'

/** A pool of the superuser on a database of its own, which goes with its scope. */
export type TestDatabase = Pool & {
  readonly endpoint: Endpoint
  /** Runs one statement past every trigger, as a damaged disk or a restored dump would have it. */
  readonly tamper: (strings: TemplateStringsArray, ...values: readonly unknown[]) => Promise<object[]>
}

const TEMPLATE = 'owsync_template'
const applicationName = 'owsync-test'

/** The test server's superuser. Roles belong to the whole server: give those a test makes names of their own. */
export function adminEndpoint(database = 'postgres'): Endpoint {
  return withChanges(parseEndpoint(inject('postgresUrl')), {database})
}

/** A database with the control schema: cloned from a migrated template, dropped at the scope's end. */
export async function testDatabase(): Promise<TestDatabase> {
  await prepareTemplate()
  return clone(TEMPLATE)
}

/** A database with nothing in it. */
export async function emptyDatabase(): Promise<TestDatabase> {
  return clone('template0')
}

async function clone(template: string): Promise<TestDatabase> {
  const name = `t_${randomBytes(8).toString('hex')}`
  await asAdmin(async admin => {
    await admin`create database ${admin(name)} template ${admin(template)}`
  })
  const endpoint = adminEndpoint(name)
  const pool = connect(endpoint, {max: 10, applicationName})
  return Object.assign(pool, {
    endpoint,
    tamper: (strings: TemplateStringsArray, ...values: readonly unknown[]) =>
      pool.begin(async tx => {
        await tx`set local session_replication_role = replica`
        return await tx(strings, ...values)
      }),
    async [Symbol.asyncDispose]() {
      await pool.end()
      await asAdmin(admin => admin`drop database if exists ${admin(name)} with (force)`)
    },
  })
}

async function prepareTemplate(): Promise<void> {
  await asAdmin(admin =>
    // Test files run in several processes: the first to come makes it, the others wait for it.
    admin.begin(async tx => {
      await tx`select pg_advisory_xact_lock(7021)`
      const ready = await tx`select from pg_database where datname = ${TEMPLATE} and datistemplate`
      if (ready.length > 0) return
      await asAdmin(async other => {
        await other`drop database if exists ${other(TEMPLATE)} with (force)`
        await other`create database ${other(TEMPLATE)} template template0`
        await migrateTemplate()
        await other`alter database ${other(TEMPLATE)} is_template true`
      })
    }),
  )
}

async function migrateTemplate(): Promise<void> {
  const module = new URL('../src/postgres/migrate.ts', import.meta.url)
  if (!existsSync(module)) return
  const {migrate} = (await import(module.href)) as {migrate: (pool: Pool) => Promise<unknown>}
  await using pool = connect(adminEndpoint(TEMPLATE), {max: 2, applicationName})
  await migrate(pool)
}

async function asAdmin<T>(work: (admin: Pool) => Promise<T>): Promise<T> {
  await using admin = connect(adminEndpoint(), {max: 1, applicationName})
  return await work(admin)
}
