import {join} from 'node:path'
import {setTimeout as sleep} from 'node:timers/promises'
import {together} from '../core/together.ts'
import {json, type Sql} from '../postgres/sql.ts'
import {generate} from '../sample/generate.ts'
import type {Writer} from '../sample/writer.ts'
import {awaitLeader, demoRoles, readLeader, type DemoNode, type DemoRole} from './demo-nodes.ts'
import {DEMO_CLIENT, DemoFailedError, demoSample, openDemo, type Demo} from './demo.ts'

/** What a live demo works with, for whoever wants to look at it. */
export type LivePlace = {
  readonly file: string
  /** The database as the demo's host. */
  readonly url: string
  readonly schema: string
  /** Where the nodes serve their API and the dashboard, in the order of their names. */
  readonly addresses: readonly string[]
  /** With which they let one operate. */
  readonly token: string
}

/** A cut that the leader has applied, another leader, or a node that has ended and is started again. */
export type LiveEvent =
  | {
      readonly kind: 'cut'
      readonly generation: bigint
      readonly status: string
      readonly upserted: number
      readonly tombstoned: number
      readonly ms: number
    }
  | {readonly kind: 'leader'; readonly leader: string; readonly epoch: bigint}
  | {readonly kind: 'ended'; readonly nodeId: string; readonly how: string}

/** What somebody who watches a live demo is told. */
export type LiveShow = {
  /** The file and the database are there, and a node leads. */
  readonly onReady: (place: LivePlace) => void
  readonly onEvent: (event: LiveEvent) => void
}

/** Actions a second: an office at work. */
const WRITER_RATE = 15
const LOOK_MS = 250
/** A node that was killed stays away for so long: there is something to see. */
const AWAY_MS = 5_000

/**
 * Keeps a file that a writer keeps changing in sync, live, by a host's two nodes. Until the signal aborts; however it
 * ends, nothing is left of it: no process, no database, no file.
 *
 * @throws {DemoFailedError} when the writer ends; the signal's reason.
 */
export async function demoLive(stateDir: string, show: LiveShow, signal: AbortSignal): Promise<void> {
  await using demo = await openDemo(stateDir, signal)
  const file = join(demo.folder, 'webui.db')
  generate(file, demoSample)
  const settings = {sqlite_path: file, sync_schedule: 'live', sync_enabled: true}
  await demo.host`select sync_metadata.register_deployment(${DEMO_CLIENT}, ${json(settings)})`
  const token = await demo.token()
  const writer = demo.startWriter(file, WRITER_RATE)
  const nodes = demoRoles.map(role => demo.startNode(role))
  const addresses = await Promise.all(nodes.map(({api}) => api))
  await awaitLeader(demo.owner, () => true, signal)
  show.onReady({file, url: demo.hostUrl, schema: DEMO_CLIENT, addresses, token})
  await together(
    signal,
    signal => refuseDead(writer, signal),
    signal => tell(demo.owner, show, signal),
    ...nodes.map(node => (signal: AbortSignal) => keepRunning(demo, node, show, signal)),
  )
}

/** Starts a node again that has ended, as a service manager does. */
async function keepRunning(demo: Demo, first: DemoNode, show: LiveShow, signal: AbortSignal): Promise<void> {
  const role: DemoRole = first.role
  const stopped = new Promise<undefined>(resolve => {
    signal.addEventListener('abort', () => {
      resolve(undefined)
    })
  })
  for (let node = first; ; node = demo.startNode(role)) {
    const how = await Promise.race([node.ended, stopped])
    if (how === undefined) return
    show.onEvent({kind: 'ended', nodeId: node.nodeId, how})
    await sleep(AWAY_MS, undefined, {signal})
  }
}

/** Tells of each cut and of each leader. */
async function tell(sql: Sql, {onEvent}: LiveShow, signal: AbortSignal): Promise<void> {
  let known: string | undefined
  let last = 0n
  for (;;) {
    const {leader, epoch} = await readLeader(sql)
    if (leader !== undefined && leader !== known) onEvent({kind: 'leader', leader, epoch})
    known = leader ?? known
    const cuts = await sql<{
      generation: bigint
      status: string
      upserted: number
      tombstoned: number
      ms: number
    }>`
      select generation, status, rows_upserted::float8 as upserted, rows_tombstoned::float8 as tombstoned,
        coalesce(duration_ms, 0)::float8 as ms
      from sync_metadata.sync_jobs where generation > ${last} order by generation`
    for (const cut of cuts) onEvent({kind: 'cut', ...cut})
    last = cuts.at(-1)?.generation ?? last
    await sleep(LOOK_MS, undefined, {signal})
  }
}

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
