import {chmodSync, closeSync, fsyncSync, openSync, renameSync, rmSync, statfsSync, statSync} from 'node:fs'
import {dirname} from 'node:path'
import {backup, DatabaseSync} from 'node:sqlite'
import {pathToFileURL} from 'node:url'
import {SyncError} from '../core/errors.ts'
import {isWal} from './capture.ts'
import {beginRead, endRead, whenFree, type Source} from './open.ts'

/** A copy of the source could not be made, and without one nothing is written to it. */
export class SourceCopyError extends SyncError {
  override readonly name = 'SourceCopyError'
  readonly code = 'SYNC_SOURCE_COPY'
  override readonly retryable = true
  readonly next: string

  constructor(file: string, what: string, next: string, options?: ErrorOptions) {
    super(`no copy of ${file} could be made before it is written to: ${what}`, options)
    this.next = next
  }
}

/** How much is copied under one lock in rollback-journal mode. */
const STEP_BYTES = 1024 * 1024
/** How long the app may interrupt a copy in rollback-journal mode, which then begins anew. */
const PATIENCE_MS = 30_000

/**
 * Makes an exact copy of one committed state of the source, page by page, readable by this user alone. In WAL mode it is
 * read from one snapshot; else under many short locks, beginning anew whenever the app has committed in between.
 *
 * @returns its size in bytes. It is on the disk and has been opened once.
 * @throws {SourceCopyError} and leaves nothing behind when it could not be made.
 */
export async function copySource(source: Source, to: string, signal: AbortSignal): Promise<number> {
  const {file, db} = source
  const size = source.size()
  const {bavail, bsize} = statfsSync(dirname(to))
  if (bavail * bsize < size + SPARE_BYTES)
    throw new SourceCopyError(
      file,
      `${dirname(to)} has no room for its ${size} bytes`,
      'Free some space where STATE_DIR is; the next sync tries again.',
    )
  const unfinished = `${to}.copying`
  try {
    // Made here, so that nobody else can read it at any time.
    closeSync(openSync(unfinished, 'wx', 0o600))
    const isSnapshot = await whenFree(source, () => isWal(source), signal)
    if (isSnapshot)
      await whenFree(
        source,
        () => {
          beginRead(db)
        },
        signal,
      )
    try {
      await copyPages(source, unfinished, isSnapshot, signal)
    } finally {
      endRead(db)
    }
    const bytes = proveReadable(unfinished)
    chmodSync(unfinished, 0o600)
    flush(unfinished)
    renameSync(unfinished, to)
    flush(dirname(to))
    return bytes
  } catch (cause) {
    signal.throwIfAborted()
    if (cause instanceof SyncError) throw cause
    throw new SourceCopyError(
      file,
      cause instanceof Error ? cause.message : String(cause),
      'Check STATE_DIR and the disk that holds it; the next sync tries again.',
      {cause},
    )
  } finally {
    for (const suffix of ['', '-journal', '-wal', '-shm']) rmSync(unfinished + suffix, {force: true})
  }
}

/** Left free beyond the copy: the sidecar and the spools need some. */
const SPARE_BYTES = 64 * 1024 * 1024

async function copyPages(
  source: Source,
  to: string,
  isSnapshot: boolean,
  signal: AbortSignal,
): Promise<void> {
  const {file, db} = source
  const {page_size: pageSize} = db.prepare('pragma page_size').get() as {page_size: number}
  const until = performance.now() + PATIENCE_MS
  let left = Infinity
  await backup(db, to, {
    rate: Math.max(1, Math.round(STEP_BYTES / pageSize)),
    progress: ({remainingPages}) => {
      signal.throwIfAborted()
      const isAnew = remainingPages > left
      left = remainingPages
      if (isAnew && !isSnapshot && performance.now() > until)
        throw new SourceCopyError(
          file,
          'its app wrote all the while',
          'Nothing: the next sync tries again. An app that never rests can be given WAL mode, where a copy needs no pause.',
        )
    },
  })
}

/** @returns the size of a copy that can be read. */
function proveReadable(copy: string): number {
  const url = pathToFileURL(copy)
  // Nobody else has it: no lock, and no files beside it.
  url.searchParams.set('immutable', '1')
  using db = new DatabaseSync(url, {readOnly: true, enableDoubleQuotedStringLiterals: true})
  db.prepare('select count(*) from sqlite_schema').get()
  const {pages, size} = db
    .prepare('select page_count as pages, page_size as size from pragma_page_count, pragma_page_size')
    .get() as {pages: number; size: number}
  const bytes = statSync(copy).size
  if (bytes !== pages * size) throw new Error(`the copy has ${bytes} bytes instead of ${pages * size}`)
  return bytes
}

function flush(path: string): void {
  const fd = openSync(path, 'r')
  try {
    fsyncSync(fd)
  } finally {
    closeSync(fd)
  }
}
