import {DatabaseSync} from 'node:sqlite'
import type {ColumnLayout} from '../core/layout.ts'
import {RawText, type Affinity, type PgType, type Value} from '../core/value.ts'

// Which Postgres type a column gets, what stands in it, and what that reads back as. Everything that does not read
// back as the identical value and storage class is kept in `_sync_raw` beside it: docs/concepts.md, "A client table".

/** What a typed column holds for a value: ready for the driver or the COPY stream. */
export type Typed = bigint | boolean | number | string | Uint8Array | null

/** What has been seen in a column, as a set of bits. */
export const Seen = {
  bit: 1,
  integer: 2,
  /** An integer that a double cannot hold. */
  wideInteger: 4,
  real: 8,
  text: 16,
  blob: 32,
} as const

/** @returns the bit of {@link Seen} for a value; 0 for NULL. */
export function seenBit(value: Value): number {
  switch (typeof value) {
    case 'bigint':
      if (value === 0n || value === 1n) return Seen.bit
      return isExactDouble(value) ? Seen.integer : Seen.wideInteger
    case 'number':
      return Seen.real
    case 'string':
      return Seen.text
    default:
      if (value === null) return 0
      return value instanceof RawText ? Seen.text : Seen.blob
  }
}

const anyInteger = Seen.bit | Seen.integer | Seen.wideInteger

/**
 * The type of the client table's column: from the declared type and from the values seen, because declared types
 * lie (Open WebUI declares `chat.created_at` DATETIME and stores integer seconds).
 *
 * @param seen bits of {@link Seen}; 0 when the column has held nothing but NULL.
 */
export function chooseType(declared: string, affinity: Affinity, seen: number): PgType {
  const type = declared.toUpperCase()
  const onlyIntegers = seen !== 0 && (seen & ~anyInteger) === 0
  if (type.includes('JSON')) return 'json'
  if (type === 'ANY') return 'text'
  if (type.includes('BOOL')) return (seen & (Seen.integer | Seen.wideInteger)) === 0 ? 'boolean' : 'bigint'
  if (affinity === 'integer') return (seen & Seen.text) === 0 ? 'bigint' : 'text'
  if (/DATE|TIME/.test(type)) return onlyIntegers ? 'bigint' : 'text'
  if (affinity === 'real' || affinity === 'numeric') return onlyIntegers ? 'bigint' : 'double precision'
  if (type.includes('BLOB')) return 'bytea'
  return 'text'
}

/**
 * @returns true when a column of type `from` may become `to` in place, so that values seen later are readable too.
 * What the new type cannot hold stays exact in `_sync_raw`, so a widening never loses anything.
 */
export function canWiden(from: PgType, to: PgType, seen: number): boolean {
  if (from === 'boolean') return to === 'bigint'
  if (from === 'bigint')
    return to === 'text' || (to === 'double precision' && (seen & Seen.wideInteger) === 0)
  // These two follow from an empty column or a first load whose sample held no value.
  if (from === 'text')
    return (to === 'bigint' || to === 'double precision') && (seen & (Seen.text | Seen.blob)) === 0
  return from === 'double precision' && to === 'bigint' && (seen & Seen.real) === 0
}

const INTEGER_LIKE = /^(0|-?[1-9][0-9]{0,17})$/

/**
 * @returns the closest readable value for the typed column, and whether it reads back as exactly `value`.
 * When it does not, the caller keeps `canonical(value)` in `_sync_raw`.
 */
export function toPostgres(
  value: Exclude<Value, null>,
  column: ColumnLayout,
): {typed: Typed; exact: boolean} {
  switch (column.type) {
    case 'bigint':
      return typeof value === 'bigint' ? exact(value) : inexact(null)
    case 'boolean':
      return value === 0n || value === 1n ? exact(value === 1n) : inexact(null)
    case 'double precision':
      return toDouble(value, column.affinity)
    case 'text':
      return toText(value, column.affinity)
    case 'json':
      return typeof value === 'string' && isJson(value) ? exact(value) : inexact(asJson(value))
    case 'bytea':
      return value instanceof Uint8Array ? exact(value) : inexact(null)
  }
}

/**
 * The inverse of {@link toPostgres} for values that were exact.
 *
 * @param text the column's value as Postgres prints it (`::text`); for bytea the `\x…` form.
 */
export function fromPostgres(text: string, column: ColumnLayout): Exclude<Value, null> {
  switch (column.type) {
    case 'bigint':
      return BigInt(text)
    case 'boolean':
      return text === 'true' || text === 't' ? 1n : 0n
    case 'double precision':
      return fromDouble(Number(text), column.affinity)
    case 'text':
      return fromText(text, column.affinity)
    case 'json':
      return text
    case 'bytea':
      return new Uint8Array(Buffer.from(text.slice(2), 'hex'))
  }
}

/** What a double precision column reads back as. */
export function fromDouble(value: number, affinity: Affinity): bigint | number {
  return affinity === 'numeric' && Number.isInteger(value) && Math.abs(value) <= 2 ** 53
    ? BigInt(value)
    : value
}

/** What a text column reads back as. */
export function fromText(text: string, affinity: Affinity): bigint | string {
  return hasNumberAffinity(affinity) && INTEGER_LIKE.test(text) ? BigInt(text) : text
}

/**
 * @param prefix put before the text: as a part of its first literal it costs nothing.
 * @returns SQL for the canonical text of a typed column (null when it is null), of the column named by `c`.
 */
export function canonicalSql(c: string, column: ColumnLayout, prefix = ''): string {
  const begin = (storageClass: string) => literal(prefix + storageClass)
  // Most texts are ids of 36 characters, whose length need not be turned into text each time.
  const text = `case octet_length(${c}) when 36 then ${begin('t36:')} || ${c} else ${begin('t')} || octet_length(${c}) || ':' || ${c} end`
  switch (column.type) {
    case 'bigint':
      return `${begin('i')} || ${c} || ';'`
    case 'boolean':
      return `case ${c} when true then ${begin('i1;')} when false then ${begin('i0;')} end`
    case 'double precision': {
      const real = `${begin('r')} || encode(float8send(${c}), 'hex') || ';'`
      if (column.affinity !== 'numeric') return real
      return `case when ${c} = trunc(${c}) and abs(${c}) <= 9007199254740992 then ${begin('i')} || ${c}::bigint || ';' else ${real} end`
    }
    case 'text':
      if (!hasNumberAffinity(column.affinity)) return text
      return `case when ${c} ~ '${INTEGER_LIKE.source}' then ${begin('i')} || ${c} || ';' else ${text} end`
    case 'json':
      return `${begin('t')} || octet_length(${c}::text) || ':' || ${c}::text`
    case 'bytea':
      return `${begin('b')} || encode(${c}, 'hex') || ';'`
  }
}

/** @returns `text` as a quoted Postgres string literal, independent of `standard_conforming_strings`. */
export function literal(text: string): string {
  const quoted = `'${text.replaceAll("'", "''").replaceAll('\\', '\\\\')}'`
  return text.includes('\\') ? `E${quoted}` : quoted
}

function toDouble(value: Exclude<Value, null>, affinity: Affinity): {typed: Typed; exact: boolean} {
  if (affinity === 'numeric') {
    if (typeof value === 'bigint') return isExactDouble(value) ? exact(Number(value)) : inexact(Number(value))
    return typeof value === 'number'
      ? {typed: value, exact: fromDouble(value, affinity) === value}
      : inexact(null)
  }
  if (typeof value === 'number') return exact(value)
  return inexact(typeof value === 'bigint' ? Number(value) : null)
}

function toText(value: Exclude<Value, null>, affinity: Affinity): {typed: Typed; exact: boolean} {
  const reparsed = hasNumberAffinity(affinity)
  switch (typeof value) {
    case 'string':
      return {typed: value, exact: !(reparsed && INTEGER_LIKE.test(value))}
    case 'bigint':
      return {typed: String(value), exact: reparsed && INTEGER_LIKE.test(String(value))}
    case 'number':
      return inexact(String(value))
    default:
      return inexact(value instanceof RawText ? readable(value) : null)
  }
}

function asJson(value: Exclude<Value, null>): string | null {
  switch (typeof value) {
    case 'bigint':
      return String(value)
    case 'number':
      return Number.isFinite(value) ? String(value) : JSON.stringify(String(value))
    case 'string':
      return JSON.stringify(value)
    default:
      return value instanceof RawText ? JSON.stringify(readable(value)) : null
  }
}

/** The text without what Postgres refuses, for people; the bytes themselves are in `_sync_raw`. */
function readable(text: RawText): string {
  return new TextDecoder().decode(text.bytes).replaceAll('\0', '')
}

const jsonValid = new DatabaseSync(':memory:').prepare('select json_valid(?) as valid')

/**
 * Up to this length JSON.parse is many times as fast as a call of SQLite, and nothing can be nested deeper than SQLite's own check allows.
 */
const SHORT_JSON = 1_000

/**
 * Whether Postgres' `json` takes the text: RFC 8259, not nested too deep. SQLite's own check is three times as fast
 * as JSON.parse and stops at a depth of 1,000, well below where Postgres runs out of stack.
 */
function isJson(text: string): boolean {
  return text.length <= SHORT_JSON ? parses(text) : jsonValid.get(text)?.['valid'] === 1
}

function parses(text: string): boolean {
  try {
    JSON.parse(text)
    return true
  } catch {
    return false
  }
}

function hasNumberAffinity(affinity: Affinity): boolean {
  return affinity === 'integer' || affinity === 'numeric' || affinity === 'real'
}

const WIDEST = 2n ** 53n

function isExactDouble(value: bigint): boolean {
  return value <= WIDEST && value >= -WIDEST
}

function exact(typed: Typed): {typed: Typed; exact: boolean} {
  return {typed, exact: true}
}

function inexact(typed: Typed): {typed: Typed; exact: boolean} {
  return {typed, exact: false}
}
