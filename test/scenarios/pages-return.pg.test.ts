import assert from 'node:assert/strict'
import {copyFileSync, existsSync} from 'node:fs'
import {join} from 'node:path'
import {DatabaseSync} from 'node:sqlite'
import {afterAll, beforeAll, test} from 'vitest'
import {assertMirror} from '../mirror.ts'
import {chanceOf, makeFile} from '../mutator.ts'
import {testSite, type RunOptions, type Site} from '../site.ts'

// A page may come back to exactly what it was. What is remembered of pages therefore belongs to one state of the
// remembered rows: when the rows have gone on without it, "this page has not changed" would hide a change.

let site: Site
let clients = 0

beforeAll(async () => {
  site = await testSite()
})

afterAll(() => site[Symbol.asyncDispose]())

const byPages = {preload: 'crash-points.ts', env: {PAGED_BYTES: '0'}} satisfies RunOptions

for (const [what, journal, between] of [
  ['that was killed before it could remember them', 'delete', {env: {CRASH_AT: 'settle:1:after'}}],
  ['that was killed before it settled', 'wal', {env: {CRASH_AT: 'settle:1:before'}}],
  ['that compared all rows', 'delete', {flags: ['--full']}],
] satisfies [string, 'delete' | 'wal', RunOptions][]) {
  test(`a page that is again as it was before a sync ${what} is seen as changed`, async () => {
    const {client, file} = newClient(journal)
    set(file, 500)
    await succeeds(client, {sqlite: file})
    set(file, 501)
    await succeeds(client, byPages) // makes the pages known
    set(file, 502)
    await site.sync(client, {...byPages, ...between, env: {...byPages.env, ...between.env}})
    set(file, 501)
    await succeeds(client, byPages)
    await assertMirror(site.db, client, file)
  })
}

test('the pages of a file that took the place of the one being read are not taken for its own', async () => {
  const {client, file} = newClient('delete')
  await succeeds(client, {sqlite: file})
  set(file, 501)
  await succeeds(client, byPages)
  const other = `${file}.other`
  copyFileSync(file, other)
  set(other, 777)
  set(file, 502)
  // After SQLite has opened the file, before the first page is read.
  const run = await site.sync(client, {...byPages, env: {...byPages.env, RENAME: `${other}:${file}`}})
  assert.ok(!existsSync(other), 'the file was not replaced')
  assert.equal(run.error?.code, 'SYNC_SOURCE_BUSY', run.out + run.err)
  assert.equal(run.code, 75)
  await succeeds(client, byPages)
  await assertMirror(site.db, client, file)
})

function newClient(journal: 'delete' | 'wal'): {client: string; file: string} {
  const client = `client${++clients}`
  const file = join(site.folder, `${client}.db`)
  makeFile(file, chanceOf(clients), {journal, rows: 30})
  return {client, file}
}

/** Overwrites a value in place by one of the same length: its page changes and nothing else. */
function set(file: string, value: number): void {
  using db = new DatabaseSync(file)
  db.exec(`update measure set i = ${value} where id = 5`)
}

async function succeeds(client: string, options: RunOptions): Promise<void> {
  const run = await site.sync(client, options)
  assert.equal(run.code, 0, run.out + run.err)
}
