import {spawn} from 'node:child_process'
import {randomUUID} from 'node:crypto'
import {once} from 'node:events'
import {existsSync} from 'node:fs'
import {createInterface} from 'node:readline'
import {DatabaseSync} from 'node:sqlite'
import {setImmediate as nextTurn, setTimeout as sleep} from 'node:timers/promises'
import {fileURLToPath} from 'node:url'
import {parseArgs} from 'node:util'
import {UsageError} from '../core/errors.ts'
import {actions, pickAction, type ActionName, type App, type Write} from './actions.ts'
import {random} from './random.ts'
import {phrasebook} from './text.ts'

/** How a writer behaves. */
export type WriterOptions = {
  readonly file: string
  readonly seed: number
  /** Actions a second; 0 for as fast as they go. */
  readonly rate: number
  /** Set on each new connection, as the app does; absent: the file's own is left. */
  readonly journalMode?: 'wal' | 'delete' | undefined
  /** Ends by itself after this many seconds. */
  readonly forSeconds?: number | undefined
  /** Mean length of a new chat's JSON (8,000). */
  readonly chatBytes?: number | undefined
  /** Reports every commit's time, not only the worst: for measuring. */
  readonly withTimes?: boolean | undefined
}

/** What happened in about a second. One is a line of JSON on the program's stdout. */
export type WriterReport = {
  /** Transactions committed. */
  readonly writes: number
  /** Transactions given up because of "database is locked". */
  readonly locked: number
  /** The longest time that one took from `begin` to the end of `commit`, or until it was given up. */
  readonly worst_ms: number
  /** Each one's time, with `withTimes`. */
  readonly times_ms?: readonly number[]
}

/** A writer in a process of its own. */
export type Writer = AsyncDisposable & {
  readonly pid: number | undefined
  /** The sum of all reports so far. */
  readonly totals: () => WriterReport
  /**
   * Ends it after the transaction in hand.
   *
   * @returns the totals, last report included.
   * @throws Error when the process failed.
   */
  readonly stop: () => Promise<WriterReport>
}

/** The app's pool opens connections anew; so does the writer, after this many actions. */
const connectionActions = 40

/** Starts the program of this file as a child process. It also ends when nobody reads its reports any more. */
export function startWriter(options: WriterOptions, onReport?: (report: WriterReport) => void): Writer {
  const {file, seed, rate, journalMode, forSeconds, chatBytes, withTimes} = options
  const args = [file, '--seed', String(seed), '--rate', String(rate)]
  if (journalMode !== undefined) args.push('--journal', journalMode)
  if (forSeconds !== undefined) args.push('--for', String(forSeconds))
  if (chatBytes !== undefined) args.push('--chat-bytes', String(chatBytes))
  if (withTimes === true) args.push('--times')
  const child = spawn(process.execPath, [fileURLToPath(import.meta.url), ...args], {
    stdio: ['ignore', 'pipe', 'inherit'],
  })
  let totals: WriterReport = {writes: 0, locked: 0, worst_ms: 0}
  createInterface({input: child.stdout}).on('line', line => {
    const report = JSON.parse(line) as WriterReport
    totals = {
      writes: totals.writes + report.writes,
      locked: totals.locked + report.locked,
      worst_ms: Math.max(totals.worst_ms, report.worst_ms),
    }
    onReport?.(report)
  })
  const closed = once(child, 'close')
  const stop = async () => {
    child.kill('SIGTERM')
    const [code] = (await closed) as [number | null]
    if (code !== 0)
      throw new Error(`the sample writer ended with ${code === null ? 'a signal' : `code ${code}`}`)
    return totals
  }
  return {
    pid: child.pid,
    totals: () => totals,
    stop,
    [Symbol.asyncDispose]: async () => {
      await stop()
    },
  }
}

/**
 * Changes the file until `signal` aborts or the time is over, and yields a report every second and at the end.
 *
 * @throws UsageError when there is no such file.
 */
export async function* writes(options: WriterOptions, signal: AbortSignal): AsyncGenerator<WriterReport> {
  if (!existsSync(options.file))
    throw new UsageError(`${options.file} does not exist`, 'Name an Open WebUI database.')
  // The seed repeats what is done, never an id: two writers, or one started twice, must not collide.
  const chance = {...random(options.seed), uuid: () => randomUUID()}
  const say = phrasebook(chance)
  const now = () => Math.floor(Date.now() / 1_000)
  const intervalMs = options.rate > 0 ? 1_000 / options.rate : 0
  const endsAt = performance.now() + (options.forSeconds ?? Infinity) * 1_000
  let tally = new Tally(options.withTimes === true)
  let dueAt = performance.now()
  let db = connect(options)
  try {
    for (let done = 0; !signal.aborted && performance.now() < endsAt;) {
      if (performance.now() >= dueAt) {
        if (++done % connectionActions === 0) {
          db.close()
          db = connect(options)
        }
        tally.add(act({db, chance, say, now, chatBytes: options.chatBytes ?? 8_000}, pickAction(chance)))
        // After a stall it goes on at its rate; a second of it is made up for at most.
        dueAt = Math.max(dueAt + intervalMs, performance.now() - 1_000)
      }
      if (performance.now() >= tally.endsAt) {
        yield tally.report()
        tally = new Tally(options.withTimes === true)
      }
      await pause(Math.min(dueAt, tally.endsAt, endsAt), signal)
    }
  } finally {
    db.close()
  }
  yield tally.report()
}

/** How one action went. */
export type Outcome = {
  readonly result: 'written' | 'locked' | 'nothing to do'
  /** From `begin` to the end of `commit`, or until it was given up. */
  readonly ms: number
}

/** Plans one action and runs it as one transaction. A locked database costs the action, as it does in the app. */
export function act(app: App, name: ActionName): Outcome {
  let beganAt = performance.now()
  const ms = () => Number((performance.now() - beganAt).toFixed(3))
  try {
    const planned = actions[name].plan(app)
    if (planned.length === 0) return {result: 'nothing to do', ms: 0}
    beganAt = performance.now()
    commit(app.db, planned)
    return {result: 'written', ms: ms()}
  } catch (cause) {
    if (!isLocked(cause)) throw cause
    return {result: 'locked', ms: ms()}
  }
}

/** One second's outcomes, as they come in. */
class Tally {
  readonly endsAt = performance.now() + 1_000
  readonly #times: number[] | undefined
  #writes = 0
  #locked = 0
  #worstMs = 0

  constructor(withTimes: boolean) {
    this.#times = withTimes ? [] : undefined
  }

  add({result, ms}: Outcome): void {
    if (result === 'nothing to do') return
    if (result === 'written') this.#writes++
    else this.#locked++
    this.#worstMs = Math.max(this.#worstMs, ms)
    this.#times?.push(ms)
  }

  report(): WriterReport {
    const times = this.#times === undefined ? {} : {times_ms: this.#times}
    return {writes: this.#writes, locked: this.#locked, worst_ms: this.#worstMs, ...times}
  }
}

function commit(db: DatabaseSync, planned: readonly Write[]): void {
  db.exec('begin')
  try {
    for (const [sql, ...values] of planned) db.prepare(sql).run(...values)
    db.exec('commit')
  } catch (cause) {
    if (db.isTransaction) db.exec('rollback')
    throw cause
  }
}

/** A connection with the pragmas that the app gives each of its own. */
function connect({file, journalMode}: WriterOptions): DatabaseSync {
  const db = new DatabaseSync(file, {timeout: 5_000, enableForeignKeyConstraints: false, readBigInts: true})
  try {
    if (journalMode !== undefined) db.exec(`pragma journal_mode = ${journalMode}`)
    if (journalMode === 'wal') db.exec('pragma synchronous = normal; pragma journal_size_limit = 67108864')
  } catch (cause) {
    // Someone is reading, so the mode cannot change now; the next connection tries again.
    if (!isLocked(cause)) throw cause
  }
  return db
}

/** SQLITE_BUSY in any of its extended forms. */
function isLocked(cause: unknown): boolean {
  return cause instanceof Error && 'errcode' in cause && (Number(cause.errcode) & 0xff) === 5
}

/** Waits until `until`; lets other work through even when that is already past. */
async function pause(until: number, signal: AbortSignal): Promise<void> {
  const waitMs = until - performance.now()
  if (waitMs < 1) return nextTurn()
  await sleep(waitMs, undefined, {signal}).catch((cause: unknown) => {
    if (!signal.aborted) throw cause
  })
}

function optionsOf(args: readonly string[]): WriterOptions {
  const {values, positionals} = parseArgs({
    args: [...args],
    allowPositionals: true,
    options: {
      seed: {type: 'string', default: '1'},
      rate: {type: 'string', default: '10'},
      for: {type: 'string'},
      journal: {type: 'string'},
      'chat-bytes': {type: 'string'},
      times: {type: 'boolean', default: false},
    },
  })
  const [file] = positionals
  if (file === undefined)
    throw new UsageError('which file to write to?', 'node src/sample/writer.ts FILE --rate 10')
  const {journal} = values
  if (journal !== undefined && journal !== 'wal' && journal !== 'delete')
    throw new UsageError(`--journal is wal or delete, not ${journal}`)
  return {
    file,
    seed: amount('seed', values.seed) ?? 1,
    rate: amount('rate', values.rate) ?? 10,
    forSeconds: amount('for', values.for),
    journalMode: journal,
    chatBytes: amount('chat-bytes', values['chat-bytes']),
    withTimes: values.times,
  }
}

function amount(name: string, text: string | undefined): number | undefined {
  if (text === undefined) return undefined
  const number = Number(text)
  if (Number.isFinite(number) && number >= 0) return number
  throw new UsageError(`--${name} is a number of at least 0, not ${text}`)
}

if (import.meta.main) {
  const stopping = new AbortController()
  const stop = () => {
    stopping.abort()
  }
  process.once('SIGTERM', stop)
  process.once('SIGINT', stop)
  // Nobody reads any more: whoever started us is gone.
  process.stdout.on('error', stop)
  for await (const report of writes(optionsOf(process.argv.slice(2)), stopping.signal))
    process.stdout.write(`${JSON.stringify(report)}\n`)
}
