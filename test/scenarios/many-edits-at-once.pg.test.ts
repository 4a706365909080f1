import assert from 'node:assert/strict'
import {DatabaseSync} from 'node:sqlite'
import {afterAll, beforeAll, test} from 'vitest'
import {raw} from '../../src/postgres/sql.ts'
import {listConflicts} from '../../src/state/conflicts.ts'
import {editorOf} from '../editor.ts'
import {leadingClient, leadingHost, type LeadingHost} from '../leading-host.ts'

// Somebody updates a whole table in Postgres: every row is decided, in pages, within one sync.

let leader: LeadingHost
beforeAll(async () => {
  leader = await leadingHost('many')
})
afterAll(() => leader[Symbol.asyncDispose]())

const rows = Number(process.env['OWSYNC_ROWS']) || 5_000

for (const strategy of ['source_wins', 'manual'] as const)
  test(`all rows of a table are edited at once (${strategy})`, {timeout: 900_000}, async ({annotate}) => {
    const name = `many-${strategy.replace('_', '-')}`
    const schema = name.replaceAll('-', '_')
    await using client = await leadingClient(leader, name)
    using app = new DatabaseSync(client.file)
    app.exec(`create table note (id text primary key, v text, body text);
      with recursive n (n) as (select 1 union all select n + 1 from n where n < ${rows})
      insert into note select 'k' || n, 'v', hex(randomblob(400)) from n`)
    await client.sync()
    await using editor = await editorOf(leader.admin, name)
    await editor`${raw(`update ${schema}.note set v = 'edited'`)}`
    const before = process.memoryUsage().rss
    const since = performance.now()
    const conflictConfig = {place: 'test', document: {default_strategy: strategy}}
    const result = await client.sync({conflictConfig})
    const grown = Math.round((process.memoryUsage().rss - before) / 1024 / 1024)
    await annotate(`${rows} edits decided in ${Math.round(performance.now() - since)} ms, ${grown} MB`)
    const pending = strategy === 'manual' ? rows : 0
    assert.deepEqual(result.conflicts, {detected: rows, resolved: rows - pending, pending})
    const {differences, accepted} = await client.verify()
    assert.deepEqual([differences, accepted], [[], pending])
    // A long list of what waits is read page by page.
    let seen = 0
    const readSince = performance.now()
    for (let cursor: string | null = ''; cursor !== null;) {
      const page = await listConflicts(
        leader.host,
        {schemaName: schema, status: 'pending'},
        {limit: 1_000, ...(cursor === '' ? {} : {cursor})},
      )
      seen += page.conflicts.length
      cursor = page.next
    }
    await annotate(`${seen} that wait read in ${Math.round(performance.now() - readSince)} ms`)
    assert.equal(seen, pending)
  })
