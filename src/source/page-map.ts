import {chainsOf, children, INTERIOR_TABLE, LEAF_TABLE} from './page-format.ts'
import {everything, type RowidRange} from './ranges.ts'
import type {PageReader, PageScan} from './page-scan.ts'
import {IS_LEAF, type Interior, type PageState} from './page-state.ts'

/** A page that does not fit the rest: torn, hostile, or a case nobody thought of. The whole table is compared then. */
class Surprise extends Error {}

/** How deep a b-tree can be: 2^31 pages of at least two children each, with room to spare. */
const DEEPEST = 40

/** A row of 256 MB has a chain of 65,000 pages: too many for one step. */
const LINKS_A_STEP = 256

/**
 * Maps changed pages to the rows that can have changed with them, table by table, one step at a time so that the
 * caller can let go of its lock between two steps.
 *
 * Complete, because every change of a row changes its leaf page or a page of its own overflow chain. Leaves are found
 * from above, by the rowids that the interior pages give them; overflow pages from below, by the chain that the state
 * remembers for every page. A page can also come into a tree as it is, when it is used again and by chance holds what
 * it held, and rows may leave without a trace on any page that is there now: so a child that an interior page did not have,
 * or not for these rowids, counts as changed with all that is below it. Chains of all rows touched are walked again,
 * which keeps what is remembered true; where that cannot be done, {@link finish} makes the next scan meet the same pages.
 */
export class PageMap {
  readonly #scan: PageScan
  readonly #state: PageState
  readonly #read: PageReader
  readonly #page: Buffer
  /** 1 for a leaf that has changed, or on which a changed overflow page hangs. */
  readonly #wanted: Uint8Array
  /** Pages whose way up to their leaf has been gone. */
  readonly #lookedUp: Uint8Array
  readonly #interiors = new Map<number, Interior>()
  #isSurprised = false

  constructor(scan: PageScan, state: PageState, read: PageReader) {
    this.#scan = scan
    this.#state = state
    this.#read = read
    this.#page = Buffer.allocUnsafe(state.pageSize)
    this.#wanted = new Uint8Array(state.pageCount + 1)
    this.#lookedUp = new Uint8Array(state.pageCount + 1)
    for (let page = 1; page <= state.pageCount; page++) if (scan.dirty[page] === 1) this.#lookUp(page)
  }

  /**
   * Walks one table. Between two steps the caller may let go of its read lock.
   *
   * @returns the leaves whose rows can have changed, ascending, or `undefined` when the walk did not come to its end.
   */
  *table(rootPage: number): Generator<void, readonly SuspectLeaf[] | undefined> {
    yield
    const walk: TableWalk = {leaves: [], interiors: []}
    try {
      yield* this.#walk(rootPage, everything, walk, false, 0)
      return walk.leaves
    } catch (error) {
      if (!(error instanceof Surprise)) throw error
      // Interior pages that were not looked at last time make all rows below them suspects next time.
      for (const page of walk.interiors) this.#interiors.delete(page)
      this.#isSurprised = true
      return undefined
    }
  }

  /** Ends the mapping: what was learned of chains and interior pages becomes the state. */
  finish(): void {
    this.#state.keepInteriors(this.#interiors)
    const {dirty} = this.#scan
    if (!this.#isSurprised) return
    this.#state.unlearn([...dirty.keys()].filter(page => dirty[page] === 1))
    // Else it would look at what is new in the log alone.
    this.#state.leaveWal()
  }

  /** Where a changed page hangs, if it is in the chain of a row. */
  #lookUp(page: number): void {
    const {kinds, up, pageCount} = this.#state
    if (kinds[page] === LEAF_TABLE) this.#wanted[page] = 1
    for (let at = page; this.#lookedUp[at] === 0;) {
      this.#lookedUp[at] = 1
      const before = up[at] as number
      const isLeaf = before >= IS_LEAF
      const next = isLeaf ? before - IS_LEAF : before
      if (next === 0 || next > pageCount) return
      if (isLeaf) this.#wanted[next] = 1
      if (isLeaf) return
      at = next
    }
  }

  /** @param isNew whether the page stands where it did not, so that whatever it holds counts as changed. */
  *#walk(
    page: number,
    range: RowidRange,
    walk: TableWalk,
    isNew: boolean,
    depth: number,
  ): Generator<void, void> {
    const {kinds, pageCount, interiors} = this.#state
    if (page < 1 || page > pageCount || depth > DEEPEST) throw new Surprise()
    if (kinds[page] === LEAF_TABLE) {
      if (isNew) this.#wanted[page] = 1
      if (this.#wanted[page] === 1) yield* this.#leaf(page, range, walk)
      yield
      return
    }
    if (kinds[page] !== INTERIOR_TABLE || this.#interiors.has(page)) throw new Surprise()
    const known = isNew ? undefined : interiors.get(page)
    const isSame = known !== undefined && this.#scan.dirty[page] !== 1
    const now: Interior = isSame ? known : {...range, children: this.#parse(page, children)}
    this.#interiors.set(page, now)
    walk.interiors.push(page)
    const before = isSame ? undefined : new Set(known === undefined ? [] : [...spansOf(known)].map(nameOf))
    let {after} = now
    for (const {page: child, upTo = now.upTo} of now.children) {
      // Leaves that nobody looks for are most of a table.
      const isIdle = this.#isIdleLeaf(child)
      if (!isIdle || before !== undefined) {
        const span = {page: child, after, upTo}
        const isFresh = before?.has(nameOf(span)) === false
        if (isFresh || !isIdle) yield* this.#walk(child, span, walk, isFresh, depth + 1)
      }
      after = upTo
    }
    yield
  }

  #isIdleLeaf(page: number): boolean {
    return this.#state.kinds[page] === LEAF_TABLE && this.#wanted[page] === 0
  }

  *#leaf(page: number, range: RowidRange, walk: TableWalk): Generator<void, void> {
    walk.leaves.push({page, after: range.after, upTo: range.upTo})
    for (const first of this.#parse(page, chainsOf)) yield* this.#followChain(page, first)
  }

  /** Walks the chain of one row as it is now, and remembers it. */
  *#followChain(leaf: number, first: number): Generator<void, void> {
    const state = this.#state
    const {links} = this.#scan
    let before = (leaf | IS_LEAF) >>> 0
    let steps = 0
    for (let page = first; page !== 0;) {
      if (page > state.pageCount || steps++ > state.pageCount) throw new Surprise()
      if (steps % LINKS_A_STEP === 0) yield
      state.setUp(page, before)
      before = page
      page = links?.[page] ?? this.#link(page)
    }
  }

  #link(page: number): number {
    if (!this.#read(page, this.#page, 4)) throw new Surprise()
    return this.#page.readUInt32BE(0)
  }

  #parse<T>(page: number, parse: (bytes: Buffer, page: number, usableBytes: number) => T | undefined): T {
    const isRead = this.#read(page, this.#page, this.#state.pageSize)
    const parsed = isRead ? parse(this.#page, page, this.#scan.header.usableBytes) : undefined
    if (parsed === undefined) throw new Surprise()
    return parsed
  }
}

/** A leaf page whose rows can have changed, and the rowids it is responsible for: what is known there and gone is deleted. */
export type SuspectLeaf = Span

/** What the walk of one table has found, and the interior pages it went by. */
type TableWalk = {readonly leaves: SuspectLeaf[]; readonly interiors: number[]}

/** A page and the rowids it is responsible for. */
type Span = RowidRange & {readonly page: number}

/** The children of an interior page. The last one reaches as far as its parent does. */
function* spansOf({after: start, upTo: end, children}: Interior): Generator<Span, void> {
  let after = start
  for (const {page, upTo = end} of children) {
    yield {page, after, upTo}
    after = upTo
  }
}

function nameOf({page, after, upTo}: Span): string {
  return `${page} ${String(after)} ${String(upTo)}`
}
