import {createHash} from 'node:crypto'
import {DatabaseSync} from 'node:sqlite'

// The oracle of the exactness tests. It shares no code with src/ on purpose: a mistake made there must show here.

/** What `compareFiles` leaves out, and when it stops. */
export type CompareOptions = {
  /** Tables whose rows are not compared; their schema is. For what a restore rebuilds instead of copying. */
  readonly ignoreRows?: (table: string) => boolean
  /** No more differences than this are listed (100). */
  readonly most?: number
}

/**
 * Compares two SQLite files in everything a restore promises: schema, file settings, and every row of every table,
 * each value by its storage class and its bytes. Rows of a table with a key are matched by key, others by rowid.
 *
 * @returns one readable line for each difference; none when the files are equal.
 */
export function compareFiles(a: string, b: string, options: CompareOptions = {}): string[] {
  const {ignoreRows = () => false, most = 100} = options
  using left = openFile(a)
  using right = openFile(b)
  const found = new Findings(most)

  compareSettings(left, right, found)
  const tables = compareSchemas(left, right, found)
  for (const table of tables) {
    if (found.isFull) break
    if (!ignoreRows(table)) compareTable(left, right, table, found)
  }
  return found.lines
}

/** @returns the number of rows of every table in `file`, by name. */
export function tableRows(file: string): Record<string, bigint> {
  using db = openFile(file)
  const counts: Record<string, bigint> = {}
  for (const {name} of schemaOf(db)
    .values()
    .filter(object => object.type === 'table'))
    counts[name] = db.prepare(`select count(*) from ${quoted(name)}`).get()?.[0] as unknown as bigint
  return counts
}

type Cell = bigint | number | Uint8Array | null
/** One row: a value for each column, TEXT as its bytes, and one letter for each value's storage class. */
type Row = {readonly cells: readonly Cell[]; readonly classes: string}

class Findings {
  readonly lines: string[] = []
  readonly #most: number

  constructor(most: number) {
    this.#most = most
  }

  get isFull(): boolean {
    return this.lines.length >= this.#most
  }

  add(line: string): void {
    if (!this.isFull) this.lines.push(line)
  }
}

function openFile(file: string): DatabaseSync {
  return new DatabaseSync(file, {readOnly: true, readBigInts: true, returnArrays: true})
}

function all(db: DatabaseSync, sql: string, ...values: string[]): unknown[][] {
  return db.prepare(sql).all(...values) as unknown as unknown[][]
}

function compareSettings(left: DatabaseSync, right: DatabaseSync, found: Findings): void {
  const names = ['page_size', 'user_version', 'application_id', 'encoding', 'journal_mode', 'auto_vacuum']
  for (const name of [...names, 'integrity_check']) {
    const [ours, theirs] = [left, right].map(db => String(all(db, `pragma ${name}`).flat()))
    if (ours !== theirs) found.add(`pragma ${name}: ${ours ?? ''} → ${theirs ?? ''}`)
  }
}

type SchemaObject = {
  readonly type: string
  readonly name: string
  readonly table: string
  readonly sql: string
}

function schemaOf(db: DatabaseSync): Map<string, SchemaObject> {
  const objects = all(db, `select type, name, tbl_name, coalesce(sql, '(none)') from sqlite_schema`) as [
    string,
    string,
    string,
    string,
  ][]
  return new Map(
    objects
      .filter(([, name, table]) => !name.startsWith('sqlite_stat') && !table.startsWith('sqlite_stat'))
      .map(([type, name, table, sql]) => [`${type} ${name}`, {type, name, table, sql}]),
  )
}

/** @returns the tables that both have with the same SQL. */
function compareSchemas(left: DatabaseSync, right: DatabaseSync, found: Findings): string[] {
  const [ours, theirs] = [schemaOf(left), schemaOf(right)]
  const shared: string[] = []
  for (const [id, object] of ours) {
    const other = theirs.get(id)
    if (other === undefined) found.add(`${id}: missing`)
    else if (other.table !== object.table) found.add(`${id}: on ${object.table} → on ${other.table}`)
    else if (other.sql !== object.sql) found.add(`${id}: ${object.sql} → ${other.sql}`)
    else if (object.type === 'table') shared.push(object.name)
  }
  for (const id of theirs.keys()) if (!ours.has(id)) found.add(`${id}: extra`)
  return shared
}

type Column = {readonly name: string; readonly primary: bigint}

function columnsOf(db: DatabaseSync, table: string): Column[] {
  // Hidden 1 is a virtual table's own (an FTS table's rank); 2 and 3 are generated columns, which have values.
  const rows = all(db, 'select name, pk, hidden from pragma_table_xinfo(?)', table) as [
    string,
    bigint,
    bigint,
  ][]
  return rows.filter(([, , hidden]) => hidden !== 1n).map(([name, primary]) => ({name, primary}))
}

function compareTable(left: DatabaseSync, right: DatabaseSync, table: string, found: Findings): void {
  const columns = columnsOf(left, table).map(column => column.name)
  const key = keyOf(left, right, table)
  const rowid = key === undefined ? rowidName(left, table, columns) : undefined
  const names = rowid === undefined ? columns : [rowid, ...columns]
  const isKey = names.map(name => (key ?? [rowid]).includes(name))
  const sql = selectOf(table, names, key ?? (rowid === undefined ? names : [rowid]))
  const label = `table ${table}`

  const ours = left.prepare(sql).iterate() as unknown as Iterator<Cell[]>
  const theirs = right.prepare(sql).iterate() as unknown as Iterator<Cell[]>
  const waiting = {ours: new Waiting(isKey), theirs: new Waiting(isKey)}
  for (;;) {
    const [one, other] = [ours.next(), theirs.next()]
    if (one.done === true && other.done === true) break
    if (found.isFull) return
    const here = one.done === true ? undefined : rowOf(one.value, names.length)
    const there = other.done === true ? undefined : rowOf(other.value, names.length)
    if (here && there && isSame(here, there)) continue
    if (here && !waiting.theirs.take(here)) waiting.ours.add(here)
    if (there && !waiting.ours.take(there)) waiting.theirs.add(there)
  }
  for (const [id, rows] of waiting.ours.rows) {
    const others = waiting.theirs.rows.get(id) ?? []
    for (const row of rows) {
      const other = others.shift()
      const at = `${label} ${describeKey(row, names, isKey)}`
      if (other === undefined) found.add(`${at}: missing`)
      else for (const line of describeDifference(row, other, names)) found.add(`${at}: ${line}`)
    }
  }
  for (const row of [...waiting.theirs.rows.values()].flat())
    found.add(`${label} ${describeKey(row, names, isKey)}: extra`)
}

/** Rows that one side has read and the other has not, by key. A key may come more than once: it may hold NULL. */
class Waiting {
  readonly rows = new Map<string, Row[]>()
  readonly #isKey: readonly boolean[]

  constructor(isKey: readonly boolean[]) {
    this.#isKey = isKey
  }

  add(row: Row): void {
    const id = this.#id(row)
    const same = this.rows.get(id)
    if (same) same.push(row)
    else this.rows.set(id, [row])
  }

  /** @returns whether an equal row was waiting, which is then taken out. */
  take(row: Row): boolean {
    const id = this.#id(row)
    const rows = this.rows.get(id)
    const index = rows?.findIndex(candidate => isSame(candidate, row)) ?? -1
    if (rows === undefined || index < 0) return false
    rows.splice(index, 1)
    if (rows.length === 0) this.rows.delete(id)
    return true
  }

  #id(row: Row): string {
    const hash = createHash('sha256')
    row.cells.forEach((cell, i) => {
      if (this.#isKey[i] === true) hash.update(`${row.classes[i]!}${hexOf(cell)};`)
    })
    return hash.digest('base64')
  }
}

/** @returns the columns that identify a row in both files, or `undefined` when only the rowid does. */
function keyOf(left: DatabaseSync, right: DatabaseSync, table: string): string[] | undefined {
  if (table === 'sqlite_sequence') return ['name']
  const primary = columnsOf(left, table)
    .filter(column => column.primary > 0n)
    .sort((one, other) => Number(one.primary - other.primary))
    .map(column => column.name)
  if (primary.length > 0) return primary
  const indexes = all(
    left,
    'select name from pragma_index_list(?) where "unique" and not partial order by name',
    table,
  )
  for (const [index] of indexes as [string][]) {
    const columns = all(left, 'select name from pragma_index_info(?) order by seqno', index).flat() as (
      string | null
    )[]
    const names = columns.filter(name => name !== null)
    if (names.length < columns.length) continue // over an expression
    const hasNull = names.map(name => `t.${quoted(name)} is null`).join(' or ')
    const sql = `select exists (select 1 from ${quoted(table)} t where ${hasNull})`
    if ([left, right].every(db => all(db, sql)[0]?.[0] === 0n)) return names
  }
  return undefined
}

/** @returns a name that reaches the rowid, or `undefined` when columns have taken them all. */
function rowidName(db: DatabaseSync, table: string, columns: readonly string[]): string | undefined {
  const hidden = all(db, 'select name from pragma_table_xinfo(?)', table).flat() as string[]
  const taken = new Set([...columns, ...hidden].map(name => name.toLowerCase()))
  return ['rowid', '_rowid_', 'oid'].find(name => !taken.has(name))
}

function selectOf(table: string, names: readonly string[], order: readonly string[]): string {
  const column = (name: string) => `t.${quoted(name)}`
  const classes = names.map(name => `substr(typeof(${column(name)}), 1, 1)`)
  // In groups: an expression may not be deeper than 1,000.
  const groups = Array.from({length: Math.ceil(names.length / 400)}, (_, i) =>
    classes.slice(i * 400, (i + 1) * 400).join(' || '),
  )
  const values = names.map(
    name => `iif(typeof(${column(name)}) = 'text', cast(${column(name)} as blob), ${column(name)})`,
  )
  return `select ${[...values, ...groups].join(', ')} from ${quoted(table)} t order by ${order.map(column).join(', ')}`
}

function rowOf(read: readonly Cell[], columns: number): Row {
  const classes = read.slice(columns) as unknown as string[]
  return {cells: read.slice(0, columns), classes: classes.join('')}
}

function isSame(one: Row, other: Row): boolean {
  return one.classes === other.classes && one.cells.every((cell, i) => isSameCell(cell, other.cells[i]!))
}

function isSameCell(one: Cell, other: Cell): boolean {
  if (one instanceof Uint8Array) return other instanceof Uint8Array && Buffer.compare(one, other) === 0
  return Object.is(one, other) // -0.0 and 0.0 are different bytes
}

function* describeDifference(one: Row, other: Row, names: readonly string[]): Generator<string> {
  for (const [i, name] of names.entries())
    if (one.classes[i] !== other.classes[i] || !isSameCell(one.cells[i]!, other.cells[i]!))
      yield `${JSON.stringify(name)}: ${describe(one, i)} → ${describe(other, i)}`
}

function describeKey(row: Row, names: readonly string[], isKey: readonly boolean[]): string {
  const parts = names.flatMap((name, i) => (isKey[i] === true ? [`${name}=${describe(row, i)}`] : []))
  return `(${parts.join(', ')})`
}

function describe(row: Row, i: number): string {
  const cell = row.cells[i]!
  switch (row.classes[i]) {
    case 'n':
      return 'NULL'
    case 't':
      return `text ${short(JSON.stringify(Buffer.from(cell as Uint8Array).toString()))} (${hexOf(cell).slice(0, 40)}, ${(cell as Uint8Array).length} bytes)`
    case 'b':
      return `blob x'${short(hexOf(cell))}' (${(cell as Uint8Array).length} bytes)`
    case 'r':
      return `real ${Object.is(cell, -0) ? '-0' : String(cell)} (${hexOf(cell)})`
    default:
      return `integer ${String(cell)}`
  }
}

function short(text: string): string {
  return text.length > 60 ? `${text.slice(0, 60)}…` : text
}

function hexOf(cell: Cell): string {
  if (cell instanceof Uint8Array) return Buffer.from(cell).toString('hex')
  if (typeof cell !== 'number') return String(cell)
  const bytes = Buffer.alloc(8)
  bytes.writeDoubleBE(cell)
  return bytes.toString('hex')
}

function quoted(name: string): string {
  return `"${name.replaceAll('"', '""')}"`
}
