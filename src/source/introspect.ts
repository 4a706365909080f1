import type {DatabaseSync, SQLInputValue} from 'node:sqlite'
import type {Pragmas, SchemaObject} from '../core/layout.ts'
import {affinityOf, type Affinity} from '../core/value.ts'
import {asThreefold} from './bind.ts'
import {allRows, rowsBehind} from './keyset.ts'
import {beginRead, endRead} from './open.ts'

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

/** A column of a key, and how its index compares it: not always as the column itself is compared. */
export type KeyPart = {readonly column: string; readonly collation: string; readonly descends: boolean}

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
  /** What keeps rows with equal keys out, and has the rows in order: the key's columns as its index has them. */
  readonly keyIndex: readonly KeyPart[]
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
 *
 * @param onHold told of reads that take longer the more rows there are.
 */
export function introspect(db: DatabaseSync, onHold: OnHold = () => undefined): SourceSpec {
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
    tables: tables.map(row => introspectTable(db, ask, row.name, Number(row.rootpage), onHold)),
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
      'select name, "unique" as is_unique, partial, origin from pragma_index_list(?) order by name',
    ),
    parts: db.prepare(
      'select name, coll, "desc" as descends from pragma_index_xinfo(?) where key = 1 order by seqno',
    ),
  }
}

type Questions = ReturnType<typeof questions>

function introspectTable(
  db: DatabaseSync,
  ask: Questions,
  name: string,
  rootPage: number,
  onHold: OnHold,
): TableSpec {
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
  // With an index of its own a key is none: `integer primary key desc`, or a column that stands in it twice.
  const isRowid =
    primary.length === 1 &&
    alias?.type.toUpperCase() === 'INTEGER' &&
    !indexes.some(({origin}) => origin === 'pk')
  const unique = primary.length > 0 ? undefined : usableKey(db, {name, rowidName}, indexes, required, onHold)
  const key = primary.length > 0 ? primary.map(column => column.name) : (unique?.columns ?? [])
  const keptBy = unique ?? indexes.find(({origin}) => origin === 'pk')
  return {
    name,
    rootPage,
    // Rows whose rowid nobody can ask for are found by their key as well.
    withoutRowid:
      withoutRowid || (rowidName === undefined && !isRowid && (primary.length > 0 || unique !== undefined)),
    rowidName,
    keyedBy: primary.length > 0 ? 'primary key' : unique ? 'unique index' : 'rowid',
    key,
    keyIndex: keptBy?.parts ?? key.map(column => ({column, collation: 'BINARY', descends: false})),
    columns,
    indexes: indexes.map(({name, columns}) => ({name, columns})),
  }
}

type Index = IndexSpec & {
  readonly parts: readonly KeyPart[]
  readonly unique: boolean
  readonly partial: boolean
  /** What made it: `c` an own statement, `u` a UNIQUE, `pk` a PRIMARY KEY. */
  readonly origin: string
}

function readIndexes(ask: Questions, table: string): Index[] {
  const list = ask.indexes.all(table) as {
    name: string
    is_unique: number | bigint
    partial: number | bigint
    origin: string
  }[]
  return list.flatMap(index => {
    const all = ask.parts.all(index.name) as {
      name: string | null
      coll: string
      descends: number | bigint
    }[]
    const parts = all.flatMap(({name, coll, descends}) =>
      name === null ? [] : [{column: name, collation: coll, descends: Number(descends) === 1}],
    )
    if (parts.length !== all.length || parts.length === 0) return []
    return [
      {
        name: index.name,
        columns: parts.map(({column}) => column),
        parts,
        origin: index.origin,
        unique: Number(index.is_unique) === 1,
        partial: Number(index.partial) === 1,
      },
    ]
  })
}

type Place = Pick<TableSpec, 'name' | 'rowidName'>

/** The smallest unique index over columns in which no row holds NULL; ties go to declared NOT NULL, then to the name. */
function usableKey(
  db: DatabaseSync,
  table: Place,
  indexes: readonly Index[],
  required: ReadonlySet<string>,
  onHold: OnHold,
): Index | undefined {
  const nullable = ({columns}: Index) => columns.filter(column => !required.has(column))
  return indexes
    .filter(index => index.unique && !index.partial)
    .sort((a, b) => a.columns.length - b.columns.length || nullable(a).length - nullable(b).length)
    .find(index => !holdsNull(db, table, index, nullable(index), onHold))
}

/**
 * Whether any row holds NULL in one of these columns of an index. The index finds one in its leading column at once; for
 * the others all rows are looked at, some at a time, each time under a lock of its own unless a transaction is open. What
 * the app commits in between may be missed, as what it commits afterwards is.
 */
function holdsNull(
  db: DatabaseSync,
  table: Place,
  index: Index,
  nullable: readonly string[],
  onHold: OnHold,
): boolean {
  const isNull = nullable.map(column => `${ident(column)} is null`).join(' or ')
  const name = ident(table.name)
  if (nullable.every(column => column === index.columns[0])) {
    const first = `select 1 from ${name} where ${isNull} limit 1`
    return nullable.length > 0 && underLock(db, onHold, () => db.prepare(first).get()).result !== undefined
  }
  // Without a collation of the app's, the index cannot be read in its order.
  const {rowidName} = table
  const isReadable = index.parts.every(({collation}) => builtIn.has(collation.toUpperCase()))
  const order =
    isReadable || rowidName === undefined
      ? index.parts.map((part, at) => ({by: `r.${collated(part)}`, descends: part.descends, at}))
      : [{by: `r.${rowidName}`, descends: false, at: 0}]
  const place = order.map(({by}) => asThreefold(by)).join(', ')
  let next = [allRows(order)]
  let isFound = false
  let last: SQLInputValue[] = []
  inParts(db, Infinity, onHold, (_, rows) => {
    for (const {where, orderBy, bound} of next) {
      const values = last.slice(0, 3 * bound)
      // Named, or a column of the result could be taken for one of the table.
      const some = `from ${name} as r where ${where} order by ${orderBy} limit`
      const looked = db.prepare(
        `select count(*) as count, max(has_null) as has_null from (select ${isNull} as has_null ${some} ${rows})`,
      )
      const {count, has_null} = looked.get(...values) as {count: number; has_null: number | null}
      isFound = has_null === 1
      if (isFound) return 0
      if (count === 0) continue
      const edge = db.prepare(`select ${place} ${some} 1 offset ${count - 1}`)
      edge.setReadBigInts(true)
      edge.setReturnArrays(true)
      last = edge.get(...values) as unknown as SQLInputValue[]
      next = rowsBehind(order)
      return rows
    }
    return 0
  })
  return isFound
}

const builtIn: ReadonlySet<string> = new Set(['BINARY', 'NOCASE', 'RTRIM'])

/** A column of a key, compared as its index compares it. */
export function collated({column, collation}: KeyPart): string {
  return `${ident(column)} collate ${ident(collation)}`
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
/** Between these a look at some rows is neither too many of them nor a lock too long. */
const LOOK_MS = {least: 2, most: 5}

/** Told for how long a read has held its lock, in ms. */
export type OnHold = (ms: number) => void

/**
 * Which storage classes the columns of a table hold, in a sample of its first and last rows: bits for `classes`.
 *
 * Of most values only the record's header is read, but an integer may stand behind a long value. So it is some rows at a
 * time, each time under a lock of its own unless a transaction is open.
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
  onHold: OnHold,
): number[] {
  // Only integers are read, so that neither a long value nor one that is too long is. What compares a column needs its
  // collation, which only the app may have.
  const classOf = (c: string) =>
    `case typeof(${c}) when 'null' then 0 when 'text' then ${classes.text} when 'real' then ${classes.real}
      when 'blob' then ${classes.blob} else case when ${c} collate binary in (0, 1) then ${classes.bit}
      when ${c} collate binary between -9007199254740992 and 9007199254740992 then ${classes.integer}
      else ${classes.wideInteger} end end`
  const bits = table.columns.map(column => classOf(ident(column.name)))
  const found = bits.map(() => 0)
  const look = (rows: string, bound: readonly bigint[]) => {
    // A few hundred columns a statement: SQLite limits its length and the columns of its result.
    for (let at = 0; at < bits.length; at += 200) {
      const some = bits.slice(at, at + 200).map((each, i) => `${each} as c${i}`)
      const statement = db.prepare(`select distinct * from (select ${some.join(', ')} from ${rows})`)
      statement.setReturnArrays(true)
      for (const row of statement.iterate(...bound) as Iterable<unknown> as Iterable<number[]>)
        for (const [i, each] of row.entries()) found[at + i] = (found[at + i] as number) | each
    }
  }
  const wanted = Math.max(20, Math.ceil(SAMPLED_VALUES / bits.length / 2))
  const name = ident(table.name)
  const place = table.rowidName
  if (place === undefined) {
    inParts(db, wanted, onHold, (done, rows) => {
      look(`${name} limit ${rows} offset ${done}`, [])
      return rows
    })
    return found
  }
  for (const order of ['asc', 'desc']) {
    let from: bigint | undefined
    inParts(db, wanted, onHold, (_, rows) => {
      const beyond = from === undefined ? '' : `where ${place} ${order === 'asc' ? '>' : '<'} ?`
      const some = `(select ${place} from ${name} ${beyond} order by ${place} ${order} limit ${rows})`
      const bound = from === undefined ? [] : [from]
      const edge = db.prepare(
        `select ${order === 'asc' ? 'max' : 'min'}(${place}) as edge, count(*) as rows from ${some}`,
      )
      edge.setReadBigInts(true)
      const {edge: last, rows: count} = edge.get(...bound) as {edge: bigint | null; rows: bigint}
      if (last !== null) look(`${name} where ${place} in ${some}`, bound)
      from = last ?? undefined
      return Number(count)
    })
  }
  return found
}

/** Looks at so many rows, some at a time, until there are no more: as many as are looked at in a few milliseconds. */
function inParts(
  db: DatabaseSync,
  wanted: number,
  onHold: OnHold,
  look: (done: number, rows: number) => number,
): void {
  let size = 8
  for (let done = 0; done < wanted;) {
    const rows = Math.min(size, wanted - done)
    const {result: seen, ms} = underLock(db, onHold, () => look(done, rows))
    done += rows
    if (seen < rows) return
    if (ms > LOOK_MS.most) size = Math.max(1, size >> 1)
    else if (ms < LOOK_MS.least) size *= 2
  }
}

/** Runs a read under a lock of its own, unless a transaction is open, and tells for how long it held it. */
function underLock<T>(db: DatabaseSync, onHold: OnHold, read: () => T): {result: T; ms: number} {
  const isOwn = !db.isTransaction
  if (isOwn) beginRead(db)
  const since = performance.now()
  try {
    const result = read()
    const ms = performance.now() - since
    if (isOwn) onHold(ms)
    return {result, ms}
  } finally {
    if (isOwn) endRead(db)
  }
}
