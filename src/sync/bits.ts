/** A set of small whole numbers that takes a bit for each: there may be millions of them. */
export class Bits {
  #bytes: Uint8Array
  #size = 0

  /** @param bytes of another set, which {@link bytes} gave. */
  constructor(bytes: Uint8Array = new Uint8Array(0)) {
    this.#bytes = bytes
    for (let byte of bytes) for (; byte > 0; byte &= byte - 1) this.#size++
  }

  /** How many there are. */
  get size(): number {
    return this.#size
  }

  /** All of it, to be kept. */
  get bytes(): Uint8Array {
    return this.#bytes
  }

  has(n: number): boolean {
    return ((this.#bytes[n >> 3] ?? 0) & (1 << (n & 7))) !== 0
  }

  add(n: number): void {
    if (this.has(n)) return
    const at = n >> 3
    if (at >= this.#bytes.length) {
      const larger = new Uint8Array(Math.max(at + 1, 2 * this.#bytes.length))
      larger.set(this.#bytes)
      this.#bytes = larger
    }
    this.#bytes[at] = (this.#bytes[at] as number) | (1 << (n & 7))
    this.#size++
  }
}
