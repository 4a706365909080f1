import assert from 'node:assert/strict'
import {createHash} from 'node:crypto'
import {DatabaseSync} from 'node:sqlite'
import {raw, type Sql} from '../src/postgres/sql.ts'

// The oracle of the crash tests: does the target, read as docs/concepts.md says, hold exactly the source's rows? It
// shares no code with src/ on purpose. Tables and columns must have names that Postgres takes as they are.

/** How a client's target compares with its source. */
export type Mirror = {
  /** One readable line for each difference; none when they are equal. */
  readonly differences: readonly string[]
  /** Every `table key` there has ever been in the target, tombstones included. */
  readonly keys: ReadonlySet<string>
  /** Of these, the tombstones. */
  readonly dead: ReadonlySet<string>
  readonly liveRows: number
}

/** Reads both sides. The caller sees to it that neither changes meanwhile. */
export async function compareMirror(sql: Sql, schema: string, file: string): Promise<Mirror> {
  using db = new DatabaseSync(file, {readOnly: true, readBigInts: true, returnArrays: true, timeout: 5_000})
  const differences: string[] = []
  const keys = new Set<string>()
  const dead = new Set<string>()
  let liveRows = 0
  const targets = await targetTables(sql, schema)
  for (const table of sourceTables(db)) {
    const types = targets.get(table.name)
    if (types === undefined) {
      differences.push(`${table.name}: there is no such table in the target`)
      continue
    }
    targets.delete(table.name)
    const expected = sourceRows(db, table)
    const rows = await targetRows(sql, schema, table, types)
    for (const row of rows) {
      const id = `${table.name} ${row.key}`
      if (keys.has(id)) differences.push(`${id}: is there twice`)
      keys.add(id)
      if (row.isDead) {
        dead.add(id)
        continue
      }
      liveRows++
      const wanted = expected.get(row.key)
      expected.delete(row.key)
      if (wanted === undefined) differences.push(`${id}: extra`)
      else
        wanted.forEach((value, i) => {
          if (value !== row.values[i])
            differences.push(`${id}.${table.columns[i]!.name}: ${short(value)} → ${short(row.values[i])}`)
        })
    }
    for (const key of expected.keys()) differences.push(`${table.name} ${short(key)}: missing`)
  }
  for (const [name] of targets) {
    const [row] = await sql<{n: number}>`
      select count(*)::int as n from ${sql(schema, name)} where _sync_deleted_at is null`
    if (row!.n > 0) differences.push(`${name}: ${row!.n} live rows of a table that the source does not have`)
  }
  return {differences, keys, dead, liveRows}
}

/**
 * Holds what must be true after every run that said success, the source being at rest: equal rows, nothing that was
 * ever there forgotten, and one job for each generation.
 */
export async function assertMirror(sql: Sql, schema: string, file: string, before?: Mirror): Promise<Mirror> {
  const mirror = await compareMirror(sql, schema, file)
  assert.deepEqual(mirror.differences.slice(0, 20), [], `${mirror.differences.length} differences`)
  for (const key of before?.keys ?? []) assert.ok(mirror.keys.has(key), `${key} has left no tombstone`)
  await assertGenerations(sql, schema)
  return mirror
}

/** Every generation was applied by exactly one job. */
export async function assertGenerations(sql: Sql, schema: string): Promise<void> {
  const [row] = await sql<{generation: bigint; jobs: bigint; distinct_jobs: bigint; top: bigint}>`
    select d.generation, count(j.generation) as jobs, count(distinct j.generation) as distinct_jobs,
      coalesce(max(j.generation), 0) as top
    from sync_metadata.client_deployments d left join sync_metadata.sync_jobs j using (deployment_id)
    where d.schema_name = ${schema} group by d.generation`
  const {generation, ...jobs} = row!
  assert.deepEqual(jobs, {jobs: generation, distinct_jobs: generation, top: generation})
}

type Table = {
  readonly name: string
  readonly columns: readonly {readonly name: string; readonly declared: string}[]
  /** Positions of the key columns; none: keyed by rowid. */
  readonly key: readonly number[]
  readonly hasRowid: boolean
}

function sourceTables(db: DatabaseSync): Table[] {
  const names = read(
    db,
    `select name from sqlite_schema where type = 'table' and name not like 'sqlite_stat%'`,
  )
  return names.map(([name]) => {
    const info = read(
      db,
      'select name, type, pk from pragma_table_xinfo(?) where hidden <> 1 order by cid',
      name as string,
    ) as [string, string, bigint][]
    const columns = info.map(([name, declared]) => ({name, declared}))
    const primary = info
      .map(([, , pk], at) => ({at, pk}))
      .filter(({pk}) => pk > 0n)
      .sort((a, b) => Number(a.pk - b.pk))
      .map(({at}) => at)
    const [[without] = [0n]] = read(
      db,
      `select wr from pragma_table_list(?) where schema = 'main'`,
      name as string,
    )
    return {
      name: name as string,
      columns,
      key: primary.length > 0 ? primary : uniqueKey(db, name as string, columns),
      hasRowid: without === 0n,
    }
  })
}

/** The columns of the shortest unique index that holds no NULL. */
function uniqueKey(db: DatabaseSync, table: string, columns: Table['columns']): number[] {
  const found = read(
    db,
    `select name from pragma_index_list(?) where "unique" and not partial order by name`,
    table,
  )
    .map(([index]) =>
      read(db, 'select name from pragma_index_info(?) order by seqno', index as string).flat(),
    )
    .sort((a, b) => a.length - b.length)
    .find(names =>
      names.every(
        name =>
          name !== null &&
          read(db, `select 1 from "${table}" where "${name as string}" is null limit 1`).length === 0,
      ),
    )
  return (found ?? []).map(name => columns.findIndex(column => column.name === name))
}

/** Rows by the key they should have in the target; each value as its storage class and its bytes. */
function sourceRows(db: DatabaseSync, table: Table): Map<string, string[]> {
  const columns = table.columns.map(
    ({name}) => `typeof("${name}"), iif(typeof("${name}") = 'text', cast("${name}" as blob), "${name}")`,
  )
  const statement = db.prepare(
    `select ${[table.hasRowid ? 'rowid' : 'null', ...columns].join(', ')} from "${table.name}"`,
  )
  const rows = new Map<string, string[]>()
  for (const cells of statement.iterate() as unknown as Iterable<unknown[]>) {
    const values = table.columns.map((_, i) => shown(cells[1 + 2 * i] as string, cells[2 + 2 * i]))
    rows.set(keyOf(table, values, cells[0] as bigint | null), values)
  }
  return rows
}

function shown(storageClass: string, value: unknown): string {
  switch (storageClass) {
    case 'null':
      return 'null'
    case 'integer':
      return `integer ${String(value)}`
    case 'real':
      return `real ${realHex(value as number)}`
    default:
      return `${storageClass} ${Buffer.from(value as Uint8Array).toString('hex')}`
  }
}

function realHex(value: number): string {
  const bytes = Buffer.alloc(8)
  bytes.writeDoubleBE(value)
  return bytes.toString('hex')
}

function keyOf(table: Table, values: readonly string[], rowid: bigint | null): string {
  if (table.key.length === 0) return `~i${String(rowid)};`
  const parts = table.key.map(at => values[at]!)
  if (parts.includes('null')) return `~0${String(rowid)};`
  const [only = ''] = parts
  const bytes = Buffer.from(only.slice(5), 'hex')
  const isText = parts.length === 1 && only.startsWith('text ') && isPlain(bytes) && bytes[0] !== 0x7e
  const key = isText ? bytes.toString() : `~${parts.map(canonical).join('')}`
  return Buffer.byteLength(key) > 1_000 ? `~h${createHash('sha256').update(key).digest('hex')}` : key
}

function canonical(value: string): string {
  const [storageClass = '', content = ''] = value.split(' ')
  switch (storageClass) {
    case 'integer':
      return `i${content};`
    case 'real':
      return `r${content};`
    case 'blob':
      return `b${content};`
    default: {
      const bytes = Buffer.from(content, 'hex')
      return isPlain(bytes) ? `t${bytes.length}:${bytes.toString()}` : `x${content};`
    }
  }
}

/** Text that Postgres can hold. */
function isPlain(bytes: Buffer): boolean {
  return !bytes.includes(0) && Buffer.from(bytes.toString()).equals(bytes)
}

/** The inverse of {@link canonical}. */
function fromCanonical(text: string): string {
  const content = text.slice(1, -1)
  switch (text[0]) {
    case 'i':
      return `integer ${content}`
    case 'r':
      return `real ${content}`
    case 'b':
      return `blob ${content}`
    case 'x':
      return `text ${content}`
    default:
      return `text ${Buffer.from(text.slice(text.indexOf(':') + 1)).toString('hex')}`
  }
}

async function targetTables(sql: Sql, schema: string): Promise<Map<string, Map<string, string>>> {
  const rows = await sql<{table: string; column: string; type: string}>`
    select t.table_name as table, c.column_name as column, c.data_type as type
    from information_schema.tables t join information_schema.columns c using (table_schema, table_name)
    where t.table_schema = ${schema} and t.table_type = 'BASE TABLE'`
  const tables = new Map<string, Map<string, string>>()
  for (const {table, column, type} of rows)
    tables.set(table, (tables.get(table) ?? new Map<string, string>()).set(column, type))
  return tables
}

type TargetRow = {readonly key: string; readonly isDead: boolean; readonly values: readonly string[]}

async function targetRows(
  sql: Sql,
  schema: string,
  table: Table,
  types: ReadonlyMap<string, string>,
): Promise<TargetRow[]> {
  const columns = table.columns.map(({name}, i) =>
    types.has(name) ? `"${name}"::text as c${i}` : `null as c${i}`,
  )
  const rows = await sql<Record<string, string | boolean | null>>`
    select ${raw(['_sync_key as key', '_sync_deleted_at is not null as dead', '_sync_raw::text as raw', ...columns].join(', '))}
    from ${sql(schema, table.name)}`
  return rows.map(row => {
    const exact = JSON.parse((row['raw'] as string | null) ?? '{}') as Record<string, string>
    const values = table.columns.map(({name, declared}, i) => {
      if (!types.has(name)) return 'there is no such column'
      const kept = Object.hasOwn(exact, name) ? exact[name] : undefined
      if (kept !== undefined) return fromCanonical(kept)
      const text = row[`c${i}`] as string | null
      return text === null ? 'null' : readBack(text, types.get(name)!, declared)
    })
    return {key: row['key'] as string, isDead: row['dead'] as boolean, values}
  })
}

const integerLike = /^(0|-?[1-9][0-9]{0,17})$/

/** What a typed column reads back as: the table in docs/concepts.md. */
function readBack(text: string, type: string, declared: string): string {
  const affinity = affinityOf(declared)
  switch (type) {
    case 'bigint':
      return `integer ${text}`
    case 'boolean':
      return `integer ${text === 'true' ? 1 : 0}`
    case 'double precision': {
      const value = Number(text)
      const isWhole = affinity === 'numeric' && Number.isInteger(value) && Math.abs(value) <= 2 ** 53
      return isWhole ? `integer ${value}` : `real ${realHex(value)}`
    }
    case 'bytea':
      return `blob ${text.slice(2)}`
    case 'json':
      return `text ${Buffer.from(text).toString('hex')}`
    default:
      return ['integer', 'numeric', 'real'].includes(affinity) && integerLike.test(text)
        ? `integer ${text}`
        : `text ${Buffer.from(text).toString('hex')}`
  }
}

/** https://sqlite.org/datatype3.html, 3.1 */
function affinityOf(declared: string): string {
  if (/INT/i.test(declared)) return 'integer'
  if (/CHAR|CLOB|TEXT/i.test(declared)) return 'text'
  if (declared === '' || /BLOB/i.test(declared)) return 'none'
  return /REAL|FLOA|DOUB/i.test(declared) ? 'real' : 'numeric'
}

function read(db: DatabaseSync, sql: string, ...values: string[]): unknown[][] {
  return db.prepare(sql).all(...values) as unknown as unknown[][]
}

function short(text: string | undefined): string {
  return text === undefined ? 'nothing' : text.length > 60 ? `${text.slice(0, 60)}…` : text
}
