import {SyncError} from '../core/errors.ts'

/** The new file cannot be put where it was asked for; what is there has not been touched. */
export class DestinationError extends SyncError {
  override readonly name = 'DestinationError'
  readonly code = 'SYNC_DESTINATION'
  readonly file: string
  readonly next: string

  constructor(file: string, what: string, next: string, options?: ErrorOptions) {
    super(`${file}: ${what}`, options)
    this.file = file
    this.next = next
  }
}

/** The target does not hold a whole cut of the client's file (yet), so no file can be made of it. */
export class NotRestorableError extends SyncError {
  override readonly name = 'NotRestorableError'
  readonly code = 'SYNC_NOT_RESTORABLE'
  readonly next: string

  constructor(client: string, what: string, next: string, options?: ErrorOptions) {
    super(`${client} cannot be restored: ${what}`, options)
    this.next = next
  }
}

/** What was written does not read back as what the target holds; the new file was removed. */
export class RestoreFailedError extends SyncError {
  override readonly name = 'RestoreFailedError'
  readonly code = 'SYNC_RESTORE_FAILED'
  readonly next =
    'Nothing was left behind. Run `owsync verify` if the source still exists, and report this: it is a defect.'

  constructor(what: string, options?: ErrorOptions) {
    super(`the restored file is not what the target holds: ${what}`, options)
  }
}
