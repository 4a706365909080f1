import {spawn} from 'node:child_process'
import {copyFileSync, mkdirSync, readFileSync} from 'node:fs'
import {join} from 'node:path'
import {DatabaseSync} from 'node:sqlite'
import {setTimeout as sleep} from 'node:timers/promises'
import {withLease, type Lease} from '../src/cluster/lease.ts'
import {loadConfig, type Config} from '../src/config/config.ts'
import {parseEndpoint, type Endpoint} from '../src/net/endpoint.ts'
import {connect} from '../src/postgres/connect.ts'
import type {Pool} from '../src/postgres/sql.ts'
import {followLive} from '../src/service/live.ts'
import type {Order} from '../src/service/worker-messages.ts'
import {Workers, workersOptions} from '../src/service/workers.ts'
import {sourceWatcher} from '../src/source/watch.ts'
import {findDeployment, registerDeployment} from '../src/state/deployments.ts'
import {silentLog} from '../src/telemetry/log.ts'
import type {Benchmark} from './bench.ts'
import {environmentOf, stateFolder} from './ours.ts'
import {CLUSTER} from './postgres.ts'
import {bounded, unmeasured, type Result} from './result.ts'

const DEPLOYMENTS = 200
const INTERVAL_MS = 60_000
/** Of mostly idle deployments, so many are written to once within an interval. */
const WRITTEN = 10
/** How long a fleet is watched: each deployment has its turn once. */
const WATCHED_MS = INTERVAL_MS

const whole = `${DEPLOYMENTS} deployments`
const about = (work: string) => ({name: 'fleet', work: `${whole}, ${work}: CPU time a second`, must: 100})
const memory = {name: 'fleet', work: `${whole}: the most memory of a sync worker (VmHWM)`, must: 200}

/**
 * What a fleet of mostly idle deployments costs a host: the CPU time of the process that leads and of its workers, in ms
 * a second (100 are a tenth of a core). Postgres and the apps are others'.
 */
export const benchFleet: Benchmark = async ({server, say}) => {
  await using database = await server.database('migrated')
  using state = stateFolder()
  const endpoint = parseEndpoint(database.url)
  await using pool = connect(endpoint, {max: 4, applicationName: 'owsync-bench'})
  const config = await loadConfig(environmentOf(database, state.path))
  const orders = await makeFleet(pool, join(state.path, 'sources'))
  const results: Result[] = []
  const {signal} = new AbortController()
  const leading = {
    nodeId: `${CLUSTER}-cli`,
    clusterName: CLUSTER,
    durationMs: config.leaseDurationMs,
    renewEveryMs: config.heartbeatIntervalMs,
    patienceMs: config.leaseDurationMs,
  }
  await withLease(
    pool,
    leading,
    async lease => {
      results.push(...(await measure(config, endpoint, lease, orders, say)))
    },
    signal,
  )
  return results
}

async function measure(
  config: Config,
  endpoint: Endpoint,
  lease: Lease,
  orders: readonly Order[],
  say: (text: string) => void,
): Promise<Result[]> {
  await using workers = new Workers(workersOptions(config, endpoint, lease, silentLog))
  const since = performance.now()
  await Promise.all(orders.map(order => workers.sync(order, lease.signal)))
  say(`fleet: ${whole} loaded in ${((performance.now() - since) / 1_000).toFixed(1)} s`)
  // Files that have just changed are looked at once more.
  await sleep(3_000)
  await Promise.all(orders.map(order => workers.sync(order, lease.signal)))

  if (cpuOf(process.pid) === undefined) {
    say('fleet: not measured, the system does not tell')
    return [unmeasured(about('every 60 s')), unmeasured(about('live')), unmeasured(memory)]
  }
  const timed = await cpuDuring(workers, async () => {
    const applied = await atIntervals(workers, orders, lease.signal)
    if (applied < WRITTEN) throw new Error(`only ${applied} of ${WRITTEN} changes arrived`)
  })
  const live = await cpuDuring(workers, async () => {
    const applied = await allLive(workers, orders, lease.signal)
    if (applied < WRITTEN) throw new Error(`only ${applied} of ${WRITTEN} changes arrived`)
  })
  const peakMb = Math.max(...workers.states.map(({pid}) => peakOf(pid)))
  return [
    bounded(about(`every 60 s, ${WRITTEN} of them written to`), [timed]),
    bounded(about(`live, ${WRITTEN} of them written to`), [live]),
    {...unmeasured(memory), holds: peakMb <= memory.must, value: Math.round(peakMb), unit: 'MB'},
  ]
}

/** Each deployment has its turn once within the interval. @returns how many syncs have applied something. */
async function atIntervals(workers: Workers, orders: readonly Order[], signal: AbortSignal): Promise<number> {
  await using _apps = startApps(orders.slice(0, WRITTEN), WATCHED_MS / 2)
  const startedAt = performance.now()
  const runs: Promise<boolean>[] = []
  // Those that are written to come last: their changes are there by then.
  for (const [i, order] of orders.toReversed().entries()) {
    await sleep(Math.max(0, startedAt + (i * WATCHED_MS) / orders.length - performance.now()))
    runs.push(workers.sync(order, signal).then(({mode}) => mode === 'incremental'))
  }
  const applied = (await Promise.all(runs)).filter(Boolean).length
  await sleep(Math.max(0, startedAt + WATCHED_MS - performance.now()))
  return applied
}

/** All deployments are followed live for as long. @returns how many syncs have applied something. */
async function allLive(workers: Workers, orders: readonly Order[], signal: AbortSignal): Promise<number> {
  const over = new AbortController()
  const watch = sourceWatcher(silentLog)
  let applied = 0
  const following = orders.map(order =>
    followLive(
      {
        workers,
        watch,
        order: () => order,
        onEvent: event => {
          if ('result' in event && event.result.mode === 'incremental') applied++
        },
      },
      AbortSignal.any([signal, over.signal]),
    ),
  )
  await using _apps = startApps(orders.slice(0, WRITTEN), WATCHED_MS - 5_000)
  await sleep(WATCHED_MS)
  over.abort(new Error('measured'))
  await Promise.allSettled(following)
  return applied
}

/** @returns CPU time of this process and of the workers while `work` ran, in ms a second. */
async function cpuDuring(workers: Workers, work: () => Promise<void>): Promise<number> {
  const pids = [process.pid, ...workers.states.map(({pid}) => pid ?? 0)]
  const spent = () => pids.reduce((sum, pid) => sum + (cpuOf(pid) ?? 0), 0)
  const [since, before] = [performance.now(), spent()]
  await work()
  return (spent() - before) / ((performance.now() - since) / 1_000)
}

/** Makes equal small files and registers a client for each. */
async function makeFleet(pool: Pool, folder: string): Promise<Order[]> {
  mkdirSync(folder, {recursive: true})
  const sample = join(folder, 'sample.db')
  // Few tables: what is measured comes after their first load, which costs in proportion to them.
  using db = new DatabaseSync(sample)
  db.exec(`create table user (id text primary key, name text, updated_at bigint);
    create table chat (id text primary key, user_id text, title text, chat json, updated_at bigint);
    with recursive n (i) as (select 1 union all select i + 1 from n where i < 200)
    insert into user select 'user-' || i, 'Ada', i from n;
    insert into chat select 'chat-' || id, id, 'Tea', '{"history": {"messages": {}}}', updated_at from user`)
  const orders: Order[] = []
  for (let i = 0; i < DEPLOYMENTS; i++) {
    const name = `fleet-${i}`
    const sqlitePath = join(folder, name, 'webui.db')
    mkdirSync(join(folder, name))
    copyFileSync(sample, sqlitePath)
    await registerDeployment(pool, name, sqlitePath, 60)
    const found = await findDeployment(pool, name.replaceAll('-', '_'))
    if (found === undefined) throw new Error(`${name} is not registered`)
    const {deploymentId, clientName, schemaName} = found
    orders.push({deploymentId, clientName, schemaName, sqlitePath, full: false, dryRun: false, accept: false})
  }
  return orders
}

// An app of each deployment: opens its file, every other one in WAL mode, and commits one row, spread over the time.
const apps = `
  const {DatabaseSync} = require('node:sqlite')
  const [overMs, ...files] = process.argv.slice(1)
  files.forEach((file, i) => {
    const db = new DatabaseSync(file, {timeout: 5000})
    if (i % 2) db.exec('pragma journal_mode = wal')
    setTimeout(() => db.exec('update user set name = name || 1 where rowid = 1'), (i * overMs) / files.length)
  })
  process.stdin.resume().on('end', () => process.exit())`

function startApps(orders: readonly Order[], overMs: number): AsyncDisposable {
  const files = orders.map(({sqlitePath}) => sqlitePath)
  const child = spawn(process.execPath, ['--no-warnings', '-e', apps, String(overMs), ...files], {
    stdio: ['pipe', 'ignore', 'inherit'],
  })
  const ended = new Promise<void>(resolve => {
    child.once('close', () => {
      resolve()
    })
  })
  return {
    [Symbol.asyncDispose]: async () => {
      child.stdin.end()
      await ended
    },
  }
}

/** Clock ticks a second, as Linux counts them for everybody. */
const TICKS = 100

/** @returns CPU time of a process so far in ms; `undefined` where the system does not tell. */
function cpuOf(pid: number): number | undefined {
  try {
    // Behind the name, which may hold anything: state is the 3rd field, utime and stime are the 14th and 15th.
    const fields = readFileSync(`/proc/${pid}/stat`, 'utf8').split(') ').at(-1)?.split(' ') ?? []
    return ((Number(fields[11]) + Number(fields[12])) * 1_000) / TICKS
  } catch {
    return undefined
  }
}

function peakOf(pid: number | undefined): number {
  const status = readFileSync(`/proc/${pid}/status`, 'utf8')
  return Number(/^VmHWM:\s+(\d+)/m.exec(status)?.[1] ?? 0) / 1024
}
