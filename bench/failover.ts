import {spawn, type ChildProcess} from 'node:child_process'
import {once} from 'node:events'
import {join} from 'node:path'
import {setTimeout as sleep} from 'node:timers/promises'
import {parseEndpoint, urlOf} from '../src/net/endpoint.ts'
import type {Pool} from '../src/postgres/sql.ts'
import {proxyTo, type Proxy} from '../test/proxy.ts'
import type {Benchmark} from './bench.ts'
import {environmentOf, stateFolder} from './ours.ts'
import {CLUSTER, type Database} from './postgres.ts'
import {bounded, type Result} from './result.ts'

/** What befalls the leader, and how long nobody may lead after it, at worst. */
const faults: Readonly<Record<string, {readonly work: string; readonly must: number}>> = {
  start: {work: 'two nodes are started: until one leads', must: 5_000},
  graceful: {work: 'the leader is stopped (SIGTERM): until the other leads', must: 1_000},
  killed: {work: 'the leader is killed (SIGKILL): until the other leads', must: 3_000},
  frozen: {work: 'the leader is frozen (SIGSTOP): until the other leads', must: 15_000},
  'cut-off': {work: 'the leader’s network swallows everything: until the other leads', must: 15_000},
}

/**
 * How long a cluster is without a leader that works, by what has befallen the one it had: the worst of all rounds, with
 * the settings as they are by default, seen from outside.
 */
export const benchFailover: Benchmark = async ({server, rounds, say}) => {
  await using database = await server.database('migrated')
  const results: Result[] = []
  for (const [fault, {work, must}] of Object.entries(faults)) {
    const times: number[] = []
    for (let round = 0; round < rounds; round++) {
      await using pair = await Pair.start(database)
      const startMs = await pair.leads()
      const ms = fault === 'start' ? startMs : await pair.suffer(fault)
      times.push(ms)
      say(`round ${round + 1}, ${fault}: ${(ms / 1000).toFixed(2)} s`)
    }
    const about = {name: 'failover', work: `${work}, worst of ${rounds}`, must}
    results.push(bounded(about, [Math.max(...times)]))
  }
  return results
}

type Node = {readonly child: ChildProcess; readonly nodeId: string; readonly proxy: Proxy}

const START_WITHIN_MS = 60_000
const roles = ['node-a', 'node-b'] as const

/** The two nodes of a host as processes, each with a network of its own to Postgres. */
class Pair implements AsyncDisposable {
  readonly #admin: Pool
  readonly #nodes: readonly Node[]
  readonly #startedAt = performance.now()
  readonly #resources: AsyncDisposableStack

  private constructor(admin: Pool, nodes: readonly Node[], resources: AsyncDisposableStack) {
    this.#admin = admin
    this.#nodes = nodes
    this.#resources = resources
  }

  static async start(database: Database): Promise<Pair> {
    await using resources = new AsyncDisposableStack()
    const state = resources.use(stateFolder())
    const nodes: Node[] = []
    for (const role of roles) {
      const proxy = resources.use(await proxyTo(parseEndpoint(database.url)))
      const child = spawn(
        process.execPath,
        ['--disable-warning=ExperimentalWarning', join(import.meta.dirname, '../src/main.ts'), 'node'],
        {
          stdio: ['ignore', 'ignore', 'pipe'],
          detached: true,
          env: {
            ...environmentOf({url: urlOf(proxy.endpoint)}, state.path),
            NODE_COMPILE_CACHE: process.env['NODE_COMPILE_CACHE'],
            ROLE: role,
            API_PORT: '0',
            LOG_FORMAT: 'json',
          },
        },
      )
      child.stderr.resume()
      const ended = once(child, 'exit')
      resources.defer(async () => {
        signalAll(child, 'SIGKILL')
        await ended
      })
      nodes.push({child, nodeId: `${CLUSTER}-${role}`, proxy})
    }
    return new Pair(database.admin, nodes, resources.move())
  }

  /** Waits until one of them leads and the other is there. @returns after how many ms since their start one led. */
  async leads(): Promise<number> {
    const ms = await this.#until(async () => (await this.#leader()) !== undefined, this.#startedAt)
    await this.#until(async () => {
      const [row] = await this.#admin<{count: number}>`
        select count(*)::int as count from sync_metadata.sync_nodes
        where stopped_at is null and last_heartbeat > clock_timestamp() - interval '3 seconds'`
      return row?.count === roles.length
    }, performance.now())
    // Whenever it comes between two renewals.
    await sleep(Math.random() * 2_500)
    return ms
  }

  /** @returns after how many ms the other node leads. */
  async suffer(fault: string): Promise<number> {
    const leaderId = await this.#leader()
    const leader = this.#nodes.find(({nodeId}) => nodeId === leaderId)
    if (leader === undefined) throw new Error('nobody leads')
    const since = performance.now()
    switch (fault) {
      case 'graceful':
        leader.child.kill('SIGTERM')
        break
      case 'killed':
        signalAll(leader.child, 'SIGKILL')
        break
      case 'frozen':
        signalAll(leader.child, 'SIGSTOP')
        break
      default:
        leader.proxy.silence('up', 'down')
    }
    return await this.#until(async () => {
      const now = await this.#leader()
      return now !== undefined && now !== leader.nodeId
    }, since)
  }

  async #until(isSo: () => Promise<boolean>, since: number): Promise<number> {
    while (!(await isSo())) {
      if (performance.now() - since > START_WITHIN_MS) throw new Error('no node leads')
      await sleep(5)
    }
    return performance.now() - since
  }

  async #leader(): Promise<string | undefined> {
    const [row] = await this.#admin<{leader: string | null}>`
      select case when expires_at > clock_timestamp() then leader_id end as leader
      from sync_metadata.leader_election where cluster_name = ${CLUSTER}`
    return row?.leader ?? undefined
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#resources.disposeAsync()
    // The next pair does not wait for what these have left.
    await this.#admin`update sync_metadata.leader_election
      set leader_id = null, expires_at = '-infinity' where cluster_name = ${CLUSTER}`
    await this.#admin`delete from sync_metadata.sync_nodes`
  }
}

/** To the node and all that it has started. */
function signalAll(child: ChildProcess, signal: NodeJS.Signals): void {
  try {
    process.kill(-(child.pid ?? 0), signal)
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== 'ESRCH') throw error
  }
}
