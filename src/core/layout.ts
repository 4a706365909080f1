import type {Affinity, PgType} from './value.ts'

/** One source column and the target column that holds it. */
export type ColumnLayout = {
  readonly source: string
  readonly target: string
  readonly type: PgType
  readonly declared: string
  /** The affinity whose rule reads the typed column back; fixed when the column was made. */
  readonly affinity: Affinity
  /** Storage classes met so far, as bits (target/type-map.ts `Seen`): what a later choice of type may rely on. */
  readonly seen: number
  /** Computed by SQLite (GENERATED ALWAYS): mirrored and digested, but never written back. */
  readonly generated: boolean
}

/** One source table and the client table that holds it. Columns are in the source's own order. */
export type TableLayout = {
  readonly source: string
  readonly target: string
  readonly withoutRowid: boolean
  /** What identifies a row. `rowid` makes the rowid content: it is part of the digest and is restored. */
  readonly keyedBy: 'primary key' | 'unique index' | 'rowid'
  /** Source names of the key columns; empty when keyed by rowid. */
  readonly key: readonly string[]
  readonly columns: readonly ColumnLayout[]
  /** Indexes of the client table, none of them unique, in target names. */
  readonly indexes: readonly {readonly name: string; readonly columns: readonly string[]}[]
}

/** One row of `sqlite_schema` that has SQL of its own. */
export type SchemaObject = {
  readonly type: 'table' | 'index' | 'view' | 'trigger'
  readonly name: string
  readonly table: string
  readonly sql: string
}

/** The file-level settings a restored file must have again. */
export type Pragmas = {
  readonly pageSize: number
  readonly userVersion: number
  readonly applicationId: number
  readonly encoding: 'UTF-8' | 'UTF-16le' | 'UTF-16be'
  readonly journalMode: string
  readonly autoVacuum: 0 | 1 | 2
}

/** Everything restore needs to rebuild the file around the rows; one row of `sync_metadata.source_schemas`. */
export type SourceSchema = {
  readonly objects: readonly SchemaObject[]
  readonly pragmas: Pragmas
  /** `null` when the file has no `alembic_version` table or no row in it. */
  readonly alembicRevision: string | null
  readonly tables: readonly TableLayout[]
}
