import assert from 'node:assert/strict'
import {DatabaseSync} from 'node:sqlite'
import {afterAll, beforeAll, describe, test} from 'vitest'
import {editorOf} from '../../test/editor.ts'
import {codeOf} from '../../test/host.ts'
import {leadingClient, leadingHost, type LeadingHost} from '../../test/leading-host.ts'
import {raw} from '../postgres/sql.ts'
import {listConflicts} from '../state/conflicts.ts'
import {resolveConflict, undoConflict, viewConflict, type Choice} from './resolve.ts'

let leader: LeadingHost
beforeAll(async () => {
  leader = await leadingHost('resolving')
})
afterAll(() => leader[Symbol.asyncDispose]())

let clients = 0
const rules = (strategy: string, more: object = {}) => ({
  place: 'test',
  document: {default_strategy: strategy, ...more},
})

/** A synced client with one table, an editor of it, and a rule for its conflicts. */
async function scene(strategy: string, more: object = {}) {
  const stack = new AsyncDisposableStack()
  const name = `scene-${++clients}`
  const schema = name.replaceAll('-', '_')
  const client = stack.use(await leadingClient(leader, name))
  const app = stack.use(new DatabaseSync(client.file))
  app.exec(`create table note (id text primary key, title text, n, meta json, updated_at integer);
    insert into note values ('a', 'A', 1, '{"x":  1}', 10), ('b', 'B', x'00ff', null, 20), ('c', 'C', 1.5, '[]', 30)`)
  await client.sync()
  const editor = stack.use(await editorOf(leader.admin, name))
  const sync = (options = {}) => client.sync({conflictConfig: rules(strategy, more), ...options})
  const run = (sql: string) => editor`${raw(sql.replaceAll('$', `${schema}.`))}`
  const rows = async (what = 'title', where = '_sync_deleted_at is null') =>
    (await leader.admin`${raw(`select id, ${what} from ${schema}.note where ${where} order by id`)}`).map(
      row => Object.values(row).map(String).join(' '),
    )
  const open = async (status: 'pending' | 'resolved' | 'superseded' | 'undone' = 'pending') =>
    (await listConflicts(leader.host, {schemaName: schema, status}, {limit: 100})).conflicts
  const only = async (status: 'pending' | 'resolved' = 'pending') => {
    const found = await open(status)
    assert.equal(found.length, 1)
    return found[0]!.conflict_id
  }
  return {client, app, sync, run, rows, open, only, schema, [Symbol.asyncDispose]: () => stack.disposeAsync()}
}

const resolve = (id: string, choice: Choice) => resolveConflict(leader.host, id, choice, 'tester')

describe('what waits for a person', () => {
  test('keeps the target, follows the source in one entry, and holds nothing else up', async () => {
    await using s = await scene('manual')
    await s.run(`update $note set title = 'edited' where id = 'a'`)
    s.app.exec(`update note set title = 'second' where id = 'a'; update note set title = 'B2' where id = 'b'`)
    const first = await s.sync()
    assert.deepEqual(first.conflicts, {detected: 1, resolved: 0, pending: 1})
    assert.deepEqual(await s.rows(), ['a edited', 'b B2', 'c C'])
    const id = await s.only()
    s.app.exec(
      `update note set title = 'third' where id = 'a'; insert into note (id, title) values ('d', 'D')`,
    )
    assert.deepEqual((await s.sync()).conflicts, {detected: 1, resolved: 0, pending: 1})
    assert.equal(await s.only(), id)
    assert.deepEqual(await s.rows(), ['a edited', 'b B2', 'c C', 'd D'])
    const view = (await viewConflict(leader.host, id))!
    assert.deepEqual(view.fields, [
      {column: 'title', source: 'third', target: 'edited', resolved: null, differs: true},
    ])
    // Edited again: still one question.
    await s.run(`update $note set title = 'edited twice' where id = 'a'`)
    await s.sync()
    assert.equal(await s.only(), id)
    assert.equal((await viewConflict(leader.host, id))!.fields[0]!.target, 'edited twice')
    assert.equal((await s.sync()).mode, 'unchanged')
  })

  test('is over when both sides are equal again', async () => {
    await using s = await scene('manual')
    await s.run(`update $note set title = 'same' where id = 'a'`)
    await s.sync()
    s.app.exec(`update note set title = 'same' where id = 'a'`)
    assert.deepEqual((await s.sync()).conflicts, {detected: 0, resolved: 0, pending: 0})
    assert.deepEqual(await s.open(), [])
    assert.equal((await s.open('superseded')).length, 1)
    const verified = await s.client.verify()
    assert.deepEqual([verified.differences, verified.accepted], [[], 0])
  })

  test('is the source’s when that is chosen', async () => {
    await using s = await scene('manual')
    await s.run(`update $note set title = 'edited', n = 7, meta = '{}' where id = 'b'`)
    s.app.exec(`update note set updated_at = 99 where id = 'b'`)
    await s.sync()
    await resolve(await s.only(), {choice: 'source'})
    assert.deepEqual(await s.open(), [])
    const verified = await s.client.verify()
    assert.deepEqual([verified.differences, verified.accepted], [[], 0])
    assert.equal((await s.sync({marks: true})).mode, 'unchanged')
  })

  test('is accepted when the target is chosen, until a side changes', async () => {
    await using s = await scene('manual')
    await s.run(`update $note set title = 'edited' where id = 'a'`)
    await s.sync()
    const id = await s.only()
    await resolve(id, {choice: 'target'})
    assert.equal((await s.client.verify()).accepted, 1)
    assert.deepEqual((await s.sync({marks: true, full: true})).conflicts, {
      detected: 0,
      resolved: 0,
      pending: 0,
    })
    s.app.exec(`update note set title = 'changed' where id = 'a'`)
    assert.deepEqual((await s.sync()).conflicts, {detected: 1, resolved: 0, pending: 1})
    assert.notEqual(await s.only(), id)
    assert.deepEqual(await s.rows(), ['a edited', 'b B', 'c C'])
  })

  test('is what a person writes', async () => {
    await using s = await scene('manual')
    await s.run(`update $note set title = 'edited', meta = '{"t": 1}' where id = 'a'`)
    s.app.exec(`update note set title = 'changed' where id = 'a'`)
    await s.sync()
    await resolve(await s.only(), {
      choice: 'row',
      row: {title: 'both', n: 9_007_199_254_740_991, meta: {deep: [1, true, null]}, updated_at: null},
    })
    assert.deepEqual(await s.rows('title, n, meta::text, updated_at'), [
      'a both 9007199254740991 {"deep":[1,true,null]} null',
      'b B null null 20',
      'c C 1.5 [] 30',
    ])
    assert.equal((await s.client.verify()).accepted, 1)
  })

  test('may be a row that only one side has', async () => {
    await using s = await scene('manual')
    await s.run(`delete from $note where id = 'a'`)
    await s.run(`insert into $note (id, title) values ('x', 'X'), ('y', 'Y')`)
    s.app.exec(`delete from note where id = 'b'`)
    await s.run(`update $note set title = 'edited' where id = 'b'`)
    assert.deepEqual((await s.sync({accept: true})).conflicts, {detected: 4, resolved: 0, pending: 4})
    const found = new Map((await s.open()).map(({record_key, conflict_id}) => [record_key, conflict_id]))
    for (const [key, choice] of [
      ['a', 'source'],
      ['b', 'source'],
      ['x', 'source'],
      ['y', 'target'],
    ] as const)
      await resolve(found.get(key)!, {choice})
    assert.deepEqual(await s.rows(), ['a A', 'c C', 'y Y'])
    const verified = await s.client.verify()
    assert.deepEqual([verified.differences, verified.accepted], [[], 1])
    for (const options of [{marks: true}, {full: true}])
      assert.equal((await s.sync({...options, accept: true})).mode, 'unchanged')
  })

  test('is refused when it is over, when the row has moved, and when the row is none', async () => {
    await using s = await scene('manual')
    await s.run(`update $note set title = 'edited' where id = 'a'`)
    await s.sync()
    const id = await s.only()
    for (const row of [{nothing: 1}, {id: 'other'}, {title: 'a\0b'}, {title: {exact: 'nonsense'}}])
      assert.equal(await codeOf(resolve(id, {choice: 'row', row})), 'SYNC_USAGE', JSON.stringify(row))
    await s.run(`update $note set title = 'edited again' where id = 'a'`)
    assert.equal(await codeOf(resolve(id, {choice: 'source'})), 'SYNC_CONFLICT_MOVED')
    await s.sync()
    await resolve(id, {choice: 'source'})
    assert.equal(await codeOf(resolve(id, {choice: 'target'})), 'SYNC_CONFLICT_CLOSED')
    const unknown = '00000000-0000-4000-8000-000000000000'
    assert.equal(await codeOf(resolve(unknown, {choice: 'source'})), 'SYNC_UNKNOWN_CONFLICT')
  })
})

describe('a decision that is taken back', () => {
  for (const include_data_snapshot of [false, true])
    test(`gives the target what it had${include_data_snapshot ? ', from whole rows' : ''}`, async () => {
      await using s = await scene('source_wins', {resolution_log: {include_data_snapshot}})
      await s.run(`update $note set title = 'edited', n = 5 where id = 'a'`)
      await s.run(`delete from $note where id = 'b'`)
      await s.run(`insert into $note (id, title) values ('x', 'X')`)
      await s.sync()
      assert.deepEqual(await s.rows(), ['a A', 'b B', 'c C'])
      for (const {conflict_id} of await s.open('resolved'))
        await undoConflict(leader.host, conflict_id, 'tester')
      assert.deepEqual(await s.rows('title, n'), ['a edited 5', 'c C 1.5', 'x X null'])
      // It stays so: the rule does not decide it again until a side changes.
      for (const options of [{marks: true}, {full: true}])
        assert.equal((await s.sync(options)).mode, 'unchanged')
      assert.deepEqual(await s.rows('title, n'), ['a edited 5', 'c C 1.5', 'x X null'])
      const verified = await s.client.verify()
      assert.deepEqual([verified.differences, verified.accepted], [[], 3])
      s.app.exec(`update note set title = 'changed' where id = 'a'`)
      await s.sync()
      assert.deepEqual(await s.rows(), ['a changed', 'c C', 'x X'])
    })

  test('gives the source’s values where the target’s had been kept', async () => {
    await using s = await scene('target_wins')
    await s.run(`update $note set title = 'edited' where id = 'a'`)
    await s.run(`delete from $note where id = 'b'`)
    await s.run(`insert into $note (id, title) values ('x', 'X')`)
    s.app.exec(`update note set n = 4 where id in ('a', 'b')`)
    await s.sync()
    assert.deepEqual(await s.rows(), ['a edited', 'c C', 'x X'])
    for (const {conflict_id} of await s.open('resolved'))
      await undoConflict(leader.host, conflict_id, 'tester')
    assert.deepEqual(await s.rows(), ['a A', 'b B', 'c C'])
    const verified = await s.client.verify()
    assert.deepEqual([verified.differences, verified.accepted], [[], 0])
    assert.equal((await s.sync({marks: true, full: true})).mode, 'unchanged')
  })

  test('is refused once the row has changed, or when it waits', async () => {
    await using s = await scene('source_wins')
    await s.run(`update $note set title = 'edited' where id = 'a'`)
    await s.sync()
    const id = await s.only('resolved')
    s.app.exec(`update note set title = 'changed' where id = 'a'`)
    await s.sync()
    assert.equal(await codeOf(undoConflict(leader.host, id, 'tester')), 'SYNC_CONFLICT_MOVED')
    await s.run(`update $note set title = 'edited' where id = 'b'`)
    await s.sync({conflictConfig: rules('manual')})
    assert.equal(await codeOf(undoConflict(leader.host, await s.only(), 'tester')), 'SYNC_CONFLICT_CLOSED')
  })

  test('leaves its traces: who, and in the audit log', async () => {
    await using s = await scene('source_wins')
    await s.run(`update $note set title = 'edited' where id = 'a'`)
    await s.sync()
    const id = await s.only('resolved')
    await undoConflict(leader.host, id, 'tester')
    const [entry] = await s.open('undone')
    assert.equal(entry!.resolved_by, 'tester')
    const audit = await leader.admin`
      select actor, action, details ->> 'outcome' as outcome from sync_metadata.audit_log
      where details ->> 'conflict_id' = ${id}`
    assert.deepEqual(audit, [{actor: 'tester', action: 'conflict.undone', outcome: 'target'}])
  })
})
