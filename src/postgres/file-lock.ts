import {setTimeout as sleep} from 'node:timers/promises'
import {DatabaseSync} from 'node:sqlite'

/** A lock on a file that the operating system releases when its holder ends, however it ends. */
export type FileLock = Disposable

/**
 * Takes a lock that many may share or one has alone, without waiting.
 *
 * Node has no lock on files; SQLite has, for processes as well as within one. The file stays empty.
 *
 * @returns undefined while somebody else's lock excludes it.
 */
export function tryLock(file: string, kind: 'shared' | 'exclusive'): FileLock | undefined {
  const database = new DatabaseSync(file, {timeout: 0})
  try {
    database.exec(kind === 'exclusive' ? 'begin exclusive' : 'begin; select count(*) from sqlite_schema')
  } catch (error) {
    database.close()
    if ((error as {errcode?: number}).errcode === SQLITE_BUSY) return undefined
    throw error
  }
  let isHeld = true
  return {
    [Symbol.dispose]() {
      if (isHeld) database.close()
      isHeld = false
    },
  }
}

const SQLITE_BUSY = 5

/** Waits until the file can be locked by us alone. */
export async function lockAlone(file: string, signal?: AbortSignal): Promise<FileLock> {
  for (;;) {
    signal?.throwIfAborted()
    const lock = tryLock(file, 'exclusive')
    if (lock) return lock
    await sleep(10 + Math.random() * 20, undefined, {signal})
  }
}
