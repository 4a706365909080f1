import assert from 'node:assert/strict'
import {mkdtempSync, rmSync, statSync} from 'node:fs'
import {tmpdir} from 'node:os'
import {join} from 'node:path'
import {DatabaseSync} from 'node:sqlite'
import {afterAll, beforeAll, test} from 'vitest'
import {Pace} from './capture.ts'
import {endRead, openSource, type Source} from './open.ts'
import {PageFinder} from './page-finder.ts'
import type {PageState} from './page-state.ts'

let dir: string
beforeAll(() => {
  dir = mkdtempSync(join(tmpdir(), 'owsync-finder-'))
})
afterAll(() => {
  rmSync(dir, {recursive: true, force: true})
})

const signal = new AbortController().signal

/** @returns what a table is suspected of, and what is known then. */
async function find(source: Source, known?: PageState) {
  const finder = new PageFinder(source, known)
  const suspects = (await finder.find(new Pace(source, undefined, signal), true, signal))('note')
  endRead(source.db)
  return {suspects, state: finder.learned({consistent: true, comparedTables: true})}
}

test('a log that begins anew while it is read is read once more, and not all rows for it', async () => {
  const file = join(dir, 'anew.db')
  using app = new DatabaseSync(file)
  app.exec(`pragma journal_mode = wal; create table note (body)`)
  for (let i = 0; i < 2_000; i++) app.prepare('insert into note values (?)').run('-'.repeat(100))
  using source = await openSource(file, signal)
  const {state} = await find(source)
  app.exec('pragma wal_checkpoint(passive)')
  let begunAnew = 0
  const {suspects} = await find(
    {
      ...source,
      readWal: (buffer, position) => {
        // All of the log is in the file, so that readers keep nobody from writing over it.
        if (begunAnew++ === 0) app.exec('update note set body = 1 where rowid = 7')
        return source.readWal(buffer, position)
      },
    },
    state,
  )
  assert.ok(begunAnew > 0)
  assert.equal(suspects?.length, 1)
})

test('a long log lets others have their turn while it is read', async () => {
  const file = join(dir, 'long.db')
  using app = new DatabaseSync(file)
  app.exec(`pragma journal_mode = wal; pragma synchronous = off; pragma wal_autocheckpoint = 0;
    create table note (id integer primary key, body)`)
  app.exec(`with recursive n(i) as (select 1 union all select i + 1 from n where i < 40000)
    insert into note select i, printf('%.*c', 350, 'x') from n`)
  using source = await openSource(file, signal)
  let turns = 0
  let next = setImmediate(function turn() {
    turns++
    next = setImmediate(turn)
  })
  try {
    const {state} = await find(source)
    app.exec("update note set body = 'y' || substr(body, 2) where id % 9 = 0")
    turns = 0
    await find(source, state)
  } finally {
    clearImmediate(next)
  }
  // Read once in pieces of a megabyte to know its pages, and once more to hash them.
  const megabytes = statSync(`${file}-wal`).size / 2 ** 20 / 2
  assert.ok(turns > 1.2 * megabytes, `${turns} turns in ${megabytes} MB`)
})
