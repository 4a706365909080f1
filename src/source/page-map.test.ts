import assert from 'node:assert/strict'
import {test} from 'vitest'
import {pageKind} from './page-format.ts'
import {PageMap, type SuspectLeaf} from './page-map.ts'
import {IS_LEAF, PageState} from './page-state.ts'
import {joined, type RowidRange} from './ranges.ts'

// Trees of hand-made pages: what a real app brings about once in many thousand writes.

const pageSize = 512

/** Pages of a file by their numbers, from 2 on; changing one is what an app does. */
class Pages {
  readonly state = new PageState(pageSize)
  /** Whether no page can be read any more after the pages were scanned. */
  isGone = false
  /** After how many steps the last walk was over. */
  steps = 0
  readonly #pages = new Map<number, Buffer>()

  set(number: number, page: Buffer): void {
    this.#pages.set(number, page)
  }

  /** The file ends before this page. */
  cutOff(number: number): void {
    this.#pages.delete(number)
  }

  /**
   * Looks at the table whose tree begins at page 2.
   *
   * @param meanwhile called between the scan of the pages and the walk.
   */
  look(meanwhile?: () => void): {ranges: readonly RowidRange[]; leaves: readonly SuspectLeaf[]} | undefined {
    const count = Math.max(...this.#pages.keys())
    const {state} = this
    const isFirst = state.pageCount === 0
    state.resize(count)
    const dirty = new Uint8Array(count + 1)
    for (const [number, page] of this.#pages) {
      const hash = BigInt(page.readUInt32BE(0)) * 4_294_967_296n + BigInt(page.readUInt32BE(pageSize - 4) + 1)
      if (state.hashes[number] === hash) continue
      state.learn(number, hash, pageKind(page, number))
      dirty[number] = 1
    }
    const header = {pageSize, usableBytes: pageSize, isWal: false, pageCount: count}
    const map = new PageMap(
      {header, dirty, dirtyCount: dirty.reduce((n, is) => n + is, 0), isFirst, links: undefined},
      state,
      (page, buffer, bytes) =>
        !this.isGone && (this.#pages.get(page)?.copy(buffer, 0, 0, bytes) ?? 0) === bytes,
    )
    meanwhile?.()
    const steps = map.table(2)
    let step = steps.next()
    for (this.steps = 1; step.done !== true; this.steps++) step = steps.next()
    map.finish()
    const leaves = step.value
    return leaves && {ranges: joined(leaves), leaves}
  }
}

let stamp = 0

const ROW_BYTES = 600

/** A leaf with one long row for each overflow page named. */
function leaf(...rows: readonly (readonly [rowid: number, overflow: number])[]): Buffer {
  const page = Buffer.alloc(pageSize)
  page[0] = 13
  page.writeUInt16BE(rows.length, 3)
  let at = pageSize - 8
  for (const [i, [rowid, overflow]] of rows.entries()) {
    const local = localBytes(ROW_BYTES)
    at -= 3 + local + 4
    page.writeUInt16BE(at, 8 + i * 2)
    page.set([0x80 | (ROW_BYTES >> 7), ROW_BYTES & 127, rowid], at)
    page.writeUInt32BE(overflow, at + 3 + local)
  }
  page.writeUInt32BE(++stamp, pageSize - 4)
  return page
}

/** https://sqlite.org/fileformat2.html#b_tree_pages, for a row that does not fit */
function localBytes(size: number): number {
  const least = Math.floor(((pageSize - 12) * 32) / 255) - 23
  const rest = least + ((size - least) % (pageSize - 4))
  return rest <= pageSize - 35 ? rest : least
}

function interior(last: number, ...children: readonly (readonly [page: number, upTo: number])[]): Buffer {
  const page = Buffer.alloc(pageSize)
  page[0] = 5
  page.writeUInt16BE(children.length, 3)
  page.writeUInt32BE(last, 8)
  for (const [i, [child, upTo]] of children.entries()) {
    const at = pageSize - 12 - 8 * i
    page.writeUInt16BE(at, 12 + i * 2)
    page.writeUInt32BE(child, at)
    page[at + 4] = upTo
  }
  page.writeUInt32BE(++stamp, pageSize - 4)
  return page
}

function overflow(next: number): Buffer {
  const page = Buffer.alloc(pageSize)
  page.writeUInt32BE(next, 0)
  page.writeUInt32BE(++stamp, pageSize - 4)
  return page
}

test('a change of an overflow page leads to its leaf, and of a leaf to its rows', () => {
  const pages = new Pages()
  pages.set(2, interior(4, [3, 10]))
  pages.set(3, leaf([5, 5]))
  pages.set(4, leaf([15, 6]))
  pages.set(5, overflow(0))
  pages.set(6, overflow(7))
  pages.set(7, overflow(0))
  pages.look()
  assert.deepEqual(pages.look(), {ranges: [], leaves: []})
  pages.set(7, overflow(0))
  assert.deepEqual(pages.look()?.ranges, [{after: 10n, upTo: undefined}])
  pages.set(3, leaf([5, 5], [6, 8]))
  pages.set(8, overflow(0))
  assert.deepEqual(pages.look()?.ranges, [{after: undefined, upTo: 10n}])
  pages.set(8, overflow(0))
  assert.deepEqual(pages.look()?.leaves, [{page: 3, after: undefined, upTo: 10n}])
})

test('a leaf that comes back into the tree as it was has its rows compared and its chains known', () => {
  const pages = new Pages()
  const [with3, without3] = [interior(4, [3, 10]), interior(4)]
  pages.set(2, with3)
  pages.set(3, leaf([5, 5]))
  pages.set(4, leaf([15, 6]))
  pages.set(5, overflow(0))
  pages.set(6, overflow(0))
  pages.look()
  // Its row goes, and its chain passes to another; its page stays as it is among the free ones.
  pages.set(2, without3)
  pages.set(4, leaf([15, 6], [16, 5]))
  pages.look()
  assert.equal(pages.state.up[5], (4 | IS_LEAF) >>> 0)
  pages.set(4, leaf([15, 6]))
  pages.set(2, with3)
  assert.deepEqual(pages.look()?.leaves.at(0), {page: 3, after: undefined, upTo: 10n})
  pages.set(5, overflow(0))
  assert.deepEqual(pages.look()?.leaves, [{page: 3, after: undefined, upTo: 10n}])
})

test('after a walk that did not come to its end, what it has not seen is met once more', () => {
  const pages = new Pages()
  pages.set(2, interior(4, [3, 10]))
  pages.set(3, leaf([5, 5]))
  pages.set(4, leaf([15, 6]))
  for (const page of [5, 6, 7]) pages.set(page, overflow(0))
  pages.look()
  const torn = Buffer.from(leaf([5, 5]))
  torn.writeUInt16BE(60_000, 3)
  pages.set(3, torn)
  pages.set(4, leaf([15, 7]))
  assert.equal(pages.look(), undefined)
  pages.set(3, leaf([5, 5]))
  assert.deepEqual(pages.look()?.ranges, [{after: undefined, upTo: undefined}])
  pages.set(7, overflow(0))
  assert.deepEqual(pages.look()?.leaves, [{page: 4, after: 10n, upTo: undefined}])
})

test('that holds however often it is said', () => {
  const pages = new Pages()
  pages.set(2, leaf([1, 4]))
  for (const page of [3, 4]) pages.set(page, overflow(0))
  pages.look()
  pages.set(2, leaf([1, 3]))
  pages.isGone = true
  assert.equal(pages.look(), undefined)
  // As after a capture that the app has disturbed, too.
  pages.state.unlearn([2])
  pages.isGone = false
  assert.equal(pages.look()?.leaves.length, 1)
})

test('so is a leaf that could not be read when its turn came', () => {
  const pages = new Pages()
  pages.set(2, leaf([1, 4]))
  for (const page of [3, 4]) pages.set(page, overflow(0))
  pages.look()
  pages.set(2, leaf([1, 3]))
  pages.isGone = true
  assert.equal(pages.look(), undefined)
  pages.isGone = false
  assert.equal(pages.look()?.leaves.length, 1)
  pages.set(3, overflow(0))
  assert.equal(pages.look()?.leaves.length, 1)
})

test('rows are suspects where a leaf has gone, and wherever an interior page is new', () => {
  const pages = new Pages()
  pages.set(2, interior(5, [3, 10], [4, 20]))
  for (const page of [3, 4, 5]) pages.set(page, leaf())
  pages.look()
  pages.set(2, interior(5, [3, 10]))
  assert.deepEqual(pages.look()?.ranges, [{after: 10n, upTo: undefined}])
  // One level more: the root has one child, which has what it had.
  pages.set(2, interior(6))
  pages.set(6, interior(5, [3, 10]))
  assert.deepEqual(pages.look()?.ranges, [{after: undefined, upTo: undefined}])
})

test('a chain that was met on another leaf, and goes back, leads to its own', () => {
  const pages = new Pages()
  const own = leaf([5, 5])
  pages.set(2, interior(4, [3, 10]))
  pages.set(3, own)
  pages.set(4, leaf([15, 6]))
  for (const page of [5, 6]) pages.set(page, overflow(0))
  pages.look()
  pages.set(4, leaf([15, 6]))
  pages.look(() => {
    pages.set(3, leaf())
    pages.set(4, leaf([15, 6], [16, 5]))
  })
  assert.equal(pages.state.up[5], (4 | IS_LEAF) >>> 0)
  // The end of a capture that the app has disturbed.
  pages.state.unlearn([4])
  pages.set(3, own)
  pages.set(4, leaf([15, 6]))
  pages.look()
  pages.set(5, overflow(0))
  assert.deepEqual(pages.look()?.leaves, [{page: 3, after: undefined, upTo: 10n}])
})

test('a chain that was cut off with the end of the file, and is there again, leads to its leaf', () => {
  const pages = new Pages()
  pages.set(2, interior(4, [3, 10]))
  pages.set(3, leaf([5, 5]))
  pages.set(4, leaf())
  pages.set(5, overflow(0))
  pages.look()
  // While the pages are read, the app gives the end of the file back and takes it again: the leaf is what it was.
  pages.cutOff(5)
  pages.look()
  // The end of a capture that the app has disturbed.
  pages.state.unlearn([])
  pages.set(5, overflow(0))
  assert.deepEqual(pages.look()?.leaves, [{page: 3, after: undefined, upTo: 10n}])
})

test('a walk lets go of its lock within a long chain, and after each interior page', () => {
  const pages = new Pages()
  pages.set(2, leaf([1, 3]))
  for (let page = 3; page < 2_003; page++) pages.set(page, overflow(page < 2_002 ? page + 1 : 0))
  pages.look()
  assert.ok(pages.steps > 7, `${pages.steps} steps`)
  assert.equal(pages.state.up[2_002], 2_001)

  const wide = new Pages()
  wide.set(2, interior(12, ...Array.from({length: 9}, (_, i) => [3 + i, 10 * (i + 1)] as const)))
  for (let page = 3; page <= 12; page++) {
    wide.set(page, interior(page + 10))
    wide.set(page + 10, leaf())
  }
  wide.look()
  wide.look()
  assert.ok(wide.steps > 10, `${wide.steps} steps`)
})

test('trees that lead nowhere end', () => {
  for (const root of [interior(2), interior(99), interior(3, [2, 10]), interior(0)]) {
    const pages = new Pages()
    pages.set(2, root)
    pages.set(3, leaf([1, 4]))
    pages.set(4, overflow(4))
    assert.equal(pages.look(), undefined)
  }
})
