import assert from 'node:assert/strict'
import {DatabaseSync} from 'node:sqlite'
import fc from 'fast-check'
import {afterAll, beforeAll, test} from 'vitest'
import {applyChange, buildFile, openForChange} from './apply-change.ts'
import {filePlan, history, type Change, type FilePlan, type TablePlan} from './arbitrary.ts'
import {changedRows, snapshot} from './changed-rows.ts'
import {compareFiles} from './compare.ts'
import {assertReport, type Rows} from './reported-rows.ts'
import {
  interrupted,
  InterruptedError,
  leadingClient,
  leadingHost,
  type Interruption,
  type LeadingClient,
  type LeadingHost,
} from './leading-host.ts'
import type {SyncResult} from '../src/sync/sync.ts'

// The law: for any schema, content and history, the target follows the source exactly, and a sync says what it did.

/** What is given and not drawn: both journal modes, and each way to find changes and to remember what was there. */
export const modes = (['delete', 'wal'] as const).flatMap(journalMode =>
  (['digests', 'pages', 'session'] as const).map(way => ({journalMode, way})),
)

export type Mode = (typeof modes)[number]

/** Until it is called: a file that changed a moment ago counts as one at rest, so that its look is relied on. */
export function hurryTime(): () => void {
  const now = Date.now
  Date.now = () => now() + 60_000
  return () => {
    Date.now = now
  }
}

// For all modes together: 504 histories of one to six intervals, about 2,200 syncs, each followed by a restore and by
// two that find nothing.
const someCases = Number(process.env['OWSYNC_CASES']) || 84

/** Declares a test for each of the modes. */
export function testLaw(
  held: readonly Mode[],
  {cases = someCases, isRun = true}: {readonly cases?: number; readonly isRun?: boolean} = {},
): void {
  let leader: LeadingHost
  let restoreTime: () => void
  beforeAll(async () => {
    leader = await leadingHost()
    restoreTime = hurryTime()
  })
  afterAll(async () => {
    restoreTime()
    await leader[Symbol.asyncDispose]()
  })
  for (const mode of held)
    test
      .runIf(isRun)
      .concurrent(
        `whatever happens to a file, its target follows exactly (${mode.journalMode}, ${mode.way})`,
        {timeout: Math.max(600_000, cases * 2_200)},
        async ({annotate}) => {
          const seed = Number(process.env['OWSYNC_SEED']) || Math.trunc(Math.random() * 2 ** 31)
          await annotate(`OWSYNC_SEED=${seed}`)
          await holdLaw(leader, mode, cases, seed)
        },
      )
}

/** Holds the law over `cases` histories, and over those that once broke it. */
export async function holdLaw(leader: LeadingHost, mode: Mode, cases: number, seed: number): Promise<void> {
  const cast = fc.asyncProperty(filePlan, history, interruptions, async (plan, intervals, ends) => {
    await using client = await leadingClient(leader, `law-${++clients}`)
    using session = mode.way === 'session' ? client.session() : undefined
    using app = new App(client.file, {...plan, journalMode: mode.journalMode})
    const capture = mode.way === 'digests' ? 'digests' : 'pages'
    const sync: Sync = options => (session?.sync ?? client.sync)({capture, ...options})
    let state: State = {rows: new Map(), relations: new Map(), schema: '', generation: 0n}
    for (const [i, changes] of [[], ...intervals].entries()) {
      app.do(changes)
      // A log that was checkpointed and one that was not, in turns.
      if (i % 2 === 0) app.restart()
      const end = ends[i]
      if (end !== undefined) await isCutShort(sync({accept: true, pool: interrupted(leader.host, end)}))
      state = await follows(client, sync, state)
    }
  })
  await fc.assert(cast, {seed, numRuns: cases, examples})
}

type Sync = LeadingClient['sync']

let clients = 0

/** How the runs before those that are held to the law end, of the first load and of each interval. */
const interruptions = fc.array(
  fc.option(
    fc.record({
      at: fc.constantFrom(1, 1, 2, 3),
      when: fc.constantFrom('before commit' as const, 'after commit' as const),
    }),
    {freq: 2, nil: undefined},
  ),
  {maxLength: 7},
)

/** What has the source open: in WAL mode its log stays until it is closed. */
class App implements Disposable {
  readonly #file: string
  #db

  constructor(file: string, plan: FilePlan) {
    this.#file = file
    this.#db = openForChange(file)
    buildFile(this.#db, plan)
  }

  do(changes: readonly Change[]): void {
    for (const change of changes) applyChange(this.#db, change)
  }

  restart(): void {
    this[Symbol.dispose]()
    this.#db = openForChange(this.#file)
  }

  [Symbol.dispose](): void {
    this.#db.close()
  }
}

type State = Rows & {
  /** The source's schema and settings. */
  readonly schema: string
  readonly generation: bigint
}

/** Syncs, and holds everything that must be true then. @returns both sides as they are now. */
async function follows(client: LeadingClient, sync: Sync, before: State): Promise<State> {
  const rows = snapshot(client.file)
  const {generation, loadPosition} = await client.deployment()
  const result = await sync({accept: true})
  const now = {
    rows,
    relations: await client.relations(),
    schema: schemaOf(client.file),
    generation: result.generation,
  }
  assert.equal(result.status, 'success', result.reason)
  assert.ok(result.consistent)
  assert.equal(result.tables, rows.size)
  assert.equal(result.generation, generation + (result.mode === 'unchanged' ? 0n : 1n))

  // A run that was cut short after its commit has left nothing to report; one that was loading, the rest.
  const isWhole = loadPosition === null && generation === before.generation
  if (isWhole) assertReport(result, before, now)
  // Rows that moved, pages that were written again: not worth a generation.
  if (isWhole && changedRows(before.rows, rows).size === 0 && now.schema === before.schema)
    assert.equal(result.mode, 'unchanged')
  const counts = new Map([...rows].map(([name, table]) => [name, table.rows.size]))
  assert.deepEqual(await client.differences(counts), [])
  assert.deepEqual(compareFiles(client.file, await client.restore()), [])

  const written = await client.written()
  const unchanged = [...counts.values()].reduce((sum, count) => sum + count, 0)
  // Once by looking for changes, and once by the look of a file at rest.
  for (const accept of [true, false]) {
    const again = await sync({accept})
    const seen = {mode: again.mode, generation: again.generation, tables: again.tables, rows: again.rows}
    const nothing = {upserted: 0, tombstoned: 0, unchanged, quarantined: 0}
    assert.deepEqual(seen, {
      mode: 'unchanged',
      generation: result.generation,
      tables: rows.size,
      rows: nothing,
    })
  }
  assert.equal(await client.written(), written, 'a sync that reports nothing has written')
  return now
}

function schemaOf(file: string): string {
  using db = new DatabaseSync(file, {readOnly: true})
  const objects = `select type, name, tbl_name, sql from sqlite_schema where tbl_name not like 'sqlite_stat%' order by rowid`
  const settings = ['page_size', 'user_version', 'application_id', 'encoding', 'journal_mode', 'auto_vacuum']
  return JSON.stringify([
    db.prepare(objects).all(),
    ...settings.map(name => db.prepare(`pragma ${name}`).get()),
  ])
}

/** A run ends by an error that is not its own, unless it has come to its end before that. */
async function isCutShort(run: Promise<SyncResult>): Promise<void> {
  try {
    await run
  } catch (error) {
    if (!(error instanceof InterruptedError)) throw error
  }
}

// ── histories that broke the law once ──

const file = (...tables: readonly TablePlan[]): FilePlan => ({
  encoding: 'UTF-8',
  pageSize: 4_096,
  autoVacuum: 0,
  journalMode: 'delete',
  tables,
})

const table = (
  name: string,
  key: TablePlan['key'],
  columns: Readonly<Record<string, string>>,
): TablePlan => ({
  name,
  key,
  columns: Object.entries(columns).map(([name, type]) => ({
    name,
    type,
    notNull: false,
    generated: undefined,
  })),
  strict: false,
  indexes: [],
  rows: [],
})

const raw = (...bytes: readonly number[]) => ({rawText: Uint8Array.from(bytes)})

const examples: [FilePlan, readonly (readonly Change[])[], (Interruption | undefined)[]][] = [
  // A restored file forgot its encoding when it had no table.
  [
    {...file(table('chat', 'primary', {id: 'TEXT'})), encoding: 'UTF-16le'},
    [[{do: 'drop table', table: 0}]],
    [],
  ],
  // Keys that are no text could not be told apart where no rowid is; an integer beyond 2^53 stood beside them.
  [
    file({
      ...table('chat', 'without rowid', {id: 'TEXT', n: 'BIGINT'}),
      rows: [
        [raw(0x80), 2n ** 53n],
        [raw(0xff), -(2n ** 53n)],
        [raw(0x61, 0xc3), 1n],
      ],
    }),
    [[{do: 'move key', table: 0, row: 0, cell: raw(0xfe)}]],
    [],
  ],
  // Rows of a renamed table were missing for good when the cut that followed it was not committed at once.
  [
    file({...table('chat', 'primary', {id: 'TEXT'}), rows: [['a']]}),
    [[{do: 'rename table', table: 0, name: 'user'}]],
    [undefined, {at: 1, when: 'before commit'}],
  ],
]
