import {FencedOutError} from '../postgres/refusals.ts'

/** A timer that is so late was held up. */
const LATE_MS = 20
/** What lies in the channel is read within a turn or two of the event loop. */
const LISTEN_MS = 20

/** The lease as a worker knows it: over as soon as the time that its holder last spoke of has passed. */
export class WorkerLease implements Disposable {
  readonly #epoch: bigint
  readonly #onOver: () => void
  #over = new AbortController()
  #endsAt = -Infinity
  #timer: NodeJS.Timeout | undefined
  #hasListened = false

  constructor(epoch: bigint, onOver: () => void) {
    this.#epoch = epoch
    this.#onOver = onOver
  }

  /** Of the lease as it is now; a holder who was only late to speak of a renewal begins another one. */
  get signal(): AbortSignal {
    return this.#over.signal
  }

  get endsAt(): number {
    return this.#endsAt
  }

  /** @param endsAt in milliseconds of `performance.now()`. */
  extend(endsAt: number): void {
    if (endsAt > performance.now() && this.#over.signal.aborted) this.#over = new AbortController()
    this.#endsAt = endsAt
    this.#hasListened = false
    this.#arm()
  }

  #arm(): void {
    clearTimeout(this.#timer)
    const leftMs = this.#endsAt - performance.now()
    if (leftMs <= -LATE_MS && !this.#hasListened) this.#listen()
    else if (leftMs <= 0) this.#end()
    // Longer ones a timer does not take; it looks again then.
    else
      this.#timer = setTimeout(
        () => {
          this.#arm()
        },
        Math.min(leftMs, 2 ** 31 - 1),
      )
  }

  /** Work at one go has held the timer up: news of renewals came meanwhile, and wait to be heard. */
  #listen(): void {
    this.#timer = setTimeout(() => {
      this.#hasListened = true
      this.#arm()
    }, LISTEN_MS)
  }

  #end(): void {
    if (this.#over.signal.aborted) return
    this.#over.abort(
      new FencedOutError(
        `the lease of epoch ${this.#epoch} ran out, and nobody told this worker of a renewal`,
      ),
    )
    this.#onOver()
  }

  [Symbol.dispose](): void {
    clearTimeout(this.#timer)
  }
}
