import pg from 'pg'
import {SyncError} from '../core/errors.ts'

/** An error as a client of the API gets it: `application/problem+json` (RFC 9457). */
export type Problem = {
  readonly type: string
  readonly title: string
  readonly status: number
  /** Stable; docs/errors.md has a paragraph for each. */
  readonly code: string
  readonly detail: string
  /** What can be done now. */
  readonly next: string
  readonly request_id: string
  /** What is wrong where, when the request itself is. */
  readonly errors?: readonly {readonly where: string; readonly message: string}[]
} & Readonly<Record<string, unknown>>

/** A request that the API refuses by itself, before or instead of doing anything. */
export class RefusedError extends SyncError {
  override readonly name = 'RefusedError'
  readonly code: `SYNC_${string}`
  readonly status: number
  readonly next: string
  /** More fields of the problem. */
  readonly facts: Readonly<Record<string, unknown>>
  readonly headers: Readonly<Record<string, string>>

  constructor({code, status, message, next, facts = {}, headers = {}, cause}: Refusal) {
    super(message, {cause})
    this.code = code
    this.status = status
    this.next = next
    this.facts = facts
    this.headers = headers
  }
}

type Refusal = {
  readonly code: `SYNC_${string}`
  readonly status: number
  readonly message: string
  readonly next: string
  readonly facts?: Readonly<Record<string, unknown>>
  readonly headers?: Readonly<Record<string, string>>
  readonly cause?: unknown
}

const challenge = {'www-authenticate': 'Bearer realm="openwebui-sync"'}

/** What the API refuses, one for each thing that a caller would do differently. */
export const refusals = {
  noToken: (message: string) =>
    new RefusedError({
      code: 'SYNC_API_TOKEN',
      status: 401,
      message,
      next: 'Send `Authorization: Bearer TOKEN`; `owsync token add` makes one.',
      headers: challenge,
    }),
  scope: (name: string) =>
    new RefusedError({
      code: 'SYNC_API_SCOPE',
      status: 403,
      message: `the token ${name} may read and not change anything`,
      next: 'Use a token with the scope operate.',
    }),
  origin: (message: string) =>
    new RefusedError({
      code: 'SYNC_API_ORIGIN',
      status: 403,
      message,
      next: 'Call the API by its address, by localhost, or by a name of its TLS certificate, and not from another site’s page.',
    }),
  invalid: (message: string, errors: Problem['errors'] = [], cause?: unknown) =>
    new RefusedError({
      code: 'SYNC_API_INVALID',
      status: 400,
      message,
      next: 'Correct the request; /docs shows what each endpoint takes.',
      facts: errors.length > 0 ? {errors} : {},
      cause,
    }),
  noRoute: (method: string, path: string) =>
    new RefusedError({
      code: 'SYNC_API_NOT_FOUND',
      status: 404,
      message: `there is no ${method} ${path.slice(0, 200)}`,
      next: 'See /docs for what there is.',
    }),
  noThing: (what: string) =>
    new RefusedError({
      code: 'SYNC_API_NOT_FOUND',
      status: 404,
      message: `there is no ${what}`,
      next: 'Look at the list it should be in.',
    }),
  tooLarge: (bytes: number) =>
    new RefusedError({
      code: 'SYNC_API_TOO_LARGE',
      status: 413,
      message: `the body has more than ${bytes} bytes`,
      next: 'Send less at once.',
    }),
  mediaType: () =>
    new RefusedError({
      code: 'SYNC_API_MEDIA_TYPE',
      status: 415,
      message: 'the body is not declared as JSON',
      next: 'Send `Content-Type: application/json`.',
    }),
  openJob: (client: string, jobId: string) =>
    new RefusedError({
      code: 'SYNC_JOB_OPEN',
      status: 409,
      message: `${client} has a job already that waits or runs`,
      next: 'Follow that job, or cancel it.',
      facts: {job_id: jobId, sync_id: jobId, client},
    }),
  jobOver: (jobId: string, status: string) =>
    new RefusedError({
      code: 'SYNC_JOB_OVER',
      status: 409,
      message: `the job has ended already: ${status}`,
      next: 'Nothing is left to be cancelled.',
      facts: {job_id: jobId, job_status: status},
    }),
  exists: (client: string) =>
    new RefusedError({
      code: 'SYNC_CLIENT_EXISTS',
      status: 409,
      message: `${client} is registered already`,
      next: 'Change it with PATCH, or register another name.',
      facts: {client},
    }),
  reportFirst: (client: string) =>
    new RefusedError({
      code: 'SYNC_REPORT_FIRST',
      status: 409,
      message: `nobody has been told yet what two_way would write to the file of ${client}`,
      next: 'Trigger a sync with `dry_run` and `direction: "two_way"`, look at `written_to_source` in its job’s result, and send that job’s id as `report` within the hour; or use `owsync client direction`.',
      facts: {client},
    }),
  notQuarantined: (client: string) =>
    new RefusedError({
      code: 'SYNC_NOT_QUARANTINED',
      status: 409,
      message: `nothing of ${client} is held back`,
      next: 'There is nothing to confirm; trigger a sync instead.',
      facts: {client},
    }),
  tooMany: (what: string) =>
    new RefusedError({
      code: 'SYNC_API_BUSY',
      status: 503,
      message: `there are too many ${what} at once`,
      next: 'Try again later.',
      headers: {'retry-after': '5'},
    }),
} as const

/** The status of errors that come from below; those not listed are 503 when they may pass by themselves, else 500. */
const statuses: Readonly<Record<string, number>> = {
  SYNC_USAGE: 400,
  SYNC_NAME_REFUSED: 400,
  SYNC_DATA: 400,
  SYNC_NOT_YOURS: 403,
  SYNC_UNKNOWN_CLIENT: 404,
  SYNC_CONFLICT_RULES: 400,
  SYNC_UNKNOWN_CONFLICT: 404,
  SYNC_CONFLICT_CLOSED: 409,
  SYNC_CONFLICT_MOVED: 409,
  SYNC_NAME_TAKEN: 409,
  SYNC_STILL_SYNCED: 409,
  SYNC_CANNOT_LEAD: 409,
  SYNC_LEADER_CHANGED: 409,
  SYNC_VERSION_MOVED: 412,
  SYNC_WRONG_PASSWORD: 503,
  SYNC_POOLER_REFUSED: 503,
  SYNC_READ_ONLY: 503,
  SYNC_OUT_OF_SPACE: 503,
  SYNC_TLS: 503,
  SYNC_NO_SUCH_DATABASE: 503,
}

/** What fastify itself refuses, in our words. */
function fromFramework(error: FrameworkError, bodyLimit: number): RefusedError | undefined {
  if (error.validation) {
    const errors = error.validation.map(({instancePath, message}) => ({
      where: `${error.validationContext ?? 'request'}${instancePath}`,
      message: message ?? 'is not valid',
    }))
    const [first] = errors
    return refusals.invalid(first ? `${first.where}: ${first.message}` : 'it is not valid', errors, error)
  }
  const {code, statusCode} = error
  if (code === 'FST_ERR_CTP_BODY_TOO_LARGE') return refusals.tooLarge(bodyLimit)
  if (code === 'FST_ERR_CTP_INVALID_MEDIA_TYPE') return refusals.mediaType()
  return statusCode !== undefined && statusCode >= 400 && statusCode < 500
    ? refusals.invalid(error.message, [], error)
    : undefined
}

type FrameworkError = Error & {
  readonly code?: string
  readonly statusCode?: number
  readonly validation?: readonly {readonly instancePath: string; readonly message?: string}[]
  readonly validationContext?: string
}

/** What is sent for an error: its problem and headers. What nobody has named is not shown, it is for the log. */
export function problemOf(
  error: unknown,
  {requestId, bodyLimit}: {readonly requestId: string; readonly bodyLimit: number},
): {readonly problem: Problem; readonly headers: Readonly<Record<string, string>>} {
  const refused = refusalOf(error, bodyLimit)
  const {code, status, message, next, facts, headers} = refused
  return {
    problem: {
      type: `urn:openwebui-sync:error:${code}`,
      title: titleOf(status),
      status,
      code,
      detail: message,
      next,
      request_id: requestId,
      ...facts,
    },
    headers,
  }
}

function refusalOf(error: unknown, bodyLimit: number): RefusedError {
  if (error instanceof RefusedError) return error
  if (error instanceof SyncError) {
    const {code, message, next, retryable} = error
    const status = statuses[code] ?? (retryable ? 503 : 500)
    const headers: Readonly<Record<string, string>> = status === 503 ? {'retry-after': '5'} : {}
    return new RefusedError({code, status, message, next, headers, cause: error})
  }
  // What a function of the control schema refuses because of what it was given.
  if (error instanceof pg.DatabaseError && error.code === 'OS006')
    return refusals.invalid(error.message, [], error)
  const refused = error instanceof Error ? fromFramework(error, bodyLimit) : undefined
  return (
    refused ??
    new RefusedError({
      code: 'SYNC_UNEXPECTED',
      status: 500,
      message: 'something failed that has no name',
      next: 'Look into the log of the node for the request id, and report it.',
      cause: error,
    })
  )
}

function titleOf(status: number): string {
  return titles[status] ?? (status < 500 ? 'Refused' : 'Failed')
}

const titles: Readonly<Record<number, string>> = {
  400: 'Bad request',
  401: 'Token required',
  403: 'Forbidden',
  404: 'Not found',
  409: 'Conflict',
  412: 'Precondition failed',
  413: 'Body too large',
  415: 'Unsupported media type',
  500: 'Internal error',
  501: 'Not implemented',
  503: 'Unavailable',
}
