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

/** @returns what kind of failure this is, as one word of a small set: our code, a SQLSTATE, a system's code. */
export function errorTypeOf(error: unknown): string {
  if (!(error instanceof Error)) return 'unexpected'
  if (error.name === 'AbortError') return 'aborted'
  const {code} = error as {code?: unknown}
  return typeof code === 'string' && /^[A-Z0-9_]{3,40}$/.test(code) ? code : 'unexpected'
}
