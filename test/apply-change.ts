import {DatabaseSync, type SQLInputValue} from 'node:sqlite'
import type {Cell, Change, ColumnPlan, FilePlan, KeyKind, TablePlan} from './arbitrary.ts'

/** Opens `file` as histories want it: no foreign keys, no defence, no waiting for the disk. */
export function openForChange(file: string): DatabaseSync {
  const db = new DatabaseSync(file, {enableForeignKeyConstraints: false, defensive: false})
  db.exec('pragma synchronous = off')
  return db
}

/** Makes the planned tables and rows in a new, empty file. Rows that break a rule of their table are left out. */
export function buildFile(db: DatabaseSync, plan: FilePlan): void {
  db.exec(`pragma page_size = ${plan.pageSize}; pragma encoding = '${plan.encoding}'`)
  db.exec(`pragma auto_vacuum = ${plan.autoVacuum}; pragma journal_mode = ${plan.journalMode}`)
  db.exec('begin')
  for (const table of plan.tables) applyChange(db, {do: 'create table', plan: table})
  db.exec('commit')
}

/**
 * Applies one change as a whole or, when the file's rules forbid it or nothing fits, not at all.
 *
 * @returns whether it was applied.
 */
export function applyChange(db: DatabaseSync, change: Change): boolean {
  switch (change.do) {
    case 'vacuum':
      if (db.isTransaction) return false
      db.exec('vacuum')
      return true
    case 'transaction': {
      if (db.isTransaction) return false
      db.exec('begin')
      const applied = change.changes.map(one => applyChange(db, one))
      db.exec(change.end)
      return change.end === 'commit' && applied.includes(true)
    }
    default:
      return attempt(db, () => perform(db, change))
  }
}

/** Runs `work` as one step; false, and nothing done, when it returns false or SQLite refuses. */
function attempt(db: DatabaseSync, work: () => boolean): boolean {
  db.exec('savepoint attempt')
  let isDone = false
  try {
    isDone = work()
  } catch (cause) {
    if (!isRefusal(cause)) throw cause
  } finally {
    if (!isDone) db.exec('rollback to attempt')
    db.exec('release attempt')
  }
  return isDone
}

/** SQLITE_ERROR (a statement that does not fit the schema), FULL (no rowid left), CONSTRAINT, MISMATCH. */
function isRefusal(cause: unknown): boolean {
  return (
    cause instanceof Error && 'errcode' in cause && [1, 13, 19, 20].includes(Number(cause.errcode) & 0xff)
  )
}

type Step = Exclude<Change, {do: 'vacuum'} | {do: 'transaction'}>

function perform(db: DatabaseSync, change: Step): boolean {
  switch (change.do) {
    case 'create table':
      createTable(db, change.plan)
      return true
    case 'drop index': {
      const indexes = names(
        db,
        `select name from sqlite_schema where type = 'index' and sql is not null order by name`,
      )
      const index = nth(indexes, change.index)
      if (index !== undefined) db.exec(`drop index ${quoted(index)}`)
      return index !== undefined
    }
    case 'user_version':
      db.exec(`pragma user_version = ${change.to}`)
      return true
    default: {
      const table = findTable(db, change.table)
      return table !== undefined && performOn(db, table, change)
    }
  }
}

function performOn(db: DatabaseSync, table: Table, change: Extract<Step, {table: number}>): boolean {
  switch (change.do) {
    case 'insert':
      insert(
        db,
        table,
        table.columns.map((column, i) => fit(table, column, change.cells[i % change.cells.length]!)),
      )
      return true
    case 'fill':
      return fill(db, table, change.rows, change.bytes)
    case 'delete some':
      return run(
        db,
        `delete from ${table.sql}${table.rowid ? ` where ${table.rowid} % ${change.every} = 0` : ''}`,
      )
    case 'add column': {
      const type = table.strict ? strictType(change.type) : change.type
      const literal = literalOf(change.cell)
      const add = `alter table ${table.sql} add column ${quoted(change.name)} ${type}`
      return run(db, literal === undefined ? add : `${add} default ${literal}`) || true
    }
    case 'rename table':
      db.exec(`alter table ${table.sql} rename to ${quoted(change.name)}`)
      return true
    case 'drop table':
      db.exec(`drop table ${table.sql}`)
      return true
    case 'rebuild':
      return rebuild(db, table, change.as, change.key, change.reorder)
    case 'drop column':
    case 'rename column':
    case 'create index': {
      const column = nth(table.columns, change.column)!
      if (change.do === 'drop column') db.exec(`alter table ${table.sql} drop column ${column.sql}`)
      else if (change.do === 'rename column')
        db.exec(`alter table ${table.sql} rename column ${column.sql} to ${quoted(change.name)}`)
      else
        db.exec(
          `create ${change.unique ? 'unique ' : ''}index ${newIndexName(db)} on ${table.sql} (${column.sql})`,
        )
      return true
    }
    default: {
      const row = findRow(db, table, change.row)
      return row !== undefined && performOnRow(db, table, row, change)
    }
  }
}

function performOnRow(
  db: DatabaseSync,
  table: Table,
  row: Row,
  change: Extract<Step, {row: number}>,
): boolean {
  switch (change.do) {
    case 'update': {
      const column = nth(table.columns, change.column)!
      const bumped = table.columns.find(({name}) => name === 'updated_at')
      const alsoBump = change.bump && bumped && bumped !== column ? `, ${bumped.sql} = 1768000001` : ''
      const to = bound(fit(table, column, change.cell))
      return run(db, `update ${table.sql} set ${column.sql} = ${to.sql}${alsoBump} where ${row.where.sql}`, [
        ...to.values,
        ...row.where.values,
      ])
    }
    case 'overwrite': {
      const column = change.column % table.columns.length
      const cell = overwritten(row.cells[column]!)
      if (cell === undefined) return false
      return update(db, table, row, table.columns[column]!, cell)
    }
    case 'delete':
      return remove(db, table, row)
    case 'replace': {
      const kept = table.columns.map((column, i) =>
        column.unique ? row.cells[i]! : fit(table, column, change.cells[i % change.cells.length]!),
      )
      insert(db, table, kept, 'insert or replace')
      return true
    }
    case 'insert again':
      remove(db, table, row)
      insert(db, table, row.cells)
      return true
    case 'move key': {
      const column = table.columns.find(({unique}) => unique)
      if (column) return update(db, table, row, column, fit(table, column, change.cell))
      if (table.rowid === undefined) return false
      return run(
        db,
        `update ${table.sql} set ${table.rowid} = (select max(${table.rowid}) + 1 from ${table.sql}) where ${row.where.sql}`,
        row.where.values,
      )
    }
    case 'swap': {
      const other = findRow(db, table, change.other)
      const keys = table.columns.flatMap(({unique}, i) => (unique ? [i] : []))
      const column = nth(keys, change.column) ?? change.column % table.columns.length
      if (other === undefined || isSameRow(row, other)) return false
      remove(db, table, row)
      remove(db, table, other)
      insert(db, table, row.cells.with(column, other.cells[column]!))
      insert(db, table, other.cells.with(column, row.cells[column]!))
      return true
    }
  }
}

// ── the file as it is ──

type Column = {
  readonly name: string
  readonly sql: string
  readonly type: string
  readonly notNull: boolean
  /** Another name for the rowid. */
  readonly isRowid: boolean
  /** Part of the primary key or of a unique index. */
  readonly unique: boolean
}

/** A table with the columns that can be written. */
type Table = {
  readonly name: string
  readonly sql: string
  readonly strict: boolean
  readonly columns: readonly Column[]
  /** An expression for the rowid; absent in a WITHOUT ROWID table. */
  readonly rowid: string | undefined
}

type Row = {readonly cells: Cell[]; readonly where: Bound}
type Bound = {readonly sql: string; readonly values: readonly SQLInputValue[]}

function read(db: DatabaseSync, sql: string, values: readonly SQLInputValue[] = []): unknown[][] {
  const statement = db.prepare(sql)
  statement.setReadBigInts(true)
  statement.setReturnArrays(true)
  return statement.all(...values) as unknown as unknown[][]
}

function names(db: DatabaseSync, sql: string, ...values: string[]): string[] {
  return read(db, sql, values).flat() as string[]
}

/** @returns whether any row was changed. */
function run(db: DatabaseSync, sql: string, values: readonly SQLInputValue[] = []): boolean {
  return Number(db.prepare(sql).run(...values).changes) > 0
}

function nth<T>(list: readonly T[], n: number): T | undefined {
  return list[n % Math.max(1, list.length)]
}

function findTable(db: DatabaseSync, n: number): Table | undefined {
  const ordinary = `select name from pragma_table_list where schema = 'main' and type = 'table'
    and name not like 'sqlite\\_%' escape '\\' order by name`
  const name = nth(names(db, ordinary), n)
  if (name === undefined) return undefined
  const [flags] = read(db, `select wr, strict from pragma_table_list(?) where schema = 'main'`, [name])
  const [withoutRowid, strict] = (flags as [bigint, bigint]).map(flag => flag === 1n)
  const unique = names(
    db,
    `select distinct c.name from pragma_index_list(?) i, pragma_index_info(i.name) c where i."unique" and c.name is not null`,
    name,
  )
  const info = read(db, 'select name, type, "notnull", pk, hidden from pragma_table_xinfo(?)', [name]) as [
    string,
    string,
    bigint,
    bigint,
    bigint,
  ][]
  const keys = info.filter(([, , , pk]) => pk > 0n).length
  const columns = info
    .filter(([, , , , hidden]) => hidden === 0n)
    .map(([name, type, notNull, pk]) => ({
      name,
      sql: quoted(name),
      type,
      notNull: notNull === 1n,
      isRowid: pk > 0n && keys === 1 && type.toUpperCase() === 'INTEGER' && withoutRowid !== true,
      unique: pk > 0n || unique.includes(name),
    }))
  const taken = info.map(([name]) => name.toLowerCase())
  const rowid = ['rowid', '_rowid_', 'oid'].find(alias => !taken.includes(alias))
  const sql = quoted(name)
  return {name, sql, strict: strict === true, columns, rowid: withoutRowid === true ? undefined : rowid}
}

function findRow(db: DatabaseSync, table: Table, n: number): Row | undefined {
  const [[count] = [0n]] = read(db, `select count(*) from ${table.sql}`) as [bigint][]
  if (count === 0n) return undefined
  const cells = table.columns.map(
    ({sql}) => `typeof(${sql}), iif(typeof(${sql}) = 'text', cast(${sql} as blob), ${sql})`,
  )
  const place = table.rowid ?? 'null'
  const order = table.rowid ?? table.columns.flatMap(({sql, unique}) => (unique ? [sql] : [])).join(', ')
  const sql = `select ${[place, ...cells].join(', ')} from ${table.sql} order by ${order} limit 1 offset ?`
  const [rowid, ...flat] = read(db, sql, [BigInt(n) % count])[0] as [bigint | null, ...unknown[]]
  const row = table.columns.map((_, i): Cell => {
    const value = flat[2 * i + 1] as Exclude<Cell, {rawText: Uint8Array} | string>
    return flat[2 * i] === 'text' ? {rawText: value as Uint8Array} : value
  })
  if (table.rowid !== undefined) return {cells: row, where: {sql: `${table.rowid} = ?`, values: [rowid]}}
  const parts = table.columns.flatMap(({sql, unique}, i) => {
    const {sql: mark, values} = bound(row[i]!)
    return unique ? [{sql: `${sql} is ${mark}`, values}] : []
  })
  const where = {sql: parts.map(part => part.sql).join(' and '), values: parts.flatMap(part => part.values)}
  return {cells: row, where}
}

function isSameRow(one: Row, other: Row): boolean {
  return one.where.values.every((value, i) => {
    const its = other.where.values[i]
    if (value instanceof Uint8Array) return its instanceof Uint8Array && Buffer.compare(value, its) === 0
    return Object.is(value, its)
  })
}

// ── writing ──

function insert(db: DatabaseSync, table: Table, cells: readonly Cell[], verb = 'insert'): void {
  const columns = table.columns.map(({sql}) => sql).join(', ')
  const values = cells.slice(0, table.columns.length).map(bound)
  const marks = values.map(value => value.sql).join(', ')
  run(
    db,
    `${verb} into ${table.sql} (${columns}) values (${marks})`,
    values.flatMap(value => value.values),
  )
}

function update(db: DatabaseSync, table: Table, row: Row, column: Column, cell: Cell): boolean {
  const to = bound(cell)
  const sql = `update ${table.sql} set ${column.sql} = ${to.sql} where ${row.where.sql}`
  return run(db, sql, [...to.values, ...row.where.values])
}

function remove(db: DatabaseSync, table: Table, row: Row): boolean {
  return run(db, `delete from ${table.sql} where ${row.where.sql}`, row.where.values)
}

/** Many rows at once, so that b-trees split and values overflow into pages of their own. */
function fill(db: DatabaseSync, table: Table, rows: number, bytes: number): boolean {
  const [[count] = [0n]] = read(db, `select count(*) from ${table.sql}`) as [bigint][]
  for (let i = 0; i < rows; i++) {
    const n = Number(count) * 1_000 + i
    const cells = table.columns.map((column, at) => {
      const isLong = at === table.columns.length - 1 && at > 0
      return fit(table, column, `fill ${n} ${isLong ? 'x'.repeat(bytes) : ''}`, n)
    })
    insert(db, table, cells, 'insert or ignore')
  }
  return true
}

function bound(cell: Cell): Bound {
  if (typeof cell === 'object' && cell !== null && 'rawText' in cell)
    return {sql: 'cast(? as text)', values: [cell.rawText]}
  return {sql: '?', values: [cell]}
}

/** @returns `cell`, or what the column can hold in its place; `n` makes replacements differ. */
function fit(table: Table, column: Column, cell: Cell, n = 7): Cell {
  // Far from the greatest rowid: after that one, SQLite picks rowids at random and nothing repeats.
  if (column.isRowid) return typeof cell === 'bigint' ? BigInt.asIntN(62, cell) : null
  if (cell === null) return column.notNull ? fit(table, column, `required ${n}`, n) : null
  if (!table.strict) return cell
  const isText = typeof cell === 'string' || (typeof cell === 'object' && 'rawText' in cell)
  switch (column.type.toUpperCase()) {
    case 'INTEGER':
    case 'INT':
      return typeof cell === 'bigint' ? cell : BigInt(n)
    case 'REAL':
      return typeof cell === 'number' ? cell : n + 0.5
    case 'TEXT':
      return isText ? cell : `text ${n}`
    case 'BLOB':
      return cell instanceof Uint8Array ? cell : Buffer.from(`blob ${n}`)
    default:
      return cell
  }
}

/** @returns a value of the same length: SQLite may write it over the old one and touch no other page. */
function overwritten(cell: Cell): Cell | undefined {
  const bytes = cell instanceof Uint8Array ? cell : typeof cell === 'object' ? cell?.rawText : undefined
  if (bytes === undefined || bytes.length === 0) return undefined
  const changed = Uint8Array.from(bytes)
  changed[bytes.length - 1] = bytes.at(-1) === 0x58 ? 0x59 : 0x58
  return cell instanceof Uint8Array ? changed : {rawText: changed}
}

function literalOf(cell: Cell): string | undefined {
  if (typeof cell === 'bigint') return cell < 0n ? `(${cell})` : String(cell)
  if (typeof cell === 'number') return Number.isFinite(cell) ? `(${cell.toExponential()})` : undefined
  if (typeof cell === 'string' && !cell.includes('\0')) return `'${cell.replaceAll("'", "''")}'`
  return undefined
}

// ── tables ──

function createTable(db: DatabaseSync, plan: TablePlan): void {
  db.exec(createSql(plan))
  const [first] = plan.columns
  if (plan.key === 'unique index')
    db.exec(`create unique index ${newIndexName(db)} on ${quoted(plan.name)} (${quoted(first!.name)})`)
  const last = quoted(plan.columns.at(-1)!.name)
  for (const kind of plan.indexes) {
    const on = {
      plain: `(${last})`,
      desc: `(${last} desc)`,
      nocase: `(${last} collate nocase)`,
      partial: `(${last}) where ${last} is not null`,
      expression: `(typeof(${last}), length(${last}))`,
    }[kind]
    db.exec(`create index ${newIndexName(db)} on ${quoted(plan.name)} ${on}`)
  }
  const tables = names(
    db,
    `select name from pragma_table_list where schema = 'main' and type = 'table' order by name`,
  )
  const table = findTable(db, tables.filter(name => !name.startsWith('sqlite_')).indexOf(plan.name))!
  for (const cells of plan.rows)
    attempt(db, () => {
      insert(
        db,
        table,
        table.columns.map((column, i) => fit(table, column, cells[i % cells.length]!)),
      )
      return true
    })
}

function createSql({name, columns, key, strict}: TablePlan): string {
  const [first, second] = columns.filter(({generated}, i) => i === 0 || generated === undefined)
  const firstName = quoted(first!.name)
  const define = (column: ColumnPlan, i: number) => {
    const type = strict ? strictType(column.type) : column.type
    const notNull = column.notNull ? ' not null' : ''
    if (i === 0 && key === 'integer') return `${firstName} integer primary key`
    if (i === 0 && key === 'autoincrement') return `${firstName} integer primary key autoincrement`
    if (i === 0 && key === 'unique column') return `${firstName} ${type}${notNull} unique`
    if (i > 0 && column.generated)
      return `${quoted(column.name)} text as (substr(hex(${firstName}), 1, 40)) ${column.generated}`
    return `${quoted(column.name)} ${type}${notNull}`
  }
  const constraints: Partial<Record<KeyKind, string>> = {
    primary: `primary key (${firstName})`,
    composite: `primary key (${second ? `${quoted(second.name)}, ` : ''}${firstName})`,
    'without rowid': `primary key (${firstName})`,
  }
  const constraint = constraints[key]
  const parts = [...columns.map(define), ...(constraint === undefined ? [] : [constraint])]
  const options = [...(key === 'without rowid' ? ['without rowid'] : []), ...(strict ? ['strict'] : [])]
  return `create table ${quoted(name)} (${parts.join(', ')}) ${options.join(', ')}`
}

/** As migrations do it: a new table beside the old one, rows copied in another order, the old one's name taken. */
function rebuild(
  db: DatabaseSync,
  table: Table,
  as: '_alembic_tmp_' | '_new',
  key: KeyKind,
  reorder: boolean,
): boolean {
  const name = as === '_new' ? `${table.name}_new` : `_alembic_tmp_${table.name}`
  const plans = table.columns.map(({name, type, notNull}) => ({name, type, notNull, generated: undefined}))
  const columns = reorder ? plans.toReversed() : plans
  // The rowid itself cannot become a text key and back: integer keys are made with their table only.
  const possible = key === 'integer' || key === 'autoincrement' ? 'primary' : key
  createTable(db, {name, columns, key: possible, strict: table.strict, indexes: [], rows: []})
  const list = table.columns.map(({sql}) => sql).join(', ')
  const last = table.columns.at(-1)!.sql
  db.exec(
    `insert or ignore into ${quoted(name)} (${list}) select ${list} from ${table.sql} order by ${last} desc`,
  )
  db.exec(`drop table ${table.sql}`)
  db.exec(`alter table ${quoted(name)} rename to ${table.sql}`)
  return true
}

function strictType(type: string): string {
  if (/INT|BOOL/.test(type)) return 'INTEGER'
  if (/REAL|NUM/.test(type)) return 'REAL'
  if (/CHAR|TEXT|DATE/.test(type)) return 'TEXT'
  return type === 'BLOB' ? 'BLOB' : 'ANY'
}

/** Never used before in this file: the schema's version grows with each change of it. */
function newIndexName(db: DatabaseSync): string {
  const [[version] = [0n]] = read(db, 'pragma schema_version') as [bigint][]
  const taken = names(db, `select name from sqlite_schema where type = 'index'`).length
  return quoted(`ix_${version}_${taken}`)
}

function quoted(name: string): string {
  return `"${name.replaceAll('"', '""')}"`
}
