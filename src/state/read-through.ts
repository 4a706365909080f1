/** What is kept of one key. The version tells whether a notice speaks of something newer. */
export type Versioned = {readonly version: bigint}

/** An entry, and whether it was kept here already when it was asked for. */
export type Answer<V> = {readonly entry: V | undefined; readonly isCached: boolean}

/** Why entries were dropped. */
export type Dropped = 'notice' | 'write' | 'expired' | 'evicted' | 'reconnected'

/** How a cache works. Times are milliseconds. */
export type ReadThroughOptions<V> = {
  /** Reads one key from where it truly is; `undefined` when there is nothing. */
  readonly load: (key: string) => Promise<V | undefined>
  readonly ttlMs: number
  /** How long "there is nothing" is believed. */
  readonly negativeTtlMs?: number
  readonly maxEntries?: number
  readonly onHit?: () => void
  readonly onMiss?: () => void
  readonly onLoaded?: () => void
  readonly onDropped?: (reason: Dropped, count: number) => void
  readonly now?: () => number
}

type Entry<V> = {
  readonly loading: Promise<V | undefined>
  /** When its load began: what it holds was true then, and perhaps not a moment longer. */
  readonly askedAt: number
  /** Absent while it loads. */
  loaded?: {readonly entry: V | undefined}
}

/**
 * Keeps what it has read until it is told of a change, or for a time. Callers of one key share one load. A load that an
 * invalidation overtakes is given to those who asked before it, and to nobody after.
 *
 * A write goes to Postgres first and is invalidated here when it has been committed; what was written is not kept:
 * somebody else's newer write may already have been heard of.
 */
export class ReadThrough<V extends Versioned> {
  readonly #options: ReadThroughOptions<V>
  readonly #now: () => number
  /** In the order in which they were read. */
  readonly #entries = new Map<string, Entry<V>>()

  constructor(options: ReadThroughOptions<V>) {
    this.#options = options
    this.#now = options.now ?? (() => performance.now())
  }

  get size(): number {
    return this.#entries.size
  }

  /** @throws what the load threw; nothing is kept then. */
  async get(key: string): Promise<Answer<V>> {
    const kept = this.#fresh(key)
    if (kept) {
      this.#options.onHit?.()
      const isCached = kept.loaded !== undefined
      return {entry: await kept.loading, isCached}
    }
    this.#options.onMiss?.()
    return {entry: await this.#load(key), isCached: false}
  }

  /** Drops one key; when `version` is given, only what is older than that. */
  invalidate(key: string, reason: Dropped, version?: bigint): void {
    const kept = this.#entries.get(key)
    if (!kept) return
    // Whether a load under way is older cannot be known: it counts as older.
    const has = kept.loaded?.entry?.version
    if (version !== undefined && has !== undefined && has >= version) return
    this.#drop(key, reason)
  }

  /** Drops everything: for when notices may have been missed. */
  invalidateAll(reason: Dropped): void {
    const {size} = this.#entries
    this.#entries.clear()
    if (size > 0) this.#options.onDropped?.(reason, size)
  }

  #fresh(key: string): Entry<V> | undefined {
    const kept = this.#entries.get(key)
    if (!kept) return undefined
    const {ttlMs, negativeTtlMs = Math.min(ttlMs, 5_000)} = this.#options
    const isNothing = kept.loaded !== undefined && kept.loaded.entry === undefined
    if (this.#now() - kept.askedAt < (isNothing ? negativeTtlMs : ttlMs)) return kept
    this.#drop(key, 'expired')
    return undefined
  }

  async #load(key: string): Promise<V | undefined> {
    const askedAt = this.#now()
    const loading = this.#options.load(key)
    const entry: Entry<V> = {loading, askedAt}
    this.#entries.set(key, entry)
    this.#evict()
    try {
      const loaded = await loading
      entry.loaded = {entry: loaded}
      this.#options.onLoaded?.()
      return loaded
    } catch (error) {
      if (this.#entries.get(key) === entry) this.#entries.delete(key)
      throw error
    }
  }

  #evict(): void {
    const {maxEntries = 10_000} = this.#options
    for (const key of this.#entries.keys()) {
      if (this.#entries.size <= maxEntries) return
      this.#drop(key, 'evicted')
    }
  }

  #drop(key: string, reason: Dropped): void {
    this.#entries.delete(key)
    this.#options.onDropped?.(reason, 1)
  }
}
