import {SyncError} from '../core/errors.ts'
import type {Tls} from '../net/endpoint.ts'
import type {PoolSeen, StatementSeen} from '../postgres/observe.ts'
import type {RestoreRemarks, RestoreResult} from '../restore/restore.ts'
import type {Place, SessionRun} from '../sync/session.ts'
import type {SyncResult} from '../sync/sync.ts'
import type {VerifyResult, VerifyTotals} from '../sync/verify.ts'
import type {Fields, Log} from '../telemetry/log.ts'

// What a sync worker and the process that started it say to each other, over the channel that Node gives a child. It
// keeps the order of what is sent, so that a message is always about the one run that the worker has in hand.

export type WorkerSettings = {
  /** With its password: this channel is the only way that it takes. */
  readonly databaseUrl: string
  readonly ssl: Tls
  readonly stateDir: string
  readonly limits: SessionRun['limits']
  readonly conflictConfig?: SessionRun['conflictConfig']
  readonly answerWithinMs: number
  readonly nodeId: string
  readonly epoch: bigint
}

type Client = Omit<Place, 'stateDir'>

/** A sync that somebody asks for. */
export type Order = Pick<
  SessionRun,
  | 'sqlitePath'
  | 'full'
  | 'dryRun'
  | 'accept'
  | 'marks'
  | 'jobId'
  | 'triggeredBy'
  | 'asDirection'
  | 'settingsVersion'
> &
  Client & {readonly task?: 'sync'; readonly capture?: NonNullable<SessionRun['capture']>}

/** A verification; with `repair` what differs is put right. */
export type VerifyOrder = Client & {
  readonly task: 'verify'
  readonly sqlitePath: string
  readonly quick: boolean
  readonly repair: boolean
  readonly jobId?: string
}

/** A restore: it reads nothing but Postgres, and writes a new file. */
export type RestoreOrder = Client & {
  readonly task: 'restore'
  readonly to: string
  readonly force: boolean
  readonly asOf?: bigint
}

export type AnyOrder = Order | VerifyOrder | RestoreOrder

/** What comes of each. */
export type OutcomeOf<O extends AnyOrder> = O extends VerifyOrder
  ? {readonly result: VerifyResult; readonly totals: VerifyTotals}
  : O extends RestoreOrder
    ? {readonly result: RestoreResult; readonly remarks: RestoreRemarks}
    : SyncResult

export type ToWorker =
  /** The first message, and only that. */
  | {readonly type: 'begin'; readonly settings: WorkerSettings; readonly leaseEndsAt: bigint}
  | {readonly type: 'run'; readonly order: AnyOrder}
  /** Asks for a sign of life, and says until when the lease holds: nanoseconds of this machine's monotonic clock. */
  | {readonly type: 'beat'; readonly leaseEndsAt: bigint}
  /** The run in hand is to end now. */
  | {readonly type: 'stop'; readonly reason: ErrorFacts}
  /** Somebody else is to have this deployment. */
  | {readonly type: 'release'; readonly deploymentId: string}

export type FromWorker =
  /** The first message: from now on it listens. */
  | {readonly type: 'ready'}
  /** Answers a beat: for how long the run in hand has made no progress. */
  | {readonly type: 'beat'; readonly stillMs: number}
  /** What it has done in Postgres since it last spoke of it: with a beat and before a run ends. */
  | {readonly type: 'database'; readonly statements: readonly StatementSeen[]; readonly pool: PoolSeen}
  | {readonly type: 'progress'; readonly table: string; readonly rows: number}
  | {readonly type: 'done'; readonly result: OutcomeOf<AnyOrder>}
  | {readonly type: 'failed'; readonly error: ErrorFacts}
  /** What a sync that fails tells of its locks, before it does. */
  | {readonly type: 'lock'; readonly lock: SyncResult['lock']}
  | {readonly type: 'released'; readonly deploymentId: string}
  | {readonly type: 'log'; readonly level: Level; readonly fields: Fields; readonly message: string}

export type Level = Exclude<keyof Log, 'child'>

/** What of an error is worth the trip; the rest of it may quote rows. */
export type ErrorFacts = {
  readonly name: string
  readonly message: string
  readonly stack: string | undefined
  readonly cause: ErrorFacts | undefined
  /** Of a failure that we have a name for. */
  readonly named?: Pick<SyncError, 'code' | 'next' | 'retryable'>
}

/** A failure that we have a name for, as another process met it. */
export class RelayedError extends SyncError {
  override readonly name: string
  readonly code: SyncError['code']
  override readonly retryable: boolean
  readonly next: string

  constructor(
    {name, message, named}: ErrorFacts & {named: NonNullable<ErrorFacts['named']>},
    options?: ErrorOptions,
  ) {
    super(message, options)
    this.name = name
    this.code = named.code
    this.retryable = named.retryable
    this.next = named.next
  }
}

export function factsOf(error: unknown): ErrorFacts {
  if (!(error instanceof Error))
    return {name: 'Error', message: String(error), stack: undefined, cause: undefined}
  const {name, message, stack, cause} = error
  return {
    name,
    message,
    stack,
    cause: cause === undefined ? undefined : factsOf(cause),
    ...(error instanceof SyncError && {
      named: {code: error.code, next: error.next, retryable: error.retryable},
    }),
  }
}

export function errorOf(facts: ErrorFacts): Error {
  const {name, message, stack, cause, named} = facts
  const options = cause === undefined ? {} : {cause: errorOf(cause)}
  const error =
    named === undefined
      ? Object.assign(new Error(message, options), {name})
      : new RelayedError({...facts, named}, options)
  if (stack !== undefined) error.stack = stack
  return error
}

/** @returns an instant of `performance.now()`, which begins with each process, on the clock that all processes share. */
export function sharedInstant(ownMs: number): bigint {
  const inMs = ownMs - performance.now()
  return process.hrtime.bigint() + BigInt(Math.floor(Math.min(inMs, 1e12) * 1e6))
}

/** @returns a shared instant in milliseconds of this process's `performance.now()`. */
export function ownInstant(sharedNs: bigint): number {
  return performance.now() + Number(sharedNs - process.hrtime.bigint()) / 1e6
}
