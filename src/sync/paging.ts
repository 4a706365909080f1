import {RawText, type Value} from '../core/value.ts'

// Rows are taken in pages, and rows may be of any size: how many come next follows from how large the last ones were.

/** What a page may have at most. */
export type PageLimit = {readonly rows: number; readonly bytes: number}

/** How many rows the next page has: as many as are `limit.bytes` at the last page's size, and at most four times as many. */
export function nextPage(rows: number, bytes: number, limit: PageLimit): number {
  const fitting = bytes === 0 ? Infinity : Math.floor((limit.bytes * rows) / bytes)
  return Math.max(1, Math.min(fitting, rows * 4, limit.rows))
}

/** About how many bytes the values take. */
export function sizeOf(values: readonly Value[]): number {
  return values.reduce<number>((sum, value) => {
    if (typeof value === 'string') return sum + value.length
    if (value instanceof RawText) return sum + value.bytes.length
    return sum + (value instanceof Uint8Array ? value.byteLength : 8)
  }, 0)
}
