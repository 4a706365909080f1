import {EventEmitter} from 'node:events'
import type {Env} from '../src/config/config.ts'
import type {CommandList} from '../src/cli/parse.ts'
import {main, type Io} from '../src/cli/run.ts'

/** What a command line printed, and how it ended. */
export type CliResult = {
  readonly code: number
  readonly out: string
  readonly err: string
  /** The last line of standard output, as --json prints it. */
  readonly json: () => unknown
}

export type CliOptions = {readonly env?: Env; readonly list?: CommandList}

/** Runs a command line in this process, without a terminal. */
export async function runCli(argv: readonly string[], {env = {}, list}: CliOptions = {}): Promise<CliResult> {
  const fake = fakeIo()
  const code = await main(argv, env, fake.io, list)
  const json = () => JSON.parse(fake.out().trimEnd().split('\n').at(-1)!) as unknown
  return {code, out: fake.out(), err: fake.err(), json}
}

/** A process of which a test sees what was written, and which it can signal. */
export function fakeIo() {
  const process = new EventEmitter()
  const killed: string[] = []
  const [stdout, stderr] = [fakeStream(), fakeStream()]
  const io = Object.assign(process, {
    stdin: {isTTY: false},
    stdout: stdout.stream,
    stderr: stderr.stream,
    pid: 1,
    kill: (_pid: number, signal: string) => killed.push(signal),
  })
  return {
    io: io as unknown as Io,
    out: stdout.text,
    err: stderr.text,
    /** The signals that ended the process. */
    killed,
    signal: (name: 'SIGINT' | 'SIGTERM') => process.emit(name),
    listeners: (name: string) => process.listenerCount(name),
    /** Writing to standard output fails: `EPIPE` when its reader has gone, as `head` does. */
    breakStdout: (code: 'EPIPE' | 'ENOSPC') =>
      stdout.stream.emit('error', Object.assign(new Error(`write ${code}`), {code})),
  }
}

function fakeStream() {
  let text = ''
  const write = (more: string, done?: () => void) => {
    text += more
    done?.()
    return true
  }
  return {stream: Object.assign(new EventEmitter(), {isTTY: false, columns: 80, write}), text: () => text}
}
