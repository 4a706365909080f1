import type {SQLInputValue} from 'node:sqlite'
import type {Pragmas} from '../core/layout.ts'
import {RawText, type Value} from '../core/value.ts'

/** Three parameters a value, for `iif(?, cast(? as text), ?)`: a text that cannot go as it is goes as the file's bytes. */
export function threefold(value: Value, encoding: Pragmas['encoding']): SQLInputValue[] {
  const bytes = neededBytes(value, encoding)
  return bytes === undefined ? [0, null, value as Exclude<Value, RawText>] : [1, bytes, null]
}

/** The value at a place of what {@link threefold} binds. */
export function mark(at: number): string {
  return `iif(?${3 * at + 1}, cast(?${3 * at + 2} as text), ?${3 * at + 3})`
}

/** Reads the value of an expression as the three that {@link mark} takes, a text always as the file's bytes. */
export function asThreefold(value: string): string {
  const isText = `typeof(${value}) = 'text'`
  return `${isText}, iif(${isText}, cast(${value} as blob), null), iif(${isText}, null, ${value})`
}

/** The file's bytes of a text that would not reach it as it is: JavaScript cannot hold it, or SQLite would alter it. */
export function neededBytes(value: Value, encoding: Pragmas['encoding']): Uint8Array | undefined {
  if (value instanceof RawText) return value.bytes
  // Text is bound as UTF-8, and SQLite makes U+FFFD of these two on their way to UTF-16.
  if (encoding === 'UTF-8' || typeof value !== 'string' || !/[\ufffe\uffff]/.test(value)) return undefined
  const bytes = Buffer.from(value, 'utf16le')
  return encoding === 'UTF-16be' ? bytes.swap16() : bytes
}
