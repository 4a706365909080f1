import {Pace, isWal, readSchema} from '../source/capture.ts'
import {SchemaMovedError} from '../source/errors.ts'
import {readDataVersion, readSchemaVersion, type SourceSpec, type TableSpec} from '../source/introspect.ts'
import {beginRead, endRead, errcode, whenFree, type Source} from '../source/open.ts'
import {TableReader, type Position, type RefusedRow, type SourceRow} from '../source/read.ts'

/** A source while it is being read, with the schema it has. */
export type Snapshot = {
  readonly spec: SourceSpec
  /** Reads a table from its first row to its last, and says how far it is now and then. @returns how many rows it has. */
  scan(table: TableSpec, visitor: Visitor): Promise<number>
}

type Visitor = {
  readonly row: (row: SourceRow) => void
  readonly refused?: (row: RefusedRow) => void
  readonly onProgress?: (rows: number) => void
}

const SQLITE_ERROR = 1
const SQLITE_SCHEMA = 17

/**
 * Reads a source without getting in its app's way: in WAL mode in one transaction, which blocks nobody; in
 * rollback-journal mode a page at a time, each within the lock budget, so that rows may be of different instants.
 *
 * @throws {SchemaMovedError} when the app changed its schema meanwhile.
 */
export async function withSnapshot<T>(
  source: Source,
  lockBudgetMs: number,
  work: (snapshot: Snapshot) => Promise<T>,
  signal: AbortSignal,
): Promise<T> {
  const {db} = source
  const inOneTransaction = await whenFree(source, () => isWal(source), signal)
  const pace = new Pace(source, inOneTransaction ? undefined : lockBudgetMs, signal)
  if (inOneTransaction)
    await whenFree(
      source,
      () => {
        beginRead(db)
      },
      signal,
    )
  try {
    const spec = await readSchema(source, signal)
    const result = await work({
      spec,
      async scan(table, {row, refused, onProgress}) {
        const reader = new TableReader(db, table)
        let position: Position | undefined
        let count = 0
        do {
          const at = position
          const page = await pace.read(() => reader.page(at, inOneTransaction ? SMALL_PAGE : pace.budget))
          position = page.next
          for (const each of page.rows) row(each)
          for (const each of page.refused) refused?.(each)
          count += page.rows.length + page.refused.length
          onProgress?.(count)
        } while (position !== undefined)
        return count
      },
    })
    if ((await whenFree(source, () => readSchemaVersion(db), signal)) !== spec.schemaVersion)
      throw new SchemaMovedError(source.file)
    return result
  } catch (cause) {
    const code = errcode(cause)
    // A statement that no longer fits its table says so.
    if (!inOneTransaction && (code === SQLITE_ERROR || code === SQLITE_SCHEMA))
      throw new SchemaMovedError(source.file, {cause})
    throw cause
  } finally {
    endRead(db)
  }
}

/** @returns a number that moves with every commit of the app. Comparable only on this connection. */
export async function versionOf(source: Source, signal: AbortSignal): Promise<bigint> {
  return whenFree(source, () => readDataVersion(source.db), signal)
}

// What outlives a young garbage collection makes the process grow, so pages are small. With locks they are as large as
// the lock budget lets them be: each one costs a pause.
const SMALL_PAGE = {ms: 40, bytes: 1024 * 1024, rows: 500}
