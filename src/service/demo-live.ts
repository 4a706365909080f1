import {join} from 'node:path'
import {setTimeout as sleep} from 'node:timers/promises'
import {SyncError} from '../core/errors.ts'
import {generate} from '../sample/generate.ts'
import type {Writer} from '../sample/writer.ts'
import type {SyncResult} from '../sync/sync.ts'
import {DEMO_CLIENT, DemoFailedError, demoSample, openDemo} from './demo.ts'
import {syncOnce} from './sync-once.ts'

/** What a live demo works with, for whoever wants to look at it. */
export type LivePlace = {
  readonly file: string
  /** The database as the demo's host. */
  readonly url: string
  readonly schema: string
}

/** One sync of a live demo. */
export type LiveSync = {
  readonly result: SyncResult
  /** At most how old the oldest change was that this sync applied; absent for the first one. */
  readonly lagMs: number | undefined
  readonly ms: number
}

/** One that did not come about, and comes about later by itself. */
export type Hitch = {readonly hitch: SyncError}

const EVERY_MS = 1_500
/** Actions a second: an office at work. */
const WRITER_RATE = 15

/**
 * Keeps a file that a writer keeps changing in sync, and yields each sync, until the signal aborts. However it ends,
 * nothing is left of it: no process, no database, no file.
 *
 * @param onReady called when the file and the database are there.
 * @throws the signal's reason; or what a sync throws that does not pass by itself.
 */
export async function* demoLive(
  stateDir: string,
  onReady: (place: LivePlace) => void,
  signal: AbortSignal,
): AsyncGenerator<LiveSync | Hitch> {
  await using demo = await openDemo(stateDir, signal)
  const file = join(demo.folder, 'webui.db')
  generate(file, demoSample)
  const writer = demo.startWriter(file, WRITER_RATE)
  onReady({file, url: demo.hostUrl, schema: DEMO_CLIENT})

  const request = {client: DEMO_CLIENT, sqlite: file, full: false, dryRun: false}
  let appliedUpTo: number | undefined
  let isHeldBack = false
  for (;;) {
    await refuseDead(writer)
    const since = performance.now()
    try {
      // A pause of the demo can make the guard doubt what the writer did meanwhile. It was meant.
      const result = await syncOnce(demo.host, demo.config, {...request, accept: isHeldBack}, signal)
      isHeldBack = result.status === 'quarantined'
      const endedAt = performance.now()
      const lagMs = appliedUpTo === undefined ? undefined : Math.round(endedAt - appliedUpTo)
      yield {result, lagMs, ms: Math.round(endedAt - since)}
      // Whatever was committed before this sync began is applied now.
      if (!isHeldBack) appliedUpTo = since
    } catch (error) {
      signal.throwIfAborted()
      if (!(error instanceof SyncError && error.retryable)) throw error
      yield {hitch: error}
    }
    await sleep(Math.max(0, EVERY_MS - (performance.now() - since)), undefined, {signal})
  }
}

/** @throws {DemoFailedError} when the writer has ended although nobody asked it to. */
async function refuseDead(writer: Writer): Promise<void> {
  try {
    process.kill(writer.pid ?? 0, 0)
  } catch (cause) {
    const how = await writer.stop().catch((error: unknown) => error)
    throw new DemoFailedError('live-changes', how instanceof Error ? how : cause)
  }
}
