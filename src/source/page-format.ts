// The parts of SQLite's file format that tell which rows live on which page: https://sqlite.org/fileformat2.html
// Everything here may be handed a torn or hostile page: it answers `undefined`, it never throws and never loops.

/** What the first page says of the file. */
export type FileHeader = {
  readonly pageSize: number
  /** Bytes of a page that hold content: some are reserved, by encryption extensions mostly. */
  readonly usableBytes: number
  readonly isWal: boolean
  /** Pages in the file by its header; only meaningful in rollback mode. */
  readonly pageCount: number
}

/** One row on a table's leaf page. */
export type LeafCell = {
  readonly rowid: bigint
  /** First page of the chain that holds the rest of a long row; 0 when the row fits. */
  readonly overflow: number
}

/** A child of an interior page and the rowids below it: above `after`, up to `upTo` (absent: without that bound). */
export type Child = {
  readonly page: number
  readonly upTo: bigint | undefined
}

export const INTERIOR_TABLE = 5
export const LEAF_TABLE = 13

/** @returns what `page`, the first of the file, says; `undefined` when it is no such page. */
export function parseHeader(page: Buffer): FileHeader | undefined {
  if (page.length < 100 || page.toString('latin1', 0, 16) !== 'SQLite format 3\0') return undefined
  const stored = page.readUInt16BE(16)
  const pageSize = stored === 1 ? 65_536 : stored
  if (pageSize < 512 || (pageSize & (pageSize - 1)) !== 0) return undefined
  const usableBytes = pageSize - (page[20] as number)
  if (usableBytes < 480) return undefined
  return {pageSize, usableBytes, isWal: page[18] === 2 || page[19] === 2, pageCount: page.readUInt32BE(28)}
}

/** @returns the kind byte of a b-tree page. Page 1 begins behind the file's header. */
export function pageKind(page: Buffer, number: number): number {
  return page[number === 1 ? 100 : 0] as number
}

/** @returns the rows of a table's leaf page, or `undefined` when the page does not make sense. */
export function leafCells(page: Buffer, number: number, usableBytes: number): LeafCell[] | undefined {
  const cells: LeafCell[] = []
  const isWhole = visitCells(page, number, usableBytes, (overflow, rowidAt) => {
    const rowid = varint(page, rowidAt, usableBytes)
    if (rowid !== undefined) cells.push({rowid: BigInt.asIntN(64, rowid.value), overflow})
    return rowid !== undefined
  })
  return isWhole ? cells : undefined
}

/** @returns where the chains of a leaf page's long rows begin, or `undefined` when the page does not make sense. */
export function chainsOf(page: Buffer, number: number, usableBytes: number): number[] | undefined {
  const chains: number[] = []
  const isWhole = visitCells(page, number, usableBytes, overflow => {
    if (overflow !== 0) chains.push(overflow)
    return true
  })
  return isWhole ? chains : undefined
}

/** @returns false when the page does not make sense, or `visit` finds that it does not. */
function visitCells(
  page: Buffer,
  number: number,
  usableBytes: number,
  visit: (overflow: number, rowidAt: number) => boolean,
): boolean {
  const start = number === 1 ? 100 : 0
  if (page[start] !== LEAF_TABLE) return false
  const count = page.readUInt16BE(start + 3)
  if (start + 8 + count * 2 > usableBytes) return false
  for (let i = 0; i < count; i++) {
    let at = page.readUInt16BE(start + 8 + i * 2)
    let size = 0
    // The size of a row and its rowid are numbers of one to nine bytes; no row is as large as five bytes can say.
    for (let n = 1; ; n++) {
      const byte = page[at++]
      if (byte === undefined || n > 5) return false
      size = size * 128 + (byte & 127)
      if (byte < 128) break
    }
    const rowidAt = at
    for (let n = 1; n < 9 && (page[at] as number) >= 128; n++) at++
    const local = localBytes(size, usableBytes)
    const end = at + 1 + local
    if (size > 0x7fff_ffff || end > usableBytes) return false
    let overflow = 0
    if (local < size) {
      if (end + 4 > usableBytes) return false
      overflow = page.readUInt32BE(end)
      if (overflow === 0) return false
    }
    if (!visit(overflow, rowidAt)) return false
  }
  return true
}

/** @returns the children of a table's interior page from left to right, or `undefined` when it does not make sense. */
export function children(page: Buffer, number: number, usableBytes: number): Child[] | undefined {
  const start = number === 1 ? 100 : 0
  if (page[start] !== INTERIOR_TABLE) return undefined
  const count = page.readUInt16BE(start + 3)
  if (start + 12 + count * 2 > usableBytes) return undefined
  const found: Child[] = []
  for (let i = 0; i < count; i++) {
    const at = page.readUInt16BE(start + 12 + i * 2)
    if (at + 4 > usableBytes) return undefined
    const key = varint(page, at + 4, usableBytes)
    if (key === undefined) return undefined
    found.push({page: page.readUInt32BE(at), upTo: BigInt.asIntN(64, key.value)})
  }
  found.push({page: page.readUInt32BE(start + 8), upTo: undefined})
  return found
}

/** How many bytes of a table row of `size` bytes stand on the leaf itself. */
function localBytes(size: number, usableBytes: number): number {
  const most = usableBytes - 35
  if (size <= most) return size
  const least = Math.floor(((usableBytes - 12) * 32) / 255) - 23
  const rest = least + ((size - least) % (usableBytes - 4))
  return rest <= most ? rest : least
}

function varint(page: Buffer, at: number, end: number): {value: bigint; end: number} | undefined {
  let small = 0
  for (let i = 0; i < 4; i++) {
    if (at + i >= end) return undefined
    const byte = page[at + i] as number
    small = small * 128 + (byte & 127)
    if (byte < 128) return {value: BigInt(small), end: at + i + 1}
  }
  let value = BigInt(small)
  for (let i = 4; i < 9; i++) {
    if (at + i >= end) return undefined
    const byte = page[at + i] as number
    if (i === 8) return {value: (value << 8n) | BigInt(byte), end: at + 9}
    value = (value << 7n) | BigInt(byte & 127)
    if (byte < 128) return {value, end: at + i + 1}
  }
  return undefined
}
