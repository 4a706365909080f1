import {UsageError} from './errors.ts'

/**
 * What a client is called outside (`name`, shown as it was first given) and in Postgres (`schema`).
 * Two names with the same schema name the same client: `chat.acme.com`, `chat-acme-com`, `chat_acme_com`.
 */
export type ClientName = {readonly name: string; readonly schema: string}

/** Postgres cuts identifiers after this many bytes; names are ASCII, so bytes are characters. */
export const LONGEST_CLIENT_NAME = 63

const pattern = /^[a-z0-9][a-z0-9._-]{0,61}[a-z0-9]$/

// Schemas that Postgres, Supabase or its usual extensions own, or that we do. A client called like one of them would
// be mirrored into it.
const reserved = new Set([
  'auth',
  'cron',
  'dbdev',
  'extensions',
  'graphql',
  'graphql_public',
  'information_schema',
  'net',
  'pgbouncer',
  'pgmq',
  'pgmq_public',
  'pgsodium',
  'pgsodium_masks',
  'pgtle',
  'public',
  'realtime',
  'repack',
  'storage',
  'supabase_functions',
  'supabase_migrations',
  'sync_metadata',
  'tiger',
  'tiger_data',
  'topology',
  'vault',
])

/**
 * Reads a client name as a person types it.
 *
 * @throws {UsageError} naming the rule that `text` breaks and, where one exists, a name that would do.
 */
export function parseClientName(text: string): ClientName {
  if (!pattern.test(text))
    throw new UsageError(`${quoted(text)} is not a client name: ${faultOf(text)}`, nextFor(text))
  const schema = schemaNameOf(text)
  if (isReserved(schema)) {
    throw new UsageError(
      `${quoted(text)} is not a client name: Postgres or Supabase owns a schema of that name`,
      `Use another name, for example "client-${text.replace(/^pg_/, '')}".`,
    )
  }
  return {name: text, schema}
}

/** @returns true when both name the same client, however they are punctuated. */
export function isSameClient(a: string, b: string): boolean {
  return schemaNameOf(a) === schemaNameOf(b)
}

function schemaNameOf(name: string): string {
  return name.replace(/[.-]/g, '_')
}

function isReserved(schema: string): boolean {
  return schema.startsWith('pg_') || reserved.has(schema)
}

function faultOf(text: string): string {
  if (text === '') return 'it is empty'
  if (text.length > LONGEST_CLIENT_NAME)
    return `it has ${text.length} characters, more than ${LONGEST_CLIENT_NAME}`
  if (text.length < 2) return 'it has one character, fewer than two'
  if (/[^a-z0-9._-]/.test(text)) return 'only a-z, 0-9, "-", "_" and "." may be in it'
  return 'it must begin and end with a letter or digit'
}

function nextFor(text: string): string {
  const suggestion = text
    .toLowerCase()
    .replace(/[^a-z0-9._-]+/g, '-')
    .slice(0, LONGEST_CLIENT_NAME)
    .replace(/^[._-]+|[._-]+$/g, '')
  if (pattern.test(suggestion) && !isReserved(schemaNameOf(suggestion)))
    return `Did you mean "${suggestion}"?`
  return `Use 2 to ${LONGEST_CLIENT_NAME} characters of a-z, 0-9, "-", "_" and ".".`
}

function quoted(text: string): string {
  return JSON.stringify(text.length > 80 ? `${text.slice(0, 80)}…` : text)
}
