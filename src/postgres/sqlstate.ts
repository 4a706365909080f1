import pg from 'pg'
import {SyncError} from '../core/errors.ts'
import {ownRefusal} from './refusals.ts'

/** The server cannot be reached, or does not let anyone in yet. */
export class UnreachableError extends SyncError {
  override readonly name = 'UnreachableError'
  readonly code = 'SYNC_UNREACHABLE'
  override readonly retryable = true
  readonly next =
    'Check that Postgres runs there and that this machine may reach it; a direct Supabase address needs IPv6.'
  readonly address: string

  constructor(address: string, reason: string, options?: ErrorOptions) {
    super(`Postgres at ${address} cannot be reached: ${reason}`, options)
    this.address = address
  }
}

/** There is a server, but not the database or user that the URL names. */
export class NoSuchDatabaseError extends SyncError {
  override readonly name = 'NoSuchDatabaseError'
  readonly code = 'SYNC_NO_SUCH_DATABASE'
  readonly next = 'Check the database name in DATABASE_URL; on Supabase it is `postgres`.'

  constructor(address: string, options?: ErrorOptions) {
    super(`the server does not have the database of ${address}`, options)
  }
}

/** The server refused the user's password. Trying again soon gets the address blocked by pooler and server. */
export class WrongPasswordError extends SyncError {
  override readonly name = 'WrongPasswordError'
  readonly code = 'SYNC_WRONG_PASSWORD'
  readonly next =
    'Check user and password in DATABASE_URL; `owsync db rotate-password` gives the role a new one.'

  constructor(address: string, options?: ErrorOptions) {
    super(`Postgres refused the user or password of ${address}`, options)
  }
}

/** Supabase's pooler refused the connection before Postgres saw it. `reason` is its own code, such as `ENOTFOUND`. */
export class PoolerRefusedError extends SyncError {
  override readonly name = 'PoolerRefusedError'
  readonly code = 'SYNC_POOLER_REFUSED'
  override readonly retryable: boolean
  readonly next: string
  readonly reason: string
  /** The least time to wait before asking again; an earlier try can prolong the refusal. */
  readonly waitMs: number

  constructor(reason: string, options?: ErrorOptions) {
    super(`the connection pooler refused the connection (${reason})`, options)
    const known = poolerReasons[reason] ?? {
      retryable: true,
      waitMs: 10_000,
      next: 'Look at the project’s pooler logs.',
    }
    this.reason = reason
    this.retryable = known.retryable
    this.waitMs = known.waitMs
    this.next = known.next
  }
}

/** The role may not do this. */
export class PermissionError extends SyncError {
  override readonly name = 'PermissionError'
  readonly code = 'SYNC_PERMISSION'
  readonly next =
    'Run `owsync db migrate` with the admin URL; when that is done, use the URL that `owsync db grant-host` gave this host.'

  constructor(what: string, options?: ErrorOptions) {
    super(`Postgres does not allow this role: ${what}`, options)
  }
}

/** The database takes no writes. */
export class ReadOnlyError extends SyncError {
  override readonly name = 'ReadOnlyError'
  readonly code = 'SYNC_READ_ONLY'
  readonly next =
    'Point DATABASE_URL at the primary; on Supabase a full disk makes a project read-only: free or add space.'

  constructor(options?: ErrorOptions) {
    super('the database is read-only', options)
  }
}

/** The server has no disk space left. */
export class OutOfSpaceError extends SyncError {
  override readonly name = 'OutOfSpaceError'
  readonly code = 'SYNC_OUT_OF_SPACE'
  readonly next = 'Give the database server more disk, or free some; syncing resumes where it was.'

  constructor(options?: ErrorOptions) {
    super('the database server has no disk space left', options)
  }
}

/** The server, or this role's limit on it, has no connection left to give. */
export class TooManyConnectionsError extends SyncError {
  override readonly name = 'TooManyConnectionsError'
  readonly code = 'SYNC_TOO_MANY_CONNECTIONS'
  override readonly retryable = true
  readonly next =
    'Lower MAX_SYNC_WORKERS, close other clients, or raise the role’s or the server’s connection limit.'

  constructor(options?: ErrorOptions) {
    super('Postgres has no connection left for this role', options)
  }
}

/** The server is older than PostgreSQL 15. */
export class ServerTooOldError extends SyncError {
  override readonly name = 'ServerTooOldError'
  readonly code = 'SYNC_SERVER_TOO_OLD'
  readonly next = 'Upgrade the server to PostgreSQL 15 or newer.'

  constructor(version: string, options?: ErrorOptions) {
    super(`the server runs PostgreSQL ${version}; 15 is the oldest that works`, options)
  }
}

/**
 * The connection broke. `outcomeUnknown` is true when it broke while a commit (or a statement outside a transaction)
 * was under way: it may have happened. Otherwise the transaction was rolled back.
 */
export class ConnectionLostError extends SyncError {
  override readonly name = 'ConnectionLostError'
  readonly code = 'SYNC_CONNECTION_LOST'
  override readonly retryable = true
  readonly next =
    'Nothing, when it was a restart or a short outage: it is tried again; else look at the network between.'
  readonly outcomeUnknown: boolean

  constructor(outcomeUnknown: boolean, options?: ErrorOptions) {
    super(
      `the connection to Postgres was lost${outcomeUnknown ? '; whether it committed is not known' : ''}`,
      options,
    )
    this.outcomeUnknown = outcomeUnknown
  }
}

/** Another transaction was in the way: a deadlock, a serialization failure or a lock not given in time. */
export class TransactionConflictError extends SyncError {
  override readonly name = 'TransactionConflictError'
  readonly code = 'SYNC_TRANSACTION_CONFLICT'
  override readonly retryable = true
  readonly next =
    'Nothing: it is tried again; when it persists, look in pg_stat_activity for who holds the lock.'

  constructor(options?: ErrorOptions) {
    super('another transaction was in the way', options)
  }
}

/** A statement took longer than the role's or the transaction's limit, or someone cancelled it. */
export class StatementTimeoutError extends SyncError {
  override readonly name = 'StatementTimeoutError'
  readonly code = 'SYNC_STATEMENT_TIMEOUT'
  override readonly retryable = true
  readonly next =
    'Look at the server’s load; raise the role’s statement_timeout when a statement needs longer.'

  constructor(options?: ErrorOptions) {
    super('Postgres stopped a statement before it was done', options)
  }
}

/** No TLS connection that can be trusted: the certificate was not accepted, or the server offers no TLS. */
export class TlsError extends SyncError {
  override readonly name = 'TlsError'
  readonly code = 'SYNC_TLS'
  readonly next =
    'Set DB_SSL_CA_FILE to the CA certificate of the server (Supabase: Database settings, SSL), and use its real name.'

  constructor(address: string, reason: string, options?: ErrorOptions) {
    super(`no trusted TLS connection to ${address}: ${reason}`, options)
  }
}

/** Postgres refused a value of a row. The value itself is only in `cause`, which is not for logs. */
export class DataError extends SyncError {
  override readonly name = 'DataError'
  readonly code = 'SYNC_DATA'
  readonly next = 'The row is set aside and reported; look at it in the source and repair it there.'
  readonly sqlstate: string
  readonly table: string | undefined
  readonly column: string | undefined
  readonly constraint: string | undefined
  /** The line of a COPY that was refused, counted from 1. */
  readonly line: number | undefined

  constructor(cause: pg.DatabaseError) {
    // The server may speak another language than English.
    const line = /^COPY .*?, \p{L}+ (\d+)/mu.exec(cause.where ?? '')?.[1]
    const where = [
      cause.table && `table ${cause.table}`,
      cause.column && `column ${cause.column}`,
      cause.constraint && `constraint ${cause.constraint}`,
    ].filter(Boolean)
    super(
      `Postgres refused a value (${cause.code ?? 'no code'})${where.map(part => `, ${part ?? ''}`).join('')}`,
      {cause},
    )
    this.sqlstate = cause.code ?? ''
    this.table = cause.table
    this.column = cause.column
    this.constraint = cause.constraint
    this.line = line === undefined ? undefined : Number(line)
  }
}

/** True when a row's own content was refused, so that leaving this row out would help. */
export function isDataError(error: unknown): error is DataError {
  return error instanceof DataError
}

/** @returns the line (from 1) of the COPY that the server refused; undefined when it did not say. */
export function copyLine(error: unknown): number | undefined {
  return error instanceof DataError ? error.line : undefined
}

/** What was going on when an error came; it decides what the error means. */
export type During = 'connect' | 'transaction' | 'commit'

/**
 * Translates what the driver threw into one of our errors. An error that nobody can act on (a mistake in our SQL)
 * comes back as it is, with the parts that quote rows hidden from loggers.
 *
 * @param during `commit` also stands for a statement outside a transaction.
 */
export function translate(error: unknown, during: During, address: string): unknown {
  if (!(error instanceof Error) || error instanceof SyncError) return error
  const options = {cause: error}
  if (!(error instanceof pg.DatabaseError)) {
    if (isTls(error)) return new TlsError(address, error.message, options)
    if (during === 'connect') return fromDriver(error, address)
    return isBroken(error) ? new ConnectionLostError(during === 'commit', options) : error
  }

  hideRows(error)
  const pooler = /^\((E[A-Z]+)\)/.exec(error.message)?.[1] ?? oldPoolerReason(error.message)
  if (pooler !== undefined) {
    return pooler === 'EDBHANDLEREXITED' && during !== 'connect'
      ? new ConnectionLostError(during === 'commit', options)
      : new PoolerRefusedError(pooler, options)
  }
  const translated = ownRefusal(error) ?? fromSqlstate(error, during, address)
  if (translated) return translated
  if (error.severity === 'FATAL' || error.severity === 'PANIC') {
    return during === 'connect'
      ? new UnreachableError(address, error.message, options)
      : new ConnectionLostError(during === 'commit', options)
  }
  return error
}

function fromSqlstate(error: pg.DatabaseError, during: During, address: string): SyncError | undefined {
  const options = {cause: error}
  const state = error.code ?? ''
  switch (state) {
    case '28P01':
    case '28000':
      return new WrongPasswordError(address, options)
    case '08P01': // PgBouncer's words for a wrong password
      return /SASL|password|auth/i.test(error.message) && during === 'connect'
        ? new WrongPasswordError(address, options)
        : undefined
    case '3D000':
      return new NoSuchDatabaseError(address, options)
    case '42501':
      return new PermissionError(error.message, options)
    case '25006':
      return new ReadOnlyError(options)
    case '53100':
      return new OutOfSpaceError(options)
    case '53300':
      return new TooManyConnectionsError(options)
    case '40001':
    case '40P01':
    case '55P03':
      return new TransactionConflictError(options)
    case '57014':
      return new StatementTimeoutError(options)
  }
  // P0001 is what a trigger of somebody's own raises; ours have states of their own (refusals.ts).
  if (/^(22|23|44|54|P0001)/.test(state)) return new DataError(error)
  // Class 08, and 57P01 to 57P05 and 25P03 to 25P04 where the server or its operator ends sessions.
  if (/^(08|57P|25P0[34])/.test(state)) {
    return during === 'connect'
      ? new UnreachableError(address, error.message, options)
      : new ConnectionLostError(during === 'commit', options)
  }
  return undefined
}

function fromDriver(error: Error, address: string): SyncError {
  const options = {cause: error}
  // The driver's own refusals of what a server answered in SCRAM begin with this.
  if (error.message.startsWith('SASL')) return new WrongPasswordError(address, options)
  const reasons = error instanceof AggregateError ? error.errors.map(each => (each as Error).message) : []
  const reason = reasons.length > 0 ? reasons.join('; ') : error.message
  return new UnreachableError(
    address,
    reason === 'timeout expired' ? 'it did not answer in time' : reason,
    options,
  )
}

const brokenCodes = new Set([
  'ECONNRESET',
  'EPIPE',
  'ETIMEDOUT',
  'EHOSTUNREACH',
  'ENETUNREACH',
  'ENETDOWN',
  'ECONNABORTED',
])
const brokenMessages =
  /^(Connection terminated|Client has encountered a connection error|Client was closed|This socket has been ended|write after end)/

function isBroken(error: Error): boolean {
  const code = codeOf(error)
  return brokenCodes.has(code) || code.startsWith('ERR_STREAM_') || brokenMessages.test(error.message)
}

function isTls(error: Error): boolean {
  const code = codeOf(error)
  return (
    code.startsWith('ERR_TLS') ||
    code.startsWith('ERR_SSL') ||
    /^(CERT_|SELF_SIGNED_|DEPTH_ZERO_|UNABLE_TO_(GET_ISSUER|VERIFY)|HOSTNAME_MISMATCH)/.test(code) ||
    error.message === 'The server does not support SSL connections'
  )
}

// A DOMException (an abort, a timeout) has a number there.
function codeOf(error: Error): string {
  const {code} = error as {code?: unknown}
  return typeof code === 'string' ? code : ''
}

function oldPoolerReason(message: string): string | undefined {
  if (/^tenant or user not found/i.test(message)) return 'ENOTFOUND'
  return /^DbHandler exited/i.test(message) ? 'EDBHANDLEREXITED' : undefined
}

// Postgres quotes rows in these: they stay readable in a debugger, and out of every logger and JSON.
function hideRows(error: pg.DatabaseError): void {
  for (const key of ['detail', 'where', 'internalQuery'] as const) {
    if (error[key] !== undefined) Object.defineProperty(error, key, {value: error[key], enumerable: false})
  }
}

type PoolerReason = {readonly retryable: boolean; readonly waitMs: number; readonly next: string}

const busy = 'Lower MAX_SYNC_WORKERS or raise the pool size in the project’s database settings.'
const policy = (next: string): PoolerReason => ({retryable: false, waitMs: 60_000, next})

const poolerReasons: Readonly<Record<string, PoolerReason>> = {
  ENOTFOUND: policy(
    'Copy host and user from the project’s dashboard: the user is ROLE.PROJECT and the host is not to be guessed.',
  ),
  ECIRCUITBREAKER: {
    retryable: true,
    waitMs: 130_000,
    next: 'Too many failed logins: correct the password first, then wait two minutes without trying.',
  },
  EMAXCONNSESSION: {retryable: true, waitMs: 5_000, next: busy},
  EMAXCONN: {retryable: true, waitMs: 5_000, next: busy},
  ECHECKOUTTIMEOUT: {retryable: true, waitMs: 1_000, next: busy},
  EDBHANDLEREXITED: {
    retryable: true,
    waitMs: 1_000,
    next: 'Nothing: the pooler restarts it; see the project’s logs when it persists.',
  },
  ESSLREQUIRED: policy('Use DB_SSL=verify-full; the project enforces TLS.'),
  EADDRNOTALLOWED: policy('Allow this machine’s address in the project’s network restrictions.'),
  EBANNED: policy('Lift the ban of this machine’s address in the project’s database settings.'),
}
