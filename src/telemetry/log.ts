import {styleText} from 'node:util'
import type {Writable} from 'node:stream'
import pino from 'pino'
import {redact} from '../core/redact.ts'

/** What code that logs needs. The message is constant, facts are fields: `log.info({client, rows, ms}, 'cut applied')`. */
export type Log = Readonly<Record<'fatal' | 'error' | 'warn' | 'info' | 'debug' | 'trace', LogFunction>> & {
  /** @returns a log whose lines all carry `fields`. */
  child(fields: Fields): Log
}

/** Facts of one event. An error goes under `err`: its class, code, message, stack and causes are logged, no more. */
export type Fields = Readonly<Record<string, unknown>>
export type LogFunction = (fields: Fields, message: string) => void

export type LogOptions = {
  readonly level: 'fatal' | 'error' | 'warn' | 'info' | 'debug' | 'trace' | 'silent'
  /** Absent: pretty when `stream` is a terminal, else JSON. */
  readonly format?: 'json' | 'pretty' | undefined
  /** Where lines go; standard error unless a test says otherwise. */
  readonly stream?: Writable & {readonly isTTY?: boolean}
}

const secretFields = ['password', 'token', 'secret', 'authorization']

/**
 * A log of one JSON object a line, or of readable lines. Passwords in URLs are hidden in every line, wherever they
 * come from; what an error carries besides its message (a row, a statement) is left out.
 */
export function createLog({level, format, stream = process.stderr}: LogOptions): Log {
  const isPretty = (format ?? (stream.isTTY === true ? 'pretty' : 'json')) === 'pretty'
  const write = (line: string) => {
    const safe = redact(line)
    stream.write(isPretty ? prettyLine(safe, stream) : safe)
  }
  return pino(
    {
      level,
      base: null,
      timestamp: pino.stdTimeFunctions.isoTime,
      messageKey: 'msg',
      formatters: {level: label => ({level: label})},
      serializers: {err: errorFacts},
      redact: {paths: secretFields.flatMap(field => [field, `*.${field}`]), censor: '***'},
    },
    {write},
  )
}

/** A log that keeps nothing. */
export const silentLog: Log = createLog({level: 'silent'})

type ErrorFacts = {
  readonly type: string
  readonly code?: string
  readonly message: string
  readonly stack?: string
  readonly cause?: ErrorFacts
}

// Not pino's own: it copies every property, and a driver's error carries the row it failed on.
function errorFacts(error: unknown): ErrorFacts {
  if (!(error instanceof Error)) return {type: typeof error, message: String(error)}
  return {
    type: error.name,
    ...('code' in error && {code: String(error.code)}),
    message: error.message,
    ...(error.stack !== undefined && {stack: error.stack}),
    ...(error.cause !== undefined && {cause: errorFacts(error.cause)}),
  }
}

const colours = {
  fatal: 'red',
  error: 'red',
  warn: 'yellow',
  info: 'green',
  debug: 'blue',
  trace: 'gray',
} as const

function prettyLine(line: string, stream: Writable): string {
  const {time, level, msg, err, ...fields} = JSON.parse(line) as Record<string, unknown>
  const paint = (style: Parameters<typeof styleText>[0], text: string) => styleText(style, text, {stream})
  const colour = colours[level as keyof typeof colours]
  const facts = Object.entries(fields).map(([name, value]) => paint('gray', `${name}=`) + shown(value))
  const parts = [
    paint('gray', String(time).slice(11, 23)),
    paint(colour, String(level).toUpperCase().padEnd(5)),
    String(msg),
    ...facts,
  ]
  return `${parts.join(' ')}\n${err === undefined ? '' : prettyError(err as ErrorFacts)}`
}

function prettyError({type, code, message, stack, cause}: ErrorFacts): string {
  const text = stack ?? [type, code, message].filter(part => part !== undefined).join(' ')
  return `${text.replace(/^/gm, '    ')}\n${cause === undefined ? '' : `    caused by:\n${prettyError(cause)}`}`
}

function shown(value: unknown): string {
  return typeof value === 'string' && /^[^\s="]+$/.test(value) ? value : JSON.stringify(value)
}
