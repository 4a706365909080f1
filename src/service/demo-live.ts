import {join} from 'node:path'
import {setTimeout as sleep} from 'node:timers/promises'
import {withLease} from '../cluster/lease.ts'
import {SyncError} from '../core/errors.ts'
import {together} from '../core/together.ts'
import {generate} from '../sample/generate.ts'
import type {Writer} from '../sample/writer.ts'
import {sourceWatcher} from '../source/watch.ts'
import {findDeployment, registerDeployment, type Deployment} from '../state/deployments.ts'
import type {Log} from '../telemetry/log.ts'
import {DEMO_CLIENT, DemoFailedError, demoSample, openDemo, type Demo} from './demo.ts'
import {followLive, type Hitch, type Live, type LiveSync} from './live.ts'
import {Workers, workersOptions} from './workers.ts'

/** What a live demo works with, for whoever wants to look at it. */
export type LivePlace = {
  readonly file: string
  /** The database as the demo's host. */
  readonly url: string
  readonly schema: string
}

/** What somebody who watches a live demo is told. */
export type LiveShow = {
  /** The file and the database are there. */
  readonly onReady: (place: LivePlace) => void
  /** A sync has applied something, or has failed and is tried again. */
  readonly onEvent: Live['onEvent']
  readonly log: Log
}

/** Actions a second: an office at work. */
const WRITER_RATE = 15
/** How long a lost lease waits for its next try. */
const AGAIN_MS = 500
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
async function lead(
  demo: Demo,
  {deployment, file}: Followed,
  {onEvent, log}: LiveShow,
  signal: AbortSignal,
): Promise<void> {
  const {clusterName, leaseDurationMs, heartbeatIntervalMs} = demo.config
  const leading = {
    nodeId: `${clusterName}-cli`,
    clusterName,
    durationMs: leaseDurationMs,
    renewEveryMs: heartbeatIntervalMs,
    patienceMs: PATIENCE_MS,
  }
  const {deploymentId, clientName, schemaName} = deployment
  const order = {deploymentId, clientName, schemaName, sqlitePath: file, full: false, dryRun: false}
  let isHeldBack = false
  const live = {
    watch: sourceWatcher(log),
    // A pause of the demo can make the guard doubt what the writer did meanwhile. It was meant.
    order: () => ({...order, accept: isHeldBack}),
    onEvent(event: LiveSync | Hitch) {
      isHeldBack = 'result' in event && event.result.status === 'quarantined'
      if ('hitch' in event || event.result.mode !== 'unchanged') onEvent(event)
    },
  }
  for (;;) {
    try {
      await withLease(
        demo.host,
        leading,
        async lease => {
          await using workers = new Workers(workersOptions(demo.config, demo.hostEndpoint, lease, log))
          await followLive({workers, ...live}, lease.signal)
        },
        signal,
      )
    } catch (error) {
      signal.throwIfAborted()
      if (!(error instanceof SyncError && error.retryable)) throw error
      onEvent({hitch: error})
      await sleep(AGAIN_MS, undefined, {signal})
    }
  }
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
