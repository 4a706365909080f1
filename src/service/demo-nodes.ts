import {fork, type ChildProcess} from 'node:child_process'
import {createInterface} from 'node:readline'
import {setTimeout as sleep} from 'node:timers/promises'
import type {Env} from '../config/config.ts'
import {exitOf} from '../postgres/server.ts'
import type {Sql} from '../postgres/sql.ts'

export const demoRoles = ['node-a', 'node-b'] as const
export type DemoRole = (typeof demoRoles)[number]

/** One of a demo's nodes: `owsync node` in a process of its own, which ends with ours at the latest. */
export type DemoNode = AsyncDisposable & {
  readonly nodeId: string
  readonly role: DemoRole
  /** Where its API listens; rejects when the node ends before it does. */
  readonly api: Promise<string>
  /** How it ended; never rejects. */
  readonly ended: Promise<string>
  isRunning(): boolean
  /** Ends it at once, wherever it is. */
  kill(): void
}

/** The lease of a demo's cluster, as its nodes last wrote it. */
export type DemoLeader = {readonly leader: string | undefined; readonly epoch: bigint}

const STOP_WITHIN_MS = 10_000

/** @param program `main.ts`, or what it was compiled to. */
export function startDemoNode(program: string, role: DemoRole, env: Env): DemoNode {
  const child = fork(program, ['node'], {
    stdio: ['ignore', 'ignore', 'pipe', 'ipc'],
    env: {
      PATH: process.env['PATH'],
      ...env,
      ROLE: role,
      API_PORT: '0',
      LOG_FORMAT: 'json',
      LOG_LEVEL: 'info',
    },
  })
  // It cannot be told anything: the channel is there to be cut when we end.
  child.on('error', () => undefined)
  const ended = exitOf(child)
  const isRunning = () => child.exitCode === null && child.signalCode === null
  return {
    nodeId: `${env['CLUSTER_NAME'] ?? ''}-${role}`,
    role,
    api: addressOf(child, ended),
    ended,
    isRunning,
    kill: () => child.kill('SIGKILL'),
    async [Symbol.asyncDispose]() {
      child.kill('SIGTERM')
      const force = setTimeout(() => child.kill('SIGKILL'), STOP_WITHIN_MS)
      await ended
      clearTimeout(force)
    },
  }
}

/** @throws the signal's reason when nobody leads until then. */
export async function awaitLeader(
  sql: Sql,
  isIt: (leader: DemoLeader) => boolean,
  signal: AbortSignal,
): Promise<DemoLeader & {readonly leader: string}> {
  for (;;) {
    const seen = await readLeader(sql)
    if (seen.leader !== undefined && isIt(seen)) return {...seen, leader: seen.leader}
    await sleep(20, undefined, {signal})
  }
}

export async function readLeader(sql: Sql): Promise<DemoLeader> {
  const [row] = await sql<{leader: string | null; epoch: bigint}>`
    select case when expires_at > clock_timestamp() then leader_id end as leader, epoch
    from sync_metadata.leader_election`
  return {leader: row?.leader ?? undefined, epoch: row?.epoch ?? 0n}
}

function addressOf(child: ChildProcess, ended: Promise<string>): Promise<string> {
  const said: string[] = []
  const address = new Promise<string>((resolve, reject) => {
    if (child.stderr === null) throw new Error('a node’s log is not to be read')
    createInterface({input: child.stderr}).on('line', line => {
      const api = /"api":"(http[^"]+)"/.exec(line)?.[1]
      if (api !== undefined) resolve(api)
      if (said.push(line) > 20) said.shift()
    })
    void ended.then(how => {
      reject(new Error(`a node ${how}: ${said.join('\n')}`))
    })
  })
  // Whoever wants to know asks.
  address.catch(() => undefined)
  return address
}
