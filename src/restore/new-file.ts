import {DatabaseSync} from 'node:sqlite'
import type {Pragmas, SchemaObject, SourceSchema, TableLayout} from '../core/layout.ts'
import {ident} from '../source/introspect.ts'
import {errcode} from '../source/open.ts'
import {readDeclaration, type DeclaredTable} from './declared.ts'
import {counterTable, exactTable, looseTable, type LooseTable, type TableWriter} from './table-writer.ts'

/** SQLite's page cache and, while it builds an index, its sorter: each at most this large. */
const CACHE_KB = 24_000

const SQLITE_ERROR = 1
const SQLITE_CONSTRAINT = 19

// The table whose rows a full-text index is over, unless it keeps a copy of its own.
const contentOption = /\busing\s+fts[45]\b.*?\bcontent\s*=\s*["'`[]?([^"'`\],)]+)/is

/**
 * A SQLite file being made, in one transaction from the first page to {@link close}. A file that is not finished is
 * thrown away, so nothing waits for the disk, and the journal, which holds no page of a file that was empty, stays in
 * memory.
 */
export class NewFile implements Disposable {
  readonly #db: DatabaseSync
  readonly #objects: readonly SchemaObject[]
  readonly #pragmas: Pragmas

  constructor(file: string, {objects, pragmas}: SourceSchema) {
    this.#objects = objects
    this.#pragmas = pragmas
    this.#db = new DatabaseSync(file, {
      enableForeignKeyConstraints: false,
      // Old files have "text" in double quotes in their views and defaults.
      enableDoubleQuotedStringLiterals: true,
      // Shadow tables and `sqlite_schema` itself are written to.
      defensive: false,
    })
    try {
      this.#db.exec(`
        pragma page_size = ${pragmas.pageSize};
        pragma encoding = '${pragmas.encoding}';
        pragma auto_vacuum = ${pragmas.autoVacuum};
        pragma journal_mode = memory;
        pragma synchronous = off;
        pragma locking_mode = exclusive;
        pragma cache_size = -${CACHE_KB};
        pragma ignore_check_constraints = on;
        begin exclusive`)
      // The encoding is noted in the file with its first table, and there may be none.
      this.#db.exec('create table first (c); drop table first')
    } catch (error) {
      this.#db.close()
      throw error
    }
  }

  /** Makes an empty table of the source's DDL; `undefined` when only {@link createLoose} can. */
  createExact(layout: TableLayout): TableWriter | undefined {
    if (layout.source === 'sqlite_sequence') return counterTable(this.#db)
    return exactTable(this.#db, this.#tableOf(layout), layout, this.#declarationOf(layout))
  }

  /** Makes an empty table that takes everything, in the place of the one made by {@link createExact}. */
  createLoose(layout: TableLayout): LooseTable {
    this.#db.exec(`drop table if exists ${ident(layout.source)}`)
    return looseTable(this.#db, this.#tableOf(layout), layout, this.#declarationOf(layout))
  }

  /** Adds what stands around the rows, once all of them are there: indexes first, triggers last, so that none fires. */
  complete(): void {
    const db = this.#db
    for (const object of this.#objects) if (object.type === 'index') this.#createIndex(object)
    db.exec('pragma writable_schema = on')
    const enter = db.prepare(
      'insert into sqlite_schema (type, name, tbl_name, rootpage, sql) values (?, ?, ?, 0, ?)',
    )
    // These have no pages of their own. A virtual table is not created, its shadow tables have been: as they were.
    for (const {type, name, table, sql} of this.#objects)
      if (type === 'view' || type === 'trigger' || isVirtual({type, sql})) enter.run(type, name, table, sql)
    const settle = db.prepare('update sqlite_schema set sql = ? where type = ? and name = ? and sql <> ?')
    for (const {type, name, sql} of this.#objects) settle.run(sql, type, name, sql)
    this.#order()
    db.exec('pragma writable_schema = reset')
    db.exec(
      `pragma user_version = ${this.#pragmas.userVersion}; pragma application_id = ${this.#pragmas.applicationId}`,
    )
  }

  /**
   * Rebuilds the full-text indexes over tables whose rows got new rowids, by which such an index names them.
   *
   * @returns names of the virtual tables that were rebuilt: their shadow tables no longer hold what the target holds.
   */
  rebuildFullText(tables: readonly TableLayout[]): string[] {
    const rebuilt: string[] = []
    for (const object of this.#objects) {
      const content = isVirtual(object)
        ? contentOption.exec(object.sql)?.[1]?.trim().toLowerCase()
        : undefined
      const layout = tables.find(table => table.source.toLowerCase() === content)
      if (layout === undefined || layout.withoutRowid || layout.keyedBy === 'rowid') continue
      if (this.#declarationOf(layout).rowidColumn !== undefined) continue
      const name = ident(object.name)
      try {
        this.#db.exec(`insert into ${name} (${name}) values ('rebuild')`)
        rebuilt.push(object.name)
      } catch (error) {
        // A tokenizer that is not there: the index stays as the source had it, for the app to rebuild.
        if (errcode(error) !== SQLITE_ERROR) throw error
      }
    }
    return rebuilt
  }

  /** Closes the file, whose content is complete now; the disk may not have all of it yet. */
  close(): void {
    this.#db.exec('commit')
    this.#db.close()
  }

  [Symbol.dispose](): void {
    if (this.#db.isOpen) this.#db.close()
  }

  #tableOf({source}: TableLayout): SchemaObject {
    const object = this.#objects.find(each => each.type === 'table' && each.name === source)
    if (object === undefined) throw new Error(`the DDL of table ${source} was not recorded`)
    return object
  }

  #declarationOf(layout: TableLayout): DeclaredTable {
    return readDeclaration(layout.source, this.#tableOf(layout).sql)
  }

  #createIndex({name, sql}: SchemaObject): void {
    try {
      this.#db.prepare(sql).run()
    } catch (error) {
      if (((errcode(error) ?? 0) & 0xff) !== SQLITE_CONSTRAINT)
        throw new Error(`index ${name}: ${String(error)}`, {cause: error})
      // Rows of different instants can share a value that was unique at each of them.
      this.#db.prepare(sql.replace(/^create\s+unique\s+/i, 'create ')).run()
    }
  }

  /** Gives the schema its old order, in which tools list it. */
  #order(): void {
    const rows = this.#db
      .prepare('select rowid as id, type, name, tbl_name as "table", sql from sqlite_schema')
      .all() as {
      id: number
      type: string
      name: string
      table: string
      sql: string | null
    }[]
    const places = new Map(this.#objects.map(({type, name}, i) => [`${type} ${name}`, i]))
    // What has no SQL belongs right behind its table.
    const placeOf = (row: (typeof rows)[number]) =>
      places.get(row.sql === null ? `table ${row.table}` : `${row.type} ${row.name}`) ?? -1
    const ordered = rows.toSorted(
      (a, b) =>
        placeOf(a) - placeOf(b) ||
        Number(a.sql === null) - Number(b.sql === null) ||
        a.name.localeCompare(b.name, 'en', {numeric: true}),
    )
    const beyond = Math.max(0, ...rows.map(row => row.id), rows.length)
    this.#db.exec(`update sqlite_schema set rowid = rowid + ${beyond}`)
    const move = this.#db.prepare('update sqlite_schema set rowid = ? where rowid = ?')
    for (const [i, row] of ordered.entries()) move.run(i + 1, row.id + beyond)
  }
}

function isVirtual({type, sql}: Pick<SchemaObject, 'type' | 'sql'>): boolean {
  return type === 'table' && /^create\s+virtual\s+table\b/i.test(sql)
}
