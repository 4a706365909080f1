import {spawn} from 'node:child_process'
import {once} from 'node:events'
import {createInterface} from 'node:readline'
import {DatabaseSync} from 'node:sqlite'
import {setTimeout as sleep} from 'node:timers/promises'
import {fileURLToPath} from 'node:url'

/** What one writer has committed: the last number of each row, and how often it found the file locked. */
export type Probed = {readonly last: ReadonlyMap<number, number>; readonly locked: number}

/**
 * Numbers rows of a table `probe (id, ours, …)`, in a process of its own as an app is: whoever opens a SQLite file twice in
 * one process shares its locks.
 */
export function startProbe(file: string, rows: number): {stop(): Promise<Probed>} & AsyncDisposable {
  const child = spawn(process.execPath, [fileURLToPath(import.meta.url), file, String(rows)], {
    stdio: ['ignore', 'pipe', 'inherit'],
  })
  const last = new Map<number, number>()
  let locked = 0
  createInterface({input: child.stdout}).on('line', line => {
    const [id, number] = line.split(' ').map(Number) as [number, number]
    if (number < 0) locked++
    else last.set(id, number)
  })
  const closed = once(child, 'close')
  const stop = async () => {
    child.kill('SIGTERM')
    const [code] = (await closed) as [number | null]
    if (code !== 0) throw new Error(`the probe ended with ${String(code)}`)
    return {last, locked}
  }
  return {
    stop,
    [Symbol.asyncDispose]: async () => {
      child.kill('SIGKILL')
      await closed
    },
  }
}

if (import.meta.main) {
  const [file = '', rows = '1'] = process.argv.slice(2)
  const over = new AbortController()
  process.once('SIGTERM', () => {
    over.abort()
  })
  const db = new DatabaseSync(file, {timeout: 5_000, enableForeignKeyConstraints: false})
  const update = db.prepare('update probe set ours = ?, updated_at = ? where id = ?')
  for (let number = 1; !over.signal.aborted; number++) {
    const id = 1 + Math.floor(Math.random() * Number(rows))
    try {
      update.run(number, number, id)
      process.stdout.write(`${id} ${number}\n`)
    } catch (cause) {
      if (((cause as {errcode?: number}).errcode ?? 0) % 256 !== 5) throw cause
      process.stdout.write(`${id} -1\n`)
    }
    await sleep(15)
  }
  db.close()
}
