import {existsSync, renameSync, rmSync, statSync} from 'node:fs'
import {DatabaseSync, type SQLInputValue} from 'node:sqlite'
import {UsageError} from '../core/errors.ts'
import {chatMessageRow, composeChat, models, type Chat} from './chat.ts'
import {random, type Random} from './random.ts'
import {columnsOf, type Row} from './rows.ts'
import {migrations, shapes, type Version} from './schema.ts'
import {asciiJson, passageOf, phrasebook, type Passage, type Phrasebook} from './text.ts'

/** How much a sample holds; everything else (tags, folders, files, feedback, …) follows from these. */
export type SampleSize = {
  readonly users: number
  readonly chats: number
  /** Rows of the channel table `message`. */
  readonly messages: number
  /** Mean length of a chat's JSON; log-normal around it, from a seventh to 3.4 times. */
  readonly chatBytes?: number | undefined
}

/** What sample to make. The same options give the same file, byte for byte. */
export type SampleOptions = SampleSize & {
  readonly version: Version
  readonly seed: number
  readonly journalMode?: 'delete' | 'wal' | undefined
  readonly pageSize?: number | undefined
  /** Called about a hundred times with the chats and messages written so far. */
  readonly onProgress?: ((done: number, total: number) => void) | undefined
}

/** What was made. */
export type Sample = {
  readonly rows: number
  readonly sizeBytes: number
}

/** Sizes by name: about 0.4 MB, 5 MB, and the 750 MB file of the benchmarks, in the shape of 0.6.31. */
export const sizes = {
  tiny: {users: 4, chats: 5, messages: 40, chatBytes: 4_000},
  demo: {users: 40, chats: 160, messages: 2_500, chatBytes: 18_000},
  bench: {users: 5_000, chats: 10_000, messages: 1_000_000},
} as const satisfies Record<string, SampleSize>

/** Mean length of a chat's JSON in the files we have seen grow large. */
const meanChatBytes = 29_300

/** The instant at which every sample ends, so that content depends on nothing but the options. */
const newest = 1_768_000_000
const daySeconds = 86_400

/**
 * Makes an Open WebUI database with invented content, awkward values included.
 *
 * @throws UsageError when `file` exists.
 */
export function generate(file: string, options: SampleOptions): Sample {
  if (existsSync(file)) throw new UsageError(`${file} exists already`, 'Name a file that does not exist yet.')
  // Under another name until it is whole. Not synced to disk: a sample lost with the power is made again.
  const part = `${file}.part`
  rmSync(part, {force: true})
  // Like the app, which never enforces foreign keys; node:sqlite would.
  const db = new DatabaseSync(part, {enableForeignKeyConstraints: false})
  try {
    db.exec(`pragma page_size = ${options.pageSize ?? 4096}`)
    db.exec('pragma journal_mode = off; pragma synchronous = off; pragma cache_size = -131072')
    const {ddl, revision} = shapes[options.version]
    for (const statement of ddl) db.exec(statement)
    db.exec('begin')
    const rows = fill(db, revision, options)
    db.exec('commit')
    db.exec(`pragma journal_mode = ${options.journalMode ?? 'delete'}`)
    db.close()
    renameSync(part, file)
    return {rows, sizeBytes: statSync(file).size}
  } finally {
    if (db.isOpen) db.close()
    rmSync(part, {force: true})
  }
}

/** What every part of the content draws on. */
type World = {
  readonly options: SampleOptions
  readonly chance: Random
  readonly say: Phrasebook
  /** Writes a row: columns that this release lacks are left out, and so are tables that it lacks. */
  readonly insert: (table: string, row: Row) => void
  readonly users: readonly string[]
  readonly tick: () => void
}

function fill(db: DatabaseSync, revision: string, options: SampleOptions): number {
  const chance = random(options.seed)
  const {insert, rows} = inserter(db)
  const total = options.chats + options.messages
  const every = Math.max(1, Math.floor(total / 100))
  let done = 0
  const world: World = {
    options,
    chance,
    say: phrasebook(chance),
    insert,
    users: Array.from({length: Math.max(1, options.users)}, () => chance.uuid()),
    tick: () => {
      if (++done % every === 0) options.onProgress?.(done, total)
    },
  }
  insert('alembic_version', {version_num: revision})
  migrations.forEach((name, i) => {
    insert('migratehistory', {id: i + 1, name, migrated_at: `2025-01-03 08:15:42.${100_000 + i * 1_737}`})
  })
  fillAccounts(world)
  fillSettings(world)
  const folders = fillFolders(world)
  const chats = fillChats(world, folders)
  fillFeedback(world, chats)
  fillFiles(world, chats)
  fillWorkspace(world)
  fillChannels(world)
  fillPlans(world)
  return rows()
}

function inserter(db: DatabaseSync): Pick<World, 'insert'> & {readonly rows: () => number} {
  const prepared = new Map<string, (row: Row) => void>()
  let written = 0
  const prepare = (table: string) => {
    const columns = columnsOf(db, table)
    if (columns.length === 0) return () => undefined
    const marks = columns.map(() => '?').join(', ')
    const statement = db.prepare(`insert into "${table}" values (${marks})`)
    return (row: Row) => {
      statement.run(...columns.map(column => row[column] ?? null))
      written++
    }
  }
  return {
    insert: (table, row) => {
      const write = prepared.get(table) ?? prepare(table)
      prepared.set(table, write)
      write(row)
    },
    rows: () => written,
  }
}

function fillAccounts({chance, say, insert, users, options}: World): void {
  const firstNames = [
    'Ada',
    'Grace',
    'Edsger',
    'Barbara',
    'Donald',
    'Radia',
    'Ken',
    'Frances',
    'José',
    '志村',
  ]
  users.forEach((id, i) => {
    const created = newest - 500 * daySeconds + Math.floor((i / users.length) * 300 * daySeconds)
    const name = `${chance.pick(firstNames)} ${say.word()}`
    const email = `user${i}@example.org`
    const subject = chance.chance(0.2) ? String(10 ** 17 + chance.below(2 ** 31)) : undefined
    const apiKey = chance.chance(0.15) ? `sk-${chance.uuid().replaceAll('-', '')}` : undefined
    insert('auth', {id, email, password: `$2b$12$${chance.uuid()}${chance.uuid().slice(0, 17)}`, active: 1})
    insert('user', {
      id,
      name,
      email,
      role: i === 0 ? 'admin' : chance.chance(0.05) ? 'pending' : 'user',
      profile_image_url: chance.chance(0.05)
        ? `data:image/png;base64,${Buffer.from(say.passage(1_000 + chance.below(9_000)).plain).toString('base64')}`
        : '/user.png',
      api_key: apiKey,
      created_at: created,
      updated_at: created,
      last_active_at: newest - chance.below(30 * daySeconds),
      // Text `null` beside SQL NULL: the ORM writes the former for "none" in a JSON column.
      settings: chance.chance(0.3) ? 'null' : chance.chance(0.2) ? undefined : userSettings(chance, options),
      info: chance.chance(0.5) ? 'null' : undefined,
      oauth_sub: subject === undefined ? undefined : `google@${subject}`,
      oauth: subject === undefined ? undefined : asciiJson({google: {sub: subject}}),
      username: i % 3 === 0 ? `user.${i}` : undefined,
      bio: i % 7 === 0 ? say.passage(80).plain : i % 11 === 0 ? '' : undefined,
      date_of_birth: i % 5 === 0 ? `19${60 + chance.below(40)}-0${1 + chance.below(9)}-15` : undefined,
      timezone: i % 4 === 0 ? 'Europe/Berlin' : undefined,
      status_emoji: i % 9 === 0 ? '☕' : undefined,
    })
    if (apiKey !== undefined)
      insert('api_key', {id: `key_${id}`, user_id: id, key: apiKey, created_at: created, updated_at: created})
    if (subject !== undefined) insert('oauth_session', oauthSession(chance, id, created))
    for (const tag of new Set(Array.from({length: 1 + chance.below(7)}, say.word)))
      insert('tag', {id: tag, name: tag.toUpperCase(), user_id: id, meta: 'null'})
    if (chance.chance(0.4))
      insert('memory', {
        id: chance.uuid(),
        user_id: id,
        content: say.passage(200).plain,
        created_at: created + 60,
        updated_at: created + 60,
        type: 'context',
      })
  })
  // Nothing enforces a foreign key, so a session outlives its user.
  insert('oauth_session', oauthSession(chance, chance.uuid(), newest - 90 * daySeconds))
}

function userSettings(chance: Random, {version}: SampleOptions): string {
  const ui = {
    models: [chance.pick(models)],
    theme: 'dark',
    system: '',
    notifications: {webhook_url: ''},
    version,
  }
  return asciiJson({ui: {...ui, memory: chance.chance(0.5)}})
}

function oauthSession(chance: Random, user: string, at: number): Row {
  const times = {expires_at: at + 3_600, created_at: at, updated_at: at}
  return {id: chance.uuid(), user_id: user, provider: 'google', token: `gAAAAA${chance.uuid()}`, ...times}
}

/** Settings: one JSON document up to 0.8, one row a setting since 0.10, where numbers are stored as numbers. */
function fillSettings({insert, options}: World): void {
  const isOneRowASetting = options.version === '0.10.2' || options.version === '0.11'
  const template = '### Task:\nAnswer from the context … 你好'
  if (!isOneRowASetting) {
    const ui = {enable_signup: false, default_locale: 'en-US', banners: []}
    const data = asciiJson({version: 0, ui, rag: {top_k: 3, weight: 0.5, template}, ollama: {enable: true}})
    insert('config', {
      id: 1,
      data,
      version: 0,
      created_at: '2025-01-03 08:15:43',
      updated_at: '2025-06-01 10:30:00.25',
    })
    return
  }
  const values: Readonly<Record<string, SQLInputValue>> = {
    version: 0n,
    'ui.enable_signup': 'false',
    'ui.default_locale': '"en-US"',
    'ui.banners': '[]',
    'openai.enable': 'true',
    'openai.api_base_urls': '["https://api.openai.com/v1"]',
    'ollama.base_urls': '["http://host.docker.internal:11434"]',
    'rag.top_k': 3n,
    'rag.weight': 0.5,
    'rag.chunk_size': 1000n,
    'rag.template': asciiJson(template),
    'rag.reranking_model': 'null',
    'evaluation.arena.models': '[]',
  }
  for (const [key, value] of Object.entries(values))
    insert('config', {key, value, updated_at: newest - daySeconds})
}

/** @returns folder ids by user. */
function fillFolders({chance, say, insert, users}: World): ReadonlyMap<string, string> {
  const folders = new Map<string, string>()
  for (const user of users) {
    if (!chance.chance(0.4)) continue
    const at = newest - chance.below(300 * daySeconds)
    const row = {user_id: user, items: 'null', meta: 'null', is_expanded: 0, created_at: at, updated_at: at}
    const id = chance.uuid()
    insert('folder', {...row, id, name: say.title()})
    if (chance.chance(0.3))
      insert('folder', {...row, id: chance.uuid(), parent_id: id, name: say.title(), data: '{}'})
    folders.set(user, id)
  }
  return folders
}

/** @returns a few of the chats, for what refers to them. */
function fillChats(world: World, folders: ReadonlyMap<string, string>): readonly Chat[] {
  const {chance, say, insert, users, options, tick} = world
  const keepsClones = options.version === '0.6.31' || options.version === '0.8.12'
  const chatBytes = options.chatBytes ?? meanChatBytes
  const some: Chat[] = []
  for (let i = 0; i < options.chats; i++) {
    const user = chance.pick(users)
    // Imports stamp many chats with one time, so updated_at has ties.
    const isImported = chance.chance(0.3)
    const second = newest - 400 * daySeconds + chance.below(390 * daySeconds)
    const at = isImported ? second - (second % 3_600) : second
    const chat = composeChat(chance, say, {user, at, bytes: chatBytes, opening: awkwardChats[i]})
    if (some.length < 20 + options.chats / 20) some.push(chat)
    const isShared = chance.chance(0.03)
    const shareId = isShared ? chance.uuid() : undefined
    const row = {
      title: chat.title,
      chat: chat.json,
      archived: chance.chance(0.1) ? 1 : 0,
      pinned: chance.chance(0.1) ? undefined : chance.chance(0.05) ? 1 : 0,
      meta: chance.chance(0.6) ? '{}' : asciiJson({tags: [say.word()]}),
      created_at: at,
      updated_at: isImported ? at : at + chance.below(5 * daySeconds),
      last_read_at: chance.chance(0.5) ? at + daySeconds : undefined,
      tasks: chance.chance(0.5) ? 'null' : undefined,
      current_message_id: chat.messages.at(-1)?.id,
    }
    // One chat in two hundred belongs to a user who is gone.
    const owner = chance.chance(0.005) ? chance.uuid() : user
    insert('chat', {...row, id: chat.id, user_id: owner, share_id: shareId, folder_id: folders.get(user)})
    if (shareId !== undefined && keepsClones)
      insert('chat', {...row, id: shareId, user_id: `shared-${chat.id}`, meta: '{}'})
    if (shareId !== undefined) insert('shared_chat', {...row, id: shareId, chat_id: chat.id, user_id: user})
    for (const message of chat.messages) insert('chat_message', chatMessageRow(chat, message))
    tick()
  }
  return some
}

/** How the first chats open. */
const awkwardChats: readonly Passage[] = [
  // Written by releases up to 0.6.31, refused by jsonb.
  {plain: '', escaped: 'a \\u0000 inside'},
  {plain: '', escaped: 'half a pair \\ud83d and the other \\udc0d'},
  passageOf('€ $1 \\u0041 is not an escape here'),
]

function fillFeedback({chance, say, insert}: World, chats: readonly Chat[]): void {
  for (const chat of chats) {
    if (!chance.chance(0.7)) continue
    const rating = chance.chance(0.6) ? 1 : -1
    insert('feedback', {
      id: chance.uuid(),
      user_id: chat.user,
      version: 0,
      type: 'rating',
      data: asciiJson({
        rating,
        model_id: chat.messages[1]?.model,
        reason: null,
        comment: say.passage(40).plain,
      }),
      meta: asciiJson({chat_id: chat.id, message_id: chat.messages[1]?.id, message_index: 1}),
      snapshot: `{"chat": {"id": "${chat.id}", "title": ${asciiJson(chat.title)}, "chat": ${chat.json}}}`,
      created_at: chat.at + 120,
      updated_at: chat.at + 120,
    })
  }
}

function fillFiles({chance, say, insert, options}: World, chats: readonly Chat[]): void {
  const knowledge = chance.uuid()
  const at = newest - 200 * daySeconds
  const files: string[] = []
  for (const chat of chats) {
    const id = chance.uuid()
    const filename = `${say.title().replaceAll(' ', '_')}.${chance.pick(['md', 'pdf', 'png', 'txt'])}`
    const times = {created_at: chat.at, updated_at: chat.at}
    insert('file', {
      id,
      user_id: chat.user,
      filename,
      meta: asciiJson({
        name: filename,
        content_type: 'text/markdown',
        size: chance.below(4_000_000),
        data: {},
      }),
      hash: chance.uuid().replaceAll('-', '').repeat(2),
      data: `{"content": "${say.passage(chance.below(options.chatBytes ?? meanChatBytes)).escaped}"}`,
      path: `/app/backend/data/uploads/${id}_${filename}`,
      access_control: 'null',
      ...times,
    })
    const link = {id: chance.uuid(), user_id: chat.user, file_id: id, ...times}
    insert('chat_file', {...link, chat_id: chat.id, message_id: chat.messages[0]?.id})
    if (chance.chance(0.2)) {
      insert('knowledge_file', {...link, knowledge_id: knowledge})
      files.push(id)
    }
  }
  insert('knowledge', {
    id: knowledge,
    user_id: chats[0]?.user ?? chance.uuid(),
    name: say.title(),
    description: say.passage(80).plain,
    data: asciiJson({file_ids: files}),
    meta: 'null',
    access_control: 'null',
    created_at: at,
    updated_at: null,
  })
}

function fillWorkspace(world: World): void {
  const {chance, say, insert, users} = world
  const owner = users[0] ?? ''
  const at = newest - 250 * daySeconds
  const times = {created_at: at, updated_at: at}
  const grants = asciiJson({read: {group_ids: [], user_ids: [owner]}, write: {group_ids: [], user_ids: []}})
  for (let i = 0; i < 4; i++) {
    const own = {user_id: owner, ...times, access_control: i % 2 === 0 ? 'null' : grants}
    const code = `import os\n\n\nclass Tools:\n    """${say.passage(600).plain.replaceAll('"', "'")}"""\n\n    pass\n`
    const meta = asciiJson({
      description: say.passage(60).plain,
      manifest: {title: say.title(), version: `0.1.${i}`},
    })
    const named = {name: say.title(), content: code, meta, ...own}
    const specs = '[{"name": "get_weather", "parameters": {"type": "object", "properties": {}}}]'
    insert('tool', {id: `tool_${i}`, ...named, specs, valves: i === 0 ? 'null' : '{"priority": 0}'})
    insert('function', {
      id: `fn_${i}`,
      ...named,
      type: 'filter',
      valves: 'null',
      is_active: i % 2,
      is_global: 0,
    })
    insert('skill', {id: `skill-${i}`, ...named, name: `${say.word()}-${i}`, description: '', is_active: 1})
    insert('model', {
      id: i === 0 ? 'my-assistant' : `assistant-${i}`,
      base_model_id: i === 0 ? undefined : chance.pick(models),
      name: say.title(),
      params: asciiJson({temperature: 0.65, system: say.passage(150).plain}),
      meta,
      is_active: 1,
      ...own,
    })
    insert('access_grant', {
      id: chance.uuid(),
      resource_type: 'model',
      resource_id: `assistant-${i}`,
      principal_type: 'user',
      principal_id: owner,
      permission: 'read',
      created_at: at,
    })
    fillPrompt(world, i, own)
    insert('note', {
      id: chance.uuid(),
      title: say.title(),
      data: `{"content": {"json": null, "md": "${say.passage(400).escaped}"}}`,
      meta: 'null',
      ...own,
      ...nanoTimes(chance, at),
    })
  }
  fillGroup(world, times)
  insert('chatidtag', {
    id: chance.uuid(),
    tag_name: 'old',
    chat_id: chance.uuid(),
    user_id: owner,
    timestamp: at,
  })
  insert('document', {
    id: 1,
    collection_name: chance.uuid(),
    name: 'handbook.txt',
    title: 'Handbook',
    filename: 'handbook.txt',
    content: '{}',
    user_id: owner,
    timestamp: at,
  })
}

/** A prompt's id is a small number in 0.6.31, used again after a delete, and a UUID in the later shapes. */
function fillPrompt({chance, say, insert, options}: World, i: number, own: Row): void {
  const id = options.version === '0.6.31' ? i + 1 : chance.uuid()
  const content = `${say.passage(120).plain} {{CLIPBOARD}} {{CURRENT_DATE}}`
  const texts = {command: `cmd-${i}`, title: say.title(), content}
  const revision = chance.uuid()
  insert('prompt', {
    ...own,
    ...texts,
    id,
    name: texts.title,
    timestamp: own['created_at'],
    data: '{}',
    meta: '{}',
    tags: '[]',
    is_active: 1,
    version_id: revision,
  })
  insert('prompt_history', {...own, id: revision, prompt_id: id, snapshot: asciiJson(texts)})
}

function fillGroup({chance, say, insert, users}: World, times: Row): void {
  const id = chance.uuid()
  const members = users.slice(0, 6)
  insert('group', {
    id,
    user_id: members[0],
    name: say.title(),
    description: say.passage(40).plain,
    data: 'null',
    meta: 'null',
    permissions: asciiJson({workspace: {models: true, tools: false}, chat: {delete: true}}),
    user_ids: asciiJson(members),
    ...times,
  })
  for (const member of members)
    insert('group_member', {id: chance.uuid(), group_id: id, user_id: member, ...times})
}

/** Channels and their messages, whose times are nanoseconds: far above what a JavaScript number holds. */
function fillChannels({chance, say, insert, users, options, tick}: World): void {
  const channels = Array.from({length: Math.max(2, Math.min(40, Math.ceil(users.length / 100)))}, () => {
    const id = chance.uuid()
    const own = {user_id: chance.pick(users), ...nanoTimes(chance, newest - 300 * daySeconds)}
    const words = {name: say.word(), description: say.passage(50).plain, data: 'null', meta: 'null'}
    insert('channel', {
      id,
      ...own,
      ...words,
      access_control: 'null',
      type: chance.chance(0.3) ? 'dm' : undefined,
    })
    const joined = {
      channel_id: id,
      is_active: 1,
      is_channel_muted: 0,
      is_channel_pinned: 0,
      joined_at: own.created_at,
    }
    insert('channel_member', {id: chance.uuid(), user_id: own.user_id, created_at: own.created_at, ...joined})
    return id
  })
  const gapSeconds = (280 * daySeconds) / Math.max(1, options.messages)
  let recent: {readonly id: string; readonly channel: string} | undefined
  for (let i = 0; i < options.messages; i++) {
    const id = chance.uuid()
    const isReply = recent !== undefined && chance.chance(0.15)
    const channel = isReply && recent ? recent.channel : chance.pick(channels)
    const times = nanoTimes(chance, newest - 290 * daySeconds + Math.floor(i * gapSeconds))
    const isPlain = chance.chance(0.7)
    insert('message', {
      id,
      user_id: chance.pick(users),
      channel_id: channel,
      content: say.passage(20 + chance.below(280)).plain,
      data: isPlain ? 'null' : '{}',
      meta: i % 20 === 0 ? undefined : isPlain ? 'null' : '{}',
      parent_id: isReply ? recent?.id : undefined,
      is_pinned: 0,
      ...times,
    })
    if (recent === undefined || chance.chance(0.05)) recent = {id, channel}
    if (chance.chance(0.02))
      insert('message_reaction', {
        id: chance.uuid(),
        user_id: chance.pick(users),
        // Some reactions have outlived their message.
        message_id: chance.chance(0.05) ? chance.uuid() : id,
        name: chance.pick(['thumbs_up', 'tada', 'heart', 'eyes']),
        created_at: times.created_at,
      })
    tick()
  }
}

/** What came with 0.9: automations and calendars. */
function fillPlans({chance, say, insert, users}: World): void {
  const owner = users[0]
  const calendar = chance.uuid()
  const own = {user_id: owner, ...nanoTimes(chance, newest - 30 * daySeconds)}
  insert('calendar', {id: calendar, name: 'Personal', color: '#4287f5', is_default: 1, ...own})
  for (let i = 0; i < 3; i++) {
    const at = own.created_at + BigInt(i) * 86_400_000_000_000n
    const event = {
      id: chance.uuid(),
      calendar_id: calendar,
      title: say.title(),
      start_at: at,
      all_day: 0,
      is_cancelled: 0,
    }
    insert('calendar_event', {...event, ...own})
    insert('calendar_event_attendee', {id: chance.uuid(), event_id: event.id, status: 'pending', ...own})
  }
  const automation = chance.uuid()
  const schedule = '{"prompt": "summarise the week", "rrule": "FREQ=WEEKLY"}'
  const runs = {last_run_at: own.created_at, next_run_at: own.created_at + 604_800_000_000_000n}
  insert('automation', {id: automation, name: say.title(), data: schedule, is_active: 1, ...runs, ...own})
  insert('automation_run', {id: chance.uuid(), automation_id: automation, status: 'success', ...own})
}

function nanoTimes(chance: Random, seconds: number): {created_at: bigint; updated_at: bigint} {
  const created = BigInt(seconds) * 1_000_000_000n + BigInt(chance.below(1_000_000_000))
  const isEdited = chance.chance(0.03)
  return {created_at: created, updated_at: isEdited ? created + 61_000_000_007n : created}
}
