import {spawn} from 'node:child_process'
import {randomBytes} from 'node:crypto'
import {existsSync} from 'node:fs'
import {chown, mkdtemp, readFile, rm} from 'node:fs/promises'
import {tmpdir} from 'node:os'
import {join} from 'node:path'
import {setTimeout as sleep} from 'node:timers/promises'
import {parseEndpoint, withChanges, type Endpoint} from '../src/net/endpoint.ts'
import {connect} from '../src/postgres/connect.ts'
import {
  embeddedBinaries,
  exitOf,
  freePort,
  initialise,
  unprivileged,
  type Binaries,
} from '../src/postgres/server.ts'
import {raw} from '../src/postgres/sql.ts'

/** A server set up as Supabase sets up a project's. */
export type SupabaseServer = AsyncDisposable & {
  /** Its `postgres`: no superuser, but CREATEROLE, CREATEDB and BYPASSRLS. */
  readonly admin: Endpoint
  /** Its real superuser, which nobody gets. */
  readonly superuser: Endpoint
}

const applicationName = 'owsync-test'

/** Starts a stand-in for a Supabase project: PostgreSQL 17, or 15 with `OWSYNC_TEST_PG=15`. It goes with its scope. */
export async function supabaseServer(): Promise<SupabaseServer> {
  const stack = new AsyncDisposableStack()
  try {
    const home = await mkdtemp(join(tmpdir(), 'owsync-supabase-'))
    stack.defer(() => rm(home, {recursive: true, force: true}))
    const runAs = await unprivileged()
    if (runAs) await chown(home, runAs.uid, runAs.gid)
    const old = '/usr/lib/postgresql/15/bin'
    const isOld = process.env['OWSYNC_TEST_PG'] === '15' && existsSync(old)
    const binaries = isOld ? {bin: old, runAs} : await embeddedBinaries(runAs, home)
    const password = randomBytes(18).toString('base64url')
    const data = await initialise({
      home,
      binaries,
      password,
      log: join(home, 'initdb.log'),
      isThrowAway: true,
    })
    const port = await freePort()
    stack.defer(serve(binaries, home, data, port))
    const first = parseEndpoint(`postgresql://postgres:${password}@127.0.0.1:${port}/postgres`)
    await answers(first)
    await disguise(first, password)
    return {
      admin: first,
      superuser: withChanges(first, {user: 'supabase_admin'}),
      [Symbol.asyncDispose]: () => stack.disposeAsync(),
    }
  } catch (error) {
    await stack.disposeAsync()
    throw error
  }
}

/** Makes the superuser `supabase_admin`, and `postgres` what Supabase gives out under that name. */
async function disguise(first: Endpoint, password: string): Promise<void> {
  {
    await using pool = connect(first, {max: 1, applicationName})
    await pool`create role setup superuser login password ${raw(`'${password}'`)}`
  }
  {
    // A role cannot rename itself.
    await using pool = connect(withChanges(first, {user: 'setup'}), {max: 1, applicationName})
    await pool`alter role postgres rename to supabase_admin`
  }
  await using pool = connect(withChanges(first, {user: 'supabase_admin'}), {max: 1, applicationName})
  await pool`drop role setup`
  await pool`${raw(await readFile(new URL('supabase.sql', import.meta.url), 'utf8'))}`
  await pool`alter role postgres password ${raw(`'${password}'`)}`
}

// The shell waits for the end of its input, which comes however the test run ends.
const script = `
"$1/postgres" -D "$2" -p "$3" -k "$4" -h 127.0.0.1 -F -c max_connections=60 -c shared_buffers=32MB >/dev/null 2>&1 </dev/null &
pid=$!
cat
kill -QUIT $pid 2>/dev/null
wait $pid`

function serve({bin, runAs}: Binaries, home: string, data: string, port: number): () => Promise<void> {
  const keeper = spawn('sh', ['-c', script, 'sh', bin, data, String(port), home], {
    ...runAs,
    cwd: '/',
    stdio: ['pipe', 'ignore', 'inherit'],
    env: {PATH: process.env['PATH'], LC_ALL: 'C'},
  })
  const ended = exitOf(keeper)
  return async () => {
    keeper.stdin.end()
    await ended
  }
}

async function answers(endpoint: Endpoint): Promise<void> {
  await using pool = connect(endpoint, {max: 1, applicationName})
  const deadline = performance.now() + 20_000
  for (;;) {
    try {
      await pool`select 1`
      return
    } catch (cause) {
      if (performance.now() > deadline) throw new Error('the server did not start', {cause})
      await sleep(50)
    }
  }
}
