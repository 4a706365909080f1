import {setTimeout as sleep} from 'node:timers/promises'
import {SyncError} from '../core/errors.ts'
import type {WatchSource} from '../source/watch.ts'
import type {SyncResult} from '../sync/sync.ts'
import type {Order} from './worker-messages.ts'
import type {Workers} from './workers.ts'

/** One sync of a deployment that is followed live. */
export type LiveSync = {
  readonly result: SyncResult
  /** How long ago, at most, the oldest change was committed that this sync has applied; a first load knows of none. */
  readonly lagMs: number | undefined
  readonly ms: number
}

/** One that did not come about, and comes about later by itself. */
export type Hitch = {readonly hitch: SyncError}

export type Live = {
  readonly workers: Pick<Workers, 'sync'>
  readonly watch: WatchSource
  /** Asked before each sync. */
  readonly order: () => Order
  readonly onEvent: (event: LiveSync | Hitch) => void
}

/** How long a sync that failed waits for its next try, */
const AGAIN_MS = 500
/** and at most, when it has failed often. */
const AGAIN_AT_MOST_MS = 10_000

/**
 * Syncs a deployment whenever its file may have changed, until the signal aborts.
 *
 * @throws the signal's reason; or what a sync throws that does not pass by itself.
 */
export async function followLive({workers, watch, order, onEvent}: Live, signal: AbortSignal): Promise<void> {
  for await (const {since} of watch(order().sqlitePath, signal)) {
    for (let againMs = AGAIN_MS; ; againMs = Math.min(2 * againMs, AGAIN_AT_MOST_MS)) {
      const startedAt = performance.now()
      try {
        const result = await workers.sync(order(), signal)
        const endedAt = performance.now()
        const lagMs = result.mode === 'incremental' ? Math.round(endedAt - since) : undefined
        onEvent({result, lagMs, ms: Math.round(endedAt - startedAt)})
        break
      } catch (error) {
        signal.throwIfAborted()
        if (!(error instanceof SyncError && error.retryable)) throw error
        onEvent({hitch: error})
        await sleep(againMs, undefined, {signal})
      }
    }
  }
}
