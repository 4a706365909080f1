import {createHash} from 'node:crypto'
import {readdir, readFile} from 'node:fs/promises'
import {join} from 'node:path'
import {fileURLToPath} from 'node:url'
import {SyncError} from '../core/errors.ts'
import {requireServerVersion} from './connect.ts'
import {raw, type Pool, type Sql, type Tx} from './sql.ts'
import {PermissionError} from './sqlstate.ts'

// The control schema is numbered SQL files, applied once each, in order, and never changed afterwards.

/** Where the SQL files are; the ones that came with the program when it is left out. */
export type SchemaOptions = {readonly sqlFolder?: string}

/** What {@link migrate} did: the names of the files it applied, and the version the schema has now. */
export type Migrated = {readonly applied: readonly string[]; readonly version: number}

/** A migration that this database has already had is not the one in the folder. Nothing was applied. */
export class MigrationEditedError extends SyncError {
  override readonly name = 'MigrationEditedError'
  readonly code = 'SYNC_MIGRATION_EDITED'
  readonly next =
    'Restore the file as it was released, and put the change into a new file with the next number.'
  readonly file: string

  constructor(file: string, problem: string) {
    super(`the migration ${file} ${problem}`)
    this.file = file
  }
}

/** A migration could not be applied; none of this run's files was. `cause` is what Postgres said. */
export class MigrationFailedError extends SyncError {
  override readonly name = 'MigrationFailedError'
  readonly code = 'SYNC_MIGRATION_FAILED'
  readonly next = 'Nothing was changed. Repair what the message names, then run `owsync db migrate` again.'
  readonly file: string

  constructor(file: string, cause: Error) {
    super(`the migration ${file} failed: ${cause.message}`, {cause})
    this.file = file
  }
}

/** The database has no control schema. */
export class SchemaMissingError extends SyncError {
  override readonly name = 'SchemaMissingError'
  readonly code = 'SYNC_SCHEMA_MISSING'
  readonly next =
    'Run `owsync db migrate` once, with ADMIN_DATABASE_URL set; check that the URL names the right database.'

  constructor(options?: ErrorOptions) {
    super('the database has no schema sync_metadata', options)
  }
}

/** The control schema is older than this program needs. */
export class SchemaOutdatedError extends SyncError {
  override readonly name = 'SchemaOutdatedError'
  readonly code = 'SYNC_SCHEMA_OUTDATED'
  readonly next = 'Run `owsync db migrate` with ADMIN_DATABASE_URL set, before the nodes are updated.'

  constructor(version: number, needed: number) {
    super(`the schema sync_metadata has version ${version}, and this program needs ${needed}`)
  }
}

/** The control schema is newer than this program can work with. */
export class SchemaNewerError extends SyncError {
  override readonly name = 'SchemaNewerError'
  readonly code = 'SYNC_SCHEMA_NEWER'
  readonly next = 'Update openwebui-sync on this machine.'

  constructor(version: number, known: number) {
    super(`the schema sync_metadata has version ${version}, and this program knows ${known}`)
  }
}

/** The database does not hold text as UTF-8, so it cannot hold every text of a source. */
export class NotUtf8Error extends SyncError {
  override readonly name = 'NotUtf8Error'
  readonly code = 'SYNC_NOT_UTF8'
  readonly next =
    "Create a database with `create database … template template0 encoding 'UTF8'` and use that."

  constructor(encoding: string) {
    super(`the database stores text as ${encoding}; UTF8 is needed`)
  }
}

type Migration = {
  readonly version: number
  readonly name: string
  readonly sha256: string
  readonly text: string
}

const ownFolder = fileURLToPath(new URL('../../sql', import.meta.url))

/**
 * Brings the control schema up to date, in one transaction: all of it or nothing. Several at once wait for each other;
 * the later ones find nothing to do. Needs the admin's connection.
 *
 * @throws {MigrationEditedError} when a file that was applied has changed since.
 * @throws {SchemaNewerError} when the database has had migrations that this program does not know.
 */
export async function migrate(pool: Pool, options: SchemaOptions = {}): Promise<Migrated> {
  const files = await readMigrations(options.sqlFolder ?? ownFolder)
  return pool.begin(
    async tx => {
      await requireServerVersion(tx)
      await requireUtf8(tx)
      await tx`select pg_advisory_xact_lock(hashtext('openwebui-sync'), hashtext('migrate'))`
      const pending = await pendingOf(tx, files)
      for (const file of pending) await apply(tx, file)
      await ensureDatabaseGrants(tx)
      return {applied: pending.map(({name}) => name), version: files.length}
    },
    // Nothing of the admin's own may take the place of what a name in these files means.
    {
      setLocal: {
        search_path: 'pg_catalog, pg_temp',
        statement_timeout: '10min',
        client_min_messages: 'warning',
      },
    },
  )
}

/**
 * @returns the version of the control schema.
 * @throws {SchemaMissingError} when there is none.
 */
export async function schemaVersion(sql: Sql): Promise<number> {
  if (!(await hasSchema(sql))) throw new SchemaMissingError()
  const [row] = await sql<{version: number}>`
    select coalesce(max(version), 0) as version from sync_metadata.schema_migrations`
  return row?.version ?? 0
}

/**
 * Makes sure that this program and the control schema fit. The next version fits too: the schema is migrated before
 * the nodes are updated.
 *
 * @returns the version of the control schema.
 */
export async function requireSchema(sql: Sql, options: SchemaOptions = {}): Promise<number> {
  const known = (await readMigrations(options.sqlFolder ?? ownFolder)).length
  const version = await schemaVersion(sql)
  if (version < known) throw new SchemaOutdatedError(version, known)
  if (version > known + 1) throw new SchemaNewerError(version, known)
  return version
}

/**
 * Lets the owner of the client schemas create them. The right belongs to the database, not to what is in it, so a
 * copied or restored database has lost it.
 *
 * @throws {PermissionError} when the admin may not give it.
 */
export async function ensureDatabaseGrants(tx: Tx): Promise<void> {
  const has = async () => {
    const [row] = await tx<{has: boolean}>`
      select has_database_privilege('sync_owner', current_database(), 'create')
        and has_database_privilege('sync_service', current_database(), 'temporary') as has`
    return row?.has === true
  }
  if (await has()) return
  await tx`
    do $$ begin
      execute format('grant create, temporary on database %I to sync_owner', current_database());
      execute format('grant temporary on database %I to sync_service', current_database());
    end $$`
  if (!(await has())) throw new PermissionError('grant create on database')
}

async function apply(tx: Tx, {name, version, sha256, text}: Migration): Promise<void> {
  try {
    await tx`${raw(text)}`
    await tx`
      insert into sync_metadata.schema_migrations (version, name, sha256)
      values (${version}, ${name}, ${sha256})`
  } catch (cause) {
    // What has a name of its own (no permission, connection lost) says more by it.
    if (cause instanceof SyncError || !(cause instanceof Error)) throw cause
    throw new MigrationFailedError(name, cause)
  }
}

async function pendingOf(tx: Tx, files: readonly Migration[]): Promise<readonly Migration[]> {
  if (!(await hasSchema(tx))) return files
  const applied = await tx<{version: number; name: string; sha256: string}>`
    select version, name, sha256 from sync_metadata.schema_migrations order by version`
  const newest = applied.at(-1)?.version ?? 0
  if (newest > files.length) throw new SchemaNewerError(newest, files.length)
  for (const {version, name, sha256} of applied) {
    const file = files[version - 1]
    if (file?.name !== name)
      throw new MigrationEditedError(name, `was applied, and is now ${file?.name ?? 'missing'}`)
    if (file.sha256 !== sha256) throw new MigrationEditedError(name, 'has been edited since it was applied')
  }
  return files.slice(newest)
}

async function hasSchema(sql: Sql): Promise<boolean> {
  // Through the catalog: naming a table in a schema that the role may not use is an error, not "no".
  const rows = await sql`
    select from pg_catalog.pg_class c
    join pg_catalog.pg_namespace n on n.oid = c.relnamespace
    where n.nspname = 'sync_metadata' and c.relname = 'schema_migrations'`
  return rows.length > 0
}

async function requireUtf8(tx: Tx): Promise<void> {
  const [row] = await tx<{encoding: string}>`select current_setting('server_encoding') as encoding`
  if (row?.encoding !== 'UTF8') throw new NotUtf8Error(row?.encoding ?? 'unknown')
}

async function readMigrations(folder: string): Promise<readonly Migration[]> {
  const names = (await readdir(folder)).filter(name => name.endsWith('.sql')).sort()
  return Promise.all(
    names.map(async (name, i) => {
      const version = Number(/^(\d{4})_[a-z0-9_]+\.sql$/.exec(name)?.[1])
      if (version !== i + 1) throw new Error(`${join(folder, name)} is not migration number ${i + 1}`)
      const text = await readFile(join(folder, name), 'utf8')
      return {version, name, text, sha256: createHash('sha256').update(text).digest('hex')}
    }),
  )
}
