import type {ColumnLayout, TableLayout} from '../core/layout.ts'
import type {Value} from '../core/value.ts'
import {fromCanonical} from '../core/canonical.ts'
import {raw, type Tx} from '../postgres/sql.ts'
import {digestSql, quote} from './row-sql.ts'
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
 * @param layout its columns are the ones to be read and digested: those of the table, or fewer.
 */
export async function* storedRows(
  tx: Tx,
  schema: string,
  layout: TableLayout,
  signal: AbortSignal,
): AsyncGenerator<StoredRow[]> {
  const columns = layout.columns.map(column => quote(column.target))
  const table = `${quote(schema)}.${quote(layout.target)}`
  const select = `select ${['_sync_key', digestSql(layout), '_sync_raw::text', ...columns].join(', ')}
    from ${table} where _sync_deleted_at is null`
  const tuples = new TupleReader(columns.length + 3)
  const decode = (bytes: Buffer, starts: Int32Array, ends: Int32Array) =>
    rowOf(bytes, starts, ends, layout.columns)
  for await (const chunk of tx.copyTo(raw(`copy (${select}) to stdout (format binary)`), signal)) {
    const rows = tuples.read(chunk, decode)
    if (rows.length > 0) yield rows
  }
}

const HEADER_BYTES = 19

/** Makes something of a tuple. Its fields stand in `bytes` from `starts` to `ends`; a start of -1 is NULL. */
type Decode<T> = (bytes: Buffer, starts: Int32Array, ends: Int32Array) => T

/**
 * Cuts a binary COPY stream into tuples: https://www.postgresql.org/docs/current/sql-copy.html#id-1.9.3.55.9.4
 * Fields are told by their offsets: an object for each of millions would be most of the work.
 */
export class TupleReader {
  readonly #starts: Int32Array
  readonly #ends: Int32Array
  #pending: Buffer[] = []
  #pendingBytes = 0
  /** How many bytes must be there before it is worth looking again: a long row must not be copied for each chunk. */
  #wanted = HEADER_BYTES
  #hasHeader = false

  constructor(fields: number) {
    this.#starts = new Int32Array(fields)
    this.#ends = new Int32Array(fields)
  }

  /** @returns what `decode` makes of the tuples that `chunk` completes. Their memory is not used again. */
  read<T>(chunk: Buffer, decode: Decode<T>): T[] {
    this.#pending.push(chunk)
    this.#pendingBytes += chunk.length
    if (this.#pendingBytes < this.#wanted) return []
    const bytes = this.#pending.length === 1 ? chunk : Buffer.concat(this.#pending)
    const decoded: T[] = []
    let at = this.#hasHeader ? 0 : HEADER_BYTES
    this.#hasHeader = true
    for (;;) {
      const end = this.#tuple(bytes, at)
      if (end < 0) {
        this.#wanted = -end - at
        break
      }
      // A tuple of -1 fields ends the stream.
      if (bytes.readInt16BE(at) >= 0) decoded.push(decode(bytes, this.#starts, this.#ends))
      at = end
    }
    this.#pending = [bytes.subarray(at)]
    this.#pendingBytes = bytes.length - at
    return decoded
  }

  /** @returns the offset behind the tuple at `at`; when it is not complete, minus the offset that it reaches at least. */
  #tuple(bytes: Buffer, at: number): number {
    if (at + 2 > bytes.length) return -(at + 2)
    const fields = bytes.readInt16BE(at)
    let end = at + 2
    for (let i = 0; i < fields; i++) {
      if (end + 4 > bytes.length) return -(end + 4)
      const length = bytes.readInt32BE(end)
      end += 4
      this.#starts[i] = length < 0 ? -1 : end
      if (length > 0) end += length
      if (end > bytes.length) return -end
      this.#ends[i] = end
    }
    return end
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
