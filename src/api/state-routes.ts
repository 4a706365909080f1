import type {FastifyReply} from 'fastify'
import {z} from 'zod'
import {parseClientName} from '../core/client-name.ts'
import {clientOfKey, type Document} from '../state/documents.ts'
import type {Expected} from '../state/version.ts'
import type {ApiPorts} from './ports.ts'
import {refusals} from './problem.ts'
import {access, callerOf, type App} from './route.ts'
import {changeOf, DocumentBody, Json, problems, SettingsBody, WrittenBody} from './schemas.ts'
import type {Caller} from './tokens.ts'

const Key = z
  .string()
  .min(1)
  .refine(key => Buffer.byteLength(key) <= 512, 'must not be longer than 512 bytes')
  .refine(key => !key.includes('\0'), 'must not contain NUL')
  .refine(key => key.isWellFormed(), 'must be valid Unicode')

const IfMatch = z.object({
  'if-match': z
    .string()
    .regex(/^(\*|"\d{1,18}")$/, 'must be "VERSION" or *')
    .optional()
    .meta({description: 'Write only when the document has this version, `"3"`, or exists, `*`; else 412.'}),
})

/** What the settings of a deployment say and a body may repeat, but not change. */
const readOnly = ['client_name', 'schema_name', 'status_reason'] as const

/** Control documents. `deployment.<client>` is a deployment's settings, every other key a free JSON value. */
export function stateRoutes(app: App, {state}: ApiPorts): void {
  const reading = {
    ...access('read', 'A control document, or a deployment’s settings: `deployment.<client>`.', 'state'),
    response: {200: DocumentBody, ...problems},
  }
  const writing = {
    ...access('operate', 'Writes a document; of a deployment’s settings what is named.', 'state'),
    headers: IfMatch,
    response: {200: WrittenBody, ...problems},
  }

  const read = async (key: string, reply: FastifyReply) => {
    const found = await state.get(checked(key))
    if (!found) throw refusals.noThing(`document ${JSON.stringify(key)}`)
    const {isCached, ...document} = found
    void reply.header('etag', `"${document.version}"`)
    return bodyOf(document, isCached)
  }

  const write = async (
    {key, value, ifMatch, caller}: {key: string; value: unknown; ifMatch: string | undefined; caller: Caller},
    reply: FastifyReply,
  ) => {
    const expected = expectedOf(ifMatch)
    const change = async () => {
      const {report, ...settings} = await settingsIn(state, key, value)
      return await state.change(key, changeOf(settings), expected, caller, report)
    }
    const written =
      clientOfKey(checked(key)) === undefined
        ? await state.put(key, storable(value), expected, caller)
        : await change()
    void reply.header('etag', `"${written.version}"`)
    return {success: true as const, ...bodyOf(written, false)}
  }

  app.get(
    '/api/v1/state/:key',
    {config: {access: 'read'}, schema: {...reading, params: z.object({key: Key})}},
    (request, reply) => read(request.params.key, reply),
  )
  app.get(
    '/api/v1/state',
    {config: {access: 'read'}, schema: {...reading, querystring: z.object({key: Key})}},
    (request, reply) => read(request.query.key, reply),
  )
  app.put(
    '/api/v1/state/:key',
    {
      config: {access: 'operate'},
      // No body at all is validated as if it were null, which is a value.
      preValidation: ({body}, _reply, done) => {
        done((body as unknown) === undefined ? refusals.invalid('the body is missing') : undefined)
      },
      schema: {
        ...writing,
        params: z.object({key: Key}),
        body: Json.meta({description: '`{value}`, which may repeat `key`; any other JSON is the value.'}),
      },
    },
    (request, reply) => {
      const {key} = request.params
      const value = valueIn(key, request.body)
      return write({key, value, ifMatch: request.headers['if-match'], caller: callerOf(request)}, reply)
    },
  )
  app.put(
    '/api/v1/state',
    {
      config: {access: 'operate'},
      schema: {...writing, body: z.strictObject({key: Key, value: Json})},
    },
    (request, reply) =>
      write({...request.body, ifMatch: request.headers['if-match'], caller: callerOf(request)}, reply),
  )
}

/** The value in a body: what stands under `value` when there is nothing else but `key`, otherwise the body itself. */
function valueIn(key: string, body: unknown): unknown {
  if (typeof body !== 'object' || body === null || Array.isArray(body) || !('value' in body)) return body
  const {value, ...others} = body as {value: unknown} & Record<string, unknown>
  const names = Object.keys(others)
  if (names.length === 0) return value
  if (names.length > 1 || names[0] !== 'key') return body
  if (others.key !== key) throw refusals.invalid('the key in the body is another than the one in the path')
  return value
}

function checked(key: string): string {
  const client = clientOfKey(key)
  if (client !== undefined) parseClientName(client)
  return key
}

/** @throws {RefusedError} for text that Postgres cannot hold. */
function storable(value: unknown): unknown {
  const text = JSON.stringify(value)
  // A backslash before it is itself written as two.
  if (/(?<!\\)(?:\\\\)*\\u(?:0000|d[89a-f])/.test(text))
    throw refusals.invalid('the value has text with NUL or half a character, which Postgres cannot hold')
  return value
}

/** The changes in a value for `deployment.<client>`. A value that was read may be sent back whole. */
async function settingsIn(state: ApiPorts['state'], key: string, value: unknown) {
  if (typeof value !== 'object' || value === null || Array.isArray(value))
    throw refusals.invalid('the settings of a deployment are an object')
  const given: Record<string, unknown> = {...value}
  const repeated = readOnly.filter(name => name in given)
  const keepsStatus = 'status' in given
  if (repeated.length > 0 || keepsStatus) {
    const known = (await state.get(key))?.value as Record<string, unknown> | undefined
    for (const name of repeated) {
      if (known && given[name] !== known[name])
        throw refusals.invalid(`${name} cannot be changed here`, [{where: name, message: 'is read-only'}])
      Reflect.deleteProperty(given, name)
    }
    if (known && given['status'] === known['status']) Reflect.deleteProperty(given, 'status')
  }
  const parsed = SettingsBody.safeParse(given)
  if (parsed.success) return parsed.data
  const errors = parsed.error.issues.map(({path, message}) => ({
    where: ['value', ...path].join('.'),
    message,
  }))
  throw refusals.invalid(`${errors[0]?.where ?? 'value'}: ${errors[0]?.message ?? 'is not valid'}`, errors)
}

function expectedOf(ifMatch: string | undefined): Expected {
  if (ifMatch === undefined) return undefined
  return ifMatch === '*' ? 'any' : BigInt(ifMatch.slice(1, -1))
}

function bodyOf({key, value, version, updatedAt}: Document, cached: boolean) {
  return {key, value, version, cached, updated_at: updatedAt}
}
