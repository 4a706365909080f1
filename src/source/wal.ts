import {setImmediate as breathe} from 'node:timers/promises'

// The write-ahead log: https://sqlite.org/fileformat2.html#the_write_ahead_log

/** How far a WAL is committed for everybody to see, and how far it has been written back. */
export type WalEnd = {
  readonly salt1: number
  readonly salt2: number
  /** Committed frames. */
  readonly frames: number
  /** Pages in the database as of the last of them; 0 when nobody knows. */
  readonly pageCount: number
  /** Commits since the index was made. */
  readonly commits: number
  /** Frames that are in the database file. */
  readonly backfilled: number
  /** Frames that are there, or are being written there. */
  readonly attempted: number
}

/** Where a WAL is: it begins anew with other salts whenever it has been checkpointed and written again. */
export type WalPlace = {
  readonly salt1: number
  readonly salt2: number
  /** Committed frames read so far. */
  readonly frames: number
  /** Running checksum behind them. */
  readonly sum1: number
  readonly sum2: number
}

/** Frames of a WAL, by the page that they hold the newest version of. */
export type WalFrames = {
  readonly place: WalPlace
  readonly pages: ReadonlyMap<number, number>
  /** How many commits ended in them. */
  readonly commits: number
}

/** Bytes of the WAL's index that say where the WAL ends, and what checkpoints have done. */
export const WAL_INDEX_BYTES = 132
const HEADER_BYTES = 32
export const FRAME_HEADER_BYTES = 24

/**
 * The end of the WAL as its index tells it, which is what the next transaction of any reader will see at least. The log
 * itself does not tell: a commit is written there, and synced, before the index says so, and a transaction that begins
 * in between does not see it.
 *
 * @param index the first {@link WAL_INDEX_BYTES} of the `-shm` file: https://sqlite.org/walformat.html#the_wal_index_file_format
 * @returns `undefined` while the index is being written, and when it makes no sense.
 */
export function walEnd(index: Buffer): WalEnd | undefined {
  const [first, second] = [index.subarray(0, 48), index.subarray(48, 96)]
  if (index.length < WAL_INDEX_BYTES || !first.equals(second) || first[12] !== 1) return undefined
  const word = (at: number) => (isLittleEndianHost ? index.readUInt32LE(at) : index.readUInt32BE(at))
  const [sum1, sum2] = checksum(first, 0, 40, 0, 0, !isLittleEndianHost)
  if (word(40) !== sum1 || word(44) !== sum2) return undefined
  return {
    // As they are in the log: these two are not in the host's order.
    salt1: first.readUInt32BE(32),
    salt2: first.readUInt32BE(36),
    frames: word(16),
    pageCount: word(20),
    commits: word(8),
    backfilled: word(96),
    attempted: word(128),
  }
}

/**
 * Whether the log goes on behind its end: with a commit that is being written, with one that was never finished, or
 * with one that this index does not know of.
 */
export function goesOn(
  read: (buffer: Buffer, position: number) => number,
  {salt1, salt2, frames}: Pick<WalEnd, 'salt1' | 'salt2' | 'frames'>,
): boolean {
  const header = Buffer.alloc(HEADER_BYTES)
  if (read(header, 0) < HEADER_BYTES) return false
  const frame = Buffer.alloc(FRAME_HEADER_BYTES)
  if (read(frame, frameOffset(frames + 1, header.readUInt32BE(8))) < FRAME_HEADER_BYTES) return false
  // An index that was made for an empty log does not know what this one is called.
  const isNamed = salt1 !== 0 || salt2 !== 0
  const [of1, of2] = isNamed ? [salt1, salt2] : [header.readUInt32BE(16), header.readUInt32BE(20)]
  return frame.readUInt32BE(8) === of1 && frame.readUInt32BE(12) === of2
}

/** @returns the offset of a frame in the WAL: its header, then its page. Frames count from 1. */
export function frameOffset(frame: number, pageSize: number): number {
  return HEADER_BYTES + (frame - 1) * (FRAME_HEADER_BYTES + pageSize)
}

/** @returns whether the header of a frame says that it holds `page`, and is of the log with these salts. */
export function isFrameOf(header: Buffer, page: number, {salt1, salt2}: WalPlace): boolean {
  return (
    header.readUInt32BE(0) === page && header.readUInt32BE(8) === salt1 && header.readUInt32BE(12) === salt2
  )
}

/**
 * Reads the frames behind `since` (all of them without it) up to `end`, along the chain of checksums.
 *
 * @param read fills the buffer from a position of the WAL file and says how many bytes there were.
 * @returns `undefined` when the chain does not lead from `since` to `end`: the log has begun anew, or lost frames when
 * its machine stopped.
 */
export async function readFrames(
  read: (buffer: Buffer, position: number) => number,
  pageSize: number,
  end: Pick<WalEnd, 'salt1' | 'salt2' | 'frames'>,
  since: WalPlace | undefined,
  signal: AbortSignal,
): Promise<WalFrames | undefined> {
  const {salt1, salt2} = end
  const pages = new Map<number, number>()
  // The header of a log that has just begun anew is written with its first frame.
  if (end.frames === 0) return {place: {salt1, salt2, frames: 0, sum1: 0, sum2: 0}, pages, commits: 0}
  const start = readStart(read, pageSize, end)
  if (start === undefined) return undefined
  const from = since === undefined || since.frames === 0 ? start.place : since
  if (from.salt1 !== salt1 || from.salt2 !== salt2 || from.frames > end.frames) return undefined
  if (from.frames > 0 && !isEndAt(read, pageSize, from)) return undefined
  let {sum1, sum2} = from
  let commits = 0
  let frame = from.frames + 1
  const frameBytes = FRAME_HEADER_BYTES + pageSize
  const mostFrames = Math.max(1, Math.floor((1024 * 1024) / frameBytes))
  // Usually there are few new ones, and memory outside the heap makes the collector come often.
  const block = Buffer.allocUnsafe(frameBytes * Math.min(mostFrames, end.frames - from.frames))
  while (frame <= end.frames) {
    const length = read(block, frameOffset(frame, pageSize))
    if (length < frameBytes) return undefined
    for (let at = 0; at + frameBytes <= length && frame <= end.frames; at += frameBytes, frame++) {
      ;[sum1, sum2] = checksum(block, at, 8, sum1, sum2, start.isBigEndian)
      ;[sum1, sum2] = checksum(block, at + FRAME_HEADER_BYTES, pageSize, sum1, sum2, start.isBigEndian)
      const isChained = block.readUInt32BE(at + 16) === sum1 && block.readUInt32BE(at + 20) === sum2
      const page = block.readUInt32BE(at)
      if (!isChained || page === 0 || !isFrameOf(block.subarray(at), page, from)) return undefined
      pages.set(page, frame)
      if (block.readUInt32BE(at + 4) !== 0) commits++
    }
    if (frame <= end.frames) await breathe(undefined, {signal})
  }
  return {place: {salt1, salt2, frames: end.frames, sum1, sum2}, pages, commits}
}

/** Whether the frames up to `place` are still those that were read: the last one's checksum is of all of them. */
function isEndAt(
  read: (buffer: Buffer, position: number) => number,
  pageSize: number,
  {frames, sum1, sum2}: WalPlace,
): boolean {
  const header = Buffer.alloc(FRAME_HEADER_BYTES)
  if (read(header, frameOffset(frames, pageSize)) < FRAME_HEADER_BYTES) return false
  return header.readUInt32BE(16) === sum1 && header.readUInt32BE(20) === sum2
}

/** @returns where the log with the salts of `end` begins. */
function readStart(
  read: (buffer: Buffer, position: number) => number,
  pageSize: number,
  end: Pick<WalEnd, 'salt1' | 'salt2'>,
): {place: WalPlace; isBigEndian: boolean} | undefined {
  const header = Buffer.alloc(HEADER_BYTES)
  if (read(header, 0) < HEADER_BYTES) return undefined
  const magic = header.readUInt32BE(0)
  const isBigEndian = magic === 0x377f0683
  if (!isBigEndian && magic !== 0x377f0682) return undefined
  const [salt1, salt2] = [header.readUInt32BE(16), header.readUInt32BE(20)]
  const isOfEnd = salt1 === end.salt1 && salt2 === end.salt2 && header.readUInt32BE(8) === pageSize
  const [sum1, sum2] = checksum(header, 0, 24, 0, 0, isBigEndian)
  if (!isOfEnd || sum1 !== header.readUInt32BE(24) || sum2 !== header.readUInt32BE(28)) return undefined
  return {place: {salt1, salt2, frames: 0, sum1, sum2}, isBigEndian}
}

function checksum(
  bytes: Buffer,
  start: number,
  length: number,
  before1: number,
  before2: number,
  isBigEndian: boolean,
): [number, number] {
  let s1 = before1
  let s2 = before2
  if (isBigEndian) {
    for (let at = start; at < start + length; at += 8) {
      s1 = (s1 + bytes.readUInt32BE(at) + s2) >>> 0
      s2 = (s2 + bytes.readUInt32BE(at + 4) + s1) >>> 0
    }
    return [s1, s2]
  }
  // The usual case, through a typed view: x86 and ARM write little-endian sums.
  const at = bytes.byteOffset + start
  if (at % 4 === 0 && isLittleEndianHost) {
    const words = new Uint32Array(bytes.buffer, at, length >> 2)
    for (let i = 0; i < words.length; i += 2) {
      s1 = (s1 + (words[i] as number) + s2) >>> 0
      s2 = (s2 + (words[i + 1] as number) + s1) >>> 0
    }
    return [s1, s2]
  }
  for (let i = start; i < start + length; i += 8) {
    s1 = (s1 + bytes.readUInt32LE(i) + s2) >>> 0
    s2 = (s2 + bytes.readUInt32LE(i + 4) + s1) >>> 0
  }
  return [s1, s2]
}

const isLittleEndianHost = new Uint8Array(new Uint32Array([1]).buffer)[0] === 1
