import {setTimeout as sleep} from 'node:timers/promises'
import {SchemaMovedError} from '../source/errors.ts'
import {readDataVersion} from '../source/introspect.ts'
import {whenFree, type Source} from '../source/open.ts'

/** A file that has not changed for this long is what its app left, half-way or not. */
const QUIET_MS = 2_000
const PATIENCE_MS = 30_000

/**
 * Waits while the app rebuilds tables: SQLite's schema changes commit one by one, so a file can be met between two
 * of them. A state that nobody is working on any more (a migration that crashed) is taken as it is.
 *
 * @throws {SchemaMovedError} when the app is still at it after half a minute.
 */
export async function awaitMigration(source: Source, signal: AbortSignal): Promise<void> {
  const startedAt = performance.now()
  let version: bigint | undefined
  let quietSince = startedAt
  while (await whenFree(source, () => isHalfMigrated(tableNames(source)), signal)) {
    const now = await whenFree(source, () => readDataVersion(source.db), signal)
    if (now !== version) quietSince = performance.now()
    version = now
    if (performance.now() - quietSince >= QUIET_MS) return
    if (performance.now() - startedAt >= PATIENCE_MS) throw new SchemaMovedError(source.file)
    await sleep(200, undefined, {signal})
  }
}

/** Whether the tables' names show a rebuild under way: Alembic's batch mode, or a copy beside its original. */
export function isHalfMigrated(tables: readonly string[]): boolean {
  const names = new Set(tables)
  return tables.some(name => {
    if (name.startsWith('_alembic_tmp_')) return true
    const original = /^(?:old_(.+)|(.+)_new)$/.exec(name)
    return original !== null && names.has(original[1] ?? original[2] ?? '')
  })
}

function tableNames(source: Source): string[] {
  return source.db
    .prepare("select name from sqlite_schema where type = 'table'")
    .all()
    .map(row => row['name'] as string)
}
