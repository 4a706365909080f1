import {FencedOutError} from '../postgres/refusals.ts'
import type {Lease} from './lease.ts'

/** One time of leading under one epoch: a lease, its local end, and the work that is done under it. */
export class Term {
  readonly epoch: bigint
  /** Resolves when the work has ended, however it did. */
  readonly settled: Promise<void>
  readonly #durationMs: number
  readonly #over = new AbortController()
  #renewedAt: number
  #stopsAt = Infinity
  #isSettled = false
  #failure: unknown
  #timer: NodeJS.Timeout | undefined

  /**
   * Begins the work.
   *
   * @param askedAt when the lease was asked for, of `performance.now()`.
   * @param onChange called when the lease is over and when the work has ended.
   */
  constructor(
    {
      nodeId,
      epoch,
      askedAt,
      durationMs,
    }: {nodeId: string; epoch: bigint; askedAt: number; durationMs: number},
    work: (lease: Lease) => Promise<void>,
    onChange: () => void,
  ) {
    this.epoch = epoch
    this.#durationMs = durationMs
    this.#renewedAt = askedAt
    const {signal} = this.#over
    signal.addEventListener('abort', onChange)
    this.#arm()
    this.settled = (async () => {
      try {
        await work({nodeId, epoch, signal, endsAt: () => this.endsAt})
      } catch (error) {
        this.#failure = error
      }
      this.#isSettled = true
      onChange()
    })()
  }

  /** Local and monotonic: a frozen or cut-off leader knows that its time is over without asking anyone. */
  get endsAt(): number {
    return Math.min(this.#renewedAt + this.#durationMs, this.#stopsAt)
  }

  get renewedAt(): number {
    return this.#renewedAt
  }

  get isOver(): boolean {
    return this.#over.signal.aborted
  }

  get isSettled(): boolean {
    return this.#isSettled
  }

  /** Why the work ended, when it threw. */
  get failure(): unknown {
    return this.#failure
  }

  /** @param askedAt when the renewal was sent. */
  extend(askedAt: number): void {
    this.#renewedAt = askedAt
    this.#stopsAt = Infinity
    this.#arm()
  }

  /** It ends in `ms` unless it is renewed by then. */
  limit(ms: number): void {
    this.#stopsAt = Math.min(this.#stopsAt, performance.now() + ms)
    this.#arm()
  }

  /** Aborts the work; the first reason counts. */
  end(reason: unknown): void {
    clearTimeout(this.#timer)
    this.#over.abort(reason)
  }

  #arm(): void {
    clearTimeout(this.#timer)
    if (this.isOver) return
    const leftMs = this.endsAt - performance.now()
    if (leftMs <= 0)
      this.end(new FencedOutError(`the lease of epoch ${this.epoch} ran out before it was renewed`))
    else
      this.#timer = setTimeout(() => {
        this.#arm()
      }, leftMs)
  }
}
