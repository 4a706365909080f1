import assert from 'node:assert/strict'
import {readdirSync} from 'node:fs'
import {join} from 'node:path'
import {DatabaseSync} from 'node:sqlite'
import {afterAll, beforeAll, test} from 'vitest'
import {runCli} from '../../test/cli.ts'
import {editorOf, type Editor} from '../../test/editor.ts'
import {syncedHost, type SyncedHost} from '../../test/synced-host.ts'

let m: SyncedHost
let file: string
let editor: Editor
beforeAll(async () => {
  m = await syncedHost()
  file = m.source('acme', db => {
    db.exec(
      `create table note (id text primary key, v text, updated_at integer);
       insert into note values ('a', 'one', 1700000000), ('b', 'two', 1700000000), ('c', 'three', 1700000000)`,
    )
  })
  await m.sync('acme', file)
  editor = await editorOf(m.admin, 'acme')
  await editor`update acme.note set v = 'edited', updated_at = 1700000100 where id = 'a'`
  await editor`insert into acme.note values ('d', 'new', 1700000100)`
  await editor`delete from acme.note where id = 'b'`
})
afterAll(async () => {
  await editor[Symbol.asyncDispose]()
  await m[Symbol.asyncDispose]()
})

const run = async (...args: string[]) => await runCli(args, {env: m.env})
const rows = () => {
  using app = new DatabaseSync(file, {readOnly: true})
  return app
    .prepare('select id, v from note order by id')
    .all()
    .map(({id, v}) => `${String(id)}=${String(v)}`)
    .join(' ')
}

test('two_way is switched on with a report of what would be written, and a yes', async () => {
  assert.match(
    (await run('client', 'direction', 'acme')).out,
    /acme: one_way: nothing is written to its file/,
  )

  const asked = await run('client', 'direction', 'acme', 'two_way')
  assert.equal(asked.code, 64)
  assert.match(asked.err, /syncs of acme write to its SQLite file/)
  // By the rules as they would be: what only Postgres has changed is kept.
  assert.match(asked.err, /would write 3 rows/)
  assert.match(asked.err, /note +1 +1 +1 +d, a, b/)
  assert.match((await run('client', 'direction', 'acme')).out, /one_way/)
  assert.equal(rows(), 'a=one b=two c=three')

  const {code, json} = await run('client', 'direction', 'acme', 'two_way', '--yes', '--json')
  assert.equal(code, 0)
  const told = json() as {direction: string; would_write: object}
  assert.equal(told.direction, 'two_way')
  assert.deepEqual(told.would_write, {
    inserted: 1,
    updated: 1,
    deleted: 1,
    refused: 0,
    left: 0,
    tables: [
      {
        table: 'note',
        inserted: 1,
        updated: 1,
        deleted: 1,
        keys: {delete: ['b'], update: ['a'], insert: ['d']},
      },
    ],
  })
  assert.equal(rows(), 'a=one b=two c=three')
  const audited = await m.admin<{details: object}>`
    select details from sync_metadata.audit_log where action = 'client.direction'`
  assert.deepEqual(audited, [{details: {direction: 'two_way'}}])
})

test('a dry run says what would be written, a sync writes it, and says so', async () => {
  const dry = await run('sync', '--client', 'acme', '--dry-run')
  assert.match(dry.out, /would write 3 rows to the file: 1 inserted, 1 updated, 1 deleted/)
  assert.equal(rows(), 'a=one b=two c=three')
  const {code, out} = await run('sync', '--client', 'acme')
  assert.equal(code, 0, out)
  assert.match(out, /wrote 3 rows to the file: 1 inserted, 1 updated, 1 deleted/)
  assert.equal(rows(), 'a=edited c=three d=new')
  assert.equal(readdirSync(join(m.env['STATE_DIR']!, 'backups')).length, 1)
  const again = await run('sync', '--client', 'acme', '--json')
  assert.equal((again.json() as {mode: string}).mode, 'unchanged')
  const {differences, accepted} = await m.verify('acme')
  assert.deepEqual({differences, accepted}, {differences: [], accepted: 0})
})

test('two_way is switched off at once', async () => {
  const {code, out} = await run('client', 'direction', 'acme', 'one_way')
  assert.deepEqual([code, out.includes('one_way')], [0, true])
  await editor`update acme.note set v = 'later', updated_at = 1700000200 where id = 'a'`
  await run('sync', '--client', 'acme')
  assert.equal(rows(), 'a=edited c=three d=new')
})
