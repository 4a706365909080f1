import type {DatabaseSync, SQLInputValue, SQLOutputValue} from 'node:sqlite'
import {chatMessageRow, composeChat, models, type Chat, type ChatMessage} from './chat.ts'
import type {Random} from './random.ts'
import {columnsOf, type Row} from './rows.ts'
import {asciiJson, type Phrasebook} from './text.ts'

/** One statement of a transaction, and its values. */
export type Write = readonly [sql: string, ...values: SQLInputValue[]]

/** What an action sees: the file as it is, read with integers as bigint, and a stream of chance. */
export type App = {
  readonly db: DatabaseSync
  readonly chance: Random
  readonly say: Phrasebook
  /** Unix seconds, as the app writes them. */
  readonly now: () => number
  /** Mean length of a new chat's JSON. */
  readonly chatBytes: number
}

/**
 * Something a user does: the statements of one transaction, decided from what the file holds. None when there is
 * nothing to do it to.
 */
export type Action = (app: App) => readonly Write[]

type Found = Readonly<Record<string, SQLOutputValue>>

/** Every action and how often it comes up, in parts of the whole. What creates and what deletes are in balance. */
export const actions = {
  touchUser: {weight: 20, plan: touchUser},
  postMessage: {weight: 18, plan: postMessage},
  editMessage: {weight: 4, plan: editMessage},
  deleteMessage: {weight: 15, plan: deleteMessage},
  react: {weight: 3, plan: react},
  newChat: {weight: 6, plan: newChat},
  importChat: {weight: 2, plan: importChat},
  appendToChat: {weight: 14, plan: appendToChat},
  deleteChat: {weight: 7, plan: deleteChat},
  archiveChat: {weight: 3, plan: archiveChat},
  shareChat: {weight: 2, plan: shareChat},
  tagChat: {weight: 5, plan: tagChat},
  changeRole: {weight: 1, plan: changeRole},
  changeSettings: {weight: 2, plan: changeSettings},
  moveUniqueValue: {weight: 2, plan: moveUniqueValue},
  newUser: {weight: 1, plan: newUser},
  deleteUser: {weight: 1, plan: deleteUser},
  replaceTool: {weight: 1, plan: replaceTool},
  replacePrompt: {weight: 1, plan: replacePrompt},
  rewriteConfig: {weight: 2, plan: rewriteConfig},
} as const satisfies Record<string, {readonly weight: number; readonly plan: Action}>

/** The name of an action. */
export type ActionName = keyof typeof actions

/** @returns an action, each as likely as its weight. */
export function pickAction(chance: Random): ActionName {
  const names = Object.keys(actions) as ActionName[]
  let left = chance.below(names.reduce((sum, name) => sum + actions[name].weight, 0))
  return names.find(name => (left -= actions[name].weight) < 0) ?? 'touchUser'
}

/** Being seen moves `last_active_at` and nothing else. */
function touchUser(app: App): Write[] {
  return update(app, 'user', someRow(app, 'user'), {last_active_at: app.now()})
}

function postMessage(app: App): Write[] {
  const {chance, say} = app
  const channel = someRow(app, 'channel')
  const user = someRow(app, 'user')
  if (!channel || !user) return []
  const parent = chance.chance(0.2) ? someRow(app, 'message') : undefined
  return insert(app, 'message', {
    id: chance.uuid(),
    user_id: idOf(user),
    channel_id: parent?.['channel_id'] ?? idOf(channel),
    content: say.passage(20 + chance.below(280)).plain,
    data: 'null',
    meta: 'null',
    parent_id: parent && idOf(parent),
    is_pinned: 0,
    created_at: nanoseconds(app),
    updated_at: nanoseconds(app),
  })
}

function editMessage(app: App): Write[] {
  const message = someRow(app, 'message')
  return update(app, 'message', message, {content: app.say.passage(80).plain, updated_at: nanoseconds(app)})
}

/** Replies and reactions stay behind now and then, as in the app. */
function deleteMessage(app: App): Write[] {
  const message = someRow(app, 'message')
  if (!message) return []
  const reactions: Write[] = [['delete from message_reaction where message_id = ?', idOf(message)]]
  return [...remove('message', message), ...(app.chance.chance(0.8) ? reactions : [])]
}

function react(app: App): Write[] {
  const existing = someRow(app, 'message_reaction')
  if (existing && app.chance.chance(0.5)) return remove('message_reaction', existing)
  const [message, user] = [someRow(app, 'message'), someRow(app, 'user')]
  if (!message || !user) return []
  const reaction = {id: app.chance.uuid(), name: app.chance.pick(['thumbs_up', 'tada', 'heart'])}
  const of = {user_id: idOf(user), message_id: idOf(message), created_at: nanoseconds(app)}
  return insert(app, 'message_reaction', {...reaction, ...of})
}

function newChat(app: App): Write[] {
  return writeChat(app, app.now())
}

/** An import keeps the times of long ago, so no watermark on `updated_at` ever sees it. */
function importChat(app: App): Write[] {
  return writeChat(app, app.now() - app.chance.below(700 * 86_400))
}

function writeChat(app: App, at: number): Write[] {
  const user = someRow(app, 'user')
  if (!user) return []
  const chat = composeChat(app.chance, app.say, {user: idOf(user), at, bytes: app.chatBytes})
  const times = {
    created_at: at,
    updated_at: at,
    last_read_at: at,
    current_message_id: chat.messages.at(-1)?.id,
  }
  const state = {archived: 0, pinned: 0, meta: '{}'}
  return [
    ...insert(app, 'chat', {
      id: chat.id,
      user_id: chat.user,
      title: chat.title,
      chat: chat.json,
      ...state,
      ...times,
    }),
    ...chat.messages.flatMap(message => insert(app, 'chat_message', chatMessageRow(chat, message))),
  ]
}

type Entry = {id: string; childrenIds?: string[]}
type ChatDocument = {history: {messages: Record<string, Entry>; currentId: string | null}; messages: Entry[]}

/** A question and an answer are appended, under `history` and under `messages`; this does move `updated_at`. */
function appendToChat(app: App): Write[] {
  const {chance, say} = app
  const row = someRow(app, 'chat')
  const json = row?.['chat']
  if (!row || typeof json !== 'string' || !json.includes('"currentId"')) return []
  const document = JSON.parse(json) as ChatDocument
  const model = chance.pick(models)
  const added: Write[] = []
  let parent = document.messages.at(-1)
  for (const role of ['user', 'assistant'] as const) {
    const content = say.passage(role === 'user' ? 120 : 700)
    const message: ChatMessage = {id: chance.uuid(), role, content, at: app.now(), model}
    const entry = {
      id: message.id,
      parentId: parent?.id ?? null,
      childrenIds: [],
      role,
      content: content.plain,
      timestamp: message.at,
      ...(role === 'user' ? {models: [model]} : {model, done: true}),
    }
    for (const copy of [parent, parent && document.history.messages[parent.id]])
      (copy?.childrenIds ?? []).push(entry.id)
    document.messages.push(entry)
    document.history.messages[entry.id] = {...entry, childrenIds: []}
    document.history.currentId = entry.id
    parent = entry
    added.push(...insert(app, 'chat_message', chatMessageRow(chatOf(row), message)))
  }
  const changed = {
    chat: asciiJson(document),
    updated_at: app.now(),
    current_message_id: document.history.currentId,
  }
  return [...update(app, 'chat', row, changed), ...added]
}

/** A hard delete; tags that no other chat of the user has go with it. */
function deleteChat(app: App): Write[] {
  const chat = someRow(app, 'chat')
  if (!chat) return []
  const messages: Write[] = has(app, 'chat_message')
    ? [['delete from chat_message where chat_id = ?', idOf(chat)]]
    : []
  return [...remove('chat', chat), ...messages, ...dropUnusedTags(app, chat, [])]
}

function archiveChat(app: App): Write[] {
  const chat = someRow(app, 'chat')
  return update(app, 'chat', chat, {archived: chat?.['archived'] === 1n ? 0 : 1})
}

/** Sharing sets `share_id`, leaves `updated_at` alone, and copies the chat: to a row of its own, or to `shared_chat`. */
function shareChat(app: App): Write[] {
  const chat = someRow(app, 'chat')
  if (!chat || String(chat['user_id']).startsWith('shared-')) return []
  const isSeparate = has(app, 'shared_chat')
  const shared = chat['share_id']
  if (typeof shared === 'string') {
    const table = isSeparate ? 'shared_chat' : 'chat'
    return [...update(app, 'chat', chat, {share_id: null}), [`delete from ${table} where id = ?`, shared]]
  }
  const id = app.chance.uuid()
  const copy = isSeparate
    ? insert(app, 'shared_chat', {...chat, id, chat_id: idOf(chat)})
    : insert(app, 'chat', {...chat, id, user_id: `shared-${idOf(chat)}`, share_id: null})
  return [...update(app, 'chat', chat, {share_id: id}), ...copy]
}

/** Tags live in the chat's `meta` and, once a user, in `tag`. Nothing else of the chat moves. */
function tagChat(app: App): Write[] {
  const chat = someRow(app, 'chat')
  if (!chat) return []
  const before = tagsOf(chat)
  const tag = app.say.word()
  const tags = before.includes(tag) || before.length > 2 ? before.slice(1) : [...before, tag]
  const known: Write[] = tags.map(name => [
    `insert or ignore into tag (id, name, user_id, meta) values (?, ?, ?, 'null')`,
    name,
    name,
    chat['user_id'] ?? null,
  ])
  return [
    ...update(app, 'chat', chat, {meta: asciiJson({tags})}),
    ...known,
    ...dropUnusedTags(app, chat, tags),
  ]
}

function changeRole(app: App): Write[] {
  return update(app, 'user', someRow(app, 'user'), {role: app.chance.pick(['user', 'admin', 'pending'])})
}

function changeSettings(app: App): Write[] {
  const settings = asciiJson({
    ui: {theme: app.chance.pick(['dark', 'light']), system: app.say.passage(30).plain},
  })
  return update(app, 'user', someRow(app, 'user'), {settings: app.chance.chance(0.2) ? 'null' : settings})
}

/** A unique value goes from one row to another: API keys and OAuth subjects do, and the order of statements matters. */
function moveUniqueValue(app: App): Write[] {
  if (has(app, 'api_key')) {
    const [from, to] = [someRow(app, 'api_key'), someRow(app, 'api_key')]
    if (!from || !to) return []
    const key = from['key'] ?? null
    const fresh = `sk-${app.chance.uuid().replaceAll('-', '')}`
    return [...update(app, 'api_key', from, {key: fresh}), ...update(app, 'api_key', to, {key})]
  }
  const column = app.chance.pick(['api_key', 'oauth_sub'])
  const from = app.db
    .prepare(`select * from user where ${column} is not null order by random() limit 1`)
    .get()
  const to = someRow(app, 'user')
  return [
    ...update(app, 'user', from, {[column]: null}),
    ...update(app, 'user', to, {[column]: from?.[column] ?? null}),
  ]
}

function newUser(app: App): Write[] {
  const id = app.chance.uuid()
  const email = `${id.slice(0, 8)}@example.org`
  const times = {created_at: app.now(), updated_at: app.now(), last_active_at: app.now()}
  const subject = app.chance.chance(0.5) ? `google@${id}` : undefined
  const session = {id: app.chance.uuid(), user_id: id, provider: 'google', token: id, expires_at: app.now()}
  const key = {id: `key_${id}`, user_id: id, key: `sk-${id}`}
  return [
    ...insert(app, 'auth', {id, email, password: `$2b$12$${id}`, active: 1}),
    ...insert(app, 'user', {
      ...{id, name: app.say.title(), email, role: 'user', profile_image_url: '/user.png'},
      ...{settings: 'null', info: 'null', oauth_sub: subject, ...times},
    }),
    ...insert(app, 'oauth_session', {...session, ...times}),
    ...insert(app, 'api_key', {...key, ...times}),
  ]
}

/** The user's sessions stay: no foreign key is enforced, and nothing else removes them. */
function deleteUser(app: App): Write[] {
  const user = app.db.prepare(`select * from user where role <> 'admin' order by random() limit 1`).get()
  const users = app.db.prepare('select count(*) as n from user').get()?.['n']
  if (!user || Number(users) < 3) return []
  const id = idOf(user)
  return [
    ...remove('user', user),
    ['delete from auth where id = ?', id],
    ['delete from tag where user_id = ?', id],
  ]
}

/** Deleted and inserted again under the same id, as when tools are synchronised. */
function replaceTool(app: App): Write[] {
  const tool = someRow(app, 'tool')
  if (!tool) return []
  const content = `${String(tool['content']).slice(0, 400)}\n# ${app.say.sentence().plain}\n`
  return [...remove('tool', tool), ...insert(app, 'tool', {...tool, content})]
}

/** The newest prompt is deleted and another made; where ids are numbers, it gets the same one. */
function replacePrompt(app: App): Write[] {
  const prompt = app.db.prepare('select * from prompt order by id desc limit 1').get()
  if (!prompt) return []
  const id = typeof prompt['id'] === 'bigint' ? prompt['id'] : app.chance.uuid()
  const command = `cmd-${app.chance.uuid().slice(0, 8)}`
  return [...remove('prompt', prompt), ...insert(app, 'prompt', {...prompt, id, command})]
}

function rewriteConfig(app: App): Write[] {
  const {chance, say} = app
  if (!columnsOf(app.db, 'config').includes('key')) {
    const data = asciiJson({
      version: 0,
      rag: {top_k: chance.below(9), weight: chance.next()},
      ui: {title: say.title()},
    })
    const at = new Date(app.now() * 1_000).toISOString().replace('T', ' ').replace('.000Z', '.5')
    return update(app, 'config', someRow(app, 'config'), {data, updated_at: at})
  }
  const at = app.now()
  const settings: readonly (readonly [string, SQLInputValue])[] = [
    ['rag.top_k', BigInt(chance.below(9))],
    ['rag.weight', chance.next()],
    ['rag.reranking_model', chance.chance(0.5) ? 'null' : '"small"'],
    ['ui.title', asciiJson(say.title())],
  ]
  return settings.flatMap(([key, value]) => [
    ['delete from config where key = ?', key] satisfies Write,
    ...insert(app, 'config', {key, value, updated_at: at}),
  ])
}

function has({db}: App, table: string): boolean {
  return columnsOf(db, table).length > 0
}

/** @returns a row near a random rowid: quick at any size, and every row comes up. */
function someRow({db, chance}: App, table: string): Found | undefined {
  const top = db.prepare(`select max(rowid) as top from "${table}"`).get()?.['top']
  if (typeof top !== 'bigint') return undefined
  return db
    .prepare(`select * from "${table}" where rowid >= ? limit 1`)
    .get(BigInt(chance.below(Number(top))) + 1n)
}

function idOf(row: Found): string {
  return String(row['id'])
}

function chatOf(row: Found): Pick<Chat, 'id' | 'user'> {
  return {id: idOf(row), user: String(row['user_id'])}
}

function tagsOf(chat: Found): string[] {
  const meta =
    typeof chat['meta'] === 'string' ? (JSON.parse(chat['meta']) as {tags?: string[]} | null) : null
  return meta?.tags ?? []
}

/** @returns deletes for the tags that `chat` had, keeps no longer, and no other chat of its user has. */
function dropUnusedTags({db}: App, chat: Found, kept: readonly string[]): Write[] {
  const user = chat['user_id'] ?? null
  const others = db.prepare(
    `select 1 from chat, json_each(chat.meta, '$.tags') as tag where user_id = ? and chat.id <> ? and tag.value = ? limit 1`,
  )
  return tagsOf(chat)
    .filter(tag => !kept.includes(tag) && others.get(user, idOf(chat), tag) === undefined)
    .map(tag => ['delete from tag where id = ? and user_id = ?', tag, user])
}

function insert({db}: App, table: string, row: Row): Write[] {
  const columns = columnsOf(db, table).filter(column => row[column] !== undefined)
  if (columns.length === 0) return []
  const names = columns.map(column => `"${column}"`).join(', ')
  const sql = `insert into "${table}" (${names}) values (${columns.map(() => '?').join(', ')})`
  return [[sql, ...columns.map(column => row[column] ?? null)]]
}

/** @returns nothing when there is no such row or the release has none of the columns. */
function update({db}: App, table: string, row: Found | undefined, to: Row): Write[] {
  const columns = columnsOf(db, table).filter(column => column in to)
  if (row === undefined || columns.length === 0) return []
  const set = columns.map(column => `"${column}" = ?`).join(', ')
  return [
    [
      `update "${table}" set ${set} where id = ?`,
      ...columns.map(column => to[column] ?? null),
      row['id'] ?? null,
    ],
  ]
}

function remove(table: string, row: Found): Write[] {
  return [[`delete from "${table}" where id = ?`, row['id'] ?? null]]
}

function nanoseconds({now, chance}: App): bigint {
  return BigInt(now()) * 1_000_000_000n + BigInt(chance.below(1_000_000_000))
}
