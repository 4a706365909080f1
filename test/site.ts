import {spawn, type ChildProcess} from 'node:child_process'
import {readFileSync} from 'node:fs'
import {mkdtemp, rm} from 'node:fs/promises'
import {tmpdir} from 'node:os'
import {join} from 'node:path'
import {fileURLToPath} from 'node:url'
import {loadConfig} from '../src/config/config.ts'
import {urlOf, type Endpoint} from '../src/net/endpoint.ts'
import {syncOnce, type SyncRequest} from '../src/service/sync-once.ts'
import type {SyncResult} from '../src/sync/sync.ts'
import {testDatabase, type TestDatabase} from './database.ts'
import {testHost, type TestHost} from './host.ts'

/** A host as an operator has it: a database, a role, a STATE_DIR, and a folder for clients' files. */
export type Site = AsyncDisposable & {
  /** As the superuser. */
  readonly db: TestDatabase
  /** As the host's own role. */
  readonly host: TestHost
  readonly folder: string
  readonly stateDir: string
  /** Runs `owsync sync --json` as a real process, to its end. */
  sync(client: string, options?: RunOptions): Promise<Run>
  /** The same, for whoever wants to end it sooner. */
  start(client: string, options?: RunOptions): Running
  /** The same within this process: quicker, and a failure is thrown. */
  syncHere(client: string, request?: Partial<SyncRequest>, env?: NodeJS.ProcessEnv): Promise<SyncResult>
}

export type RunOptions = {
  readonly sqlite?: string
  /** More flags: `--full`. */
  readonly flags?: readonly string[]
  readonly env?: NodeJS.ProcessEnv
  /** Another way to the database: a proxy before it. */
  readonly endpoint?: Endpoint
  /** A TypeScript module of this folder that the process loads first, to reach seams inside. */
  readonly preload?: string
  /** Put before the command: `['prlimit', '--fsize=1000']`. */
  readonly prefix?: readonly string[]
  readonly uid?: number
  /** Ends a run that hangs; 90 s. */
  readonly timeoutMs?: number
}

/** How a run ended. */
export type Run = {
  /** `null` when a signal ended it. */
  readonly code: number | null
  /** What it printed; bigints are numbers here, as JSON has them. */
  readonly result: (Omit<SyncResult, 'generation'> & {readonly generation: number}) | undefined
  readonly error: {readonly code: string; readonly message: string; readonly next: string} | undefined
  readonly out: string
  readonly err: string
  /** The most memory the process had, in MB. */
  readonly peakMb: number
  readonly ms: number
}

export type Running = {
  readonly child: ChildProcess
  readonly ended: Promise<Run>
  readonly hasEnded: () => boolean
  kill(): void
}

const main = fileURLToPath(new URL('../src/main.ts', import.meta.url))

/** Sets up a host whose scope removes it. */
export async function testSite(
  cluster = 'host-a',
  database: () => Promise<TestDatabase> = testDatabase,
): Promise<Site> {
  await using resources = new AsyncDisposableStack()
  const folder = await mkdtemp(join(tmpdir(), 'owsync-site-'))
  resources.defer(() => rm(folder, {recursive: true, force: true}))
  const db = resources.use(await database())
  const host = resources.adopt(await testHost(db, cluster), pool => pool.end())
  const stateDir = join(folder, 'state')
  const start = (client: string, options: RunOptions = {}) =>
    startSync(client, {endpoint: host.endpoint, cluster, stateDir, ...options})
  const settings = {DATABASE_URL: urlOf(host.endpoint), CLUSTER_NAME: cluster, STATE_DIR: stateDir}
  const syncHere: Site['syncHere'] = async (client, request, env) => {
    const config = await loadConfig({...settings, ...env})
    const asked = {client, full: false, dryRun: false, accept: false, ...request}
    return syncOnce(host, config, asked, new AbortController().signal)
  }
  const kept = resources.move()
  return {
    syncHere,
    db,
    host,
    folder,
    stateDir,
    start,
    sync: (client, options) => start(client, options).ended,
    [Symbol.asyncDispose]: () => kept.disposeAsync(),
  }
}

function startSync(
  client: string,
  options: RunOptions & {readonly endpoint: Endpoint; readonly cluster: string; readonly stateDir: string},
): Running {
  const {sqlite, flags = [], preload, prefix = [], uid, timeoutMs = 90_000} = options
  const since = performance.now()
  const [program = process.execPath, ...args] = [
    ...prefix,
    process.execPath,
    '--disable-warning=ExperimentalWarning',
    ...(preload === undefined ? [] : ['--import', fileURLToPath(new URL(`./${preload}`, import.meta.url))]),
    ...[main, 'sync', '--json', '--client', client],
    ...(sqlite === undefined ? [] : ['--sqlite', sqlite]),
    ...flags,
  ]
  const child = spawn(program, args, {
    stdio: ['ignore', 'pipe', 'pipe'],
    ...(uid === undefined ? {} : {uid, gid: uid}),
    env: {
      PATH: process.env['PATH'],
      NODE_COMPILE_CACHE: process.env['NODE_COMPILE_CACHE'],
      DATABASE_URL: urlOf(options.endpoint),
      CLUSTER_NAME: options.cluster,
      STATE_DIR: options.stateDir,
      ...options.env,
    },
  })
  const text = {out: '', err: ''}
  child.stdout.setEncoding('utf8').on('data', (more: string) => (text.out += more))
  child.stderr.setEncoding('utf8').on('data', (more: string) => (text.err += more))
  let peakMb = 0
  const watch = setInterval(() => {
    peakMb = Math.max(peakMb, peakOf(child.pid))
  }, 10)
  const limit = setTimeout(() => child.kill('SIGKILL'), timeoutMs)
  const ended = new Promise<Run>((resolve, reject) => {
    child.once('error', reject)
    child.once('close', code => {
      clearInterval(watch)
      clearTimeout(limit)
      const last = text.out.trimEnd().split('\n').at(-1) ?? ''
      const printed = last.startsWith('{')
        ? (JSON.parse(last) as Partial<NonNullable<Run['result']>> & Pick<Run, 'error'>)
        : undefined
      resolve({
        code,
        result: printed === undefined || 'error' in printed ? undefined : printed,
        error: printed?.error,
        ...text,
        peakMb,
        ms: performance.now() - since,
      })
    })
  })
  return {
    child,
    ended,
    hasEnded: () => child.exitCode !== null || child.signalCode !== null,
    kill: () => child.kill('SIGKILL'),
  }
}

/** The kernel's own record of the most memory a process has had resident: proc(5), VmHWM. */
function peakOf(pid: number | undefined): number {
  try {
    const status = readFileSync(`/proc/${pid ?? 0}/status`, 'utf8')
    return Number(/^VmHWM:\s+(\d+) kB/m.exec(status)?.[1] ?? 0) / 1024
  } catch {
    return 0 // it has just ended
  }
}
