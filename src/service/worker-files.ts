import {execFile} from 'node:child_process'
import {mkdirSync, rmSync, writeFileSync} from 'node:fs'
import {readdir, readFile} from 'node:fs/promises'
import {join} from 'node:path'
import {promisify} from 'node:util'
import {nodeRoles} from '../config/settings.ts'
import type {Log} from '../telemetry/log.ts'

// Every sync worker leaves a file behind while it lives: STATE_DIR/workers/EPOCH.PID.NODE. A worker whose node is gone
// ends by itself; one that is frozen cannot, and holds its deployments' locks. Whoever leads next on this machine ends it.

/** Leaves the file of this process; it goes with its scope. */
export function registerWorker(stateDir: string, nodeId: string, epoch: bigint): Disposable {
  const folder = join(stateDir, 'workers')
  mkdirSync(folder, {recursive: true, mode: 0o700})
  const file = join(folder, `${epoch}.${process.pid}.${nodeId}`)
  writeFileSync(file, '')
  return {
    [Symbol.dispose]: () => {
      rmSync(file, {force: true})
    },
  }
}

/**
 * Kills the workers that older epochs of this cluster have left on this machine: nothing that they do can be committed
 * any more. Safe wherever they are, as a kill always is.
 */
export async function endOlderWorkers(
  stateDir: string,
  clusterName: string,
  epoch: bigint,
  log: Log,
): Promise<void> {
  const folder = join(stateDir, 'workers')
  const names = await readdir(folder).catch((error: unknown) => {
    if ((error as NodeJS.ErrnoException).code === 'ENOENT') return []
    throw error
  })
  for (const name of names) {
    const [, itsEpoch, pid, nodeId = ''] = /^(\d+)\.(\d+)\.(.+)$/.exec(name) ?? []
    const isOurs = [...nodeRoles, 'cli'].some(role => nodeId === `${clusterName}-${role}`)
    if (!isOurs || BigInt(itsEpoch ?? 0) >= epoch) continue
    // The number may be another process's by now.
    if (/worker-main\.[jt]s/.test(await commandOf(Number(pid)))) {
      log.warn(
        {pid: Number(pid), worker_of: nodeId, worker_epoch: itsEpoch},
        'a sync worker of an older epoch is killed',
      )
      kill(Number(pid), log)
    }
    rmSync(join(folder, name), {force: true})
  }
}

function kill(pid: number, log: Log): void {
  try {
    process.kill(pid, 'SIGKILL')
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'ESRCH') return
    log.error({err: error, pid}, 'a sync worker of an older epoch cannot be killed; its clients wait for it')
  }
}

/** @returns the command line of a process; empty when there is none. */
async function commandOf(pid: number): Promise<string> {
  try {
    return await readFile(`/proc/${pid}/cmdline`, 'utf8')
  } catch {
    // No such process, or no /proc, as on macOS.
  }
  try {
    const {stdout} = await promisify(execFile)('ps', ['-o', 'args=', '-p', String(pid)])
    return stdout
  } catch {
    return ''
  }
}
