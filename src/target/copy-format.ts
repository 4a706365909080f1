import type {PgType} from '../core/value.ts'
import type {Typed} from './type-map.ts'

// PostgreSQL's binary COPY format: https://www.postgresql.org/docs/current/sql-copy.html#id-1.9.3.55.9.4
// Nothing in it has to be escaped, and the server parses it faster than text.

export const COPY_HEADER = Buffer.concat([Buffer.from('PGCOPY\n\xff\r\n\0', 'latin1'), Buffer.alloc(8)])
export const COPY_TRAILER = Buffer.from([0xff, 0xff])

/** A row ready to be sent: values by type, and the bookkeeping that goes with them. */
export type TargetRow = {
  readonly key: string
  readonly digest: Uint8Array
  /** In the order of the table's columns. */
  readonly typed: readonly Typed[]
  /** The JSON text of `_sync_raw`, when some value needs it. */
  readonly raw: string | null
}

/** What long values took beyond this is given back. */
const KEEP_BYTES = 1024 * 1024

/** Writes rows of one table as binary COPY tuples: its columns, then `_sync_key`, `_sync_hash`, `_sync_raw`. */
export class TupleWriter {
  readonly #types: readonly PgType[]
  #buffer: Buffer
  /** Writes numbers where they are compiled; Buffer's own methods are calls. */
  #view: DataView
  #at = 0

  constructor(types: readonly PgType[], initialBytes = 64 * 1024) {
    this.#types = types
    this.#buffer = Buffer.allocUnsafe(initialBytes)
    this.#view = viewOf(this.#buffer)
  }

  /** Bytes written since the last {@link take}. */
  get bytes(): number {
    return this.#at
  }

  write(row: TargetRow): void {
    this.#ensure(2)
    this.#view.setInt16(this.#at, this.#types.length + 3)
    this.#at += 2
    for (let i = 0; i < this.#types.length; i++) this.#value(row.typed[i] as Typed, this.#types[i] as PgType)
    this.#text(row.key)
    this.#bytes(row.digest)
    if (row.raw === null) this.#null()
    else this.#jsonb(row.raw)
  }

  /** Hands over what has been written, which is good until the next row is written: that one is in the same memory. */
  take(): Buffer {
    const written = this.#buffer.subarray(0, this.#at)
    if (this.#buffer.length > KEEP_BYTES) {
      this.#buffer = Buffer.allocUnsafe(KEEP_BYTES)
      this.#view = viewOf(this.#buffer)
    }
    this.#at = 0
    return written
  }

  #value(value: Typed, type: PgType): void {
    if (value === null) {
      this.#null()
      return
    }
    switch (type) {
      case 'bigint':
        this.#ensure(12)
        this.#view.setInt32(this.#at, 8)
        this.#view.setBigInt64(this.#at + 4, value as bigint)
        this.#at += 12
        return
      case 'double precision':
        this.#ensure(12)
        this.#view.setInt32(this.#at, 8)
        this.#view.setFloat64(this.#at + 4, value as number)
        this.#at += 12
        return
      case 'boolean':
        this.#ensure(5)
        this.#view.setInt32(this.#at, 1)
        this.#buffer[this.#at + 4] = value === true ? 1 : 0
        this.#at += 5
        return
      case 'text':
      case 'json':
        this.#text(value as string)
        return
      case 'bytea':
        this.#bytes(value as Uint8Array)
        return
    }
  }

  #text(value: string): void {
    // UTF-8 needs at most three bytes for each UTF-16 unit; long texts are measured instead of assuming the worst.
    this.#ensure(4 + (value.length < 4096 ? value.length * 3 : Buffer.byteLength(value)))
    const written = this.#buffer.write(value, this.#at + 4)
    this.#view.setInt32(this.#at, written)
    this.#at += 4 + written
  }

  #jsonb(text: string): void {
    const size = Buffer.byteLength(text) + 1
    this.#ensure(4 + size)
    this.#view.setInt32(this.#at, size)
    this.#buffer[this.#at + 4] = 1 // the version of jsonb's wire format
    this.#buffer.write(text, this.#at + 5)
    this.#at += 4 + size
  }

  #bytes(value: Uint8Array): void {
    this.#ensure(4 + value.byteLength)
    this.#view.setInt32(this.#at, value.byteLength)
    this.#buffer.set(value, this.#at + 4)
    this.#at += 4 + value.byteLength
  }

  #null(): void {
    this.#ensure(4)
    this.#view.setInt32(this.#at, -1)
    this.#at += 4
  }

  #ensure(more: number): void {
    if (this.#at + more <= this.#buffer.length) return
    const larger = Buffer.allocUnsafe(Math.max(this.#buffer.length * 2, this.#at + more))
    this.#buffer.copy(larger, 0, 0, this.#at)
    this.#buffer = larger
    this.#view = viewOf(larger)
  }
}

function viewOf(buffer: Buffer): DataView {
  return new DataView(buffer.buffer, buffer.byteOffset, buffer.length)
}

/** @returns the offset behind the tuple that begins at `at`, or `undefined` when `bytes` ends before it does. */
export function endOfTuple(bytes: Buffer, at: number): number | undefined {
  if (at + 2 > bytes.length) return undefined
  let fields = bytes.readInt16BE(at)
  let end = at + 2
  for (; fields > 0; fields--) {
    if (end + 4 > bytes.length) return undefined
    end += 4 + Math.max(0, bytes.readInt32BE(end))
  }
  return end <= bytes.length ? end : undefined
}
