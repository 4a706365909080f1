import {randomBytes, randomInt} from 'node:crypto'
import {chown, mkdtemp, rm} from 'node:fs/promises'
import {tmpdir} from 'node:os'
import {join} from 'node:path'
import {setTimeout as sleep} from 'node:timers/promises'
import {parseEndpoint, type Endpoint} from '../src/net/endpoint.ts'
import {connect} from '../src/postgres/connect.ts'
import {migrate} from '../src/postgres/migrate.ts'
import {
  embeddedBinaries,
  exitOf,
  isPortFree,
  initialise,
  lastWords,
  launch,
  unprivileged,
} from '../src/postgres/server.ts'
import type {TestDatabase} from './database.ts'

/** A Postgres that a test has for itself, to stop and start it. It goes with its scope. */
export type OwnServer = AsyncDisposable & {
  readonly endpoint: Endpoint
  /** Its database, migrated; disposing of it closes the pool. */
  database(): Promise<TestDatabase>
  start(): Promise<void>
  /** `fast` ends all sessions, `immediate` is a crash. */
  stop(how: 'fast' | 'immediate'): Promise<void>
}

const applicationName = 'owsync-test'

/** @returns a free port that nobody is given while the server is down: the system gives away higher ones. */
async function lastingPort(): Promise<number> {
  for (;;) {
    const port = randomInt(20_000, 32_000)
    if (await isPortFree(port)) return port
  }
}

export async function ownServer(): Promise<OwnServer> {
  await using resources = new AsyncDisposableStack()
  const home = await mkdtemp(join(tmpdir(), 'owsync-server-'))
  resources.defer(() => rm(home, {recursive: true, force: true}))
  const runAs = await unprivileged()
  if (runAs) await chown(home, runAs.uid, runAs.gid)
  const binaries = await embeddedBinaries(runAs, home)
  const password = randomBytes(18).toString('base64url')
  const log = join(home, 'server.log')
  const data = await initialise({home, binaries, password, log, isThrowAway: true})
  const port = await lastingPort()
  const endpoint = parseEndpoint(`postgresql://postgres:${password}@127.0.0.1:${port}/postgres`)

  let running: {readonly pid: number; readonly ended: Promise<string>} | undefined
  const stop = async (how: 'fast' | 'immediate') => {
    if (running === undefined) return
    const {pid, ended} = running
    running = undefined
    process.kill(pid, how === 'fast' ? 'SIGINT' : 'SIGQUIT')
    await ended
  }
  const start = async () => {
    const settings = [
      'max_connections=60',
      'shared_buffers=16MB',
      'fsync=off',
      `unix_socket_directories=${home}`,
    ]
    const args = [
      '-D',
      data,
      '-p',
      String(port),
      '-h',
      '127.0.0.1',
      ...settings.flatMap(each => ['-c', each]),
    ]
    const child = launch(binaries, 'postgres', args, log)
    running = {pid: child.pid ?? 0, ended: exitOf(child)}
    await using pool = connect(endpoint, {max: 1, applicationName})
    const deadline = performance.now() + 60_000
    for (;;) {
      try {
        await pool`select 1`
        return
      } catch (cause) {
        if (performance.now() > deadline)
          throw new Error(`the server did not start${await lastWords(log)}`, {cause})
      }
      await sleep(50)
    }
  }
  resources.defer(() => stop('immediate'))
  await start()
  const kept = resources.move()
  return {
    endpoint,
    start,
    stop,
    async database() {
      const pool = connect(endpoint, {max: 6, applicationName})
      await migrate(pool)
      return Object.assign(pool, {
        endpoint,
        tamper: (strings: TemplateStringsArray, ...values: readonly unknown[]) =>
          pool.begin(async tx => {
            await tx`set local session_replication_role = replica`
            return await tx(strings, ...values)
          }),
      })
    },
    [Symbol.asyncDispose]: () => kept.disposeAsync(),
  }
}
