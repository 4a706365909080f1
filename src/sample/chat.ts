import type {Random} from './random.ts'
import type {Row} from './rows.ts'
import {asciiJson, type Passage, type Phrasebook} from './text.ts'

/** The models that chats were held with. */
export const models = ['llama3.1:8b', 'gemma3:27b', 'qwen2.5-coder:14b', 'gpt-4o', 'my-assistant']

/** One turn of a chat. */
export type ChatMessage = {
  readonly id: string
  readonly role: 'user' | 'assistant'
  readonly content: Passage
  /** Unix seconds. */
  readonly at: number
  readonly model: string
}

/** A chat as the app keeps it: its JSON, and the same messages one by one for the table `chat_message`. */
export type Chat = {
  readonly id: string
  readonly user: string
  readonly title: string
  readonly json: string
  readonly messages: readonly ChatMessage[]
  readonly at: number
}

/** What a chat is to be: whose, when (Unix seconds), and about how long its JSON. */
export type ChatWish = {
  readonly user: string
  readonly at: number
  /** Mean; the length is log-normal around it, from a seventh to 3.4 times. */
  readonly bytes: number
  /** What the user says first; anything when absent. */
  readonly opening?: Passage | undefined
}

/** Content stands twice in a chat: by message id under `history`, and in order under `messages`. */
export function composeChat(
  chance: Random,
  say: Phrasebook,
  {user, at, bytes: mean, opening}: ChatWish,
): Chat {
  const target = Math.min(3.4 * mean, Math.max(mean / 7, chance.logNormal(mean, 0.6)))
  const model = chance.pick(models)
  const title = say.title()
  const messages: ChatMessage[] = []
  let bytes = 450
  while (bytes < target || messages.length % 2 === 1) {
    const role = messages.length % 2 === 0 ? 'user' : 'assistant'
    const wanted = role === 'user' ? 60 + chance.below(300) : 250 + chance.below(1_800)
    const usual = say.passage(Math.max(40, Math.min(wanted, (target - bytes) / 2 - 700)))
    const content = messages.length === 0 ? (opening ?? usual) : usual
    messages.push({id: chance.uuid(), role, content, at: at + messages.length * 20, model})
    bytes += 2 * (content.escaped.length + (role === 'user' ? 270 : 480))
  }
  const bodies = messages.map((message, i) => messageJson(message, messages[i - 1]?.id, messages[i + 1]?.id))
  const byId = messages.map(({id}, i) => `"${id}": ${bodies[i] ?? ''}`).join(', ')
  const current = messages.at(-1)?.id ?? ''
  const json =
    `{"id": "", "title": ${asciiJson(title)}, "models": ["${model}"], "params": {}, ` +
    `"history": {"messages": {${byId}}, "currentId": "${current}"}, "messages": [${bodies.join(', ')}], ` +
    `"tags": [], "timestamp": ${at}000, "files": []}`
  return {id: chance.uuid(), user, title, json, messages, at}
}

/** The row of `chat_message` for one message (releases since 0.8). */
export function chatMessageRow(
  chat: Pick<Chat, 'id' | 'user'>,
  {id, role, content, at, model}: ChatMessage,
): Row {
  const none = 'null'
  return {
    id: `${chat.id}-${id}`,
    chat_id: chat.id,
    user_id: chat.user,
    role,
    content: `"${content.escaped}"`,
    output: none,
    model_id: role === 'assistant' ? model : undefined,
    files: none,
    sources: none,
    embeds: none,
    done: 1,
    status_history: none,
    error: none,
    usage: role === 'assistant' ? asciiJson({prompt_tokens: id.length, completion_tokens: 170}) : none,
    created_at: at,
    updated_at: at,
  }
}

function messageJson(message: ChatMessage, parent: string | undefined, child: string | undefined): string {
  const {id, role, content, at, model} = message
  const head =
    `{"id": "${id}", "parentId": ${parent === undefined ? 'null' : `"${parent}"`}, ` +
    `"childrenIds": [${child === undefined ? '' : `"${child}"`}], "role": "${role}", "content": "${content.escaped}", `
  if (role === 'user') return `${head}"timestamp": ${at}, "models": ["${model}"]}`
  const usage = `{"response_token/s": 49.42, "total_duration": 1802822648, "prompt_tokens": 374, "completion_tokens": ${content.plain.length}}`
  return `${head}"model": "${model}", "modelName": "${model}", "modelIdx": 0, "userContext": null, "timestamp": ${at}, "done": true, "usage": ${usage}}`
}
