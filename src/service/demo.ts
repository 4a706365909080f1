import {spawn} from 'node:child_process'
import {randomBytes} from 'node:crypto'
import {existsSync} from 'node:fs'
import {mkdir, readdir, rm} from 'node:fs/promises'
import {join, resolve} from 'node:path'
import {text} from 'node:stream/consumers'
import {setTimeout as sleep} from 'node:timers/promises'
import {fileURLToPath} from 'node:url'
import {loadConfig, type Config, type Env} from '../config/config.ts'
import {SyncError} from '../core/errors.ts'
import {makeFolder} from '../core/folder.ts'
import {parseEndpoint, urlOf, withChanges, type Endpoint} from '../net/endpoint.ts'
import {grantHost, removeHost} from '../postgres/admin.ts'
import {connect} from '../postgres/connect.ts'
import {pathsBelow, useEmbedded} from '../postgres/embedded.ts'
import {lockAlone, tryLock} from '../postgres/file-lock.ts'
import {migrate} from '../postgres/migrate.ts'
import {exitOf} from '../postgres/server.ts'
import type {Pool} from '../postgres/sql.ts'
import {sizes} from '../sample/generate.ts'
import {startWriter, type Writer} from '../sample/writer.ts'
import {startDemoNode, type DemoNode, type DemoRole} from './demo-nodes.ts'
import {addToken, tokensFile} from './token-file.ts'

// A demo has a database of its own in the embedded Postgres, whatever DATABASE_URL says, and a folder of its own below
// the state directory:
//   demo/mutex         locked while a demo begins
//   demo/run-ID/lock   locked while that demo lives
//   demo/run-ID/…      its SQLite files, and what `owsync` keeps in a STATE_DIR
// Both go when it ends. Those of a demo that was killed go when the next one begins.

/** The client that every demo syncs. */
export const DEMO_CLIENT = 'demo'

/** What its file is: tables with every kind of key, and a channel's nanoseconds, which no double holds. */
export const demoSample = {version: '0.10.2', seed: 11, ...sizes.demo} as const

/** A step of the demo did not hold. */
export class DemoFailedError extends SyncError {
  override readonly name = 'DemoFailedError'
  readonly code = 'SYNC_DEMO_FAILED'
  readonly next: string

  constructor(step: string, cause: unknown) {
    super(`the demo failed at ${step}: ${cause instanceof Error ? cause.message : String(cause)}`, {cause})
    this.next =
      cause instanceof SyncError ? cause.next : 'Run it again; if it fails again, report what it prints.'
  }
}

const CLUSTER = 'demo'
/** The guard of the embedded Postgres looks once a second whether anybody uses it. */
const GUARD_WITHIN_MS = 3_000
const applicationName = 'owsync/demo'

/** A place to show everything in: an empty database, a host with a login to it, and a folder. */
export type Demo = AsyncDisposable & {
  readonly folder: string
  /** The settings of the demo's host. */
  readonly config: Config
  /** The demo's database as that host. */
  readonly host: Pool
  /** The demo's database as its owner. */
  readonly owner: Pool
  readonly hostUrl: string
  readonly hostEndpoint: Endpoint
  /** Which Postgres it is and where, for a person. */
  readonly server: string
  /** Starts a program that uses `file` as the app does; it ends with the demo at the latest. */
  readonly startWriter: (file: string, rate: number) => Writer
  /** Starts one of the host's two nodes; it ends with the demo at the latest. */
  readonly startNode: (role: DemoRole) => DemoNode
  /** A token with which the nodes' API lets one operate. */
  readonly token: () => Promise<string>
  /** Starts `owsync` with these arguments and `--json`, as the host. Whoever starts it sees to its end. */
  readonly start: (args: readonly string[]) => Program
}

/** An `owsync` in a process of its own. */
export type Program = {
  /** Ends it at once, wherever it is. */
  readonly kill: () => void
  /** How it ended and what it printed; never rejects. */
  readonly ended: Promise<Ending>
}

export type Ending = {readonly how: string; readonly out: string; readonly err: string}

/** Makes the place for one demo. Any number may be open at once; disposing of it leaves nothing behind. */
export async function openDemo(stateDir: string, signal: AbortSignal): Promise<Demo> {
  await using resources = new AsyncDisposableStack()
  resources.defer(() => serverEnd(stateDir))
  const server = resources.use(await useEmbedded(stateDir, signal))
  const maintenance = parseEndpoint(server.adminUrl)
  const admin = resources.use(connect(maintenance, {max: 1, applicationName}))
  const folder = await claimFolder(stateDir, admin, maintenance, resources, signal)

  const database = databaseOf(folder)
  await admin`create database ${admin(database)} template template0`
  const ownerEndpoint = withChanges(maintenance, {database})
  const owner = resources.use(connect(ownerEndpoint, {max: 3, applicationName}))
  await migrate(owner)
  const login = await grantHost(owner, ownerEndpoint, {cluster: CLUSTER, hostname: CLUSTER})
  const host = resources.use(connect(login.endpoint, {max: 4, applicationName: `owsync/${CLUSTER}-cli`}))
  const env = {
    DATABASE_URL: login.url,
    CLUSTER_NAME: CLUSTER,
    STATE_DIR: folder,
    // What was compiled for us need not be compiled for them.
    NODE_COMPILE_CACHE: process.env['NODE_COMPILE_CACHE'],
  }
  const config = await loadConfig(env)
  const [row] = await owner<{version: string}>`
    select split_part(current_setting('server_version'), ' ', 1) as version`
  const kept = resources.move()
  return {
    folder,
    config,
    host,
    owner,
    hostUrl: urlOf(login.endpoint),
    hostEndpoint: login.endpoint,
    server: `PostgreSQL ${row?.version ?? ''} on ${maintenance.host}:${maintenance.port}`,
    startWriter(file, rate) {
      const writer = startWriter({file, seed: demoSample.seed, rate})
      kept.defer(async () => {
        // It may have been stopped before, or by the same Ctrl-C as we are.
        await writer.stop().catch(() => undefined)
      })
      return writer
    },
    startNode(role) {
      const node = startDemoNode(program, role, env)
      kept.use(node)
      return node
    },
    token: () => addToken(tokensFile(config), 'demo', 'operate'),
    start: args => startProgram(args, env),
    [Symbol.asyncDispose]: () => kept.disposeAsync(),
  }
}

/** Makes and locks a folder of our own; whatever `resources` are disposed of later, the folder and its database go. */
async function claimFolder(
  stateDir: string,
  admin: Pool,
  maintenance: Endpoint,
  resources: AsyncDisposableStack,
  signal: AbortSignal,
): Promise<string> {
  const home = join(stateDir, 'demo')
  const folder = join(home, `run-${randomBytes(4).toString('hex')}`)
  makeFolder(home)
  // Between being made and being locked, a folder looks like one that was left behind.
  using _alone = await lockAlone(join(home, 'mutex'), signal)
  for (const name of await readdir(home)) {
    if (!/^run-[0-9a-f]{8}$/.test(name)) continue
    using abandoned = tryLock(join(home, name, 'lock'), 'exclusive')
    if (abandoned) await remove(admin, maintenance, join(home, name))
  }
  await mkdir(folder, {mode: 0o700})
  const lock = tryLock(join(folder, 'lock'), 'exclusive')
  if (!lock) throw new Error(`${folder} is new, and somebody has locked it`)
  resources.use(lock)
  resources.defer(() => remove(admin, maintenance, folder))
  return folder
}

/** Removes a demo's login, its database and then its folder. What cannot be removed now is left to the next demo. */
async function remove(admin: Pool, maintenance: Endpoint, folder: string): Promise<void> {
  const database = databaseOf(folder)
  try {
    const found = await admin`select from pg_database where datname = ${database}`
    if (found.length > 0) {
      await using owner = connect(withChanges(maintenance, {database}), {max: 1, applicationName})
      await removeLogin(owner)
    }
    await admin`drop database if exists ${admin(database)} with (force)`
    await rm(folder, {recursive: true, force: true})
  } catch {
    return
  }
}

async function removeLogin(owner: Pool): Promise<void> {
  // Killed early, a demo has no host yet, or not even the control schema.
  const [row] = await owner<{hasSchema: boolean}>`
    select to_regclass('sync_metadata.client_deployments') is not null as "hasSchema"`
  if (row?.hasSchema !== true) return
  const hosts = await owner`select from sync_metadata.hosts where cluster_name = ${CLUSTER}`
  if (hosts.length === 0) return
  await owner`update sync_metadata.client_deployments set sync_enabled = false`
  await removeHost(owner, {cluster: CLUSTER})
}

/** Waits until the embedded Postgres has gone with its guard, unless somebody else uses it. */
async function serverEnd(stateDir: string): Promise<void> {
  const paths = pathsBelow(join(resolve(stateDir), 'postgres'))
  const deadline = performance.now() + GUARD_WITHIN_MS
  while (existsSync(paths.mutex) && performance.now() < deadline) {
    {
      using mutex = tryLock(paths.mutex, 'exclusive')
      using alone = mutex && tryLock(paths.users, 'exclusive')
      if (mutex && !alone) return
      using unguarded = alone && tryLock(paths.guard, 'exclusive')
      if (unguarded) return
    }
    await sleep(50)
  }
}

function databaseOf(folder: string): string {
  return `owsync_demo_${folder.slice(-8)}`
}

// The program we are: its source in a checkout, compiled in a package.
const extension = import.meta.url.endsWith('.ts') ? '.ts' : '.js'
const program = fileURLToPath(new URL(`../main${extension}`, import.meta.url))

function startProgram(args: readonly string[], env: Env): Program {
  const child = spawn(process.execPath, [...process.execArgv, program, ...args, '--json'], {
    stdio: ['ignore', 'pipe', 'pipe'],
    env: {PATH: process.env['PATH'], ...env},
  })
  const printed = Promise.all([text(child.stdout), text(child.stderr)])
  const ended = exitOf(child).then(async how => {
    const [out, err] = await printed.catch(() => ['', ''])
    return {how, out, err}
  })
  return {kill: () => child.kill('SIGKILL'), ended}
}
