import assert from 'node:assert/strict'
import {join} from 'node:path'
import {DatabaseSync} from 'node:sqlite'
import {test} from 'vitest'
import {assertMirror} from '../mirror.ts'
import {testSite} from '../site.ts'

test('rows of 10 MB are loaded, and changed ones applied, within 200 MB', async () => {
  await using site = await testSite()
  const file = join(site.folder, 'webui.db')
  const write = (work: (db: DatabaseSync) => void) => {
    using db = new DatabaseSync(file)
    work(db)
  }
  write(db => {
    db.exec('create table chat (id text primary key, chat json)')
    const insert = db.prepare('insert into chat values (?, ?)')
    // Two bytes a character in JavaScript, and the text of a row is more than once in memory.
    const text = 'grün €, '.repeat(1_000_000)
    for (let i = 0; i < 12; i++) insert.run(`chat ${i}`, JSON.stringify({text, i}))
  })
  const loaded = await site.sync('acme', {sqlite: file, env: launched})
  assert.equal(loaded.code, 0, loaded.out + loaded.err)
  write(db => {
    db.exec(`update chat set chat = json_set(chat, '$.i', 'other')`)
  })
  const changed = await site.sync('acme', {env: launched})
  assert.equal(changed.result?.rows.upserted, 12, changed.out + changed.err)
  await assertMirror(site.db, 'acme', file)
  for (const {peakMb} of [loaded, changed]) assert.ok(peakMb > 50 && peakMb <= 200, `${peakMb} MB`)
})

/** What the launcher gives a process. */
const launched = {
  NODE_OPTIONS: '--max-semi-space-size=8',
  MALLOC_ARENA_MAX: '2',
  MALLOC_MMAP_THRESHOLD_: '65536',
  MALLOC_TRIM_THRESHOLD_: '131072',
}
