import assert from 'node:assert/strict'
import {DatabaseSync} from 'node:sqlite'
import {raw} from '../src/postgres/sql.ts'
import {compareFiles} from './compare.ts'
import {editorOf, type Editor} from './editor.ts'
import {leadingClient, type LeadingClient, type LeadingHost} from './leading-host.ts'

/** A client that is two_way, with its app at its file and somebody who may edit its tables. */
export type Stage = AsyncDisposable & {
  readonly client: LeadingClient
  readonly app: DatabaseSync
  readonly editor: Editor
  /** Runs SQL as the editor; `$` is the schema. */
  edit(sql: string): Promise<void>
  /** What a query of the source gives. */
  rows(sql: string): unknown[]
  target(sql: string): Promise<object[]>
  direct(direction: 'one_way' | 'two_way'): Promise<void>
  /** Fails unless both sides are equal and the file is sound. */
  equal(): Promise<void>
}

let stages = 0

/** @param ddl makes the source, which is loaded then. */
export async function bothWays(
  leader: LeadingHost,
  ddl: string,
  mode: 'wal' | 'delete' = 'delete',
): Promise<Stage> {
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

/** Rules by which the target is kept, whatever happens. */
export const keepsTarget = {place: 'test', document: {default_strategy: 'target_wins'}}

export const notes = `create table note (id text primary key, v text, updated_at integer);
  insert into note values ('a', 'one', 1700000000), ('b', 'two', 1700000000), ('c', 'three', 1700000000);`
