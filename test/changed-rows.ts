import {hash, createHash} from 'node:crypto'
import {DatabaseSync} from 'node:sqlite'

// Which rows changed between two states of a source, worked out by reading everything. It follows docs/concepts.md
// and shares no code with src/ on purpose: a mistake made there must show here.

/** One table of a snapshot: its rows by `_sync_key`, each as a fingerprint of its values. */
export type TableSnapshot = {
  /** The key columns, or `rowid`; compared to see that a table's key changed. */
  readonly keyedBy: string
  readonly rows: ReadonlyMap<string, string>
}

/** Every ordinary table of a file (shadow tables and `sqlite_sequence` too, `sqlite_stat*` not), by name. */
export type Snapshot = ReadonlyMap<string, TableSnapshot>

/** What changed in one table. */
export type RowChanges = {
  /** `_sync_key` of rows that are new or different, sorted. */
  readonly upserted: readonly string[]
  /** `_sync_key` of rows that are gone, sorted. */
  readonly tombstoned: readonly string[]
  /** The table is keyed by other columns than before, so that the keys of all its rows may have changed. */
  readonly rekeyed: boolean
}

/** Reads all of `source`: a file, or a connection that may be in the middle of a transaction. */
export function snapshot(source: string | DatabaseSync): Snapshot {
  using own = typeof source === 'string' ? new DatabaseSync(source, {readOnly: true}) : undefined
  const db = own ?? (source as DatabaseSync)
  const tables = rowsOf(
    db,
    `select name from sqlite_schema where type = 'table' and rootpage <> 0 and name not like 'sqlite_stat%'`,
  ) as [string][]
  const encoding = String(rowsOf(db, 'pragma encoding')[0]?.[0])
  return new Map(tables.map(([name]) => [name, tableSnapshot(db, name, encoding)]))
}

/** @returns what changed, for each table in which something did: new tables and vanished ones included. */
export function changedRows(before: Snapshot, after: Snapshot): Map<string, RowChanges> {
  const changes = new Map<string, RowChanges>()
  for (const name of new Set([...before.keys(), ...after.keys()])) {
    const [was, is] = [before.get(name), after.get(name)]
    const old = was?.rows ?? new Map<string, string>()
    const now = is?.rows ?? new Map<string, string>()
    const upserted = [...now].filter(([key, row]) => old.get(key) !== row).map(([key]) => key)
    const tombstoned = [...old.keys()].filter(key => !now.has(key))
    const rekeyed = was !== undefined && is !== undefined && was.keyedBy !== is.keyedBy
    if (upserted.length + tombstoned.length > 0 || rekeyed)
      changes.set(name, {upserted: upserted.sort(), tombstoned: tombstoned.sort(), rekeyed})
  }
  return changes
}

/** `type` is the first letter of the storage class. */
type Cell = {readonly type: string; readonly value: bigint | number | Uint8Array | null}
type Column = {readonly name: string; readonly required: boolean; readonly primary: number}

function rowsOf(db: DatabaseSync, sql: string, ...values: string[]): unknown[][] {
  const statement = db.prepare(sql)
  statement.setReadBigInts(true)
  statement.setReturnArrays(true)
  return statement.all(...values) as unknown as unknown[][]
}

function tableSnapshot(db: DatabaseSync, table: string, encoding: string): TableSnapshot {
  const info = rowsOf(db, 'select name, "notnull", pk from pragma_table_xinfo(?) where hidden <> 1', table)
  const columns = (info as [string, bigint, bigint][]).map(([name, notNull, pk]): Column => ({
    name,
    required: notNull === 1n,
    primary: Number(pk),
  }))
  const key = keyColumns(db, table, columns)
  const rowid = rowidName(db, table, columns)
  const names = columns.map(column => column.name)
  const column = (name: string) => `t.${quoted(name)}`
  const values = names.map(
    name => `iif(typeof(${column(name)}) = 'text', cast(${column(name)} as blob), ${column(name)})`,
  )
  // A letter for each storage class, in groups: an expression may not be deeper than 1,000.
  const classes = names.map(name => `substr(typeof(${column(name)}), 1, 1)`)
  const groups = Array.from({length: Math.ceil(names.length / 400)}, (_, i) =>
    classes.slice(i * 400, (i + 1) * 400).join(' || '),
  )
  const read = rowsOf(
    db,
    `select ${[rowid ?? 'null', ...values, ...groups].join(', ')} from ${quoted(table)} t`,
  )

  const rows = new Map<string, string>()
  for (const [place, ...flat] of read) {
    const letters = flat.slice(names.length).join('')
    const row = names.map((_, i): Cell => ({type: letters[i]!, value: flat[i] as Cell['value']}))
    const content = fingerprint(names, row)
    const keyed = key.map(name => row[names.indexOf(name)]!)
    const id =
      key.length > 0
        ? keyed.some(cell => cell.value === null)
          ? `~0${String(place)};`
          : syncKey(keyed, encoding)
        : rowid === undefined
          ? nthOf(rows, content)
          : `~i${String(place)};`
    if (rows.has(id)) throw new Error(`two rows of ${table} have the key ${id}`)
    rows.set(id, content)
  }
  return {keyedBy: key.length > 0 ? JSON.stringify(key) : 'rowid', rows}
}

/** Primary key; else the smallest unique index without a NULL, required columns and then the name deciding ties. */
function keyColumns(db: DatabaseSync, table: string, columns: readonly Column[]): readonly string[] {
  const primary = columns.filter(column => column.primary > 0).sort((a, b) => a.primary - b.primary)
  if (primary.length > 0) return primary.map(column => column.name)
  const indexes = rowsOf(
    db,
    'select name from pragma_index_list(?) where "unique" and not partial order by name',
    table,
  ) as [string][]
  const optional = (names: readonly (string | null)[]) =>
    columns.filter(column => !column.required && names.includes(column.name)).length
  const candidates = indexes
    .map(
      ([index]) =>
        rowsOf(db, 'select name from pragma_index_info(?) order by seqno', index).flat() as (string | null)[],
    )
    .filter(names => !names.includes(null))
    .sort((a, b) => a.length - b.length || optional(a) - optional(b)) as string[][]
  const holdsNull = (names: readonly string[]) => {
    const anyNull = names.map(name => `t.${quoted(name)} is null`).join(' or ')
    return rowsOf(db, `select 1 from ${quoted(table)} t where ${anyNull} limit 1`).length > 0
  }
  return candidates.find(names => !holdsNull(names)) ?? []
}

/** @returns an expression for the rowid; `undefined` when columns hide it or there is none. */
function rowidName(db: DatabaseSync, table: string, columns: readonly Column[]): string | undefined {
  const [[withoutRowid] = [1n]] = rowsOf(
    db,
    `select wr from pragma_table_list(?) where schema = 'main'`,
    table,
  )
  const taken = columns.map(column => column.name.toLowerCase())
  if (withoutRowid === 1n) return undefined
  return ['rowid', '_rowid_', 'oid'].find(name => !taken.includes(name))
}

/** Rows that nothing tells apart are numbered among their equals. */
function nthOf(rows: ReadonlyMap<string, string>, content: string): string {
  let n = 0
  while (rows.has(`=${content} ${n}`)) n++
  return `=${content} ${n}`
}

/** The `_sync_key` for key values of which none is NULL. */
function syncKey(cells: readonly Cell[], encoding: string): string {
  const [first] = cells
  const only =
    cells.length === 1 && first?.type === 't' ? plainText(first.value as Uint8Array, encoding) : undefined
  const key =
    only?.startsWith('~') === false ? only : `~${cells.map(cell => canonical(cell, encoding)).join('')}`
  return Buffer.byteLength(key) <= 1_000 ? key : `~h${hash('sha256', key)}`
}

function canonical({type, value}: Cell, encoding: string): string {
  switch (type) {
    case 'i':
      return `i${String(value)};`
    case 'r':
      return `r${realHex(value as number)};`
    case 'b':
      return `b${Buffer.from(value as Uint8Array).toString('hex')};`
    default: {
      const text = plainText(value as Uint8Array, encoding)
      if (text === undefined) return `x${Buffer.from(value as Uint8Array).toString('hex')};`
      return `t${Buffer.byteLength(text)}:${text}`
    }
  }
}

/** @returns the text, or `undefined` when it holds a NUL or bytes that are no text in the file's encoding. */
function plainText(bytes: Uint8Array, encoding: string): string | undefined {
  try {
    const text = new TextDecoder(encoding.toLowerCase(), {fatal: true, ignoreBOM: true}).decode(bytes)
    return text.includes('\0') ? undefined : text
  } catch {
    return undefined // what `fatal` is for
  }
}

/** The values that are not NULL by column name, in an order of our own. */
function fingerprint(names: readonly string[], row: readonly Cell[]): string {
  const sha = createHash('sha256')
  for (const [i, name] of [...names.entries()].sort(([, a], [, b]) => (a < b ? -1 : 1))) {
    const {type, value} = row[i]!
    if (value === null) continue
    const bytes =
      value instanceof Uint8Array
        ? value
        : Buffer.from(typeof value === 'number' ? realHex(value) : String(value))
    sha.update(`${JSON.stringify(name)} ${type} ${bytes.length} `).update(bytes)
  }
  return sha.digest('base64')
}

function realHex(value: number): string {
  const bytes = Buffer.alloc(8)
  bytes.writeDoubleBE(value)
  return bytes.toString('hex')
}

function quoted(name: string): string {
  return `"${name.replaceAll('"', '""')}"`
}
