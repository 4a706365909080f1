import {join} from 'node:path'
import {DatabaseSync} from 'node:sqlite'
import {setTimeout as sleep} from 'node:timers/promises'
import {SyncError} from '../core/errors.ts'
import {makeFolder} from '../core/folder.ts'
import {inStateDir} from './state-dir.ts'

/** Another process of this host is syncing the same deployment. */
export class DeploymentBusyError extends SyncError {
  override readonly name = 'DeploymentBusyError'
  readonly code = 'SYNC_DEPLOYMENT_BUSY'
  override readonly retryable = true
  readonly next = 'Wait for the other run to finish, then try again.'

  constructor(clientName: string) {
    super(`another process on this host is syncing ${clientName}`)
  }
}

/**
 * Takes the deployment's lock of this host: one process at a time works with its sidecar. The kernel releases it
 * with the process, however that ends.
 *
 * @throws {DeploymentBusyError} when another process has it.
 */
export function lockDeployment(stateDir: string, deploymentId: string, clientName: string): Disposable {
  const folder = join(stateDir, 'locks')
  const file = join(folder, `${deploymentId}.lock`)
  const db = inStateDir(file, () => {
    makeFolder(folder)
    return new DatabaseSync(file, {timeout: 200})
  })
  try {
    inStateDir(file, () => {
      db.exec('pragma journal_mode = memory; begin exclusive')
    })
  } catch (error) {
    db.close()
    const {cause} = error as Error
    if (cause instanceof Error && 'errcode' in cause && cause.errcode === 5)
      throw new DeploymentBusyError(clientName)
    throw error
  }
  return {
    [Symbol.dispose]: () => {
      db.close()
    },
  }
}

/**
 * The same, asking again until the other process has finished.
 *
 * @throws {DeploymentBusyError} when it has not within `patienceMs`.
 */
export async function waitForDeployment(
  stateDir: string,
  {deploymentId, clientName}: {readonly deploymentId: string; readonly clientName: string},
  patienceMs: number,
  signal: AbortSignal,
): Promise<Disposable> {
  const since = performance.now()
  for (;;) {
    try {
      return lockDeployment(stateDir, deploymentId, clientName)
    } catch (error) {
      if (!(error instanceof DeploymentBusyError) || performance.now() - since > patienceMs) throw error
      await sleep(250, undefined, {signal})
    }
  }
}
