import type pg from 'pg'
import {SyncError} from '../core/errors.ts'

// What our own functions in `sync_metadata` raise (sql/0002_leases.sql lists the SQLSTATEs), as classes.

/** Another node took the lease; the work in hand must be dropped, not retried here. */
export class FencedOutError extends SyncError {
  override readonly name = 'FencedOutError'
  readonly code = 'SYNC_FENCED_OUT'
  override readonly retryable = true
  readonly next = 'Nothing: the leader that took over goes on; what was in hand was rolled back.'
}

/** Someone else applied a cut of this deployment meanwhile. */
export class GenerationMovedError extends SyncError {
  override readonly name = 'GenerationMovedError'
  readonly code = 'SYNC_GENERATION_MOVED'
  override readonly retryable = true
  readonly next = 'Nothing: run the sync again, it starts from the newer generation.'
}

/** The deployment, or the whole cluster, is not this database role's. */
export class NotYoursError extends SyncError {
  override readonly name = 'NotYoursError'
  readonly code = 'SYNC_NOT_YOURS'
  readonly next =
    'Use the DATABASE_URL that `owsync db grant-host` printed for this host; `owsync db transfer` moves a client.'
}

/** A client, table or column name that cannot be used. */
export class NameRefusedError extends SyncError {
  override readonly name = 'NameRefusedError'
  readonly code = 'SYNC_NAME_REFUSED'
  readonly next: string

  constructor(message: string, next: string | undefined, options?: ErrorOptions) {
    super(message, options)
    this.next = next ?? 'Choose another name.'
  }
}

/** The name or schema belongs to someone else. */
export class NameTakenError extends SyncError {
  override readonly name = 'NameTakenError'
  readonly code = 'SYNC_NAME_TAKEN'
  readonly next: string

  constructor(message: string, next: string | undefined, options?: ErrorOptions) {
    super(message, options)
    this.next = next ?? 'Choose another name.'
  }
}

/** A client is still synced; it is not given up by mistake. */
export class StillSyncedError extends SyncError {
  override readonly name = 'StillSyncedError'
  readonly code = 'SYNC_STILL_SYNCED'
  readonly next: string

  constructor(message: string, next: string | undefined, options?: ErrorOptions) {
    super(message, options)
    this.next = next ?? 'Pause its sync first.'
  }
}

/** @returns our error for a SQLSTATE of class OS; `undefined` for OS006, which is a mistake of ours, and all others. */
export function ownRefusal(error: pg.DatabaseError): SyncError | undefined {
  const options = {cause: error}
  switch (error.code) {
    case 'OS001':
      return new FencedOutError(error.message, options)
    case 'OS002':
      return new GenerationMovedError(error.message, options)
    case 'OS003':
      return new NotYoursError(error.message, options)
    case 'OS004':
      return new NameRefusedError(error.message, error.hint, options)
    case 'OS005':
      return new NameTakenError(error.message, error.hint, options)
    case 'OS007':
      return new StillSyncedError(error.message, error.hint, options)
    default:
      return undefined
  }
}
