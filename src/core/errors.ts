/** Every failure we name. `code` is stable and documented in docs/errors.md. */
export abstract class SyncError extends Error {
  abstract readonly code: `SYNC_${string}`
  /** True when the same call may succeed later without anyone changing anything. */
  readonly retryable: boolean = false
  /** What the operator can do now, as one sentence. */
  abstract readonly next: string
}

/** The caller asked for something that makes no sense; nothing was done. Exit code 64. */
export class UsageError extends SyncError {
  override readonly name = 'UsageError'
  readonly code = 'SYNC_USAGE'
  readonly next: string

  constructor(
    message: string,
    next = 'Run the command with --help to see what it takes.',
    options?: ErrorOptions,
  ) {
    super(message, options)
    this.next = next
  }
}
