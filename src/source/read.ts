import type {DatabaseSync, SQLInputValue, StatementSync} from 'node:sqlite'
import {
  keyOf,
  keyOfRowid,
  keyOfUnkeyed,
  partsOfKey,
  rowDigester,
  type RowDigester,
} from '../core/canonical.ts'
import type {Pragmas} from '../core/layout.ts'
import {RawText, type Value} from '../core/value.ts'
import {mark, threefold} from './bind.ts'
import {SourceUnreadableError} from './errors.ts'
import {collated, ident, type TableSpec} from './introspect.ts'
import {allRows, rowsBehind, type OrderTerm, type Stretch} from './keyset.ts'
import {endRead, errcode, longestValue} from './open.ts'

/** One row of a source, as read. `rowid` is 0 in a WITHOUT ROWID table. */
export type SourceRow = {
  readonly rowid: bigint
  readonly key: string
  readonly digest: Buffer
  /** In the order of the table's columns. */
  readonly values: Value[]
}

/** A row that cannot be read as a whole; it is counted and named, never dropped silently. */
export type RefusedRow = {readonly rowid: bigint; readonly key: string; readonly reason: string}

/** Where a page ended: the rowid, or the key columns' values in a WITHOUT ROWID table. */
export type Position = readonly Value[]

export type Page = {
  readonly rows: readonly SourceRow[]
  readonly refused: readonly RefusedRow[]
  /** Where to go on; `undefined` when the table has been read to its end. */
  readonly next: Position | undefined
  readonly bytes: number
  /** How long the read lock was held, in ms. */
  readonly holdMs: number
}

/** How much one page may read: whichever is reached first ends it. */
export type PageBudget = {readonly ms: number; readonly bytes: number; readonly rows: number}

const SQLITE_TOOBIG = 18

/** Reads one table in pages, in the order of its rowid (of its primary key in a WITHOUT ROWID table). */
export class TableReader {
  readonly table: TableSpec
  readonly #db: DatabaseSync
  /** Prepared at once, to find out whether the rows can be asked for at all. The others are when they are needed. */
  #first: StatementSync
  readonly #touch: StatementSync
  readonly #all: Stretch
  /** What stands behind a position, the nearest rows first. */
  readonly #behind: readonly Stretch[]
  #behindStatements: readonly StatementSync[] | undefined
  #oneStatement: StatementSync | undefined
  #untilStatement: StatementSync | undefined
  #betweenStatement: StatementSync | undefined
  #byKey: StatementSync | undefined
  readonly #digest: RowDigester
  readonly #keyAt: readonly number[]
  /** Leading result columns that say where the row stands: its rowid, or the bytes of each key column that is text. */
  readonly #lead: number
  readonly #encoding: Pragmas['encoding']

  constructor(db: DatabaseSync, table: TableSpec) {
    this.table = table
    this.#db = db
    this.#keyAt = table.key.map(name => table.columns.findIndex(column => column.name === name))
    this.#digest = rowDigester(
      table.columns.map(column => column.name),
      table.keyedBy === 'rowid',
    )
    this.#lead = table.withoutRowid ? table.key.length : 1
    this.#encoding = db.prepare('pragma encoding').get()?.['encoding'] as Pragmas['encoding']
    const order = this.#order()
    this.#all = allRows(order)
    this.#behind = rowsBehind(order)
    this.#first = this.#prepareStretch(this.#all)
    this.#touch = db.prepare('select 1 from sqlite_schema limit 1')
  }

  /** Runs reads under one read lock, and says how long that was held. */
  locked<T extends {holdMs: number}>(read: () => T): T {
    if (this.#db.isTransaction) return read()
    this.#db.exec('begin')
    try {
      // Takes the lock, which SQLite may have to wait for.
      this.#touch.get()
      const since = performance.now()
      return {...read(), holdMs: performance.now() - since}
    } finally {
      endRead(this.#db)
    }
  }

  /**
   * Reads on after `position` (from the start without one) until the budget is spent.
   *
   * @param upTo the last rowid that is wanted; for tables with rowids only.
   */
  page(position: Position | undefined, budget: PageBudget, upTo?: bigint): Page {
    // With the wait for the lock: an app that is busy is given it back the sooner.
    const endsAt = performance.now() + budget.ms
    const {fetched, ...page} = this.locked(() => this.#fetchPage(position, {...budget, endsAt}, upTo))
    return {...page, rows: fetched.map(row => this.#row(row))}
  }

  #fetchPage(
    position: Position | undefined,
    budget: PageBudget & {readonly endsAt: number},
    upTo: bigint | undefined,
  ) {
    const fetched: Value[][] = []
    const refused: RefusedRow[] = []
    let bytes = 0
    let last = position
    let ended = true
    const since = performance.now()
    try {
      const rows = upTo === undefined ? this.#from(position) : this.#upTo(position, upTo)
      for (const row of rows as Iterable<Value[]>) {
        bytes += this.#settle(row)
        fetched.push(row)
        if (fetched.length >= budget.rows || bytes >= budget.bytes || performance.now() >= budget.endsAt) {
          ended = false
          break
        }
      }
      if (fetched.length > 0) last = this.#positionOf(fetched[fetched.length - 1] as Value[])
    } catch (cause) {
      if (!this.#isTooBig(cause)) throw cause
      if (fetched.length > 0) last = this.#positionOf(fetched[fetched.length - 1] as Value[])
      const over = last === undefined ? this.#oversized([this.#all], []) : this.#oversized(this.#behind, last)
      refused.push(over.row)
      last = over.position
      ended = false
    }
    return {fetched, refused, next: ended ? undefined : last, bytes, holdMs: performance.now() - since}
  }

  /**
   * Reads single rows again by rowid until the budget is spent; rows that have gone meanwhile are not in the answer.
   * `asked` is how many of the rowids have been looked at.
   */
  fetch(
    rowids: readonly bigint[],
    budget: PageBudget,
  ): {rows: SourceRow[]; refused: RefusedRow[]; asked: number; bytes: number; holdMs: number} {
    const endsAt = performance.now() + budget.ms
    const {fetched, ...page} = this.locked(() => this.#fetchRows(rowids, {...budget, endsAt}))
    return {...page, rows: fetched.map(row => this.#row(row))}
  }

  #fetchRows(rowids: readonly bigint[], budget: PageBudget & {readonly endsAt: number}) {
    const fetched: Value[][] = []
    const refused: RefusedRow[] = []
    let asked = 0
    let bytes = 0
    const since = performance.now()
    for (const rowid of rowids) {
      asked++
      try {
        // Settled while the statement runs: the row must not change in between.
        for (const row of this.#one().iterate(rowid) as unknown as Iterable<Value[]>) {
          bytes += this.#settle(row)
          fetched.push(row)
        }
      } catch (cause) {
        if (!this.#isTooBig(cause)) throw cause
        const which = {where: `${this.#rowid()} = ${mark(0)}`, orderBy: this.#rowid(), bound: 1}
        refused.push(this.#oversized([which], [rowid]).row)
      }
      if (bytes >= budget.bytes || performance.now() >= budget.endsAt) break
    }
    return {fetched, refused, asked, bytes, holdMs: performance.now() - since}
  }

  /**
   * Reads single rows by their keys, asking for one by the values of its key columns or, where `undefined`, by the rowid
   * that its key holds. Keys that no row has now are not in the answer, nor are rows that cannot be read.
   */
  find(wanted: readonly {readonly key: string; readonly values: readonly Value[] | undefined}[]): {
    rows: SourceRow[]
    refused: readonly string[]
    holdMs: number
  } {
    const rows: SourceRow[] = []
    const refused: string[] = []
    const since = performance.now()
    for (const {key, values} of wanted) {
      try {
        for (const row of this.#withKey(key, values) as Iterable<Value[]>) {
          this.#settle(row)
          const found = this.#row(row)
          // An index may take for equal what is not the same.
          if (found.key === key) rows.push(found)
        }
      } catch (cause) {
        if (!this.#isTooBig(cause)) throw cause
        refused.push(key)
      }
    }
    return {rows, refused, holdMs: performance.now() - since}
  }

  /** Which of the keys no row has now. A hashed key cannot be looked up and is never reported absent. */
  absent(keys: readonly string[]): {keys: ReadonlySet<string>; holdMs: number} {
    return this.locked(() => this.#lookForAbsent(keys))
  }

  #lookForAbsent(keys: readonly string[]): {keys: ReadonlySet<string>; holdMs: number} {
    const {table} = this
    const gone = new Set<string>()
    const statements = new Map<boolean, StatementSync>()
    const since = performance.now()
    for (const key of keys) {
      const parts = partsOfKey(key)
      if (parts === undefined) continue
      const byRowid = 'rowid' in parts || table.keyedBy === 'rowid'
      const values = 'rowid' in parts ? [parts.rowid] : parts.values
      if (values.length !== (byRowid ? 1 : table.key.length)) continue
      const where = byRowid ? `${this.#rowid()} is ${mark(0)}` : this.#isOfKey()
      const statement =
        statements.get(byRowid) ??
        this.#db.prepare(`select 1 from ${ident(table.name)} where ${where} limit 1`)
      statements.set(byRowid, statement)
      if (statement.get(...this.#bindable(values)) === undefined) gone.add(key)
    }
    return {keys: gone, holdMs: performance.now() - since}
  }

  /** About how many rows there are at most, without counting them; `undefined` for none, or where rows have no rowid. */
  highestRowid(): bigint | undefined {
    if (this.table.withoutRowid) return undefined
    const statement = this.#db.prepare(`select max(${this.#rowid()}) as rid from ${ident(this.table.name)}`)
    statement.setReadBigInts(true)
    return (statement.get()?.['rid'] as bigint | null) ?? undefined
  }

  #withKey(key: string, values: readonly Value[] | undefined): Iterable<unknown> {
    const {table} = this
    const parts = values ?? rowidOf(key)
    if (parts === undefined) return []
    if (values === undefined) return table.withoutRowid ? [] : this.#one().iterate(...(parts as bigint[]))
    this.#byKey ??= this.#prepare(`where ${this.#isOfKey()}`)
    return this.#byKey.iterate(...this.#bindable(parts))
  }

  /**
   * Whether a read failed because of a value that is too long. The statement that met it fails once more when it is next
   * begun, so no statement outlives that.
   */
  #isTooBig(cause: unknown): boolean {
    if (errcode(cause) !== SQLITE_TOOBIG) return false
    this.#first = this.#prepareStretch(this.#all)
    this.#behindStatements = undefined
    this.#oneStatement = undefined
    this.#untilStatement = undefined
    this.#betweenStatement = undefined
    this.#byKey = undefined
    return true
  }

  #from(position: Position | undefined): Iterable<unknown> {
    if (position === undefined) return this.#first.iterate()
    this.#behindStatements ??= this.#behind.map(stretch => this.#prepareStretch(stretch))
    const values = this.#bindable(position)
    const [only, ...others] = this.#behindStatements
    return others.length === 0 ? (only as StatementSync).iterate(...values) : this.#inTurn(values)
  }

  *#inTurn(values: readonly SQLInputValue[]): Generator {
    for (const [i, statement] of (this.#behindStatements as readonly StatementSync[]).entries())
      yield* statement.iterate(...values.slice(0, 3 * (this.#behind[i] as Stretch).bound))
  }

  /** Single rows by their rowids. */
  #one(): StatementSync {
    return (this.#oneStatement ??= this.#prepare(`where ${this.#rowid()} = ?`))
  }

  #upTo(position: Position | undefined, last: bigint): Iterable<unknown> {
    const rowid = this.#rowid()
    const ordered = `${rowid} <= ? order by ${rowid}`
    if (position === undefined)
      return (this.#untilStatement ??= this.#prepare(`where ${ordered}`)).iterate(last)
    this.#betweenStatement ??= this.#prepare(`where ${rowid} > ? and ${ordered}`)
    return this.#betweenStatement.iterate(...(position as bigint[]), last)
  }

  #prepareStretch({where, orderBy}: Stretch): StatementSync {
    return this.#prepare(`where ${where} order by ${orderBy}`)
  }

  #prepare(which: string): StatementSync {
    const {name, key, withoutRowid} = this.table
    const columns = this.table.columns.map(column => ident(column.name))
    // A text in the key must be known exactly, or the row cannot be asked for again.
    const lead = withoutRowid ? key.map(bytesOfText) : [this.#rowid()]
    const statement = this.#db.prepare(
      `select ${[...lead, ...columns].join(', ')} from ${ident(name)} ${which}`,
    )
    statement.setReadBigInts(true)
    statement.setReturnArrays(true)
    return statement
  }

  /**
   * What the rows stand in the order of: the rowid, or the key as its index has it. By the collations of the columns
   * different keys may be equal, and none of those behind the end of a page would ever be read.
   */
  #order(): OrderTerm[] {
    const {key, keyIndex, withoutRowid} = this.table
    if (!withoutRowid) return [{by: this.#rowid(), descends: false, at: 0}]
    return keyIndex.map(part => ({
      by: collated(part),
      descends: part.descends,
      at: key.indexOf(part.column),
    }))
  }

  /** Of a key, whose values {@link threefold} binds, and of no other one that a collation takes for equal. */
  #isOfKey(): string {
    const {key, keyIndex} = this.table
    const terms = key.flatMap((column, i) => {
      const inIndex = keyIndex.filter(part => part.column === column).map(({collation}) => collation)
      const collations = new Set([...inIndex, 'BINARY'])
      return [...collations].map(collation => `${ident(column)} is ${mark(i)} collate ${ident(collation)}`)
    })
    return terms.join(' and ')
  }

  #rowid(): string {
    if (this.table.rowidName !== undefined) return this.table.rowidName
    // The INTEGER PRIMARY KEY, if there is one, is the rowid under another name.
    const [only] = this.table.key
    const column = this.table.columns.find(column => column.name === only)
    if (
      this.table.key.length === 1 &&
      column?.declared.toUpperCase() === 'INTEGER' &&
      this.table.keyedBy === 'primary key'
    )
      return ident(column.name)
    throw this.#unreachable()
  }

  #unreachable(): SourceUnreadableError {
    return new SourceUnreadableError(
      this.table.name,
      'the columns of this table are named rowid, oid and _rowid_, so its rows have no address that can be read',
      'Rename one of these columns, or give the table an INTEGER PRIMARY KEY.',
    )
  }

  #bindable(values: readonly Value[]): SQLInputValue[] {
    return values.flatMap(value => threefold(value, this.#encoding))
  }

  #positionOf(row: readonly Value[]): Position {
    return this.table.withoutRowid ? this.#keyAt.map(at => row[this.#lead + at] as Value) : [row[0] as bigint]
  }

  #row(row: Value[]): SourceRow {
    const {withoutRowid} = this.table
    const rowid = withoutRowid ? 0n : (row.shift() as bigint)
    const values = withoutRowid ? row.slice(this.#lead) : row
    const key = this.#key(values, rowid)
    return {rowid, key, digest: this.#digest(values, key), values}
  }

  #key(values: readonly Value[], rowid: bigint): string {
    return this.#keyOf(
      this.#keyAt.map(at => values[at] as Value),
      rowid,
    )
  }

  #keyOf(values: readonly Value[], rowid: bigint): string {
    if (this.table.keyedBy === 'rowid') return keyOfRowid(rowid)
    if (!values.includes(null)) return keyOf(values as Exclude<Value, null>[])
    if (this.table.withoutRowid) throw this.#unreachable()
    return keyOfUnkeyed(rowid)
  }

  /** Replaces text that JavaScript cannot hold by its bytes. Runs under the read lock of the row's statement. */
  #settle(row: Value[]): number {
    if (this.table.withoutRowid) this.#settleKey(row)
    let bytes = 0
    for (let i = this.#lead; i < row.length; i++) {
      const value = row[i] as Value
      if (typeof value === 'string') {
        bytes += value.length
        if (this.#isSuspect(value)) row[i] = this.#rawText(row, i, value)
      } else if (value instanceof Uint8Array) bytes += value.byteLength
      else bytes += 8
    }
    return bytes
  }

  /** First, because the row's other columns are asked for by it. */
  #settleKey(row: Value[]): void {
    for (const [i, at] of this.#keyAt.entries())
      row[this.#lead + at] = this.#settled(row[this.#lead + at] as Value, row[i] as Value)
  }

  /** @param bytes of the value in the file, if it is a text. */
  #settled(value: Value, bytes: Value): Value {
    if (typeof value !== 'string' || !this.#isSuspect(value)) return value
    return this.#isPlain(bytes as Uint8Array, value) ? value : new RawText(bytes as Uint8Array)
  }

  /** Whether the text may not be what the file holds. Two `includes` are a hundred times as fast as one expression. */
  #isSuspect(text: string): boolean {
    if (text.includes('\0') || text.includes('\ufffd')) return true
    // From UTF-16 SQLite makes a character of any two surrogates, in whatever order they stand.
    return this.#encoding !== 'UTF-8' && /[\ud800-\udfff]/.test(text)
  }

  #rawText(row: readonly Value[], at: number, text: string): Value {
    const name = (this.table.columns[at - this.#lead] as TableSpec['columns'][number]).name
    const where = this.table.withoutRowid ? this.#isOfKey() : `${this.#rowid()} = ${mark(0)}`
    const statement = this.#db.prepare(
      `select cast(${ident(name)} as blob) as bytes from ${ident(this.table.name)} where ${where}`,
    )
    const bytes = statement.get(...this.#bindable(this.#positionOf(row)))?.['bytes'] as Uint8Array
    return this.#isPlain(bytes, text) ? text : new RawText(bytes)
  }

  #isPlain(bytes: Uint8Array, text: string): boolean {
    if (text.includes('\0')) return false
    const encoding = Buffer.from(text, 'utf8')
    if (encoding.equals(bytes)) return true
    // In a UTF-16 file the bytes differ from UTF-8 although the text is whole.
    return Buffer.from(text, 'utf16le').equals(bytes) || Buffer.from(text, 'utf16le').swap16().equals(bytes)
  }

  /** The first row of these stretches, without its values. */
  #oversized(stretches: readonly Stretch[], from: Position): {row: RefusedRow; position: Position} {
    const {name, key, withoutRowid, columns} = this.table
    const sizes = columns.map(column => `octet_length(${ident(column.name)})`)
    const rowid = withoutRowid ? '0' : this.#rowid()
    const wanted = [rowid, ...key.map(bytesOfText), ...key.map(ident), ...sizes].join(', ')
    const values = this.#bindable(from)
    let found: Value[] = []
    for (const {where, orderBy, bound} of stretches) {
      const statement = this.#db.prepare(
        `select ${wanted} from ${ident(name)} where ${where} order by ${orderBy} limit 1`,
      )
      statement.setReadBigInts(true)
      statement.setReturnArrays(true)
      const row = statement.get(...values.slice(0, 3 * bound)) as unknown as Value[] | undefined
      if (row !== undefined) {
        found = row
        break
      }
    }
    const at = found[0] as bigint
    const parts = key.map((_, i) => this.#settled(found[1 + key.length + i] as Value, found[1 + i] as Value))
    const rowKey = this.#keyOf(parts, at)
    const large = columns
      .map((column, i) => ({name: column.name, bytes: Number(found[1 + 2 * key.length + i] ?? 0)}))
      .sort((a, b) => b.bytes - a.bytes)[0]
    const reason = `column ${large?.name ?? '?'} holds ${large?.bytes ?? 0} bytes, more than the ${longestValue.bytes} that can be mirrored`
    return {row: {rowid: at, key: rowKey, reason}, position: withoutRowid ? parts : [at]}
  }
}

function bytesOfText(column: string): string {
  return `iif(typeof(${ident(column)}) = 'text', cast(${ident(column)} as blob), null)`
}

function rowidOf(key: string): readonly Value[] | undefined {
  const parts = partsOfKey(key)
  if (parts === undefined) return undefined
  return 'rowid' in parts ? [parts.rowid] : parts.values
}
