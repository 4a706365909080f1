import assert from 'node:assert/strict'
import {afterAll, beforeAll, describe, test} from 'vitest'
import {runCli} from '../../test/cli.ts'
import {editorOf, type Editor} from '../../test/editor.ts'
import {syncedHost, type SyncedHost} from '../../test/synced-host.ts'

let m: SyncedHost
let editor: Editor
beforeAll(async () => {
  m = await syncedHost()
  const source = m.source('acme', db => {
    db.exec(`create table config (id text primary key, data text, updated_at integer);
      insert into config values ('a', 'one', 1), ('b', 'two', 2), ('c', 'three', 3)`)
  })
  await m.sync('acme', source)
  editor = await editorOf(m.admin, 'acme')
})
afterAll(async () => {
  await editor[Symbol.asyncDispose]()
  await m[Symbol.asyncDispose]()
})

const owsync = (...args: readonly string[]) => runCli(args, {env: m.env})

type Listed = {conflicts: {conflict_id: string; record_key: string}[]; count: number; next: string | null}

describe('edits of a table that is reviewed', () => {
  test('wait, and a sync that was asked for meets them though the file is as it was', async () => {
    await editor`update acme.config set data = 'edited' where id = 'a'`
    await editor`delete from acme.config where id = 'b'`
    const dry = await owsync('sync', '--client', 'acme', '--dry-run')
    assert.equal(dry.code, 2, dry.err)
    assert.match(dry.out, /^Conflicts that would be decided:$/m)
    assert.match(dry.out, /^ *2 +config +drift +manual +a person decides$/m)
    const planned = (await owsync('sync', '--client', 'acme', '--dry-run', '--json')).json() as object
    assert.deepEqual((planned as {decisions: unknown}).decisions, [
      {table: 'config', type: 'drift', strategy: 'manual', status: 'pending', outcome: 'target', count: 2},
    ])
    const {code, out} = await owsync('sync', '--client', 'acme')
    assert.equal(code, 2, out)
    assert.match(out, /2 conflicts to be decided by a person: owsync client conflicts acme$/m)
    const again = await owsync('sync', '--client', 'acme', '--json')
    assert.equal(again.code, 2)
    const {mode, conflicts} = again.json() as {mode: string; conflicts: unknown}
    assert.deepEqual(
      {mode, conflicts},
      {mode: 'unchanged', conflicts: {detected: 0, resolved: 0, pending: 2}},
    )
  })

  test('are listed page by page, and shown field by field', async () => {
    const page = (await owsync('client', 'conflicts', 'acme', '--limit', '1', '--json')).json() as Listed
    assert.equal(page.count, 1)
    const rest = (
      await owsync('client', 'conflicts', 'acme', '--cursor', page.next!, '--json')
    ).json() as Listed
    assert.deepEqual([rest.count, rest.next], [1, null])
    const {conflicts} = (await owsync('client', 'conflicts', '--json')).json() as Listed
    const edited = conflicts.find(({record_key}) => record_key === 'a')!
    const shown = (await owsync('client', 'conflicts', '--id', edited.conflict_id, '--json')).json() as object
    assert.deepEqual((shown as {fields: unknown}).fields, [
      {column: 'data', source: 'one', target: 'edited', resolved: null, differs: true},
    ])
    const {out} = await owsync('client', 'conflicts', '--id', edited.conflict_id)
    assert.match(out, /^data +one +edited$/m)
    assert.match(
      (await owsync('client', 'conflicts', 'acme')).out,
      /^.{36} +acme +config +a +drift +pending +manual$/m,
    )
  })

  test('are decided, and decisions taken back', async () => {
    const {conflicts} = (await owsync('client', 'conflicts', 'acme', '--json')).json() as Listed
    const id = (key: string) => conflicts.find(({record_key}) => record_key === key)!.conflict_id
    const data = async () =>
      (await m.admin<{data: string}>`select data from acme.live_config order by id`).map(row => row.data)
    assert.equal((await owsync('client', 'resolve', id('b'), '--choice', 'source')).code, 0)
    const written = await owsync('client', 'resolve', id('a'), '--choice', 'row', '--row', '{"data": "both"}')
    assert.equal(written.code, 0, written.err)
    assert.deepEqual(await data(), ['both', 'two', 'three'])
    assert.equal((await owsync('sync', '--client', 'acme')).code, 0)
    assert.equal((await owsync('client', 'undo', id('a'))).code, 0)
    assert.deepEqual(await data(), ['edited', 'two', 'three'])
    assert.match((await owsync('client', 'conflicts', 'acme')).out, /No conflict waits/)
  })

  test('and what makes no sense is refused', async () => {
    for (const [args, code] of [
      [['client', 'resolve', 'x', '--choice', 'source'], 1],
      [['client', 'resolve', 'x', '--choice', 'row'], 64],
      [['client', 'resolve', 'x', '--choice', 'row', '--row', '[1]'], 64],
      [['client', 'resolve', 'x', '--choice', 'source', '--row', '{}'], 64],
      [['client', 'undo', '00000000-0000-4000-8000-000000000000'], 1],
    ] as const)
      assert.equal((await owsync(...args)).code, code, args.join(' '))
  })
})
