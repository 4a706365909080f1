import type {DatabaseSync, StatementSync} from 'node:sqlite'
import {partsOfKey} from '../core/canonical.ts'
import type {Pragmas, SchemaObject, TableLayout} from '../core/layout.ts'
import type {Affinity, RawText, Value} from '../core/value.ts'
import {neededBytes, threefold} from '../source/bind.ts'
import {ident} from '../source/introspect.ts'
import {errcode} from '../source/open.ts'
import type {DeclaredColumn, DeclaredTable, IndexPart} from './declared.ts'

/** A row on its way into a table of the new file; `values` in the order of the writer's columns. */
export type NewRow = {readonly key: string; readonly values: readonly Value[]}

/** Fills one table of the new file. */
export type TableWriter = {
  /** Source names of the columns that a row has to bring along. */
  readonly columns: readonly string[]
  /** @returns false when the table would not take the row as it is: it would alter or refuse a value. */
  add(row: NewRow): boolean
}

const SQLITE_ERROR = 1
const SQLITE_CONSTRAINT = 19
const SQLITE_MISMATCH = 20

/**
 * Creates a table by its own DDL, to be filled by INSERT: what SQLite itself would have made.
 *
 * @returns `undefined` when that cannot be done: the DDL names a function that is not there, or hides the rowid.
 */
export function exactTable(
  db: DatabaseSync,
  {name, sql}: SchemaObject,
  {keyedBy}: TableLayout,
  declared: DeclaredTable,
): TableWriter | undefined {
  const rowid = keyedBy === 'rowid' ? rowidName(declared) : undefined
  if (keyedBy === 'rowid' && rowid === undefined) return undefined
  try {
    db.prepare(sql).run()
  } catch (error) {
    if (errcode(error) === SQLITE_ERROR) return undefined
    throw error
  }
  return existingTable(db, name, declared.columns, rowid)
}

/** SQLite's own table of AUTOINCREMENT counters, which only it can create. To be filled when all others are. */
export function counterTable(db: DatabaseSync): TableWriter {
  const provisional = ident('owsync counter')
  db.exec(`create table ${provisional} (i integer primary key autoincrement); drop table ${provisional};
    delete from sqlite_sequence`)
  const columns: DeclaredColumn[] = ['name', 'seq'].map(name => ({name, affinity: 'blob', generated: 'no'}))
  return existingTable(db, 'sqlite_sequence', columns, 'rowid')
}

/** @param rowid its name, when the rowid is content. */
function existingTable(
  db: DatabaseSync,
  name: string,
  declared: readonly DeclaredColumn[],
  rowid: string | undefined,
): TableWriter {
  const columns = declared.filter(column => column.generated === 'no')
  const lead = rowid === undefined ? [] : [rowid]
  const insert = new Insert(db, name, [...lead, ...columns.map(column => ident(column.name))])
  return {
    columns: columns.map(column => column.name),
    add({key, values}) {
      if (values.some((value, i) => isAltered(value, (columns[i] as DeclaredColumn).affinity))) return false
      try {
        insert.run(rowid === undefined ? values : [rowidOf(key), ...values])
        return true
      } catch (error) {
        const code = (errcode(error) ?? 0) & 0xff
        if (code === SQLITE_CONSTRAINT || code === SQLITE_MISMATCH) return false
        throw error
      }
    },
  }
}

/** A table without its DDL's demands. */
export type LooseTable = TableWriter & {
  /** Gives the table, which is full now, its own DDL, and builds what its UNIQUE and PRIMARY KEY need. */
  readonly finish: () => void
}

/**
 * Creates a table whose records look as the DDL wants them, but with no types, constraints or names, so that it takes
 * any value as it is: a text in a column that would turn it into a number, NULL in a NOT NULL column, a value twice in
 * a UNIQUE one. All of these can be in real files, and a table altered by hand can hold them for years. Its own DDL
 * then takes the place of the loose one in `sqlite_schema`.
 */
export function looseTable(
  db: DatabaseSync,
  {name, sql}: SchemaObject,
  {keyedBy}: TableLayout,
  declared: DeclaredTable,
): LooseTable {
  const columns = declared.columns.filter(column => column.generated !== 'virtual')
  const names = new Map(columns.map((column, i) => [column.name, `c${i}`]))
  const term = ({column, collation, descending}: IndexPart) =>
    `${names.get(column) ?? 'c0'} collate ${ident(collation)}${descending ? ' desc' : ''}`
  const clustered = declared.clusteredBy
  const list = [...names.values(), ...(clustered ? [`primary key (${clustered.map(term).join(', ')})`] : [])]
  db.exec(`create table ${ident(name)} (${list.join(', ')})${clustered ? ' without rowid' : ''}`)

  const rowidAt = columns.findIndex(column => column.name === declared.rowidColumn)
  const hasRowid = rowidAt >= 0 || keyedBy === 'rowid'
  const insert = new Insert(db, name, [...(hasRowid ? ['rowid'] : []), ...names.values()])
  return {
    columns: columns.map(column => column.name),
    add({key, values}) {
      // The record of a row has NULL where its rowid would stand.
      if (rowidAt >= 0) insert.run([values[rowidAt] as Value, ...values.with(rowidAt, null)])
      else insert.run(hasRowid ? [rowidOf(key), ...values] : values)
      return true
    },
    finish: () => {
      const provisional = declared.automatic.map((_, i) => `owsync ${name} ${i}`)
      for (const [i, index] of declared.automatic.entries())
        db.exec(
          `create index ${ident(provisional[i] as string)} on ${ident(name)} (${index.parts.map(term).join(', ')})`,
        )
      db.exec('pragma writable_schema = on')
      // An index without SQL is one that SQLite made by itself.
      const rename = db.prepare(
        "update sqlite_schema set name = ?, sql = null where type = 'index' and name = ?",
      )
      for (const [i, index] of declared.automatic.entries()) rename.run(index.name, provisional[i] as string)
      db.prepare("update sqlite_schema set sql = ? where type = 'table' and name = ?").run(sql, name)
      db.exec('pragma writable_schema = reset')
      // A generated column that is not stored exists only now.
      for (const index of declared.automatic)
        if (index.parts.some(part => !names.has(part.column))) db.exec(`reindex ${ident(index.name)}`)
    },
  }
}

/** Inserts rows of one table. Text that cannot be bound as it is goes as its bytes. */
class Insert {
  readonly #encoding: Pragmas['encoding']
  readonly #plain: StatementSync
  readonly #withBytes: StatementSync

  constructor(db: DatabaseSync, table: string, columns: readonly string[]) {
    this.#encoding = db.prepare('pragma encoding').get()?.['encoding'] as Pragmas['encoding']
    const into = `insert into ${ident(table)} (${columns.join(', ')}) values`
    this.#plain = db.prepare(`${into} (${columns.map(() => '?').join(', ')})`)
    this.#withBytes = db.prepare(`${into} (${columns.map(() => 'iif(?, cast(? as text), ?)').join(', ')})`)
  }

  run(values: readonly Value[]): void {
    if (values.some(value => neededBytes(value, this.#encoding) !== undefined))
      this.#withBytes.run(...values.flatMap(value => threefold(value, this.#encoding)))
    else this.#plain.run(...(values as Exclude<Value, RawText>[]))
  }
}

function rowidName({columns}: DeclaredTable): string | undefined {
  const taken = new Set(columns.map(column => column.name.toLowerCase()))
  return ['rowid', '_rowid_', 'oid'].find(name => !taken.has(name))
}

function rowidOf(key: string): bigint {
  const parts = partsOfKey(key)
  const [rowid] = parts !== undefined && 'values' in parts ? parts.values : []
  if (typeof rowid !== 'bigint') throw new Error(`not the key of a table keyed by rowid: ${key.slice(0, 40)}`)
  return rowid
}

// What SQLite takes for a number when it stores a text in a column with a number's affinity.
const NUMERIC_TEXT = /^[ \t-\r]*[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?[ \t-\r]*$/i

/** Whether a column of this affinity would store another value: https://sqlite.org/datatype3.html#type_affinity */
function isAltered(value: Value, affinity: Affinity): boolean {
  switch (affinity) {
    case 'blob':
      return false
    case 'text':
      return typeof value === 'bigint' || typeof value === 'number'
    case 'real':
      return typeof value === 'bigint' || (typeof value === 'string' && NUMERIC_TEXT.test(value))
    case 'integer':
    case 'numeric':
      return typeof value === 'number'
        ? Number.isInteger(value) && Math.abs(value) <= 2 ** 63
        : typeof value === 'string' && NUMERIC_TEXT.test(value)
  }
}
