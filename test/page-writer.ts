import {openSync, readSync, writeSync, closeSync} from 'node:fs'
import {DatabaseSync, type SQLInputValue, type StatementSync} from 'node:sqlite'
import {chanceOf, type Chance} from './mutator.ts'

// An app that does everything to its file that moves rows between pages: for tests of the capture by pages. Small
// files, because the traps are in the shape of the trees and chains and not in their size.

/** What kind of file to make. */
export type PagedFile = {
  readonly pageSize: number
  readonly reserved: number
  readonly autoVacuum: 0 | 1 | 2
  readonly encoding: 'UTF-8' | 'UTF-16le'
  readonly journal: Journal
}

export type Journal = 'delete' | 'truncate' | 'persist' | 'wal'

const journals: readonly Journal[] = ['delete', 'truncate', 'persist', 'wal', 'wal', 'wal']

export function pagedFileOf(chance: Chance): PagedFile {
  return {
    pageSize: chance.pick([512, 512, 1_024, 1_024, 2_048, 4_096, 4_096, 8_192, 65_536]),
    reserved: chance.pick([0, 0, 0, 8, 32]),
    autoVacuum: chance.pick([0, 0, 1, 2]),
    encoding: chance.pick(['UTF-8', 'UTF-8', 'UTF-8', 'UTF-16le']),
    journal: chance.pick(journals),
  }
}

const ddl = `
  create table chat (id text primary key, n integer, flag integer, body);
  create index chat_n on chat (n);
  create table message (id integer primary key, flag integer, body);
  create table note (body, flag integer);
  create table key (name text not null, flag integer, body);
  create unique index key_name on key (name);
  create table pref (id text primary key, flag integer, body) without rowid;`

/** Makes an empty file with its tables. */
export function makePagedFile(file: string, kind: PagedFile): void {
  {
    using db = open(file)
    db.exec(`pragma page_size = ${kind.pageSize}; pragma encoding = '${kind.encoding}'`)
    db.exec(`pragma auto_vacuum = ${kind.autoVacuum}; create table t (x); drop table t; vacuum`)
  }
  if (kind.reserved > 0) reserve(file, kind)
  using db = open(file)
  db.exec(`pragma journal_mode = ${kind.journal}`)
  db.exec(ddl)
}

/** Bytes at the end of every page that extensions keep for themselves. SQL cannot ask for them. */
function reserve(file: string, {pageSize, reserved}: PagedFile): void {
  const fd = openSync(file, 'r+')
  try {
    const head = Buffer.alloc(112)
    readSync(fd, head, 0, head.length, 0)
    head[20] = reserved
    head.writeUInt16BE(pageSize - reserved, 105)
    writeSync(fd, head, 0, head.length, 0)
  } finally {
    closeSync(fd)
  }
}

function open(file: string): DatabaseSync {
  const db = new DatabaseSync(file, {timeout: 5_000, enableForeignKeyConstraints: false})
  db.exec('pragma synchronous = off')
  return db
}

type Undo = {readonly sql: string; readonly values: readonly SQLInputValue[]}

const tables = ['chat', 'message', 'note', 'key'] as const

/** Changes a file at random; the same seed does the same. */
export class PageWriter implements Disposable {
  readonly #file: string
  readonly #chance: Chance
  readonly #pageSize: number
  readonly #mostRows: number
  #db: DatabaseSync
  readonly #statements = new Map<string, StatementSync>()
  /** How to take back what was done last: a page may become again, byte for byte, what it was. */
  #undo: Undo[] = []

  constructor(file: string, chance: Chance, mostRows = 150) {
    this.#file = file
    this.#chance = chance
    this.#mostRows = mostRows
    this.#db = open(file)
    this.#pageSize = Number(this.#db.prepare('pragma page_size').get()!['page_size'])
  }

  get db(): DatabaseSync {
    return this.#db
  }

  close(): void {
    this.#statements.clear()
    if (this.#db.isOpen) this.#db.close()
  }

  reopen(): void {
    this.close()
    this.#db = open(this.#file)
  }

  [Symbol.dispose](): void {
    this.close()
  }

  /** One commit, or now and then a rollback. @returns what happened, for the record. */
  transaction(): string {
    const chance = this.#chance
    if (chance.below(40) === 0) return this.#spill()
    this.#db.exec('begin immediate')
    const done: string[] = []
    try {
      for (let n = chance.pick([1, 1, 2, 3, 8]); n > 0; n--) done.push(this.#savepoint())
    } catch (error) {
      this.#db.exec('rollback')
      throw error
    }
    const end = chance.below(10) === 0 ? 'rollback' : 'commit'
    this.#db.exec(end)
    return `${done.join(', ')}; ${end}`
  }

  /** Something that is not done within a transaction. `isAlone`: no other connection is there. */
  fileChange(isAlone: boolean): string {
    const chance = this.#chance
    const schema = chance.below(4) === 0 ? this.#schemaChange() : undefined
    if (schema !== undefined) return schema
    const sql = chance.pick([
      'vacuum',
      `pragma incremental_vacuum(${chance.pick([1, 3, 20, 1_000])})`,
      `pragma incremental_vacuum(${chance.pick([1, 3, 20, 1_000])})`,
      `pragma secure_delete = ${chance.pick(['on', 'off', 'fast'])}`,
      `pragma wal_autocheckpoint = ${chance.pick([0, 5, 40, 1_000])}`,
      `pragma journal_size_limit = ${chance.pick([-1, 0, 20_000])}`,
      ...['passive', 'passive', 'full', 'restart', 'truncate'].map(kind => `pragma wal_checkpoint(${kind})`),
      ...(isAlone
        ? [
            `pragma journal_mode = ${chance.pick(journals)}`,
            `pragma journal_mode = ${chance.pick(journals)}`,
            `pragma auto_vacuum = ${chance.below(3)}; vacuum`,
          ]
        : []),
    ])
    try {
      this.#db.exec(sql)
      return sql
    } catch (error) {
      return `${sql}: ${String(error)}`
    }
  }

  /** Ends in the middle of a large transaction, with pages of it in the file already. */
  crash(): never {
    this.#db.exec('pragma cache_size = 5; begin immediate')
    for (let n = 30; n > 0; n--) this.#change()
    process.kill(process.pid, 'SIGKILL')
    throw new Error('still alive')
  }

  #spill(): string {
    this.#db.exec('pragma cache_size = 5; begin immediate')
    for (let n = 25; n > 0; n--) this.#change()
    const end = this.#chance.below(3) === 0 ? 'commit' : 'rollback'
    this.#db.exec(`${end}; pragma cache_size = -2000`)
    return `spilling ${end}`
  }

  #savepoint(): string {
    if (this.#chance.below(15) !== 0) return this.#change()
    this.#db.exec('savepoint s')
    const done = this.#change()
    const end = this.#chance.pick(['release s', 'rollback to s; release s'])
    this.#db.exec(end)
    return `${done} (${end})`
  }

  #change(): string {
    const chance = this.#chance
    const table = chance.pick(tables)
    const count = Number(this.#get(`select count(*) as n from ${table}`)!['n'])
    const kind =
      count > this.#mostRows
        ? chance.pick(['delete range', 'delete range', 'delete some'] as const)
        : chance.pick(kinds)
    if (count === 0 && !kind.startsWith('insert')) return this.#insert(table, 3)
    switch (kind) {
      case 'insert':
        return this.#insert(table, chance.pick([1, 1, 2, 20]))
      case 'insert far':
        return this.#insert(
          table,
          1,
          BigInt(chance.below(2 ** 31)) * BigInt(chance.pick([-1, 1, 4_000_000_007])),
        )
      case 'insert many':
        return this.#insert(table, 60)
      case 'toggle':
        return this.#run(
          `update ${table} set flag = 1 - flag where rowid = ?`,
          [this.#rowid(table, count)],
          true,
        )
      case 'toggle some':
        return this.#run(`update ${table} set flag = 1 - flag where rowid % 7 = ?`, [chance.below(7)], true)
      case 'overwrite':
        return this.#overwrite(table, count)
      case 'rewrite':
        return this.#run(`update ${table} set body = ? where rowid = ?`, [
          this.#body(),
          this.#rowid(table, count),
        ])
      case 'delete':
        return this.#delete(table, this.#rowid(table, count))
      case 'delete some':
        return this.#run(`delete from ${table} where rowid % ? = 0`, [chance.pick([2, 3, 10])])
      case 'delete range': {
        const from = this.#rowid(table, count)
        const rows = chance.pick([3, 30, 200])
        return this.#run(
          `delete from ${table} where rowid in (select rowid from ${table} where rowid >= ? order by rowid limit ${rows})`,
          [from],
        )
      }
      case 'delete all':
        return this.#run(`delete from ${table}`, [])
      case 'move':
        return this.#move(table, count)
      case 'replace':
        return this.#again(table, this.#rowid(table, count))
      case 'pass on':
        return this.#passOn(table, count)
      case 'pref':
        return this.#run('insert or replace into pref values (?, ?, ?)', [
          `p${chance.below(40)}`,
          chance.below(2),
          this.#body(),
        ])
      case 'undo':
        return this.#takeBack()
    }
  }

  #insert(table: Table, rows: number, at?: bigint): string {
    for (let i = 0; i < rows; i++) {
      const body = this.#body(rows)
      const rowid = at ?? null
      const flag = this.#chance.below(2)
      const name = this.#name()
      const sql = {
        chat: 'insert or ignore into chat (rowid, id, n, flag, body) values (?, ?, 1, ?, ?)',
        message: 'insert or ignore into message (id, flag, body) values (?, ?, ?)',
        note: 'insert or ignore into note (rowid, flag, body) values (?, ?, ?)',
        key: 'insert or ignore into key (rowid, name, flag, body) values (?, ?, ?, ?)',
      }[table]
      const isNamed = table === 'chat' || table === 'key'
      const values = isNamed ? [rowid, name, flag, body] : [rowid, flag, body]
      const {changes, lastInsertRowid} = this.#prepared(sql).run(...values)
      if (Number(changes) === 1) this.#remember(`delete from ${table} where rowid = ?`, [lastInsertRowid])
    }
    return `insert ${rows} into ${table}`
  }

  #delete(table: Table, rowid: bigint): string {
    this.#rememberRow(table, rowid)
    return this.#run(`delete from ${table} where rowid = ?`, [rowid])
  }

  /** Deletes a row and puts it back as it was. */
  #again(table: Table, rowid: bigint): string {
    this.#delete(table, rowid)
    if (this.#chance.below(2) === 0) this.#insert(this.#chance.pick(tables), 1)
    this.#takeBack()
    return `${table} ${rowid} again`
  }

  /** One byte somewhere in a value, which keeps its length: its pages are written over, the leaf often not. */
  #overwrite(table: Table, count: number): string {
    const rowid = this.#rowid(table, count)
    const length = Number(
      this.#get(`select length(body) as n from ${table} where rowid = ?`, rowid)?.['n'] ?? 0,
    )
    if (length < 2) return 'nothing to overwrite'
    const at = this.#chance.pick([1, length - 1, 1 + this.#chance.below(length - 1)])
    const sql = `update ${table} set body = substr(body, 1, ? - 1) || iif(substr(body, ?, 1) = 'x', 'y', 'x') || substr(body, ? + 1) where rowid = ?`
    return this.#run(sql, [at, at, at, rowid], true)
  }

  #move(table: Table, count: number): string {
    const [from, to] = [this.#rowid(table, count), BigInt(this.#chance.below(3_000))]
    const sql = `update or ignore ${table} set rowid = ? where rowid = ?`
    const {changes} = this.#prepared(sql).run(to, from)
    if (Number(changes) === 1) this.#remember(sql, [from, to])
    return `${table} ${from} to ${to}`
  }

  /** Rows leave one table for another, which gets the pages. */
  #passOn(table: Table, count: number): string {
    if (table !== 'note' && table !== 'message') return this.#move(table, count)
    const other = table === 'note' ? 'message' : 'note'
    const alias = other === 'message' ? 'id' : 'rowid'
    const from = this.#rowid(table, count)
    const some = `from ${table} where rowid in (select rowid from ${table} where rowid >= ${from} order by rowid limit 30)`
    this.#db.exec(`create temp table passed as select rowid as r, flag, body ${some}; delete ${some}`)
    this.#db.exec(
      `insert or ignore into ${other} (${alias}, flag, body) select r, flag, body from passed; drop table passed`,
    )
    return `rows of ${table} to ${other}`
  }

  #takeBack(): string {
    const undo = this.#undo.pop()
    if (undo === undefined) return 'nothing to undo'
    try {
      this.#prepared(undo.sql).run(...undo.values)
    } catch {
      return 'undo does not fit'
    }
    return `undo: ${undo.sql}`
  }

  #run(sql: string, values: readonly SQLInputValue[], isOwnUndo = false): string {
    this.#prepared(sql).run(...values)
    if (isOwnUndo) this.#remember(sql, values)
    return sql
  }

  #remember(sql: string, values: readonly SQLInputValue[]): void {
    this.#undo.push({sql, values})
    if (this.#undo.length > 30) this.#undo.shift()
  }

  #rememberRow(table: Table, rowid: bigint): void {
    const columns = {
      chat: 'id, n, flag, body',
      message: 'flag, body',
      note: 'flag, body',
      key: 'name, flag, body',
    }[table]
    const row = this.#get(`select ${columns} from ${table} where rowid = ?`, rowid)
    if (row === undefined) return
    const values = Object.values(row) as SQLInputValue[]
    const alias = table === 'message' ? 'id' : 'rowid'
    this.#remember(`insert into ${table} (${alias}, ${columns}) values (?${', ?'.repeat(values.length)})`, [
      rowid,
      ...values,
    ])
  }

  #schemaChange(): string | undefined {
    const chance = this.#chance
    const has = (type: string, name: string) =>
      this.#get('select 1 from sqlite_schema where type = ? and name = ?', type, name) !== undefined
    const sql = chance.pick([
      has('index', 'note_body')
        ? 'drop index note_body'
        : 'create index note_body on note (substr(body, 1, 20))',
      has('index', 'message_flag')
        ? 'drop index message_flag'
        : 'create index message_flag on message (flag, id)',
      has('table', 'extra')
        ? 'drop table extra'
        : 'create table extra as select rowid as n, flag, body from note',
      this.#get("select 1 from pragma_table_info('chat') where name = 'more'") === undefined
        ? "alter table chat add column more text default 'm'"
        : 'alter table chat drop column more',
      'begin; create table note_new (body, flag integer); insert into note_new select body, flag from note order by flag; drop table note; alter table note_new rename to note; commit',
      'begin; create temp table held as select rowid as r, flag, body from message; drop table message; create table message (id integer primary key, flag integer, body); insert into message select * from held; drop table held; commit',
      'drop table message; create table message (id integer primary key, flag integer, body)',
    ])
    try {
      this.#db.exec(sql)
      return sql
    } catch (error) {
      if (this.#db.isTransaction) this.#db.exec('rollback')
      return `${sql}: ${String(error)}`
    }
  }

  #name(): string {
    const name = `k${this.#chance.below(2 ** 30).toString(36)}`
    // Too long to be looked up by: hashed where it is a key.
    return this.#chance.below(60) === 0 ? name.padEnd(1_200, 'z') : name
  }

  #body(rows = 1): string | null {
    const page = this.#pageSize
    // Rarely a chain of two hundred pages: what counts is that there are chains, and many steps.
    const most = this.#chance.below(20) === 0 ? Math.min(200 * page, 300_000) : 20 * page
    const length = this.#chance.pick(
      rows > 3
        ? [0, 5, 30, 30, 90]
        : [
            0,
            3,
            30,
            30,
            60,
            Math.trunc(page / 5),
            page,
            page + this.#chance.below(3 * page),
            1 + this.#chance.below(most),
          ],
    )
    // Kept small where pages are large: what counts is how many of them a row has.
    const letter = 'abc'[this.#chance.below(3)]!
    return length === 0 ? null : letter.repeat(Math.min(length, page > 8_192 ? 3 * page : most))
  }

  #rowid(table: Table, count: number): bigint {
    const statement = this.#prepared(`select rowid as r from ${table} limit 1 offset ?`)
    statement.setReadBigInts(true)
    const row = statement.get(this.#chance.below(Math.max(1, count)))
    return (row?.['r'] as bigint | undefined) ?? 0n
  }

  #get(sql: string, ...values: SQLInputValue[]): Record<string, unknown> | undefined {
    return this.#prepared(sql).get(...values)
  }

  /** Most of what a short statement costs is to prepare it. */
  #prepared(sql: string): StatementSync {
    let statement = this.#statements.get(sql)
    if (statement === undefined) {
      statement = this.#db.prepare(sql)
      this.#statements.set(sql, statement)
    }
    return statement
  }
}

type Table = (typeof tables)[number]

const kinds = [
  'insert',
  'insert',
  'insert',
  'insert far',
  'insert many',
  'toggle',
  'toggle',
  'toggle some',
  'overwrite',
  'overwrite',
  'overwrite',
  'rewrite',
  'rewrite',
  'delete',
  'delete',
  'delete some',
  'delete range',
  'delete range',
  'delete all',
  'move',
  'replace',
  'replace',
  'pass on',
  'pref',
  'undo',
  'undo',
  'undo',
] as const

// In a process of its own: `crash` dies in the middle of a write, `forever` writes until its input ends.
if (import.meta.main) {
  const [file = '', seed = '1', mode = ''] = process.argv.slice(2)
  using writer = new PageWriter(file, chanceOf(Number(seed)))
  if (mode === 'crash') writer.crash()
  const end = new AbortController()
  process.stdin
    .on('end', () => {
      end.abort()
    })
    .resume()
  process.stdout.write('writing\n')
  let commits = 0
  while (!end.signal.aborted) {
    try {
      writer.transaction()
      if (commits++ % 50 === 0) writer.fileChange(false)
    } catch (error) {
      // The reader keeps it waiting no longer than its budget, and yet two can wait for each other.
      if (!String(error).includes('locked')) throw error
    }
    await new Promise(resolve => setImmediate(resolve))
  }
}
