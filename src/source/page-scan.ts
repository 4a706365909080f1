import xxhash from 'xxhash-wasm'
import type {Pace} from './capture.ts'
import {beginRead, endRead, type Source} from './open.ts'
import {parseHeader, pageKind, type FileHeader} from './page-format.ts'
import {MOST_PAGES, PageState} from './page-state.ts'
import {FRAME_HEADER_BYTES, frameOffset, isFrameOf, readFrames, type WalEnd, type WalPlace} from './wal.ts'
import {isSameFile, type SeenEnd} from './wal-end.ts'

const xxh = await xxhash()

/** What a page is remembered by. */
export const hashOf = (page: Uint8Array): bigint => xxh.h64Raw(page)

/** Bytes read under one lock in rollback mode: about a millisecond from the page cache. */
const CHUNK_BYTES = 4 * 1024 * 1024

/** Pages whose content has changed since the state was made, which now describes them as they were read. */
export type PageScan = {
  readonly header: FileHeader
  /** 1 for a page that has changed, by page number. */
  readonly dirty: Uint8Array
  readonly dirtyCount: number
  /** True when there was no state to compare with: every page counts as changed. */
  readonly isFirst: boolean
  /** The first four bytes of every page, on a first scan: where a chain goes on, if no commit came in between. */
  readonly links: Uint32Array | undefined
}

/** Reads single pages of a source, from the WAL where it has a newer version. */
export type PageReader = (page: number, buffer: Buffer, bytes: number) => boolean

/**
 * Hashes the pages of a source and compares them with `state`, which is brought up to date.
 *
 * In WAL mode the caller has a read transaction open, which pins what is read here without blocking anyone; when the
 * WAL has only grown, just its new frames are read. In rollback mode every chunk is read under a lock of its own.
 *
 * @param end where the log ends that the transaction sees, as {@link beginAtEnd} has said; absent in rollback mode.
 * @returns `undefined` when the file makes no sense or is too large: digests capture it then; and `'another log'` when
 * the log is not what its end says, because it has begun anew.
 */
export async function scanPages(
  source: Source,
  known: PageState | undefined,
  pace: Pace,
  end: SeenEnd | undefined,
  signal: AbortSignal,
): Promise<{scan: PageScan; state: PageState} | 'another log' | undefined> {
  const inTransaction = end !== undefined
  const sized = await locked(source, pace, inTransaction, () => readHeader(source))
  if (sized === undefined) return undefined
  const {header, fileBytes} = sized
  const {pageSize} = header
  const state = known?.pageSize === pageSize ? known : new PageState(pageSize)
  const isFirst = state !== known || state.pageCount === 0
  const wal = end === undefined ? undefined : await readWal(source, state, isFirst, end, signal)
  if (inTransaction && wal === undefined) return 'another log'
  if (!inTransaction) state.leaveWal()
  // An index that was made for an empty log does not know how large the file is.
  const logged = end?.pageCount ?? 0
  const pageCount = logged > 0 ? logged : Math.floor(fileBytes / pageSize)
  if (pageCount > MOST_PAGES || pageCount === 0) return undefined
  state.resize(pageCount)
  const marks = new Marks(state, isFirst)
  const read = pageReader(source, state)

  const chunkPages = Math.min(pageCount, Math.max(1, Math.floor(CHUNK_BYTES / pageSize)))
  if (wal?.news !== undefined) {
    const buffer = Buffer.allocUnsafe(pageSize)
    const look = (page: number) => {
      if (page > pageCount) return true
      if (!read(page, buffer, pageSize)) return false
      marks.look(page, buffer)
      return true
    }
    for (let at = 0; at < wal.news.length; at += chunkPages) {
      const some = wal.news.slice(at, at + chunkPages)
      if (!(await locked(source, pace, inTransaction, () => some.every(look)))) return undefined
    }
    return {scan: marks.scan(header), state}
  }

  const chunk = Buffer.allocUnsafe(chunkPages * pageSize)
  for (let page = 1; page <= pageCount; page += chunkPages) {
    const wanted = Math.min(chunkPages, pageCount - page + 1) * pageSize
    const length = await locked(source, pace, inTransaction, () =>
      source.read(chunk, (page - 1) * pageSize, wanted),
    )
    for (let at = 0; at < wanted; at += pageSize) {
      const number = page + at / pageSize
      const bytes = chunk.subarray(at, at + pageSize)
      // The file may have shrunk since, or end before pages that are in the log alone.
      if (state.walPages.has(number)) {
        if (!read(number, bytes, pageSize)) return undefined
      } else if (at + pageSize > length) continue
      marks.look(number, bytes)
    }
  }
  return {scan: marks.scan(header), state}
}

/**
 * Brings what `state` knows of the WAL up to its end.
 *
 * @returns when the log has only grown since the state was made, the pages in its new frames.
 */
async function readWal(
  source: Source,
  state: PageState,
  isFirst: boolean,
  end: SeenEnd,
  signal: AbortSignal,
): Promise<{news: readonly number[] | undefined} | undefined> {
  const frames = (upTo: WalEnd, since?: WalPlace) =>
    readFrames(source.readWal, state.pageSize, upTo, since, signal)
  let known = !isFirst && isSameLog(state.wal, end) ? state.wal : undefined
  let pages = state.walPages
  if (known !== undefined && known.frames > 0 && pages.size === 0) {
    // Which frame holds which page is known in memory only.
    const again = known.frames <= end.frames ? await frames({...end, frames: known.frames}) : undefined
    pages = new Map(again?.pages)
    if (again === undefined) known = undefined
  }
  let grown = known === undefined ? undefined : await frames(end, known)
  if (known !== undefined && grown !== undefined && !isSameFile(known.file, end, grown.commits))
    grown = undefined
  const found = grown ?? (await frames(end))
  if (found === undefined) return undefined
  state.walPages = grown === undefined ? new Map(found.pages) : pages
  for (const [page, frame] of grown?.pages ?? []) state.walPages.set(page, frame)
  state.wal = {...found.place, file: end.before}
  return {news: grown === undefined ? undefined : [...grown.pages.keys()]}
}

function isSameLog<T extends WalPlace>(known: T | undefined, {salt1, salt2}: WalEnd): known is T {
  // An index that was made for an empty log has no salts: that log has no name.
  return known?.salt1 === salt1 && known.salt2 === salt2 && (salt1 !== 0 || salt2 !== 0)
}

/** @returns a reader of single pages, to be used under a read lock. */
export function pageReader(source: Source, state: PageState): PageReader {
  const header = Buffer.alloc(FRAME_HEADER_BYTES)
  return (page, buffer, bytes) => {
    const {wal, walPages, pageSize, pageCount} = state
    if (page < 1 || page > pageCount) return false
    const wanted = buffer.subarray(0, bytes)
    const frame = walPages.get(page)
    if (frame !== undefined && wal !== undefined) {
      const offset = frameOffset(frame, pageSize)
      // The header last: whoever writes over a frame writes its header first.
      const isWhole =
        source.readWal(wanted, offset + FRAME_HEADER_BYTES) === bytes &&
        source.readWal(header, offset) === FRAME_HEADER_BYTES
      if (isWhole && isFrameOf(header, page, wal)) return true
      // A log begins anew only when all of it is in the file, and stays there until we have read.
    }
    return source.read(wanted, (page - 1) * pageSize, bytes) === bytes
  }
}

/**
 * Runs one short raw read under a read lock: in rollback mode the raw file can hold pages of an unfinished
 * transaction, and only SQLite's own lock keeps them out.
 */
export async function locked<T>(
  source: Source,
  pace: Pace,
  inTransaction: boolean,
  read: () => T,
): Promise<T> {
  const {result} = await pace.read(() => {
    if (inTransaction) return {result: read(), holdMs: 0}
    beginRead(source.db)
    const since = performance.now()
    try {
      return {result: read(), holdMs: performance.now() - since}
    } finally {
      endRead(source.db)
    }
  })
  return result
}

function readHeader(source: Source): {header: FileHeader; fileBytes: number} | undefined {
  const page = Buffer.alloc(100)
  if (source.read(page, 0, 100) < 100) return undefined
  const header = parseHeader(page)
  return header === undefined ? undefined : {header, fileBytes: source.size()}
}

/** Gathers which pages have changed while they stream by. */
class Marks {
  readonly #state: PageState
  readonly #isFirst: boolean
  readonly #dirty: Uint8Array
  readonly #links: Uint32Array | undefined
  #count = 0

  constructor(state: PageState, isFirst: boolean) {
    this.#state = state
    this.#isFirst = isFirst
    this.#dirty = new Uint8Array(state.pageCount + 1)
    this.#links = isFirst ? new Uint32Array(state.pageCount + 1) : undefined
  }

  look(number: number, page: Buffer): void {
    const state = this.#state
    const hash = hashOf(page)
    if (state.hashes[number] === hash && !this.#isFirst) return
    state.learn(number, hash, pageKind(page, number))
    this.#dirty[number] = 1
    this.#count++
    if (this.#links !== undefined) this.#links[number] = page.readUInt32BE(0)
  }

  scan(header: FileHeader): PageScan {
    return {
      header,
      dirty: this.#dirty,
      dirtyCount: this.#count,
      isFirst: this.#isFirst,
      links: this.#links,
    }
  }
}
