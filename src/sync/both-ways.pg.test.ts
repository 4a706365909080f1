import assert from 'node:assert/strict'
import {DatabaseSync} from 'node:sqlite'
import {afterAll, beforeAll, describe, test} from 'vitest'
import {compareFiles} from '../../test/compare.ts'
import {editorOf, type Editor} from '../../test/editor.ts'
import {leadingClient, leadingHost, type LeadingClient, type LeadingHost} from '../../test/leading-host.ts'
import {raw} from '../postgres/sql.ts'

// Deployments that are two_way: what was decided in Postgres reaches the live file.

let leader: LeadingHost
beforeAll(async () => {
  leader = await leadingHost('both-ways')
})
afterAll(() => leader[Symbol.asyncDispose]())

type Stage = AsyncDisposable & {
  readonly client: LeadingClient
  readonly app: DatabaseSync
  readonly editor: Editor
  /** Runs SQL as the editor; `$` is the schema. */
  edit(sql: string): Promise<void>
  rows(sql: string): unknown[]
  target(sql: string): Promise<object[]>
  direct(direction: 'one_way' | 'two_way'): Promise<void>
  equal(): Promise<void>
}

let stages = 0

async function stage(ddl: string, mode: 'wal' | 'delete' = 'delete'): Promise<Stage> {
  const stack = new AsyncDisposableStack()
  const name = `both-${++stages}`
  const schema = name.replaceAll('-', '_')
  const client = stack.use(await leadingClient(leader, name))
  const app = stack.use(new DatabaseSync(client.file, {timeout: 5_000, enableForeignKeyConstraints: false}))
  app.exec(`pragma journal_mode = ${mode}`)
  app.exec(ddl)
  await client.sync()
  const editor = stack.use(await editorOf(leader.admin, name))
  const direct: Stage['direct'] = async direction => {
    await leader.host`update sync_metadata.client_deployments set direction = ${direction} where client_name = ${name}`
  }
  await direct('two_way')
  return {
    client,
    app,
    editor,
    direct,
    edit: async sql => {
      await editor`${raw(sql.replaceAll('$', schema))}`
    },
    rows: sql =>
      app
        .prepare(sql)
        .all()
        .map(row => ({...row})),
    target: async sql => await leader.admin`${raw(sql.replaceAll('$', schema))}`,
    async equal() {
      assert.deepEqual(compareFiles(client.file, await client.restore()), [])
      const {differences, accepted} = await client.verify()
      assert.deepEqual({differences, accepted}, {differences: [], accepted: 0})
      assert.equal(app.prepare('pragma integrity_check').get()?.['integrity_check'], 'ok')
    },
    [Symbol.asyncDispose]: () => stack.disposeAsync(),
  }
}

const notes = `create table note (id text primary key, v text, updated_at integer);
  insert into note values ('a', 'one', 1700000000), ('b', 'two', 1700000000), ('c', 'three', 1700000000);`

describe.each(['delete', 'wal'] as const)('in journal mode %s', mode => {
  test('what somebody changes, inserts and deletes in Postgres is in the file after one sync', async () => {
    await using s = await stage(notes, mode)
    await s.edit(`update $.note set v = 'edited' where id = 'a'`)
    await s.edit(`delete from $.note where id = 'b'`)
    await s.edit(`insert into $.note values ('d', 'new', 1700000100)`)
    const result = await s.client.sync()
    assert.deepEqual(result.written_to_source, {inserted: 1, updated: 1, deleted: 1, refused: 0, left: 0})
    assert.deepEqual(s.rows('select id, v from note order by id'), [
      {id: 'a', v: 'edited'},
      {id: 'c', v: 'three'},
      {id: 'd', v: 'new'},
    ])
    assert.equal(result.status, 'success')
    await s.equal()
    // It is over: nothing waits, nothing differs, and the next sync does nothing.
    const before = await s.client.written()
    const again = await s.client.sync({marks: true})
    assert.deepEqual([again.mode, again.written_to_source], ['unchanged', undefined])
    assert.equal(await s.client.written(), before)
  })
})
