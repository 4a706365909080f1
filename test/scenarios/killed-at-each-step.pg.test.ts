import assert from 'node:assert/strict'
import {rmSync} from 'node:fs'
import {join} from 'node:path'
import {DatabaseSync} from 'node:sqlite'
import {afterAll, beforeAll, describe, test} from 'vitest'
import {raw} from '../../src/postgres/sql.ts'
import {editorOf, type Editor} from '../editor.ts'
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

describe.each(['delete', 'wal'] as const)('while it writes to the source, in journal mode %s', journal => {
  const schema = `both_${journal}`
  const client = schema.replaceAll('_', '-')
  let file: string
  let editor: Editor

  beforeAll(async () => {
    file = join(site.folder, `${client}.db`)
    {
      using app = new DatabaseSync(file)
      app.exec(`pragma journal_mode = ${journal}; create table note (id integer primary key, v text, at integer);
        insert into note with recursive n (i) as (select 1 union all select i + 1 from n where i < 400)
        select i, 'source', 1 from n`)
    }
    const loaded = await site.sync(client, {sqlite: file})
    assert.equal(loaded.code, 0, loaded.err)
    await site.host`update sync_metadata.client_deployments
      set direction = 'two_way', config = '{"conflict_resolution": {"default_strategy": "target_wins"}}'
      where client_name = ${client}`
    editor = await editorOf(site.db, client)
  })
  afterAll(() => editor[Symbol.asyncDispose]())

  // Calls of the first run into the sidecar have been counted by then: those of the one that captures what was written.
  for (const [n, at] of [
    'writer.write:1:before',
    'writer.write:1:after',
    'writer.write:3:after',
    'intend:2:before',
    'intend:2:after',
    'settle:2:before',
    'settle:2:after',
  ].entries())
    test(`killed at ${at}: the next run goes on, and both sides are equal`, async () => {
      const first = n * 50
      await editor`${raw(`update ${schema}.note set v = 'edit ${n}' where id between ${first} and ${first + 130}`)}`
      await editor`${raw(`delete from ${schema}.note where id = ${first + 131}`)}`
      await editor`${raw(`insert into ${schema}.note values (${1_000 + n}, 'new', 1)`)}`
      await killedAt(client, at)
      const run = await site.sync(client)
      assert.equal(run.code, 0, `${run.out}${run.err}`)
      await assertMirror(site.db, schema, file)
      using app = new DatabaseSync(file, {readOnly: true})
      const count = (where: string) =>
        app.prepare(`select count(*) as n from note where ${where}`).get()?.['n']
      assert.equal(count(`v = 'edit ${n}'`), (await live(`v = 'edit ${n}'`)).length)
      assert.equal(count(`id = ${first + 131}`), 0)
      assert.equal(count(`id = ${1_000 + n} and v = 'new'`), 1)
      assert.deepEqual({...app.prepare('pragma integrity_check').get()}, {integrity_check: 'ok'})
      assert.deepEqual(await live('_sync_diverged is not null or _sync_edited_by is not null'), [])
    })

  const live = async (where: string) =>
    await site.db`${raw(`select id from ${schema}.note where (${where}) and _sync_deleted_at is null`)}`
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
