import {SyncError} from '../core/errors.ts'

/** A file of ours in `STATE_DIR` cannot be read or written. Nothing in it is lost for good: the target knows it too. */
export class StateDirError extends SyncError {
  override readonly name = 'StateDirError'
  readonly code = 'SYNC_STATE_DIR'
  readonly file: string
  readonly next: string
  /** True when the file itself is broken: without it the next run builds it anew. */
  readonly isDamaged: boolean

  constructor(file: string, problem: Problem, options: ErrorOptions) {
    const because = options.cause instanceof Error ? options.cause.message : String(options.cause)
    super(`${file}: ${sentences[problem].what} (${because})`, options)
    this.file = file
    this.next = sentences[problem].next
    this.isDamaged = problem === 'damaged'
  }
}

type Problem = 'damaged' | 'full' | 'in use' | 'unusable'

const sentences: Readonly<Record<Problem, {readonly what: string; readonly next: string}>> = {
  damaged: {
    what: 'the file is damaged',
    next: 'Check the disk that holds STATE_DIR; what was in the file is built anew.',
  },
  full: {
    what: 'there is no space left for it',
    next: 'Free some space where STATE_DIR is, then run the sync again; it goes on from what Postgres has.',
  },
  'in use': {
    what: 'another program keeps it locked',
    next: 'Look for a backup or a shell that has files of STATE_DIR open, then run the sync again.',
  },
  unusable: {
    what: 'it cannot be used',
    next: 'Make STATE_DIR a folder on a local disk that this user may write, then run the sync again.',
  },
}

/**
 * Runs work on a file in `STATE_DIR`.
 *
 * @throws {StateDirError} for what SQLite or the file system says; anything else as it is.
 */
export function inStateDir<T>(file: string, work: () => T): T {
  try {
    return work()
  } catch (cause) {
    const problem = problemOf(cause)
    throw problem === undefined ? cause : new StateDirError(file, problem, {cause})
  }
}

/** https://sqlite.org/rescode.html */
const sqliteProblems: Readonly<Record<number, Problem>> = {
  1: 'damaged', // no such table: part of the file is gone
  5: 'in use',
  8: 'unusable',
  10: 'unusable',
  11: 'damaged',
  13: 'full',
  14: 'unusable',
  19: 'damaged', // a constraint that holds by construction does not
  20: 'damaged',
  26: 'damaged',
}

function problemOf(cause: unknown): Problem | undefined {
  if (!(cause instanceof Error)) return undefined
  if ('errcode' in cause && typeof cause.errcode === 'number') return sqliteProblems[cause.errcode & 0xff]
  if (!('code' in cause) || !('syscall' in cause)) return undefined
  return cause.code === 'ENOSPC' || cause.code === 'EDQUOT' ? 'full' : 'unusable'
}
