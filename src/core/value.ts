/**
 * A SQLite value as this product carries it: one JavaScript type per storage class, so nothing is guessed.
 *
 * INTEGER is `bigint`, REAL is `number`, TEXT is `string`, BLOB is `Uint8Array`, NULL is `null`.
 * TEXT that JavaScript or Postgres cannot hold (a NUL character, bytes that are not valid in the file's encoding) is
 * `RawText`: its bytes, in the encoding of the file it came from.
 */
export type Value = bigint | number | string | Uint8Array | RawText | null

export class RawText {
  readonly bytes: Uint8Array

  constructor(bytes: Uint8Array) {
    this.bytes = bytes
  }
}

/** The type affinity SQLite derives from a declared type: https://sqlite.org/datatype3.html#determination_of_column_affinity */
export type Affinity = 'integer' | 'text' | 'blob' | 'real' | 'numeric'

/** The six kinds of Postgres column a client table is made of, besides the bookkeeping. */
export type PgType = 'bigint' | 'boolean' | 'double precision' | 'text' | 'json' | 'bytea'

/** @returns the affinity that SQLite gives a column declared as `declared` (empty when no type is declared). */
export function affinityOf(declared: string): Affinity {
  const type = declared.toUpperCase()
  if (type.includes('INT')) return 'integer'
  if (/CHAR|CLOB|TEXT/.test(type)) return 'text'
  if (type === '' || type.includes('BLOB')) return 'blob'
  if (/REAL|FLOA|DOUB/.test(type)) return 'real'
  return 'numeric'
}

/** Whether two values are one: of the same storage class, with the same content. */
export function isSameValue(a: Value, b: Value): boolean {
  if (a instanceof RawText || b instanceof RawText)
    return a instanceof RawText && b instanceof RawText && Buffer.compare(a.bytes, b.bytes) === 0
  if (a instanceof Uint8Array || b instanceof Uint8Array)
    return a instanceof Uint8Array && b instanceof Uint8Array && Buffer.compare(a, b) === 0
  return Object.is(a, b)
}
