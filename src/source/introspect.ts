import type {DatabaseSync} from 'node:sqlite'
import type {Pragmas, SchemaObject} from '../core/layout.ts'
import {affinityOf, type Affinity} from '../core/value.ts'

/** A column as SQLite declares it. */
export type ColumnSpec = {
  readonly name: string
  /** Declared type as written; empty when none is. */
  readonly declared: string
  readonly affinity: Affinity
  readonly generated: boolean
}

/** An index in terms of column names; expression indexes have no such terms and are left out. */
export type IndexSpec = {
  readonly name: string
  readonly columns: readonly string[]
}

/** An ordinary table of a live source: the shadow tables of virtual ones are ordinary too. */
export type TableSpec = {
  readonly name: string
  /** Where the table's b-tree begins in the file. */
  readonly rootPage: number
  /** True when rows have no rowid, or none that can be read. */
  readonly withoutRowid: boolean
  /** A name under which the rowid can be read; absent when columns of the table hide all three. */
  readonly rowidName: string | undefined
  readonly keyedBy: 'primary key' | 'unique index' | 'rowid'
  readonly key: readonly string[]
  readonly columns: readonly ColumnSpec[]
  readonly indexes: readonly IndexSpec[]
}

/** What a source looks like at one instant. */
export type SourceSpec = {
  readonly tables: readonly TableSpec[]
  readonly objects: readonly SchemaObject[]
  readonly pragmas: Pragmas
  readonly alembicRevision: string | null
  /** SQLite's schema cookie: it moves with every change of the schema. */
  readonly schemaVersion: bigint
}

/**
 * Reads the whole schema of a source. Run it inside a read transaction when the answer must be of one instant.
 *
 * Virtual tables are DDL only: their rows live in their shadow tables, which are mirrored like any other table.
 * `sqlite_stat*` is left out: it is what ANALYZE makes of the other tables.
 */
export function introspect(db: DatabaseSync): SourceSpec {
  const rows = db
    .prepare('select type, name, tbl_name, rootpage, sql from sqlite_schema order by rowid')
    .all() as {
    type: SchemaObject['type']
    name: string
    tbl_name: string
    rootpage: number | bigint
    sql: string | null
  }[]
  const kept = rows.filter(row => !/^sqlite_stat/i.test(row.tbl_name))
  const tables = kept.filter(row => row.type === 'table' && Number(row.rootpage) !== 0)
  const ask = questions(db)
  return {
    tables: tables.map(row => introspectTable(db, ask, row.name, Number(row.rootpage))),
    // Automatic indexes have no SQL: their table's DDL makes them again.
    objects: kept.flatMap(row =>
      row.sql === null ? [] : [{type: row.type, name: row.name, table: row.tbl_name, sql: row.sql}],
    ),
    pragmas: readPragmas(db),
    alembicRevision: readRevision(
      db,
      tables.map(row => row.name),
    ),
    schemaVersion: readSchemaVersion(db),
  }
}

/** @returns the schema cookie, as cheap as a read can be. */
export function readSchemaVersion(db: DatabaseSync): bigint {
  return BigInt(pragma(db, 'schema_version') as number)
}

/** @returns a number that moves with every commit of another connection; comparable only within one connection. */
export function readDataVersion(db: DatabaseSync): bigint {
  return BigInt(pragma(db, 'data_version') as number)
}

/** @returns `name` as a quoted SQLite identifier. */
export function ident(name: string): string {
  return `"${name.replaceAll('"', '""')}"`
}

/** What every table is asked, prepared once for all of them: that costs more than the answers. */
function questions(db: DatabaseSync) {
  return {
    columns: db.prepare(
      'select name, type, pk, "notnull" as not_null, hidden from pragma_table_xinfo(?) order by cid',
    ),
    kind: db.prepare("select wr from pragma_table_list(?) where schema = 'main'"),
    indexes: db.prepare(
      'select name, "unique" as is_unique, partial from pragma_index_list(?) order by name',
    ),
    parts: db.prepare('select name from pragma_index_xinfo(?) where key = 1 order by seqno'),
  }
}

type Questions = ReturnType<typeof questions>

function introspectTable(db: DatabaseSync, ask: Questions, name: string, rootPage: number): TableSpec {
  const info = ask.columns.all(name) as {
    name: string
    type: string
    pk: number | bigint
    not_null: number | bigint
    hidden: number | bigint
  }[]
  const columns = info
    .filter(column => Number(column.hidden) !== 1)
    .map(column => ({
      name: column.name,
      declared: column.type,
      affinity: affinityOf(column.type),
      generated: Number(column.hidden) > 1,
    }))
  const flags = ask.kind.get(name)
  const withoutRowid = Number(flags?.['wr'] ?? 0) === 1
  const taken = new Set(columns.map(column => column.name.toLowerCase()))
  const rowidName = withoutRowid ? undefined : ['rowid', '_rowid_', 'oid'].find(alias => !taken.has(alias))
  const primary = info.filter(column => Number(column.pk) > 0).sort((a, b) => Number(a.pk) - Number(b.pk))
  const required = new Set(info.filter(column => Number(column.not_null) === 1).map(column => column.name))
  const indexes = readIndexes(ask, name)
  const [alias] = primary
  const isRowid = primary.length === 1 && alias?.type.toUpperCase() === 'INTEGER'
  const unique = primary.length > 0 ? undefined : usableKey(db, name, indexes, required)
  return {
    name,
    rootPage,
    // Rows whose rowid nobody can ask for are found by their key as well.
    withoutRowid:
      withoutRowid || (rowidName === undefined && !isRowid && (primary.length > 0 || unique !== undefined)),
    rowidName,
    keyedBy: primary.length > 0 ? 'primary key' : unique ? 'unique index' : 'rowid',
    key: primary.length > 0 ? primary.map(column => column.name) : (unique ?? []),
    columns,
    indexes: indexes.map(({name, columns}) => ({name, columns})),
  }
}

function readIndexes(ask: Questions, table: string): (IndexSpec & {unique: boolean; partial: boolean})[] {
  const list = ask.indexes.all(table) as {
    name: string
    is_unique: number | bigint
    partial: number | bigint
  }[]
  return list.flatMap(index => {
    const parts = ask.parts.all(index.name) as {name: string | null}[]
    const columns = parts.flatMap(part => (part.name === null ? [] : [part.name]))
    if (columns.length !== parts.length || columns.length === 0) return []
    return [
      {
        name: index.name,
        columns,
        unique: Number(index.is_unique) === 1,
        partial: Number(index.partial) === 1,
      },
    ]
  })
}

/** The smallest unique index over columns in which no row holds NULL; ties go to declared NOT NULL, then to the name. */
function usableKey(
  db: DatabaseSync,
  table: string,
  indexes: readonly (IndexSpec & {unique: boolean; partial: boolean})[],
  required: ReadonlySet<string>,
): readonly string[] | undefined {
  const nullable = (columns: readonly string[]) => columns.filter(column => !required.has(column))
  return indexes
    .filter(index => index.unique && !index.partial)
    .sort(
      (a, b) =>
        a.columns.length - b.columns.length || nullable(a.columns).length - nullable(b.columns).length,
    )
    .find(index =>
      nullable(index.columns).every(
        column =>
          db.prepare(`select 1 from ${ident(table)} where ${ident(column)} is null limit 1`).get() ===
          undefined,
      ),
    )?.columns
}

function readPragmas(db: DatabaseSync): Pragmas {
  return {
    pageSize: Number(pragma(db, 'page_size')),
    userVersion: Number(pragma(db, 'user_version')),
    applicationId: Number(pragma(db, 'application_id')),
    encoding: String(pragma(db, 'encoding')) as Pragmas['encoding'],
    journalMode: String(pragma(db, 'journal_mode')),
    autoVacuum: Number(pragma(db, 'auto_vacuum')) as Pragmas['autoVacuum'],
  }
}

function readRevision(db: DatabaseSync, tables: readonly string[]): string | null {
  if (!tables.includes('alembic_version')) return null
  const row = db.prepare('select * from alembic_version limit 1').get()
  const revision = row?.['version_num']
  return typeof revision === 'string' ? revision : null
}

function pragma(db: DatabaseSync, name: string): unknown {
  return Object.values(db.prepare(`pragma ${name}`).get() ?? {})[0]
}

/** How many values of a table are looked at, at most, to choose the types of new columns. */
const SAMPLED_VALUES = 20_000

/**
 * Which storage classes the columns of a table hold, in a sample of its first and last rows: bits for `classes`.
 * Only record headers are read, so long values cost nothing.
 */
export function sampleClasses(
  db: DatabaseSync,
  table: TableSpec,
  classes: {
    readonly bit: number
    readonly integer: number
    readonly wideInteger: number
    readonly real: number
    readonly text: number
    readonly blob: number
  },
): number[] {
  const rows = Math.max(20, Math.ceil(SAMPLED_VALUES / table.columns.length / 2))
  const name = ident(table.name)
  const place = table.rowidName
  const sampled =
    place === undefined
      ? `${name} limit ${rows}`
      : `${name} where ${place} in (select * from (select ${place} from ${name} order by ${place} limit ${rows})
          union all select * from (select ${place} from ${name} order by ${place} desc limit ${rows}))`
  // Only integers are read, so that neither a long value nor one that is too long is. What compares a column needs its
  // collation, which only the app may have.
  const classOf = (c: string) =>
    `case typeof(${c}) when 'null' then 0 when 'text' then ${classes.text} when 'real' then ${classes.real}
      when 'blob' then ${classes.blob} else case when ${c} collate binary in (0, 1) then ${classes.bit}
      when ${c} collate binary between -9007199254740992 and 9007199254740992 then ${classes.integer}
      else ${classes.wideInteger} end end`
  const found: number[] = []
  // A few hundred columns a statement: SQLite limits its length and the columns of its result.
  for (let at = 0; at < table.columns.length; at += 200) {
    const columns = table.columns.slice(at, at + 200).map(column => classOf(ident(column.name)))
    const statement = db.prepare(`select distinct ${columns.join(', ')} from ${sampled}`)
    statement.setReturnArrays(true)
    let seen = columns.map(() => 0)
    for (const row of statement.iterate() as Iterable<unknown> as Iterable<number[]>)
      seen = seen.map((bits, i) => bits | (row[i] ?? 0))
    found.push(...seen)
  }
  return found
}
