import assert from 'node:assert/strict'
import {mkdtempSync, rmSync} from 'node:fs'
import {tmpdir} from 'node:os'
import {join} from 'node:path'
import {DatabaseSync} from 'node:sqlite'
import {setTimeout as sleep} from 'node:timers/promises'
import {afterAll, beforeAll, test} from 'vitest'
import {beginRead, endRead, fingerprint, openSource} from './open.ts'

const {signal} = new AbortController()

let dir: string
beforeAll(() => {
  dir = mkdtempSync(join(tmpdir(), 'owsync-open-'))
})
afterAll(() => {
  rmSync(dir, {recursive: true, force: true})
})

test(
  'a source in WAL mode is the same after it was opened and read, also by root',
  {timeout: 20_000},
  async () => {
    const file = join(dir, 'app.db')
    using app = new DatabaseSync(file)
    app.exec('pragma journal_mode = wal; create table note (body); insert into note values (1)')
    assert.equal(fingerprint(file), undefined, 'it has just been written')
    await sleep(2_100)
    const settled = fingerprint(file)
    assert.ok(settled !== undefined)
    for (let n = 0; n < 3; n++) {
      {
        using source = await openSource(file, signal)
        assert.equal(source.db.prepare('select count(*) as n from note').get()?.['n'], 1)
        assert.equal(fingerprint(file), settled)
      }
      assert.equal(fingerprint(file), settled)
    }
    app.exec('insert into note values (2)')
    await sleep(2_100)
    assert.notEqual(fingerprint(file), settled)
  },
)

test('a transaction whose first read is refused by a lock is not left open, so that it can be tried again', async () => {
  const file = join(dir, 'refused.db')
  using app = new DatabaseSync(file)
  app.exec('create table note (body)')
  using source = await openSource(file, signal)
  app.exec('begin exclusive')
  for (let tries = 0; tries < 2; tries++)
    assert.throws(() => {
      beginRead(source.db)
    }, /database is locked/)
  assert.equal(source.db.isTransaction, false)
  app.exec('commit')
  beginRead(source.db)
  assert.equal(source.db.isTransaction, true)
  endRead(source.db)
  assert.equal(source.db.isTransaction, false)
})
