import {setTimeout as sleep} from 'node:timers/promises'
import type {Sql} from '../postgres/sql.ts'

/** One change of control state, as its own transaction recorded it. */
export type CacheEvent = {
  readonly key: string
  /** What the key's version is since then; 0 when it has none. */
  readonly version: bigint
  readonly action: 'insert' | 'update' | 'delete' | 'invalidate'
}

/** What hears of changes. */
export type Invalidated = {
  /** One key has changed. */
  readonly onEvent: (event: CacheEvent) => void
  /** Changes may have been missed: everything may have changed. */
  readonly onMissed: () => void
}

/** How {@link followCacheEvents} works. */
export type Following = Invalidated & {
  readonly sql: Sql
  /** How long a lost notification goes unnoticed. */
  readonly pollEveryMs: number
  /** Called once for each stretch of failures, and once when it is over. */
  readonly onFailure?: (error: unknown) => void
  readonly onRecovery?: () => void
}

/**
 * Where a reader of `cache_events` is. A number given to a row says nothing about when it is committed, so the place is
 * a transaction id: everything below it is over, and what is at or above it is remembered one by one.
 */
export class EventCursor {
  readonly #sql: Sql
  #xmin: bigint | undefined
  #seen = new Set<bigint>()

  constructor(sql: Sql) {
    this.#sql = sql
  }

  /** Takes its place at the present: what has been committed by now is not reported. */
  async start(): Promise<void> {
    const [row] = await this.#sql<{xmin: bigint; seen: bigint[]}>`
      with here as materialized (
        select pg_snapshot_xmin(pg_current_snapshot()) as xmin
      )
      select h.xmin, array(
        select e.event_id from sync_metadata.cache_events e
        where e.xid >= h.xmin and e.host_id = (select sync_metadata.my_host())) as seen
      from here h`
    this.#xmin = row?.xmin
    this.#seen = new Set(row?.seen)
  }

  /** @returns what has been committed since the last call, in no order that matters. Every event once. */
  async read(): Promise<CacheEvent[]> {
    if (this.#xmin === undefined) throw new Error('the cursor has not been started')
    // Up to what is visible, not up to the oldest open transaction: anyone's long transaction in this database, a backup
    // for instance, would else hold every change back until it ends.
    const rows = await this.#sql<EventRow>`
      with here as materialized (
        select pg_snapshot_xmin(pg_current_snapshot()) as xmin
      )
      select h.xmin, e.xid, e.event_id as id, e.key, e.version, e.action
      from here h
      left join sync_metadata.cache_events e
        on e.xid >= ${this.#xmin}::xid8 and e.host_id = (select sync_metadata.my_host())
      order by e.xid, e.event_id`
    const xmin = rows[0]?.xmin ?? this.#xmin
    const events = rows.filter(({id}) => id !== null && !this.#seen.has(id))
    this.#seen = new Set(rows.flatMap(({id, xid}) => (id !== null && xid >= xmin ? [id] : [])))
    this.#xmin = xmin
    return events.map(({key, version, action}) => ({key, version, action}))
  }
}

type EventRow = CacheEvent & {readonly xmin: bigint; readonly xid: bigint; readonly id: bigint | null}

/** Beyond this many changes at once it is cheaper to forget everything. */
const MOST_EVENTS = 5_000
/** Events are kept for a day; a reader that was away for a good part of it starts anew. */
const LONGEST_ABSENCE_MS = 3_600_000

/** Reads changes as they come. `look()` when there may be one, `restart()` when notices may have been missed. */
export class CacheFollower {
  readonly #following: Following
  readonly #cursor: EventCursor
  #hasStarted = false
  #readAt = -Infinity
  #wake = new AbortController()

  constructor(following: Following) {
    this.#following = following
    this.#cursor = new EventCursor(following.sql)
  }

  /** Something may have changed: reads at once. */
  look(): void {
    this.#wake.abort()
  }

  /** Notices may have been missed: everything is reported as changed, and reading starts anew. */
  restart(): void {
    this.#hasStarted = false
    this.look()
  }

  /** Reads what there is now. Called by {@link run}; a test calls it for its own order of things. */
  async step(): Promise<void> {
    if (performance.now() - this.#readAt > LONGEST_ABSENCE_MS) this.#hasStarted = false
    const isStart = !this.#hasStarted
    this.#hasStarted = true
    try {
      if (isStart) {
        await this.#cursor.start()
        // After the place has been taken: what is read from now on is newer than it.
        this.#following.onMissed()
      } else {
        const events = await this.#cursor.read()
        if (events.length > MOST_EVENTS) this.#following.onMissed()
        else for (const event of events) this.#following.onEvent(event)
      }
    } catch (error) {
      if (isStart) this.#hasStarted = false
      throw error
    }
    this.#readAt = performance.now()
  }

  /** Follows until `signal` aborts. A database that does not answer is asked again, for as long as it takes. */
  async run(signal: AbortSignal): Promise<void> {
    const {pollEveryMs, onFailure, onRecovery} = this.#following
    let isFailing = false
    const stop = () => {
      this.look()
    }
    signal.addEventListener('abort', stop, {once: true})
    while (!signal.aborted) {
      this.#wake = new AbortController()
      try {
        await this.step()
        if (isFailing) onRecovery?.()
        isFailing = false
      } catch (error) {
        if (!isFailing) onFailure?.(error)
        isFailing = true
      }
      await sleep(pollEveryMs, undefined, {signal: this.#wake.signal}).catch(() => undefined)
    }
    signal.removeEventListener('abort', stop)
  }
}
