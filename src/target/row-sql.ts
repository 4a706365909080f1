import {canonicalOrder, columnPrefix} from '../core/canonical.ts'
import type {ColumnLayout, TableLayout} from '../core/layout.ts'
import {canonicalSql, literal} from './type-map.ts'

// SQL over one client table, generated from its layout. Every name comes out of `quote`; values are parameters.

/** @returns `name` as a quoted Postgres identifier. */
export function quote(name: string): string {
  return `"${name.replaceAll('"', '""')}"`
}

/** @returns an SQL expression for the digest of a live row, computed from the values that stand in it. */
export function digestSql(table: TableLayout): string {
  const byName = new Map(table.columns.map(column => [column.source, column]))
  const columns = canonicalOrder([...byName.keys()]).map(name => byName.get(name) as ColumnLayout)
  const start = table.keyedBy === 'rowid' ? '_sync_key' : "''"
  const row = (valueOf: (column: ColumnLayout, prefix: string) => string) =>
    concatenation([start, ...columns.map(c => `coalesce(${valueOf(c, columnPrefix(c.source))}, '')`)])
  const plain = row((c, prefix) => canonicalSql(quote(c.target), c, prefix))
  const withRaw = row(
    (c, prefix) =>
      `${literal(prefix)} || (_sync_raw ->> ${literal(c.target)}), ${canonicalSql(quote(c.target), c, prefix)}`,
  )
  return `substring(sha256(convert_to(case when _sync_raw is null then ${plain} else ${withRaw} end, 'UTF8')) from 1 for 16)`
}

/**
 * Ends a subquery that the planner must compute as it stands. Typed, it is a constant from the start, and the planner
 * sees that it limits nothing: an untyped zero would forbid parallel workers.
 */
export const KEPT_APART = "offset bigint '0'"

/**
 * @returns SQL for the rows of a client table whose json is turned into text once, instead of wherever it is used, and
 * the layout that reads them. `where` limits the rows.
 */
export function withPlainText(
  schema: string,
  table: TableLayout,
  where: string,
): {from: string; layout: TableLayout} {
  const isJson = ({type}: ColumnLayout) => type === 'json'
  const columns = table.columns.map(c =>
    isJson(c) ? `${quote(c.target)}::text as ${quote(c.target)}` : quote(c.target),
  )
  const bookkeeping = [
    '_sync_key',
    '_sync_hash',
    '_sync_deleted_at',
    '_sync_edited_by',
    '_sync_diverged',
    '_sync_raw',
  ]
  return {
    // So that the planner does not put the casts back into every place.
    from: `(select ${[...bookkeeping, ...columns].join(', ')} from ${quote(schema)}.${quote(table.target)} where ${where} ${KEPT_APART}) as rows`,
    layout: {
      ...table,
      columns: table.columns.map(c =>
        isJson(c) ? {...c, type: 'text' as const, affinity: 'text' as const} : c,
      ),
    },
  }
}

/** A balanced tree of `||`: a table of 1,500 columns in one chain would exhaust the server's parser stack. */
function concatenation(parts: readonly string[]): string {
  if (parts.length <= 2) return parts.join(' || ')
  const half = parts.length >> 1
  return `(${concatenation(parts.slice(0, half))}) || (${concatenation(parts.slice(half))})`
}
