import {SyncError} from '../core/errors.ts'

/** What a write expects to find: a version, `any` that exists, or, when absent, whatever there is. */
export type Expected = bigint | 'any' | undefined

/** Somebody changed it since the caller read it. */
export class VersionMovedError extends SyncError {
  override readonly name = 'VersionMovedError'
  readonly code = 'SYNC_VERSION_MOVED'
  readonly next = 'Read it again, and change what it holds now.'

  constructor(what: string, expected: Expected, actual: bigint | undefined) {
    super(
      actual === undefined
        ? `${what} does not exist`
        : `${what} has version ${actual}, and not ${String(expected)}`,
    )
  }
}
