import {canonicalOrder, columnPrefix} from '../core/canonical.ts'
import type {ColumnLayout, TableLayout} from '../core/layout.ts'
import {canonicalSql} from './type-map.ts'

// SQL over one client table, generated from its layout. Every name comes out of `quote`; values are parameters.

/** @returns `name` as a quoted Postgres identifier. */
export function quote(name: string): string {
  return `"${name.replaceAll('"', '""')}"`
}

/** @returns `text` as a quoted Postgres string literal, independent of `standard_conforming_strings`. */
export function literal(text: string): string {
  const quoted = `'${text.replaceAll("'", "''").replaceAll('\\', '\\\\')}'`
  return text.includes('\\') ? `E${quoted}` : quoted
}

/** @returns an SQL expression for the digest of a live row, computed from the values that stand in it. */
export function digestSql(table: TableLayout): string {
  const byName = new Map(table.columns.map(column => [column.source, column]))
  const columns = canonicalOrder([...byName.keys()]).map(name => byName.get(name) as ColumnLayout)
  const start = table.keyedBy === 'rowid' ? '_sync_key' : "''"
  const row = (valueOf: (column: ColumnLayout) => string) =>
    concatenation([
      start,
      ...columns.map(c => `coalesce(${literal(columnPrefix(c.source))} || (${valueOf(c)}), '')`),
    ])
  const plain = row(c => canonicalSql(quote(c.target), c))
  const withRaw = row(
    c => `coalesce(_sync_raw ->> ${literal(c.target)}, ${canonicalSql(quote(c.target), c)})`,
  )
  return `substring(sha256(convert_to(case when _sync_raw is null then ${plain} else ${withRaw} end, 'UTF8')) from 1 for 16)`
}

/** A balanced tree of `||`: a table of 1,500 columns in one chain would exhaust the server's parser stack. */
function concatenation(parts: readonly string[]): string {
  if (parts.length <= 8) return parts.join(' || ')
  const half = parts.length >> 1
  return `(${concatenation(parts.slice(0, half))}) || (${concatenation(parts.slice(half))})`
}
