import assert from 'node:assert/strict'
import {execFileSync, spawn} from 'node:child_process'
import {randomBytes} from 'node:crypto'
import {once} from 'node:events'
import {
  chmodSync,
  chownSync,
  closeSync,
  copyFileSync,
  existsSync,
  mkdirSync,
  openSync,
  readdirSync,
  readFileSync,
  rmSync,
  statSync,
  truncateSync,
  writeFileSync,
  writeSync,
} from 'node:fs'
import {connect, createServer, type AddressInfo} from 'node:net'
import {join} from 'node:path'
import {DatabaseSync} from 'node:sqlite'
import {afterAll, beforeAll, describe, test} from 'vitest'
import {raw} from '../../src/postgres/sql.ts'
import {urlOf, withChanges, type Endpoint} from '../../src/net/endpoint.ts'
import {runCli} from '../cli.ts'
import {emptyDatabase, type TestDatabase} from '../database.ts'
import {testClient, testHost} from '../host.ts'
import {assertMirror, compareMirror} from '../mirror.ts'
import {chanceOf, makeFile} from '../mutator.ts'
import {proxyTo} from '../proxy.ts'
import {testSite, type Run, type Site} from '../site.ts'

// What people and machines get wrong. Each is answered by a sentence that names it, says why and what to do, by the
// exit code that scripts go by (1 failed, 2 a person is needed, 64 misused, 75 try again), and by nothing else: no
// schema, no registration, no cut, no file.

let site: Site
/** A healthy file, and a client that has been synced from it. */
let good: string
const known = 'known'

beforeAll(async () => {
  site = await testSite()
  good = join(site.folder, 'good.db')
  makeFile(good, chanceOf(7), {rows: 40})
  chmodSync(site.folder, 0o755)
  const run = await site.sync(known, {sqlite: good})
  assert.equal(run.code, 0, run.out + run.err)
})

afterAll(() => site[Symbol.asyncDispose]())

type Answer = {readonly exit: number; readonly code: string; readonly says: RegExp; readonly next?: RegExp}

const unreadable = (says: RegExp, next?: RegExp): Answer => ({
  exit: 1,
  code: 'SYNC_SOURCE_UNREADABLE',
  says,
  ...(next ? {next} : {}),
})
const busy = (says: RegExp, next?: RegExp): Answer => ({
  exit: 75,
  code: 'SYNC_SOURCE_BUSY',
  says,
  ...(next ? {next} : {}),
})

describe('a file that is', () => {
  for (const [what, make, answer] of [
    [
      'not a database',
      file => {
        writeFileSync(file, 'hello, this is a text\n'.repeat(100))
      },
      unreadable(/not a SQLite database/, /webui\.db/),
    ],
    [
      'encrypted',
      file => {
        writeFileSync(file, randomBytes(20_000))
      },
      unreadable(/or it is encrypted/, /SQLCipher/),
    ],
    [
      'empty',
      file => {
        writeFileSync(file, '')
      },
      unreadable(/the file is empty/, /start the app/),
    ],
    [
      'a directory',
      file => {
        mkdirSync(file)
      },
      unreadable(/a directory/, /webui\.db/),
    ],
    [
      'a pipe',
      file => {
        execFileSync('mkfifo', [file])
      },
      unreadable(/not a regular file/),
    ],
    ['missing', () => undefined, unreadable(/no such file/, /Check the path/)],
    [
      'cut short',
      file => {
        truncated(file, 3 * 4096)
      },
      unreadable(/damaged/, /integrity_check/),
    ],
    [
      'cut within its first page',
      file => {
        truncated(file, 700)
      },
      unreadable(/./),
    ],
    [
      'broken in its schema',
      file => {
        brokenSchema(file)
      },
      unreadable(/damaged/),
    ],
    [
      'made with a function that only its app has',
      file => {
        appsOwn(file)
      },
      unreadable(/what only its app has \(unknown function: secret\(\)\)/, /drop the column/),
    ],
    [
      'too wide in one table',
      file => {
        wide(file)
      },
      {
        exit: 1,
        code: 'SYNC_TOO_MANY_COLUMNS',
        says: /table wide has 1501 columns, more than the 1500/,
        next: /split the table/,
      },
    ],
  ] as const satisfies readonly [string, (file: string) => void, Answer][]) {
    test(`${what} is refused, and registers nothing`, async () => {
      const file = join(site.folder, `${what.replaceAll(' ', '-')}.db`)
      make(file)
      await changesNothing(async () => {
        isAnswer(await site.sync('newcomer', {sqlite: file}), answer, file)
      })
    })
  }

  test('locked by another process is asked for again later', async () => {
    const file = copy('locked')
    using writer = new DatabaseSync(file)
    writer.exec('begin exclusive')
    await changesNothing(async () => {
      isAnswer(
        await site.sync('newcomer', {sqlite: file}),
        busy(/keeps the file locked/, /long transaction/),
        file,
      )
    })
  })

  for (const type of ['nfs4', 'cifs', '9p', 'virtiofs', 'fuse.sshfs'])
    test(`on a network or shared file system (${type}) is refused`, async () => {
      const folder = join(site.folder, 'from elsewhere')
      mkdirSync(folder, {recursive: true})
      const file = join(folder, 'webui.db')
      copyFileSync(good, file)
      await changesNothing(async () => {
        const env = {NETWORK_FOLDER: folder, NETWORK_TYPE: type}
        const run = await site.sync('newcomer', {sqlite: file, preload: 'network-mount.ts', env})
        isAnswer(
          run,
          unreadable(new RegExp(`file system \\(${type.replace('.', '\\.')}\\)`), /local disk/),
          file,
        )
      })
    })

  test('left by an app that crashed in a write is asked for again later, and never rolled back', async () => {
    const file = copy('crashed')
    await crashInWrite(file)
    const journal = readFileSync(`${file}-journal`)
    await changesNothing(async () => {
      isAnswer(
        await site.sync('newcomer', {sqlite: file}),
        busy(/crashed in the middle of a write/, /Start the app/),
        file,
      )
    })
    assert.ok(journal.equals(readFileSync(`${file}-journal`)))
  })

  test.runIf(process.getuid?.() === 0)('not for this user is refused', async () => {
    const file = copy('private')
    chmodSync(file, 0o600)
    const stateDir = join(site.folder, 'state-of-nobody')
    mkdirSync(stateDir)
    chownSync(stateDir, 65_534, 65_534)
    await changesNothing(async () => {
      const run = await site.sync('newcomer', {sqlite: file, uid: 65_534, env: {STATE_DIR: stateDir}})
      isAnswer(run, unreadable(/permission denied/, /user that owns the file/), file)
    })
  })
})

describe('a client whose file', () => {
  for (const [what, spoil, answer] of [
    [
      'has been cut short',
      file => {
        truncated(file, 3 * 4096)
      },
      unreadable(/damaged/, /owsync restore/),
    ],
    [
      'has a broken page in the middle',
      file => {
        breakPage(file, 'message')
      },
      unreadable(/damaged/, /owsync restore/),
    ],
    [
      'is gone',
      file => {
        rmSync(file)
      },
      unreadable(/no such file/),
    ],
    [
      'is no database any more',
      file => {
        writeFileSync(file, 'overwritten')
      },
      unreadable(/not a SQLite database/),
    ],
  ] as const satisfies readonly [string, (file: string) => void, Answer][]) {
    test(`${what} keeps what it has`, async () => {
      const file = copy('spoiled')
      write(file, "update chat set title = 'new'")
      spoil(file)
      await changesNothing(async () => {
        isAnswer(await site.sync(known, {sqlite: file}), answer, file)
      })
      rmSync(file, {force: true})
    })
  }

  test('is empty is held back until the file is back', async () => {
    const file = copy('emptied')
    truncateSync(file, 0)
    await changesNothing(async () => {
      const run = await site.sync(known, {sqlite: file})
      assert.equal(run.code, 2, run.out + run.err)
      assert.deepEqual(
        [run.result?.status, run.result?.reason, run.result?.generation],
        ['quarantined', 'the file is empty', 1],
      )
      assert.deepEqual(await statusOf(known), {status: 'quarantined', reason: 'the file is empty'})
    })
    const healed = await site.sync(known)
    assert.equal(healed.code, 0, healed.out)
    assert.deepEqual(await statusOf(known), {status: 'active', reason: null})
    await assertMirror(site.db, known, good)
  })
})

describe('a client name that', () => {
  const trap = join('/tmp', `owsync-trap-${process.pid}`)
  for (const [what, name] of [
    ['is reserved', 'public'],
    ['looks like Postgres’ own', 'pg_temp'],
    ['is our own schema', 'sync-metadata'],
    ['is SQL', 'a"; drop schema known cascade; --'],
    ['is a shell command', `$(touch ${trap})`],
    ['is a path', '../../etc/passwd'],
    ['is not ASCII', 'müller-ßöhne'],
    ['ends in a newline', 'acme\n'],
    ['has 64 bytes', 'a'.repeat(64)],
    ['is empty', ''],
  ] as const) {
    test(`${what} is refused as misused`, async () => {
      await changesNothing(async () => {
        isAnswer(await site.sync(name, {sqlite: good}), {exit: 64, code: 'SYNC_USAGE', says: /./})
      })
      assert.ok(!existsSync(trap))
    })
  }

  test('is a role’s name is refused by the database', async () => {
    await changesNothing(async () => {
      const answer = {
        exit: 1,
        code: 'SYNC_NAME_REFUSED',
        says: /owns a schema or role/,
        next: /client-sync_service/,
      }
      isAnswer(await site.sync('sync_service', {sqlite: good}), answer)
    })
  })

  test('is new is not registered by a dry run', async () => {
    await changesNothing(async () => {
      const run = await site.sync('newcomer', {sqlite: good, flags: ['--dry-run']})
      assert.equal(run.code, 0, run.out + run.err)
      assert.deepEqual([run.result?.mode, run.result?.generation], ['full', 0])
      assert.ok(run.result!.rows.upserted > 200)
    })
  })

  test('nobody knows is refused without a file', async () => {
    await changesNothing(async () => {
      isAnswer(await site.sync('nobody', {}), {
        exit: 1,
        code: 'SYNC_UNKNOWN_CLIENT',
        says: /nobody/,
        next: /--sqlite/,
      })
    })
  })

  test('another host has is refused, and nothing is said of that host', async () => {
    await using other = await testHost(site.db, 'host-b')
    await testClient(other, 'theirs')
    await changesNothing(async () => {
      const run = await site.sync('theirs', {sqlite: good})
      isAnswer(run, {exit: 1, code: 'SYNC_NAME_TAKEN', says: /"theirs" is taken/, next: /db transfer/})
      assert.ok(!run.out.includes('host-b'))
    })
  })

  test('a schema of somebody’s own has is refused', async () => {
    await site.db`create schema reporting`
    await changesNothing(async () => {
      const answer = {exit: 1, code: 'SYNC_NAME_TAKEN', says: /"reporting" already/, next: /another name/}
      isAnswer(await site.sync('reporting', {sqlite: good}), answer)
    })
  })
})

describe('a database', () => {
  test('that does not accept the password is asked once', async () => {
    await using proxy = await proxyTo(site.host.endpoint)
    const run = await site.sync(known, {endpoint: withChanges(proxy.endpoint, {password: 'not it'})})
    isAnswer(run, {exit: 1, code: 'SYNC_WRONG_PASSWORD', says: /sync_host_/, next: /DATABASE_URL/})
    assert.ok(!run.out.includes('not it') && !run.err.includes('not it'))
    assert.ok(proxy.bytes.up < 1_000, `it was asked more than once: ${proxy.bytes.up} bytes`)
  })

  for (const [what, changes, says] of [
    ['nobody has heard of', {host: 'db.owsync.invalid', ssl: false}, /db\.owsync\.invalid/],
    ['nobody serves', {port: 1}, /127\.0\.0\.1:1.*ECONNREFUSED/],
  ] as const) {
    test(`${what} may be there later`, async () => {
      const run = await site.sync(known, {
        endpoint: withChanges(site.host.endpoint, changes),
        env: {DB_SSL: 'disable'},
      })
      isAnswer(run, {exit: 75, code: 'SYNC_UNREACHABLE', says, next: /may reach it/})
    })
  }

  test('that is not there is named', async () => {
    const run = await site.sync(known, {endpoint: withChanges(site.host.endpoint, {database: 'nowhere'})})
    isAnswer(run, {exit: 1, code: 'SYNC_NO_SUCH_DATABASE', says: /nowhere/, next: /DATABASE_URL/})
  })

  test('without the control schema is refused', async () => {
    await using empty = await emptyDatabase()
    const run = await site.sync(known, {endpoint: empty.endpoint})
    isAnswer(run, {exit: 1, code: 'SYNC_SCHEMA_MISSING', says: /./, next: /db migrate/})
  })

  test('with a control schema of the future is refused', async () => {
    await using later = await testSite('host-later')
    await later.db`insert into sync_metadata.schema_migrations (version, name, sha256)
      select max(version) + 2, 'from the future', 'x' from sync_metadata.schema_migrations`
    const run = await later.sync('acme', {sqlite: good})
    isAnswer(run, {exit: 1, code: 'SYNC_SCHEMA_NEWER', says: /./, next: /Update openwebui-sync/})
  })

  test('older than PostgreSQL 15 is refused, and nothing is made in it', async () => {
    await using old = await emptyDatabase()
    await using saying = await sayingItIs14(old)
    const env = {ADMIN_DATABASE_URL: urlOf(saying.endpoint), STATE_DIR: site.stateDir}
    const {code, json} = await runCli(['db', 'migrate', '--json'], {env})
    const {error} = json() as {error: Record<'code' | 'message' | 'next', string>}
    assert.deepEqual([code, error.code], [1, 'SYNC_SERVER_TOO_OLD'])
    assert.match(error.message, /14\.12 *; 15 is the oldest/)
    assert.match(error.next, /Upgrade/)
    assert.deepEqual(await old`select nspname from pg_namespace where nspname like 'sync%'`, [])
  })

  test('that takes no writes says so', async () => {
    const role = site.db(site.host.role)
    const file = copy('read-only')
    write(file, "update chat set title = 'not to be written'")
    await site.db`alter role ${role} set default_transaction_read_only = on`
    try {
      await changesNothing(async () => {
        isAnswer(await site.sync(known, {sqlite: file}), {
          exit: 1,
          code: 'SYNC_READ_ONLY',
          says: /read-only/,
          next: /primary/,
        })
      })
    } finally {
      await site.db`alter role ${role} reset default_transaction_read_only`
    }
  })

  test('whose disk is full says so, and the sync goes on when there is room again', async ({skip}) => {
    const disk = await smallDisk()
    if (disk === undefined) return skip('a small disk for Postgres needs root')
    try {
      const [{name} = {name: ''}] = await site.db<{name: string}>`select current_database() as name`
      await site.db`alter database ${site.db(name)} set default_tablespace = small`
      const file = join(site.folder, 'large.db')
      makeFile(file, chanceOf(3), {rows: 900})
      const run = await site.sync('large', {sqlite: file})
      isAnswer(run, {exit: 1, code: 'SYNC_OUT_OF_SPACE', says: /no disk space left/, next: /more disk/})
      assert.equal(await generationOf('large'), 0n)
      disk.grow()
      const next = await site.sync('large')
      assert.equal(next.code, 0, next.out + next.err)
      await assertMirror(site.db, 'large', file)
      await site.db`alter database ${site.db(name)} reset default_tablespace`
    } finally {
      await site.db`drop schema if exists large cascade`
      await disk.remove()
    }
  })
})

/** Holds that a run ended as it should, in words and in its exit code. */
function isAnswer(run: Run, {exit, code, says, next}: Answer, file?: string): void {
  assert.deepEqual([run.code, run.error?.code], [exit, code], run.out + run.err)
  const {error} = run
  assert.match(error!.message, says)
  if (file !== undefined && code.startsWith('SYNC_SOURCE'))
    assert.ok(error!.message.startsWith(file), error!.message)
  assert.match(error!.next, next ?? /\w+ \w+/)
  assert.equal(run.err, '', 'with --json everything is on standard output')
  assert.ok(run.ms < 30_000)
}

/** Holds that a run leaves no trace in Postgres but its entry in the history, nor on the disk but a lock's empty file. */
async function changesNothing(work: () => Promise<void>): Promise<void> {
  const before = await state()
  await work()
  assert.deepEqual(await state(), before)
}

async function state(): Promise<unknown> {
  const schemas = await site.db`
    select nspname, relname from pg_namespace n left join pg_class c on c.relnamespace = n.oid and c.relkind in ('r', 'v')
    where nspname not like 'pg_t%' order by 1, 2`
  const deployments = await site.db`
    select client_name, generation, cut_id, load_position, sqlite_path from sync_metadata.client_deployments order by 1`
  const {differences, liveRows} = await compareMirror(site.db, known, good)
  const files = readdirSync(site.folder, {recursive: true, encoding: 'utf8'})
    .filter(name => !/^state[^/]*\/locks/.test(name) && !/^state-of-nobody/.test(name) && !/-shm$/.test(name))
    .filter(name => !/^state\/sidecars\/.*-(wal|shm)$/.test(name))
    .sort()
  return {schemas, deployments, differences, liveRows, files}
}

async function statusOf(client: string): Promise<{status: string; reason: string | null}> {
  const [row] = await site.db<{status: string; reason: string | null}>`
    select status, status_reason as reason from sync_metadata.client_deployments where client_name = ${client}`
  return row!
}

async function generationOf(client: string): Promise<bigint> {
  const [row] = await site.db<{generation: bigint}>`
    select generation from sync_metadata.client_deployments where client_name = ${client}`
  return row!.generation
}

function copy(name: string): string {
  const file = join(site.folder, `${name}.db`)
  copyFileSync(good, file)
  return file
}

function write(file: string, sql: string): void {
  using db = new DatabaseSync(file)
  db.exec(sql)
}

function truncated(file: string, bytes: number): void {
  if (!existsSync(file)) copyFileSync(good, file)
  truncateSync(file, bytes)
}

function brokenSchema(file: string): void {
  copyFileSync(good, file)
  using db = new DatabaseSync(file, {defensive: false})
  db.exec(`pragma writable_schema = on; update sqlite_schema set sql = 'create nonsense' where name = 'chat'`)
}

function appsOwn(file: string): void {
  copyFileSync(good, file)
  using db = new DatabaseSync(file, {defensive: false})
  db.exec(`alter table tag add column code text as (upper(name)); pragma writable_schema = on;
    update sqlite_schema set sql = replace(sql, 'upper(', 'secret(') where name = 'tag'`)
}

function wide(file: string): void {
  const columns = Array.from({length: 1_501}, (_, i) => `c${i} text`)
  write(file, `create table wide (${columns.join(', ')})`)
}

/** Overwrites a page in the middle of a table's b-tree, as a bad disk would. */
function breakPage(file: string, table: string): void {
  let page: number
  {
    using db = new DatabaseSync(file, {readOnly: true})
    const row = db
      .prepare(
        `select pageno from dbstat where name = ? and pagetype = 'leaf' order by pageno limit 1 offset 2`,
      )
      .get(table)
    page = Number(row!['pageno'])
  }
  const fd = openSync(file, 'r+')
  writeSync(fd, Buffer.alloc(4096, 0xa5), 0, 4096, (page - 1) * 4096)
  closeSync(fd)
}

/** A process that dies in the middle of a transaction that had spilled to the file. */
async function crashInWrite(file: string): Promise<void> {
  const script = `
    const {DatabaseSync} = require('node:sqlite')
    const db = new DatabaseSync(${JSON.stringify(file)})
    db.exec("pragma cache_size = 5; pragma cache_spill = 1; begin; update chat set title = title || hex(randomblob(3000)); update message set content = hex(randomblob(3000))")
    process.kill(process.pid, 'SIGKILL')`
  const child = spawn(process.execPath, ['-e', script], {stdio: 'ignore'})
  await once(child, 'close')
  assert.ok(statSync(`${file}-journal`).size > 0)
}

/** A way to the server on which it says that it is PostgreSQL 14. */
async function sayingItIs14(db: TestDatabase): Promise<AsyncDisposable & {endpoint: Endpoint}> {
  const [{number, name} = {number: '', name: ''}] = await db<{number: string; name: string}>`
    select current_setting('server_version_num') as number, current_setting('server_version') as name`
  const {host, port} = db.endpoint
  const server = createServer(client => {
    const upstream = connect(port, host)
    client.on('error', () => upstream.destroy()).pipe(upstream)
    upstream
      .on('error', () => client.destroy())
      .on('data', (data: Buffer) => {
        // As many bytes as before: messages say how long they are.
        const text = data.toString('latin1').replace(number, '140012')
        client.write(text.replace(name, '14.12'.padEnd(name.length)), 'latin1')
      })
      .on('end', () => client.end())
  })
  await once(server.listen(0, '127.0.0.1'), 'listening')
  return {
    endpoint: withChanges(db.endpoint, {host: '127.0.0.1', port: (server.address() as AddressInfo).port}),
    async [Symbol.asyncDispose]() {
      server.close()
      await Promise.resolve()
    },
  }
}

/** A tablespace called `small`, on a disk of its own of a few megabytes. */
async function smallDisk(): Promise<{grow: () => void; remove: () => Promise<void>} | undefined> {
  const folder = join(site.folder, 'small-disk')
  mkdirSync(folder)
  const server = await site.db<{data: string}>`select current_setting('data_directory') as data`
  try {
    execFileSync('mount', ['-t', 'tmpfs', '-o', 'size=3m', 'tmpfs', folder], {stdio: 'ignore'})
  } catch {
    return undefined
  }
  const {uid, gid} = statSync(server[0]!.data)
  chownSync(folder, uid, gid)
  await site.db`${raw(`create tablespace small location '${folder}'`)}`
  await site.db`grant create on tablespace small to public`
  return {
    grow: () => {
      execFileSync('mount', ['-o', 'remount,size=200m', folder])
    },
    remove: async () => {
      await site.db`drop tablespace if exists small`
      execFileSync('umount', ['-l', folder])
    },
  }
}
