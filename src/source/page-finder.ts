import type {CaptureResult, Finder, Pace, Suspects} from './capture.ts'
import {readDataVersion, readSchemaVersion} from './introspect.ts'
import {endRead, whenFree, type Source} from './open.ts'
import {LEAF_TABLE, leafCells, pageKind} from './page-format.ts'
import {PageMap, type SuspectLeaf} from './page-map.ts'
import {hashOf, locked, pageReader, scanPages} from './page-scan.ts'
import {IS_LEAF, type PageState} from './page-state.ts'
import {joined, type RowidRange} from './ranges.ts'
import {beginAtEnd} from './wal-end.ts'

/** When more of the file's pages than this have changed, comparing all rows is no more work than finding them. */
const MOST_DIRTY_SHARE = 1 / 4
const FEW_DIRTY = 2_000

/** How often a look is begun once more because the log has begun anew just then. */
const MOST_LOGS = 5

/**
 * Finds changed rows by changed pages. One capture, one finder: what an earlier look has found stays found, because the
 * state already describes the pages as that look has read them.
 *
 * A page is remembered only as it was when its rows were read. Remembered as it was before, it could become again, byte
 * for byte, what it was, and nobody would look at its rows, which have been read since as something else. So when the
 * app has committed between the two, only those pages stay known that {@link witness} has seen together with their rows.
 */
export class PageFinder implements Finder {
  readonly #source: Source
  readonly #found = new Map<string, Suspects>()
  #state: PageState | undefined
  #comparesAll = false
  #isWal = false
  /** 1 for a page that any look has found changed, and for a leaf whose rows it has found suspect. */
  #dirty: Uint8Array = new Uint8Array(0)
  #usableBytes = 0
  #leaves = new Map<string, readonly SuspectLeaf[]>()
  /** Pages seen together with their rows, by the leaf of these. */
  #witnessed = new Map<number, readonly number[]>()

  /** @param state what the last applied cut knew of the pages; it is brought up to date, for better or worse. */
  constructor(source: Source, state: PageState | undefined) {
    this.#source = source
    this.#state = state
  }

  /** The pages as they were read last. */
  get state(): PageState | undefined {
    return this.#state
  }

  /** @returns the pages as they were when their rows were read: to be kept once the cut is applied, and never without it. */
  learned({
    consistent,
    comparedTables,
  }: Pick<CaptureResult, 'consistent' | 'comparedTables'>): PageState | undefined {
    const state = this.#state
    if (state === undefined) return undefined
    if (consistent) {
      state.bereft.clear()
      return state
    }
    const isKept = new Uint8Array(state.pageCount + 1)
    for (const pages of this.#witnessed.values()) for (const page of pages) isKept[page] = 1
    state.unlearn(this.#pages(page => isKept[page] === 0 && (comparedTables || this.#dirty[page] === 1)))
    return state
  }

  async find(pace: Pace, isWal: boolean, signal: AbortSignal): Promise<(table: string) => Suspects> {
    const {db} = this.#source
    this.#isWal = isWal
    this.#leaves.clear()
    this.#witnessed.clear()
    for (const page of this.#state?.bereft ?? []) this.#dirty[page] = 1
    this.#state?.bereft.clear()
    let looked = await this.#look(pace, isWal, signal)
    for (let logs = 1; looked.scanned === 'another log' && logs < MOST_LOGS; logs++) {
      endRead(db)
      looked = await this.#look(pace, isWal, signal)
    }
    const {before, isAt, schema, tables, scanned} = looked
    if (scanned === undefined || scanned === 'another log') {
      this.#state = undefined
      this.#comparesAll = true
    } else {
      const {scan, state} = scanned
      state.schema = schema
      this.#state = state
      this.#usableBytes = scan.header.usableBytes
      for (let page = 1; page < Math.min(this.#dirty.length, scan.dirty.length); page++)
        if (this.#dirty[page] === 1) scan.dirty[page] = 1
      this.#dirty = scan.dirty
      const isTooMuch = scan.dirtyCount > Math.max(FEW_DIRTY, state.pageCount * MOST_DIRTY_SHARE)
      const map = new PageMap(scan, state, pageReader(this.#source, state))
      for (const {name, rootPage} of tables) {
        const steps = map.table(rootPage)
        let step = steps.next()
        while (step.done !== true) {
          step = await locked(this.#source, pace, isWal, () => runFor(steps, pace.budget.ms))
        }
        const leaves = step.value
        this.#add(name, leaves)
        if (leaves === undefined) continue
        this.#leaves.set(name, leaves)
        // Their rows are read, so they must not stay known by what they were before, changed or not.
        for (const leaf of leaves) this.#dirty[leaf.page] = 1
      }
      map.finish()
      // Where chains go on was read page by page: after a commit in between, that is no state of the file.
      const isDisturbed = async () =>
        (await whenFree(this.#source, () => readDataVersion(db), signal)) !== isAt
      if (scan.links !== undefined && (await isDisturbed())) state.unlearn(this.#pages(() => true))
      if (isTooMuch || scan.isFirst) this.#comparesAll = true
    }
    // A table whose root moved while it was walked was walked elsewhere.
    if ((await whenFree(this.#source, () => readSchemaVersion(db), signal)) !== before)
      this.#comparesAll = true
    return table => (this.#comparesAll ? undefined : this.#found.get(table))
  }

  /** Looks at the schema and at the pages; in WAL mode in a transaction that is left open. */
  async #look(pace: Pace, isWal: boolean, signal: AbortSignal) {
    const {db} = this.#source
    const end = isWal ? await whenFree(this.#source, () => beginAtEnd(this.#source), signal) : undefined
    const before = await whenFree(this.#source, () => readSchemaVersion(db), signal)
    const isAt = await whenFree(this.#source, () => readDataVersion(db), signal)
    const {schema, tables} = await whenFree(this.#source, () => this.#schema(), signal)
    // Another schema has other trees, which may have taken over pages just as they were.
    const known = this.#state?.schema === schema ? this.#state : undefined
    const isLost = isWal && end === undefined
    const scanned = isLost ? undefined : await scanPages(this.#source, known, pace, end, signal)
    return {before, isAt, schema, tables, scanned}
  }

  witness(table: string, {after, upTo}: RowidRange, rowids: readonly bigint[]): void {
    const leaves = this.#leaves.get(table)
    if (this.#isWal || leaves === undefined) return
    let row = 0
    for (let i = firstFrom(leaves, after); i < leaves.length; i++) {
      const leaf = leaves[i] as SuspectLeaf
      if (upTo !== undefined && (leaf.upTo === undefined || leaf.upTo > upTo)) return
      while (row < rowids.length && leaf.after !== undefined && (rowids[row] as bigint) <= leaf.after) row++
      const from = row
      while (row < rowids.length && (leaf.upTo === undefined || (rowids[row] as bigint) <= leaf.upTo)) row++
      this.#see(leaf.page, rowids.slice(from, row))
    }
  }

  doubt(table: string, rowid: bigint): void {
    const leaves = this.#leaves.get(table) ?? []
    for (const leaf of leaves)
      if ((leaf.after === undefined || rowid > leaf.after) && (leaf.upTo === undefined || rowid <= leaf.upTo))
        this.#witnessed.delete(leaf.page)
  }

  /** Remembers a leaf and the chains of its rows as they are now, if these are its rows. */
  #see(leaf: number, rowids: readonly bigint[]): void {
    const state = this.#state as PageState
    const read = pageReader(this.#source, state)
    const page = Buffer.allocUnsafe(state.pageSize)
    if (!read(leaf, page, state.pageSize)) return
    const cells = leafCells(page, leaf, this.#usableBytes)
    if (cells?.length !== rowids.length || !cells.every((cell, i) => cell.rowid === rowids[i])) return
    const seen = [{page: leaf, hash: hashOf(page), kind: LEAF_TABLE, before: 0}]
    for (const {overflow} of cells) {
      let before = (leaf | IS_LEAF) >>> 0
      for (let at = overflow; at !== 0; at = page.readUInt32BE(0)) {
        if (seen.length > state.pageCount || !read(at, page, state.pageSize)) return
        seen.push({page: at, hash: hashOf(page), kind: pageKind(page, at), before})
        before = at
      }
    }
    for (const {page: number, hash, kind, before} of seen) {
      state.learn(number, hash, kind)
      if (before !== 0) state.setUp(number, before)
    }
    this.#witnessed.set(
      leaf,
      seen.map(each => each.page),
    )
  }

  *#pages(isMeant: (page: number) => boolean): Iterable<number> {
    const count = this.#state?.pageCount ?? 0
    for (let page = 1; page <= count; page++) if (isMeant(page)) yield page
  }

  /**
   * The tables whose rows lie by rowid (the others have trees of another kind, and all their rows are compared), and a
   * digest of the whole schema: its cookie is the same again in a backup that was put back and migrated once more.
   */
  #schema(): {schema: string; tables: readonly {name: string; rootPage: number}[]} {
    const rows = this.#source.db
      .prepare(
        `select name, rootpage as rootPage, sql, type = 'table' and rootpage > 0
           and name not in (select name from pragma_table_list where schema = 'main' and wr = 1) as isWalked
         from sqlite_schema`,
      )
      .all() as {name: string; rootPage: number; sql: string | null; isWalked: number}[]
    const schema = String(hashOf(Buffer.from(JSON.stringify(rows))))
    return {schema, tables: rows.filter(row => row.isWalked === 1)}
  }

  #add(table: string, suspects: Suspects): void {
    const known = this.#found.has(table) ? this.#found.get(table) : []
    const both = known === undefined || suspects === undefined ? undefined : joined([...known, ...suspects])
    this.#found.set(table, both)
  }
}

/** @returns the index of the first leaf that begins at `after` or behind it. */
function firstFrom(leaves: readonly SuspectLeaf[], after: bigint | undefined): number {
  if (after === undefined) return 0
  let low = 0
  for (let high = leaves.length; low < high;) {
    const middle = (low + high) >> 1
    const begins = leaves[middle]?.after
    if (begins === undefined || begins < after) low = middle + 1
    else high = middle
  }
  return low
}

/** Goes on with a walk until its time is over. */
function runFor<T>(steps: Generator<void, T>, ms: number): IteratorResult<void, T> {
  const since = performance.now()
  let step = steps.next()
  while (step.done !== true && performance.now() - since < ms) step = steps.next()
  return step
}
