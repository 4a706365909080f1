import {spawn} from 'node:child_process'
import {randomBytes} from 'node:crypto'
import {chown, mkdtemp, rm} from 'node:fs/promises'
import {tmpdir} from 'node:os'
import {join} from 'node:path'
import {setTimeout as sleep} from 'node:timers/promises'
import {parseEndpoint, urlOf, withChanges, type Endpoint} from '../src/net/endpoint.ts'
import {grantHost} from '../src/postgres/admin.ts'
import {connect} from '../src/postgres/connect.ts'
import {ensureDatabaseGrants, migrate} from '../src/postgres/migrate.ts'
import {
  embeddedBinaries,
  exitOf,
  freePort,
  initialise,
  lastWords,
  unprivileged,
  type Binaries,
} from '../src/postgres/server.ts'
import type {Pool} from '../src/postgres/sql.ts'

/** A Postgres server of the benchmark's own. It keeps every promise that costs time: fsync, synchronous commits. */
export type Server = AsyncDisposable & {
  readonly version: string
  /** A database of its own: empty, or migrated and with a role for the cluster `bench`. Gone with its scope. */
  readonly database: (kind: 'empty' | 'migrated') => Promise<Database>
}

export type Database = AsyncDisposable & {
  readonly admin: Pool
  readonly adminUrl: string
  /** For `DATABASE_URL`: the host's own role in a migrated database, else the superuser. */
  readonly url: string
}

export const CLUSTER = 'bench'
const applicationName = 'owsync-bench'

/**
 * Starts a server as `initdb` makes it, with 512 MB of shared buffers; it ends with its scope, or with this process.
 *
 * @param bin folder of the server's programs; unset: those that come with this package.
 */
export async function startServer(bin?: string): Promise<Server> {
  await using undo = new AsyncDisposableStack()
  const home = await mkdtemp(join(tmpdir(), 'owsync-bench-pg-'))
  undo.defer(() => rm(home, {recursive: true, force: true}))
  const runAs = await unprivileged()
  if (runAs) await chown(home, runAs.uid, runAs.gid)
  const binaries = bin === undefined ? await embeddedBinaries(runAs, home) : {bin, runAs}
  const password = randomBytes(18).toString('hex')
  const data = await initialise({home, binaries, password, log: join(home, 'initdb.log'), isThrowAway: true})
  const port = await freePort()
  undo.defer(serve(binaries, home, [data, String(port)]))
  const endpoint = parseEndpoint(`postgresql://postgres:${password}@127.0.0.1:${port}/postgres`)
  const root = undo.adopt(connect(endpoint, {max: 2, applicationName}), pool => pool.end())
  await ready(root, join(home, 'server.log'))
  const [row] = await root<{version: string}>`select current_setting('server_version') as version`
  const login = await makeTemplate(root, endpoint)
  const kept = undo.move()
  let databases = 0
  return {
    version: row?.version ?? '',
    async database(kind) {
      const name = `bench_${++databases}`
      await root`create database ${root(name)} template ${root(kind === 'empty' ? 'template0' : TEMPLATE)}`
      // Every contestant starts with the same distance to the next checkpoint.
      await root`checkpoint`
      const adminEndpoint = withChanges(endpoint, {database: name})
      const admin = connect(adminEndpoint, {max: 2, applicationName})
      // A database does not inherit its template's grants.
      if (kind === 'migrated') await admin.begin(ensureDatabaseGrants)
      return {
        admin,
        adminUrl: urlOf(adminEndpoint),
        url: urlOf(kind === 'empty' ? adminEndpoint : withChanges(login, {database: name})),
        async [Symbol.asyncDispose]() {
          await admin.end()
          await root`drop database ${root(name)} with (force)`
        },
      }
    },
    [Symbol.asyncDispose]: () => kept.disposeAsync(),
  }
}

const TEMPLATE = 'bench_template'

async function makeTemplate(root: Pool, endpoint: Endpoint): Promise<Endpoint> {
  await root`create database ${root(TEMPLATE)} template template0`
  const template = withChanges(endpoint, {database: TEMPLATE})
  await using pool = connect(template, {max: 2, applicationName})
  await migrate(pool)
  const login = await grantHost(pool, template, {cluster: CLUSTER, hostname: 'bench'})
  return login.endpoint
}

// The shell reads until the benchmark has gone, however it went, then ends the server and removes its data.
const script = `
"$1/postgres" -D "$2" -p "$3" -k "$4" -h 127.0.0.1 -c shared_buffers=512MB >>"$4/server.log" 2>&1 </dev/null &
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
  }
}

async function ready(root: Pool, log: string): Promise<void> {
  const deadline = performance.now() + 20_000
  for (;;) {
    try {
      await root`select 1`
      return
    } catch (cause) {
      if (performance.now() > deadline)
        throw new Error(`the server did not start${await lastWords(log)}`, {cause})
    }
    await sleep(50)
  }
}
