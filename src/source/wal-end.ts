import {setTimeout as sleep} from 'node:timers/promises'
import {beginRead, type Source} from './open.ts'
import {goesOn, WAL_INDEX_BYTES, walEnd, type WalEnd} from './wal.ts'

/**
 * What the database file was, and what was known of its log, when a look began: from then on only checkpoints of that
 * log may write the file.
 */
export type FileBefore = Pick<WalEnd, 'commits' | 'backfilled' | 'attempted'> & {readonly stamp: string}

/** Where the log ends that a transaction sees. */
export type SeenEnd = WalEnd & {readonly before: FileBefore}

/** How long a commit that is on its way through the log is waited for: a slow disk takes that long to sync it. */
const COMMIT_MS = 2_000

/** How often a transaction is begun anew because the app has committed just then, which takes it less than a millisecond. */
const MOST_BEGINS = 100

/**
 * Begins a read transaction in WAL mode, so that the raw log can be read as far as that transaction sees it.
 *
 * @returns where that is: SQLite takes what the index says when a transaction begins, and the index has said the same
 * before and after. `undefined` when it never did, or makes no sense; the transaction is open all the same.
 * @throws what SQLite throws when it cannot be begun; it is not open then.
 */
export function beginAtEnd(source: Source): SeenEnd | undefined {
  for (let begins = 1; ; begins++) {
    const before = readWalEnd(source)
    beginRead(source.db)
    const stamp = source.stamp()
    const end = readWalEnd(source)
    const isSame = end !== undefined && before !== undefined && isSameEnd(before, end)
    if (isSame && before.commits === end.commits && isWhatIsSeen(source, end)) {
      const {commits, backfilled, attempted} = before
      return {...end, before: {stamp, commits, backfilled, attempted}}
    }
    if (begins === MOST_BEGINS) return undefined
    source.db.exec('commit')
  }
}

/**
 * Whether only the log's checkpoints can have written the file since `known`. A file that was copied over the old one
 * is taken for that by its log too, when the app was killed and has left one.
 *
 * @param committed how many commits the log has got since.
 */
export function isSameFile(
  known: FileBefore,
  {before, commits, backfilled, attempted}: SeenEnd,
  committed: number,
): boolean {
  // Whoever opens a log that nobody has open makes its index anew, which counts from nothing, and takes all of the log for
  // what a checkpoint may have attempted.
  if (commits !== known.commits + committed) return false
  if (before.stamp === known.stamp) return true
  // An index that had counted nothing may have been made once more.
  if (known.commits === 0) return false
  // A checkpoint says what it is about to write before it does, and then that it has.
  return backfilled > known.backfilled || attempted > known.attempted
}

/**
 * Whether a commit may be in the log that no transaction sees yet. The log is written, and synced, before the index, and
 * of a change of the index alone the file system tells nothing.
 */
export function mayBeCommitting(source: Source): boolean {
  const end = readWalEnd(source)
  return goesOn(source.readWal, end ?? {salt1: 0, salt2: 0, frames: 0})
}

/**
 * Waits for a commit that is in the log until the index says so: whoever came because the log has changed would not see it.
 *
 * @returns false when it is not to be seen after {@link COMMIT_MS}; it never may be, when it was given up.
 */
export async function awaitCommit(source: Source, signal: AbortSignal): Promise<boolean> {
  const since = performance.now()
  const from = readWalEnd(source)
  while (mayBeCommitting(source)) {
    const now = readWalEnd(source)
    // It has arrived, and another one is on its way.
    if (from !== undefined && now !== undefined && !isSameEnd(from, now)) return true
    if (performance.now() - since > COMMIT_MS) return false
    await sleep(5, undefined, {signal})
  }
  return true
}

/**
 * SQLite does not believe an index that it may not write while nobody else has the file open: it recovers the log for
 * itself, to its very end.
 */
function isWhatIsSeen(source: Source, end: WalEnd): boolean {
  return source.mayWriteIndex() || !goesOn(source.readWal, end)
}

function isSameEnd(a: WalEnd, b: WalEnd): boolean {
  return a.salt1 === b.salt1 && a.salt2 === b.salt2 && a.frames === b.frames && a.pageCount === b.pageCount
}

/** A writer changes the two copies of the index's header one after the other. */
function readWalEnd(source: Source): WalEnd | undefined {
  const index = Buffer.alloc(WAL_INDEX_BYTES)
  for (let tries = 0; tries < 100; tries++) {
    if (source.readWalIndex(index) < index.length) return undefined
    const end = walEnd(index)
    if (end !== undefined) return end
  }
  return undefined
}
