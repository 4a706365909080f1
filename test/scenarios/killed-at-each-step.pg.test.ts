import assert from 'node:assert/strict'
import {rmSync} from 'node:fs'
import {join} from 'node:path'
import {DatabaseSync} from 'node:sqlite'
import {afterAll, beforeAll, describe, test} from 'vitest'
import {assertMirror, type Mirror} from '../mirror.ts'
import {chanceOf, makeFile, mutate, seedOf, type Chance} from '../mutator.ts'
import {testSite, type RunOptions, type Site} from '../site.ts'

// A sync that dies at a step of its bookkeeping: before, or after, a call into the sidecar. Whatever it had done, the
// next run makes the target equal to the source. Between `intend` and `settle` lies Postgres' commit.

let site: Site
let chance: Chance
let clients = 0

beforeAll(async () => {
  const seed = seedOf()
  process.stderr.write(`seed ${seed}\n`)
  chance = chanceOf(seed)
  site = await testSite()
})

afterAll(() => site[Symbol.asyncDispose]())

/** Small chunks, and small pages: a chunk ends between the pages of a table. */
const smallChunks = {CHUNK_BYTES: '60000', LOCK_BUDGET_MS: '1'}

describe('during a first load', () => {
  for (const [at, then] of [
    ['standAt:1:before', {}], // the empty tables are there
    ['standAt:1:before', {isSidecarLost: true}],
    ['append:3:before', {}], // within a chunk
    ['commitChunk:3:before', {}], // Postgres has the chunk, the sidecar does not
    ['commitChunk:3:after', {}],
    ['commitChunk:3:after', {isSidecarLost: true}],
    ['commitChunk:3:after', {isSidecarLost: true, flags: ['--full']}],
    ['commitChunk:5:after', {isSidecarLost: true}],
    ['intend:1:after', {}],
    ['settle:1:before', {}],
    ['settle:1:after', {isSidecarLost: true}],
  ] as const) {
    const {isSidecarLost, flags}: Next = then
    const after = `${isSidecarLost ? ', and the sidecar is lost' : ''}${flags ? `, then ${flags.join(' ')}` : ''}`
    test(`killed at ${at}${after}: nothing is lost or doubled`, async () => {
      const {client, file} = newClient()
      await killedAt(client, at, {sqlite: file, env: smallChunks})
      mutate(file, chance)
      deleteFirstRows(file)
      if (isSidecarLost) loseSidecars()
      await succeeds(client, file, {flags: flags ?? [], env: smallChunks, preload: 'crash-points.ts'})
    })
  }
})

type Next = {readonly isSidecarLost?: true; readonly flags?: readonly string[]}

describe('once it is loaded', () => {
  let client: string
  let file: string
  let before: Mirror

  beforeAll(async () => {
    ;({client, file} = newClient())
    before = await succeeds(client, file, {sqlite: file})
  })

  for (const at of [
    'begin:1:after',
    'intend:1:before',
    'intend:1:after',
    'settle:1:before',
    'settle:1:after',
    'note:1:before',
    'note:2:before',
  ]) {
    test(`killed at ${at}: the next run heals it`, async () => {
      mutate(file, chance)
      await killedAt(client, at)
      mutate(file, chance)
      before = await succeeds(client, file, {}, before)
    })
  }

  for (const at of ['recall:1:before', 'recall:4:after', 'standAt:1:before', 'standAt:1:after']) {
    test(`killed at ${at}, while a lost sidecar is rebuilt: the next run rebuilds it`, async () => {
      mutate(file, chance)
      loseSidecars()
      await killedAt(client, at)
      before = await succeeds(client, file, {}, before)
    })
  }
})

function newClient(): {client: string; file: string} {
  const client = `client-${++clients}`
  const file = join(site.folder, `${client}.db`)
  makeFile(file, chance, {journal: clients % 2 === 0 ? 'wal' : 'delete', rows: 60})
  return {client, file}
}

async function killedAt(client: string, at: string, options: RunOptions = {}): Promise<void> {
  const env = {...options.env, CRASH_AT: at}
  const run = await site.sync(client, {...options, env, preload: 'crash-points.ts'})
  assert.equal(run.code, null, `it was not killed: ${run.out}${run.err}`)
}

async function succeeds(client: string, file: string, options: RunOptions, before?: Mirror): Promise<Mirror> {
  const run = await site.sync(client, options)
  assert.equal(run.code, 0, `${run.out}${run.err}`)
  const schema = client.replaceAll('-', '_')
  assert.deepEqual(await unfinishedTables(schema), [])
  return assertMirror(site.db, schema, file, before)
}

/** Client tables without a primary key, the index that is the queue of edits, or their view. */
async function unfinishedTables(schema: string): Promise<string[]> {
  const rows = await site.db<{table: string}>`
    select c.relname as table from pg_class c
    where c.relnamespace = ${schema}::regnamespace and c.relkind = 'r' and (
      not exists (select from pg_index i where i.indrelid = c.oid and i.indisprimary)
      or not exists (select from pg_index i where i.indrelid = c.oid and i.indpred is not null)
      or not exists (select from pg_views v where v.schemaname = ${schema} and v.viewname = 'live_' || c.relname))`
  return rows.map(({table}) => table)
}

/** Rows that the first chunk has brought to the target already. */
function deleteFirstRows(file: string): void {
  using db = new DatabaseSync(file, {timeout: 5_000})
  db.exec('delete from chat where rowid <= 4')
}

function loseSidecars(): void {
  rmSync(join(site.stateDir, 'sidecars'), {recursive: true, force: true})
}
