import {DatabaseSync} from 'node:sqlite'
import {affinityOf, type Affinity} from '../core/value.ts'
import {ident} from '../source/introspect.ts'

/** A column as a table's DDL declares it. */
export type DeclaredColumn = {
  readonly name: string
  readonly affinity: Affinity
  /** `virtual` ones have no place in a record, `stored` ones have. */
  readonly generated: 'no' | 'virtual' | 'stored'
}

/** An index that SQLite makes by itself for UNIQUE or PRIMARY KEY. */
export type AutomaticIndex = {
  readonly name: string
  readonly parts: readonly IndexPart[]
}

export type IndexPart = {readonly column: string; readonly collation: string; readonly descending: boolean}

/** What a table's DDL says about how its records look, apart from all that it demands of their values. */
export type DeclaredTable = {
  readonly columns: readonly DeclaredColumn[]
  /** The INTEGER PRIMARY KEY, which is the rowid and has no value of its own in a record. */
  readonly rowidColumn: string | undefined
  /** The primary key of a WITHOUT ROWID table. */
  readonly clusteredBy: readonly IndexPart[] | undefined
  readonly automatic: readonly AutomaticIndex[]
}

/**
 * Reads a table's DDL as SQLite reads it from a file: functions and collations that this build lacks do no harm, which
 * they do in CREATE TABLE.
 *
 * @throws node:sqlite's error when it is no valid DDL.
 */
export function readDeclaration(name: string, sql: string): DeclaredTable {
  using db = new DatabaseSync(':memory:', {defensive: false, enableDoubleQuotedStringLiterals: true})
  db.exec(`create table ${ident(name)} (c); pragma writable_schema = on`)
  db.prepare('update sqlite_schema set sql = ? where name = ?').run(sql, name)
  db.exec('pragma writable_schema = reset')

  const info = db
    .prepare('select name, type, pk, hidden from pragma_table_xinfo(?) order by cid')
    .all(name) as {
    name: string
    type: string
    pk: number
    hidden: number
  }[]
  const flags = db.prepare("select wr, strict from pragma_table_list(?) where schema = 'main'").get(name)
  const isStrict = flags?.['strict'] === 1
  const indexes = db.prepare('select name, origin from pragma_index_list(?)').all(name) as {
    name: string
    origin: string
  }[]
  const primary = indexes.find(index => index.origin === 'pk')
  const isClustered = flags?.['wr'] === 1
  const key = info.filter(column => column.pk > 0)
  return {
    columns: info.map(({name, type, hidden}) => ({
      name,
      // In a STRICT table ANY means what it says; elsewhere it is a type like any other.
      affinity: isStrict && type.toUpperCase() === 'ANY' ? 'blob' : affinityOf(type),
      generated: hidden === 2 ? 'virtual' : hidden === 3 ? 'stored' : 'no',
    })),
    rowidColumn: !isClustered && primary === undefined ? key[0]?.name : undefined,
    clusteredBy: isClustered && primary !== undefined ? partsOf(db, primary.name) : undefined,
    automatic: indexes
      .filter(index => index.origin === 'u' || (index.origin === 'pk' && !isClustered))
      .map(index => ({name: index.name, parts: partsOf(db, index.name)})),
  }
}

function partsOf(db: DatabaseSync, index: string): IndexPart[] {
  const parts = db.prepare(
    'select name, "desc" as descending, coll from pragma_index_xinfo(?) where key = 1 order by seqno',
  )
  return (parts.all(index) as {name: string; descending: number; coll: string}[]).map(part => ({
    column: part.name,
    collation: part.coll,
    descending: part.descending === 1,
  }))
}
