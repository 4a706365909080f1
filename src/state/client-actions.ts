import pg from 'pg'
import {SyncError} from '../core/errors.ts'
import {json, type Sql} from '../postgres/sql.ts'
import type {SettingsChange} from './deployment-settings.ts'

// What can be done to one deployment beside changing its settings.

/** A row is not erased, because it is not gone. */
export class EraseRefusedError extends SyncError {
  override readonly name = 'EraseRefusedError'
  readonly code = 'SYNC_ERASE_REFUSED'
  readonly next: string

  constructor(message: string, next: string | undefined, options?: ErrorOptions) {
    super(message, options)
    this.next = next ?? 'Look at the row in Postgres; what is still in the source cannot be erased.'
  }
}

/**
 * Registers a client of this host and makes its schema. A client of that name that this host has already is left as it is.
 *
 * @returns its deployment id.
 * @throws {NameTakenError} when the name is another host's, {NameRefusedError} when nobody may have it.
 */
export async function registerClient(
  sql: Sql,
  clientName: string,
  settings: SettingsChange,
): Promise<string> {
  const [row] = await sql<{id: string}>`
    select sync_metadata.register_deployment(${clientName}, ${json(settings)}) as id`
  if (!row) throw new Error('register_deployment gave no row')
  return row.id
}

/**
 * Erases a row that the source has deleted, and every trace of what was in it.
 *
 * @param key the row's `_sync_key`.
 * @returns whether there was anything.
 * @throws {EraseRefusedError} when the row, or the table, is not gone or never was.
 */
export async function eraseRow(
  sql: Sql,
  {deploymentId, table, key}: {readonly deploymentId: string; readonly table: string; readonly key: string},
): Promise<boolean> {
  try {
    const [row] = await sql<{erased: boolean}>`
      select sync_metadata.erase_row(${deploymentId}, ${table}, ${key}) as erased`
    return row?.erased === true
  } catch (cause) {
    if (cause instanceof pg.DatabaseError && cause.code === 'OS006')
      throw new EraseRefusedError(cause.message, cause.hint, {cause})
    throw cause
  }
}

/**
 * Gives a client up: no host syncs it any more; its tables and its history stay.
 *
 * @throws {StillSyncedError} while its sync is enabled, unless forced.
 */
export async function detachClient(
  sql: Sql,
  deploymentId: string,
  {actor, force}: {readonly actor: string; readonly force: boolean},
): Promise<void> {
  await sql`select sync_metadata.detach_deployment(${deploymentId}, ${actor}, ${force})`
}
