import type {Child} from './page-format.ts'
import type {WalPlace} from './wal.ts'
import type {FileBefore} from './wal-end.ts'

/** The mark that says: the page before this one in its chain is the leaf that the row stands on. */
export const IS_LEAF = 0x8000_0000

/** Files of more pages than this (8 TB of 4 KB pages) are captured by digests alone. */
export const MOST_PAGES = 0x7fff_ffff

/** An interior page as it was scanned last, with the rowids it is responsible for. */
export type Interior = {
  readonly after: bigint | undefined
  readonly upTo: bigint | undefined
  readonly children: readonly Child[]
}

/**
 * What the last scan knew of every page: its hash, its kind and, for overflow pages, the page before it in its chain.
 * Never newer than the rows that were read after it: docs/concepts.md, "Capture by pages".
 */
export class PageState {
  readonly pageSize: number
  /** Which save of the state this is; `undefined` before the first. */
  token: string | undefined
  /** What the schema was: pages of another one may be of other tables, and their rows have other columns. */
  schema: string | undefined
  pageCount = 0
  hashes: BigUint64Array
  kinds: Uint8Array
  /** Number of the page before, with {@link IS_LEAF} when that one is a leaf; 0 for pages in no chain. */
  up: Uint32Array
  /** How far the WAL was read; `undefined` in rollback mode, and when it has to be read whole. */
  wal: (WalPlace & {readonly file: FileBefore}) | undefined
  /** Newest frame of each page in the WAL. Kept in memory only. */
  walPages = new Map<number, number>()
  /** Tables' interior pages: all rowids below one that is not known are suspects. */
  interiors: ReadonlyMap<number, Interior> = new Map()
  /** Those that have changed or gone since the state was saved. */
  readonly changedInteriors = new Set<number>()
  /** Pages whose hash, kind or chain has changed since the state was saved, by part. */
  readonly changedParts = new Set<number>()
  /**
   * Pages whose follower in a chain was met behind another one since. If what was met was no state of the file, or is
   * taken back, only they still lead to the row that it belongs to.
   */
  readonly bereft = new Set<number>()

  constructor(pageSize: number) {
    this.pageSize = pageSize
    this.hashes = new BigUint64Array(0)
    this.kinds = new Uint8Array(0)
    this.up = new Uint32Array(0)
  }

  /** One that can be brought up to date without this one's taking part. */
  copy(): PageState {
    const copy = new PageState(this.pageSize)
    copy.schema = this.schema
    copy.pageCount = this.pageCount
    copy.hashes = this.hashes.slice()
    copy.kinds = this.kinds.slice()
    copy.up = this.up.slice()
    copy.wal = this.wal
    copy.walPages = new Map(this.walPages)
    copy.interiors = new Map(this.interiors)
    return copy
  }

  /** Makes room for, or cuts down to, so many pages; new ones are unknown, and those before them in a chain bereft. */
  resize(pageCount: number): void {
    if (pageCount + 1 > this.hashes.length) {
      const length = Math.max(pageCount + 1, Math.ceil(this.hashes.length * 1.25))
      this.hashes = grown(this.hashes, new BigUint64Array(length))
      this.kinds = grown(this.kinds, new Uint8Array(length))
      this.up = grown(this.up, new Uint32Array(length))
    }
    for (let page = pageCount + 1; page <= this.pageCount; page++) {
      this.hashes[page] = 0n
      this.kinds[page] = 0
      this.setUp(page, 0)
      this.touch(page)
    }
    this.pageCount = pageCount
  }

  /** The file has no log now. */
  leaveWal(): void {
    this.wal = undefined
    this.walPages = new Map()
  }

  touch(page: number): void {
    this.changedParts.add(Math.floor(page / PART_PAGES))
  }

  /** Makes the next scan find these pages changed once more, and the {@link bereft}: they are as unknown as new ones. */
  unlearn(pages: Iterable<number>): void {
    for (const some of [pages, this.bereft])
      for (const page of some) {
        if (page > this.pageCount) continue
        this.hashes[page] = 0n
        this.touch(page)
      }
    this.bereft.clear()
  }

  /** Remembers a page as it is. */
  learn(page: number, hash: bigint, kind: number): void {
    this.hashes[page] = hash
    this.kinds[page] = kind
    this.touch(page)
  }

  setUp(page: number, before: number): void {
    const was = this.up[page] as number
    if (was === before) return
    if (was !== 0) this.bereft.add(was >= IS_LEAF ? was - IS_LEAF : was)
    this.up[page] = before
    this.touch(page)
  }

  keepInteriors(interiors: ReadonlyMap<number, Interior>): void {
    for (const [page, interior] of interiors)
      if (this.interiors.get(page) !== interior) this.changedInteriors.add(page)
    for (const page of this.interiors.keys()) if (!interiors.has(page)) this.changedInteriors.add(page)
    this.interiors = interiors
  }

  /** One part as bytes, to be kept: hashes, then chains, then kinds. */
  part(index: number): Uint8Array {
    const [from, to] = [index * PART_PAGES, Math.min((index + 1) * PART_PAGES, this.pageCount + 1)]
    const count = Math.max(0, to - from)
    const bytes = new Uint8Array(count * 13)
    bytes.set(new Uint8Array(this.hashes.buffer, from * 8, count * 8))
    bytes.set(new Uint8Array(this.up.buffer, from * 4, count * 4), count * 8)
    bytes.set(this.kinds.subarray(from, from + count), count * 12)
    return bytes
  }

  /** Takes back what {@link part} gave. */
  loadPart(index: number, bytes: Uint8Array): void {
    const count = bytes.byteLength / 13
    const from = index * PART_PAGES
    if (!Number.isInteger(count) || from + count > this.hashes.length)
      throw new Error(`page state of ${bytes.byteLength} bytes does not fit`)
    new Uint8Array(this.hashes.buffer, from * 8, count * 8).set(bytes.subarray(0, count * 8))
    new Uint8Array(this.up.buffer, from * 4, count * 4).set(bytes.subarray(count * 8, count * 12))
    this.kinds.set(bytes.subarray(count * 12), from)
  }
}

/** Pages kept together: a change anywhere in them writes all of them, 1.7 KB. */
export const PART_PAGES = 128

const UNBOUNDED = {after: 1, upTo: 2}
const CHILD_BYTES = 13

/** @returns an interior page as bytes, to be kept. */
export function interiorBytes({after, upTo, children}: Interior): Uint8Array {
  const bytes = Buffer.alloc(17 + children.length * CHILD_BYTES)
  bytes[0] = (after === undefined ? UNBOUNDED.after : 0) | (upTo === undefined ? UNBOUNDED.upTo : 0)
  bytes.writeBigInt64LE(after ?? 0n, 1)
  bytes.writeBigInt64LE(upTo ?? 0n, 9)
  for (const [i, child] of children.entries()) {
    const at = 17 + i * CHILD_BYTES
    bytes.writeUInt32LE(child.page, at)
    bytes[at + 4] = child.upTo === undefined ? UNBOUNDED.upTo : 0
    bytes.writeBigInt64LE(child.upTo ?? 0n, at + 5)
  }
  return bytes
}

/** Takes back what {@link interiorBytes} gave. */
export function interiorFrom(stored: Uint8Array): Interior {
  const bytes = Buffer.from(stored.buffer, stored.byteOffset, stored.byteLength)
  const flags = bytes.readUInt8(0)
  const count = (bytes.length - 17) / CHILD_BYTES
  return {
    after: (flags & UNBOUNDED.after) === 0 ? bytes.readBigInt64LE(1) : undefined,
    upTo: (flags & UNBOUNDED.upTo) === 0 ? bytes.readBigInt64LE(9) : undefined,
    children: Array.from({length: count}, (_, i) => {
      const at = 17 + i * CHILD_BYTES
      const isBounded = bytes[at + 4] === 0
      return {page: bytes.readUInt32LE(at), upTo: isBounded ? bytes.readBigInt64LE(at + 5) : undefined}
    }),
  }
}

function grown<T extends BigUint64Array | Uint8Array | Uint32Array>(from: T, to: T): T {
  ;(to as Uint8Array).set(from as Uint8Array)
  return to
}
