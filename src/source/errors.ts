import {SyncError} from '../core/errors.ts'

/** The source cannot be read as it is; someone has to change something first. */
export class SourceUnreadableError extends SyncError {
  override readonly name = 'SourceUnreadableError'
  readonly code = 'SYNC_SOURCE_UNREADABLE'
  readonly file: string
  readonly next: string

  constructor(file: string, what: string, next: string, options?: ErrorOptions) {
    super(`${file}: ${what}`, options)
    this.file = file
    this.next = next
  }
}

/** The source is locked by its app, is waiting for its app to recover it, or finds no memory to be read; later is fine. */
export class SourceBusyError extends SyncError {
  override readonly name = 'SourceBusyError'
  readonly code = 'SYNC_SOURCE_BUSY'
  override readonly retryable = true
  readonly file: string
  readonly next: string

  constructor(file: string, what: string, next: string, options?: ErrorOptions) {
    super(`${file}: ${what}`, options)
    this.file = file
    this.next = next
  }
}

/** The source's schema changed while it was being read; nothing was applied. */
export class SchemaMovedError extends SyncError {
  override readonly name = 'SchemaMovedError'
  readonly code = 'SYNC_SCHEMA_MOVED'
  override readonly retryable = true
  readonly next = 'Wait until the app has finished its upgrade, then run the sync again.'

  constructor(file: string, options?: ErrorOptions) {
    super(`${file}: the schema kept changing while it was being read`, options)
  }
}
