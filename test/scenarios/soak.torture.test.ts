import assert from 'node:assert/strict'
import {readdirSync, readFileSync} from 'node:fs'
import {mkdir, writeFile} from 'node:fs/promises'
import {join} from 'node:path'
import {setTimeout as sleep} from 'node:timers/promises'
import {inspect} from 'node:util'
import {afterEach, beforeEach, expect, test} from 'vitest'
import {newToken} from '../../src/api/tokens.ts'
import {together} from '../../src/core/together.ts'
import {generate, sizes} from '../../src/sample/generate.ts'
import {startWriter, type Writer} from '../../src/sample/writer.ts'
import {assertMirror} from '../mirror.ts'
import {apiOf, leaderId, leaderOf, patient, startNode, type NodeProcess} from '../nodes.ts'
import {testSite, type Site} from '../site.ts'

// A day in miniature: two nodes under ten times the load of the demo, with switchovers and people who watch. What grows
// without bound shows here: memory, descriptors, connections, the log.

/** `OWSYNC_SOAK_MINUTES`; less than four say little about memory. */
const minutes = Number(process.env['OWSYNC_SOAK_MINUTES'] ?? 30)
/** The demo's writer makes 15 a second. */
const rates = {acme: 100, beta: 40, gamma: 10}
const SAMPLE_EVERY_MS = 5_000
const SWITCH_EVERY_MS = Math.max(20_000, (minutes * 60_000) / 15)
/** Of a day's log of one node, at ten times the load. */
const MOST_LOG_BYTES_PER_MINUTE = 200_000

type Sample = {
  readonly at: number
  readonly residentMb: number
  readonly descriptors: number
  /** Of its workers, all together. */
  readonly workersMb: number
  readonly workers: number
}

const reader = newToken('dashboard', 'read')
const headers = {authorization: `Bearer ${reader.token}`}

let site: Site
let nodes: NodeProcess[]
let writers: Writer[]

beforeEach(async () => {
  site = await testSite()
  nodes = []
  writers = []
})

afterEach(async () => {
  await Promise.all(writers.map(writer => writer.stop().catch(() => undefined)))
  await Promise.all(nodes.map(node => node[Symbol.asyncDispose]()))
  await site[Symbol.asyncDispose]()
})

test(
  `for ${minutes} minutes of ten times the demo’s load nothing grows without bound`,
  {timeout: (minutes + 15) * 60_000},
  async () => {
    const clients = Object.entries(rates).map(([name, rate], seed) => ({
      name,
      rate,
      seed: seed + 1,
      file: join(site.folder, `${name}.db`),
    }))
    for (const {name, file, seed} of clients) {
      generate(file, {
        version: '0.10.2',
        seed,
        ...sizes.demo,
        journalMode: name === 'beta' ? 'delete' : 'wal',
      })
      const schedule = name === 'gamma' ? {sync_interval: 10} : {sync_schedule: 'live'}
      await site.host`
        select sync_metadata.register_deployment(${name}, ${JSON.stringify({sqlite_path: file, sync_enabled: true, ...schedule})})`
    }
    // At this pace a client's chats come and go within minutes, which nobody is asked about here.
    const env = {DELETE_GUARD: 'off', API_TOKENS_FILE: join(site.stateDir, 'tokens')}
    await mkdir(site.stateDir, {recursive: true})
    await writeFile(env.API_TOKENS_FILE, `${reader.line}\n`, {mode: 0o600})
    nodes = [startNode(site, 'node-a', {env}), startNode(site, 'node-b', {env})]
    await leaderOf(site, nodes)
    for (const {name} of clients) await reaches(name, 1n)
    writers = clients.map(({file, rate, seed}) => startWriter({file, rate, seed}))

    const samples = new Map<NodeProcess, Sample[]>(nodes.map(node => [node, []]))
    const connections: number[] = []
    const over = new AbortController()
    const seen = {answers: 0, events: 0, switches: 0}
    const timer = setTimeout(() => {
      over.abort()
    }, minutes * 60_000)
    try {
      await together(
        over.signal,
        signal =>
          every(SAMPLE_EVERY_MS, signal, async () => {
            for (const node of nodes) {
              assert.ok(node.isRunning(), `${node.nodeId} has ended`)
              samples.get(node)!.push(sampleOf(node))
            }
            connections.push(await countConnections())
          }),
        signal =>
          every(SWITCH_EVERY_MS, signal, async () => {
            const [row] = await site.host<{to: string | null}>`select sync_metadata.step_down() as to`
            if (row!.to === null) return
            await expect.poll(() => leaderId(site.db), patient).toBe(row!.to)
            seen.switches++
          }),
        signal =>
          every(1_000, signal, async () => {
            for (const node of nodes)
              for (const path of ['/health', '/metrics', '/api/v1/deployments', '/api/v1/jobs']) {
                const response = await fetch(`${await apiOf(node)}${path}`, {
                  headers,
                  signal: AbortSignal.timeout(60_000),
                })
                await response.arrayBuffer()
                assert.ok(response.ok || path === '/health', `${path}: ${response.status}`)
                seen.answers++
              }
          }),
        // Dashboards that come and go.
        signal =>
          every(100, signal, async () => (seen.events += await listen(nodes[seen.events % 2]!, 7_000))),
      )
    } catch (error) {
      if (!over.signal.aborted) throw error
    } finally {
      clearTimeout(timer)
    }

    const totals = await Promise.all(writers.map(writer => writer.stop()))
    writers = []
    report(samples, connections, {...seen, writes: totals.reduce((sum, {writes}) => sum + writes, 0)})
    for (const {name, file} of clients) await becomesEqual(name, file)

    assert.ok(seen.switches >= 2 || minutes < 4, `${seen.switches} switchovers`)
    assert.ok(seen.answers > minutes * 60, `${seen.answers} answers`)
    for (const [node, taken] of samples) {
      flat(
        `memory of ${node.nodeId} (MB)`,
        taken.map(({residentMb}) => residentMb),
        {share: 0.1, more: 25},
      )
      flat(
        `descriptors of ${node.nodeId}`,
        taken.map(({descriptors}) => descriptors),
        {share: 0, more: 4},
      )
      assert.ok(Math.max(...taken.map(({workers}) => workers)) <= 2, 'workers')
      assert.ok(Math.max(...taken.map(({workersMb}) => workersMb)) < 1_000, 'memory of workers')
    }
    flat('connections', connections, {share: 0, more: 2})
    for (const node of nodes) logIsSane(node)
    // One that waits for its next try because the app kept its file locked, with a disk that is slow to commit, has not failed.
    const failures = await site.db`select error_code, count(*) from sync_metadata.sync_jobs
      where error_code is not null and error_code not in ('SYNC_FENCED_OUT', 'SYNC_CONNECTION_LOST')
        and not (status in ('pending', 'running') and error_code = 'SYNC_SOURCE_BUSY') group by 1`
    assert.deepEqual(failures, [])
  },
)

async function every(ms: number, signal: AbortSignal, work: () => Promise<unknown>): Promise<void> {
  while (!signal.aborted) {
    await work()
    await sleep(ms, undefined, {signal}).catch(() => undefined)
  }
}

/** The least of the last third against the least of the middle one: what is not given back, whatever comes and goes. */
function flat(what: string, values: readonly number[], {share, more}: {share: number; more: number}): void {
  const third = Math.floor(values.length / 3)
  const before = Math.min(...values.slice(third, 2 * third))
  const after = Math.min(...values.slice(2 * third))
  assert.ok(after <= before * (1 + share) + more, `${what} grew from ${before} to ${after}`)
}

function sampleOf(node: NodeProcess): Sample {
  const workers = node.workers()
  return {
    at: performance.now(),
    residentMb: residentMb(node.pid),
    descriptors: readdirSync(`/proc/${node.pid}/fd`).length,
    workersMb: workers.reduce((sum, pid) => sum + residentMb(pid), 0),
    workers: workers.length,
  }
}

function residentMb(pid: number): number {
  try {
    const kb = /^VmRSS:\s+(\d+)/m.exec(readFileSync(`/proc/${pid}/status`, 'utf8'))?.[1]
    return Math.round(Number(kb ?? 0) / 1_024)
  } catch (error) {
    // A worker that has just ended.
    if ((error as NodeJS.ErrnoException).code === 'ENOENT') return 0
    throw error
  }
}

/** Of the nodes and their workers, not of this test. */
async function countConnections(): Promise<number> {
  const [row] = await site.db<{count: number}>`
    select count(*)::int as count from pg_stat_activity
    where usename = ${site.host.role} and application_name like 'owsync/%'`
  return row!.count
}

/** Follows the events for a while. @returns 1, when something came. */
async function listen(node: NodeProcess, forMs: number): Promise<number> {
  const response = await fetch(`${await apiOf(node)}/api/v1/events`, {
    headers,
    signal: AbortSignal.timeout(forMs),
  })
  assert.equal(response.status, 200)
  let bytes = 0
  try {
    for await (const chunk of response.body!) bytes += (chunk as Uint8Array).length
  } catch (error) {
    if ((error as Error).name !== 'TimeoutError') throw error
  }
  assert.ok(bytes > 0, 'no event at all')
  return 1
}

/** Lines for what is decided and done, not for each row or beat; and nothing that wakes somebody. */
function logIsSane(node: NodeProcess): void {
  const bytes = node.log.reduce((sum, line) => sum + JSON.stringify(line).length, 0)
  const perMinute = bytes / minutes
  assert.ok(
    perMinute < MOST_LOG_BYTES_PER_MINUTE,
    `${node.nodeId} logs ${Math.round(perMinute)} bytes a minute`,
  )
  const loud = node.log.filter(({level}) => !['info', 'warn', 'debug'].includes(level))
  assert.deepEqual(
    loud.map(line => JSON.stringify(line).slice(0, 500)),
    [],
  )
}

async function reaches(client: string, generation: bigint): Promise<void> {
  await expect
    .poll(async () => {
      const [row] = await site.db<{generation: bigint}>`
        select generation from sync_metadata.client_deployments where client_name = ${client}`
      return row!.generation
    }, patient)
    .toBeGreaterThanOrEqual(generation)
}

async function becomesEqual(client: string, file: string): Promise<void> {
  let last: unknown
  const isEqual = async () => {
    try {
      await assertMirror(site.db, client, file)
      return true
    } catch (error) {
      last = error
      return false
    }
  }
  await expect
    .poll(isEqual, {timeout: 120_000, interval: 1_000})
    .toBe(true)
    .catch(async (error: unknown) => {
      const [state] =
        await site.db`select client_name, status, status_reason, last_sync_at, checked_at, generation
        from sync_metadata.client_deployments where client_name = ${client}`
      process.stderr.write(`${inspect(state)}\n`)
      throw last ?? error
    })
}

function report(
  samples: ReadonlyMap<NodeProcess, readonly Sample[]>,
  connections: readonly number[],
  seen: Readonly<Record<string, number>>,
): void {
  const spread = (values: readonly number[]) => {
    const third = Math.floor(values.length / 3)
    const part = (from: number, to?: number) => Math.min(...values.slice(from, to))
    return `least of each third ${part(0, third)}, ${part(third, 2 * third)}, ${part(2 * third)}, most ${Math.max(...values)}`
  }
  const lines = [...samples].flatMap(([{nodeId, log}, taken]) => [
    `${nodeId}: memory (MB) ${spread(taken.map(({residentMb}) => residentMb))}`,
    `${nodeId}: descriptors ${spread(taken.map(({descriptors}) => descriptors))}`,
    `${nodeId}: workers’ memory (MB), most ${Math.max(...taken.map(({workersMb}) => workersMb))}`,
    ...log
      .filter(line => 'err' in line)
      .map(({msg, err, client}) => {
        const {code, message} = err as {code?: string; message: string}
        return `${nodeId}: ${msg}: ${code ?? ''} ${message} (${typeof client === 'string' ? client : 'no client'})`
      }),
    `${nodeId}: ${log.length} lines of log: ${[...countBy(log.map(({level, msg}) => `${level} ${msg}`))]
      .sort(([, a], [, b]) => b - a)
      .slice(0, 12)
      .map(([line, count]) => `${count} × ${line}`)
      .join('; ')}`,
  ])
  process.stderr.write(
    [...lines, `connections: ${spread(connections)}`, JSON.stringify(seen)].join('\n') + '\n',
  )
}

function countBy(values: readonly string[]): Map<string, number> {
  const counts = new Map<string, number>()
  for (const value of values) counts.set(value, (counts.get(value) ?? 0) + 1)
  return counts
}
