import assert from 'node:assert/strict'
import {join} from 'node:path'
import {DatabaseSync} from 'node:sqlite'
import {test} from 'vitest'
import {assertMirror} from '../mirror.ts'
import {testSite} from '../site.ts'

test('a value of more than 256 MB is set aside and the rest is synced, until it has shrunk', async () => {
  await using site = await testSite()
  const file = join(site.folder, 'webui.db')
  const write = (sql: string) => {
    using db = new DatabaseSync(file)
    db.exec(sql)
  }
  write(`pragma journal_mode = wal; create table chat (id text primary key, title text);
    insert into chat values ('a', 'fine'), ('huge', zeroblob(270000000)), ('z', 'fine')`)
  const first = await site.sync('acme', {sqlite: file})
  assert.equal(first.code, 2, first.out + first.err)
  assert.match(first.result!.reason!, /table chat: column title holds 270000000 bytes/)
  write("insert into chat values ('later', zeroblob(280000000)), ('more', 'fine')")
  const second = await site.sync('acme')
  assert.deepEqual([second.code, second.result?.rows.quarantined], [2, 2], second.out + second.err)
  write("update chat set title = 'smaller' where length(title) > 1000")
  const third = await site.sync('acme')
  assert.equal(third.code, 0, third.out + third.err)
  await assertMirror(site.db, 'acme', file)
})
