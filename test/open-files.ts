import {once} from 'node:events'
import {Worker} from 'node:worker_threads'

/** Looks at the open files of this process all the while. */
export type OpenFiles = AsyncDisposable & {
  /** Of the files that were watched: those that have been seen open for writing. And how often it has looked. */
  seen(): Promise<{readonly writable: readonly string[]; readonly looks: number}>
}

/** @param files by their real names. */
export async function watchOpenFiles(files: readonly string[]): Promise<OpenFiles> {
  const worker = new Worker(program, {eval: true, workerData: files})
  await once(worker, 'message')
  return {
    async seen() {
      worker.postMessage('tell')
      const [told] = (await once(worker, 'message')) as [{writable: string[]; looks: number}]
      return told
    },
    async [Symbol.asyncDispose]() {
      await worker.terminate()
    },
  }
}

// In a thread, so that it looks while SQLite has the other one. It opens none of the files: closing one would drop the
// locks that this process has on it. A descriptor may be another file's by the time its flags are read: what is read
// with them tells whose they are (`ino` in proc_pid_fdinfo(5), since Linux 5.14).
const program = `
  const {readdirSync, readFileSync, readlinkSync, statSync} = require('node:fs')
  const {parentPort, workerData} = require('node:worker_threads')
  const writable = new Set()
  let looks = 0
  const look = () => {
    looks++
    for (const fd of readdirSync('/proc/self/fd')) {
      try {
        const file = readlinkSync('/proc/self/fd/' + fd)
        if (!workerData.includes(file)) continue
        const info = readFileSync('/proc/self/fdinfo/' + fd, 'utf8')
        const [flags, ino] = ['flags', 'ino'].map(name => new RegExp('^' + name + ':\\\\s+(\\\\d+)', 'm').exec(info)[1])
        if ((parseInt(flags, 8) & 3) !== 0 && ino === String(statSync(file, {bigint: true}).ino)) writable.add(file)
      } catch (error) {
        if (error.code !== 'ENOENT') throw error
      }
    }
  }
  parentPort.on('message', () => parentPort.postMessage({writable: [...writable], looks}))
  parentPort.postMessage('ready')
  setInterval(() => {
    const until = performance.now() + 8
    while (performance.now() < until) look()
  }, 9)
`
