import {spawn, type ChildProcess} from 'node:child_process'
import {randomBytes} from 'node:crypto'
import {existsSync} from 'node:fs'
import {chmod, chown, open, readFile, readdir, rename, rm, stat} from 'node:fs/promises'
import {dirname, join, resolve} from 'node:path'
import {setTimeout as sleep} from 'node:timers/promises'
import {fileURLToPath} from 'node:url'
import {SyncError} from '../core/errors.ts'
import {makeFolder} from '../core/folder.ts'
import {parseEndpoint, urlOf, withChanges} from '../net/endpoint.ts'
import {connect} from './connect.ts'
import {lockAlone, tryLock, type FileLock} from './file-lock.ts'
import {
  clearRemains,
  embeddedBinaries,
  exitOf,
  freePort,
  initialise,
  isPortFree,
  lastWords,
  launch,
  runningPid,
  ServerStartError,
  stopServer,
  unprivileged,
  type Binaries,
  type RunAs,
} from './server.ts'
import {WrongPasswordError} from './sqlstate.ts'

// Below the state directory, in `postgres`:
//   data          the cluster; appears complete or not at all
//   run           the Unix socket
//   address.json  port and password, 0600
//   server.log    what server and initdb had to say
//   mutex         locked while somebody starts, stops, enters or leaves
//   users         locked (shared) by each user: who can lock it alone is the last one
//   guard         locked by the process that stops the server when its last user was killed

/** The use of an embedded Postgres. The server runs at least until this is disposed of. */
export type EmbeddedPostgres = AsyncDisposable & {
  /** Its superuser's address, with the password. */
  readonly adminUrl: string
}

/** Where everything of an embedded Postgres is. */
export type EmbeddedPaths = Readonly<
  Record<'home' | 'data' | 'run' | 'address' | 'log' | 'mutex' | 'users' | 'guard', string>
>

const START_WITHIN_MS = 300_000
const LEAVE_WITHIN_MS = 60_000
const LONGEST_LOG_BYTES = 10_000_000
// sockaddr_un holds 108 bytes on Linux and 104 on macOS.
const LONGEST_SOCKET_BYTES = 100

/**
 * Uses the embedded Postgres below `stateDir`: makes it at first use, starts it unless it runs, and stops it with its
 * last user. Any number of processes may do so at once; one that is killed counts as gone.
 *
 * @throws {ServerStartError} when it cannot be made or started, naming the log.
 */
export async function useEmbedded(stateDir: string, signal?: AbortSignal): Promise<EmbeddedPostgres> {
  const paths = pathsBelow(join(resolve(stateDir), 'postgres'))
  try {
    const runAs = await unprivileged()
    await makeHome(paths, runAs)
    return await holding(await lockAlone(paths.mutex, signal), () => enter(paths, runAs, signal))
  } catch (cause) {
    if (cause instanceof SyncError || signal?.aborted || !(cause instanceof Error && 'syscall' in cause))
      throw cause
    throw new ServerStartError(
      `the embedded Postgres in ${paths.home} cannot be used: ${cause.message}`,
      'STATE_DIR must be a local folder of the user who runs this command, with free space.',
      {cause},
    )
  }
}

/** @returns the places of the embedded Postgres in `home`. */
export function pathsBelow(home: string): EmbeddedPaths {
  return {
    home,
    data: join(home, 'data'),
    run: join(home, 'run'),
    address: join(home, 'address.json'),
    log: join(home, 'server.log'),
    mutex: join(home, 'mutex'),
    users: join(home, 'users'),
    guard: join(home, 'guard'),
  }
}

/**
 * Stops the server when nobody uses it. Whoever calls this holds the mutex.
 *
 * @returns false while somebody uses it.
 */
export async function stopIfUnused(paths: EmbeddedPaths): Promise<boolean> {
  using alone = tryLock(paths.users, 'exclusive')
  if (!alone) return false
  await stopServer(paths.data)
  return true
}

async function enter(
  paths: EmbeddedPaths,
  runAs: RunAs,
  signal: AbortSignal | undefined,
): Promise<EmbeddedPostgres> {
  const entered = tryLock(paths.users, 'shared')
  if (!entered) throw new Error(`${paths.users} is locked outside the mutex`)
  try {
    const adminUrl = await running(paths, runAs, signal)
    await ensureGuard(paths)
    let leaving: Promise<void> | undefined
    return {adminUrl, [Symbol.asyncDispose]: () => (leaving ??= leave(paths, entered))}
  } catch (error) {
    entered[Symbol.dispose]()
    await stopIfUnused(paths)
    throw error
  }
}

async function leave(paths: EmbeddedPaths, entered: FileLock): Promise<void> {
  let mutex: FileLock
  try {
    mutex = await lockAlone(paths.mutex, AbortSignal.timeout(LEAVE_WITHIN_MS))
  } catch {
    // Somebody is starting it for minutes, or its folder has gone. The guard looks after the rest.
    entered[Symbol.dispose]()
    return
  }
  await holding(mutex, async () => {
    entered[Symbol.dispose]()
    await stopIfUnused(paths)
  })
}

async function holding<T>(lock: FileLock, work: () => Promise<T>): Promise<T> {
  try {
    return await work()
  } finally {
    lock[Symbol.dispose]()
  }
}

async function makeHome(paths: EmbeddedPaths, runAs: RunAs): Promise<void> {
  makeFolder(paths.home)
  makeFolder(paths.run)
  if (!runAs) return
  await chown(paths.run, runAs.uid, runAs.gid)
  const stateDir = dirname(paths.home)
  for (const folder of ancestors(paths.home)) {
    const {uid, gid, mode} = await stat(folder)
    const right = uid === runAs.uid ? 0o100 : gid === runAs.gid ? 0o010 : 0o001
    if ((mode & right) !== 0) continue
    const isOurs = folder === paths.home || folder === stateDir
    if (!isOurs || uid !== 0 || (mode & 0o077) !== 0) {
      throw new ServerStartError(
        `Postgres does not run as root, and its user \`postgres\` cannot enter ${folder}`,
        'Set STATE_DIR to a folder that it can reach, such as /var/lib/openwebui-sync.',
      )
    }
    // Passing through is all its group may do: what else lies in here stays closed to it.
    await chown(folder, 0, runAs.gid)
    await chmod(folder, 0o710)
  }
}

function ancestors(folder: string): string[] {
  const parent = dirname(folder)
  return parent === folder ? [folder] : [...ancestors(parent), folder]
}

/** @returns the admin URL of a server that answers. */
async function running(paths: EmbeddedPaths, runAs: RunAs, signal: AbortSignal | undefined): Promise<string> {
  const address = await readAddress(paths)
  const binaries = await embeddedBinaries(runAs, paths.home)
  if (!existsSync(paths.data)) {
    await initialise({home: paths.home, binaries, password: address.password, log: paths.log})
  }

  const deadline = performance.now() + START_WITHIN_MS
  let started: Started | undefined
  for (;;) {
    signal?.throwIfAborted()
    if ((await runningPid(paths.data)) === undefined) {
      if (started?.ended !== undefined) throw await notStarted(paths, started.ended)
      if (!started) {
        await clearRemains(paths.data, signal)
        address.port = (await isPortFree(address.port)) ? address.port : await freePort()
        await save(paths.address, address)
        started = await start(paths, binaries, address.port)
      }
    }
    const url = adminUrl(address)
    const refusal = await whyNoAnswer(url)
    if (refusal === undefined) return url
    if (refusal instanceof WrongPasswordError) {
      throw new ServerStartError(
        `${paths.address} does not hold the password of the server in ${paths.data}`,
        `Put the right file back; or, when its data is not needed, remove ${paths.home}.`,
        {cause: refusal},
      )
    }
    if (performance.now() > deadline) throw await notStarted(paths, 'did not answer in time', refusal)
    await sleep(30, undefined, {signal})
  }
}

type Started = {ended?: string}

async function start(paths: EmbeddedPaths, binaries: Binaries, port: number): Promise<Started> {
  // No server runs, so whatever socket is there is of a past life; Postgres minds when its number lives again.
  for (const name of await readdir(paths.run)) await rm(join(paths.run, name), {force: true})
  const {size} = await stat(paths.log).catch(() => ({size: 0}))
  if (size > LONGEST_LOG_BYTES) await rename(paths.log, `${paths.log}.old`)

  const socketBytes = Buffer.byteLength(join(paths.run, `.s.PGSQL.${port}`))
  const settings = {
    listen_addresses: '127.0.0.1',
    port,
    unix_socket_directories: socketBytes > LONGEST_SOCKET_BYTES ? '' : paths.run,
    unix_socket_permissions: '0700',
    max_connections: 100,
    timezone: 'UTC',
    log_timezone: 'UTC',
  }
  const args = Object.entries(settings).flatMap(([name, value]) => ['-c', `${name}=${value}`])
  const server = launch(binaries, 'postgres', ['-D', paths.data, ...args], paths.log)
  server.unref()
  const started: Started = {}
  void exitOf(server).then(how => {
    started.ended = how
  })
  // Until the program has taken its place in the data directory it would look as if none ran.
  const deadline = performance.now() + 10_000
  while (started.ended === undefined && performance.now() < deadline) {
    if ((await runningPid(paths.data)) !== undefined) break
    await sleep(10)
  }
  return started
}

async function notStarted(paths: EmbeddedPaths, how: string, cause?: unknown): Promise<ServerStartError> {
  return new ServerStartError(
    `the embedded Postgres ${how}${await lastWords(paths.log)}`,
    `Read ${paths.log}; a full disk is the usual reason. Or set DATABASE_URL to a server of yours.`,
    {cause},
  )
}

async function whyNoAnswer(url: string): Promise<unknown> {
  await using pool = connect(parseEndpoint(url), {
    max: 1,
    applicationName: 'owsync start',
    answerWithinMs: 5_000,
  })
  try {
    await pool`select 1`
    return undefined
  } catch (error) {
    return error
  }
}

type Address = {port: number; readonly password: string}

function adminUrl({port, password}: Address): string {
  return urlOf(withChanges(parseEndpoint('postgresql://postgres@127.0.0.1/postgres'), {port, password}))
}

async function readAddress(paths: EmbeddedPaths): Promise<Address> {
  const text = await readFile(paths.address, 'utf8').catch((error: unknown) => {
    if ((error as NodeJS.ErrnoException).code === 'ENOENT') return undefined
    throw error
  })
  if (text !== undefined) return JSON.parse(text) as Address
  if (existsSync(paths.data)) {
    throw new ServerStartError(
      `${paths.address} is missing: it holds the password of the server in ${paths.data}`,
      `Put it back; or, when its data is not needed, remove ${paths.home}.`,
    )
  }
  const address = {port: await freePort(), password: randomBytes(24).toString('base64url')}
  await save(paths.address, address)
  return address
}

async function save(file: string, content: object): Promise<void> {
  const fresh = `${file}.new`
  {
    await using handle = await open(fresh, 'w', 0o600)
    await handle.writeFile(JSON.stringify(content))
    await handle.sync()
  }
  await rename(fresh, file)
  await using folder = await open(dirname(file))
  await folder.sync()
}

/** Makes sure that someone stops the server when its last user is killed. Whoever calls this holds the mutex. */
async function ensureGuard(paths: EmbeddedPaths): Promise<void> {
  {
    using free = tryLock(paths.guard, 'exclusive')
    if (!free) return
  }
  const extension = import.meta.url.endsWith('.ts') ? '.ts' : '.js'
  const program = fileURLToPath(new URL(`embedded-guard${extension}`, import.meta.url))
  const guard = spawn(process.execPath, [program, paths.home], {
    cwd: '/',
    detached: true,
    stdio: 'ignore',
    env: {},
  })
  await spawned(guard)
  guard.unref()
}

function spawned(child: ChildProcess): Promise<void> {
  return new Promise((resolve, reject) => {
    child.once('spawn', resolve)
    child.once('error', reject)
  })
}
