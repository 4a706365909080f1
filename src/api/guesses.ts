import {isIP} from 'node:net'
import {setTimeout as sleep} from 'node:timers/promises'
import type {Log} from '../telemetry/log.ts'

/** How whoever tries tokens is slowed. */
export type GuessPace = {
  /** So many wrong tokens of one address are answered at once: people mistype, and scripts have old ones. */
  readonly free: number
  /** The pause before the next one, in milliseconds; it doubles with each up to the longest. */
  readonly firstMs: number
  readonly longestMs: number
  /** An address from which no wrong token has come for so long is like any other. */
  readonly forgetMs: number
}

export const usualGuessPace: GuessPace = {free: 10, firstMs: 50, longestMs: 2_000, forgetMs: 60_000}

/** The most addresses that are remembered; the one that was quiet for longest is forgotten first. */
const MOST_ADDRESSES = 10_000

type Guesser = {count: number; at: number; isTold: boolean}

/**
 * Slows whoever tries one token after the other, by address. Nobody is refused for it: several people share an address, and
 * one of them must not be able to shut the others out.
 */
export class Guesses {
  readonly #pace: GuessPace
  readonly #log: Log
  readonly #now: () => number
  /** In the order of their last wrong token. */
  readonly #guessers = new Map<string, Guesser>()

  constructor(log: Log, pace: GuessPace = usualGuessPace, now: () => number = () => performance.now()) {
    this.#log = log
    this.#pace = pace
    this.#now = now
  }

  /**
   * Looks a token up that has not been right before. When wrong ones have come from the address, it waits before: else how
   * long the answer takes would tell.
   *
   * @returns what `find` returns: `undefined` for a token that is wrong.
   */
  async slowed<T>(address: string, find: () => Promise<T | undefined>): Promise<T | undefined> {
    const key = networkOf(address)
    // Counted before it is known to be wrong: many at once are as many guesses.
    const guesser = this.#count(key, 1)
    const pauseMs = this.#pauseAfter(guesser.count)
    if (pauseMs > 0) await sleep(pauseMs, undefined, {ref: false})
    const found = await find()
    if (found !== undefined) this.#count(key, -1)
    else if (guesser.count > this.#pace.free && !guesser.isTold) {
      guesser.isTold = true
      this.#log.warn({address, wrong: guesser.count}, 'wrong API tokens keep coming from one address')
    }
    return found
  }

  #pauseAfter(count: number): number {
    const {free, firstMs, longestMs} = this.#pace
    return count <= free ? 0 : Math.min(firstMs * 2 ** Math.min(count - free - 1, 20), longestMs)
  }

  #count(key: string, more: 1 | -1): Guesser {
    const now = this.#now()
    const known = this.#guessers.get(key)
    const isFresh = known !== undefined && now - known.at < this.#pace.forgetMs
    const guesser = isFresh ? known : {count: 0, at: now, isTold: false}
    guesser.count = Math.max(0, guesser.count + more)
    if (more > 0) guesser.at = now
    this.#guessers.delete(key)
    if (guesser.count > 0) this.#guessers.set(key, guesser)
    if (this.#guessers.size > MOST_ADDRESSES) {
      const [quietest] = this.#guessers.keys()
      if (quietest !== undefined) this.#guessers.delete(quietest)
    }
    return guesser
  }
}

/** Of IPv6 whoever has one address has the 2^64 beside it. */
function networkOf(address: string): string {
  if (isIP(address) !== 6 || /^::ffff:\d+\./i.test(address)) return address
  const [head = ''] = address.split('%')
  const [before = '', after] = head.split('::')
  const groups = (text: string) => (text === '' ? [] : text.split(':'))
  const front = groups(before)
  const gap = after === undefined ? 0 : 8 - front.length - groups(after).length
  const all = [...front, ...Array.from({length: gap}, () => '0'), ...groups(after ?? '')]
  return all.slice(0, 4).join(':')
}
