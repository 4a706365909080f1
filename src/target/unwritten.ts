import type {ColumnLayout, TableLayout} from '../core/layout.ts'
import type {Value} from '../core/value.ts'
import {fragment, raw, type Sql} from '../postgres/sql.ts'
import {canonicalValue, nameOf, valuesOf, valuesSql, type WithValues} from './marks.ts'

// Rows that were decided, and that the source does not have so: what a two_way sync writes to it. That a row differs by a
// conflict that nobody has to decide any more is all there is of this queue, so nothing of it can be lost.

/** What writing a row means to the source. */
export type WriteKind = 'delete' | 'update' | 'insert'

/** In this order the values that only one row can have are free when the next one needs them, more often than not. */
export const writeKinds = ['delete', 'update', 'insert'] as const satisfies readonly WriteKind[]

/** A row to be written, by what identifies it. */
export type UnwrittenRow = {
  readonly key: string
  readonly conflictId: string
  /** Digest of the row that the source has; `undefined`: none. */
  readonly hash: Buffer | undefined
  /** Values of the layout's key columns; a NULL among them, or none at all, and the key holds a rowid. */
  readonly parts: readonly Value[]
  /** About how long its values are. */
  readonly bytes: number
}

/** How many rows of a table wait. */
export type Unwritten = {readonly table: string; readonly kind: WriteKind; readonly rows: number}

/** @returns how many rows wait, by table of the target and kind. */
export async function countUnwritten(
  sql: Sql,
  schema: string,
  deploymentId: string,
  layouts: readonly TableLayout[],
): Promise<Unwritten[]> {
  const tables = await sql<{name: string}>`
    select distinct table_name as name from sync_metadata.conflict_log
    where deployment_id = ${deploymentId} and is_standing and status in ('resolved', 'undone')`
  const counts: Unwritten[] = []
  // A handful: those tables in which somebody has edited rows.
  for (const {name} of tables) {
    const layout = layouts.find(({target}) => target === name)
    if (layout === undefined) continue
    const rows = await sql<{kind: WriteKind; rows: number}>`
      select ${raw(kindSql)} as kind, count(*)::int as rows from ${waiting(schema, deploymentId, layout)}
        and (t._sync_hash is not null or t._sync_deleted_at is null)
      group by 1`
    counts.push(...rows.map(({kind, rows}) => ({table: name, kind, rows})))
  }
  return counts.sort((a, b) => a.table.localeCompare(b.table))
}

/** Reads a page of the queue of one table and kind, in the order of the keys. Locks nothing. */
export async function unwrittenRows(
  sql: Sql,
  schema: string,
  deploymentId: string,
  layout: TableLayout,
  {
    kind,
    after,
    limit,
  }: {readonly kind: WriteKind; readonly after: string | undefined; readonly limit: number},
): Promise<UnwrittenRow[]> {
  const parts = layout.key.map(name => layout.columns.find(column => column.source === name) as ColumnLayout)
  const all = layout.columns.map(column => canonicalValue(column, 't.')).join(', ')
  const rows = await sql<WithValues & {key: string; conflictId: string; hash: Buffer | null; bytes: number}>`
    select t._sync_key as key, c.conflict_id as "conflictId", t._sync_hash as hash,
      octet_length(concat(${raw(all)}))::int as bytes${raw(valuesSql(parts, 't.'))}
    from ${waiting(schema, deploymentId, layout)}
      and ${raw(kindSql)} = ${kind} and (t._sync_hash is not null or t._sync_deleted_at is null)
      ${after === undefined ? raw('') : fragment`and t._sync_key > ${after}`}
    order by t._sync_key limit ${limit}`
  return rows.map(row => {
    const {key, conflictId, hash, bytes} = row
    return {key, conflictId, hash: hash ?? undefined, bytes, parts: valuesOf(parts, row)}
  })
}

/** @returns what rows hold, in the order of the layout's columns, if they still differ by the same conflict. */
export async function valuesToWrite(
  sql: Sql,
  schema: string,
  layout: TableLayout,
  rows: readonly Pick<UnwrittenRow, 'key' | 'conflictId'>[],
): Promise<ReadonlyMap<string, readonly Value[]>> {
  const found = await sql<WithValues & {key: string}>`
    select t._sync_key as key${raw(valuesSql(layout.columns, 't.'))} from ${raw(nameOf(schema, layout))} t
    join unnest(${rows.map(({key}) => key)}::text[], ${rows.map(({conflictId}) => conflictId)}::uuid[]) w (key, conflict)
      on t._sync_key = w.key collate "C" and t._sync_diverged = w.conflict
    where t._sync_edited_by is null`
  return new Map(found.map(row => [row.key, valuesOf(layout.columns, row)]))
}

const kindSql = `case when t._sync_deleted_at is not null then 'delete' when t._sync_hash is null then 'insert' else 'update' end`

/** The rows of a table that wait. Edited once more, a row is decided anew first. */
function waiting(schema: string, deploymentId: string, layout: TableLayout) {
  return fragment`sync_metadata.conflict_log c
    join ${raw(nameOf(schema, layout))} t on t._sync_key = c.record_key collate "C" and t._sync_diverged = c.conflict_id
    where c.deployment_id = ${deploymentId} and c.table_name = ${layout.target} and c.is_standing
      and c.status in ('resolved', 'undone') and t._sync_edited_by is null`
}
