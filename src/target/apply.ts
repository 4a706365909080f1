import type {ColumnLayout, TableLayout} from '../core/layout.ts'
import {SyncError} from '../core/errors.ts'
import {fragment, join, raw, type Fragment, type Tx} from '../postgres/sql.ts'
import {isDataError, type DataError} from '../postgres/sqlstate.ts'
import type {TargetRow} from './copy-format.ts'
import {quote} from './row-sql.ts'
import type {Typed} from './type-map.ts'

/** The changes of one table of one cut, in whichever form fits their number. */
export type TableChanges = {
  readonly layout: TableLayout
  /** The rows when they are few enough to be parameters of one statement; else `stream` is used. */
  readonly small: readonly TargetRow[] | undefined
  readonly count: number
  readonly tombstones: readonly string[]
  /** True when a key may come twice, because the app changed rows while they were being read: the later one counts. */
  readonly mayRepeat: boolean
  /** Find out which of the staged rows Postgres refuses; it had not said so itself. */
  readonly findRefused?: boolean
  /** Rows that somebody else has edited, or that may differ, are written too: what they hold is to be undone. */
  readonly overwrites?: boolean
  stream(skip: ReadonlySet<number>): AsyncIterable<Uint8Array>
}

/** A staged row that Postgres refused, by its number among those that were sent, counted from 1. */
export type RefusedLine = {readonly line: number; readonly cause: DataError}

/** Postgres refused rows of one table; `cause` is its error. */
export class TableRefusedError extends SyncError {
  override readonly name = 'TableRefusedError'
  readonly code = 'SYNC_TABLE_REFUSED'
  readonly table: string
  override readonly cause: DataError
  /** Which rows, when Postgres or a search said so. */
  readonly lines: readonly RefusedLine[]
  readonly next = 'Read the cause; the rows stay in the source and are tried again on the next sync.'

  constructor(layout: TableLayout, cause: DataError, lines?: readonly RefusedLine[]) {
    super(`table ${layout.source}: Postgres refused the rows: ${cause.message}`, {cause})
    this.table = layout.source
    this.cause = cause
    this.lines = lines ?? (cause.line === undefined ? [] : [{line: cause.line, cause}])
  }
}

/** How many rows were left as they stand, at most: those with a mark, or with a difference that was accepted. */
export type PassedOver = {readonly upserts: number; readonly tombstones: number}

/**
 * Writes one table's changes: at most two statements, whatever the number of rows, and two more when they are staged.
 *
 * Rows with a mark, or with a difference that was accepted, are passed over and locked: whoever called decides about
 * them in the same transaction. That costs no look at all as long as there are none.
 *
 * @param skip numbers of rows to leave out of a staged write (see {@link TableChanges.stream}).
 * @throws {TableRefusedError} around what Postgres said.
 */
export async function applyTable(
  tx: Tx,
  schema: string,
  changes: TableChanges,
  skip: ReadonlySet<number>,
  signal: AbortSignal,
): Promise<PassedOver> {
  try {
    let upserts = 0
    if (isSent(changes, skip)) upserts = await upsertSmall(tx, schema, changes, dedupe(changes))
    else if (changes.count > skip.size) upserts = await upsertStaged(tx, schema, changes, skip, signal)
    const tombstones = await tombstone(tx, schema, changes)
    return {upserts, tombstones}
  } catch (cause) {
    throw refusal(changes.layout, cause)
  }
}

/** Whether the rows go as parameters; else they are staged, and stand in {@link STAGE} until the next table's do. */
export function isSent({small}: Pick<TableChanges, 'small'>, skip: ReadonlySet<number>): boolean {
  return small !== undefined && skip.size === 0
}

/** The temporary table of rows on their way, as a quoted qualified name. */
export const STAGE = 'pg_temp."_sync_stage"'

/** Copies rows into {@link STAGE}, which has what the table has. */
export async function stageRows(
  tx: Tx,
  schema: string,
  layout: TableLayout,
  rows: AsyncIterable<Uint8Array>,
  signal: AbortSignal,
): Promise<void> {
  const stage = quote('_sync_stage')
  const columns = columnList(layout)
  // All of it one query, so that staging costs no round trip more than COPY does.
  await tx.copyFrom(
    raw(`drop table if exists pg_temp.${stage};
      create temp table ${stage} on commit drop as select ${columns} from ${nameOf(schema, layout)} limit 0;
      alter table ${stage} add column _sync_line bigint generated always as identity;
      copy pg_temp.${stage} (${columns}) from stdin (format binary)`),
    rows,
    signal,
  )
}

/** Copies rows straight into a table that has no rows with these keys: a first load, before its primary key exists. */
export async function copyInto(
  tx: Tx,
  schema: string,
  layout: TableLayout,
  rows: AsyncIterable<Uint8Array>,
  signal: AbortSignal,
): Promise<void> {
  try {
    await tx.copyFrom(
      raw(`copy ${nameOf(schema, layout)} (${columnList(layout)}) from stdin (format binary)`),
      rows,
      signal,
    )
  } catch (cause) {
    throw refusal(layout, cause)
  }
}

/** Makes a tombstone of every live row of a table that the app has dropped, but of those that were passed over. */
export async function tombstoneAll(tx: Tx, schema: string, target: string): Promise<void> {
  await tx`update ${raw(`${quote(schema)}.${quote(target)}`)}
    set _sync_deleted_at = now(), _sync_at = now() where _sync_deleted_at is null and ${raw(UNTOUCHED)}`
}

/** Empties a column that the app has brought back, so that what it held before is not taken for what it holds now. */
export async function clearColumn(tx: Tx, schema: string, target: string, column: string): Promise<void> {
  await tx`update ${raw(`${quote(schema)}.${quote(target)}`)}
    set ${raw(quote(column))} = null, _sync_raw = nullif(_sync_raw - ${column}, '{}'::jsonb)
    where ${raw(quote(column))} is not null or _sync_raw ? ${column}`
}

/** A lost connection or lease is not the table's fault, and is told as what it is. */
export function refusal(layout: TableLayout, cause: unknown): unknown {
  return isDataError(cause) ? new TableRefusedError(layout, cause) : cause
}

async function upsertSmall(
  tx: Tx,
  schema: string,
  {layout, overwrites}: TableChanges,
  rows: readonly TargetRow[],
): Promise<number> {
  if (rows.length === 0) return 0
  const types = [...layout.columns.map(column => column.type), 'text', 'bytea', 'jsonb']
  const values = [
    ...layout.columns.map((_, i) => rows.map(row => asParameter(row.typed[i] as Typed))),
    rows.map(row => row.key),
    rows.map(row => asParameter(row.digest)),
    rows.map(row => row.raw),
  ]
  const arrays = join(values.map(list => fragment`${list}::text[]`))
  const names = types.map((_, i) => `c${i}`)
  const casts = types.map((type, i) => `c${i}::${type}`)
  const put = await counted(
    tx,
    fragment`insert into ${raw(nameOf(schema, layout))} as t (${raw(columnList(layout))})
      select ${raw(casts.join(', '))} from unnest(${arrays}) as s (${raw(names.join(', '))})
      ${onConflict(layout, overwrites)}`,
  )
  return rows.length - put
}

async function upsertStaged(
  tx: Tx,
  schema: string,
  changes: TableChanges,
  skip: ReadonlySet<number>,
  signal: AbortSignal,
): Promise<number> {
  const {layout} = changes
  const stage = quote('_sync_stage')
  const columns = columnList(layout)
  await stageRows(tx, schema, layout, changes.stream(skip), signal)
  let left = changes.count - skip.size
  const insert = async (lines: Fragment) => {
    const last = changes.mayRepeat
      ? fragment`(select distinct on (_sync_key) * from ${raw(`pg_temp.${stage}`)} ${lines}
          order by _sync_key, _sync_line desc) s`
      : fragment`${raw(`pg_temp.${stage}`)} ${lines}`
    left -= await counted(
      tx,
      fragment`insert into ${raw(nameOf(schema, layout))} as t (${raw(columns)})
        select ${raw(columns)} from ${last}
        ${onConflict(layout, changes.overwrites)}`,
    )
  }
  if (changes.findRefused !== true) {
    await insert(raw(''))
    return left
  }
  const refused = await refusedLines(tx, insert, 1, changes.count - skip.size)
  const [first] = refused
  if (first !== undefined) throw new TableRefusedError(layout, first.cause, refused)
  return left
}

/** Halves the rows until each that Postgres refuses stands alone. Later rows come after earlier ones. */
async function refusedLines(
  tx: Tx,
  insert: (lines: Fragment) => Promise<void>,
  from: number,
  to: number,
): Promise<RefusedLine[]> {
  try {
    await tx.savepoint(() => insert(fragment`where _sync_line between ${from} and ${to}`))
    return []
  } catch (cause) {
    if (!isDataError(cause)) throw cause
    if (from === to) return [{line: from, cause}]
    const middle = Math.floor((from + to) / 2)
    const earlier = await refusedLines(tx, insert, from, middle)
    if (earlier.length > MOST_REFUSED) return earlier
    return [...earlier, ...(await refusedLines(tx, insert, middle + 1, to))]
  }
}

/** So many refused rows of one table are not the rows' fault. */
const MOST_REFUSED = 100

async function tombstone(
  tx: Tx,
  schema: string,
  {layout, tombstones: keys, overwrites}: TableChanges,
): Promise<number> {
  if (keys.length === 0) return 0
  const gone = await counted(
    tx,
    fragment`update ${raw(nameOf(schema, layout))} set _sync_deleted_at = now(), _sync_at = now()
      where _sync_key = any(${keys}::text[]) and _sync_deleted_at is null
        and ${raw(overwrites === true ? 'true' : UNTOUCHED)}`,
  )
  return keys.length - gone
}

/** Nobody else has edited the row, and nothing lets it differ. */
const UNTOUCHED = '_sync_edited_by is null and _sync_diverged is null'

/** @returns how many rows a statement has changed. */
async function counted(tx: Tx, statement: Fragment): Promise<number> {
  const [row] = await tx<{rows: number}>`
    with changed as (${statement} returning 1) select count(*)::int as rows from changed`
  return row?.rows ?? 0
}

function onConflict(layout: TableLayout, overwrites = false): Fragment {
  const set = [...layout.columns.map(column => quote(column.target)), '_sync_hash', '_sync_raw'].map(
    name => `${name} = excluded.${name}`,
  )
  const where = overwrites ? '' : 'where t._sync_edited_by is null and t._sync_diverged is null'
  return raw(
    `on conflict (_sync_key) do update set ${set.join(', ')}, _sync_at = now(), _sync_deleted_at = null ${where}`,
  )
}

function dedupe(changes: TableChanges): readonly TargetRow[] {
  const rows = changes.small ?? []
  return changes.mayRepeat ? [...new Map(rows.map(row => [row.key, row])).values()] : rows
}

function columnList(layout: TableLayout): string {
  return [
    ...layout.columns.map((column: ColumnLayout) => quote(column.target)),
    '_sync_key',
    '_sync_hash',
    '_sync_raw',
  ].join(', ')
}

function nameOf(schema: string, layout: TableLayout): string {
  return `${quote(schema)}.${quote(layout.target)}`
}

/** A value as the text of a parameter. */
export function asParameter(value: Typed): string | null {
  if (value instanceof Uint8Array)
    return `\\x${Buffer.from(value.buffer, value.byteOffset, value.byteLength).toString('hex')}`
  return value === null ? null : Object.is(value, -0) ? '-0' : String(value)
}
