import assert from 'node:assert/strict'
import {join} from 'node:path'
import {DatabaseSync} from 'node:sqlite'
import {Writable} from 'node:stream'
import {afterAll, beforeAll, describe, test} from 'vitest'
import {Pace} from '../source/capture.ts'
import {openSource} from '../source/open.ts'
import {PageFinder} from '../source/page-finder.ts'
import {generate, sizes} from '../sample/generate.ts'
import {startWriter} from '../sample/writer.ts'
import {createLog} from '../telemetry/log.ts'
import {
  defaultLimits,
  leadingClient,
  leadingHost,
  type LeadingClient,
  type LeadingHost,
} from '../../test/leading-host.ts'
import {compareMirror} from '../../test/mirror.ts'
import {chanceOf, makeFile, seedOf, type Chance} from '../../test/mutator.ts'
import {until} from '../../test/until.ts'
import {AUDIT_EVERY_MS, auditDueAt} from './audit.ts'
import {lockDeployment} from './lock.ts'
import {Session} from './session.ts'
import {Sidecar} from './sidecar.ts'

const {signal} = new AbortController()
const hourMs = 3_600_000

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

for (const [what, id, auditedHoursAgo, expected] of [
  ['nobody knows of one', '0000', undefined, true],
  ['the last one was yesterday', '0000', 24.1, true],
  ['the last one was this morning', 'ffff', 19.9, false],
  ['the last one was 22 h ago, and its time is early', 'ffff', 22, true],
  ['the last one was 22 h ago, and its time is late', '0000', 22, false],
  ['the clock has been set back', '0000', -1, true],
] as const) {
  test(`when ${what}, an audit is ${expected ? '' : 'not '}due`, () => {
    const audited = auditedHoursAgo === undefined ? undefined : String(Date.now() - auditedHoursAgo * hourMs)
    assert.equal(Date.now() >= auditDueAt(`${id}1234-0000`, audited), expected)
  })
}

test('a deployment is audited once in 24 hours at least, and 20 at most', () => {
  for (const id of ['0000', '8000', 'ffff', 'a1b2', 'not a uuid']) {
    const everyMs = auditDueAt(id, '1000') - 1_000
    assert.ok(everyMs <= AUDIT_EVERY_MS && everyMs >= 20 * hourMs, id)
  }
})

/** Each makes the target wrong, or what is remembered of it, without any page to show it. */
const lies = {
  'a change that the pages no longer show': async ({file, id}) => {
    change(file, 'update measure set i = 4711 where id = 7')
    // The pages are looked at, and the rows on them are not.
    using sidecar = Sidecar.open(leader.stateDir, id)
    using source = await openSource(file, signal)
    const finder = new PageFinder(source, sidecar.loadPages(undefined))
    const isWal = journalOf(file) === 'wal'
    await finder.find(new Pace(source, 25, signal), isWal, signal)
    sidecar.savePages(finder.state)
  },
  'a row that is remembered as another': ({id}) => {
    inSidecar(id, table => `update ${table} set digest = zeroblob(16) where rid = 7`)
    return Promise.resolve()
  },
  'a row that is remembered and was never there': ({id}) => {
    inSidecar(id, table => `insert into ${table} values (9000, '~i9000;', zeroblob(16))`)
    return Promise.resolve()
  },
  'a row that is not remembered': ({id}) => {
    inSidecar(id, table => `delete from ${table} where rid = 7`)
    return Promise.resolve()
  },
} satisfies Record<string, (client: {file: string; id: string}) => Promise<void>>

describe.each(['delete', 'wal'] as const)('%s', journal => {
  for (const [what, lie] of Object.entries(lies)) {
    test(`an audit finds ${what}, applies it and tells it`, async () => {
      await using client = await loadedClient(journal)
      const {deploymentId} = await client.deployment()
      await lie({file: client.file, id: deploymentId})
      change(client.file, 'update chat set archived = 1 - archived where rowid = 3')
      using told = session(client, deploymentId)

      const blind = await told.run()
      assert.deepEqual(
        [blind.rows.upserted, blind.rows.tombstoned, blind.audit],
        [1, 0, undefined],
        'the pages show it',
      )
      const result = await later(24, () => told.run())
      assert.deepEqual(result.audit, {rows: 1, tables: ['measure']})
      assert.equal(result.rows.upserted + result.rows.tombstoned, 1)
      assert.equal(result.status, 'success')
      assert.deepEqual((await compareMirror(leader.admin, schemaOf(client), client.file)).differences, [])

      const [line] = told.lines
      assert.deepEqual(
        {level: line?.level, rows: line?.rows, client: line?.client},
        {level: 'error', rows: 1, client: client.name},
      )
      const [job] = await leader.admin<{error_code: string; error_details: unknown; status: string}>`
        select error_code, error_details, status from sync_metadata.sync_jobs
        where deployment_id = ${deploymentId} order by finished_at desc limit 1`
      assert.deepEqual(job, {
        error_code: 'SYNC_CHANGES_MISSED',
        error_details: {audit: {rows: 1, tables: ['measure']}},
        status: 'success',
      })
      // The pages have proved wrong: they are learned anew, and work again.
      assert.equal((await later(24, () => told.run())).mode, 'unchanged')
      change(client.file, 'update measure set i = 12 where id = 9')
      assert.equal((await later(24, () => told.run())).rows.upserted, 1)
      assert.equal(told.lines.length, 1)
    })
  }

  test('what had misled the pages is learned anew', async () => {
    await using client = await loadedClient(journal)
    const write = (letter: string) => {
      // Of one length: in the chain of overflow pages only one page changes, and it is in the middle.
      const text = `${'-'.repeat(30_000)}${letter}${'-'.repeat(30_000)}`
      change(client.file, `update chat set chat = '${text}' where rowid = 5`)
    }
    write('a')
    await client.sync({capture: 'pages'})
    const {deploymentId} = await client.deployment()
    {
      using sidecar = Sidecar.open(leader.stateDir, deploymentId)
      const state = sidecar.loadPages(undefined)!
      for (let page = 1; page <= state.pageCount; page++) state.setUp(page, 0)
      sidecar.savePages(state)
    }
    using told = session(client, deploymentId)
    write('b')
    assert.equal((await told.run()).rows.upserted, 0, 'the pages show it')
    assert.deepEqual((await later(24, () => told.run())).audit, {rows: 1, tables: ['chat']})
    write('c')
    assert.equal((await later(24, () => told.run())).rows.upserted, 1)
  })

  test('a file that nothing happens to is audited too, and only then', async () => {
    await using client = await loadedClient(journal)
    using told = session(client, (await client.deployment()).deploymentId)
    await told.run()
    await later(0.01, () => told.run())
    assert.equal((await later(19, () => told.run())).audit, undefined)
    const audited = await later(24, () => told.run())
    assert.deepEqual([audited.mode, audited.audit], ['unchanged', {rows: 0, tables: []}])
    // In WAL mode nobody waits for what it reads.
    assert.equal(audited.lock.max_hold_ms > 0, journal === 'delete')
    assert.equal((await later(25, () => told.run())).audit, undefined)
    assert.deepEqual((await later(48.1, () => told.run())).audit, {rows: 0, tables: []})
    assert.deepEqual(told.lines, [])
  })

  test('an audit while the app goes on writing raises no false alarm', async () => {
    await using client = await leadingClient(leader, `audit-${++clients}`)
    generate(client.file, {version: '0.10.2', seed: clients, ...sizes.demo})
    change(client.file, `pragma journal_mode = ${journal}`)
    await client.sync({capture: 'pages'})
    using told = session(client, (await client.deployment()).deploymentId)
    {
      await using app = startWriter({file: client.file, seed: clients, rate: 200, journalMode: journal})
      await until(() => app.totals().writes > 0)
      let applied = 0
      for (let day = 1; day <= 8; day++) {
        const {audit, rows} = await later(24 * day, () => told.run())
        assert.equal(audit?.rows, 0, JSON.stringify(audit))
        applied += rows.upserted
      }
      assert.ok(applied > 0, 'the app wrote nothing')
      assert.ok(app.pid)
    }
    await later(24 * 9, () => told.run())
    assert.deepEqual((await compareMirror(leader.admin, schemaOf(client), client.file)).differences, [])
    assert.deepEqual(told.lines, [])
  })
})

async function loadedClient(journal: 'delete' | 'wal', rows = 60): Promise<LeadingClient> {
  const client = await leadingClient(leader, `audit-${++clients}`)
  makeFile(client.file, chance, {journal, rows})
  await client.sync({capture: 'pages'})
  change(client.file, 'update measure set i = 1 where id = 1')
  await client.sync({capture: 'pages'})
  return client
}

function session(client: LeadingClient, deploymentId: string) {
  const {stateDir} = leader
  const place = {stateDir, deploymentId, clientName: client.name, schemaName: schemaOf(client)}
  const held = new Session(place, lockDeployment(stateDir, deploymentId, client.name))
  const lines: Record<string, unknown>[] = []
  const stream = new Writable({
    write(line: Buffer, _, done) {
      lines.push(JSON.parse(line.toString()) as Record<string, unknown>)
      done()
    },
  })
  const log = createLog({level: 'warn', format: 'json', stream})
  const run = {
    pool: leader.host,
    lease: leader.lease,
    sqlitePath: client.file,
    limits: {...defaultLimits, lockBudgetMs: 1_000, deleteGuard: undefined},
    full: false,
    dryRun: false,
    accept: false,
    capture: 'pages',
    log,
  } as const
  return {
    lines,
    run: () => held.run(run, signal),
    [Symbol.dispose]: () => {
      held[Symbol.dispose]()
    },
  }
}

/** Runs with a clock that is ahead. */
async function later<T>(hours: number, work: () => Promise<T>): Promise<T> {
  const now = Date.now
  Date.now = () => now() + hours * hourMs
  try {
    return await work()
  } finally {
    Date.now = now
  }
}

function change(file: string, sql: string): void {
  using db = new DatabaseSync(file, {timeout: 5_000})
  db.exec(sql)
}

function journalOf(file: string): unknown {
  using db = new DatabaseSync(file, {readOnly: true})
  return db.prepare('pragma journal_mode').get()?.['journal_mode']
}

/** Changes what is remembered of the table `measure`. */
function inSidecar(id: string, sql: (table: string) => string): void {
  using db = new DatabaseSync(join(leader.stateDir, 'sidecars', `${id}.db`))
  const row = db.prepare(`select id from tables where name = 'measure'`).get()
  db.exec(sql(`s${String(row?.['id'])}`))
}

function schemaOf({name}: LeadingClient): string {
  return name.replaceAll('-', '_')
}
