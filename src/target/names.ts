import {createHash} from 'node:crypto'

const SYSTEM_COLUMNS = new Set(['ctid', 'xmin', 'xmax', 'cmin', 'cmax', 'tableoid'])

/** `live_` and a table's name fit into Postgres' 63 bytes together. */
const LONGEST_TABLE_BYTES = 58
const LONGEST_COLUMN_BYTES = 63

/**
 * The name in Postgres for a source table: its own, unless Postgres or the bookkeeping has a use for it.
 *
 * @param taken names in use, compared without regard to case as people do.
 */
export function tableName(source: string, taken: readonly string[]): string {
  return freeName(/^(_sync_|live_)/i.test(source) ? `source_${source}` : source, LONGEST_TABLE_BYTES, taken)
}

/** The same for a column. */
export function columnName(source: string, taken: readonly string[]): string {
  const reserved = /^_sync_/i.test(source) || SYSTEM_COLUMNS.has(source.toLowerCase())
  return freeName(reserved ? `source_${source}` : source, LONGEST_COLUMN_BYTES, taken)
}

/** The name a column has in the view of live rows: the source's, wherever Postgres can have a column of that name. */
export function viewColumnName(source: string, target: string): string {
  const fits =
    source !== '' && Buffer.byteLength(source) <= 63 && !SYSTEM_COLUMNS.has(source) && !source.includes('\0')
  return fits ? source : target
}

/** A short stable name for an index. */
export function indexName(table: string, columns: readonly string[]): string {
  return shorten(`${table}_${columns.join('_')}_idx`, 63)
}

function freeName(wanted: string, longestBytes: number, taken: readonly string[]): string {
  const used = new Set(taken.map(name => name.toLowerCase()))
  const base = shorten(wanted === '' ? 'unnamed' : wanted.replaceAll('\0', '_'), longestBytes)
  for (let n = 1; ; n++) {
    const name = n === 1 ? base : shorten(`${base}_${n}`, longestBytes)
    if (!used.has(name.toLowerCase())) return name
  }
}

function shorten(name: string, longestBytes: number): string {
  if (Buffer.byteLength(name) <= longestBytes) return name
  const mark = `_${createHash('sha256').update(name).digest('hex').slice(0, 8)}`
  let kept = ''
  for (const character of name) {
    if (Buffer.byteLength(kept + character) > longestBytes - mark.length) break
    kept += character
  }
  return kept + mark
}
