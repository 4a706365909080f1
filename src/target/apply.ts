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

/**
 * Writes one table's changes: at most two statements, whatever the number of rows, and two more when they are staged.
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
): Promise<void> {
  try {
    if (changes.small !== undefined && skip.size === 0)
      await upsertSmall(tx, schema, changes.layout, dedupe(changes))
    else if (changes.count > skip.size) await upsertStaged(tx, schema, changes, skip, signal)
    await tombstone(tx, schema, changes.layout, changes.tombstones)
  } catch (cause) {
    throw refusal(changes.layout, cause)
  }
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

/** Marks every live row of a table that the app has dropped. */
export async function tombstoneAll(tx: Tx, schema: string, target: string): Promise<void> {
  await tx`update ${raw(`${quote(schema)}.${quote(target)}`)}
    set _sync_deleted_at = now(), _sync_at = now() where _sync_deleted_at is null`
}

/** Empties a column that the app has brought back, so that what it held before is not taken for what it holds now. */
export async function clearColumn(tx: Tx, schema: string, target: string, column: string): Promise<void> {
  await tx`update ${raw(`${quote(schema)}.${quote(target)}`)}
    set ${raw(quote(column))} = null, _sync_raw = nullif(_sync_raw - ${column}, '{}'::jsonb)
    where ${raw(quote(column))} is not null or _sync_raw ? ${column}`
}

/** A lost connection or lease is not the table's fault, and is told as what it is. */
function refusal(layout: TableLayout, cause: unknown): unknown {
  return isDataError(cause) ? new TableRefusedError(layout, cause) : cause
}

async function upsertSmall(
  tx: Tx,
  schema: string,
  layout: TableLayout,
  rows: readonly TargetRow[],
): Promise<void> {
  if (rows.length === 0) return
  const types = [...layout.columns.map(column => column.type), 'text', 'bytea', 'jsonb']
  const values = [
    ...layout.columns.map((_, i) => rows.map(row => asText(row.typed[i] as Typed))),
    rows.map(row => row.key),
    rows.map(row => asText(row.digest)),
    rows.map(row => row.raw),
  ]
  const arrays = join(values.map(list => fragment`${list}::text[]`))
  const names = types.map((_, i) => `c${i}`)
  const casts = types.map((type, i) => `c${i}::${type}`)
  await tx`
    insert into ${raw(nameOf(schema, layout))} as t (${raw(columnList(layout))})
    select ${raw(casts.join(', '))} from unnest(${arrays}) as s (${raw(names.join(', '))})
    ${onConflict(layout)}`
}

async function upsertStaged(
  tx: Tx,
  schema: string,
  changes: TableChanges,
  skip: ReadonlySet<number>,
  signal: AbortSignal,
): Promise<void> {
  const {layout} = changes
  const stage = quote('_sync_stage')
  const columns = columnList(layout)
  // All of it one query, so that staging costs no round trip more than COPY does.
  await tx.copyFrom(
    raw(`drop table if exists pg_temp.${stage};
      create temp table ${stage} on commit drop as select ${columns} from ${nameOf(schema, layout)} limit 0;
      alter table ${stage} add column _sync_line bigint generated always as identity;
      copy pg_temp.${stage} (${columns}) from stdin (format binary)`),
    changes.stream(skip),
    signal,
  )
  const insert = async (lines: Fragment) => {
    const last = changes.mayRepeat
      ? fragment`(select distinct on (_sync_key) * from ${raw(`pg_temp.${stage}`)} ${lines}
          order by _sync_key, _sync_line desc) s`
      : fragment`${raw(`pg_temp.${stage}`)} ${lines}`
    await tx`
      insert into ${raw(nameOf(schema, layout))} as t (${raw(columns)})
      select ${raw(columns)} from ${last}
      ${onConflict(layout)}`
  }
  if (changes.findRefused !== true) {
    await insert(raw(''))
    return
  }
  const refused = await refusedLines(tx, insert, 1, changes.count - skip.size)
  const [first] = refused
  if (first !== undefined) throw new TableRefusedError(layout, first.cause, refused)
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
  layout: TableLayout,
  keys: readonly string[],
): Promise<void> {
  if (keys.length === 0) return
  await tx`update ${raw(nameOf(schema, layout))} set _sync_deleted_at = now(), _sync_at = now()
    where _sync_key = any(${keys}::text[]) and _sync_deleted_at is null`
}

function onConflict(layout: TableLayout): Fragment {
  const set = [...layout.columns.map(column => quote(column.target)), '_sync_hash', '_sync_raw'].map(
    name => `${name} = excluded.${name}`,
  )
  return raw(
    `on conflict (_sync_key) do update set ${set.join(', ')}, _sync_at = now(), _sync_deleted_at = null`,
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

function asText(value: Typed): string | null {
  if (value instanceof Uint8Array)
    return `\\x${Buffer.from(value.buffer, value.byteOffset, value.byteLength).toString('hex')}`
  return value === null ? null : Object.is(value, -0) ? '-0' : String(value)
}
