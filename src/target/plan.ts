import {SyncError} from '../core/errors.ts'
import type {ColumnLayout, TableLayout} from '../core/layout.ts'
import type {Sql} from '../postgres/sql.ts'
import {affinityOf, type PgType} from '../core/value.ts'
import {columnName, indexName, tableName, viewColumnName} from './names.ts'
import {canWiden, chooseType} from './type-map.ts'

/** A source table as planning needs it. */
export type PlannedSource = {
  readonly name: string
  readonly withoutRowid: boolean
  readonly keyedBy: TableLayout['keyedBy']
  readonly key: readonly string[]
  readonly columns: readonly {readonly name: string; readonly declared: string; readonly generated: boolean}[]
  readonly indexes: readonly {readonly columns: readonly string[]}[]
}

/** One step of `sync_metadata.evolve_schema`; sql/0003_client_schemas.sql says what each takes. */
export type Operation = {readonly op: string; readonly table: string; readonly [key: string]: unknown}

/** What the client schema has: table names with their columns, dropped ones included. */
export type Existing = ReadonlyMap<string, ReadonlyMap<string, PgType>>

/** How the client schema follows the source's. */
export type Plan = {
  readonly tables: readonly TableLayout[]
  /** Before rows are written: tables, columns, types, names. */
  readonly operations: readonly Operation[]
  /** After a first load has copied its rows into fresh tables: key, indexes, view. */
  readonly finish: readonly Operation[]
  /** Columns that come back and must not show what they held before. */
  readonly clear: readonly {readonly table: string; readonly column: string}[]
  /** Layouts of tables that the source has no more. */
  readonly vanished: readonly TableLayout[]
  /** Source names of tables whose rows have other keys than before. */
  readonly rekeyed: ReadonlySet<string>
  /** Source name now -> as of the last cut, for tables that are called otherwise. */
  readonly follows: ReadonlyMap<string, string>
}

/** A table that Postgres cannot hold. */
export class TooManyColumnsError extends SyncError {
  override readonly name = 'TooManyColumnsError'
  readonly code = 'SYNC_TOO_MANY_COLUMNS'
  readonly next = 'Remove or split the table in the source; Postgres tables hold at most 1,600 columns.'

  constructor(table: string, columns: number) {
    super(`table ${table} has ${columns} columns, more than the ${MOST_COLUMNS} that can be mirrored`)
  }
}

const MOST_COLUMNS = 1_500

/** @throws {TooManyColumnsError} */
export function refuseTooWide(sources: readonly Pick<PlannedSource, 'name' | 'columns'>[]): void {
  for (const {name, columns} of sources)
    if (columns.length > MOST_COLUMNS) throw new TooManyColumnsError(name, columns.length)
}

/** Reads which tables and columns a client schema has. */
export async function readExisting(sql: Sql, schema: string): Promise<Existing> {
  const rows = await sql<{table: string; column: string; type: PgType}>`
    select c.relname as table, a.attname as column, format_type(a.atttypid, null) as type
    from pg_catalog.pg_class c
    join pg_catalog.pg_namespace n on n.oid = c.relnamespace
    join pg_catalog.pg_attribute a on a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped
    where n.nspname = ${schema} and c.relkind = 'r' and not starts_with(a.attname, '_sync_')`
  const tables = new Map<string, Map<string, PgType>>()
  for (const {table, column, type} of rows) {
    const columns = tables.get(table) ?? new Map<string, PgType>()
    tables.set(table, columns.set(column, type))
  }
  return tables
}

/**
 * Plans how the client schema follows the source's. Pure.
 *
 * @param previous layouts as of the last cut.
 * @param renamed source name now -> source name as of the last cut, for tables that the app renamed.
 * @param seenOf bits of `Seen` of a column that is new to the target.
 */
export function plan(
  sources: readonly PlannedSource[],
  previous: readonly TableLayout[],
  renamed: ReadonlyMap<string, string>,
  existing: Existing,
  seenOf: (table: string, column: string) => number,
): Plan {
  const operations: Operation[] = []
  const finish: Operation[] = []
  const clear: {table: string; column: string}[] = []
  const rekeyed = new Set<string>()
  const tables: TableLayout[] = []
  const matched = matchPrevious(sources, previous, renamed)
  const gone = previous.filter(layout => ![...matched.values()].includes(layout))
  const moves = moveNames(sources, matched, gone, existing)
  operations.push(...moves.operations)

  refuseTooWide(sources)
  const taken = [...moves.existing.keys()]
  for (const source of sources) {
    if (source.columns.length > MOST_COLUMNS)
      throw new TooManyColumnsError(source.name, source.columns.length)
    const before = matched.get(source.name)
    const target = moves.targets.get(source.name) ?? freshName(source.name, taken, tables, moves.existing)
    taken.push(target)
    const present = moves.existing.get(target)
    const columns = planColumns(source, before, present, seenOf)
    const layout: TableLayout = {
      source: source.name,
      target,
      withoutRowid: source.withoutRowid,
      keyedBy: source.keyedBy,
      key: source.key,
      columns: columns.layouts,
      indexes: planIndexes(source, target, columns.layouts),
    }
    tables.push(layout)
    if (before !== undefined && !hasSameKey(before, layout)) rekeyed.add(source.name)
    if (present === undefined) {
      operations.push({
        op: 'create_table',
        table: target,
        columns: columns.layouts.map(({target, type}) => ({name: target, type})),
      })
      finish.push(finishOperation(layout))
      continue
    }
    operations.push(...columns.operations.map(operation => ({...operation, table: target})))
    clear.push(...columns.clear.map(column => ({table: target, column})))
    if (before === undefined) operations.push({op: 'unmark_dropped', table: target})
    operations.push(...followIndexes(before, layout))
    if (before === undefined || columns.changesView)
      operations.push({op: 'replace_view', table: target, columns: viewColumns(layout)})
  }
  for (const layout of gone)
    operations.push({op: 'mark_dropped', table: moves.targets.get(layout) ?? layout.target})
  const vanished = gone.map(layout => ({...layout, target: moves.targets.get(layout) ?? layout.target}))
  const follows = new Map(
    [...matched].flatMap(([name, {source}]) => (source === name ? [] : [[name, source] as const])),
  )
  return {tables, operations, finish, clear, vanished, rekeyed, follows}
}

/** The tables with the types that what their columns have held asks for, and the steps that make them so. */
export function widenTables(tables: readonly TableLayout[]): {
  tables: TableLayout[]
  operations: Operation[]
} {
  const operations: Operation[] = []
  const widened = tables.map(table => ({
    ...table,
    columns: table.columns.map(column => {
      const next = widen(column)
      if (next.type !== column.type)
        operations.push({op: 'set_type', table: table.target, column: column.target, type: next.type})
      return next
    }),
  }))
  return {tables: widened, operations}
}

/** Makes a table that has its rows ready for use: key, indexes, view. */
export function finishOperation(layout: TableLayout): Operation {
  return {
    op: 'finish_table',
    table: layout.target,
    indexes: layout.indexes,
    view_columns: viewColumns(layout),
  }
}

function matchPrevious(
  sources: readonly PlannedSource[],
  previous: readonly TableLayout[],
  renamed: ReadonlyMap<string, string>,
): Map<string, TableLayout> {
  const left = new Map(previous.map(layout => [layout.source, layout]))
  const matched = new Map<string, TableLayout>()
  const match = (name: string, layout: TableLayout | undefined) => {
    if (layout === undefined) return
    matched.set(name, layout)
    left.delete(layout.source)
  }
  for (const [now, was] of renamed) match(now, left.get(was))
  for (const {name} of sources) if (!matched.has(name)) match(name, left.get(name))
  // SQLite does not tell names apart by the case of ASCII letters.
  for (const {name} of sources) {
    if (!matched.has(name))
      match(
        name,
        [...left.values()].find(each => asciiLower(each.source) === asciiLower(name)),
      )
  }
  return matched
}

type Moves = {
  readonly operations: Operation[]
  /** Target names after the moves, by source name; for tables that are gone, by their layout. */
  readonly targets: Map<string | TableLayout, string>
  readonly existing: Map<string, ReadonlyMap<string, PgType>>
}

/** Renames target tables as the source's were, by way of names that nobody has, so that two may swap theirs. */
function moveNames(
  sources: readonly PlannedSource[],
  matched: ReadonlyMap<string, TableLayout>,
  gone: readonly TableLayout[],
  before: Existing,
): Moves {
  const moving = sources.flatMap(({name}) => {
    const layout = matched.get(name)
    return layout !== undefined && layout.source !== name ? [{name, layout}] : []
  })
  const targets = new Map<string | TableLayout, string>()
  const existing = new Map(before)
  const operations: Operation[] = []
  const rename = (from: string, to: string) => {
    operations.push({op: 'rename_table', table: from, to})
    const columns = existing.get(from)
    existing.delete(from)
    if (columns !== undefined) existing.set(to, columns)
  }
  for (const {name} of sources) {
    const layout = matched.get(name)
    if (layout !== undefined && layout.source === name) targets.set(name, layout.target)
  }
  const parked = moving.map(({name, layout}, i) => {
    const parking = tableName(`moving_${i}_${name}`, [...existing.keys()])
    rename(layout.target, parking)
    return {name, parking}
  })
  // A table that is gone gives its name to one that now has it.
  for (const layout of gone) {
    if (!parked.some(({name}) => tableName(name, []).toLowerCase() === layout.target.toLowerCase())) continue
    const aside = tableName(`${layout.target}_dropped`, [...existing.keys()])
    rename(layout.target, aside)
    targets.set(layout, aside)
  }
  for (const {name, parking} of parked) {
    const target = tableName(
      name,
      [...existing.keys()].filter(each => each !== parking),
    )
    rename(parking, target)
    targets.set(name, target)
  }
  return {operations, targets, existing}
}

/** A new table takes up again the one that an earlier table of that name has left, unless someone uses it. */
function freshName(
  source: string,
  taken: readonly string[],
  tables: readonly TableLayout[],
  existing: Existing,
): string {
  const own = tableName(source, [])
  const inUse = new Set(tables.map(table => table.target))
  return existing.has(own) && !inUse.has(own) ? own : tableName(source, taken)
}

type PlannedColumns = {
  readonly layouts: ColumnLayout[]
  readonly operations: {readonly op: string; readonly [key: string]: unknown}[]
  readonly clear: string[]
  readonly changesView: boolean
}

function planColumns(
  source: PlannedSource,
  before: TableLayout | undefined,
  present: ReadonlyMap<string, PgType> | undefined,
  seenOf: (table: string, column: string) => number,
): PlannedColumns {
  const operations: {op: string; [key: string]: unknown}[] = []
  const clear: string[] = []
  const known = new Map(before?.columns.map(column => [column.source, column]))
  const used: string[] = [...(before?.columns.map(column => column.target) ?? [])]
  const layouts = source.columns.map((column): ColumnLayout => {
    const was = known.get(column.name)
    if (was !== undefined) {
      known.delete(column.name)
      const next = widen({...was, declared: column.declared, generated: column.generated})
      if (next.type !== was.type) operations.push({op: 'set_type', column: was.target, type: next.type})
      return next
    }
    const affinity = affinityOf(column.declared)
    const seen = seenOf(source.name, column.name)
    const own = columnName(column.name, used)
    const left = present?.get(own)
    const taken = [...used, ...(present?.keys() ?? [])]
    const target = left === undefined ? columnName(column.name, taken) : own
    used.push(target)
    const type = left ?? chooseType(column.declared, affinity, seen)
    if (left !== undefined) {
      operations.push({op: 'unmark_dropped', column: target})
      if (before !== undefined) clear.push(target)
    } else if (present !== undefined) operations.push({op: 'add_column', column: target, type})
    return {
      source: column.name,
      target,
      type,
      declared: column.declared,
      affinity,
      seen,
      generated: column.generated,
    }
  })
  for (const dropped of known.values()) operations.push({op: 'mark_dropped', column: dropped.target})
  const order = (columns: readonly ColumnLayout[]) =>
    JSON.stringify(columns.map(({source, target}) => [source, target]))
  const changesView = before === undefined || order(before.columns) !== order(layouts)
  return {layouts, operations, clear, changesView}
}

/** The reading rule (`affinity`) of a column stays what it was when its values were written; only the type may widen. */
function widen(column: ColumnLayout): ColumnLayout {
  const type = chooseType(column.declared, affinityOf(column.declared), column.seen)
  const rereads = column.affinity === 'integer' || column.affinity === 'numeric' || column.affinity === 'real'
  const isReadable = type !== 'text' || rereads
  return type !== column.type && isReadable && canWiden(column.type, type, column.seen)
    ? {...column, type}
    : column
}

function planIndexes(
  source: PlannedSource,
  table: string,
  columns: readonly ColumnLayout[],
): TableLayout['indexes'] {
  const byName = new Map(columns.map(column => [column.source.toLowerCase(), column]))
  const wanted = [
    source.key,
    ...source.indexes.map(index => index.columns),
    ...columns.filter(column => column.source.toLowerCase() === 'updated_at').map(column => [column.source]),
  ]
  const indexes = new Map<string, TableLayout['indexes'][number]>()
  for (const names of wanted) {
    const found = names.map(name => byName.get(name.toLowerCase()))
    // Postgres cannot order json, and no index has more than 32 columns.
    if (
      found.length === 0 ||
      found.length > 32 ||
      found.some(column => column === undefined || column.type === 'json')
    )
      continue
    const targets = found.map(column => (column as ColumnLayout).target)
    indexes.set(JSON.stringify(targets), {name: indexName(table, targets), columns: targets})
  }
  return [...indexes.values()]
}

function followIndexes(before: TableLayout | undefined, layout: TableLayout): Operation[] {
  const old = before?.indexes ?? []
  const has = (list: TableLayout['indexes'], name: string) => list.some(index => index.name === name)
  return [
    ...old
      .filter(({name}) => !has(layout.indexes, name))
      .map(({name}) => ({op: 'drop_index', table: layout.target, name})),
    ...layout.indexes
      .filter(({name}) => !has(old, name))
      .map(({name, columns}) => ({op: 'create_index', table: layout.target, name, columns})),
  ]
}

function viewColumns(layout: TableLayout): {name: string; as: string}[] {
  return layout.columns.map(({source, target}) => ({name: target, as: viewColumnName(source, target)}))
}

function hasSameKey(a: TableLayout, b: TableLayout): boolean {
  return a.keyedBy === 'rowid'
    ? b.keyedBy === 'rowid'
    : b.keyedBy !== 'rowid' && JSON.stringify(a.key) === JSON.stringify(b.key)
}

function asciiLower(name: string): string {
  return name.replace(/[A-Z]/g, letter => letter.toLowerCase())
}
