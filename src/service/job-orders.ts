import {SyncError, UsageError} from '../core/errors.ts'
import type {Failure, Job} from '../state/jobs.ts'
import type {AnyOrder} from './worker-messages.ts'

/** Where a deployment is. */
export type JobPlace = {
  readonly deploymentId: string
  readonly clientName: string
  readonly schemaName: string
  readonly sqlitePath: string | null
  /** Of its settings: whoever remembers others has to ask anew. */
  readonly settingsVersion?: bigint
}

/**
 * What a worker is told to do for a job.
 *
 * @param hasMarks rows of the target have been edited: the sync is more than a look at the source.
 * @throws {UsageError} when something is missing that the job would need.
 */
export function orderOf(
  {jobId, syncType, triggeredBy, options}: Pick<Job, 'jobId' | 'syncType' | 'triggeredBy' | 'options'>,
  {deploymentId, clientName, schemaName, sqlitePath, settingsVersion}: JobPlace,
  hasMarks = false,
): AnyOrder {
  const client = {deploymentId, clientName, schemaName}
  if (syncType === 'restore') {
    const {to, force = false, as_of} = options
    if (to === undefined)
      throw new UsageError('a restore needs a file to write', 'Name it in the option `to`.')
    return {
      task: 'restore',
      ...client,
      to,
      force,
      ...(as_of === undefined ? {} : {asOf: generationOf(as_of)}),
    }
  }
  const path = options.sqlite_path ?? sqlitePath
  if (path === null)
    throw new UsageError(`${clientName} has no SQLite file yet`, 'Give it with --sqlite FILE.')
  if (syncType === 'verify') {
    const {quick = false, repair = false} = options
    return {task: 'verify', ...client, sqlitePath: path, quick, repair, jobId}
  }
  return {
    ...client,
    sqlitePath: path,
    full: syncType === 'full',
    dryRun: options.dry_run ?? false,
    accept: options.accept ?? false,
    marks: hasMarks,
    ...(settingsVersion === undefined ? {} : {settingsVersion}),
    ...(options.direction === undefined ? {} : {asDirection: options.direction}),
    jobId,
    triggeredBy,
  }
}

/** What is kept of an error with a job. */
export function failureOf(error: unknown): Failure {
  if (error instanceof SyncError) {
    const {code, message, name, next, retryable} = error
    return {code, message, name, next, retryable}
  }
  const message = error instanceof Error ? error.message : String(error)
  const name = error instanceof Error ? error.name : 'Error'
  return {code: 'SYNC_UNEXPECTED', message, name, next: null, retryable: false}
}

/** A result with its generation as JSON has it. */
export function asJson(result: {readonly generation: bigint}): object {
  return {...result, generation: Number(result.generation), details: undefined}
}

function generationOf(text: string): bigint {
  if (/^\d{1,18}$/.test(text)) return BigInt(text)
  throw new UsageError(`"${text}" is not a generation`, 'Give the number of a generation, such as 42.')
}
