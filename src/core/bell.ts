/** Wakes one loop that waits. A ring that comes while nobody waits is not lost: the next wait ends at once. */
export class Bell {
  #isRung = false
  #wake: () => void = () => undefined

  ring(): void {
    this.#isRung = true
    this.#wake()
  }

  /**
   * Waits for a ring, but not longer than `ms`.
   *
   * @throws the signal's reason.
   */
  async wait(ms: number, signal: AbortSignal): Promise<void> {
    signal.throwIfAborted()
    if (!this.#isRung && ms > 0) {
      const woken = Promise.withResolvers<undefined>()
      this.#wake = () => {
        woken.resolve(undefined)
      }
      const timer = setTimeout(this.#wake, Math.min(ms, LONGEST_MS))
      signal.addEventListener('abort', this.#wake)
      await woken.promise
      signal.removeEventListener('abort', this.#wake)
      clearTimeout(timer)
      signal.throwIfAborted()
    }
    this.#isRung = false
  }
}

// What a timer can be set to.
const LONGEST_MS = 2 ** 31 - 1
