import {join} from 'node:path'
import {setTimeout as sleep} from 'node:timers/promises'
import {withLease} from '../cluster/lease.ts'
import {SyncError} from '../core/errors.ts'
import {together} from '../core/together.ts'
import {generate} from '../sample/generate.ts'
import type {Writer} from '../sample/writer.ts'
import {sourceWatcher} from '../source/watch.ts'
import {findDeployment, registerDeployment, type Deployment} from '../state/deployments.ts'
import type {SyncResult} from '../sync/sync.ts'
import type {Log} from '../telemetry/log.ts'
import {DEMO_CLIENT, DemoFailedError, demoSample, openDemo, type Demo} from './demo.ts'
import {Workers, workersOptions} from './workers.ts'

/** What a live demo works with, for whoever wants to look at it. */
export type LivePlace = {
  readonly file: string
  /** The database as the demo's host. */
  readonly url: string
  readonly schema: string
}

/** One sync of a live demo that has applied something. */
export type LiveSync = {
  readonly result: SyncResult
  /** At most how old the oldest change was that this sync applied; absent for the first one. */
  readonly lagMs: number | undefined
  readonly ms: number
}

/** One that did not come about, and comes about later by itself. */
export type Hitch = {readonly hitch: SyncError}

/** What somebody who watches a live demo is told. */
export type LiveShow = {
  /** The file and the database are there. */
  readonly onReady: (place: LivePlace) => void
  readonly onEvent: (event: LiveSync | Hitch) => void
  readonly log: Log
}

/** Actions a second: an office at work. */
const WRITER_RATE = 15
/** How long a sync that failed waits for its next try, */
const AGAIN_MS = 500
/** and at most, when it has failed often. */
const AGAIN_AT_MOST_MS = 10_000
const PATIENCE_MS = 60_000

/**
 * Keeps a file that a writer keeps changing in sync, live, as a leader does: a watcher says when the file may have
 * changed, a worker syncs it. Until the signal aborts; however it ends, nothing is left of it: no process, no database,
 * no file.
 *
 * @throws the signal's reason; or what a sync throws that does not pass by itself.
 */
export async function demoLive(stateDir: string, show: LiveShow, signal: AbortSignal): Promise<void> {
  await using demo = await openDemo(stateDir, signal)
  const file = join(demo.folder, 'webui.db')
  generate(file, demoSample)
  await registerDeployment(demo.host, DEMO_CLIENT, file)
  const deployment = (await findDeployment(demo.host, DEMO_CLIENT)) as Deployment
  const writer = demo.startWriter(file, WRITER_RATE)
  show.onReady({file, url: demo.hostUrl, schema: DEMO_CLIENT})
  await together(
    signal,
    signal => refuseDead(writer, signal),
    signal => lead(demo, {deployment, file}, show, signal),
  )
}

type Followed = {readonly deployment: Deployment; readonly file: string}

/** Leads and syncs; again when the lease was lost, as when the demo was suspended for a while. */
async function lead(demo: Demo, followed: Followed, show: LiveShow, signal: AbortSignal): Promise<void> {
  const {clusterName, leaseDurationMs, heartbeatIntervalMs} = demo.config
  for (;;) {
    const leading = {
      nodeId: `${clusterName}-cli`,
      clusterName,
      durationMs: leaseDurationMs,
      renewEveryMs: heartbeatIntervalMs,
      patienceMs: PATIENCE_MS,
    }
    try {
      await withLease(
        demo.host,
        leading,
        async lease => {
          await using workers = new Workers(workersOptions(demo.config, demo.hostEndpoint, lease, show.log))
          await follow(workers, followed, show, lease.signal)
        },
        signal,
      )
    } catch (error) {
      signal.throwIfAborted()
      await hitch(error, AGAIN_MS, show, signal)
    }
  }
}

/** Syncs whenever the file may have changed. */
async function follow(
  workers: Workers,
  {deployment, file}: Followed,
  {onEvent, onReady, log}: LiveShow,
  signal: AbortSignal,
): Promise<void> {
  let isHeldBack = false
  for await (const {since} of sourceWatcher(log)(file, signal)) {
    for (let againMs = AGAIN_MS; ; againMs = Math.min(2 * againMs, AGAIN_AT_MOST_MS)) {
      const startedAt = performance.now()
      try {
        // A pause of the demo can make the guard doubt what the writer did meanwhile. It was meant.
        const order = {...deployment, sqlitePath: file, full: false, dryRun: false, accept: isHeldBack}
        const result = await workers.sync(order, signal)
        isHeldBack = result.status === 'quarantined'
        const endedAt = performance.now()
        const lagMs = result.mode === 'full' ? undefined : Math.round(endedAt - since)
        if (result.mode !== 'unchanged') onEvent({result, lagMs, ms: Math.round(endedAt - startedAt)})
        if (!isHeldBack) break
      } catch (error) {
        signal.throwIfAborted()
        await hitch(error, againMs, {onEvent, onReady, log}, signal)
      }
    }
  }
}

/** Tells a failure that passes by itself, and waits. @throws any other one. */
async function hitch(
  error: unknown,
  waitMs: number,
  {onEvent}: LiveShow,
  signal: AbortSignal,
): Promise<void> {
  if (!(error instanceof SyncError && error.retryable)) throw error
  onEvent({hitch: error})
  await sleep(waitMs, undefined, {signal})
}

const LOOK_MS = 500

/** @throws {DemoFailedError} when the writer has ended although nobody asked it to. */
async function refuseDead(writer: Writer, signal: AbortSignal): Promise<void> {
  for (;;) {
    try {
      process.kill(writer.pid ?? 0, 0)
    } catch (cause) {
      const how = await writer.stop().catch((error: unknown) => error)
      throw new DemoFailedError('live-changes', how instanceof Error ? how : cause)
    }
    await sleep(LOOK_MS, undefined, {signal})
  }
}
