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
  const tuples = new TupleReader()
  for await (const chunk of tx.copyTo(raw(`copy (${select}) to stdout (format binary)`), signal)) {
    const rows = tuples.read(chunk).map(fields => rowOf(fields, layout.columns))
    if (rows.length > 0) yield rows
  }
}

/** A field of a tuple: its bytes, or `null` for NULL. */
type Field = Buffer | null

const HEADER_BYTES = 19

/** Cuts a binary COPY stream into tuples: https://www.postgresql.org/docs/current/sql-copy.html#id-1.9.3.55.9.4 */
export class TupleReader {
  #pending: Buffer[] = []
  #pendingBytes = 0
  /** How many bytes must be there before it is worth looking again: a long row must not be copied for each chunk. */
  #wanted = HEADER_BYTES
  #hasHeader = false

  /** @returns the tuples that `chunk` completes. Their fields point into memory that is not used again. */
  read(chunk: Buffer): Field[][] {
    this.#pending.push(chunk)
    this.#pendingBytes += chunk.length
    if (this.#pendingBytes < this.#wanted) return []
    const bytes = this.#pending.length === 1 ? chunk : Buffer.concat(this.#pending)
    const tuples: Field[][] = []
    let at = this.#hasHeader ? 0 : HEADER_BYTES
    this.#hasHeader = true
    for (;;) {
      const tuple: Field[] = []
      const end = readTuple(bytes, at, tuple)
      if (end < 0) {
        this.#wanted = -end - at
        break
      }
      // The trailer, a tuple of -1 fields, ends the stream.
      if (tuple.length > 0) tuples.push(tuple)
      at = end
    }
    this.#pending = [bytes.subarray(at)]
    this.#pendingBytes = bytes.length - at
    return tuples
  }
}

/** @returns the offset behind the tuple at `at`; when it is not complete, minus the offset up to which it goes at least. */
function readTuple(bytes: Buffer, at: number, into: Field[]): number {
  if (at + 2 > bytes.length) return -(at + 2)
  const fields = bytes.readInt16BE(at)
  let end = at + 2
  for (let i = 0; i < fields; i++) {
    if (end + 4 > bytes.length) return -(end + 4)
    const length = bytes.readInt32BE(end)
    end += 4
    if (length < 0) {
      into.push(null)
      continue
    }
    if (end + length > bytes.length) return -(end + length)
    into.push(bytes.subarray(end, end + length))
    end += length
  }
  return end
}

function rowOf([key, digest, inexact, ...fields]: Field[], columns: readonly ColumnLayout[]): StoredRow {
  if (key === null || key === undefined || digest === null || digest === undefined)
    throw new Error('a row without key or digest')
  const exact = inexact ? (JSON.parse(inexact.toString()) as Record<string, string>) : undefined
  const values = columns.map((column, i): Value => {
    const kept = exact !== undefined && Object.hasOwn(exact, column.target) ? exact[column.target] : undefined
    if (kept !== undefined) return fromCanonical(kept)
    const field = fields[i] as Field
    return field === null ? null : valueOf(field, column)
  })
  return {key: key.toString(), digest, values}
}

/** What a typed column reads back as: `canonicalSql` says the same in SQL. */
function valueOf(field: Buffer, column: ColumnLayout): Value {
  switch (column.type) {
    case 'bigint':
      return field.readBigInt64BE()
    case 'boolean':
      return field[0] === 0 ? 0n : 1n
    case 'double precision':
      return fromDouble(field.readDoubleBE(), column.affinity)
    case 'text':
      return fromText(field.toString(), column.affinity)
    case 'json':
      return field.toString()
    case 'bytea':
      return field
  }
}
