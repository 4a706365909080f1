import assert from 'node:assert/strict'
import {writeFile} from 'node:fs/promises'
import {join} from 'node:path'
import {afterAll, beforeAll, describe, test} from 'vitest'
import {runCli} from '../../test/cli.ts'
import {syncedHost, type SyncedHost} from '../../test/synced-host.ts'

let m: SyncedHost

beforeAll(async () => {
  m = await syncedHost()
  const file = m.source('acme', db => {
    db.exec(
      `create table chat (id text primary key, chat json, updated_at datetime);
       create table tag (id text primary key, name text);
       insert into chat values ('a', '{}', 1700000000)`,
    )
  })
  await m.sync('acme', file)
})

afterAll(async () => {
  await m[Symbol.asyncDispose]()
})

type Entry = {table: string | null; strategy: string; place: string; notify: boolean}
type Shown = {client: string | null; strategies: Entry[]; own: unknown; conflict_resolution: unknown}
type Told = {
  strategy: string
  rule: string
  outcomes: {type: string; when: string; keeps: string; why: string}[]
}

const env = (more: Record<string, string> = {}) => ({env: {...m.env, ...more}})

async function strategy<T = Shown>(args: readonly string[], more: Record<string, string> = {}): Promise<T> {
  const {code, out, err, json} = await runCli(['client', 'strategy', ...args, '--json'], env(more))
  assert.equal(code, 0, out + err)
  return json() as T
}

async function errorOf(args: readonly string[], more: Record<string, string> = {}) {
  const {code: exit, json} = await runCli(['client', 'strategy', ...args, '--json'], env(more))
  const {error} = json() as {error: {code: string; message: string}}
  return {...error, exit}
}

const on = ({strategies}: Shown, table: string | null) => {
  const found = strategies.find(entry => entry.table === table)
  return [found?.strategy, found?.place]
}

describe('client strategy', () => {
  test('shows the default rules, and those of CONFLICT_RESOLUTION_CONFIG over them', async () => {
    const standard = await strategy([])
    assert.deepEqual([standard.client, standard.own], [null, null])
    assert.deepEqual(on(standard, 'chat'), ['merge', 'default rules'])
    assert.deepEqual(on(standard, null), ['newest_wins', 'default rules'])

    const file = join(m.folder, 'rules.json')
    await writeFile(file, JSON.stringify({conflict_resolution: {tables: {chat: 'manual'}}}))
    const configured = await strategy(['acme'], {CONFLICT_RESOLUTION_CONFIG: file})
    assert.deepEqual(on(configured, 'chat'), ['manual', file])
    assert.deepEqual(on(configured, 'auth'), ['source_wins', 'default rules'])
  })

  test('names every mistake of the configured rules, and its place', async () => {
    const rules = '{"default": "best", "tables": {"chat": {"merge_rules": {"title": "join"}}}}'
    const {code, message, exit} = await errorOf([], {CONFLICT_RESOLUTION_CONFIG: rules})
    assert.deepEqual([code, exit], ['SYNC_CONFLICT_RULES', 64])
    assert.match(
      message,
      /CONFLICT_RESOLUTION_CONFIG[\s\S]*default: expected[\s\S]*tables\.chat\.merge_rules\.title/,
    )
  })

  test('stands for every command: with mistakes in the configured rules nothing is begun', async () => {
    const {code, err} = await runCli(
      ['client', 'list'],
      env({CONFLICT_RESOLUTION_CONFIG: '{"defualt": "merge"}'}),
    )
    assert.equal(code, 64)
    assert.match(err, /CONFLICT_RESOLUTION_CONFIG.*defualt: is not known/)
  })

  test('explains what would happen in a table, from the columns it has', async () => {
    const chat = await strategy<Told>(['acme', '--explain', 'chat'])
    assert.deepEqual([chat.strategy, chat.rule], ['merge', 'table_strategies.chat'])
    assert.deepEqual(
      chat.outcomes.map(({type, keeps}) => [type, keeps]),
      [
        ['update_update', 'merged'],
        ['update_delete', 'source'],
        ['delete_update', 'target'],
        ['insert_insert', 'merged'],
        ['drift', 'target'],
        ['drift', 'target'],
        ['drift', 'target'],
        ['constraint_violation', 'target, pending'],
        ['type_mismatch', 'target, pending'],
      ],
    )
    const tag = await strategy<Told>(['acme', '--explain', 'tag'])
    assert.equal(tag.outcomes[0]?.why, 'the table has no updated_at, so the source wins')
    const {code, message} = await errorOf(['acme', '--explain', 'chats'])
    assert.deepEqual([code, message], ['SYNC_USAGE', 'acme has no table chats'])
  })

  test('sets one strategy, a whole document, and takes them away; each is in the audit log', async () => {
    const one = await strategy(['acme', '--use', 'target_wins', '--table', 'tag'])
    assert.deepEqual(on(one, 'tag'), ['target_wins', 'config of acme'])
    const standard = await strategy(['acme', '--use', 'manual'])
    assert.deepEqual(standard.own, {table_strategies: {tag: 'target_wins'}, default_strategy: 'manual'})
    assert.deepEqual(on(await strategy(['acme']), null), ['manual', 'config of acme'])
    assert.deepEqual(on(await strategy([]), null), ['newest_wins', 'default rules'])

    const file = join(m.folder, 'own.json')
    const own = {tables: {chat: {strategy: 'merge', merge: {title: 'target_wins'}}}}
    await writeFile(file, JSON.stringify({conflict_resolution: own}))
    assert.deepEqual((await strategy(['acme', '--set', file])).own, own)
    const [row] = await m.host<{config: unknown}>`
      select config from sync_metadata.client_deployments where client_name = 'acme'`
    assert.deepEqual(row?.config, {conflict_resolution: own})

    const reset = await strategy(['acme', '--reset'])
    assert.deepEqual([reset.own, on(reset, 'tag')], [null, ['newest_wins', 'default rules']])
    const audited = await m.host<{n: number}>`
      select count(*)::int as n from sync_metadata.audit_log where client_name = 'acme' and action = 'client.configured'
        and actor like 'cli:%'`
    assert.equal(audited[0]?.n, 4)
  })

  test('refuses rules with mistakes, and changes nothing', async () => {
    const file = join(m.folder, 'wrong.json')
    await writeFile(file, '{"tables": {"chat": {"strategy": "best"}}}')
    const wrong = await errorOf(['acme', '--set', file])
    assert.deepEqual([wrong.code, wrong.exit], ['SYNC_CONFLICT_RULES', 64])
    assert.ok(wrong.message.includes(file) && wrong.message.includes('tables.chat.strategy'), wrong.message)
    await writeFile(file, '{"tables":')
    assert.match((await errorOf(['acme', '--set', file])).message, /wrong\.json is not JSON/)
    assert.match(
      (await errorOf(['acme', '--set', join(m.folder, 'none.json')])).message,
      /cannot be read \(ENOENT\)/,
    )
    assert.equal((await strategy(['acme'])).own, null)
  })

  test('rules of a client that have become wrong are named, and can be taken away', async () => {
    await m.admin`update sync_metadata.client_deployments set config = '{"conflict_resolution": {"default": "old"}}'
      where client_name = 'acme'`
    const {code, message} = await errorOf(['acme'])
    assert.equal(code, 'SYNC_CONFLICT_RULES')
    assert.match(message, /config of acme.*conflict_resolution\.default: expected one of/)
    assert.equal((await strategy(['acme', '--reset'])).own, null)
  })

  for (const [what, args] of [
    ['a client that is not known', ['nobody']],
    ['a change without a client', ['--use', 'manual']],
    ['two changes at once', ['acme', '--use', 'manual', '--reset']],
    ['--table alone', ['acme', '--table', 'chat']],
    ['an unknown strategy', ['acme', '--use', 'best']],
    ['a table that the client has not', ['acme', '--use', 'manual', '--table', 'chats']],
  ] as const) {
    test(`refuses ${what}`, async () => {
      const {code} = await errorOf(args)
      assert.equal(code, what.includes('known') && args.length === 1 ? 'SYNC_UNKNOWN_CLIENT' : 'SYNC_USAGE')
    })
  }
})
