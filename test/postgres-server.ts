import {spawn} from 'node:child_process'
import {randomBytes} from 'node:crypto'
import {existsSync} from 'node:fs'
import {chown, mkdtemp, rm} from 'node:fs/promises'
import {tmpdir} from 'node:os'
import {join} from 'node:path'
import {setTimeout as sleep} from 'node:timers/promises'
import type {TestProject} from 'vitest/node'
import {parseEndpoint} from '../src/net/endpoint.ts'
import {connect} from '../src/postgres/connect.ts'
import {
  embeddedBinaries,
  exitOf,
  freePort,
  initialise,
  lastWords,
  unprivileged,
  type Binaries,
} from '../src/postgres/server.ts'

declare module 'vitest' {
  // Vitest's own type is extended by merging, which only an interface can do.
  // eslint-disable-next-line @typescript-eslint/consistent-type-definitions
  interface ProvidedContext {
    postgresUrl: string
  }
}

/** One throw-away server for the whole run: PostgreSQL 17, or 15 with `OWSYNC_TEST_PG=15`. */
export default async function setup(project: TestProject): Promise<() => Promise<void>> {
  const home = await mkdtemp(join(tmpdir(), 'owsync-test-'))
  let stop: (() => Promise<void>) | undefined
  try {
    const runAs = await unprivileged()
    if (runAs) await chown(home, runAs.uid, runAs.gid)
    const binaries =
      process.env['OWSYNC_TEST_PG'] === '15' ? {bin: olderBin(), runAs} : await embeddedBinaries(runAs, home)
    const password = randomBytes(18).toString('base64url')
    const data = await initialise({
      home,
      binaries,
      password,
      log: join(home, 'initdb.log'),
      isThrowAway: true,
    })
    const port = await freePort()
    stop = serve(binaries, home, [data, String(port)])
    const url = `postgresql://postgres:${password}@127.0.0.1:${port}/postgres`
    await ready(url, join(home, 'server.log'))
    project.provide('postgresUrl', url)
    return stop
  } catch (error) {
    await stop?.()
    await rm(home, {recursive: true, force: true})
    throw error
  }
}

function olderBin(): string {
  const found = ['/usr/lib/postgresql/15/bin', '/usr/local/bin'].find(bin => existsSync(join(bin, 'initdb')))
  if (found === undefined)
    throw new Error('OWSYNC_TEST_PG=15 needs PostgreSQL 15; on Debian 12: apt install postgresql')
  return found
}

// The shell reads until the test run has gone, however it went, then ends the server and removes its data.
const script = `
"$1/postgres" -D "$2" -p "$3" -k "$4" -h 127.0.0.1 -F -c max_connections=200 -c full_page_writes=off \\
  -c synchronous_commit=off -c log_timezone=UTC -c timezone=UTC >>"$4/server.log" 2>&1 </dev/null &
pid=$!
cat
kill -QUIT $pid 2>/dev/null
wait $pid
rm -rf "$4"`

function serve(
  {bin, runAs}: Binaries,
  home: string,
  [data = '', port = '']: readonly string[],
): () => Promise<void> {
  const keeper = spawn('sh', ['-c', script, 'sh', bin, data, port, home], {
    ...runAs,
    cwd: '/',
    detached: true,
    stdio: ['pipe', 'ignore', 'inherit'],
    env: {PATH: process.env['PATH'], LC_ALL: 'C'},
  })
  const ended = exitOf(keeper)
  return async () => {
    keeper.stdin.end()
    await ended
    await rm(home, {recursive: true, force: true})
  }
}

async function ready(url: string, log: string): Promise<void> {
  await using pool = connect(parseEndpoint(url), {max: 1, applicationName: 'owsync-test'})
  const deadline = performance.now() + 20_000
  for (;;) {
    try {
      await pool`select 1`
      return
    } catch (cause) {
      if (performance.now() > deadline)
        throw new Error(`the test server did not start${await lastWords(log)}`, {cause})
    }
    await sleep(50)
  }
}
