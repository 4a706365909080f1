import assert from 'node:assert/strict'
import {execFileSync} from 'node:child_process'
import {existsSync, mkdtempSync, readdirSync, rmSync} from 'node:fs'
import {tmpdir} from 'node:os'
import {join} from 'node:path'
import {DatabaseSync} from 'node:sqlite'
import {fileURLToPath} from 'node:url'
import fc from 'fast-check'
import {afterAll, beforeAll, describe, test} from 'vitest'
import type {Value} from '../src/core/value.ts'
import {composeChat} from '../src/sample/chat.ts'
import {random} from '../src/sample/random.ts'
import {asciiJson, phrasebook} from '../src/sample/text.ts'
import {rulingOn, type Conflict} from '../src/conflict/conflict.ts'
import {parseJson, textOf, type JsonNode} from '../src/conflict/json-text.ts'
import {defaultRules} from '../src/conflict/rules.ts'

// Chats as Open WebUI writes them, edited on both sides as its people and an editor of the mirror would, merged by the
// default rules, and compared with a model that merges plain objects.

type Message = {
  id: string
  parentId: string | null
  childrenIds: string[]
  content: string
  [more: string]: unknown
}
type ChatDocument = {
  title: string
  history: {messages: Record<string, Message>; currentId: string | null}
  messages: Message[]
  [more: string]: unknown
}
type ChatRow = {id: string; title: string; chat: string; meta: string; updated_at: bigint}

/** One thing that somebody does to a chat. Messages are named by number, modulo how many there are. */
type Edit =
  | {readonly do: 'ask'}
  | {readonly do: 'regenerate'; readonly message: number}
  | {readonly do: 'rewrite'; readonly message: number; readonly text: string}
  | {readonly do: 'rename'; readonly text: string}
  | {readonly do: 'tag'; readonly text: string}
  | {readonly do: 'attach'; readonly text: string}
  | {readonly do: 'go to'; readonly message: number}
  | {readonly do: 'respell'}

const text = fc.string({unit: 'grapheme', maxLength: 12})
const edit: fc.Arbitrary<Edit> = fc.oneof(
  {weight: 4, arbitrary: fc.record({do: fc.constant('ask' as const)})},
  {weight: 2, arbitrary: fc.record({do: fc.constant('regenerate' as const), message: fc.nat()})},
  fc.record({do: fc.constant('rewrite' as const), message: fc.nat(), text}),
  fc.record({do: fc.constant('rename' as const), text}),
  fc.record({do: fc.constant('tag' as const), text: fc.constantFrom('work', 'home', 'später')}),
  fc.record({do: fc.constant('attach' as const), text}),
  fc.record({do: fc.constant('go to' as const), message: fc.nat()}),
  fc.record({do: fc.constant('respell' as const)}),
)
const edits = fc.array(edit, {maxLength: 5})

describe('chats of our own making', () => {
  const chance = random(11)
  const chats = [1_500, 6_000, 30_000].map(bytes => {
    const {id, title, json} = composeChat(chance, phrasebook(chance), {user: 'u', at: 1_700_000_000, bytes})
    return {id, title, chat: json, meta: '{}', updated_at: 1_700_000_000n}
  })
  test('merge as the model says, and lose nothing', {timeout: 300_000}, () => {
    holds(chats, 100)
  })
})

const archive =
  process.env['OWSYNC_UPGRADED_FILES'] ??
  fileURLToPath(new URL('../../shared/openwebui/upgraded-files.tar.xz', import.meta.url))

// Real files, which are no part of this repository.
describe.skipIf(!existsSync(archive))('chats of a real Open WebUI', () => {
  let folder: string
  beforeAll(() => {
    folder = mkdtempSync(join(tmpdir(), 'owsync-chats-'))
    execFileSync('tar', ['-xJf', archive, '-C', folder])
  })
  afterAll(() => {
    rmSync(folder, {recursive: true, force: true})
  })
  test('merge as the model says, and lose nothing', {timeout: 300_000}, () => {
    const chats = readdirSync(join(folder, 'chain-b')).flatMap(name =>
      realChats(join(folder, 'chain-b', name)),
    )
    assert.ok(chats.length > 500)
    holds(chats, 100)
  })
})

test('two people who answer at once both keep their branch, and the newer one is shown', () => {
  const chance = random(3)
  const {id, title, json} = composeChat(chance, phrasebook(chance), {
    user: 'u',
    at: 1_700_000_000,
    bytes: 1_500,
  })
  const row = {id, title, chat: json, meta: '{"tags": ["both"]}', updated_at: 1_700_000_000n}
  const source = edited(row, [{do: 'ask'}, {do: 'tag', text: 'mine'}], 's', 10n)
  const target = edited(row, [{do: 'ask'}, {do: 'tag', text: 'theirs'}], 't', 20n)
  const {row: merged} = mergeChats(source, target)
  const {history, messages} = documentOf(merged)
  const parent = documentOf(row).messages.at(-1)?.id ?? ''
  assert.deepEqual(history.messages[parent]?.childrenIds, ['s-0-ask', 't-0-ask'])
  assert.equal(history.currentId, 't-0-answer')
  assert.deepEqual(
    messages.slice(-4).map(({id}) => id),
    ['s-0-ask', 's-0-answer', 't-0-ask', 't-0-answer'],
  )
  assert.equal(merged.meta, '{"tags": ["both", "mine", "theirs"]}')
})

function holds(chats: readonly ChatRow[], numRuns: number): void {
  fc.assert(
    fc.property(fc.nat(), edits, edits, fc.boolean(), (n, ours, theirs, sourceIsNewer) => {
      const base = chats[n % chats.length] as ChatRow
      const source = edited(base, ours, 's', sourceIsNewer ? 20n : 10n)
      const target = edited(base, theirs, 't', sourceIsNewer ? 10n : 20n)
      const {row: merged} = mergeChats(source, target)
      assertModel(merged, source, target, sourceIsNewer)
      assertNothingLost(merged, source, target)
      assertTextKept(merged, source, target)
      for (const [one, other] of [
        [merged, merged],
        [source, merged],
        [merged, target],
      ] as const) {
        assert.deepEqual(plain(mergeChats(one, other).row), plain(merged))
      }
    }),
    {numRuns},
  )
}

/** The merged row is, as plain objects, what the model makes of plain objects. */
function assertModel(merged: ChatRow, source: ChatRow, target: ChatRow, sourceIsNewer: boolean): void {
  const [s, t, m] = [source, target, merged].map(plain) as [Plain, Plain, Plain]
  const newer = sourceIsNewer ? s : t
  assert.equal(m.title, newer.title)
  assert.deepEqual(
    m.meta,
    isEqual(s.meta, t.meta) ? s.meta : withUnion({...t.meta, ...s.meta}, s.meta, t.meta, 'tags'),
  )
  const {history, messages, ...rest} = m.chat
  const expected: Record<string, unknown> = {...s.chat, ...t.chat, ...newer.chat}
  delete expected['history']
  delete expected['messages']
  withUnion(expected, s.chat, t.chat, 'files')
  withUnion(expected, s.chat, t.chat, 'tags')
  assert.deepEqual(rest, expected)
  assert.equal(history.currentId, newer.chat.history.currentId)

  const ids = new Set([...Object.keys(s.chat.history.messages), ...Object.keys(t.chat.history.messages)])
  assert.deepEqual(new Set(Object.keys(history.messages)), ids)
  for (const id of ids) {
    const [mine, other] = [s, t].map(row => row.chat.history.messages[id])
    assert.deepEqual(history.messages[id], mergedMessage(mine, other, sourceIsNewer))
  }
  const listed = (row: Plain) => new Map(row.chat.messages.map(message => [message.id, message]))
  const [mine, others] = [listed(s), listed(t)]
  assert.deepEqual(new Set(messages.map(({id}) => id)), new Set([...mine.keys(), ...others.keys()]))
  for (const message of messages) {
    assert.deepEqual(message, mergedMessage(mine.get(message.id), others.get(message.id), sourceIsNewer))
  }
  const order = messages.map(({id}) => id).filter(id => mine.has(id))
  assert.deepEqual(order, [...mine.keys()])
}

function mergedMessage(
  mine: Message | undefined,
  other: Message | undefined,
  sourceIsNewer: boolean,
): unknown {
  if (!mine || !other) return mine ?? other
  const newer = sourceIsNewer ? mine : other
  return withUnion({...mine, ...other, ...newer}, mine, other, 'childrenIds')
}

function withUnion(
  into: Record<string, unknown>,
  mine: Record<string, unknown>,
  other: Record<string, unknown>,
  name: string,
): Record<string, unknown> {
  const lists = [mine[name], other[name]].filter(list => Array.isArray(list)) as unknown[][]
  const [ours = [], theirs = []] = lists.map(list => [...new Set(list.map(item => JSON.stringify(item)))])
  if (lists.length > 0) into[name] = united(ours, theirs).map(item => JSON.parse(item) as unknown)
  return into
}

/** Each of theirs that is not ours, where the next one stands that both have, or at the end. */
function united(ours: readonly string[], theirs: readonly string[]): string[] {
  const all = [...ours]
  for (const [i, item] of theirs.entries()) {
    if (ours.includes(item)) continue
    const before = theirs.slice(0, i).findLast(each => ours.includes(each))
    const from = before === undefined ? 0 : all.indexOf(before) + 1
    const next = all.findIndex((each, at) => at >= from && ours.includes(each) && theirs.includes(each))
    all.splice(next < 0 ? all.length : next, 0, item)
  }
  return all
}

/** Every id of both sides is there, and the current message is one of them. */
function assertNothingLost(merged: ChatRow, ...sides: readonly ChatRow[]): void {
  const {history, messages} = documentOf(merged)
  assert.ok(history.currentId === null || Object.hasOwn(history.messages, history.currentId))
  for (const side of sides) {
    for (const id of Object.keys(documentOf(side).history.messages))
      assert.ok(Object.hasOwn(history.messages, id))
    for (const {id} of documentOf(side).messages) assert.ok(messages.some(message => message.id === id))
    for (const tag of tagsOf(side)) assert.ok(tagsOf(merged).includes(tag))
  }
}

/** Each message that only one side has, or that both spell alike, has the very text it had. */
function assertTextKept(merged: ChatRow, source: ChatRow, target: ChatRow): void {
  const [m, s, t] = [merged, source, target].map(({chat}) => messageTexts(chat)) as [Texts, Texts, Texts]
  for (const [id, text] of m) {
    const [mine, other] = [s.get(id), t.get(id)]
    if (mine === undefined || other === undefined || mine === other) assert.equal(text, mine ?? other)
  }
}

type Texts = ReadonlyMap<string, string>

function messageTexts(chat: string): Texts {
  const root = parseJson(chat)
  assert.ok(root)
  const member = (node: JsonNode | undefined, name: string) =>
    node?.members.find(member => member.name === name)?.value
  const byId = member(member(root, 'history'), 'messages')?.members ?? []
  const listed = member(root, 'messages')?.items ?? []
  return new Map([
    ...byId.map(({name, value}) => [`history ${name}`, textOf(value)] as const),
    ...listed.map(item => [`list ${textOf(member(item, 'id') as JsonNode)}`, textOf(item)] as const),
  ])
}

function mergeChats(source: ChatRow, target: ChatRow): {row: ChatRow} {
  const conflict: Conflict = {
    table: 'chat',
    key: source.id,
    type: 'update_update',
    columns: Object.keys(source),
    source: new Map<string, Value>(Object.entries(source)),
    target: new Map<string, Value>(Object.entries(target)),
    now: new Date('2026-03-01T12:00:00Z'),
  }
  const {verdict, strategy} = rulingOn(conflict, defaultRules)
  assert.equal(strategy, 'merge')
  if (verdict.keep === 'merged') return {row: Object.fromEntries(verdict.row) as ChatRow}
  return {row: verdict.keep === 'source' ? source : target}
}

/** @param who tells apart the ids of what each side adds. */
function edited(row: ChatRow, edits: readonly Edit[], who: string, later: bigint): ChatRow {
  const document = documentOf(row)
  const meta = JSON.parse(row.meta) as Record<string, unknown>
  let indent: number | undefined
  let {title} = row
  for (const [i, edit] of edits.entries()) {
    const add = (what: string, parentId: string | null, text: string) => {
      const entry = {
        id: `${who}-${i}-${what}`,
        parentId,
        childrenIds: [],
        role: what,
        content: text,
        timestamp: 1_700_000_100 + i,
      }
      const parents = [
        document.messages.find(({id}) => id === parentId),
        document.history.messages[parentId ?? ''],
      ]
      for (const parent of parents) parent?.childrenIds.push(entry.id)
      document.history.messages[entry.id] = {...entry, childrenIds: []}
      document.messages.push(entry)
      document.history.currentId = entry.id
      return entry.id
    }
    const all = Object.values(document.history.messages)
    const chosen = 'message' in edit ? all[edit.message % all.length] : undefined
    switch (edit.do) {
      case 'ask':
        add('answer', add('ask', document.history.currentId, `question of ${who}`), '€ answer')
        break
      case 'regenerate':
        if (chosen) add('again', chosen.parentId, 'another answer')
        break
      case 'rewrite':
        for (const copy of [chosen, document.messages.find(({id}) => id === chosen?.id)])
          if (copy) Object.assign(copy, {content: edit.text, [`edited_by_${who}`]: true})
        break
      case 'rename':
        title = edit.text
        document.title = edit.text
        break
      case 'tag':
        meta['tags'] = [...new Set([...((meta['tags'] as string[] | undefined) ?? []), edit.text])]
        break
      case 'attach':
        document['files'] = [
          ...((document['files'] as unknown[] | undefined) ?? []),
          // Each file is one of its own: what becomes of equal ones is for the tests of unions.
          {name: `${edit.text} of ${who}`, id: `${who}-${i}`},
        ]
        break
      case 'go to':
        if (chosen) document.history.currentId = chosen.id
        break
      case 'respell':
        indent = 1
    }
  }
  if (edits.length === 0) return {...row, updated_at: row.updated_at + later}
  // The app writes as Python does; an editor of the mirror may write any JSON.
  const chat = indent === undefined ? asciiJson(document) : JSON.stringify(document, undefined, indent)
  return {...row, title, chat, meta: asciiJson(meta), updated_at: row.updated_at + later}
}

type Plain = {
  readonly title: string
  readonly meta: Record<string, unknown>
  readonly chat: ChatDocument
  readonly updated_at: bigint
}

function plain(row: ChatRow): Plain {
  const meta = JSON.parse(row.meta) as Record<string, unknown>
  return {title: row.title, meta, chat: documentOf(row), updated_at: row.updated_at}
}

function documentOf({chat}: ChatRow): ChatDocument {
  return JSON.parse(chat) as ChatDocument
}

function tagsOf({meta}: ChatRow): string[] {
  return (JSON.parse(meta) as {tags?: string[]}).tags ?? []
}

function realChats(file: string): ChatRow[] {
  const db = new DatabaseSync(file, {readOnly: true})
  try {
    const rows = db.prepare('select id, title, chat, meta, updated_at from chat')
    rows.setReadBigInts(true)
    return (rows.all() as unknown as ChatRow[]).filter(({chat, meta}) => {
      const document = parseJson(chat) && (JSON.parse(chat) as Partial<ChatDocument>)
      // Some rows of the files are made to be awkward; those are for the tests of the text.
      return (
        typeof meta === 'string' &&
        document?.history?.currentId !== undefined &&
        Array.isArray(document.messages) &&
        [...document.messages, ...Object.values(document.history.messages)].every(({childrenIds}) =>
          Array.isArray(childrenIds),
        )
      )
    })
  } finally {
    db.close()
  }
}

function isEqual(one: unknown, other: unknown): boolean {
  return JSON.stringify(one) === JSON.stringify(other)
}
