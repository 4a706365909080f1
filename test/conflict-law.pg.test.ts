import assert from 'node:assert/strict'
import {DatabaseSync} from 'node:sqlite'
import fc from 'fast-check'
import {afterAll, beforeAll, test} from 'vitest'
import {raw} from '../src/postgres/sql.ts'
import {compareFiles} from './compare.ts'
import {editorOf, type Editor} from './editor.ts'
import {
  interrupted,
  InterruptedError,
  leadingClient,
  leadingHost,
  type Interruption,
  type LeadingClient,
  type LeadingHost,
} from './leading-host.ts'

// The law of conflicts: whoever changes what on either side, under any rules, and wherever a sync is cut short: the sides
// are equal in the end but for what a rule or a person lets differ, no edit is gone without a trace in the ledger, and
// a sync that finds nothing to decide changes nothing. Where the deployment is two_way both sides are equal then, but for
// what a person is asked, and no change of the app's is gone without a trace either.

let leader: LeadingHost
beforeAll(async () => {
  leader = await leadingHost('conflict-law')
})
afterAll(() => leader[Symbol.asyncDispose]())

const cases = Number(process.env['OWSYNC_CASES']) || 40

const tables = ['note', 'pair', 'loose', 'slot'] as const
type Table = (typeof tables)[number]

type Step =
  | {
      readonly side: 'source' | 'target'
      readonly table: Table
      readonly row: number
      readonly do: 'put' | 'delete'
      readonly json: boolean
    }
  | {
      readonly side: 'sync'
      readonly end: Interruption | undefined
      readonly full: boolean
      readonly manual: boolean
    }

const step: fc.Arbitrary<Step> = fc.oneof(
  {
    weight: 5,
    arbitrary: fc.record({
      side: fc.constantFrom('source' as const, 'target' as const),
      table: fc.constantFrom(...tables),
      row: fc.nat(4),
      do: fc.constantFrom('put' as const, 'put' as const, 'delete' as const),
      json: fc.boolean(),
    }),
  },
  {
    weight: 2,
    arbitrary: fc.record({
      side: fc.constant('sync' as const),
      end: fc.option(
        fc.record({
          at: fc.constantFrom(1, 2, 3, 4, 6, 8, 10),
          when: fc.constantFrom(
            'before commit' as const,
            'after commit' as const,
            'before statement' as const,
          ),
        }),
        {freq: 2, nil: undefined},
      ),
      full: fc.boolean(),
      manual: fc.boolean(),
    }),
  },
)

const strategy = fc.constantFrom('newest_wins', 'source_wins', 'target_wins', 'merge', 'manual')

test.for(['one_way', 'two_way'] as const)(
  'whoever changes what, the sides meet and no edit is gone without a trace: %s',
  {timeout: 600_000},
  async (direction, {annotate}) => {
    const seed = Number(process.env['OWSYNC_SEED']) || Math.trunc(Math.random() * 2 ** 31)
    await annotate(`OWSYNC_SEED=${seed}`)
    await fc.assert(
      fc.asyncProperty(
        fc.array(step, {minLength: 3, maxLength: 25}),
        fc.record({note: strategy, pair: strategy, loose: strategy, slot: strategy}),
        fc.boolean(),
        fc.boolean(),
        async (steps, strategies, inSession, inWal) => {
          await using client = await leadingClient(leader, `claw-${++clients}`)
          await using editor = await first(client, {direction, inWal})
          using session = inSession ? client.session() : undefined
          const play = new Play(client, editor, strategies, options => (session ?? client).sync(options))
          for (const each of steps) await play.take(each)
          await play.settle()
        },
      ),
      {seed, numRuns: cases},
    )
  },
)

let clients = 0
let token = 0

/** Makes the source and loads it. */
async function first(
  client: LeadingClient,
  {direction, inWal}: {readonly direction: 'one_way' | 'two_way'; readonly inWal: boolean},
): Promise<Editor> {
  using app = new DatabaseSync(client.file)
  app.exec(`pragma journal_mode = ${inWal ? 'wal' : 'delete'}`)
  app.exec(`
    create table note (id text primary key, v text, meta json, updated_at integer);
    create table pair (a text, b integer, v text, meta json, updated_at integer, primary key (a, b)) without rowid;
    create table loose (name text, v text, meta json, updated_at integer);
    create table slot (id text primary key, v text, meta json, updated_at integer, place integer unique);
    insert into note values ('k0', 'n0', '{"tags": [1]}', 1700000000), ('k1', 'n1', null, 1700000000);
    insert into pair values ('p', 0, 'p0', '[]', 1700000000), ('p', 1, 'p1', null, 1700000000);
    insert into loose values ('l0', 'l0', '{}', 1700000000), ('l1', 'l1', null, 1700000000);
    insert into slot values ('s0', 's0', '{}', 1700000000, 0), ('s1', 's1', null, 1700000000, 1)`)
  await client.sync()
  await leader.host`update sync_metadata.client_deployments set direction = ${direction} where client_name = ${client.name}`
  return await editorOf(leader.admin, client.name)
}

class Play {
  readonly #client: LeadingClient
  readonly #editor: Editor
  readonly #config
  readonly #sync: LeadingClient['sync']
  readonly #schema: string
  /** What a sync was to decide about when it was last seen: by table and key. */
  #owed = new Map<string, {readonly table: Table; readonly key: string; readonly trace: string}>()

  /** What the app did last to each row. */
  readonly #appOwed = new Map<
    string,
    {readonly table: Table; readonly where: string; readonly trace: string}
  >()

  constructor(
    client: LeadingClient,
    editor: Editor,
    strategies: Readonly<Record<Table, string>>,
    sync: LeadingClient['sync'],
  ) {
    this.#client = client
    this.#editor = editor
    this.#schema = client.name.replaceAll('-', '_')
    this.#config = {place: 'law', document: {table_strategies: strategies}}
    this.#sync = sync
  }

  async take(step: Step): Promise<void> {
    if (step.side === 'sync') {
      await this.#note()
      try {
        await this.#run({
          full: step.full,
          marks: true,
          ...(step.end === undefined ? {} : {pool: interrupted(leader.host, step.end)}),
        })
      } catch (error) {
        if (!(error instanceof InterruptedError)) throw error
        return
      }
      await this.#check()
      return
    }
    const {table, row, json} = step
    const [key, insert] = {
      note: [`id = 'k${row}'`, `'k${row}'`],
      pair: [`a = 'p' and b = ${row}`, `'p', ${row}`],
      loose: [`name = 'l${row}'`, `'l${row}'`],
      slot: [`id = 's${row}'`, `'s${row}'`],
    }[table] as [string, string]
    const value = `${step.side}-${++token};`
    const at = 1_700_000_000 + token
    const meta = json ? `'{"tags": ["${value}"], "n":  ${token}}'` : 'null'
    // Few places for many rows: each of them is for one row only, as the app has it.
    const [place, to] = table === 'slot' ? [', place', `, ${token % 4}`] : ['', '']
    const set = `v = '${value}', updated_at = ${at}${json ? `, meta = ${meta}` : ''}${place && `${place} = ${token % 4}`}`
    const columns = {note: 'id', pair: 'a, b', loose: 'name', slot: 'id'}[table]
    const put = `insert into $.${table} (${columns}, v, meta, updated_at${place}) values (${insert}, '${value}', ${meta}, ${at}${to})`
    if (step.side === 'source') {
      using app = new DatabaseSync(this.#client.file)
      const of = (sql: string) => sql.replace('$.', '')
      let isDone: boolean
      try {
        if (step.do === 'delete') isDone = app.prepare(`delete from ${table} where ${key}`).run().changes > 0
        else {
          if (app.prepare(`update ${table} set ${set} where ${key}`).run().changes === 0) app.exec(of(put))
          isDone = true
        }
      } catch (error) {
        if (!String(error).includes('UNIQUE constraint failed: slot.place')) throw error
        return
      }
      // What the app does to a row takes the place of what it did before.
      const trace = step.do === 'delete' ? 'gone' : value
      if (isDone) this.#appOwed.set(`${table} ${key}`, {table, where: key, trace})
      return
    }
    const of = (sql: string) => raw(sql.replace('$', this.#schema))
    if (step.do === 'delete') await this.#editor`${of(`delete from $.${table} where ${key}`)}`
    else {
      const found = await this.#editor`${of(`update $.${table} set ${set} where ${key} returning 1`)}`
      if (found.length === 0) await this.#editor`${of(put)}`
    }
  }

  /** Without interruption; twice, because what moves between two looks is for the second. */
  async settle(): Promise<void> {
    await this.#note()
    await this.#run({marks: true})
    await this.#check()
    const before = await this.#client.written()
    const again = await this.#run({marks: true})
    assert.equal(again.mode, 'unchanged')
    assert.equal(await this.#client.written(), before, 'a sync that reports nothing has written')

    let standing = 0
    let asked = 0
    for (const table of tables) {
      const rows = await leader.admin<{
        key: string
        mark: boolean
        diverged: string | null
        status: string | null
      }>`
        ${raw(`select _sync_key as key, _sync_edited_by is not null as mark, _sync_diverged as diverged,
          case when c.is_standing then c.status end as status
          from ${this.#schema}.${table} t left join sync_metadata.conflict_log c on c.conflict_id = t._sync_diverged`)}`
      for (const row of rows) {
        assert.ok(!row.mark, `${table} ${row.key} has a mark`)
        if (row.diverged === null) continue
        standing++
        if (row.status === 'pending') asked++
        assert.ok(row.status !== null, `${table} ${row.key} differs by no standing conflict`)
      }
    }
    const {differences, accepted} = await this.#client.verify()
    assert.deepEqual({differences, accepted}, {differences: [], accepted: standing})
    assert.deepEqual(compareFiles(this.#client.file, await this.#client.restore({asSource: true})), [])
    if ((await this.#client.deployment()).direction === 'two_way') {
      assert.equal(standing, asked, 'something differs that nobody is asked about')
      if (asked === 0) assert.deepEqual(compareFiles(this.#client.file, await this.#client.restore()), [])
      using app = new DatabaseSync(this.#client.file, {readOnly: true})
      assert.deepEqual({...app.prepare('pragma integrity_check').get()}, {integrity_check: 'ok'})
    }
    const [pending] = await leader.admin<{n: number}>`
      select count(*)::int as n from sync_metadata.conflict_log where status = 'pending'
        and deployment_id = ${(await this.#client.deployment()).deploymentId}`
    assert.equal(again.conflicts.pending, pending!.n)
  }

  async #run(options: Parameters<LeadingClient['sync']>[0]) {
    const result = await this.#sync({accept: true, conflictConfig: this.#config, ...options})
    assert.equal(result.status, 'success', result.reason)
    return result
  }

  /** Remembers every marked row as the next sync is to find it. */
  async #note(): Promise<void> {
    for (const table of tables)
      for (const row of await leader.admin<{key: string; v: string; gone: boolean; isKnown: boolean}>`
        ${raw(`select _sync_key as key, v, _sync_deleted_at is not null as gone, _sync_hash is not null as "isKnown"
          from ${this.#schema}.${table} where _sync_edited_by is not null`)}`) {
        // What was made and taken away again before anybody else knew of it, as when a sync was cut short, is no edit.
        if (row.gone && !row.isKnown) this.#owed.delete(`${table} ${row.key}`)
        else this.#owed.set(`${table} ${row.key}`, {table, key: row.key, trace: row.gone ? 'gone' : row.v})
      }
  }

  /** Each of these edits stands in the target, was the source's too, or is in the ledger. */
  async #check(): Promise<void> {
    for (const {table, key, trace} of this.#owed.values()) {
      const [row] = await leader.admin<{v: string; gone: boolean}>`
        ${raw(`select v, _sync_deleted_at is not null as gone from ${this.#schema}.${table} where _sync_key = `)}${key}`
      const stands = row !== undefined && (row.gone ? trace === 'gone' : row.v === trace)
      if (stands) continue
      const entries = await leader.admin<{target: string}>`
        select target_data::text as target from sync_metadata.conflict_log c
        where table_name = ${table} and record_key = ${key}
          and deployment_id = (select deployment_id from sync_metadata.client_deployments where schema_name = ${this.#schema})`
      const isTold = entries.some(({target}) =>
        trace === 'gone' ? target.includes('"_sync_digest": null') : target.includes(trace),
      )
      assert.ok(isTold, `the edit of ${table} ${key} to ${trace} is gone`)
    }
    this.#owed = new Map()

    // The same of the app's changes: each stands in the source, or the ledger has it.
    using app = new DatabaseSync(this.#client.file, {readOnly: true})
    for (const {table, where, trace} of this.#appOwed.values()) {
      const rows = app.prepare(`select v from ${table} where ${where}`).all()
      if (rows.length === 0 ? trace === 'gone' : rows.some(row => row['v'] === trace)) continue
      const entries = await leader.admin<{source: string}>`
        select source_data::text as source from sync_metadata.conflict_log c where table_name = ${table}
          and deployment_id = (select deployment_id from sync_metadata.client_deployments where schema_name = ${this.#schema})`
      const isTold = entries.some(({source}) =>
        trace === 'gone' ? source.includes('"_sync_digest": null') : source.includes(trace),
      )
      assert.ok(isTold, `the app's change of ${table} ${where} to ${trace} is gone`)
    }
  }
}
