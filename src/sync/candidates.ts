import {DatabaseSync, type StatementSync} from 'node:sqlite'
import type {StoredDigest} from '../target/digests.ts'
import type {RowState, Verdict} from './verdict.ts'

/** A row that differs, with all that has been seen of it. */
export type Candidate = RowState & {
  readonly key: string
  /** How many reads in a row have found another state of the source's row. */
  readonly changes: number
  /** The source's row is there but cannot be read. */
  readonly isRefused: boolean
}

/** Stands for a row of the source that is there but cannot be digested: equal to nothing. */
const REFUSED = Buffer.from('refused')

/**
 * Rows of one table that may differ, in a temporary file: there can be as many as the table has, and memory is bounded.
 */
export class Candidates implements Disposable {
  readonly #db: DatabaseSync
  readonly #statements = new Map<string, StatementSync>()
  /** Whether the last cut's own memory of the rows is here. */
  #isRemembered = false

  constructor() {
    // An empty name is a file that SQLite removes with the connection.
    this.#db = new DatabaseSync('')
    this.#db.exec(`
      pragma journal_mode = off;
      pragma synchronous = off;
      pragma cache_size = -24000;
      create table rows (
        key text primary key, source blob, state text not null default 'absent', held blob, hash blob,
        accepted integer not null default 0, known blob, changes integer not null default 0,
        present integer not null default 0, verdict text
      ) without rowid;
      begin`)
  }

  /** A row of the source, met by the first read. */
  addSource(key: string, digest: Uint8Array | undefined): void {
    this.#run(
      'insert into rows (key, source) values (?1, ?2) on conflict (key) do update set source = ?2',
      key,
      digest ?? REFUSED,
    )
  }

  /** A row of the target. Unless it is one already, it becomes a candidate. */
  addTarget(row: StoredDigest): void {
    this.#run(
      `insert into rows (key, state, held, hash, accepted) values (?1, ?2, ?3, ?4, ?5)
       on conflict (key) do update set state = ?2, held = ?3, hash = ?4, accepted = ?5`,
      row.key,
      row.state,
      row.values,
      row.hash ?? null,
      row.isAccepted ? 1 : 0,
    )
  }

  /** Forgets rows that are equal on both sides. @returns how many are left. */
  dropEqual(): number {
    this.#run(`delete from rows where state = 'live' and source is held and held is hash and not accepted`)
    return this.#get('select count(*) as n from rows')?.['n'] as number
  }

  has(key: string): boolean {
    return this.#get('select 1 from rows where key = ?', key) !== undefined
  }

  /** Whether a row's source and target are both there: only then can columns be compared. */
  isOnBothSides(key: string): boolean {
    return (
      this.#get(`select 1 from rows where key = ? and source is not null and state = 'live'`, key) !==
      undefined
    )
  }

  /** Whether any row's source and target are both there. */
  get hasPairs(): boolean {
    return this.#get(`select 1 from rows where source is not null and state = 'live' limit 1`) !== undefined
  }

  /** Begins another read of the source. */
  beginRead(): void {
    this.#run('update rows set present = 0')
  }

  /** A candidate met by a later read. */
  seeAgain(key: string, digest: Uint8Array | undefined): void {
    this.#run(
      'update rows set present = 1, changes = changes + (source is not ?2), source = ?2 where key = ?1',
      key,
      digest ?? REFUSED,
    )
  }

  /** Ends a later read: what it has not met is gone from the source. */
  endRead(): void {
    this.#run('update rows set changes = changes + 1, source = null where not present and source is not null')
  }

  /** Forgets what is known of the target's rows, before they are read again. */
  clearTarget(): void {
    this.#run(`update rows set state = 'absent', held = null, hash = null, accepted = 0`)
  }

  /** What the last cut knew of a row, if it is a candidate. */
  remember(key: string, digest: Uint8Array): void {
    this.#run('update rows set known = ?2 where key = ?1', key, digest)
  }

  /** Keys of candidates in pages, in their order. */
  *keys(limit: number, where: 'all' | Verdict = 'all'): Generator<string[]> {
    let after = ''
    let isFirst = true
    for (;;) {
      const rows = this.#all(
        `select key from rows where (?1 or key > ?2) and (?3 = 'all' or verdict = ?3) order by key limit ?4`,
        isFirst ? 1 : 0,
        after,
        where,
        limit,
      )
      if (rows.length === 0) return
      const keys = rows.map(row => row['key'] as string)
      yield keys
      after = keys.at(-1) as string
      isFirst = false
    }
  }

  /** Every candidate, judged by `judge`, whose verdict is kept. */
  judge(isRemembered: boolean, judge: (candidate: Candidate) => Verdict | 'moving'): void {
    this.#isRemembered = isRemembered
    // Within the statement that changes them: each row is found once, in the order in which they lie.
    this.#db.function('judge', {varargs: true}, (...row) => {
      const [key, source, target, values, hash, accepted, known, changes] = row.map(
        value => value ?? undefined,
      )
      return judge({
        key: key as string,
        source: source as Uint8Array | undefined,
        target: target as RowState['target'],
        values: values as Uint8Array | undefined,
        hash: hash as Uint8Array | undefined,
        isAccepted: accepted === 1,
        known: isRemembered ? (known as Uint8Array | undefined) : 'unknown',
        changes: changes as number,
        isRefused: source !== undefined && Buffer.compare(source as Uint8Array, REFUSED) === 0,
      })
    })
    this.#run('update rows set verdict = judge(key, source, state, held, hash, accepted, known, changes)')
  }

  /** @returns how many candidates have each verdict. */
  counts(): ReadonlyMap<string, number> {
    const rows = this.#all('select verdict, count(*) as n from rows group by verdict')
    return new Map(rows.map(row => [row['verdict'] as string, row['n'] as number]))
  }

  /** @returns the verdict of a candidate; `undefined` for any other row. */
  verdictOf(key: string): Verdict | 'moving' | undefined {
    return this.#get('select verdict from rows where key = ?', key)?.['verdict'] as
      Verdict | 'moving' | undefined
  }

  /** Whether a row of the source was like this (`undefined`: not there) as of the last cut. */
  wasAtCut(key: string, digest: Uint8Array | undefined): boolean {
    const sql = this.#isRemembered
      ? 'select known from rows where key = ?'
      : `select iif(state = 'absent', null, hash) as known from rows where key = ?`
    const known = (this.#get(sql, key)?.['known'] ?? undefined) as Uint8Array | undefined
    return known === undefined || digest === undefined
      ? known === digest
      : Buffer.compare(known, digest) === 0
  }

  [Symbol.dispose](): void {
    this.#statements.clear()
    this.#db.close()
  }

  #run(sql: string, ...values: Bindable[]): void {
    this.#statement(sql).run(...values)
  }

  #get(sql: string, ...values: Bindable[]): Record<string, unknown> | undefined {
    return this.#statement(sql).get(...values)
  }

  #all(sql: string, ...values: Bindable[]): Record<string, unknown>[] {
    return this.#statement(sql).all(...values)
  }

  #statement(sql: string): StatementSync {
    let statement = this.#statements.get(sql)
    if (statement === undefined) {
      statement = this.#db.prepare(sql)
      this.#statements.set(sql, statement)
    }
    return statement
  }
}

type Bindable = string | number | Uint8Array | null
