import {once} from 'node:events'
import type {Socket} from 'node:net'
import {setTimeout as sleep} from 'node:timers/promises'
import pg from 'pg'
import {from as copyFromStream, to as copyToStream} from 'pg-copy-streams'
import {errorTypeOf} from '../core/errors.ts'
import {PatientSocket} from '../net/dial.ts'
import type {Endpoint} from '../net/endpoint.ts'
import {queryTypeOf, type PoolObserver} from './observe.ts'
import {
  render,
  sqlOf,
  types,
  type BeginOptions,
  type Connection,
  type Fragment,
  type Pool,
  type Tx,
} from './sql.ts'
import {ConnectionLostError, ServerTooOldError, translate, type During} from './sqlstate.ts'

/** How a pool behaves. */
export type ConnectOptions = {
  /** The most connections at once; more callers wait for a free one. */
  readonly max?: number
  /** Shown in pg_stat_activity. */
  readonly applicationName: string
  /** A statement (a COPY: its next step) not answered within this time loses its connection. Unset: no limit. */
  readonly answerWithinMs?: number
  /** Called whenever the server has answered, or has taken or sent a part of a COPY: it is alive. */
  readonly onAnswer?: () => void
  /** Told of each statement and of the pool's connections, for metrics. */
  readonly observer?: PoolObserver | undefined
}

const CONNECT_WITHIN_MS = 10_000
const CLOSE_WITHIN_MS = 3_000

const ignore = () => undefined

/** Makes a pool. Nothing is sent before its first use. No password, setting or statement name outlives a connection. */
export function connect(endpoint: Endpoint, options: ConnectOptions): Pool {
  const {applicationName, observer, max = 10} = options
  const clients = new Set<pg.Client>()

  class Client extends pg.Client {
    constructor() {
      super({
        host: endpoint.host,
        port: endpoint.port,
        user: endpoint.user,
        // A function, so that neither PGPASSWORD nor ~/.pgpass is asked when there is none.
        password: () => endpoint.password ?? '',
        database: endpoint.database,
        ssl: endpoint.ssl,
        sslnegotiation: 'postgres',
        stream: () => new PatientSocket(),
        // Not the pool's option of that name: that one also limits how long a caller waits for a busy pool.
        connectionTimeoutMillis: CONNECT_WITHIN_MS,
        keepAlive: true,
        keepAliveInitialDelayMillis: 10_000,
        types,
      })
      clients.add(this)
      const startedAt = performance.now()
      this.once('connect', () => {
        observer?.onStatement({type: 'connect', seconds: (performance.now() - startedAt) / 1_000})
      })
      this.once('end', () => clients.delete(this))
      // A lost connection fails its statement; without a listener the event would end the process.
      this.on('error', ignore)
    }

    // The driver would add PGOPTIONS and time limits, which poolers drop or refuse.
    getStartupConf(): Record<string, string> {
      return {user: endpoint.user, database: endpoint.database, application_name: applicationName}
    }
  }

  const pool = new pg.Pool({max, Client, idleTimeoutMillis: 30_000})
  pool.on('error', ignore)
  const count = () => {
    observer?.onPool({open: pool.totalCount, available: max - pool.totalCount + pool.idleCount})
  }
  pool.on('remove', count)

  let ending: Promise<void> | undefined
  const waiting = new Set<(reason: Error) => void>()
  const checkOut = async (): Promise<Session> => {
    const startedAt = performance.now()
    const checkedOut = pool.connect()
    // The driver's pool forgets whoever waits when it ends.
    const gaveUp = Promise.withResolvers<never>()
    waiting.add(gaveUp.reject)
    try {
      const client = await Promise.race([checkedOut, gaveUp.promise])
      count()
      return new Session(client, endpoint.display, {...options, onRelease: count})
    } catch (error) {
      checkedOut.then(client => {
        client.release(true)
      }, ignore)
      if (ending) throw error
      const translated = translate(error, 'connect', endpoint.display)
      const seconds = (performance.now() - startedAt) / 1_000
      observer?.onStatement({type: 'connect', seconds, error: errorTypeOf(translated)})
      throw translated
    } finally {
      waiting.delete(gaveUp.reject)
    }
  }

  const begin: Pool['begin'] = async (work, beginOptions) => {
    const session = await checkOut()
    try {
      return await transaction(session, work, beginOptions)
    } finally {
      session.release()
    }
  }

  const sql = sqlOf(async statement => {
    const session = await checkOut()
    try {
      return await session.run(statement, 'commit')
    } finally {
      session.release()
    }
  })

  const reserve = async (): Promise<Connection> => dedicated(await checkOut())

  const end = () =>
    (ending ??= (async () => {
      const closed = pool.end()
      for (const giveUp of waiting) giveUp(new Error('the pool was closed before a connection was free'))
      await atMost(CLOSE_WITHIN_MS, closed)
      for (const client of clients) client.connection.stream.destroy()
      // Whoever still holds a connection has just lost it and will give it back.
    })())

  return Object.assign(sql, {begin, reserve, end, [Symbol.asyncDispose]: end})
}

/**
 * @returns the server's version, such as 170010.
 * @throws {ServerTooOldError} before PostgreSQL 15.
 */
export async function requireServerVersion(sql: Pool | Tx): Promise<number> {
  const [row] = await sql<{number: number; name: string}>`
    select current_setting('server_version_num')::int as number, current_setting('server_version') as name`
  if (!row) throw new Error('the server did not say its version')
  if (row.number < 150_000) throw new ServerTooOldError(row.name)
  return row.number
}

/** One checked-out connection: takes one statement at a time and knows whether it may be used again. */
class Session {
  readonly #client: pg.PoolClient
  readonly #address: string
  readonly #answerWithinMs: number | undefined
  readonly onAnswer: () => void
  readonly #observer: PoolObserver | undefined
  readonly #onRelease: () => void
  #tail: Promise<unknown> = Promise.resolve()
  #broken = false

  constructor(
    client: pg.PoolClient,
    address: string,
    {
      answerWithinMs,
      onAnswer = ignore,
      observer,
      onRelease,
    }: Omit<ConnectOptions, 'applicationName'> & {readonly onRelease: () => void},
  ) {
    this.#client = client
    this.#address = address
    this.#answerWithinMs = answerWithinMs
    this.onAnswer = onAnswer
    this.#observer = observer
    this.#onRelease = onRelease
  }

  get client(): pg.PoolClient {
    return this.#client
  }

  async run(statement: Fragment, during: During = 'transaction'): Promise<object[]> {
    const {text, values} = render(statement)
    const result = await this.exclusively(text, () => this.answered(this.#client.query(text, values)), during)
    // Several statements in one message give several results, which the driver's types leave out.
    const last = [result as pg.QueryResult<object> | pg.QueryResult<object>[]].flat().at(-1)
    return last?.rows ?? []
  }

  /** Sends text of our own as one message. @returns the command tag of its last statement. */
  async command(text: string, during: During): Promise<string> {
    const result = await this.exclusively(text, () => this.answered(this.#client.query(text)), during)
    return [result as pg.QueryResult | pg.QueryResult[]].flat().at(-1)?.command ?? ''
  }

  /** One after the other, in the order of the calls: siblings that share a transaction do not mix their messages. */
  async exclusively<T>(text: string, work: () => Promise<T>, during: During): Promise<T> {
    let startedAt = 0
    const turn = this.#tail.then(() => {
      startedAt = performance.now()
      return work()
    })
    this.#tail = turn.catch(ignore)
    try {
      const result = await turn
      this.#observe(text, startedAt)
      return result
    } catch (error) {
      const translated = translate(error, during, this.#address)
      if (translated instanceof ConnectionLostError) this.#broken = true
      this.#observe(text, startedAt, errorTypeOf(translated))
      throw translated
    }
  }

  #observe(text: string, startedAt: number, error?: string): void {
    if (this.#observer === undefined) return
    const seconds = (performance.now() - startedAt) / 1_000
    this.#observer.onStatement({type: queryTypeOf(text), seconds, ...(error !== undefined && {error})})
  }

  /** Waits for an answer, but no longer than the pool's limit: a dead network otherwise says nothing for minutes. */
  async answered<T>(answer: Promise<T>): Promise<T> {
    const ms = this.#answerWithinMs
    const timer =
      ms === undefined
        ? undefined
        : setTimeout(() => {
            this.cut(new Error(`Connection terminated: no answer within ${ms} ms`))
          }, ms)
    try {
      const given = await answer
      this.onAnswer()
      return given
    } finally {
      clearTimeout(timer)
    }
  }

  /** Gives the connection up at once; statements under way fail. */
  cut(reason: Error): void {
    this.#broken = true
    this.#client.connection.stream.destroy(reason)
  }

  release(): void {
    // A connection still within a transaction must not reach the next caller.
    const isClean = !this.#broken && this.#client.getTransactionStatus() === 'I'
    this.#client.release(!isClean)
    this.#onRelease()
  }

  async close(): Promise<void> {
    this.#broken = true
    const {stream} = this.#client.connection
    const ended = once(this.#client, 'end')
    this.#client.release(true)
    this.#onRelease()
    // A connection that was lost has ended already, and says so only once.
    if (!stream.destroyed) await atMost(CLOSE_WITHIN_MS, ended)
    stream.destroy()
  }
}

/**
 * Waits until `work` has settled, but not longer than `ms`. The timer keeps the process alive meanwhile: when nothing
 * else does, an await that nobody settles ends it without a word.
 */
async function atMost(ms: number, work: Promise<unknown>): Promise<void> {
  const settled = new AbortController()
  const isSettled = work.catch(ignore).then(() => {
    settled.abort()
  })
  await Promise.race([isSettled, sleep(ms, undefined, {signal: settled.signal}).catch(ignore)])
}

async function transaction<T>(
  session: Session,
  work: (tx: Tx) => Promise<T>,
  options: BeginOptions = {},
): Promise<T> {
  const {signal} = options
  signal?.throwIfAborted()
  const scope = {isOver: false}
  const giveUp = () => {
    session.cut(
      signal?.reason instanceof Error ? signal.reason : new Error('Connection terminated: given up'),
    )
  }
  signal?.addEventListener('abort', giveUp)
  let tag: string
  let result: T
  try {
    await session.command(beginText(options), 'transaction')
    try {
      result = await work(txOf(session, scope))
    } catch (error) {
      scope.isOver = true
      // A failed rollback leaves a connection that is not clean; `release` sees that and drops it.
      await session.command('rollback', 'transaction').catch(ignore)
      throw error
    }
    scope.isOver = true
    tag = await session.command('commit', 'commit')
  } finally {
    signal?.removeEventListener('abort', giveUp)
  }
  // What Postgres answers when an error in the transaction was caught and forgotten.
  if (tag === 'ROLLBACK') throw new Error('the transaction was rolled back: a statement in it had failed')
  return result
}

function beginText({isolation, readOnly, setLocal = {}}: BeginOptions): string {
  let text = 'begin'
  if (isolation) text += ` isolation level ${isolation}`
  if (readOnly) text += ' read only'
  const settings = Object.entries(setLocal).map(
    ([name, value]) => `set_config(${pg.escapeLiteral(name)}, ${pg.escapeLiteral(value)}, true)`,
  )
  return settings.length === 0 ? text : `${text}; select ${settings.join(', ')}`
}

function txOf(session: Session, scope: {isOver: boolean}): Tx {
  let savepoints = 0
  const alive = () => {
    if (scope.isOver) throw new Error('the transaction has ended; this statement came after it')
  }
  const sql = sqlOf(async statement => {
    alive()
    return session.run(statement)
  })
  return Object.assign(sql, {
    async copyFrom(statement: Fragment, source: AsyncIterable<Uint8Array>, signal?: AbortSignal) {
      alive()
      return session.exclusively('copy', () => copyFrom(session, statement, source, signal), 'transaction')
    },
    copyTo(statement: Fragment, signal?: AbortSignal) {
      alive()
      return copyTo(session, statement, signal)
    },
    async savepoint<T>(work: () => Promise<T>): Promise<T> {
      alive()
      const name = `owsync_${++savepoints}`
      await session.command(`savepoint ${name}`, 'transaction')
      let result: T
      try {
        result = await work()
      } catch (error) {
        await session.command(`rollback to ${name}; release ${name}`, 'transaction')
        throw error
      }
      await session.command(`release ${name}`, 'transaction')
      return result
    },
  })
}

function dedicated(session: Session): Connection {
  const {client} = session
  const scope = {isOver: false}
  const lost = new AbortController()
  const give = (reason: unknown) => {
    lost.abort(translate(reason, 'transaction', ''))
  }
  client.once('error', give)
  client.once('end', () => {
    give(new Error('Connection terminated'))
  })
  let closing: Promise<void> | undefined
  let transactions: Promise<unknown> = Promise.resolve()
  // The driver knows the process id from the start of the session; its types do not.
  const {processID} = client as unknown as {processID: number | null}
  return Object.assign(txOf(session, scope), {
    pid: processID ?? 0,
    lost: lost.signal,
    begin<T>(work: (tx: Tx) => Promise<T>, options?: BeginOptions): Promise<T> {
      // One connection has one transaction at a time: the next one waits for it.
      const turn = transactions.then(() => transaction(session, work, options))
      transactions = turn.catch(ignore)
      return turn
    },
    onNotify(callback: (channel: string, payload: string) => void) {
      client.on('notification', ({channel, payload}) => {
        callback(channel, payload ?? '')
      })
    },
    [Symbol.asyncDispose]() {
      scope.isOver = true
      return (closing ??= session.close())
    },
  })
}

async function copyFrom(
  session: Session,
  statement: Fragment,
  source: AsyncIterable<Uint8Array>,
  signal: AbortSignal | undefined,
): Promise<number> {
  signal?.throwIfAborted()
  const stream = copyFromStream(textOf(statement), {highWaterMark: 1 << 18})
  // The stream reports a server's error as an event and nothing else, so each wait below can be interrupted by it.
  // Not by `Promise.race` with one long-lived promise: that one would hold every chunk until the end.
  let interrupt: (reason: unknown) => void = () => undefined
  let failure: {readonly reason: unknown} | undefined
  const server = {hasRefused: false}
  const fail = (reason: unknown) => {
    failure ??= {reason}
    interrupt(reason)
  }
  const orFailure = <T>(work: Promise<T>): Promise<T> =>
    new Promise((resolve, reject) => {
      interrupt = reject
      work.then(resolve, reject)
      if (failure) interrupt(failure.reason)
    })
  const abort = () => {
    fail(signal?.reason)
  }
  stream.on('error', error => {
    server.hasRefused = true
    fail(error)
  })
  signal?.addEventListener('abort', abort)
  session.client.query(stream)
  const {stream: socket} = (session.client as unknown as {connection: {stream: Socket}}).connection

  const chunks = source[Symbol.asyncIterator]()
  try {
    for (;;) {
      const next = await orFailure(chunks.next())
      if (next.done === true) break
      // One chunk at a time: waiting for each write is the back-pressure.
      await session.answered(orFailure(written(stream, next.value, socket)))
    }
    await session.answered(orFailure(new Promise<void>(resolve => stream.end(resolve))))
    return stream.rowCount
  } catch (error) {
    if (!server.hasRefused) await failCopy(stream, session)
    const closed = Promise.resolve(chunks.return?.()).catch(ignore)
    // A source that hangs is why there is a signal: an aborted one closes when it can.
    if (!signal?.aborted) await closed
    throw error
  } finally {
    signal?.removeEventListener('abort', abort)
  }
}

type CopyIn = ReturnType<typeof copyFromStream>

/** Resolves once nobody refers to `chunk` any more. */
function written(stream: CopyIn, chunk: Uint8Array, socket: Socket): Promise<void> {
  return new Promise((resolve, reject) => {
    const settle = (error: Error | null | undefined) => {
      if (error) reject(error)
      else resolve()
    }
    stream.write(chunk, error => {
      // A small one is called written while it waits for its turn: whatever follows it is written after it.
      if (error || socket.writableLength === 0) settle(error)
      else socket.write('', settle)
    })
  })
}

/** Sends CopyFail and waits until the server has taken note, so that the connection takes the next statement. */
async function failCopy(stream: CopyIn, session: Session): Promise<void> {
  const closed = new Promise(resolve => stream.once('close', resolve))
  // The reason goes into the server's log, so it says nothing about the rows.
  stream.destroy(new Error('the source of the rows failed'))
  const timer = setTimeout(() => {
    session.cut(new Error('Connection terminated: the server did not acknowledge the end of a COPY'))
  }, CLOSE_WITHIN_MS)
  await closed
  clearTimeout(timer)
}

async function* copyTo(
  session: Session,
  statement: Fragment,
  signal: AbortSignal | undefined,
): AsyncGenerator<Buffer> {
  signal?.throwIfAborted()
  const turn = Promise.withResolvers<undefined>()
  const started = Promise.withResolvers<undefined>()
  const whole = session.exclusively(
    'copy',
    () => {
      started.resolve(undefined)
      return turn.promise
    },
    'transaction',
  )
  whole.catch(ignore)
  await started.promise

  const stream = copyToStream(textOf(statement))
  // It can still fail after its reader has left.
  stream.on('error', ignore)
  const cut = () => {
    session.cut(new Error('Connection terminated: the copy was left before its end'))
  }
  signal?.addEventListener('abort', cut)
  let isComplete = false
  try {
    session.client.query(stream)
    for await (const chunk of stream as AsyncIterable<Buffer>) {
      session.onAnswer()
      yield chunk
    }
    isComplete = true
    turn.resolve(undefined)
  } catch (error) {
    isComplete = error instanceof pg.DatabaseError
    turn.reject(signal?.aborted ? signal.reason : error)
    await whole
  } finally {
    signal?.removeEventListener('abort', cut)
    // The rest of the output is still on its way and has nobody to read it.
    if (!isComplete) cut()
    turn.resolve(undefined)
  }
}

function textOf(statement: Fragment): string {
  const {text, values} = render(statement)
  if (values.length > 0) throw new TypeError('COPY takes no parameters')
  return text
}
