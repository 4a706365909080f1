import {setImmediate as breathe, setTimeout as sleep} from 'node:timers/promises'
import {LargeGarbage} from '../core/garbage.ts'
import {SchemaMovedError} from './errors.ts'
import {
  introspect,
  readDataVersion,
  readSchemaVersion,
  type SourceSpec,
  type TableSpec,
} from './introspect.ts'
import {beginRead, endRead, errcode, whenFree, type Source} from './open.ts'
import {everything, type RowidRange} from './ranges.ts'
import {
  TableReader,
  type Page,
  type PageBudget,
  type Position,
  type RefusedRow,
  type SourceRow,
} from './read.ts'

/** What the last cut knew of one row. */
export type Entry = {readonly rowid: bigint; readonly key: string; readonly digest: Uint8Array}

/** What the last cut knew of one table: the truth that digests are compared with. The sidecar fits this port. */
export type Remembered = {
  /** Entries with a rowid above `after` and up to `upTo` (`undefined`: without that bound), ascending. */
  range(after: bigint | undefined, upTo: bigint | undefined): readonly Entry[]
  /** The greatest rowid known; `undefined` when no row's place is known. */
  highestRowid(): bigint | undefined
  /** Whether entries exist that are known by key alone: the table is compared whole until their places are known. */
  hasAdrift(): boolean
  /** Sets aside an entry that is not where it was; it may turn up elsewhere. */
  setAside(entry: Entry): void
  /** Sets aside a row that is not known to be where it is; it may be an entry that moved. */
  setAsideRow(row: Entry): void
  /** @returns the digest of the set-aside or adrift entry with this key, which is thereby found. */
  claim(key: string): Uint8Array | undefined
  /** Set-aside rows in the order of their rowids, at most `limit` above `after`. */
  rowsAside(after: bigint | undefined, limit: number): readonly Entry[]
  /** Keys set aside or adrift that nothing has claimed, at most `limit` above `after`. */
  unclaimed(after: string | undefined, limit: number): readonly string[]
  /** Claims an entry and goes on remembering it as it was, although nobody could read or confirm it this time. */
  keep(key: string): void
}

/** What a capture finds out, row by row. Nothing in it is applied before the whole cut is known. */
export type Delta = {
  /** `isNew`: nothing was remembered of a row with this key. */
  upsert(table: TableSpec, row: SourceRow, isNew: boolean): void
  tombstone(table: TableSpec, key: string): void
  /** The row is as it was but stands elsewhere: nothing to apply, only to remember. */
  place(table: TableSpec, entry: Entry): void
  refuse(table: TableSpec, row: RefusedRow): void
}

/** What a capture compares with. */
export type Basis = {
  readonly remembered: (table: TableSpec) => Remembered
  /** False when a statement like ADD COLUMN can have changed what rows hold without touching their pages. */
  readonly isSameSchema: boolean
}

/** How one capture went. */
export type CaptureResult = {
  readonly spec: SourceSpec
  /** False when the app committed in between: every row is a committed one, but not all of the same instant. */
  readonly consistent: boolean
  /** Rows that were compared: all of them, or those that can have changed. */
  readonly rows: number
  readonly comparedAll: boolean
  /** Whether all rows of any table were compared for which a finder might have had less. */
  readonly comparedTables: boolean
  /** Of this connection, when the rows were read; with `consistent`, it was the same all the while. */
  readonly dataVersion: bigint
}

/** Where changed rows of a table can be: `undefined` is anywhere. What is known there and gone has been deleted. */
export type Suspects = readonly RowidRange[] | undefined

/** Says where changed rows can be, before any row is read: the pages of the file fit this port. */
export type Finder = {
  /**
   * Looks at the file as it is now; what earlier looks of the same capture have found is kept. In WAL mode it begins
   * the read transaction that it looks in, and leaves it open: the rows are to be read in it.
   *
   * @returns what to compare of a table, by its name: all of it, or what ascending ranges of rowids hold.
   */
  find(pace: Pace, isWal: boolean, signal: AbortSignal): Promise<(table: string) => Suspects>
  /** Told, under the lock that they were read under, all rowids that a table has in a range. */
  witness(table: string, range: RowidRange, rowids: readonly bigint[]): void
  /** Told that a row which may have been witnessed is read again later. */
  doubt(table: string, rowid: bigint): void
}

export type CaptureOptions = {
  /** The longest a lock may be held in rollback-journal mode, in ms. */
  readonly lockBudgetMs: number
  /** Called with the schema before any row is read. */
  readonly begin: (spec: SourceSpec) => Basis
  readonly delta: Delta
  /** Without it every row of every table is compared. */
  readonly finder?: Finder | undefined
  /** A data version of this connection at which all rows are known already: they are not read again at it. */
  readonly knownAt?: bigint | undefined
  /** Called when what has been captured so far is void and the capture starts over. */
  readonly discard: () => void
  readonly onProgress?: (table: string, rows: number) => void
}

const PASSES = 3

/** After this long, one more pass would rather meet new commits than find the app at rest. */
const PATIENCE_MS = 5_000

/**
 * Captures every change since what is remembered, by the digests of all rows or of those that can have changed.
 *
 * In WAL mode the whole capture is one read transaction, which blocks nobody. In rollback-journal mode a read lock
 * stops the app's commits, so it is taken for one short page at a time; a pass that a commit disturbed is repeated a
 * few times and, when the app never rests, reported as not consistent: the next run heals what it mixed.
 *
 * @throws {SchemaMovedError} when the schema never held still.
 */
export async function capture(
  source: Source,
  options: CaptureOptions,
  signal: AbortSignal,
): Promise<CaptureResult> {
  const since = performance.now()
  for (let pass = 1; ; pass++) {
    const result = await capturePass(source, options, signal)
    const isLast = pass === PASSES || (result !== 'schema moved' && performance.now() - since > PATIENCE_MS)
    if (result !== 'schema moved' && (result.consistent || isLast)) return result
    if (isLast) throw new SchemaMovedError(source.file)
    options.discard()
    if (result === 'schema moved') await sleep(200 * pass, undefined, {signal})
  }
}

/** Whether the file is in WAL mode, where a reader blocks nobody. Decided anew each time: the app may change it. */
export function isWal(source: Source): boolean {
  return source.db.prepare('pragma journal_mode').get()?.['journal_mode'] === 'wal'
}

/** Counts a lock that was held for so long outside of a {@link Pace}. In WAL mode nobody waits for it. */
export function noteHold(source: Source, ms: number): void {
  if (ms > source.lock.maxHoldMs && !isWal(source)) source.lock.maxHoldMs = ms
}

/** Reads the schema of a source, again while the app's lock refuses it. */
export async function readSchema(source: Source, signal: AbortSignal): Promise<SourceSpec> {
  const onHold = (ms: number) => {
    noteHold(source, ms)
  }
  return await whenFree(source, () => introspect(source.db, onHold), signal)
}

async function capturePass(
  source: Source,
  options: CaptureOptions,
  signal: AbortSignal,
): Promise<CaptureResult | 'schema moved'> {
  const {db} = source
  const inOneTransaction = await whenFree(source, () => isWal(source), signal)
  const pace = new Pace(source, inOneTransaction ? undefined : options.lockBudgetMs, signal)
  const versions = () => ({data: readDataVersion(db), schema: readSchemaVersion(db)})
  try {
    const before = inOneTransaction ? undefined : await whenFree(source, versions, signal)
    const suspectsOf = await options.finder?.find(pace, inOneTransaction, signal)
    if (inOneTransaction && !db.isTransaction)
      await whenFree(
        source,
        () => {
          beginRead(db)
        },
        signal,
      )
    // The app has left WAL mode meanwhile, where so long a transaction would keep it from committing.
    if (inOneTransaction && !isWal(source)) return 'schema moved'
    const start = before ?? versions()
    const spec = await readSchema(source, signal)
    if (spec.schemaVersion !== start.schema) return 'schema moved'
    const {remembered, isSameSchema} = await whenFree(source, () => options.begin(spec), signal)
    let rows = 0
    let comparedAll = true
    let comparedTables = false
    const isKnown = options.knownAt === start.data
    const read = isKnown ? [] : spec.tables.map(table => ({table, reader: new TableReader(db, table)}))
    for (const {table, reader} of read) {
      const memory = remembered(table)
      const suspects = isSameSchema && !memory.hasAdrift() ? suspectsOf?.(table.name) : undefined
      if (suspects !== undefined) comparedAll = false
      else if (!table.withoutRowid) comparedTables = true
      if (table.withoutRowid) rows += await scanByKey(reader, memory, options, pace)
      else rows += await scanByRowid(reader, memory, options, pace, suspects)
    }
    const isDisturbed = () => readDataVersion(db) !== start.data
    const fuzzy = !inOneTransaction && (await whenFree(source, isDisturbed, signal))
    if ((await whenFree(source, () => readSchemaVersion(db), signal)) !== start.schema) return 'schema moved'
    // What was read of the file alone was not all there was.
    if (!inOneTransaction && (await whenFree(source, () => isWal(source), signal))) return 'schema moved'
    for (const {table, reader} of read) await settleLeftovers(reader, remembered(table), options, fuzzy, pace)
    // A delete that was confirmed while the app went on is of a later instant than the rest.
    const consistent = !fuzzy && !(await whenFree(source, () => !inOneTransaction && isDisturbed(), signal))
    options.onProgress?.('', rows)
    return {
      spec,
      consistent,
      rows,
      comparedAll,
      comparedTables,
      dataVersion: start.data,
    }
  } catch (cause) {
    // A statement that no longer fits its table says so with SQLITE_ERROR or SQLITE_SCHEMA.
    const code = errcode(cause)
    if (!inOneTransaction && (code === 1 || code === 17)) return 'schema moved'
    throw cause
  } finally {
    endRead(db)
  }
}

/** The least and the most that reads leave the app alone after one that its lock has refused, in ms. */
const LEAST_REST_MS = 10
const MOST_REST_MS = 250

/**
 * How long the app is left alone after a read: each one that its lock has refused doubles that, since the app is then
 * busier than we thought; each one that it has not halves it again. Pure.
 */
export function nextRest(restMs: number, wasRefused: boolean): number {
  if (wasRefused) return Math.min(MOST_REST_MS, Math.max(LEAST_REST_MS, 2 * restMs))
  return restMs > LEAST_REST_MS ? restMs / 2 : 0
}

/** Keeps reads short enough for the app and for the rest of this process. */
export class Pace {
  readonly #source: Source
  readonly #lockBudgetMs: number | undefined
  readonly #signal: AbortSignal
  #endedAt = 0
  /** Half of every hold is owed to the app; what is less than a timer's tick is owed on. */
  #owedMs = 0
  #restMs = 0
  readonly #garbage = new LargeGarbage()

  /** @param lockBudgetMs absent when the reads hold no lock that anybody waits for. */
  constructor(source: Source, lockBudgetMs: number | undefined, signal: AbortSignal) {
    this.#source = source
    this.#lockBudgetMs = lockBudgetMs
    this.#signal = signal
  }

  get budget(): PageBudget {
    // Half the budget: the row on which the clock runs out is still to be finished.
    const ms = this.#lockBudgetMs === undefined ? 40 : this.#lockBudgetMs / 2
    return {ms, bytes: 1024 * 1024, rows: 1_000}
  }

  /** Runs one read that reports how long it held its lock, leaving the app room before it. */
  async read<T extends {holdMs: number; bytes?: number}>(read: () => T): Promise<T> {
    await breathe(undefined, {signal: this.#signal})
    this.#garbage.sweep()
    if (this.#lockBudgetMs !== undefined) {
      const idleMs = performance.now() - this.#endedAt
      const rest = Math.max(this.#owedMs, this.#restMs) - idleMs
      if (rest >= 1) await sleep(Math.ceil(rest), undefined, {signal: this.#signal})
      this.#owedMs = rest >= 1 ? 0 : Math.max(0, this.#owedMs - idleMs)
    }
    const {lock} = this.#source
    const refused = lock.busyRetries
    let since = 0
    const timed = () => {
      since = performance.now()
      return read()
    }
    const result = await whenFree(this.#source, timed, this.#signal)
    this.#restMs = nextRest(this.#restMs, lock.busyRetries > refused)
    // What was done with the rows after the lock was let go has been the app's time already.
    this.#endedAt = since + result.holdMs
    this.#garbage.note(result.bytes ?? 0)
    this.#owedMs += result.holdMs / 2
    if (this.#lockBudgetMs !== undefined) lock.maxHoldMs = Math.max(lock.maxHoldMs, result.holdMs)
    return result
  }
}

async function scanByRowid(
  reader: TableReader,
  memory: Remembered,
  options: CaptureOptions,
  pace: Pace,
  suspects: Suspects,
): Promise<number> {
  const highest = memory.highestRowid()
  let count = 0
  for (const range of suspects ?? [everything])
    count += await scanRange(reader, memory, options, pace, range, highest, count)
  await settleAside(reader, memory, options, pace)
  return count
}

async function scanRange(
  reader: TableReader,
  memory: Remembered,
  options: CaptureOptions,
  pace: Pace,
  range: RowidRange,
  highest: bigint | undefined,
  before: number,
): Promise<number> {
  const {table} = reader
  const {delta} = options
  let position: Position | undefined = range.after === undefined ? undefined : [range.after]
  let count = 0
  do {
    const after = position?.[0] as bigint | undefined
    const at = position
    const page = await pace.read(() => readSeen(reader, at, pace.budget, range, options.finder))
    position = page.next
    const isKnown = highest !== undefined && (after === undefined || after < highest)
    const known = isKnown ? memory.range(after, (position?.[0] as bigint | undefined) ?? range.upTo) : []
    let k = 0
    const asideBefore = (rowid: bigint | undefined) => {
      for (
        let entry = known[k];
        entry !== undefined && (rowid === undefined || entry.rowid < rowid);
        entry = known[++k]
      )
        memory.setAside(entry)
    }
    for (const row of page.rows) {
      asideBefore(row.rowid)
      const entry = known[k]?.rowid === row.rowid ? known[k++] : undefined
      if (entry !== undefined && row.digest.equals(entry.digest)) continue
      if (entry?.key === row.key) delta.upsert(table, row, false)
      else {
        if (entry !== undefined) memory.setAside(entry)
        // Beyond the last known rowid every entry that moved has been set aside already: the answer is known now.
        if (highest !== undefined && row.rowid <= highest) memory.setAsideRow(row)
        else take(table, row, memory, delta)
      }
    }
    asideBefore(undefined)
    for (const refused of page.refused) refuse(table, refused, memory, delta)
    count += page.rows.length + page.refused.length
    options.onProgress?.(table.name, before + count)
  } while (position !== undefined)
  return count
}

/** Reads a page of rows while the finder looks on. */
function readSeen(
  reader: TableReader,
  position: Position | undefined,
  budget: PageBudget,
  {upTo}: RowidRange,
  finder: Finder | undefined,
): Page {
  if (finder === undefined) return reader.page(position, budget, upTo)
  return reader.locked(() => {
    const page = reader.page(position, budget, upTo)
    const seen = {
      after: position?.[0] as bigint | undefined,
      upTo: (page.next?.[0] as bigint | undefined) ?? upTo,
    }
    finder.witness(
      reader.table.name,
      seen,
      page.rows.map(row => row.rowid),
    )
    return page
  })
}

async function scanByKey(
  reader: TableReader,
  memory: Remembered,
  options: CaptureOptions,
  pace: Pace,
): Promise<number> {
  const {table} = reader
  let position: Position | undefined
  let count = 0
  do {
    const at = position
    const page = await pace.read(() => reader.page(at, pace.budget))
    position = page.next
    for (const row of page.rows) take(table, row, memory, options.delta)
    for (const refused of page.refused) refuse(table, refused, memory, options.delta)
    count += page.rows.length + page.refused.length
    options.onProgress?.(table.name, count)
  } while (position !== undefined)
  return count
}

function take(table: TableSpec, row: SourceRow, memory: Remembered, delta: Delta): void {
  const was = memory.claim(row.key)
  if (was !== undefined && row.digest.equals(was)) delta.place(table, row)
  else delta.upsert(table, row, was === undefined)
}

/** The target keeps what it has of a row that cannot be read; the row is asked for again next time. */
function refuse(table: TableSpec, row: RefusedRow, memory: Remembered, delta: Delta): void {
  memory.keep(row.key)
  delta.refuse(table, row)
}

/** Rows that stood where another or none was known: moved, changed or new. The values are read again for the latter two. */
async function settleAside(
  reader: TableReader,
  memory: Remembered,
  {delta, finder}: CaptureOptions,
  pace: Pace,
): Promise<void> {
  const {table} = reader
  let after: bigint | undefined
  for (;;) {
    const aside = memory.rowsAside(after, 200)
    if (aside.length === 0) return
    after = aside[aside.length - 1]?.rowid
    const wanted: bigint[] = []
    /** Keys of those that are known, to be found again. */
    const known = new Map<bigint, string>()
    for (const row of aside) {
      const was = memory.claim(row.key)
      if (was !== undefined && Buffer.compare(was, row.digest) === 0) delta.place(table, row)
      else {
        wanted.push(row.rowid)
        finder?.doubt(table.name, row.rowid)
        if (was !== undefined) known.set(row.rowid, row.key)
      }
    }
    for (let rest = wanted; rest.length > 0;) {
      const asked = rest
      const page = await pace.read(() => reader.fetch(asked, pace.budget))
      for (const row of page.rows) {
        const isKnown = known.get(row.rowid) === row.key
        if (isKnown) known.delete(row.rowid)
        delta.upsert(table, row, !isKnown)
      }
      for (const row of page.refused) refuse(table, row, memory, delta)
      rest = rest.slice(page.asked)
    }
    // Gone or moved again since: the next run finds them, or finds that they are deleted.
    for (const key of known.values()) memory.keep(key)
  }
}

/**
 * What nothing has claimed is gone. In a disturbed pass a row may have moved to where we had already read, so its
 * absence is confirmed by its key first; what cannot be confirmed waits for the next run.
 */
async function settleLeftovers(
  reader: TableReader,
  memory: Remembered,
  {delta}: CaptureOptions,
  fuzzy: boolean,
  pace: Pace,
): Promise<void> {
  let after: string | undefined
  for (;;) {
    const gone = memory.unclaimed(after, fuzzy ? 200 : 5_000)
    if (gone.length === 0) return
    after = gone[gone.length - 1]
    const absent = fuzzy ? (await pace.read(() => reader.absent(gone))).keys : undefined
    for (const key of gone) {
      if (absent?.has(key) ?? true) delta.tombstone(reader.table, key)
      else memory.keep(key)
    }
  }
}
