import {rmSync} from 'node:fs'
import {dirname, join} from 'node:path'
import {DatabaseSync, type StatementSync} from 'node:sqlite'
import {makeFolder} from '../core/folder.ts'
import type {Entry, Remembered} from '../source/capture.ts'
import type {PageState} from '../source/page-state.ts'
import {Bits} from './bits.ts'
import {Claims, memoryOf, toEntry, type Bindable} from './memory.ts'
import {pageTables, readPages, removePages, writePages, type Rows} from './page-tables.ts'
import {inStateDir, StateDirError} from './state-dir.ts'

// What the last cut knew of every source row: rowid, key, digest. A cache of the target's `_sync_hash` in a SQLite
// file of our own: lost, stale or foreign, it is built anew. docs/concepts.md, "The sidecar".

const FORMAT = '3'

/** What is noted of the source as of the last cut: its state, its file, its cookie, its size, when all was compared. */
export type Note = 'fingerprint' | 'identity' | 'cookie' | 'totals' | 'audited'

/** Where the sidecar stands with respect to Postgres. */
export type Standing = 'in step' | 'intended' | 'unknown'

export class Sidecar implements Disposable {
  readonly #file: string
  readonly #db: DatabaseSync
  readonly #statements = new Map<string, StatementSync>()
  readonly #claims = new Claims()
  /** Ids of tables, by their names; and the greatest number of an entry in `adrift`. As far as they have been asked. */
  readonly #ids = new Map<string, number>()
  #lastNumber: number | undefined
  /** How many rows of a table, by its id, are remembered with their places. As far as they have been counted. */
  readonly #placed = new Map<number, number>()
  /** Whether tables were set adrift in the current capture, which may never be settled: nothing is counted for later. */
  #isAdriftSet = false
  /** What is remembered of the current capture and not written yet. */
  readonly #unwritten: Bindable[][] = []
  readonly #rows: Rows = {
    run: (sql, ...values) => {
      this.#run(sql, ...values)
    },
    all: sql => this.#all(sql),
  }

  private constructor(file: string) {
    this.#file = file
    this.#db = openFile(file)
    this.#db.function('is_found', n => Number(this.#claims.found.has(Number(n))))
    this.#db.function('is_ended', n => Number(this.#claims.ended.has(Number(n))))
    this.#db.function('next_n', () => this.#nextNumber())
  }

  /**
   * Opens a deployment's sidecar; one that is damaged, of another format or of another deployment starts empty.
   *
   * @throws {StateDirError} when `stateDir` cannot be written, and from any call when damage shows only then.
   */
  static open(stateDir: string, deploymentId: string): Sidecar {
    const file = fileOf(stateDir, deploymentId)
    inStateDir(file, () => {
      makeFolder(dirname(file))
    })
    try {
      const sidecar = new Sidecar(file)
      if (sidecar.#meta('format') === FORMAT && sidecar.#meta('deployment') === deploymentId) return sidecar
      sidecar[Symbol.dispose]()
    } catch (error) {
      if (!(error instanceof StateDirError) || !error.isDamaged) throw error
    }
    Sidecar.remove(stateDir, deploymentId)
    const fresh = new Sidecar(file)
    fresh.#setMeta('format', FORMAT)
    fresh.#setMeta('deployment', deploymentId)
    return fresh
  }

  /** Removes a deployment's sidecar: the next run builds it from the target. */
  static remove(stateDir: string, deploymentId: string): void {
    const file = fileOf(stateDir, deploymentId)
    for (const suffix of ['', '-wal', '-shm'])
      inStateDir(file, () => {
        rmSync(file + suffix, {force: true})
      })
  }

  /** @param cutId the cut that Postgres says was committed last; `null` when none ever was. */
  standing(cutId: string | null): Standing {
    if (cutId === null)
      return this.#meta('cut') === undefined && this.tables().length === 0 ? 'in step' : 'unknown'
    if (this.#meta('cut') === cutId) return 'in step'
    return this.#meta('intent') === cutId ? 'intended' : 'unknown'
  }

  /** Source names of the tables that are remembered. */
  tables(): string[] {
    return this.#all('select name from tables order by id').map(row => row['name'] as string)
  }

  /** How many rows of a table are remembered. */
  count(table: string): number {
    const id = this.#findId(table)
    if (id === undefined) return 0
    // Counting a million rows takes longer than many a sync.
    const placed = this.#placed.get(id) ?? this.#rowsOf(`s${id}`)
    if (!this.#isAdriftSet) this.#placed.set(id, placed)
    return placed + this.#rowsOf('adrift where t = ?', id)
  }

  /** Whether rows of a table are remembered without their places. */
  hasAdrift(table: string): boolean {
    const id = this.#findId(table)
    return id !== undefined && this.#get('select 1 from adrift where t = ? limit 1', id) !== undefined
  }

  /** @returns up to `limit` entries spread over a table, to tell by content which table it is. */
  sample(table: string, limit: number): Entry[] {
    const id = this.#findId(table)
    if (id === undefined) return []
    const half = Math.ceil(limit / 2)
    const ends = `select * from (select rid, key, digest from s${id} order by rid limit ${half})
      union select * from (select rid, key, digest from s${id} order by rid desc limit ${half})`
    return this.#all(ends).map(toEntry)
  }

  /** Begins a capture: what an interrupted one has left is void. Settled by {@link intend}, undone by {@link abandon}. */
  begin(): void {
    if (this.#db.isTransaction) this.#exec('rollback')
    this.#exec('begin immediate')
    this.#clearIntent()
  }

  /** Forgets what this capture has found so far, and goes on capturing. */
  discard(): void {
    this.#exec('rollback')
    this.begin()
  }

  /** Ends a capture without a trace. */
  abandon(): void {
    if (this.#db.isTransaction) this.#exec('rollback')
    this.#exec('delete from temp.aside; delete from temp.rows_aside')
    this.#forgetCapture()
  }

  /**
   * Writes ahead what the cut will have changed. From here on a crash is settled by asking Postgres for its cut.
   *
   * @param isConsistent false when a row may have been met twice, before and after the app moved it: nobody knows which
   * place is its own now, and one that it has not would look like a delete next time. So it goes adrift.
   */
  intend(cutId: string, isConsistent: boolean): void {
    this.#write()
    for (const {id} of isConsistent ? [] : this.#tables()) {
      const met = `select key from intent where t = ${id} and digest is not null`
      const left = `select rid from intent where t = ${id}`
      // Of a row that was met with two contents nobody knows which one Postgres takes last.
      this.#run(
        `insert or replace into intent_adrift
         select ${id}, key, iif(count(*) > 1, zeroblob(16), max(digest)) from intent
         where t = ${id} and digest is not null group by key
         having count(*) > 1 or key in (select key from intent_adrift where t = ${id})
           or key in (select key from s${id} where key in (${met}) and rid not in (${left}))`,
      )
      this.#run(`insert or ignore into intent select ${id}, rid, key, null from s${id} where key in (${met})`)
      this.#run(
        `update intent set digest = null
         where t = ${id} and key in (select key from intent_adrift where t = ${id})`,
      )
    }
    const {ended} = this.#claims
    if (ended.size > 0) this.#run('insert into intent_ended values (?)', ended.bytes)
    this.#setMeta('intent', cutId)
    this.#exec('commit')
  }

  /** Makes the intent of `cutId` true, after Postgres committed it. A loser of that race finds nothing to settle. */
  settle(cutId: string): void {
    if (this.#meta('intent') !== cutId) return
    const grown = new Map<number, number>()
    this.#exec('begin immediate')
    try {
      for (const {id} of this.#tables()) {
        const gone = this.#run(`delete from s${id} where rid in (select rid from intent where t = ${id})`)
        const come = this.#run(
          `insert into s${id} select rid, key, digest from intent where t = ${id} and digest is not null`,
        )
        grown.set(id, come - gone)
      }
      this.#endAdrift()
      this.#run('insert or replace into adrift select t, key, digest, next_n() from intent_adrift')
      for (const {name} of this.#all('select name from intent_dropped')) this.#drop(name as string)
      this.#run('delete from intent_renamed')
      // The rows go on, the pages stay behind until they are saved: a page may become again what it was, while its
      // rows do not.
      this.#forgetPages()
      this.#setMeta('cut', cutId)
      this.#clearIntent()
      this.#exec('commit')
    } catch (error) {
      this.#exec('rollback')
      throw error
    }
    for (const [id, more] of grown) {
      const placed = this.#placed.get(id)
      if (placed !== undefined) this.#placed.set(id, placed + more)
    }
  }

  /** Empties the sidecar, to be filled by {@link recall} from what the target knows. */
  reset(): void {
    this.abandon()
    this.#exec('begin immediate')
    for (const name of this.tables()) this.#drop(name)
    this.#lastNumber = 0
    this.#clearIntent()
    this.#forgetPages()
    this.#run(
      "delete from meta where name in ('cut', 'intent', 'fingerprint', 'identity', 'cookie', 'totals')",
    )
    this.#exec('commit')
  }

  /** Remembers rows of the target whose place in the source is not known. */
  recall(table: string, rows: readonly {key: string; digest: Uint8Array}[]): void {
    const id = this.#id(table)
    this.#exec('begin immediate')
    this.#insertAdrift(id, rows)
    this.#exec('commit')
  }

  /** Ends {@link reset}: the sidecar now stands at this cut. */
  standAt(cutId: string): void {
    this.#setMeta('cut', cutId)
  }

  /** Begins a committed chunk of a first load: rows go straight in, there is nothing to compare them with. */
  beginChunk(): void {
    this.#exec('begin immediate')
  }

  /** Takes rows of one table in a chunk. */
  append(table: string, withoutRowid: boolean, entries: readonly Entry[]): void {
    const id = this.#id(table)
    this.#placed.delete(id)
    if (withoutRowid) this.#insertAdrift(id, entries)
    else this.#insert(`s${id} (rid, key, digest)`, entries, ({rowid, key, digest}) => [rowid, key, digest])
  }

  /** Ends a chunk after Postgres committed it as `cutId`. */
  commitChunk(cutId: string): void {
    this.#setMeta('cut', cutId)
    this.#exec('commit')
  }

  /** Ends a chunk that Postgres need not know of. */
  endChunk(): void {
    this.#exec('commit')
  }

  /** Keeps only the last place of each key, for a load during which the app moved rows. Part of a chunk. */
  keepLastPlaces(table: string): void {
    const id = this.#id(table)
    this.#placed.delete(id)
    this.#run(`delete from s${id} where rid not in (select max(rid) from s${id} group by key)`)
  }

  /**
   * Follows tables that the app renamed; what is left of a table whose name another one now has is forgotten.
   * Part of the current capture: a cut that is never settled has renamed nothing.
   *
   * @param renames source name now -> source name as remembered.
   */
  follow(renames: ReadonlyMap<string, string>): void {
    const rename = (from: string, to: string) => {
      this.#ids.clear()
      this.#run('update tables set name = ? where name = ?', to, from)
      this.#run('insert into intent_renamed (was, is_now) values (?, ?)', from, to)
    }
    // By way of names that no table can have, so that two may swap theirs.
    for (const [to, from] of renames) rename(from, `\0${to}`)
    for (const to of renames.keys()) {
      if (this.#findId(to) !== undefined) {
        rename(to, `\0gone ${to}`)
        this.forget(`\0gone ${to}`)
      }
      rename(`\0${to}`, to)
    }
  }

  /** Forgets where rows of a table are, because that is no longer how they are found. Part of the current capture. */
  setAdrift(table: string): void {
    const id = this.#findId(table)
    if (id === undefined) return
    this.#run(`insert or replace into adrift select ${id}, key, digest, next_n() from s${id}`)
    this.#run(`delete from s${id}`)
    this.#placed.delete(id)
    this.#isAdriftSet = true
  }

  /**
   * Takes back {@link remember} for a row that Postgres refused, so that it is tried again. What the target has of it
   * from earlier, if anything, stays known: a later delete must not be missed.
   */
  unremember(table: string, key: string): void {
    const id = this.#id(table)
    const intended = this.#get(
      'select rid from intent where t = ? and key = ? and digest is not null',
      id,
      key,
    )
    if (intended !== undefined) {
      const rid = intended['rid'] as bigint
      this.#run('delete from intent where t = ? and rid = ?', id, rid)
      if (this.#get(`select 1 from s${id} where rid = ? and key = ?`, rid, key) !== undefined) return
    }
    this.#run('insert or replace into intent_adrift values (?, ?, ?)', id, key, new Uint8Array(16))
  }

  /** Makes sure a table is remembered, if only as empty. Part of the current capture. */
  know(table: string): void {
    this.#id(table)
  }

  /** Forgets a table when the cut is settled. Part of the current capture. */
  forget(table: string): void {
    this.#run('insert or ignore into intent_dropped values (?)', table)
  }

  /** Where rows were that are not there any more, by key. Of the current capture. */
  placesLeft(table: string): Map<string, bigint> {
    const left = 'select rid, key from intent where t = ? and digest is null'
    return new Map(this.#all(left, this.#id(table)).map(row => [row['key'] as string, row['rid'] as bigint]))
  }

  /** Keys and rowids of a table, for its rows to be tombstoned with it. */
  *keys(table: string): Iterable<string> {
    const id = this.#findId(table)
    if (id === undefined) return
    const keys = this.#db.prepare(`select key from s${id} union all select key from adrift where t = ${id}`)
    for (const row of keys.iterate()) yield row['key'] as string
  }

  /** Remembers that the row now is as captured. Part of the current capture. */
  remember(table: string, entry: Entry, withoutRowid: boolean): void {
    const id = this.#id(table)
    if (withoutRowid)
      this.#run('insert or replace into intent_adrift values (?, ?, ?)', id, entry.key, entry.digest)
    else if (this.#unwritten.push([id, entry.rowid, entry.key, entry.digest]) >= MANY) this.#write()
  }

  /** A note beside the entries, e.g. the source's fingerprint; `undefined` forgets it. */
  note(name: Note, value: string | undefined): void {
    if (value !== undefined) this.#setMeta(name, value)
    else this.#run('delete from meta where name = ?', name)
  }

  noted(name: Note): string | undefined {
    return this.#meta(name)
  }

  /** Keeps what the pages of the source looked like when the rows were read that are settled now. */
  savePages(state: PageState | undefined): void {
    this.#exec('begin immediate')
    if (state !== undefined) this.#setMeta('pages', writePages(this.#rows, state))
    else {
      removePages(this.#rows)
      this.#forgetPages()
    }
    this.#exec('commit')
  }

  /**
   * @param inMemory what this process kept of them, which is taken when nobody has saved since.
   * @returns what {@link savePages} kept, or `undefined` when there is nothing or it is damaged.
   */
  loadPages(inMemory: PageState | undefined): PageState | undefined {
    const kept = this.#meta('pages')
    return kept === undefined ? undefined : readPages(this.#rows, kept, inMemory)
  }

  /** What is remembered of one table, for a capture to compare with. */
  remembered(table: string, withoutRowid: boolean): Remembered & {tombstoned(key: string): void} {
    const file = {
      get: this.#get.bind(this),
      all: this.#all.bind(this),
      run: this.#run.bind(this),
    }
    return memoryOf(file, this.#claims, this.#id(table), withoutRowid)
  }

  /** Gives back memory that only makes things faster. */
  shrink(): void {
    this.#exec('pragma shrink_memory')
  }

  [Symbol.dispose](): void {
    this.#statements.clear()
    this.#db.close()
  }

  #rowsOf(what: string, ...values: Bindable[]): number {
    return Number(this.#get(`select count(*) as n from ${what}`, ...values)?.['n'])
  }

  #tables(): {id: number; name: string}[] {
    return this.#all('select id, name from tables').map(row => ({
      id: Number(row['id']),
      name: row['name'] as string,
    }))
  }

  #findId(table: string): number | undefined {
    const known = this.#ids.get(table)
    if (known !== undefined) return known
    const row = this.#get('select id from tables where name = ?', table)
    if (row === undefined) return undefined
    const id = Number(row['id'])
    this.#ids.set(table, id)
    return id
  }

  #id(table: string): number {
    const known = this.#findId(table)
    if (known !== undefined) return known
    const id = Number(this.#get('insert into tables (name) values (?) returning id', table)?.['id'])
    this.#exec(`create table s${id} (rid integer primary key, key text not null, digest blob not null)`)
    return id
  }

  #drop(table: string): void {
    const id = this.#findId(table)
    if (id === undefined) return
    for (const sql of this.#statements.keys()) if (sql.includes(`s${id} `)) this.#statements.delete(sql)
    this.#ids.delete(table)
    this.#exec(`drop table s${id}`)
    this.#run('delete from adrift where t = ?', id)
    this.#run('delete from tables where id = ?', id)
  }

  #forgetCapture(): void {
    this.#claims.clear()
    this.#ids.clear()
    this.#unwritten.length = 0
    this.#isAdriftSet = false
  }

  #nextNumber(): number {
    this.#lastNumber ??= Number(this.#get('select coalesce(max(n), 0) as n from adrift')?.['n'])
    return ++this.#lastNumber
  }

  #insertAdrift(id: number, rows: readonly {key: string; digest: Uint8Array}[]): void {
    const into = 'adrift (t, key, digest, n)'
    this.#insert(into, rows, ({key, digest}) => [id, key, digest, this.#nextNumber()])
  }

  #write(): void {
    this.#insert('intent (t, rid, key, digest)', this.#unwritten, values => values)
    this.#unwritten.length = 0
  }

  /** Removes what the intent says is no longer without a place. */
  #endAdrift(): void {
    const kept = this.#get('select bits from intent_ended')?.['bits'] as Uint8Array | undefined
    if (kept === undefined) return
    this.#claims.ended = new Bits(kept)
    const all = Number(this.#get('select count(*) as n from adrift')?.['n'])
    // All of them, the usual case, is one step for SQLite.
    this.#run(`delete from adrift ${this.#claims.ended.size === all ? '' : 'where is_ended(n)'}`)
  }

  #clearIntent(): void {
    for (const {was, is_now: isNow} of this.#all('select was, is_now from intent_renamed order by n desc')) {
      this.#drop(was as string) // whoever took the name since knows nothing that is settled
      this.#run('update tables set name = ? where name = ?', was as string, isNow as string)
    }
    this
      .#exec(`delete from intent; delete from intent_adrift; delete from intent_ended; delete from intent_dropped; delete from intent_renamed; delete from meta where name = 'intent';
      delete from temp.aside; delete from temp.rows_aside`)
    this.#forgetCapture()
  }

  #forgetPages(): void {
    this.#run("delete from meta where name = 'pages'")
  }

  #meta(name: string): string | undefined {
    return this.#get('select value from meta where name = ?', name)?.['value'] as string | undefined
  }

  #setMeta(name: string, value: string): void {
    this.#run('insert or replace into meta values (?, ?)', name, value)
  }

  #get(sql: string, ...values: Bindable[]): Record<string, unknown> | undefined {
    return inStateDir(this.#file, () => this.#statement(sql).get(...values))
  }

  #all(sql: string, ...values: Bindable[]): Record<string, unknown>[] {
    return inStateDir(this.#file, () => this.#statement(sql).all(...values))
  }

  /** @returns how many rows it has changed. */
  #run(sql: string, ...values: Bindable[]): number {
    return inStateDir(this.#file, () => Number(this.#statement(sql).run(...values).changes))
  }

  /** Many rows with one statement: that costs half of what single ones do. */
  #insert<Row>(into: string, rows: readonly Row[], valuesOf: (row: Row) => Bindable[]): void {
    for (let at = 0; at < rows.length;) {
      const count = rows.length - at >= MANY ? MANY : 1
      const values = rows.slice(at, at + count).flatMap(valuesOf)
      const row = `(${Array(values.length / count)
        .fill('?')
        .join(', ')})`
      this.#run(`insert or replace into ${into} values ${Array(count).fill(row).join(', ')}`, ...values)
      at += count
    }
  }

  #exec(sql: string): void {
    inStateDir(this.#file, () => {
      this.#db.exec(sql)
    })
  }

  #statement(sql: string): StatementSync {
    let statement = this.#statements.get(sql)
    if (statement === undefined) {
      statement = this.#db.prepare(sql)
      statement.setReadBigInts(true)
      this.#statements.set(sql, statement)
    }
    return statement
  }
}

/** How many rows one INSERT takes; more gain nothing. */
const MANY = 32

function fileOf(stateDir: string, deploymentId: string): string {
  return join(stateDir, 'sidecars', `${deploymentId}.db`)
}

function openFile(file: string): DatabaseSync {
  const db = inStateDir(file, () => new DatabaseSync(file, {timeout: 5_000}))
  try {
    inStateDir(file, () => {
      db.exec(`
      pragma journal_mode = wal;
      pragma synchronous = normal;
      pragma cache_size = -8000;
      create table if not exists meta (name text primary key, value text not null) without rowid;
      create table if not exists tables (id integer primary key autoincrement, name text not null unique);
      create table if not exists adrift (t integer, key text, digest blob not null, n integer not null, primary key (t, key)) without rowid;
      create table if not exists intent (t integer, rid integer, key text, digest blob, primary key (t, rid)) without rowid;
      create table if not exists intent_adrift (t integer, key text, digest blob, primary key (t, key)) without rowid;
      create table if not exists intent_ended (bits blob not null);
      ${pageTables}
      create table if not exists intent_dropped (name text primary key) without rowid;
      create table if not exists intent_renamed (n integer primary key, was text not null, is_now text not null);
      create temp table aside (t integer, key text, rid integer, digest blob, claimed integer, primary key (t, key)) without rowid;
      create temp table rows_aside (t integer, rid integer, key text, digest blob, primary key (t, rid)) without rowid;
    `)
    })
    return db
  } catch (error) {
    db.close()
    throw error
  }
}
