import {existsSync, mkdirSync, rmSync} from 'node:fs'
import {readdirSync} from 'node:fs'
import {join} from 'node:path'
import {SyncError} from '../core/errors.ts'
import {tryLock, type FileLock} from '../postgres/file-lock.ts'

// Each node process holds STATE_DIR/nodes/NODE/lock while it lives, so that no second one takes its name, and
// STATE_DIR/nodes/NODE/INSTANCE, by which the other node of this machine knows whether this very process has ended. The
// kernel releases both, however the process ends.

/** Another process of this machine is this node. */
export class NodeRunsError extends SyncError {
  override readonly name = 'NodeRunsError'
  readonly code = 'SYNC_NODE_RUNS'
  override readonly retryable = true
  readonly next =
    'Stop that one first (`ps`), or give this one another ROLE: a host’s nodes are node-a and node-b, and node-c.'

  constructor(nodeId: string) {
    super(`${nodeId} runs already on this machine`)
  }
}

/** @throws {NodeRunsError} when this node runs already with the same STATE_DIR. */
export function lockNode(stateDir: string, nodeId: string, instance: string): Disposable {
  const folder = join(stateDir, 'nodes', nodeId)
  mkdirSync(folder, {recursive: true, mode: 0o700})
  const name = tryLock(join(folder, 'lock'), 'exclusive')
  if (name === undefined) throw new NodeRunsError(nodeId)
  // Nobody else is this node: whatever its earlier processes left is of no more use.
  for (const old of readdirSync(folder)) if (old !== 'lock') rmSync(join(folder, old), {force: true})
  const own = tryLock(join(folder, instance), 'exclusive')
  if (own === undefined) throw new Error('a lock of our own making is taken')
  return {
    [Symbol.dispose]: () => {
      own[Symbol.dispose]()
      name[Symbol.dispose]()
    },
  }
}

/** True when that process ran on this machine, with this STATE_DIR, and has ended. */
export function hasEnded(stateDir: string, nodeId: string, instance: string): boolean {
  const file = join(stateDir, 'nodes', nodeId, instance)
  if (!existsSync(file)) return false
  let lock: FileLock | undefined
  try {
    lock = tryLock(file, 'exclusive')
  } catch {
    return false // removed, or not to be opened: nothing is known
  }
  lock?.[Symbol.dispose]()
  return lock !== undefined
}
