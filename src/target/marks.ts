import {fromCanonical} from '../core/canonical.ts'
import type {ColumnLayout, TableLayout} from '../core/layout.ts'
import type {Value} from '../core/value.ts'
import {fragment, join, raw, type Fragment, type Sql, type Tx} from '../postgres/sql.ts'
import {asParameter, STAGE} from './apply.ts'
import type {TargetRow} from './copy-format.ts'
import {digestSql, quote} from './row-sql.ts'
import {canonicalSql, literal, type Typed} from './type-map.ts'

// Rows that somebody else has changed, and those that may differ: what stands in them, and what becomes of them. Of both,
// `_sync_hash` says what the source's row was at the last cut; null is none, whatever the target has.

/** A row with a mark, or with a difference that was accepted, as it stands in the target. */
export type MarkedRow = {
  readonly key: string
  /** Who edited it; `undefined` when nobody has since it was decided. */
  readonly editedBy: string | undefined
  /** The conflict by which it may differ. */
  readonly divergedBy: string | undefined
  /** Digest of the source's row as of the last cut; `undefined` when there was none. */
  readonly hash: Buffer | undefined
  /** What the target holds, in the order of the layout's columns; `undefined` for a tombstone. */
  readonly target: {readonly values: readonly Value[]; readonly digest: Buffer} | undefined
}

/** A marked row of the queue, by what identifies it. */
export type QueuedRow = {
  readonly key: string
  readonly hash: Buffer | undefined
  /** Values of the layout's key columns; a NULL among them, or none at all, and the key holds a rowid. */
  readonly parts: readonly Value[]
}

/** A row as a cut has it: what is written, and what that means. */
export type SourceSide = {readonly digest: Buffer; readonly values: readonly Value[]}

/** What becomes of a row that was passed over. */
export type Settlement = {
  readonly key: string
  /** `write`: these values; `delete`: a tombstone; `keep`: what stands there. */
  readonly do: 'write' | 'delete' | 'keep'
  /** For `write`. Its digest is not used. */
  readonly row?: TargetRow | undefined
  /** Digest of the source's row; `undefined` when the source has none. */
  readonly hash: Uint8Array | undefined
  /** The conflict by which the row differs from now on. */
  readonly divergedBy: string | undefined
}

/** Target names of the client's tables with marked rows. */
export async function markedTables(sql: Sql, schema: string): Promise<string[]> {
  const rows = await sql<{name: string}>`select name from sync_metadata.marked_tables(${schema}) as name`
  return rows.map(({name}) => name)
}

/** Reads the queue of one table in the order of its keys, in pages of at most `limit` rows. Locks nothing. */
export async function* queuedRows(
  sql: Sql,
  schema: string,
  layout: TableLayout,
  limit: number,
): AsyncGenerator<QueuedRow[]> {
  const parts = layout.key.map(name => layout.columns.find(column => column.source === name) as ColumnLayout)
  for (let after: string | undefined; ;) {
    const rows: (WithValues & {key: string; hash: Buffer | null})[] = await sql`
      select _sync_key as key, _sync_hash as hash${raw(valuesSql(parts))}
      from ${raw(nameOf(schema, layout))}
      where _sync_edited_by is not null ${after === undefined ? raw('') : fragment`and _sync_key > ${after}`}
      order by _sync_key limit ${limit}`
    if (rows.length > 0)
      yield rows.map(row => ({
        key: row.key,
        hash: row.hash ?? undefined,
        parts: valuesOf(parts, row),
      }))
    after = rows.at(-1)?.key
    if (rows.length < limit) return
  }
}

/** A row that may differ and that the source has: what stands there, and what the ledger says of the source. */
export type DivergedRow = {
  readonly key: string
  /** Digest of the source's row. */
  readonly hash: Buffer
  readonly values: readonly Value[]
  /** The conflict's `source_data`; `null` when it is not kept any more. */
  readonly source: string | null
}

/** Reads the rows of a table that may differ and that the source has, in pages of at most `limit`. */
export async function* divergedRows(
  tx: Tx,
  schema: string,
  layout: TableLayout,
  limit: number,
): AsyncGenerator<DivergedRow[]> {
  for (let after: string | undefined; ;) {
    const rows: (WithValues & {key: string; hash: Buffer; source: string | null})[] = await tx`
      select _sync_key as key, _sync_hash as hash, c.source_data::text as source${raw(valuesSql(layout.columns))}
      from ${raw(nameOf(schema, layout))} t
      left join sync_metadata.conflict_log c on c.conflict_id = t._sync_diverged
      where _sync_diverged is not null and _sync_hash is not null
        ${after === undefined ? raw('') : fragment`and _sync_key > ${after}`}
      order by _sync_key limit ${limit}`
    if (rows.length > 0)
      yield rows.map(row => ({
        key: row.key,
        hash: row.hash,
        values: valuesOf(layout.columns, row),
        source: row.source,
      }))
    after = rows.at(-1)?.key
    if (rows.length < limit) return
  }
}

/**
 * Keys of the staged rows that were passed over, in their order, in pages of at most `limit`. What is decided about a page
 * before the next one is asked for changes nothing about that one.
 *
 * @param most how many there can be.
 */
export async function* passedOverInStage(
  tx: Tx,
  schema: string,
  layout: TableLayout,
  most: number,
  limit: number,
): AsyncGenerator<string[]> {
  const touched = fragment`select distinct _sync_key from ${raw(STAGE)} s
    join ${raw(nameOf(schema, layout))} t using (_sync_key) where ${raw(TOUCHED)}`
  if (most <= limit) {
    const rows = await tx<{key: string}>`select _sync_key as key from (${touched}) t order by _sync_key`
    if (rows.length > 0) yield rows.map(({key}) => key)
    return
  }
  // Found once, and the rows of each page by an index: nothing says yet where which one is.
  await tx`drop table if exists ${raw(PASSED)}`
  await tx`create temp table _sync_passed on commit drop as ${touched}`
  await tx`${raw(`create index on ${PASSED} (_sync_key); analyze ${PASSED};
    create index on ${STAGE} (_sync_key); analyze ${STAGE} (_sync_key)`)}`
  for (let after: string | undefined; ;) {
    const rows: {key: string}[] = await tx`
      select _sync_key as key from ${raw(PASSED)}
      ${after === undefined ? raw('') : fragment`where _sync_key > ${after}`} order by _sync_key limit ${limit}`
    if (rows.length > 0) yield rows.map(({key}) => key)
    after = rows.at(-1)?.key
    if (rows.length < limit) return
  }
}

/** The temporary table of the keys that {@link passedOverInStage} has found, as a quoted qualified name. */
const PASSED = 'pg_temp."_sync_passed"'

/** Keys of a table's rows with a mark or an accepted difference: of those that are asked for, or of all; or with a mark. */
export async function passedOver(
  tx: Tx,
  schema: string,
  layout: TableLayout,
  keys: readonly string[] | 'all' | 'marked',
): Promise<string[]> {
  const which =
    keys === 'all'
      ? raw(TOUCHED)
      : keys === 'marked'
        ? raw('t._sync_edited_by is not null')
        : fragment`${raw(TOUCHED)} and t._sync_key = any(${keys}::text[])`
  const rows = await tx<{key: string}>`
    select t._sync_key as key from ${raw(nameOf(schema, layout))} t where ${which}`
  return rows.map(({key}) => key)
}

/** The source's side of staged rows, as it was sent last. */
export async function stagedSides(
  tx: Tx,
  layout: TableLayout,
  keys: readonly string[],
): Promise<Map<string, SourceSide>> {
  const rows = await tx<WithValues & {key: string; digest: Buffer}>`
    select distinct on (_sync_key) _sync_key as key, _sync_hash as digest${raw(valuesSql(layout.columns))}
    from ${raw(STAGE)} where _sync_key = any(${keys}::text[]) order by _sync_key, _sync_line desc`
  return new Map(rows.map(row => [row.key, {digest: row.digest, values: valuesOf(layout.columns, row)}]))
}

/**
 * Reads marked rows, and those that may differ, and locks them: nobody edits them until the transaction ends.
 *
 * @param which `'any'`: whatever rows there are.
 * @param how `'look'`: nobody is kept from editing them.
 */
export async function lockMarked(
  tx: Tx,
  schema: string,
  layout: TableLayout,
  keys: readonly string[],
  which: 'touched' | 'any' = 'touched',
  how: 'lock' | 'look' = 'lock',
): Promise<MarkedRow[]> {
  const rows = await tx<
    WithValues & {
      key: string
      by: string | null
      diverged: string | null
      hash: Buffer | null
      gone: boolean
      digest: Buffer
    }
  >`
    select _sync_key as key, _sync_edited_by as by, _sync_diverged as diverged, _sync_hash as hash,
      _sync_deleted_at is not null as gone, ${raw(digestSql(layout))} as digest${raw(valuesSql(layout.columns))}
    from ${raw(nameOf(schema, layout))} t
    where _sync_key = any(${keys}::text[]) and ${raw(which === 'any' ? 'true' : TOUCHED)}
    order by _sync_key
    ${raw(how === 'lock' ? 'for no key update' : '')}`
  return rows.map(row => ({
    key: row.key,
    editedBy: row.by ?? undefined,
    divergedBy: row.diverged ?? undefined,
    hash: row.hash ?? undefined,
    target: row.gone ? undefined : {digest: row.digest, values: valuesOf(layout.columns, row)},
  }))
}

/** Makes rows what was decided about them. They must be locked: what was read of them is what is replaced. */
export async function settle(
  tx: Tx,
  schema: string,
  layout: TableLayout,
  settlements: readonly Settlement[],
): Promise<void> {
  const table = raw(nameOf(schema, layout))
  const of = (what: Settlement['do']) => settlements.filter(each => each.do === what)
  const kept = of('keep')
  if (kept.length > 0)
    await tx`
      update ${table} t set _sync_hash = s.hash, _sync_diverged = s.diverged, _sync_edited_by = null
      from ${bookkeeping(kept)} where t._sync_key = s.key`
  const deleted = of('delete')
  if (deleted.length > 0)
    await tx`
      update ${table} t set _sync_deleted_at = coalesce(t._sync_deleted_at, now()), _sync_at = now(),
        _sync_diverged = s.diverged, _sync_edited_by = null,
        _sync_hash = case when s.diverged is null then t._sync_hash else s.hash end
      from ${bookkeeping(deleted)} where t._sync_key = s.key`
  const written = of('write')
  if (written.length > 0) {
    const values = layout.columns.map((_, i) =>
      written.map(({row}) => asParameter((row as TargetRow).typed[i] as Typed)),
    )
    const raws = written.map(({row}) => (row as TargetRow).raw)
    const names = layout.columns.map((_, i) => `c${i}`)
    const set = layout.columns.map(({target, type}, i) => `${quote(target)} = v.c${i}::${type}`)
    await tx`
      update ${table} t set ${raw(set.join(', '))}, _sync_raw = v.raw::jsonb, _sync_hash = s.hash, _sync_at = now(),
        _sync_deleted_at = null, _sync_diverged = s.diverged, _sync_edited_by = null
      from ${bookkeeping(written)}
      join unnest(${join([...values, raws].map(list => fragment`${list}::text[]`))})
        with ordinality as v (${raw([...names, 'raw', 'n'].join(', '))}) using (n)
      where t._sync_key = s.key`
  }
}

/**
 * Gives rows other keys. One whose new key another row has, or gets, stays as it is.
 *
 * @param moves new keys by old ones.
 * @returns the moves that were made.
 */
export async function moveKeys(
  tx: Tx,
  schema: string,
  layout: TableLayout,
  moves: ReadonlyMap<string, string>,
): Promise<ReadonlyMap<string, string>> {
  if (moves.size === 0) return moves
  const table = raw(nameOf(schema, layout))
  const rows = await tx<{was: string; now: string}>`
    update ${table} t set _sync_key = m.now
    from (
      select distinct on (now) was, now
      from unnest(${[...moves.keys()]}::text[], ${[...moves.values()]}::text[]) as m (was, now) order by now, was
    ) m
    where t._sync_key = m.was and not exists (select from ${table} o where o._sync_key = m.now)
    returning m.was, m.now`
  return new Map(rows.map(({was, now}) => [was, now]))
}

function bookkeeping(settlements: readonly Settlement[]): Fragment {
  const hashes = settlements.map(({hash}) => (hash === undefined ? null : asParameter(hash)))
  return fragment`unnest(${settlements.map(({key}) => key)}::text[], ${hashes}::bytea[],
    ${settlements.map(({divergedBy}) => divergedBy ?? null)}::uuid[])
    with ordinality as s (key, hash, diverged, n)`
}

const TOUCHED = '(t._sync_edited_by is not null or t._sync_diverged is not null)'

/** A row with what {@link valuesSql} has asked for. */
export type WithValues = Readonly<Record<`v${number}`, string | null>>

/**
 * Columns in canonical form, as `v0`, `v1`, … behind others: an array of them would be taken apart letter by letter.
 *
 * @param of the alias, with its dot, that the columns are qualified by.
 */
export function valuesSql(columns: readonly ColumnLayout[], of = ''): string {
  return columns.map((column, i) => `, ${canonicalValue(column, of)} as v${i}`).join('')
}

export function canonicalValue(column: ColumnLayout, of = ''): string {
  return `coalesce(${of}_sync_raw ->> ${literal(column.target)}, ${canonicalSql(`${of}${quote(column.target)}`, column)})`
}

export function valuesOf(columns: readonly ColumnLayout[], row: WithValues): Value[] {
  return columns.map((_, i) => {
    const value = row[`v${i}`] ?? null
    return value === null ? null : fromCanonical(value)
  })
}

export function nameOf(schema: string, layout: TableLayout): string {
  return `${quote(schema)}.${quote(layout.target)}`
}
