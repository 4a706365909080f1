import {isIP} from 'node:net'
import {homedir} from 'node:os'
import {join} from 'node:path'
import {Secret} from './secret.ts'

// The kinds a setting can be of: how its text is read, and how that is told to a person.

/** One setting: its name in the environment, what it is for, and how its text becomes a value. */
export type Setting<T> = {
  readonly env: string
  /** Other names for the same variable, kept for scripts that use them. */
  readonly aliases: readonly string[]
  readonly about: string
  /** What may be written, for help and docs: `duration, at least 2s`. */
  readonly accepts: string
  /** The default as a person would write it; empty when there is none. */
  readonly standard: string
  /** True when the value must never be printed. */
  readonly secret: boolean
  /** @throws Error whose message completes "NAME is …: ", without repeating the text. */
  readonly read: (text: string) => T
  /** The value when nothing is set. */
  readonly absent: T
}

type Naming = {readonly aliases?: readonly string[]; readonly shownDefault?: string}
type Bounds = {readonly atLeast?: number; readonly atMost?: number}
type Span = {readonly atLeast?: string; readonly atMost?: string}

/** Free text, which may be left out. */
export function text(
  env: string,
  about: string,
  {aliases, shownDefault, pattern, shape}: Naming & {pattern?: RegExp; shape?: string} = {},
): Setting<string | undefined> {
  return {
    ...named(env, about, shape ?? 'text', aliases, shownDefault),
    read(text) {
      if (pattern && !pattern.test(text)) throw new Error(`expected ${shape ?? 'another form'}`)
      return text
    },
    absent: undefined,
  }
}

/** Text that never prints. */
export function secret(env: string, about: string): Setting<Secret | undefined> {
  return {...named(env, about, 'secret'), secret: true, read: text => new Secret(text), absent: undefined}
}

/** A URL of one of `protocols`, which never prints because it may carry a password. */
export function secretUrl(
  env: string,
  about: string,
  protocols: readonly string[],
): Setting<Secret | undefined> {
  const accepts = `secret URL, ${protocols.map(protocol => `${protocol}://`).join(' or ')}`
  return {
    ...named(env, about, accepts),
    secret: true,
    read(text) {
      assertUrl(text, protocols)
      return new Secret(text)
    },
    absent: undefined,
  }
}

/** A URL of one of `protocols` that holds no secret. */
export function url(
  env: string,
  about: string,
  standard: string,
  protocols: readonly string[],
): Setting<string> {
  const accepts = `URL, ${protocols.map(protocol => `${protocol}://`).join(' or ')}`
  return {
    ...named(env, about, accepts, [], standard),
    read(text) {
      assertUrl(text, protocols)
      return text
    },
    absent: standard,
  }
}

/** The path of a file or folder; `~` is the home folder, a relative path is relative to where the command runs. */
export function path(env: string, about: string, {shownDefault}: Naming = {}): Setting<string | undefined> {
  return {...named(env, about, 'path', [], shownDefault), read: absolutePath, absent: undefined}
}

/** Paths, separated by commas. */
export function paths(env: string, about: string): Setting<readonly string[]> {
  return {
    ...named(env, about, 'paths, separated by commas'),
    read: text => Object.freeze(listed(text).map(absolutePath)),
    absent: Object.freeze([]),
  }
}

/** Words, separated by commas. */
export function list(env: string, about: string): Setting<readonly string[]> {
  return {
    ...named(env, about, 'list, separated by commas'),
    read: text => Object.freeze(listed(text)),
    absent: Object.freeze([]),
  }
}

/** Networks as `address/bits`, or single addresses, separated by commas. */
export function networks(env: string, about: string, standard: string): Setting<readonly string[]> {
  const read = (text: string) => Object.freeze(listed(text).map(asNetwork))
  return {
    ...named(env, about, 'networks such as 10.0.0.0/8, separated by commas', [], standard),
    read,
    absent: read(standard),
  }
}

/** A length of time in milliseconds: `250ms`, `10s`, `5m`, `4h`, `30d`; a bare number is seconds. */
export function duration(env: string, about: string, standard: string, span: Span = {}): Setting<number> {
  const limits = [
    span.atLeast === undefined ? '' : `, at least ${span.atLeast}`,
    span.atMost === undefined ? '' : `, at most ${span.atMost}`,
  ].join('')
  const bounds = {
    ...(span.atLeast !== undefined && {atLeast: parseDuration(span.atLeast)}),
    ...(span.atMost !== undefined && {atMost: parseDuration(span.atMost)}),
  }
  return {
    ...named(env, about, `duration${limits}`, [], standard),
    read(text) {
      const ms = parseDuration(text)
      if (!isWithin(ms, bounds)) throw new Error(`expected a duration${limits}`)
      return ms
    },
    absent: parseDuration(standard),
  }
}

/** A number of bytes: `500MB`, `8GB`, `1.5TB`, in steps of 1024 as Postgres has them; a bare number is bytes. */
export function size(env: string, about: string): Setting<number | undefined> {
  return {...named(env, about, 'size such as 500MB or 8GB'), read: parseSize, absent: undefined}
}

/** A whole number within bounds; `undefined` as `standard` leaves it open. */
export function wholeNumber<D extends number | undefined>(
  env: string,
  about: string,
  standard: D,
  {atLeast, atMost, aliases, shownDefault}: Bounds & Naming = {},
): Setting<number | D> {
  const limits = [
    atLeast === undefined ? '' : `, at least ${atLeast}`,
    atMost === undefined ? '' : `, at most ${atMost}`,
  ]
  const accepts = `whole number${limits.join('')}`
  return {
    ...named(env, about, accepts, aliases, shownDefault ?? (standard === undefined ? '' : String(standard))),
    read(text) {
      const number = /^-?\d{1,15}$/.test(text) ? Number(text) : NaN
      if (
        !isWithin(number, {...(atLeast !== undefined && {atLeast}), ...(atMost !== undefined && {atMost})})
      ) {
        throw new Error(`expected a ${accepts}`)
      }
      return number
    },
    absent: standard,
  }
}

/** Yes or no. */
export function flag(env: string, about: string, standard: boolean): Setting<boolean> {
  return {
    ...named(env, about, 'true or false', [], String(standard)),
    read(text) {
      if (/^(true|yes|on|1)$/i.test(text)) return true
      if (/^(false|no|off|0)$/i.test(text)) return false
      throw new Error('expected true or false')
    },
    absent: standard,
  }
}

/** One of a few words. `synonyms` are read as the word they stand for. */
export function choice<const W extends string, D extends W | undefined>(
  env: string,
  about: string,
  words: readonly W[],
  standard: D,
  {synonyms = {}, shownDefault}: Naming & {synonyms?: Readonly<Record<string, W>>} = {},
): Setting<W | D> {
  const accepts = [...words, ...Object.keys(synonyms)].join(' | ')
  return {
    ...named(env, about, accepts, [], shownDefault ?? standard ?? ''),
    read(text) {
      const word = words.find(word => word === text) ?? synonyms[text]
      if (word === undefined) throw new Error(`expected ${accepts}`)
      return word
    },
    absent: standard,
  }
}

/** How many deletes of one table pass without a person: more than `rows` and more than `share` of it do not. */
export type DeleteGuard = {readonly rows: number; readonly share: number}

/** A delete guard such as `100,20%`, or `off`. */
export function deleteGuard(env: string, about: string, standard: string): Setting<DeleteGuard | 'off'> {
  return {
    ...named(env, about, 'ROWS,PERCENT% or off', [], standard),
    read: asGuard,
    absent: asGuard(standard),
  }
}

const unitsMs: Readonly<Record<string, number>> = {ms: 1, s: 1_000, m: 60_000, h: 3_600_000, d: 86_400_000}

/**
 * @returns milliseconds.
 * @throws Error when `text` is no duration.
 */
export function parseDuration(text: string): number {
  const [, amount, unit = 's'] = /^(\d{1,12}(?:\.\d{1,6})?)\s*(ms|s|m|h|d)?$/.exec(text) ?? []
  const unitMs = unitsMs[unit]
  if (amount === undefined || unitMs === undefined) {
    throw new Error('expected a duration such as 250ms, 10s, 5m, 4h or 30d')
  }
  return Math.round(Number(amount) * unitMs)
}

const sizeUnits = ['B', 'KB', 'MB', 'GB', 'TB']

function parseSize(text: string): number {
  const [, amount, unit = 'B'] = /^(\d{1,15}(?:\.\d{1,6})?)\s*([KMGT]?B)?$/i.exec(text) ?? []
  const bytes = Math.round(Number(amount) * 1024 ** sizeUnits.indexOf(unit.toUpperCase()))
  if (!(bytes >= 1) || !Number.isSafeInteger(bytes)) throw new Error('expected a size such as 500MB or 8GB')
  return bytes
}

function named(
  env: string,
  about: string,
  accepts: string,
  aliases: readonly string[] = [],
  standard = '',
): Pick<Setting<unknown>, 'env' | 'aliases' | 'about' | 'accepts' | 'standard' | 'secret'> {
  return {env, aliases, about, accepts, standard, secret: false}
}

function assertUrl(text: string, protocols: readonly string[]): void {
  const protocol = /^([a-z][a-z0-9+.-]*):\/\//i.exec(text)?.[1]?.toLowerCase()
  if (protocol === undefined || !protocols.includes(protocol)) {
    throw new Error(`expected a URL that begins with ${protocols.map(known => `${known}://`).join(' or ')}`)
  }
  // A Postgres URL is read where Postgres is reached (net/endpoint.ts), which knows forms that URL refuses.
  if (!protocol.startsWith('postgres') && !URL.canParse(text)) {
    throw new Error(
      'it is no URL; characters such as @ : / # ? % in a user or password must be percent-encoded',
    )
  }
}

function absolutePath(text: string): string {
  const expanded = text === '~' || text.startsWith('~/') ? join(homedir(), text.slice(1)) : text
  return join(expanded.startsWith('/') ? '/' : process.cwd(), expanded)
}

function listed(text: string): string[] {
  return text
    .split(',')
    .map(part => part.trim())
    .filter(part => part !== '')
}

function asNetwork(text: string): string {
  const [address = '', bits, ...rest] = text.split('/')
  const family = isIP(address)
  const width = family === 6 ? 128 : 32
  const prefix = bits === undefined ? width : /^\d{1,3}$/.test(bits) ? Number(bits) : NaN
  if (family === 0 || rest.length > 0 || !(prefix >= 0 && prefix <= width)) {
    throw new Error('expected networks such as 10.0.0.0/8 or fd00::/8, separated by commas')
  }
  return `${address}/${prefix}`
}

function asGuard(text: string): DeleteGuard | 'off' {
  if (text === 'off') return 'off'
  const [, rows, percent] = /^(\d{1,12})\s*,\s*(\d{1,3}(?:\.\d+)?)%$/.exec(text) ?? []
  if (rows === undefined || percent === undefined || Number(percent) > 100) {
    throw new Error('expected rows and percent such as 100,20%, or off')
  }
  return Object.freeze({rows: Number(rows), share: Number(percent) / 100})
}

function isWithin(number: number, {atLeast = -Infinity, atMost = Infinity}: Bounds): boolean {
  return number >= atLeast && number <= atMost
}
