const HEADER_BYTES = 19

/** Makes something of a tuple. Its fields stand in `bytes` from `starts` to `ends`; a start of -1 is NULL. */
type Decode<T> = (bytes: Buffer, starts: Int32Array, ends: Int32Array) => T

/**
 * Cuts a binary COPY stream into tuples: https://www.postgresql.org/docs/current/sql-copy.html#id-1.9.3.55.9.4
 * Fields are told by their offsets: an object for each of millions would be most of the work.
 */
export class TupleReader {
  readonly #starts: Int32Array
  readonly #ends: Int32Array
  #pending: Buffer[] = []
  #pendingBytes = 0
  /** How many bytes must be there before it is worth looking again: a long row must not be copied for each chunk. */
  #wanted = HEADER_BYTES
  #hasHeader = false

  constructor(fields: number) {
    this.#starts = new Int32Array(fields)
    this.#ends = new Int32Array(fields)
  }

  /** @returns what `decode` makes of the tuples that `chunk` completes. Their memory is not used again. */
  read<T>(chunk: Buffer, decode: Decode<T>): T[] {
    this.#pending.push(chunk)
    this.#pendingBytes += chunk.length
    if (this.#pendingBytes < this.#wanted) return []
    const bytes = this.#pending.length === 1 ? chunk : Buffer.concat(this.#pending)
    const decoded: T[] = []
    let at = this.#hasHeader ? 0 : HEADER_BYTES
    this.#hasHeader = true
    for (;;) {
      const end = this.#tuple(bytes, at)
      if (end < 0) {
        this.#wanted = -end - at
        break
      }
      // A tuple of -1 fields ends the stream.
      if (bytes.readInt16BE(at) >= 0) decoded.push(decode(bytes, this.#starts, this.#ends))
      at = end
    }
    // Of what came before a long row nothing is to be kept.
    const rest = bytes.subarray(at)
    this.#pending = [rest.length < chunk.length ? Buffer.from(rest) : rest]
    this.#pendingBytes = rest.length
    return decoded
  }

  /** @returns the offset behind the tuple at `at`; when it is not complete, minus the offset that it reaches at least. */
  #tuple(bytes: Buffer, at: number): number {
    if (at + 2 > bytes.length) return -(at + 2)
    const fields = bytes.readInt16BE(at)
    let end = at + 2
    for (let i = 0; i < fields; i++) {
      if (end + 4 > bytes.length) return -(end + 4)
      const length = bytes.readInt32BE(end)
      end += 4
      this.#starts[i] = length < 0 ? -1 : end
      if (length > 0) end += length
      if (end > bytes.length) return -end
      this.#ends[i] = end
    }
    return end
  }
}
