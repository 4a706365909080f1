import assert from 'node:assert/strict'
import {spawnSync} from 'node:child_process'
import fs, {closeSync, copyFileSync, existsSync, fstatSync, openSync, renameSync, statSync} from 'node:fs'
import {syncBuiltinESMExports} from 'node:module'
import {DatabaseSync} from 'node:sqlite'
import {Writable} from 'node:stream'
import {afterAll, beforeAll, describe, test} from 'vitest'
import {connect} from '../postgres/connect.ts'
import type {Pool} from '../postgres/sql.ts'
import {createLog, type Log} from '../telemetry/log.ts'
import {
  leadingClient,
  leadingHost,
  defaultLimits,
  type LeadingClient,
  type LeadingHost,
} from '../../test/leading-host.ts'
import {assertMirror} from '../../test/mirror.ts'
import {chanceOf, makeFile, mutate, seedOf, type Chance} from '../../test/mutator.ts'
import {proxyTo} from '../../test/proxy.ts'
import {Held} from './held.ts'
import {lockDeployment} from './lock.ts'
import {Session, type SessionRun} from './session.ts'
import {syncHeld} from './sync.ts'

const {signal} = new AbortController()
const journals = ['delete', 'wal'] as const
const ways = journals.flatMap(journal => (['pages', 'digests'] as const).map(capture => ({journal, capture})))

let leader: LeadingHost
let chance: Chance
let clients = 0

beforeAll(async () => {
  const seed = seedOf()
  process.stderr.write(`OWSYNC_SEED=${seed}\n`)
  chance = chanceOf(seed)
  leader = await leadingHost()
})

afterAll(() => leader[Symbol.asyncDispose]())

describe.each(ways)('$journal, $capture', ({journal, capture}) => {
  test('whatever happens to the file between the runs of a session, the target follows', async () => {
    await using client = await loadedClient(journal)
    await using session = await sessionOf(client)
    let before = await assertMirror(leader.admin, schemaOf(client), client.file)
    for (let round = 0; round < 24; round++) {
      const what = chance.pick(happenings)
      happen[what](client.file)
      const result = await session.run({capture})
      assert.equal(result.status, 'success', `${what}: ${result.reason ?? ''}`)
      before = await assertMirror(leader.admin, schemaOf(client), client.file, before)
    }
  })

  test('what comes and goes between a first load and the capture that closes it is not taken for known', async () => {
    await using client = await leadingClient(leader, `session-${++clients}`)
    makeFile(client.file, chance, {journal, rows: 40})
    using app = new DatabaseSync(client.file)
    const set = (i: number) => {
      app.exec(`update measure set i = ${i} where id = 3`)
    }
    set(500)
    let asked = 0
    const pool = new Proxy(leader.host, {
      apply: (_, __, [sql, ...values]: [TemplateStringsArray, ...unknown[]]) => {
        // Before the load and before that capture the columns of the target are asked for.
        if (sql.join('').includes('pg_attribute') && ++asked === 2) set(501)
        return leader.host(sql, ...values)
      },
    })
    await client.sync({pool, capture})
    assert.equal(asked, 2)
    set(500)
    await client.sync({capture})
    await assertMirror(leader.admin, schemaOf(client), client.file)
  })

  test('a commit right after a run is seen by the next one', async () => {
    await using client = await loadedClient(journal)
    await using session = await sessionOf(client)
    using app = new DatabaseSync(client.file)
    await session.run({capture})
    for (let i = 0; i < 40; i++) {
      app.exec(`update measure set i = ${10_000 + i} where id = 3`)
      const {rows, mode} = await session.run({capture})
      assert.deepEqual([mode, rows.upserted], ['incremental', 1], `update ${i}`)
    }
    await assertMirror(leader.admin, schemaOf(client), client.file)
  })
})

/** What an app or an operator does to a file between two syncs. */
const happen = {
  nothing: () => undefined,
  'the app writes': file => {
    mutate(file, chance)
  },
  'the app writes a lot': file => {
    mutate(file, chance, 30)
  },
  'the journal mode flips': file => {
    flip(file)
    mutate(file, chance, 1)
  },
  'it flips to and fro': file => {
    flip(file)
    mutate(file, chance, 1)
    flip(file)
  },
  'another file takes the name': file => {
    copyAside(file)
    mutate(`${file}.other`, chance)
    swap(file)
  },
  'an equal file takes the name': file => {
    copyAside(file)
    swap(file)
  },
} satisfies Record<string, (file: string) => void>
const happenings = Object.keys(happen) as (keyof typeof happen)[]

describe.each(journals)('the gate, %s', journal => {
  test('an unchanged file costs no word with Postgres', async () => {
    await using client = await loadedClient(journal)
    await using proxy = await proxyTo(leader.host.endpoint)
    await using pool = connect(proxy.endpoint, {applicationName: 'owsync-test'})
    await using session = await sessionOf(client, pool)
    using app = new DatabaseSync(client.file)
    app.exec('update measure set i = 1')
    await session.run()
    await session.run()
    const before = {...proxy.bytes}
    const times: number[] = []
    for (let i = 0; i < 300; i++) {
      const since = performance.now()
      const result = await session.run()
      times.push(performance.now() - since)
      assert.equal(result.mode, 'unchanged')
    }
    assert.deepEqual(proxy.bytes, before)
    const [p50, p99] = [150, 297].map(at => times.sort((a, b) => a - b)[at]!)
    process.stderr.write(
      `gate, ${journal}: p50 ${(p50! * 1000).toFixed(0)} µs, p99 ${(p99! * 1000).toFixed(0)} µs\n`,
    )

    app.exec('update measure set i = 2 where id = 1')
    assert.equal((await session.run()).rows.upserted, 1)
    assert.ok(proxy.bytes.up > before.up, 'the proxy does not count')
  })

  test('a commit is seen where the times of a file tell nothing', async () => {
    await using client = await loadedClient(journal)
    await using session = await sessionOf(client)
    using app = new DatabaseSync(client.file)
    app.exec('update measure set i = 40 where id = 1')
    await session.run()
    using _coarse = coarseTimes()
    await session.run()
    assert.equal((await session.run()).mode, 'unchanged')
    app.exec('update measure set i = 41 where id = 1')
    assert.equal((await session.run()).rows.upserted, 1)
  })

  test('a run that finds changes asks for nothing that is known', async () => {
    await using client = await loadedClient(journal)
    await using proxy = await proxyTo(leader.host.endpoint)
    await using pool = connect(proxy.endpoint, {applicationName: 'owsync-test'})
    await using session = await sessionOf(client, pool)
    const turns: number[] = []
    for (let i = 0; i < 3; i++) {
      using app = new DatabaseSync(client.file)
      app.exec(`update measure set i = ${70 + i} where id = 1`)
      const before = proxy.turns
      await session.run()
      turns.push(proxy.turns - before)
    }
    // Begin, rows, generation, commit: the first run also asks for the deployment and its schema.
    assert.equal(turns[2], 4, turns.join())
    assert.ok(turns[0]! > turns[2])
  })

  test('what the guard holds back is held back again without another look, until a person accepts it', async () => {
    await using client = await loadedClient(journal)
    await using proxy = await proxyTo(leader.host.endpoint)
    await using pool = connect(proxy.endpoint, {applicationName: 'owsync-test'})
    await using session = await sessionOf(client, pool)
    using app = new DatabaseSync(client.file)
    app.exec('delete from chat')
    const limits = {...defaultLimits, deleteGuard: {rows: 10, share: 0.1}}
    const held = await session.run({limits})
    assert.equal(held.status, 'quarantined')
    await session.run({limits})
    const before = proxy.turns
    const again = await session.run({limits})
    assert.deepEqual([again.status, again.reason], [held.status, held.reason])
    assert.equal(proxy.turns, before)
    assert.equal((await session.run({limits, accept: true})).status, 'success')
    await assertMirror(leader.admin, schemaOf(client), client.file)
    app.exec('update measure set i = 5 where id = 1')
    assert.equal((await session.run({limits})).rows.upserted, 1)
  })

  test('a newer lease knows nothing: what another leader may have done is asked for', async () => {
    await using client = await loadedClient(journal)
    await using proxy = await proxyTo(leader.host.endpoint)
    await using pool = connect(proxy.endpoint, {applicationName: 'owsync-test'})
    await using session = await sessionOf(client, pool)
    await session.run()
    await session.run()
    const before = proxy.turns
    assert.equal((await session.run()).mode, 'unchanged')
    assert.equal(proxy.turns, before)
    await session.run({lease: {...leader.lease, epoch: leader.lease.epoch + 1n}})
    assert.ok(proxy.turns > before)
  })
})

describe.each(['delete', 'wal'] as const)('an app that is idle (%s)', journal => {
  test('finds its file, its log, its schema and its settings as it has left them, however it is synced', async () => {
    await using client = await loadedClient(journal)
    using app = new DatabaseSync(client.file)
    app.exec(`pragma wal_autocheckpoint = 0; update measure set i = i + 1 where id < 20`)
    const before = contentOf(client.file)
    assert.deepEqual(Object.keys(before), journal === 'wal' ? ['.db', '.db-wal'] : ['.db'])
    for (const capture of ['pages', 'digests'] as const) await client.sync({capture})
    await client.sync({full: true})
    {
      await using session = await sessionOf(client)
      for (const options of [{}, {full: true}, {dryRun: true}]) await session.run(options)
      assert.deepEqual(contentOf(client.file), before)
    }
    assert.deepEqual(contentOf(client.file), before)
    await assertMirror(leader.admin, schemaOf(client), client.file)
  })
})

/** Digests of the file and of its log or journal. Another process asks: to close what it reads would drop this one's locks. */
function contentOf(file: string): Record<string, string> {
  const {status, stdout} = spawnSync(
    'sh',
    ['-c', 'sha256sum "$1" "$1"-wal "$1"-journal 2>/dev/null', 'sh', file],
    {
      encoding: 'utf8',
    },
  )
  assert.ok(status === 0 || status === 1)
  const lines = stdout
    .trim()
    .split('\n')
    .map(line => line.split('  ') as [string, string])
  return Object.fromEntries(lines.map(([digest, path]) => [path.slice(file.lastIndexOf('.')), digest]))
}

test('a session that has a file in WAL mode is not in the way: the app leaves WAL mode, and no log stays when it stops', async () => {
  await using client = await loadedClient('wal')
  await using session = await sessionOf(client)
  {
    using app = new DatabaseSync(client.file)
    app.exec('update measure set i = 12 where id = 1')
    assert.equal((await session.run()).rows.upserted, 1)
    app.exec('update measure set i = 13 where id = 1')
  }
  assert.equal(existsSync(`${client.file}-wal`), false, 'the last commits are not in the file')
  {
    using app = new DatabaseSync(client.file)
    const now = app.prepare('pragma journal_mode = delete').get()
    assert.equal(now?.['journal_mode'], 'delete')
  }
  assert.equal((await session.run()).rows.upserted, 1)
})

describe('a lock', () => {
  test('held beyond the budget is told, one within it is not', async () => {
    await using client = await loadedClient('delete')
    await using session = await sessionOf(client)
    const {log, lines} = warnings()
    for (const lockBudgetMs of [60_000, 0.0001]) {
      mutate(client.file, chance)
      const {lock} = await session.run({log, limits: {...defaultLimits, lockBudgetMs}})
      assert.ok(lock.max_hold_ms > 0 && lock.busy_retries === 0)
      assert.equal(lines.length, lockBudgetMs === 60_000 ? 0 : 1, lines.join())
    }
    const {level, client: name, budget_ms} = JSON.parse(lines[0]!) as Record<string, unknown>
    assert.deepEqual({level, name, budget_ms}, {level: 'warn', name: client.name, budget_ms: 0.0001})
  })

  test('held beyond the budget is told by a run that fails, too', async () => {
    await using client = await loadedClient('delete')
    await using proxy = await proxyTo(leader.host.endpoint)
    await using pool = connect(proxy.endpoint, {applicationName: 'owsync-test'})
    await using session = await sessionOf(client, pool)
    await session.run()
    mutate(client.file, chance, 5)
    const {log, lines} = warnings()
    proxy.cutAfter(700, 'up')
    const limits = {...defaultLimits, lockBudgetMs: 0.0001}
    await assert.rejects(session.run({log, limits}), {code: 'SYNC_CONNECTION_LOST'})
    assert.ok(
      lines.some(line => line.includes('LOCK_BUDGET_MS')),
      lines.join(),
    )
  })
})

function warnings(): {log: Log; lines: readonly string[]} {
  const lines: string[] = []
  const stream = new Writable({
    write(line: Buffer, _, done) {
      lines.push(line.toString())
      done()
    },
  })
  return {log: createLog({level: 'warn', format: 'json', stream}), lines}
}

test('a run that fails leaves a session that heals', async () => {
  await using client = await loadedClient('delete')
  await using proxy = await proxyTo(leader.host.endpoint)
  await using pool = connect(proxy.endpoint, {applicationName: 'owsync-test'})
  await using session = await sessionOf(client, pool)
  await session.run()
  for (const bytes of [1, 200, 700, 1_500]) {
    mutate(client.file, chance, 5)
    proxy.cutAfter(bytes, 'up')
    await assert.rejects(session.run(), {code: 'SYNC_CONNECTION_LOST'})
    proxy.heal()
    assert.equal((await session.run()).status, 'success')
    await assertMirror(leader.admin, schemaOf(client), client.file)
  }
})

test('while a session lives, nothing it does drops the locks of its connection', async () => {
  await using client = await loadedClient('delete')
  const deployment = await client.deployment()
  using held = new Held(leader.stateDir, deployment.deploymentId)
  using closes = watchCloses(fd => held.openSource !== undefined && isOpenOn(fd, client.file))
  for (let i = 0; i < 3; i++) {
    mutate(client.file, chance)
    const outcome = await syncHeld(
      {
        ...base(leader.host, client),
        capture: 'pages',
        stateDir: leader.stateDir,
        deployment: await client.deployment(),
      },
      held,
      signal,
    )
    assert.equal(outcome.result.status, 'success')
    held.rest()
    const reading = held.openSource!.db
    reading.exec('begin')
    reading.prepare('select count(*) from chat').get()
    assert.equal(commitElsewhere(client.file), 'database is locked', `run ${i}: our read lock is gone`)
    reading.exec('commit')
    assert.equal(commitElsewhere(client.file), 'committed')
  }
  assert.deepEqual(closes.seen, [])
  // What would be wrong: this is how the lock is lost, and how this test would see it.
  const reading = held.openSource!.db
  reading.exec('begin')
  reading.prepare('select count(*) from chat').get()
  closeSync(openSync(client.file, 'r'))
  assert.equal(commitElsewhere(client.file), 'committed')
  reading.exec('commit')
  assert.equal(closes.seen.length, 1)
})

/** Notes where a descriptor was closed that should not have been. */
function watchCloses(isWrong: (fd: number) => boolean): Disposable & {readonly seen: string[]} {
  const seen: string[] = []
  const close = fs.closeSync
  const instead = insteadOf('closeSync', (fd: number) => {
    if (isWrong(fd)) seen.push(new Error('closed').stack ?? '')
    close(fd)
  })
  return Object.assign(instead, {seen})
}

/** Files whose times have the grain of a century. */
function coarseTimes(): Disposable {
  const stat = fs.statSync
  return insteadOf('statSync', (path: string, options: {bigint: true; throwIfNoEntry: false}) => {
    const found = stat(path, options)
    return found && Object.assign(Object.create(found) as typeof found, {mtimeNs: 0n, ctimeNs: 0n})
  })
}

/** Puts another function in the place of one of Node's, for everyone who has imported it. */
function insteadOf(name: 'closeSync' | 'statSync', other: unknown): Disposable {
  const original = fs[name]
  const put = (it: unknown) => {
    Object.assign(fs, {[name]: it})
    syncBuiltinESMExports()
  }
  put(other)
  return {
    [Symbol.dispose]: () => {
      put(original)
    },
  }
}

function isOpenOn(fd: number, file: string): boolean {
  const [one, other] = [fstatSync(fd, {bigint: true}), statSync(file, {bigint: true})]
  return one.dev === other.dev && one.ino === other.ino
}

/** One commit by another process that does not wait for locks. */
function commitElsewhere(file: string): string {
  const script = `
    const {DatabaseSync} = require('node:sqlite')
    const db = new DatabaseSync(process.argv[1], {timeout: 0})
    try { db.exec('update measure set i = i + 1 where id = 1'); console.log('committed') }
    catch (error) { console.log(error.message) }`
  const {stdout} = spawnSync(process.execPath, ['--no-warnings', '-e', script, file], {encoding: 'utf8'})
  return stdout.trim()
}

async function loadedClient(journal: 'delete' | 'wal'): Promise<LeadingClient> {
  const client = await leadingClient(leader, `session-${++clients}`)
  makeFile(client.file, chance, {journal, rows: 60})
  assert.equal((await client.sync()).status, 'success')
  return client
}

function base(pool: Pool, client: LeadingClient): SessionRun {
  return {
    pool,
    lease: leader.lease,
    sqlitePath: client.file,
    limits: {...defaultLimits, deleteGuard: undefined},
    full: false,
    dryRun: false,
    accept: false,
  }
}

/** A session of the client; a run is given what is not as usual. */
async function sessionOf(client: LeadingClient, pool: Pool = leader.host) {
  const {deploymentId, clientName, schemaName} = await client.deployment()
  const {stateDir} = leader
  const lock = lockDeployment(stateDir, deploymentId, clientName)
  const session = new Session({stateDir, deploymentId, clientName, schemaName}, lock)
  return {
    run: (options: Partial<SessionRun> = {}) => session.run({...base(pool, client), ...options}, signal),
    [Symbol.asyncDispose]: () => {
      session[Symbol.dispose]()
      return Promise.resolve()
    },
  }
}

function schemaOf({name}: LeadingClient): string {
  return name.replaceAll('-', '_')
}

function flip(file: string): void {
  using db = new DatabaseSync(file, {timeout: 5_000})
  const mode = db.prepare('pragma journal_mode').get()?.['journal_mode']
  const now = db.prepare(`pragma journal_mode = ${mode === 'wal' ? 'delete' : 'wal'}`).get()
  assert.notEqual(now?.['journal_mode'], mode, 'the app could not change its journal mode')
}

function copyAside(file: string): void {
  using db = new DatabaseSync(file)
  db.exec('pragma wal_checkpoint(truncate)')
  copyFileSync(file, `${file}.other`)
}

function swap(file: string): void {
  renameSync(`${file}.other`, file)
}
