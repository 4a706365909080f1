import assert from 'node:assert/strict'
import {closeSync, copyFileSync, openSync, readSync, writeSync} from 'node:fs'
import {DatabaseSync} from 'node:sqlite'
import {afterAll, beforeAll, test} from 'vitest'
import {hurryTime} from '../../test/law.ts'
import {leadingClient, leadingHost, type LeadingHost} from '../../test/leading-host.ts'

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

/** Both copies of the header of a log's index. */
const HEADERS_BYTES = 96

// The log is written and synced, which may take its time, before the index says so; that change of the index alone
// shows in no time stamp.
for (const capture of ['pages', 'digests'] as const)
  test(`a commit whose log was written long before its index is not passed over (${capture})`, async () => {
    await using client = await leadingClient(leader, `late-${capture}`)
    using app = new DatabaseSync(client.file)
    app.exec(`pragma journal_mode = wal; create table note (id text primary key, body);
      insert into note values ('a', 'first'), ('b', 'second')`)
    // Kept open: closing it would drop the locks that the app has on it.
    const index = openSync(`${client.file}-shm`, 'r+')
    try {
      const header = () => {
        const bytes = Buffer.alloc(HEADERS_BYTES)
        readSync(index, bytes, 0, HEADERS_BYTES, 0)
        return bytes
      }
      await client.sync({capture})
      const before = header()
      app.exec(`update note set body = 'other' where id = 'b'`)
      const after = header()
      writeSync(index, before, 0, HEADERS_BYTES, 0)
      const {status, rows} = await client.sync({capture})
      assert.deepEqual([status, rows.upserted], ['success', 0], 'nobody can see it yet')
      writeSync(index, after, 0, HEADERS_BYTES, 0)
      assert.equal((await client.sync({capture})).rows.upserted, 1)
      assert.equal((await client.sync({capture})).mode, 'unchanged')
    } finally {
      closeSync(index)
    }
  })

// Whoever has the file open keeps its pages while the header says that nobody has changed them.
for (const capture of ['pages', 'digests'] as const)
  test(`a file that was copied over the one that is read, with the same header, is read anew (${capture})`, async () => {
    await using client = await leadingClient(leader, `copied-${capture}`)
    const [monday, tuesday] = [`${client.file}.monday`, `${client.file}.tuesday`]
    {
      using app = new DatabaseSync(client.file)
      app.exec(`create table note (id integer primary key, body text);
        with recursive n(i) as (select 1 union all select i + 1 from n where i < 2000)
        insert into note select i, 'monday' from n;
        vacuum into '${monday}';
        update note set body = 'tuesdy' where id % 10 = 0;
        vacuum into '${tuesday}'`)
    }
    using session = client.session()
    await session.sync({capture})
    copyFileSync(monday, client.file)
    await session.sync({capture})
    copyFileSync(tuesday, client.file)
    assert.equal((await session.sync({capture})).rows.upserted, 200)
    assert.deepEqual((await client.verify()).differences, [])
  })
