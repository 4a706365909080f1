import type {ColumnLayout, TableLayout} from '../core/layout.ts'
import type {Value} from '../core/value.ts'
import {fromCanonical} from '../core/canonical.ts'
import {LargeGarbage} from '../core/garbage.ts'
import {raw, type Tx} from '../postgres/sql.ts'
import {digestSql, quote, withPlainText} from './row-sql.ts'
import {TupleReader} from './tuples.ts'
import {fromDouble, fromText} from './type-map.ts'

/** A row as the target has it, with the values that its columns and `_sync_raw` stand for. */
export type StoredRow = {
  readonly key: string
  /** Computed by Postgres from the stored values: of the columns that were asked for, in their order. */
  readonly digest: Buffer
  readonly values: readonly Value[]
}

/**
 * Streams the live rows of one client table, some at a time, in no particular order. At most one message of the
 * server and one row are in memory.
 *
 * @param table its columns are the ones to be read and digested: those of the table, or fewer.
 * @param which `'agreed'`: only rows that are the source's, none that may differ.
 */
export async function* storedRows(
  tx: Tx,
  schema: string,
  table: TableLayout,
  signal: AbortSignal,
  which: 'all' | 'agreed' = 'all',
): AsyncGenerator<StoredRow[]> {
  const agreed = which === 'agreed' ? ' and _sync_diverged is null' : ''
  const {from, layout} = withPlainText(schema, table, `_sync_deleted_at is null${agreed}`)
  const columns = layout.columns.map(column => quote(column.target))
  const list = ['_sync_key', digestSql(layout), '_sync_raw::text', ...columns].join(', ')
  const copy = raw(`copy (select ${list} from ${from}) to stdout (format binary)`)
  const tuples = new TupleReader(columns.length + 3)
  const decode = (bytes: Buffer, starts: Int32Array, ends: Int32Array) =>
    rowOf(bytes, starts, ends, layout.columns)
  const garbage = new LargeGarbage()
  let bytes = 0
  for await (const chunk of tx.copyTo(copy, signal)) {
    bytes += chunk.length
    const rows = tuples.read(chunk, decode)
    if (rows.length === 0) continue
    yield rows
    // While the next one is read these are still referred to.
    rows.length = 0
    garbage.note(bytes)
    garbage.sweep()
    bytes = 0
  }
}

function rowOf(
  bytes: Buffer,
  starts: Int32Array,
  ends: Int32Array,
  columns: readonly ColumnLayout[],
): StoredRow {
  const [keyAt, digestAt, rawAt] = starts as unknown as [number, number, number]
  const [keyEnd, digestEnd, rawEnd] = ends as unknown as [number, number, number]
  const kept =
    rawAt < 0 ? undefined : (JSON.parse(bytes.toString('utf8', rawAt, rawEnd)) as Record<string, string>)
  const values = columns.map((column, i): Value => {
    const exact = kept !== undefined && Object.hasOwn(kept, column.target) ? kept[column.target] : undefined
    if (exact !== undefined) return fromCanonical(exact)
    const start = starts[i + 3] as number
    return start < 0 ? null : valueOf(bytes, start, ends[i + 3] as number, column)
  })
  return {key: bytes.toString('utf8', keyAt, keyEnd), digest: bytes.subarray(digestAt, digestEnd), values}
}

/** What a typed column reads back as: `canonicalSql` says the same in SQL. */
function valueOf(bytes: Buffer, start: number, end: number, column: ColumnLayout): Value {
  switch (column.type) {
    case 'bigint':
      return bytes.readBigInt64BE(start)
    case 'boolean':
      return bytes[start] === 0 ? 0n : 1n
    case 'double precision':
      return fromDouble(bytes.readDoubleBE(start), column.affinity)
    case 'text':
      return fromText(bytes.toString('utf8', start, end), column.affinity)
    case 'json':
      return bytes.toString('utf8', start, end)
    case 'bytea':
      return bytes.subarray(start, end)
  }
}
