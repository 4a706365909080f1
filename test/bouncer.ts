import {spawn} from 'node:child_process'
import {existsSync} from 'node:fs'
import {chown, mkdtemp, rm, writeFile} from 'node:fs/promises'
import {tmpdir} from 'node:os'
import {join} from 'node:path'
import {setTimeout as sleep} from 'node:timers/promises'
import {withChanges, type Endpoint} from '../src/net/endpoint.ts'
import {connect} from '../src/postgres/connect.ts'
import {exitOf, freePort, lastWords, unprivileged} from '../src/postgres/server.ts'

const program = ['/usr/sbin/pgbouncer', '/usr/bin/pgbouncer', '/usr/local/bin/pgbouncer'].find(existsSync)

/** Why there is no pooler to test with; `undefined` when there is one. */
export const noBouncer =
  program === undefined ? 'PgBouncer is not installed (apt install pgbouncer)' : undefined

export type Bouncer = AsyncDisposable & {readonly through: (endpoint: Endpoint) => Endpoint}

/** A PgBouncer before the server of `admin`. It goes with its scope. */
export async function bouncer(
  admin: Endpoint,
  mode: 'session' | 'transaction',
  poolSize = 20,
): Promise<Bouncer> {
  await using resources = new AsyncDisposableStack()
  const home = await mkdtemp(join(tmpdir(), 'owsync-bouncer-'))
  resources.defer(() => rm(home, {recursive: true, force: true}))
  const runAs = await unprivileged()
  const port = await freePort()
  const log = join(home, 'log')
  await writeFile(join(home, 'users'), `"${admin.user}" "${admin.password ?? ''}"\n`)
  await writeFile(
    join(home, 'ini'),
    `[databases]
* = host=${admin.host} port=${admin.port} auth_user=${admin.user}
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = ${port}
unix_socket_dir =
auth_type = scram-sha-256
auth_file = ${join(home, 'users')}
auth_query = select usename, passwd from pg_shadow where usename = $1
pool_mode = ${mode}
default_pool_size = ${poolSize}
max_client_conn = 200
logfile = ${log}
`,
  )
  if (runAs) for (const name of ['', 'users', 'ini']) await chown(join(home, name), runAs.uid, runAs.gid)
  const child = spawn(program ?? 'pgbouncer', ['-q', join(home, 'ini')], {
    ...runAs,
    cwd: '/',
    stdio: 'ignore',
  })
  const ended = exitOf(child)
  resources.defer(async () => {
    child.kill('SIGKILL')
    await ended
  })
  const through = (endpoint: Endpoint) => withChanges(endpoint, {host: '127.0.0.1', port})
  await using pool = connect(through(admin), {max: 1, applicationName: 'owsync-test'})
  const deadline = performance.now() + 30_000
  for (;;) {
    try {
      await pool`select 1`
      break
    } catch (cause) {
      if (performance.now() > deadline)
        throw new Error(`PgBouncer did not start${await lastWords(log)}`, {cause})
    }
    await sleep(50)
  }
  const kept = resources.move()
  return {through, [Symbol.asyncDispose]: () => kept.disposeAsync()}
}
