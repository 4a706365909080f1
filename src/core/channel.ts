/** Hands things from one task to another, in order. Its one reader waits for the next one until it is closed. */
export class Channel<T> implements AsyncIterable<T> {
  readonly #things: T[] = []
  #isClosed = false
  #news = Promise.withResolvers<undefined>()

  push(thing: T): void {
    this.#things.push(thing)
    this.#news.resolve(undefined)
  }

  /** What has been pushed is still handed over. */
  close(): void {
    this.#isClosed = true
    this.#news.resolve(undefined)
  }

  async *[Symbol.asyncIterator](): AsyncGenerator<T, undefined> {
    for (;;) {
      while (this.#things.length > 0) yield this.#things.shift() as T
      if (this.#isClosed) return
      await this.#news.promise
      this.#news = Promise.withResolvers()
    }
  }
}
