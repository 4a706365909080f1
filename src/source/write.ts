import {randomBytes, randomInt, randomUUID} from 'node:crypto'
import {DatabaseSync, type SQLInputValue, type StatementSync} from 'node:sqlite'
import {pathToFileURL} from 'node:url'
import {keyOf, keyOfRowid, keyOfUnkeyed, partsOfKey} from '../core/canonical.ts'
import type {Pragmas} from '../core/layout.ts'
import {isSameValue, RawText, type Value} from '../core/value.ts'
import {threefold} from './bind.ts'
import {SourceBusyError, SourceUnreadableError} from './errors.ts'
import {ident, introspect, readSchemaVersion, type SourceSpec, type TableSpec} from './introspect.ts'
import {errcode, explain, longestValue, whenFree, type Source} from './open.ts'
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

/** A row to be written, and the table that it belongs to. */
export type TableWrite = {readonly table: string; readonly write: RowWrite}

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

/** Rows in the way of another, by their keys. Those that are so only if a partial index has them are `possible`. */
export type Blockers = {readonly certain: readonly string[]; readonly possible: readonly string[]}

const SQLITE_BUSY = 5
const SQLITE_FULL = 13
const SQLITE_TOOBIG = 18
const SQLITE_CONSTRAINT = 19
const SQLITE_MISMATCH = 20
const SQLITE_READONLY = 8
const SQLITE_READONLY_ROLLBACK = 776
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
   * Opens the file that `source` has open, as soon as the app lets it be read.
   *
   * @throws {SourceBusyError} when it stays locked, has a transaction that a crashed app has left, or another file has its
   * name; {SourceUnreadableError} when it cannot be written.
   */
  static async open(source: Source, signal: AbortSignal): Promise<SourceWriter> {
    return await whenFree(source, () => SourceWriter.#open(source), signal)
  }

  static #open(source: Source): SourceWriter {
    let db: DatabaseSync | undefined
    try {
      // Before there is a connection that may write: it would roll back what a crashed app has left.
      requireSound(source.db)
      const url = pathToFileURL(source.file)
      // A file that has just gone is not made again.
      url.searchParams.set('mode', 'rw')
      db = new DatabaseSync(url, {
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
      throw isBusy(cause) ? cause : explained(source.file, cause)
    }
  }

  /**
   * Writes rows in one transaction, in the order given, as many as `budgetMs` allows but at least one.
   *
   * @returns `busy` when the app holds the file; `changed` when it is another file, or has another schema. Nothing was
   * done then.
   */
  write(rows: readonly TableWrite[], budgetMs: number): Batch | 'busy' | 'changed' {
    return this.#again(rows, refused => this.#inOrder(rows, budgetMs, refused))
  }

  /**
   * Writes rows that wait for each other: all of them give up what only one row can have, then all of them get what they
   * are to have, or none.
   *
   * @returns as {@link write}.
   */
  exchange(rows: readonly TableWrite[]): Batch | 'busy' | 'changed' {
    return this.#again(rows, refused => this.#allAtOnce(rows, refused))
  }

  /** Which rows have values now that this one is to have and only one can have. */
  blockers({table, write}: TableWrite): Blockers {
    return this.#access(table)?.blockers(write) ?? {certain: [], possible: []}
  }

  [Symbol.dispose](): void {
    this.#db.close()
  }

  /** Runs a transaction, again without a row that has ended the whole of it. */
  #again(
    rows: readonly TableWrite[],
    work: (refused: Map<number, WriteOutcome>) => readonly WriteOutcome[] | 'again',
  ): Batch | 'busy' | 'changed' {
    const db = this.#db
    for (const refused = new Map<number, WriteOutcome>(); ;) {
      if (this.#source.isReplaced()) return 'changed'
      try {
        // A connection that may write rolls back what a crashed app has left; that is the app's to do.
        if (!isSound(this.#source.db)) return 'busy'
        db.exec('begin immediate')
        const since = performance.now()
        if (readSchemaVersion(db) !== this.spec.schemaVersion) return 'changed'
        const outcomes = work(refused)
        if (outcomes === 'again') continue
        db.exec('commit')
        return {outcomes, holdMs: performance.now() - since, left: rows.length - outcomes.length}
      } catch (cause) {
        if (isBusy(cause)) return 'busy'
        throw explained(this.#source.file, cause)
      } finally {
        if (db.isTransaction) db.exec('rollback')
      }
    }
  }

  #inOrder(
    rows: readonly TableWrite[],
    budgetMs: number,
    refused: Map<number, WriteOutcome>,
  ): readonly WriteOutcome[] | 'again' {
    const outcomes: WriteOutcome[] = []
    const since = performance.now()
    for (const [i, {table, write}] of rows.entries()) {
      if (i > 0 && performance.now() - since > budgetMs) break
      const outcome = refused.get(i) ?? this.#apply(table, write)
      if (!this.#db.isTransaction) {
        refused.set(i, outcome)
        return 'again'
      }
      outcomes.push(outcome)
    }
    return outcomes
  }

  #allAtOnce(
    rows: readonly TableWrite[],
    refused: Map<number, WriteOutcome>,
  ): readonly WriteOutcome[] | 'again' {
    const db = this.#db
    const found = rows.map(({table, write}) => this.#access(table)?.find(write))
    const moved = rows.map(({write}, i) => !isSame(found[i]?.digest, write.expected))
    // One that is not as it was can free nothing: the others are tried again when it has been decided about.
    if (moved.includes(true))
      return rows.map((_, i): WriteOutcome => {
        return moved[i] === true
          ? {is: 'moved'}
          : {is: 'blocked', reason: 'another row has moved', found: found[i]}
      })
    const known = refused.get(0)
    if (known !== undefined) return rows.map(() => known)
    try {
      db.exec('savepoint all_rows')
      for (const [i, {table, write}] of rows.entries()) this.#access(table)?.vacate(write, found[i])
      for (const [i, {table, write}] of rows.entries())
        if (write.values !== undefined) this.#access(table)?.put(write, found[i])
      const outcomes = rows.map(({table, write}): WriteOutcome => {
        const access = this.#access(table)
        const now = access?.find(write)
        const wrong = access?.wrongColumn(now, write)
        if (wrong !== undefined) throw new Misfit(wrong)
        return {is: 'written', digest: now?.digest}
      })
      db.exec('release all_rows')
      return outcomes
    } catch (cause) {
      const isLost = !db.isTransaction
      if (!isLost) db.exec('rollback to all_rows; release all_rows')
      const reasons = rows.map((_, i): WriteOutcome => {
        return cause instanceof Misfit
          ? {is: 'refused', why: 'type', reason: cause.message, found: found[i]}
          : refusalOf(cause, found[i])
      })
      if (!isLost) return reasons
      refused.set(0, reasons[0] as WriteOutcome)
      return 'again'
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

  #access(table: string): TableAccess | undefined {
    const known = this.#tables.get(table)
    if (known !== undefined) return known
    const spec = this.spec.tables.find(({name}) => name === table)
    if (spec === undefined) return undefined
    const ddl = this.spec.objects.find(({type, name}) => type === 'table' && name === table)?.sql ?? ''
    const access = new TableAccess(this.#db, spec, ddl, this.spec.pragmas.encoding)
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
  readonly #encoding: Pragmas['encoding']
  readonly #reader: TableReader
  readonly #statements = new Map<string, StatementSync>()
  /** Not OR ABORT everywhere: it would also take the place of what the app's triggers say. */
  readonly #verb: '' | 'or abort'
  #unique: readonly UniqueIndex[] | undefined

  /** @param ddl the table's own. */
  constructor(db: DatabaseSync, table: TableSpec, ddl: string, encoding: Pragmas['encoding']) {
    this.#db = db
    this.#table = table
    this.#encoding = encoding
    // A constraint with ON CONFLICT REPLACE would delete other rows.
    this.#verb = /\bon\s+conflict\b/i.test(ddl) ? 'or abort' : ''
    this.#reader = new TableReader(db, table)
  }

  find({key, parts}: RowWrite): SourceRow | undefined {
    return this.#reader.find([{key, values: parts}]).rows[0]
  }

  /** @param row as it is now. */
  put(write: RowWrite, row: SourceRow | undefined): void {
    const {values} = write
    if (row === undefined) this.#insert(write)
    else if (values === undefined) this.#remove(row)
    else this.#update(row, values)
  }

  /**
   * Makes room for others. A row that stays is not deleted meanwhile, which the app's triggers would take for its end: it
   * gives up what only one row can have, for values that no row has.
   */
  vacate({values}: RowWrite, row: SourceRow | undefined): void {
    if (row === undefined) return
    if (values === undefined) {
      this.#remove(row)
      return
    }
    const unique = new Set(this.#indexes.flatMap(({parts}) => parts.map(({column}) => column)))
    const given = this.#table.columns.flatMap(({name, generated}, i): [string, Value][] => {
      const now = row.values[i] as Value
      const isGiven = unique.has(name) && !generated && !isSameValue(now, values.get(name) ?? null)
      return isGiven ? [[name, placeholder(now)]] : []
    })
    if (given.length > 0) this.#set(row, given)
  }

  #remove(row: SourceRow): void {
    const {where, bound} = this.#where(row)
    this.#run(`delete from ${ident(this.#table.name)} where ${where}`, bound)
  }

  #insert({key, values = new Map()}: RowWrite): void {
    const {name, rowidName, withoutRowid} = this.#table
    const own = withoutRowid || rowidName === undefined ? undefined : rowidOfKey(key, this.#table)
    const columns = [...values.keys()]
    const list = [...(own === undefined ? [] : [rowidName as string]), ...columns.map(ident)]
    const marks = list.map(() => 'iif(?, cast(? as text), ?)')
    const bound = [...(own === undefined ? [] : [own]), ...values.values()].flatMap(value =>
      this.#bound(value),
    )
    this.#run(
      list.length === 0
        ? `insert ${this.#verb} into ${ident(name)} default values`
        : `insert ${this.#verb} into ${ident(name)} (${list.join(', ')}) values (${marks.join(', ')})`,
      bound,
    )
  }

  get #indexes(): readonly UniqueIndex[] {
    return (this.#unique ??= uniqueIndexes(this.#db, this.#table.name))
  }

  blockers({key, values}: RowWrite): Blockers {
    const {name, rowidName} = this.#table
    const certain = new Set<string>()
    const possible = new Set<string>()
    for (const {parts, isPartial} of values === undefined ? [] : this.#indexes) {
      const keys = isPartial ? possible : certain
      const wanted = parts.map(({column}) => values?.get(column) ?? null)
      if (wanted.includes(null)) continue
      const where = parts.map(({column, collation}) => {
        return `${ident(column)} is iif(?, cast(? as text), ?) collate ${ident(collation)}`
      })
      const lead = rowidName === undefined ? '0' : rowidName
      const sql = `select ${[lead, ...this.#table.key.map(ident)].join(', ')} from ${ident(name)} where ${where.join(' and ')}`
      const statement = this.#prepared(sql)
      statement.setReadBigInts(true)
      statement.setReturnArrays(true)
      for (const row of statement.all(...wanted.flatMap(value => this.#bound(value))) as unknown as Value[][])
        keys.add(keyOfRow(row, this.#table))
    }
    certain.delete(key)
    possible.delete(key)
    return {certain: [...certain], possible: [...possible]}
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
    const changed = this.#table.columns.flatMap(({name, generated}, i): [string, Value][] => {
      const value = values.get(name) ?? null
      return generated || isSameValue(row.values[i] as Value, value) ? [] : [[name, value]]
    })
    if (changed.length > 0) this.#set(row, changed)
  }

  #set(row: SourceRow, changed: readonly (readonly [column: string, value: Value])[]): void {
    const {where, bound} = this.#where(row)
    const set = changed.map(([name]) => `${ident(name)} = iif(?, cast(? as text), ?)`)
    this.#run(`update ${this.#verb} ${ident(this.#table.name)} set ${set.join(', ')} where ${where}`, [
      ...changed.flatMap(([, value]) => this.#bound(value)),
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
      bound: values.flatMap(value => [...this.#bound(value), ...this.#bound(value)]),
    }
  }

  #bound(value: Value): SQLInputValue[] {
    return threefold(value, this.#encoding)
  }

  #run(sql: string, bound: readonly SQLInputValue[]): void {
    this.#prepared(sql).run(...bound)
  }

  #prepared(sql: string): StatementSync {
    const statement = this.#statements.get(sql) ?? this.#db.prepare(sql)
    this.#statements.set(sql, statement)
    return statement
  }
}

/** A unique index over columns; of one over expressions nobody knows here what it forbids. */
type UniqueIndex = {
  readonly parts: readonly {readonly column: string; readonly collation: string}[]
  /** Over some rows only; nobody knows here over which. */
  readonly isPartial: boolean
}

function uniqueIndexes(db: DatabaseSync, table: string): UniqueIndex[] {
  const indexes = db
    .prepare('select name, partial from pragma_index_list(?) where "unique" = 1')
    .all(table) as {name: string; partial: 0 | 1}[]
  return indexes.flatMap(({name, partial}) => {
    const parts = db
      .prepare(
        'select name as "column", coll as collation from pragma_index_xinfo(?) where key = 1 order by seqno',
      )
      .all(name) as {column: string | null; collation: string}[]
    return parts.some(({column}) => column === null)
      ? []
      : [{parts: parts as UniqueIndex['parts'], isPartial: partial === 1}]
  })
}

/** A value of the same class that no other row has. */
function placeholder(now: Value): Value {
  switch (typeof now) {
    case 'bigint':
      return -BigInt(randomInt(2 ** 32, 2 ** 48 - 1))
    case 'number':
      return -randomInt(2 ** 32, 2 ** 48 - 1) - 0.5
    case 'string':
      return randomUUID()
    default:
      return now === null ? null : now instanceof RawText ? randomUUID() : randomBytes(16)
  }
}

/** @param row the rowid, and the values of the key columns. */
function keyOfRow([rowid, ...parts]: readonly Value[], {keyedBy}: TableSpec): string {
  if (keyedBy === 'rowid') return keyOfRowid(rowid as bigint)
  if (parts.includes(null)) return keyOfUnkeyed(rowid as bigint)
  return keyOf(parts as Exclude<Value, null>[])
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

/** Fails while something waits to be rolled back: a connection that only reads is told so. */
function requireSound(db: DatabaseSync): void {
  db.prepare('select 1 from sqlite_schema limit 1').get()
}

function isSound(db: DatabaseSync): boolean {
  try {
    requireSound(db)
    return true
  } catch (cause) {
    if (errcode(cause) === SQLITE_READONLY_ROLLBACK) return false
    throw cause
  }
}

function isBusy(cause: unknown): boolean {
  return ((errcode(cause) ?? 0) & 0xff) === SQLITE_BUSY
}

function explained(file: string, cause: unknown): unknown {
  const code = errcode(cause) ?? 0
  if (code === SQLITE_READONLY_ROLLBACK) return explain(file, cause)
  if ((code & 0xff) === SQLITE_FULL)
    return new SourceUnreadableError(
      file,
      `it cannot be written (${(cause as Error).message})`,
      'Free some space on its disk; the next sync tries again.',
      {cause},
    )
  if ((code & 0xff) !== SQLITE_READONLY) return explain(file, cause)
  return new SourceUnreadableError(
    file,
    `it cannot be written (${(cause as Error).message})`,
    'Run as the user that owns the file, which must be able to write its folder too; or set the client’s direction to one_way.',
    {cause},
  )
}

function isSame(a: Uint8Array | undefined, b: Uint8Array | undefined): boolean {
  return a === undefined || b === undefined ? a === b : Buffer.compare(a, b) === 0
}
