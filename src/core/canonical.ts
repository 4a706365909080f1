import {createHash, hash, type Hash} from 'node:crypto'
import {RawText, type Value} from './value.ts'

// The canonical encoding of values, rows and keys: docs/concepts.md, "Canonical form". The same text is
// computed in SQL from the target's columns (target/canonical-sql.ts); a test holds the two together.

const floatView = new DataView(new ArrayBuffer(8))

/** @returns the value's canonical text: its storage class, then its content. Distinct values never share one. */
export function canonical(value: Exclude<Value, null>): string {
  switch (typeof value) {
    case 'string':
      return `t${Buffer.byteLength(value)}:${value}`
    case 'bigint':
      return `i${value};`
    case 'number':
      return `r${floatHex(value)};`
    default:
      return value instanceof RawText ? `x${hex(value.bytes)};` : `b${hex(value)};`
  }
}

/** @throws Error when `text` is not a canonical encoding; what we wrote ourselves always is. */
export function fromCanonical(text: string): Exclude<Value, null> {
  switch (text[0]) {
    case 't':
      return text.slice(text.indexOf(':') + 1)
    case 'i':
      return BigInt(text.slice(1, -1))
    case 'r': {
      floatView.setBigUint64(0, BigInt(`0x${text.slice(1, -1)}`))
      return floatView.getFloat64(0)
    }
    case 'x':
      return new RawText(Buffer.from(text.slice(1, -1), 'hex'))
    case 'b':
      return new Uint8Array(Buffer.from(text.slice(1, -1), 'hex'))
    default:
      throw new Error(`not a canonical value: ${text.slice(0, 40)}`)
  }
}

/** @returns the prefix that carries a column's name in a row's canonical form. */
export function columnPrefix(source: string): string {
  return `${Buffer.byteLength(source)}:${source}`
}

/** A way to digest rows of one table: which value stands where, in the order of the canonical form. */
export type RowDigester = (values: readonly Value[], key: string) => Buffer

/**
 * @param columns source names in the order in which values are handed over.
 * @param withKey true for a table keyed by rowid, whose key is content that no column holds.
 * @returns a function giving the first 16 bytes of SHA-256 over the canonical form of a row.
 */
export function rowDigester(columns: readonly string[], withKey: boolean): RowDigester {
  const ordered = canonicalOrder(columns)
  const positions = ordered.map(name => columns.indexOf(name))
  const prefixes = ordered.map(columnPrefix)
  return (values, key) => {
    let text = withKey ? key : ''
    let before: Hash | undefined
    for (let i = 0; i < positions.length; i++) {
      const value = values[positions[i] as number] as Value
      if (value === null) continue
      text += prefixes[i] as string
      if (typeof value === 'string' && value.length > LONG_TEXT) {
        // Not copied once more: it may have megabytes.
        before ??= createHash('sha256')
        before.update(`${text}t${Buffer.byteLength(value)}:`).update(value)
        text = ''
      } else text += canonical(value)
    }
    return before === undefined ? digestOf(text) : before.update(text).digest().subarray(0, DIGEST_BYTES)
  }
}

const LONG_TEXT = 512 * 1024

/** @returns the names in the order of the canonical form: by their UTF-8 bytes. */
export function canonicalOrder(columns: readonly string[]): string[] {
  return [...columns].sort((a, b) => Buffer.compare(Buffer.from(a), Buffer.from(b)))
}

const DIGEST_BYTES = 16

/** @returns the first 16 bytes of SHA-256 over `text` as UTF-8. */
export function digestOf(text: string): Buffer {
  // Twice as fast as asking for a buffer, which is half of what a short row costs.
  const digest = Buffer.allocUnsafe(DIGEST_BYTES)
  digest.write(hash('sha256', text, 'binary'), 0, DIGEST_BYTES, 'latin1')
  return digest
}

/** Keys longer than this many bytes are hashed; Postgres cannot index a value of more than 2,704 bytes. */
export const LONGEST_KEY_BYTES = 1_000

/**
 * The `_sync_key` of a row: injective over the values of its key columns.
 *
 * A single plain text value is itself. Anything else is `~` and the canonical values one after the other; a long
 * result is `~h` and the SHA-256 of what it would have been.
 */
export function keyOf(values: readonly Exclude<Value, null>[]): string {
  const [only] = values
  const isPlain = values.length === 1 && typeof only === 'string' && !only.startsWith('~')
  const key = isPlain ? only : `~${values.map(canonical).join('')}`
  if (key.length <= LONGEST_KEY_BYTES / 4 || Buffer.byteLength(key) <= LONGEST_KEY_BYTES) return key
  return `~h${hash('sha256', key, 'hex')}`
}

/** The `_sync_key` of a row in a table that has no other key. */
export function keyOfRowid(rowid: bigint): string {
  return `~i${rowid};`
}

/** The `_sync_key` of a row whose key columns hold a NULL, which SQLite allows and which identifies nothing. */
export function keyOfUnkeyed(rowid: bigint): string {
  return `~0${rowid};`
}

function floatHex(value: number): string {
  floatView.setFloat64(0, value)
  return floatView.getBigUint64(0).toString(16).padStart(16, '0')
}

function hex(bytes: Uint8Array): string {
  return Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength).toString('hex')
}

/**
 * The inverse of {@link keyOf} and its kin.
 *
 * @returns the values of the key columns, the rowid of a row that has no key, or `undefined` for a hashed key.
 */
export function partsOfKey(key: string): {values: Exclude<Value, null>[]} | {rowid: bigint} | undefined {
  if (!key.startsWith('~')) return {values: [key]}
  if (key.startsWith('~h')) return undefined
  if (key.startsWith('~0')) return {rowid: BigInt(key.slice(2, -1))}
  const values: Exclude<Value, null>[] = []
  const bytes = Buffer.from(key)
  for (let at = 1; at < bytes.length;) {
    const isText = bytes[at] === 0x74
    const mark = bytes.indexOf(isText ? ':' : ';', at)
    const end = isText ? mark + 1 + Number(bytes.toString('utf8', at + 1, mark)) : mark + 1
    values.push(fromCanonical(bytes.toString('utf8', at, end)))
    at = end
  }
  return {values}
}
