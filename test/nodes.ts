import assert from 'node:assert/strict'
import {spawn} from 'node:child_process'
import {once} from 'node:events'
import {readdirSync, readFileSync} from 'node:fs'
import {join} from 'node:path'
import {createInterface} from 'node:readline'
import {fileURLToPath} from 'node:url'
import {expect} from 'vitest'
import {urlOf, type Endpoint} from '../src/net/endpoint.ts'
import type {Sql} from '../src/postgres/sql.ts'
import {errcode} from '../src/source/open.ts'
import {assertMirror} from './mirror.ts'
import {makeFile, mutateOnce, type Chance} from './mutator.ts'
import type {Site} from './site.ts'
import {isAlive} from './workers.ts'

export type Role = 'node-a' | 'node-b' | 'node-c'

export type LogLine = {readonly msg: string; readonly level: string} & Readonly<Record<string, unknown>>

/** An `owsync node` in a process group of its own, which a test may treat as badly as it likes. */
export type NodeProcess = AsyncDisposable & {
  readonly nodeId: string
  readonly pid: number
  readonly log: readonly LogLine[]
  /** Signals the node's own process. */
  kill(signal: NodeJS.Signals): void
  /** Signals the node and all processes that it has started. */
  killAll(signal: NodeJS.Signals): void
  /** Processes that sync for it. */
  workers(): number[]
  isRunning(): boolean
  /** The exit code; `null` when a signal ended it. */
  readonly ended: Promise<number | null>
}

export type NodeOptions = {
  readonly env?: NodeJS.ProcessEnv
  /** Another way to the database: a proxy before it. */
  readonly endpoint?: Endpoint
  /** A TypeScript module of this folder that the process loads first. */
  readonly preload?: string
}

/** A lease that a test can wait for the end of. */
export const SHORT_LEASE = {LEASE_DURATION: '3s', HEARTBEAT_INTERVAL: '700ms'}

/** Longer than anything takes, on a machine that is busy with other things. */
export const patient = {timeout: 60_000, interval: 50}

/** What `./owsync` starts its process with: without it one keeps up to 100 MB more. */
const launcher = {
  flags: ['--disable-warning=ExperimentalWarning', '--max-semi-space-size=8'],
  environment: {
    MALLOC_ARENA_MAX: '2',
    MALLOC_MMAP_THRESHOLD_: '65536',
    MALLOC_TRIM_THRESHOLD_: '131072',
  },
}

const main = fileURLToPath(new URL('../src/main.ts', import.meta.url))

/** Starts a node of the site's cluster. It goes, with its workers, at the end of its scope. */
export function startNode(site: Site, role: Role, {env, endpoint, preload}: NodeOptions = {}): NodeProcess {
  const {cluster} = site.host
  const args =
    preload === undefined ? [] : ['--import', fileURLToPath(new URL(`./${preload}`, import.meta.url))]
  const child = spawn(process.execPath, [...launcher.flags, ...args, main, 'node'], {
    stdio: ['ignore', 'inherit', 'pipe'],
    detached: true,
    env: {
      PATH: process.env['PATH'],
      NODE_COMPILE_CACHE: process.env['NODE_COMPILE_CACHE'],
      ...launcher.environment,
      DATABASE_URL: urlOf(endpoint ?? site.host.endpoint),
      CLUSTER_NAME: cluster,
      STATE_DIR: site.stateDir,
      ROLE: role,
      API_PORT: '0',
      LOG_FORMAT: 'json',
      ...SHORT_LEASE,
      ...env,
    },
  })
  const log: LogLine[] = []
  createInterface({input: child.stderr}).on('line', line => {
    if (process.env['OWSYNC_TEST_SHOW_LOGS'] === '1') process.stderr.write(`${role} ${line}\n`)
    log.push(line.startsWith('{') ? (JSON.parse(line) as LogLine) : {msg: line, level: 'raw'})
  })
  const ended = once(child, 'close').then(([code]) => code as number | null)
  const pid = child.pid ?? 0
  const isRunning = () => child.exitCode === null && child.signalCode === null
  const killAll = (signal: NodeJS.Signals) => {
    try {
      process.kill(-pid, signal)
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code !== 'ESRCH') throw error
    }
  }
  return {
    nodeId: `${cluster}-${role}`,
    pid,
    log,
    kill: signal => child.kill(signal),
    killAll,
    workers: () => childrenOf(pid).filter(isAlive),
    isRunning,
    ended,
    async [Symbol.asyncDispose]() {
      killAll('SIGKILL')
      killAll('SIGCONT')
      await ended
    },
  }
}

/** Waits until one of the nodes leads, by the lease and by its own word. */
export async function leaderOf(site: Site, nodes: readonly NodeProcess[]): Promise<NodeProcess> {
  let found: NodeProcess | undefined
  await expect
    .poll(async () => {
      const leader = await leaderId(site.db)
      found = nodes.find(node => node.nodeId === leader && node.isRunning())
      return found !== undefined
    }, patient)
    .toBe(true)
  return found as NodeProcess
}

/** Where the node serves its API, as soon as it does. */
export async function apiOf({log}: NodeProcess): Promise<string> {
  const url = () => log.find(({msg}) => msg === 'the API listens')?.['url']
  await expect.poll(url, patient).toBeTypeOf('string')
  return String(url())
}

/** The node that has a lease which lasts. */
export async function leaderId(sql: Sql): Promise<string | undefined> {
  const [row] = await sql<{leader: string | null}>`
    select case when expires_at > clock_timestamp() then leader_id end as leader from sync_metadata.leader_election`
  return row?.leader ?? undefined
}

export async function epochOf(sql: Sql): Promise<bigint> {
  const [row] = await sql<{epoch: bigint}>`select epoch from sync_metadata.leader_election`
  return row?.epoch ?? 0n
}

const SQLITE_BUSY = 5

/** A client whose file the test changes while nodes sync it. */
export type BusyClient = AsyncDisposable & {
  readonly name: string
  readonly file: string
  /** Stops changing the file. */
  rest(): void
}

/** Registers a client of the site, due as often as can be, and keeps changing its file until it is to rest. */
export async function busyClient(
  site: Site,
  name: string,
  chance: Chance,
  {
    rows = 60,
    journal = 'delete',
    everyMs = 250,
    waits = false,
  }: {
    rows?: number
    journal?: 'delete' | 'wal'
    everyMs?: number
    /** Whether it tries later when its file stays locked: a process that is frozen while it reads keeps its lock. */
    waits?: boolean
  } = {},
): Promise<BusyClient> {
  const file = join(site.folder, `${name}.db`)
  makeFile(file, chance, {rows, journal})
  await site.host`
    select sync_metadata.register_deployment(${name}, ${JSON.stringify({sqlite_path: file, sync_schedule: 'live', sync_enabled: true})})`
  let timer: NodeJS.Timeout | undefined = setInterval(() => {
    try {
      mutateOnce(file, chance)
    } catch (error) {
      if (!waits || errcode(error) !== SQLITE_BUSY) throw error
    }
  }, everyMs)
  const rest = () => {
    clearInterval(timer)
    timer = undefined
  }
  return {
    name,
    file,
    rest,
    [Symbol.asyncDispose]: () => {
      rest()
      return Promise.resolve()
    },
  }
}

export async function generationOf(sql: Sql, {name}: {readonly name: string}): Promise<bigint> {
  const [row] = await sql<{generation: bigint}>`
    select generation from sync_metadata.client_deployments where client_name = ${name}`
  return row?.generation ?? 0n
}

/** Waits until cuts of the client have been committed since. */
export async function isSynced(sql: Sql, client: {readonly name: string}, cuts = 1n): Promise<void> {
  const before = await generationOf(sql, client)
  await expect.poll(() => generationOf(sql, client), patient).toBeGreaterThanOrEqual(before + cuts)
}

/**
 * Holds what must be true after every fault: the file at rest and the target become equal, exactly one of the nodes
 * leads, and no cut of an older epoch was committed after one of a newer epoch.
 */
export async function holdsAfterwards(
  site: Site,
  nodes: readonly NodeProcess[],
  client: BusyClient,
): Promise<NodeProcess> {
  const leader = await leaderOf(site, nodes)
  client.rest()
  let last: unknown
  const isEqual = async () => {
    try {
      await assertMirror(site.db, client.name, client.file)
      return true
    } catch (error) {
      last = error
      return false
    }
  }
  await expect
    .poll(isEqual, patient)
    .toBe(true)
    .catch((error: unknown) => {
      throw last ?? error
    })
  await noStaleWrites(site.db)
  // A renewal may be late on a busy machine: then nobody leads for a moment, but never somebody else.
  const seen = new Set<string | undefined>()
  const lookAgain = async () => {
    const now = await leaderId(site.db)
    seen.add(now)
    return now
  }
  await expect.poll(lookAgain, patient).toBe(leader.nodeId)
  seen.delete(undefined)
  assert.deepEqual([...seen], [leader.nodeId])
  return leader
}

/** Epochs only grow along the generations of each deployment, and none was committed after it had been superseded. */
export async function noStaleWrites(sql: Sql): Promise<void> {
  const late = await sql`
    select j.generation, j.epoch, j.finished_at, l.epoch as led, l.acquired_at
    from sync_metadata.sync_jobs j cross join sync_metadata.leader_election l
    where j.generation is not null and j.epoch < l.epoch and j.finished_at > l.acquired_at`
  assert.deepEqual(late, [], 'a cut of an older epoch was committed after a newer epoch had begun')
  const stale = await sql`
    select * from (
      select deployment_id, generation, epoch, max(epoch) over (
        partition by deployment_id order by generation rows between unbounded preceding and 1 preceding) as newest
      from sync_metadata.sync_jobs where generation is not null
    ) j where epoch < newest`
  assert.deepEqual(stale, [], 'a cut of an older epoch was committed after one of a newer epoch')
}

/**
 * Keeps the client's cuts from being committed while `work` runs: a sync writes all of its cut, and its last statement
 * waits. @param work is given what resolves when a sync has come so far.
 */
export async function holdingCommits<T>(
  site: Site,
  {name}: {readonly name: string},
  work: (isHeld: () => Promise<void>) => Promise<T>,
): Promise<T> {
  return await site.db.begin(async tx => {
    await tx`select from sync_metadata.client_deployments where client_name = ${name} for no key update`
    return await work(async () => {
      await expect
        .poll(async () => {
          const [row] = await tx<{is: boolean}>`select exists (
            select from pg_locks where not granted and transactionid = pg_current_xact_id()::xid) as is`
          return row?.is
        }, patient)
        .toBe(true)
    })
  })
}

function childrenOf(pid: number): number[] {
  return readdirSync('/proc')
    .filter(name => /^\d+$/.test(name) && parentOf(name) === pid)
    .map(Number)
}

function parentOf(name: string): number {
  try {
    const stat = readFileSync(`/proc/${name}/stat`, 'utf8')
    return Number(stat.slice(stat.lastIndexOf(')') + 2).split(' ')[1])
  } catch {
    return 0 // it has just ended
  }
}
