// The write-ahead log: https://sqlite.org/fileformat2.html#the_write_ahead_log

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

/** Frames of a WAL that are committed and unbroken. */
export type WalFrames = {
  readonly place: WalPlace
  /** Page number and the frame that holds its newest version, for the frames read now. */
  readonly pages: ReadonlyMap<number, number>
  /** Pages in the database as of the last commit; 0 when no frame was read. */
  readonly pageCount: number
}

const HEADER_BYTES = 32
const FRAME_HEADER_BYTES = 24

/** @returns the offset of a frame's page in the WAL; frames count from 1. */
export function frameOffset(frame: number, pageSize: number): number {
  return HEADER_BYTES + (frame - 1) * (FRAME_HEADER_BYTES + pageSize) + FRAME_HEADER_BYTES
}

/**
 * Reads the committed frames behind `since` (all of them without it).
 *
 * A frame counts when its salts are the header's and the checksum chain reaches it; what follows the last commit
 * frame does not. Reading stops at the first frame that does not fit: it is not written yet, or left from before.
 *
 * @param read fills the buffer from a position of the WAL file and says how many bytes there were.
 * @returns `undefined` when there is no valid WAL header; a `place` that does not go on from `since` when the WAL has
 * begun anew.
 */
export function readFrames(
  read: (buffer: Buffer, position: number) => number,
  pageSize: number,
  since: WalPlace | undefined,
): WalFrames | undefined {
  const header = Buffer.alloc(HEADER_BYTES)
  if (read(header, 0) < HEADER_BYTES) return undefined
  const magic = header.readUInt32BE(0)
  if (magic !== 0x377f0682 && magic !== 0x377f0683) return undefined
  if (header.readUInt32BE(8) !== pageSize) return undefined
  const isBigEndian = magic === 0x377f0683
  const [salt1, salt2] = [header.readUInt32BE(16), header.readUInt32BE(20)]
  const start = checksum(header, 0, 24, 0, 0, isBigEndian)
  if (start[0] !== header.readUInt32BE(24) || start[1] !== header.readUInt32BE(28)) return undefined

  const goesOn = since !== undefined && since.salt1 === salt1 && since.salt2 === salt2
  let [sum1, sum2] = goesOn ? [since.sum1, since.sum2] : start
  let place: WalPlace = goesOn ? since : {salt1, salt2, frames: 0, sum1, sum2}
  let pageCount = 0
  const pages = new Map<number, number>()
  let uncommitted: [number, number][] = []
  const frameBytes = FRAME_HEADER_BYTES + pageSize
  const block = Buffer.allocUnsafe(frameBytes * Math.max(1, Math.floor((1024 * 1024) / frameBytes)))
  for (let frame = place.frames + 1; ;) {
    const length = read(block, HEADER_BYTES + (frame - 1) * frameBytes)
    let at = 0
    for (; at + frameBytes <= length; at += frameBytes, frame++) {
      const number = block.readUInt32BE(at)
      if (number === 0 || block.readUInt32BE(at + 8) !== salt1 || block.readUInt32BE(at + 12) !== salt2)
        return {place, pages, pageCount}
      ;[sum1, sum2] = checksum(block, at, 8, sum1, sum2, isBigEndian)
      ;[sum1, sum2] = checksum(block, at + FRAME_HEADER_BYTES, pageSize, sum1, sum2, isBigEndian)
      if (sum1 !== block.readUInt32BE(at + 16) || sum2 !== block.readUInt32BE(at + 20))
        return {place, pages, pageCount}
      uncommitted.push([number, frame])
      const sizeAfterCommit = block.readUInt32BE(at + 4)
      if (sizeAfterCommit === 0) continue
      for (const [page, inFrame] of uncommitted) pages.set(page, inFrame)
      uncommitted = []
      pageCount = sizeAfterCommit
      place = {salt1, salt2, frames: frame, sum1, sum2}
    }
    if (length < block.length) return {place, pages, pageCount}
  }
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
