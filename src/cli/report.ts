import {SyncError} from '../core/errors.ts'
import {redact} from '../core/redact.ts'
import type {ExitCode} from './command.ts'

/** A failure as it is told: with --json as it stands, else as sentences. */
export type Failure = {
  readonly code: string
  readonly message: string
  readonly next: string
  readonly exitCode: ExitCode
  /** What led to it, the nearest first. */
  readonly causes: readonly string[]
}

/** @returns what to tell about anything that a command may throw. No password is in it. */
export function failureOf(error: unknown): Failure {
  const causes = [...causesOf(error)].map(redact)
  if (error instanceof SyncError) {
    const {code, message, next} = error
    return {code, message: redact(message), next: redact(next), exitCode: exitCodeOf(error), causes}
  }
  return {
    code: 'SYNC_UNEXPECTED',
    message: redact(messageOf(error)),
    next: 'This is a defect. Run it again with LOG_LEVEL=debug and report what it prints.',
    exitCode: 1,
    causes,
  }
}

/** The text for a person: what happened, why, what to do. */
export function failureText({message, next, causes}: Failure): string {
  return [`owsync: ${message}`, ...causes.map(cause => `  because: ${cause}`), `  next: ${next}`].join('\n')
}

// By code, so that a mistyped command does not load the settings.
const misused: ReadonlySet<string> = new Set(['SYNC_USAGE', 'SYNC_CONFIG', 'SYNC_CONFLICT_RULES'])

function exitCodeOf({code, retryable}: SyncError): ExitCode {
  return misused.has(code) ? 64 : retryable ? 75 : 1
}

function* causesOf(error: unknown): Generator<string> {
  let said = messageOf(error)
  for (let cause = next(error), depth = 0; cause !== undefined && depth < 5; cause = next(cause), depth++) {
    const message = messageOf(cause)
    if (!said.includes(message)) yield (said = message)
  }
}

function next(error: unknown): unknown {
  return error instanceof Error ? error.cause : undefined
}

function messageOf(error: unknown): string {
  if (!(error instanceof Error)) return String(error)
  if (error instanceof AggregateError && error.message === '') return error.errors.map(messageOf).join('; ')
  return error.message === '' ? error.name : error.message
}
