import {children, INTERIOR_TABLE, LEAF_TABLE, leafCells, type Child} from './page-format.ts'
import {joined, type RowidRange} from './ranges.ts'
import type {PageReader, PageScan} from './page-scan.ts'
import {IS_LEAF, type Interior, type PageState} from './page-state.ts'

/** Where changed rows of a table can be. */
export type Suspects = {
  /** Ascending, not touching: every row in them is compared, and what is known there and gone is deleted. */
  readonly ranges: readonly RowidRange[]
  /** Deletes may be anywhere in the table: all its rowids are compared. */
  readonly allRowids: boolean
}

/** A page that does not fit the rest: torn, hostile, or a case nobody thought of. The whole table is compared then. */
class Surprise extends Error {}

/** How deep a b-tree can be: 2^31 pages of at least two children each, with room to spare. */
const DEEPEST = 40

/**
 * Maps changed pages to the rows that can have changed with them, table by table, one step at a time so that the
 * caller can let go of its lock between two steps.
 *
 * Complete, because every change of a row changes its leaf page or a page of its own overflow chain. Leaves are found
 * from above, by the rowids that the interior pages give them; overflow pages from below, by the chain that the state
 * remembers for every page. Chains of all rows touched are walked again, so that what is remembered stays true.
 */
export class PageMap {
  readonly #scan: PageScan
  readonly #state: PageState
  readonly #read: PageReader
  readonly #page: Buffer
  /** Leaves to look for: 1 changed, 2 a changed overflow page hangs on it. */
  readonly #wanted: Uint8Array
  /** First pages of chains with a changed page, by the leaf they hang on. */
  readonly #hanging = new Map<number, Set<number>>()
  readonly #interiors = new Map<number, Interior>()
  readonly #knewInteriors: boolean
  #interiorsChanged = false

  constructor(scan: PageScan, state: PageState, read: PageReader) {
    this.#scan = scan
    this.#state = state
    this.#read = read
    this.#page = Buffer.allocUnsafe(state.pageSize)
    this.#wanted = new Uint8Array(state.pageCount + 1)
    this.#knewInteriors = state.knowsInteriors
    for (let page = 1; page <= state.pageCount; page++) if (scan.dirty[page] === 1) this.#lookUp(page)
  }

  /**
   * Walks one table. Between two steps the caller may let go of its read lock.
   *
   * @returns the table's suspects, or `undefined` when all its rows are.
   */
  *table(rootPage: number): Generator<void, Suspects | undefined> {
    yield
    try {
      const walk = new TableWalk()
      yield* this.#walk(rootPage, {after: undefined, upTo: undefined}, walk, 0)
      if (this.#scan.isFirst) return undefined
      return {ranges: joined(walk.ranges), allRowids: walk.touched && !this.#knewInteriors}
    } catch (error) {
      if (error instanceof Surprise) return undefined
      throw error
    }
  }

  /** Ends the mapping: what was learned of chains and interior pages becomes the state. */
  finish(): void {
    if (this.#interiorsChanged || this.#interiors.size !== this.#state.interiors.size)
      this.#state.interiorsChanged = true
    this.#state.interiors = this.#interiors
    const {links, chains} = this.#scan
    if (links === undefined) return
    // A first scan: chains of every leaf that stands in a tree, along the links that were read with the pages.
    for (const [first, leaf] of chains) {
      if (this.#wanted[leaf] !== REACHED) continue
      let before = (leaf | IS_LEAF) >>> 0
      let steps = 0
      for (
        let page = first;
        page !== 0 && page <= this.#state.pageCount && steps++ <= this.#state.pageCount;
        page = links[page] as number
      ) {
        if (this.#state.up[page] === before) break
        this.#state.setUp(page, before)
        before = page
      }
    }
  }

  /** Where a changed page hangs, if it is in the chain of a row. */
  #lookUp(page: number): void {
    const {kinds, up, pageCount} = this.#state
    if (kinds[page] === LEAF_TABLE) this.#wanted[page] = CHANGED
    if (this.#scan.isFirst) return
    let at = page
    for (let steps = 0; steps <= pageCount; steps++) {
      const before = up[at] as number
      if (before === 0) return
      if (before >= IS_LEAF) {
        const leaf = before - IS_LEAF
        if (leaf === 0 || leaf > pageCount) return
        if (this.#wanted[leaf] === 0) this.#wanted[leaf] = HANGING
        const firsts = this.#hanging.get(leaf) ?? new Set()
        this.#hanging.set(leaf, firsts.add(at))
        return
      }
      at = before
    }
  }

  *#walk(page: number, range: RowidRange, walk: TableWalk, depth: number): Generator<void, void> {
    const kind = this.#state.kinds[page]
    if (page < 1 || page > this.#state.pageCount || depth > DEEPEST) throw new Surprise()
    if (kind === LEAF_TABLE) {
      this.#leaf(page, range, walk)
      yield
      return
    }
    if (kind !== INTERIOR_TABLE || this.#interiors.has(page)) throw new Surprise()
    const isChanged = this.#scan.dirty[page] === 1
    const known = this.#state.interiors.get(page)
    const found = known !== undefined && !isChanged ? known.children : this.#children(page)
    this.#interiors.set(page, {...range, children: found})
    if (known === undefined || isChanged) this.#interiorsChanged = true
    if (isChanged) {
      walk.touched = true
      if (known !== undefined) compareSpans(known, {...range, children: found}, walk.ranges)
    }
    let after = range.after
    for (const child of found) {
      // The last child reaches as far as its parent does. Leaves that nobody looks for are most of a table.
      const upTo = child.upTo ?? range.upTo
      if (!this.#isIdleLeaf(child.page)) yield* this.#walk(child.page, {after, upTo}, walk, depth + 1)
      after = child.upTo
    }
  }

  #isIdleLeaf(page: number): boolean {
    return this.#state.kinds[page] === LEAF_TABLE && this.#wanted[page] === 0 && !this.#scan.isFirst
  }

  #leaf(page: number, range: RowidRange, walk: TableWalk): void {
    const wanted = this.#wanted[page] as number
    if (this.#scan.isFirst) {
      this.#wanted[page] = REACHED
      return
    }
    if (wanted === 0) return
    walk.touched = true
    const cells = this.#readPage(page)
      ? leafCells(this.#page, page, this.#scan.header.usableBytes)
      : undefined
    if (cells === undefined) throw new Surprise()
    if (wanted === CHANGED) {
      walk.ranges.push(range)
      for (const cell of cells) if (cell.overflow !== 0) this.#followChain(page, cell.overflow)
      return
    }
    const firsts = this.#hanging.get(page)
    for (const cell of cells) {
      if (cell.overflow === 0 || firsts?.has(cell.overflow) !== true) continue
      walk.ranges.push({after: cell.rowid - 1n, upTo: cell.rowid})
      this.#followChain(page, cell.overflow)
      firsts.delete(cell.overflow)
    }
    // A chain that no row of this leaf has: compare them all.
    if (firsts !== undefined && firsts.size > 0) walk.ranges.push(range)
  }

  /** Walks the chain of one row as it is now, and remembers it. */
  #followChain(leaf: number, first: number): void {
    const state = this.#state
    const link = Buffer.allocUnsafe(4)
    let before = (leaf | IS_LEAF) >>> 0
    let steps = 0
    for (let page = first; page !== 0; page = link.readUInt32BE(0)) {
      if (page > state.pageCount || steps++ > state.pageCount || !this.#read(page, link, 4))
        throw new Surprise()
      state.setUp(page, before)
      before = page
    }
  }

  #children(page: number): readonly Child[] {
    const found = this.#readPage(page) ? children(this.#page, page, this.#scan.header.usableBytes) : undefined
    if (found === undefined) throw new Surprise()
    return found
  }

  #readPage(page: number): boolean {
    return this.#read(page, this.#page, this.#state.pageSize)
  }
}

const CHANGED = 1
const HANGING = 2
const REACHED = 3

class TableWalk {
  readonly ranges: RowidRange[] = []
  touched = false
}

/**
 * A child that is new, gone or responsible for other rowids: rows may have left there although no leaf that is there
 * now has changed. The rowids of such children are suspects.
 */
function compareSpans(before: Interior, now: Interior, ranges: RowidRange[]): void {
  const spans = (interior: Interior) => {
    let after = interior.after
    return interior.children.map(child => {
      const span = {after, upTo: child.upTo ?? interior.upTo, page: child.page}
      after = child.upTo
      return span
    })
  }
  const name = (span: RowidRange & {page: number}) =>
    `${span.page} ${String(span.after)} ${String(span.upTo)}`
  const [old, fresh] = [spans(before), spans(now)]
  const [oldNames, freshNames] = [new Set(old.map(name)), new Set(fresh.map(name))]
  for (const span of old) if (!freshNames.has(name(span))) ranges.push({after: span.after, upTo: span.upTo})
  for (const span of fresh) if (!oldNames.has(name(span))) ranges.push({after: span.after, upTo: span.upTo})
}
