import {spawn, type SpawnOptions} from 'node:child_process'
import {readFileSync} from 'node:fs'
import {accessSync, constants} from 'node:fs'
import {delimiter, join} from 'node:path'
import {setTimeout as sleep} from 'node:timers/promises'

/** How one run of a program went: from its start to its end. */
export type Run = {
  readonly ms: number
  readonly out: string
  /** The most memory it had at once, in MB; 0 where the system does not tell. */
  readonly peakMb: number
}

/** @returns whether all of these programs are installed. */
export function areInstalled(...programs: readonly string[]): boolean {
  const folders = (process.env['PATH'] ?? '').split(delimiter)
  return programs.every(program => folders.some(folder => isExecutable(join(folder, program))))
}

/**
 * Runs a program and waits for its end.
 *
 * @param codes how it may end.
 * @throws Error with what it said when it ends otherwise.
 */
export async function run(
  program: string,
  args: readonly string[],
  options: SpawnOptions = {},
  codes: readonly number[] = [0],
): Promise<Run> {
  const startedAt = performance.now()
  const child = spawn(program, args, {...options, stdio: ['ignore', 'pipe', 'pipe']})
  let [out, err] = ['', '']
  child.stdout.setEncoding('utf8').on('data', (text: string) => (out += text))
  child.stderr.setEncoding('utf8').on('data', (text: string) => (err = (err + text).slice(-4_000)))
  const ended = new AbortController()
  const exit = new Promise<{code: number | null; ms: number}>((resolve, reject) => {
    child.once('error', reject)
    child.once('exit', () => {
      ended.abort()
    })
    child.once('close', code => {
      resolve({code, ms: performance.now() - startedAt})
    })
  })
  const peak = child.pid === undefined ? 0 : watchPeak(child.pid, ended.signal)
  const {code, ms} = await exit
  if (code === null || !codes.includes(code))
    throw new Error(`${program} ended with ${code}: ${err}${out.slice(-1_000)}`)
  return {ms, out, peakMb: await peak}
}

/** The system forgets a process with its end, so its peak, which only grows, is read until then. */
async function watchPeak(pid: number, ended: AbortSignal): Promise<number> {
  let peakKb = 0
  while (!ended.aborted) {
    try {
      peakKb = Number(/^VmHWM:\s+(\d+)/m.exec(readFileSync(`/proc/${pid}/status`, 'utf8'))?.[1] ?? peakKb)
    } catch {
      break
    }
    await sleep(50, undefined, {signal: ended}).catch(() => undefined)
  }
  return peakKb / 1024
}

function isExecutable(path: string): boolean {
  try {
    accessSync(path, constants.X_OK)
    return true
  } catch {
    return false
  }
}
