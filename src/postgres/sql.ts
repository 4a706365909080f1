import pg from 'pg'

/**
 * A piece of SQL with its values. Interpolated into another statement it is spliced in, values and all; any other
 * interpolated value becomes a parameter.
 */
export class Fragment {
  readonly parts: readonly (string | {readonly value: unknown})[]

  constructor(parts: readonly (string | {readonly value: unknown})[]) {
    this.parts = parts
  }
}

/** A quoted name. */
export type Identifier = Fragment

/** A value to be sent as JSON text. */
export class Json {
  readonly text: string

  constructor(text: string) {
    this.text = text
  }
}

/** Runs one statement on whatever connection it is bound to. `` sql`…` `` is a statement, `sql('name')` a quoted name. */
export type Sql = {
  /**
   * Sends a statement in one round trip. Without values it may be several statements; the rows are the last one's.
   *
   * @returns its rows: int8 and xid8 as `bigint`, timestamptz as `Date`, json parsed, bytea as `Buffer`, numeric as
   * `string`, date and timestamp as `string`.
   */
  <R extends object = Record<string, unknown>>(
    strings: TemplateStringsArray,
    ...values: readonly unknown[]
  ): Promise<R[]>
  /** A quoted name, `sql('schema', 'table')` a qualified one. */
  (name: string, ...more: readonly string[]): Identifier
}

/** A transaction. It ends with the function it was given to; a statement sent later is refused. */
export type Tx = Sql & {
  /**
   * Sends `source` to a `copy … from stdin`, never faster than the server takes it. What it yields may be overwritten when it
   * is asked for more.
   *
   * When `source` throws or `signal` aborts, the COPY fails and the transaction can only be rolled back.
   *
   * @returns how many rows were copied.
   */
  copyFrom(statement: Fragment, source: AsyncIterable<Uint8Array>, signal?: AbortSignal): Promise<number>
  /**
   * Yields the output of a `copy … to stdout`. Nothing else may run on this transaction meanwhile. Leaving it before
   * its end gives the connection up: the transaction fails.
   */
  copyTo(statement: Fragment, signal?: AbortSignal): AsyncIterable<Buffer>
  /** Undoes what `work` did when it throws, and leaves the transaction usable. */
  savepoint<T>(work: () => Promise<T>): Promise<T>
}

/** How a transaction begins. */
export type BeginOptions = {
  readonly readOnly?: boolean
  readonly isolation?: 'repeatable read'
  /** Settings for this transaction alone, such as `{lock_timeout: '5s'}`; sent together with BEGIN. */
  readonly setLocal?: Readonly<Record<string, string>>
  /** Gives the connection up when it aborts, whatever is under way: nothing of the transaction is committed then. */
  readonly signal?: AbortSignal
}

/** What can open transactions. */
export type Begin = {
  /**
   * Runs `work` in a transaction: BEGIN and COMMIT are one round trip each.
   *
   * @throws what `work` threw, after rolling back.
   */
  begin<T>(work: (tx: Tx) => Promise<T>, options?: BeginOptions): Promise<T>
}

/** A connection of its own, outside the pool's sharing: for LISTEN and session locks. Closed, not reused, at the end. */
export type Connection = Tx &
  Begin &
  AsyncDisposable & {
    /** The backend's process id, as the server (or the pooler before it) gave it. */
    readonly pid: number
    /** Aborts when the connection is lost; its reason is the error. Also aborts when it is closed. */
    readonly lost: AbortSignal
    /** Calls `callback` for each notification on a channel that this connection listens to. */
    onNotify(callback: (channel: string, payload: string) => void): void
  }

/** Connections to one database. */
export type Pool = Sql &
  Begin &
  AsyncDisposable & {
    reserve(): Promise<Connection>
    /** Closes every connection: politely when they answer within a few seconds. */
    end(): Promise<void>
  }

/** SQL text with values, to be spliced into a statement. */
export function fragment(strings: TemplateStringsArray, ...values: readonly unknown[]): Fragment {
  const parts: (string | {readonly value: unknown})[] = []
  strings.forEach((text, i) => {
    parts.push(text)
    if (i >= values.length) return
    const value = values[i]
    if (value instanceof Fragment) parts.push(...value.parts)
    else parts.push({value})
  })
  return new Fragment(parts)
}

/** SQL text that we generated ourselves. Never give it anything that came from outside. */
export function raw(text: string): Fragment {
  return new Fragment([text])
}

/** A name, quoted; several make a qualified one. */
export function identifier(name: string, ...more: readonly string[]): Identifier {
  return new Fragment([[name, ...more].map(quoted).join('.')])
}

/** Fragments one after the other, with `separator` (SQL text of ours) between them. */
export function join(fragments: readonly Fragment[], separator = ', '): Fragment {
  return new Fragment(fragments.flatMap(({parts}, i) => (i === 0 ? parts : [separator, ...parts])))
}

/** Sends `value` as JSON. @throws TypeError when it cannot be written as JSON, for instance because it holds a bigint. */
export function json(value: unknown): Json {
  // TypeScript's type of `stringify` leaves out that it gives `undefined` for `undefined` and functions.
  const text = JSON.stringify(value) as string | undefined
  return new Json(text ?? 'null')
}

/** @returns the statement's text with $1, $2, … and the values they stand for. */
export function render({parts}: Fragment): {text: string; values: unknown[]} {
  let text = ''
  const values: unknown[] = []
  for (const part of parts) {
    if (typeof part === 'string') text += part
    else text += `$${values.push(toParameter(part.value))}`
  }
  return {text, values}
}

/** Makes the two faces of {@link Sql} out of a function that runs a statement. */
export function sqlOf(run: (statement: Fragment) => Promise<object[]>): Sql {
  const sql = (first: TemplateStringsArray | string, ...rest: readonly unknown[]) =>
    typeof first === 'string' ? identifier(first, ...(rest as string[])) : run(fragment(first, ...rest))
  return sql as Sql
}

// Beyond what a Date can hold lies what Postgres calls infinity; the outermost Dates stand for it both ways.
const FURTHEST_MS = 8.64e15

function toParameter(value: unknown): unknown {
  if (value === null || value === undefined) return null
  if (typeof value === 'string' || typeof value === 'boolean') return value
  if (typeof value === 'bigint') return String(value)
  if (typeof value === 'number') return Object.is(value, -0) ? '-0' : String(value)
  if (value instanceof Date) return instant(value)
  if (value instanceof Json) return value.text
  if (value instanceof Uint8Array) return Buffer.from(value.buffer, value.byteOffset, value.byteLength)
  if (Array.isArray(value)) return value.map(toParameter)
  if (value instanceof Fragment) throw new TypeError('a fragment cannot stand inside an array; join() them')
  throw new TypeError(
    `a ${typeof value} cannot be sent to Postgres; wrap it in json() if it is meant as JSON`,
  )
}

function instant(date: Date): string {
  if (date.getTime() === FURTHEST_MS) return 'infinity'
  if (date.getTime() === -FURTHEST_MS) return '-infinity'
  return date.toISOString()
}

function quoted(name: string): string {
  if (name === '' || name.includes('\0')) throw new TypeError('a name in SQL must not be empty or hold NUL')
  return pg.escapeIdentifier(name)
}

type Parse = (text: string) => unknown

// The driver's types of this function know the scalar types only.
const driverParser = pg.types.getTypeParser as (oid: number, format?: string) => Parse
const textArray = driverParser(1009) as (text: string) => (string | null)[]
const parseDate = driverParser(1184)
const asText: Parse = text => text

function parseInstant(text: string): Date {
  const parsed = parseDate(text)
  if (parsed instanceof Date) return parsed
  return new Date(text.startsWith('-') ? -FURTHEST_MS : FURTHEST_MS)
}

function arrayOf(parse: Parse): Parse {
  return text => textArray(text).map(item => (item === null ? null : parse(item)))
}

const parsers = new Map<number, Parse>([
  [20, BigInt], // int8
  [5069, BigInt], // xid8
  [1184, parseInstant], // timestamptz
  [1082, asText], // date: has no zone, so it is no instant
  [1114, asText], // timestamp: likewise
  [1186, asText], // interval
  [1016, arrayOf(BigInt)], // int8[]
  [1185, arrayOf(parseInstant)], // timestamptz[]
  [1182, textArray], // date[]
  [1115, textArray], // timestamp[]
  [1187, textArray], // interval[]
  [1231, textArray], // numeric[]
])

/** How values come back from the server; everything not listed is as the driver has it. */
export const types = {
  getTypeParser(oid: number, format?: 'text' | 'binary'): Parse {
    const own = format === 'binary' ? undefined : parsers.get(oid)
    return own ?? driverParser(oid, format)
  },
}
