import {setImmediate as breathe} from 'node:timers/promises'
import xxhash from 'xxhash-wasm'
import type {Pace} from './capture.ts'
import type {Source} from './open.ts'
import {leafCells, parseHeader, pageKind, LEAF_TABLE, type FileHeader} from './page-format.ts'
import {MOST_PAGES, PageState} from './page-state.ts'
import {frameOffset, readFrames} from './wal.ts'

const pageHash = await xxhash()

/** Bytes read under one lock in rollback mode: about a millisecond from the page cache. */
const CHUNK_BYTES = 8 * 1024 * 1024

/** Pages whose content has changed since the state was made, which now describes them as they were read. */
export type PageScan = {
  readonly header: FileHeader
  /** 1 for a page that has changed. */
  readonly dirty: Uint8Array
  readonly dirtyCount: number
  /** True when there was no state to compare with: every page counts as changed. */
  readonly isFirst: boolean
  /** Chains of overflow pages found on a first scan: the first page of each, and the leaf it hangs on. */
  readonly chains: readonly (readonly [first: number, leaf: number])[]
  /** The first four bytes of every page, on a first scan. */
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
 * @returns `undefined` when the file's header makes no sense or the file is too large: digests capture it then.
 */
export async function scanPages(
  source: Source,
  known: PageState | undefined,
  pace: Pace,
  inTransaction: boolean,
  signal: AbortSignal,
): Promise<{scan: PageScan; state: PageState} | undefined> {
  const header = await locked(source, pace, inTransaction, () => readHeader(source))
  if (header === undefined) return undefined
  const {pageSize} = header
  const state = known?.pageSize === pageSize ? known : new PageState(pageSize)
  const isFirst = state !== known || state.pageCount === 0
  const frames = inTransaction
    ? readFrames(
        (buffer, position) => source.readWal(buffer, position),
        pageSize,
        state.walPages.size > 0 ? state.wal : undefined,
      )
    : undefined
  const goesOn =
    !isFirst &&
    frames !== undefined &&
    state.wal !== undefined &&
    frames.place.salt1 === state.wal.salt1 &&
    frames.place.salt2 === state.wal.salt2
  const seenFrames = goesOn ? (state.wal?.frames ?? 0) : 0
  if (!goesOn || state.walPages.size === 0) state.walPages = new Map()
  for (const [page, frame] of frames?.pages ?? []) state.walPages.set(page, frame)
  state.wal = frames?.place

  if (goesOn) {
    const pageCount = frames.pageCount === 0 ? state.pageCount : frames.pageCount
    if (pageCount > MOST_PAGES) return undefined
    const changed = [...state.walPages].filter(([, frame]) => frame > seenFrames)
    state.resize(Math.max(pageCount, 1))
    const marks = new Marks(state, isFirst, header.usableBytes)
    const buffer = Buffer.allocUnsafe(pageSize)
    const read = pageReader(source, state)
    for (const [page] of changed)
      if (page <= pageCount && read(page, buffer, pageSize)) marks.look(page, buffer)
    return {scan: marks.scan(header), state}
  }

  const pageCount =
    frames !== undefined && frames.pageCount > 0 ? frames.pageCount : Math.floor(source.size() / pageSize)
  if (pageCount > MOST_PAGES || pageCount === 0) return undefined
  state.resize(pageCount)
  const marks = new Marks(state, isFirst, header.usableBytes)
  const chunkPages = Math.max(1, Math.floor(CHUNK_BYTES / pageSize))
  const chunk = Buffer.allocUnsafe(chunkPages * pageSize)
  const one = Buffer.allocUnsafe(pageSize)
  const read = pageReader(source, state)
  for (let page = 1; page <= pageCount; page += chunkPages) {
    const wanted = Math.min(chunkPages, pageCount - page + 1) * pageSize
    const length = await locked(source, pace, inTransaction, () =>
      source.read(chunk, (page - 1) * pageSize, wanted),
    )
    for (let i = 0; i < chunkPages && page + i <= pageCount; i++) {
      const number = page + i
      const isInWal = state.walPages.has(number)
      if (isInWal ? read(number, one, pageSize) : (i + 1) * pageSize <= length)
        marks.look(number, isInWal ? one : chunk.subarray(i * pageSize, (i + 1) * pageSize))
    }
    await breathe(undefined, {signal})
  }
  return {scan: marks.scan(header), state}
}

/** @returns a reader of single pages, to be used under a read lock. */
export function pageReader(source: Source, state: PageState): PageReader {
  return (page, buffer, bytes) => {
    if (page < 1 || page > state.pageCount) return false
    const frame = state.walPages.get(page)
    const length =
      frame === undefined
        ? source.read(buffer, (page - 1) * state.pageSize, bytes)
        : source.readWal(buffer.subarray(0, bytes), frameOffset(frame, state.pageSize))
    return length >= bytes
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
  if (inTransaction) return read()
  const {result} = await pace.read(() => {
    const since = performance.now()
    source.db.exec('begin')
    try {
      source.db.prepare('select 1 from sqlite_schema limit 1').get()
      const result = read()
      return {result, holdMs: performance.now() - since}
    } finally {
      source.db.exec('commit')
    }
  })
  return result
}

function readHeader(source: Source): FileHeader | undefined {
  const page = Buffer.alloc(100)
  return source.read(page, 0, 100) === 100 ? parseHeader(page) : undefined
}

/** Gathers which pages have changed while they stream by. */
class Marks {
  readonly #state: PageState
  readonly #isFirst: boolean
  readonly #usableBytes: number
  readonly #dirty: Uint8Array
  readonly #links: Uint32Array | undefined
  readonly #chains: [number, number][] = []
  #count = 0

  constructor(state: PageState, isFirst: boolean, usableBytes: number) {
    this.#usableBytes = usableBytes
    this.#state = state
    this.#isFirst = isFirst
    this.#dirty = new Uint8Array(state.pageCount + 1)
    this.#links = isFirst ? new Uint32Array(state.pageCount + 1) : undefined
  }

  look(number: number, page: Buffer): void {
    const state = this.#state
    const hash = pageHash.h64Raw(page)
    if (state.hashes[number] === hash && !this.#isFirst) return
    state.hashes[number] = hash
    state.kinds[number] = pageKind(page, number)
    state.touch(number)
    this.#dirty[number] = 1
    this.#count++
    if (this.#links === undefined) return
    this.#links[number] = page.readUInt32BE(0)
    if (state.kinds[number] !== LEAF_TABLE) return
    for (const cell of leafCells(page, number, this.#usableBytes) ?? [])
      if (cell.overflow !== 0) this.#chains.push([cell.overflow, number])
  }

  scan(header: FileHeader): PageScan {
    return {
      header,
      dirty: this.#dirty,
      dirtyCount: this.#count,
      isFirst: this.#isFirst,
      chains: this.#chains,
      links: this.#links,
    }
  }
}
