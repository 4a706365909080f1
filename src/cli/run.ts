import type {Config, Env} from '../config/config.ts'
import {SyncError} from '../core/errors.ts'
import {columnsOf, progressOn} from '../telemetry/progress.ts'
import {CancelledError, questions} from './ask.ts'
import type {Context} from './command.ts'
import {commands, groups} from './commands.ts'
import {parse, type CommandList, type Screen} from './parse.ts'
import {failureOf, failureText} from './report.ts'
import {version} from './version.ts'

/** The process as a command line sees it: its streams, and the signals that stop it. */
export type Io = {
  readonly stdin: NodeJS.ReadStream
  readonly stdout: NodeJS.WriteStream
  readonly stderr: NodeJS.WriteStream
  on(event: StopSignal, listener: () => void): unknown
  off(event: StopSignal, listener: () => void): unknown
  /** Ends the process as the signal would have. */
  kill(pid: number, signal: StopSignal): unknown
  readonly pid: number
}

type StopSignal = 'SIGINT' | 'SIGTERM'

const signalNumbers: Readonly<Record<StopSignal, number>> = {SIGINT: 2, SIGTERM: 15}
const SIGPIPE = 13

/** Why a command was asked to stop. Named as Node names aborted work, whose errors may stand in for this one. */
class StoppedError extends Error {
  override readonly name = 'AbortError'
  readonly exitCode: number

  constructor(what: string, exitCode: number) {
    super(what)
    this.exitCode = exitCode
  }
}

/** What was printed has not arrived where standard output leads. */
export class OutputError extends SyncError {
  override readonly name = 'OutputError'
  readonly code = 'SYNC_OUTPUT'
  readonly next = 'Make room where the output goes, then run it again.'

  constructor(cause: NodeJS.ErrnoException) {
    super(`standard output cannot be written (${cause.code ?? cause.message})`, {cause})
  }
}

/**
 * Runs one command line.
 *
 * @returns the exit code. Errors have been told by then: on standard error, with --json on standard output.
 */
export async function main(
  argv: readonly string[],
  env: Env,
  io: Io,
  list: CommandList = {commands, groups},
): Promise<number> {
  const json = argv.includes('--json')
  using stopping = stopOn(io)
  const {signal} = stopping
  try {
    const code = await run(argv, env, io, {json, signal, list})
    await written(io)
    // The data was the point: a full disk behind `> file` is a failure, however well the rest went.
    if (signal.reason instanceof OutputError) throw signal.reason
    return code
  } catch (error) {
    if (isStop(error, signal)) return stopCode(signal)
    const failure = failureOf(error)
    const {code, message, next} = failure
    if (json) io.stdout.write(`${JSON.stringify({error: {code, message, next}})}\n`)
    else io.stderr.write(`${failureText(failure)}\n`)
    if (/^(debug|trace)$/.test(env.LOG_LEVEL ?? '') && error instanceof Error)
      io.stderr.write(`${error.stack ?? ''}\n`)
    return failure.exitCode
  }
}

type Running = {readonly json: boolean; readonly signal: AbortSignal; readonly list: CommandList}

async function run(
  argv: readonly string[],
  env: Env,
  io: Io,
  {json, signal, list}: Running,
): Promise<number> {
  const asked = await parse(argv, list, screenOf(io, env))
  switch (asked.what) {
    case 'run':
      return (await asked.command.run(asked.args, contextOf(env, io, json, signal))) ?? 0
    case 'help':
      io.stdout.write(asked.text)
      return 0
    case 'version':
      io.stdout.write(json ? `${JSON.stringify({version: version()})}\n` : `${version()}\n`)
      return 0
  }
}

function contextOf(env: Env, io: Io, json: boolean, signal: AbortSignal): Context {
  const isTerminal = io.stdin.isTTY && io.stderr.isTTY
  let config: Promise<Config> | undefined
  // Loaded by whoever needs it: a command that reads no setting must not fail because one is wrong.
  const load = () => (config ??= loadSettings(env))
  return {
    out: (document, text) => io.stdout.write(`${json ? jsonOf(document) : text}\n`),
    err: text => io.stderr.write(`${text}\n`),
    json,
    signal,
    env,
    config: load,
    async log() {
      const [{createLog}, {logLevel, logFormat}] = await Promise.all([import('../telemetry/log.ts'), load()])
      return createLog({level: logLevel, format: logFormat, stream: io.stderr})
    },
    progress: () => progressOn(io.stderr, env),
    isTerminal,
    ...questions({stdin: io.stdin, stderr: io.stderr, isTerminal}, signal),
  }
}

/** The settings, with conflict rules that can be used: a mistake in them is better told now than at a conflict. */
async function loadSettings(env: Env): Promise<Config> {
  const {loadConfig} = await import('../config/config.ts')
  const config = await loadConfig(env)
  if (config.conflictResolutionConfig) {
    const {rulesOf} = await import('../conflict/rules.ts')
    rulesOf(config.conflictResolutionConfig)
  }
  return config
}

/** Whole numbers of 64 bits are numbers where JSON's readers keep them exact, else strings. */
function jsonOf(document: unknown): string {
  return JSON.stringify(document, (_key, value: unknown) =>
    typeof value !== 'bigint' ? value : Number.isSafeInteger(Number(value)) ? Number(value) : String(value),
  )
}

// npm and terminals may deliver one Ctrl-C twice; a person needs longer than this for a second one.
const sameKeypressMs = 300

/**
 * Aborts its signal on SIGINT, on SIGTERM, and when the reader of standard output has gone (`| head`). A second Ctrl-C
 * ends the process as it would have without us.
 */
function stopOn(io: Io): Disposable & {readonly signal: AbortSignal} {
  const stop = new AbortController()
  let firstAt: number | undefined
  const listeners = (['SIGINT', 'SIGTERM'] as const).map(name => ({
    name,
    listener: () => {
      const at = performance.now()
      if (firstAt === undefined) {
        firstAt = at
        stop.abort(new StoppedError(name, 128 + signalNumbers[name]))
      } else if (at - firstAt > sameKeypressMs) {
        off()
        io.kill(io.pid, name)
      }
    },
  }))
  const off = () => {
    for (const {name, listener} of listeners) io.off(name, listener)
  }
  for (const {name, listener} of listeners) io.on(name, listener)
  io.stdout.on('error', (error: NodeJS.ErrnoException) => {
    stop.abort(error.code === 'EPIPE' ? new StoppedError('EPIPE', 128 + SIGPIPE) : new OutputError(error))
  })
  // Nobody is left to tell.
  io.stderr.on('error', () => undefined)
  return {signal: stop.signal, [Symbol.dispose]: off}
}

/** Resolves when all that was printed is on its way, or will never be. */
function written({stdout}: Io): Promise<void> {
  return new Promise(resolve => {
    stdout.write('', () => {
      resolve()
    })
  })
}

function isStop(error: unknown, signal: AbortSignal): boolean {
  for (let cause = error; cause instanceof Error; cause = cause.cause) {
    if (cause instanceof CancelledError) return true
    if (cause instanceof OutputError) return false
    if (signal.aborted && (cause === signal.reason || cause.name === 'AbortError')) return true
  }
  return false
}

function stopCode({reason}: AbortSignal): number {
  return reason instanceof StoppedError ? reason.exitCode : 128 + signalNumbers.SIGINT
}

function screenOf({stdout}: Io, env: Env): Screen {
  return {columns: Math.min(columnsOf(stdout), 100), hasColours: stdout.isTTY && (env.NO_COLOR ?? '') === ''}
}
