import {DatabaseSync, type SQLInputValue, type StatementSync} from 'node:sqlite'
import {partsOfKey} from '../core/canonical.ts'
import {isSameValue, RawText, type Value} from '../core/value.ts'
import {SourceBusyError, SourceUnreadableError} from './errors.ts'
import {ident, introspect, readSchemaVersion, type SourceSpec, type TableSpec} from './introspect.ts'
import {errcode, explain, longestValue, type Source} from './open.ts'
import {TableReader, type SourceRow} from './read.ts'

// The only place where a source is opened for writing: for deployments that are two_way, and only while there is
// something to be written. Everything is a compare-and-set in a short transaction: a row that is not what was decided
// about stays as the app has it.

/** One row to be written. */
export type RowWrite = {
  readonly key: string
  /** Values of the key columns; absent where the key holds a rowid. */
  readonly parts: readonly Value[] | undefined
  /** Digest of the row that the source is to have now; `undefined`: none. */
  readonly expected: Uint8Array | undefined
  /** What the row is to hold, by column; without it the row is deleted. What SQLite computes is left out. */
  readonly values: ReadonlyMap<string, Value> | undefined
}

/** What became of a row, or did not. */
export type WriteOutcome =
  /** `digest`: of the row as it is now. */
  | {readonly is: 'written'; readonly digest: Buffer | undefined}
  /** The app has changed it since: nothing was done. */
  | {readonly is: 'moved'}
  /** Another row has a value that only one can have; it may be one that is still to be written. */
  | {readonly is: 'blocked'; readonly reason: string; readonly found: SourceRow | undefined}
  /** The source does not take it. */
  | {
      readonly is: 'refused'
      readonly why: 'constraint' | 'type'
      readonly reason: string
      readonly found: SourceRow | undefined
    }

/** What a transaction came to. `left`: how many of the last rows it had no time for. */
export type Batch = {
  readonly outcomes: readonly WriteOutcome[]
  readonly holdMs: number
  readonly left: number
}

const SQLITE_BUSY = 5
const SQLITE_TOOBIG = 18
const SQLITE_CONSTRAINT = 19
const SQLITE_MISMATCH = 20
const SQLITE_READONLY = 8
const SQLITE_ERROR = 1
const SQLITE_CONSTRAINT_PRIMARYKEY = 1555
const SQLITE_CONSTRAINT_UNIQUE = 2067
const SQLITE_CONSTRAINT_ROWID = 2579
const SQLITE_CONSTRAINT_DATATYPE = 3091

/** How long one attempt to get or to end a transaction waits inside SQLite; between attempts nothing is held. */
const ATTEMPT_MS = 20

/** A source open for writing, beside the read-only connection: it must be closed first. */
export class SourceWriter implements Disposable {
  readonly #db: DatabaseSync
  readonly #source: Source
  readonly spec: SourceSpec
  readonly #tables = new Map<string, TableAccess>()
  readonly #untouchable: ReadonlySet<string>

  private constructor(source: Source, db: DatabaseSync, spec: SourceSpec) {
    this.#source = source
    this.#db = db
    this.spec = spec
    this.#untouchable = untouchable(db)
  }

  /**
   * Opens the file that `source` has open.
   *
   * @throws {SourceBusyError} when it is locked or another file has its name, {SourceUnreadableError} when it cannot be
   * written.
   */
  static open(source: Source): SourceWriter {
    let db: DatabaseSync | undefined
    try {
      db = new DatabaseSync(source.file, {
        timeout: ATTEMPT_MS,
        // As the app has it: no version of Open WebUI switches foreign keys on.
        enableForeignKeyConstraints: false,
        enableDoubleQuotedStringLiterals: true,
        // The tables behind a full-text index are its own.
        defensive: true,
      })
      if (source.isReplaced())
        throw new SourceBusyError(
          source.file,
          'another file took its name before it was opened for writing',
          'Run the sync again; it looks at the file that is there then.',
        )
      db.limits.length = longestValue.bytes
      // Checking the log into the file is left to the app; what we say is written is on the disk; and a large
      // transaction does not lock readers out before it ends.
      db.exec('pragma wal_autocheckpoint = 0; pragma synchronous = full; pragma cache_spill = off')
      return new SourceWriter(source, db, introspect(db))
    } catch (cause) {
      db?.close()
      throw explained(source.file, cause)
    }
  }

  /**
   * Writes rows in one transaction, in the order given, as many as `budgetMs` allows but at least one. Rows that stand
   * in each other's way are put into place together.
   *
   * @returns `undefined` when the app holds the file, or has changed its schema: nothing was done.
   */
  write(
    rows: readonly {readonly table: string; readonly write: RowWrite}[],
    budgetMs: number,
  ): Batch | undefined {
    if (this.#source.isReplaced()) return undefined
    for (let refused = new Map<number, WriteOutcome>(); ;) {
      const batch = this.#attempt(rows, budgetMs, refused)
      if (batch !== 'again') return batch
    }
  }

  [Symbol.dispose](): void {
    this.#db.close()
  }

  /** @returns `again` when a row has ended the whole transaction: it is in `refused` then. */
  #attempt(
    rows: readonly {readonly table: string; readonly write: RowWrite}[],
    budgetMs: number,
    refused: Map<number, WriteOutcome>,
  ): Batch | undefined | 'again' {
    const db = this.#db
    const outcomes = new Map<number, WriteOutcome>(refused)
    let blocked: number[] = []
    let taken = 0
    const since = performance.now()
    try {
      db.exec('begin immediate')
      if (readSchemaVersion(db) !== this.spec.schemaVersion) return undefined
      const settle = (i: number, outcome: WriteOutcome) => {
        if (outcome.is === 'blocked') blocked.push(i)
        else blocked = blocked.filter(each => each !== i)
        outcomes.set(i, outcome)
      }
      for (const [i, {table, write}] of rows.entries()) {
        if (i > 0 && performance.now() - since > budgetMs) break
        taken++
        if (refused.has(i)) continue
        const outcome = this.#apply(table, write)
        if (!db.isTransaction) {
          refused.set(i, outcome)
          return 'again'
        }
        settle(i, outcome)
      }
      // What stood in the way may have gone since.
      for (let before = Infinity; blocked.length > 0 && blocked.length < before;) {
        before = blocked.length
        for (const i of [...blocked]) {
          const {table, write} = rows[i] as (typeof rows)[number]
          settle(i, this.#apply(table, write))
          if (!db.isTransaction) {
            refused.set(i, outcomes.get(i) as WriteOutcome)
            return 'again'
          }
        }
      }
      const exchanged = this.#exchange(blocked.map(i => [i, rows[i] as (typeof rows)[number]]))
      if (exchanged === 'ended') {
        for (const i of blocked) refused.set(i, outcomes.get(i) as WriteOutcome)
        return 'again'
      }
      for (const [i, outcome] of exchanged) outcomes.set(i, outcome)
      db.exec('commit')
      return {
        outcomes: Array.from({length: taken}, (_, i) => outcomes.get(i) as WriteOutcome),
        holdMs: performance.now() - since,
        left: rows.length - taken,
      }
    } catch (cause) {
      if (isBusy(cause)) return undefined
      throw explained(this.#source.file, cause)
    } finally {
      if (db.isTransaction) db.exec('rollback')
    }
  }

  /** Changes one row, so that nothing is left of a change that fails. */
  #apply(table: string, write: RowWrite): WriteOutcome {
    const access = this.#access(table)
    if (access === undefined) return {is: 'moved'}
    const row = access.find(write)
    if (!isSame(row?.digest, write.expected)) return {is: 'moved'}
    if (this.#untouchable.has(table))
      return {is: 'refused', why: 'type', reason: `table ${table} is not written from outside`, found: row}
    const db = this.#db
    db.exec('savepoint one_row')
    try {
      access.put(write, row)
      const now = access.find(write)
      const wrong = access.wrongColumn(now, write)
      if (wrong === undefined) {
        db.exec('release one_row')
        return {is: 'written', digest: now?.digest}
      }
      db.exec('rollback to one_row; release one_row')
      return {is: 'refused', why: 'type', reason: wrong, found: row}
    } catch (cause) {
      // A trigger's RAISE(ROLLBACK) ends the transaction with it.
      if (db.isTransaction) db.exec('rollback to one_row; release one_row')
      return refusalOf(cause, row)
    }
  }

  /**
   * Rows that wait for each other: all of them go, then all of them come back as they are to be. Whoever cannot come
   * stays as it was, and the others try without it.
   *
   * @returns those that are written; `ended` when a trigger has ended the whole transaction.
   */
  #exchange(
    blocked: readonly (readonly [number, {readonly table: string; readonly write: RowWrite}])[],
  ): Map<number, WriteOutcome> | 'ended' {
    const db = this.#db
    for (let group = blocked; group.length > 1;) {
      const outcomes = new Map<number, WriteOutcome>()
      const rowids = new Map<number, bigint>()
      let failed: number | undefined
      db.exec('savepoint many_rows')
      try {
        for (const [i, {table, write}] of group) {
          failed = i
          const access = this.#access(table) as TableAccess
          const row = access.find(write)
          if (row === undefined) continue
          rowids.set(i, row.rowid)
          access.remove(row)
        }
        for (const [i, {table, write}] of group) {
          failed = i
          const access = this.#access(table) as TableAccess
          access.insert(write, rowids.get(i))
          const now = access.find(write)
          const wrong = access.wrongColumn(now, write)
          if (wrong !== undefined) throw new Misfit(wrong)
          outcomes.set(i, {is: 'written', digest: now?.digest})
        }
        db.exec('release many_rows')
        return outcomes
      } catch (cause) {
        if (!db.isTransaction) return 'ended'
        if (cause instanceof Error && !(cause instanceof Misfit) && !isRefusal(cause)) throw cause
        db.exec('rollback to many_rows; release many_rows')
        group = group.filter(([i]) => i !== failed)
      }
    }
    return new Map()
  }

  #access(table: string): TableAccess | undefined {
    const known = this.#tables.get(table)
    if (known !== undefined) return known
    const spec = this.spec.tables.find(({name}) => name === table)
    if (spec === undefined) return undefined
    const access = new TableAccess(this.#db, spec)
    this.#tables.set(table, access)
    return access
  }
}

/** What says how the file is built, or is kept by SQLite itself: changed from outside, the app would not know its file. */
function untouchable(db: DatabaseSync): ReadonlySet<string> {
  const own = db
    .prepare(
      `select name from pragma_table_list where schema = 'main'
        and (type = 'shadow' or name like 'sqlite\\_%' escape '\\')`,
    )
    .all() as {name: string}[]
  return new Set([...own.map(({name}) => name), 'alembic_version', 'migratehistory'])
}

/** Reads and changes single rows of one table. */
class TableAccess {
  readonly #db: DatabaseSync
  readonly #table: TableSpec
  readonly #reader: TableReader
  readonly #statements = new Map<string, StatementSync>()

  constructor(db: DatabaseSync, table: TableSpec) {
    this.#db = db
    this.#table = table
    this.#reader = new TableReader(db, table)
  }

  find({key, parts}: RowWrite): SourceRow | undefined {
    return this.#reader.find([{key, values: parts}]).rows[0]
  }

  /** @param row as it is now. */
  put(write: RowWrite, row: SourceRow | undefined): void {
    const {values} = write
    if (row === undefined) this.insert(write, undefined)
    else if (values === undefined) this.remove(row)
    else this.#update(row, values)
  }

  remove(row: SourceRow): void {
    const {where, bound} = this.#where(row)
    this.#run(`delete from ${ident(this.#table.name)} where ${where}`, bound)
  }

  /** @param rowid the one that the row had. */
  insert({key, values}: RowWrite, rowid: bigint | undefined): void {
    if (values === undefined) return
    const {name, rowidName, withoutRowid} = this.#table
    const own = withoutRowid || rowidName === undefined ? undefined : (rowid ?? rowidOfKey(key, this.#table))
    const columns = [...values.keys()]
    const list = [...(own === undefined ? [] : [rowidName as string]), ...columns.map(ident)]
    const marks = list.map(() => 'iif(?, cast(? as text), ?)')
    const bound = [...(own === undefined ? [] : [own]), ...values.values()].flatMap(threefold)
    this.#run(
      list.length === 0
        ? `insert into ${ident(name)} default values`
        : `insert into ${ident(name)} (${list.join(', ')}) values (${marks.join(', ')})`,
      bound,
    )
  }

  /** What the row holds that it was not to hold; `undefined`: it is as it was to be. */
  wrongColumn(row: SourceRow | undefined, {values}: RowWrite): string | undefined {
    if (values === undefined) return row === undefined ? undefined : 'the row is still there'
    if (row === undefined) return 'the row is not there under its key'
    for (const [i, {name, generated}] of this.#table.columns.entries())
      if (!generated && !isSameValue(row.values[i] as Value, values.get(name) ?? null))
        return `column ${name} holds another value than was written`
    return undefined
  }

  #update(row: SourceRow, values: ReadonlyMap<string, Value>): void {
    // Only what differs: neither indexes nor triggers of other columns have anything to do.
    const changed = this.#table.columns.flatMap(({name, generated}, i) =>
      generated || isSameValue(row.values[i] as Value, values.get(name) ?? null) ? [] : [name],
    )
    if (changed.length === 0) return
    const {where, bound} = this.#where(row)
    const set = changed.map(name => `${ident(name)} = iif(?, cast(? as text), ?)`)
    this.#run(`update ${ident(this.#table.name)} set ${set.join(', ')} where ${where}`, [
      ...changed.flatMap(name => threefold(values.get(name) ?? null)),
      ...bound,
    ])
  }

  /** This row and no other, whatever the columns' collations take for equal. */
  #where(row: SourceRow): {where: string; bound: SQLInputValue[]} {
    const {key, columns, rowidName, withoutRowid} = this.#table
    if (!withoutRowid && rowidName !== undefined) return {where: `${rowidName} = ?`, bound: [row.rowid]}
    const marks = key.map(ident).map(name => {
      return `${name} is iif(?, cast(? as text), ?) and ${name} is iif(?, cast(? as text), ?) collate binary`
    })
    const values = key.map(name => row.values[columns.findIndex(column => column.name === name)] as Value)
    return {
      where: marks.join(' and '),
      bound: values.flatMap(value => [...threefold(value), ...threefold(value)]),
    }
  }

  #run(sql: string, bound: readonly SQLInputValue[]): void {
    const statement = this.#statements.get(sql) ?? this.#db.prepare(sql)
    this.#statements.set(sql, statement)
    statement.run(...bound)
  }
}

/** The rowid that a key holds, if it holds one. */
function rowidOfKey(key: string, {keyedBy}: TableSpec): bigint | undefined {
  if (keyedBy !== 'rowid' && !key.startsWith('~0')) return undefined
  const parts = partsOfKey(key)
  if (parts === undefined) return undefined
  if ('rowid' in parts) return parts.rowid
  const [rowid] = parts.values
  return typeof rowid === 'bigint' ? rowid : undefined
}

function refusalOf(cause: unknown, found: SourceRow | undefined): WriteOutcome {
  const code = errcode(cause)
  const reason = cause instanceof Error ? cause.message : String(cause)
  switch (code) {
    case SQLITE_CONSTRAINT_UNIQUE:
    case SQLITE_CONSTRAINT_PRIMARYKEY:
    case SQLITE_CONSTRAINT_ROWID:
      return {is: 'blocked', reason, found}
    case SQLITE_CONSTRAINT_DATATYPE:
      return {is: 'refused', why: 'type', reason, found}
    case undefined:
      throw cause
    default:
  }
  switch (code & 0xff) {
    case SQLITE_CONSTRAINT:
      return {is: 'refused', why: 'constraint', reason, found}
    case SQLITE_MISMATCH:
    case SQLITE_TOOBIG:
    // A table of SQLite's own, or what a trigger asks for is not there.
    case SQLITE_ERROR:
      return {is: 'refused', why: 'type', reason, found}
    default:
      throw cause
  }
}

/** A row that reads back otherwise than it was written. */
class Misfit extends Error {}

function isRefusal(cause: Error): boolean {
  const code = (errcode(cause) ?? 0) & 0xff
  return [SQLITE_CONSTRAINT, SQLITE_MISMATCH, SQLITE_TOOBIG, SQLITE_ERROR].includes(code)
}

function isBusy(cause: unknown): boolean {
  return ((errcode(cause) ?? 0) & 0xff) === SQLITE_BUSY
}

function explained(file: string, cause: unknown): unknown {
  if (((errcode(cause) ?? 0) & 0xff) !== SQLITE_READONLY) return explain(file, cause)
  return new SourceUnreadableError(
    file,
    `it cannot be written (${(cause as Error).message})`,
    'Run as the user that owns the file, which must be able to write its folder too; or set the client’s direction to one_way.',
    {cause},
  )
}

/** Three parameters a value, for `iif(?, cast(? as text), ?)`: a text that JavaScript cannot hold goes as its bytes. */
function threefold(value: Value): SQLInputValue[] {
  return value instanceof RawText ? [1, value.bytes, null] : [0, null, value]
}

function isSame(a: Uint8Array | undefined, b: Uint8Array | undefined): boolean {
  return a === undefined || b === undefined ? a === b : Buffer.compare(a, b) === 0
}
