import assert from 'node:assert/strict'
import pg from 'pg'
import {test} from 'vitest'
import type {SyncError} from '../core/errors.ts'
import {copyLine, isDataError, translate, type During} from './sqlstate.ts'

const address = 'node@db.example.com:5432/postgres'

function fromServer(code: string, message: string, more: Partial<pg.DatabaseError> = {}): pg.DatabaseError {
  return Object.assign(new pg.DatabaseError(message, message.length, 'error'), {
    severity: 'ERROR',
    code,
    ...more,
  })
}

function fromSocket(message: string, code?: string): Error {
  return Object.assign(new Error(message), code === undefined ? {} : {code})
}

for (const [during, error, code, retryable] of [
  [
    'connect',
    fromServer('28P01', 'password authentication failed for user "x"'),
    'SYNC_WRONG_PASSWORD',
    false,
  ],
  ['connect', fromServer('28000', 'no pg_hba.conf entry'), 'SYNC_WRONG_PASSWORD', false],
  ['connect', fromServer('08P01', 'SASL authentication failed'), 'SYNC_WRONG_PASSWORD', false],
  [
    'connect',
    fromSocket('SASL: SCRAM-SERVER-FINAL-MESSAGE: server signature is wrong'),
    'SYNC_WRONG_PASSWORD',
    false,
  ],
  ['connect', fromServer('3D000', 'database "x" does not exist'), 'SYNC_NO_SUCH_DATABASE', false],
  [
    'connect',
    fromServer('57P03', 'the database system is starting up', {severity: 'FATAL'}),
    'SYNC_UNREACHABLE',
    true,
  ],
  ['connect', fromServer('53300', 'too many clients already'), 'SYNC_TOO_MANY_CONNECTIONS', true],
  ['connect', fromSocket('connect ECONNREFUSED 10.0.0.1:5432', 'ECONNREFUSED'), 'SYNC_UNREACHABLE', true],
  ['connect', fromSocket('getaddrinfo ENOTFOUND db', 'ENOTFOUND'), 'SYNC_UNREACHABLE', true],
  ['connect', fromSocket('timeout expired'), 'SYNC_UNREACHABLE', true],
  ['connect', new AggregateError([fromSocket('v6'), fromSocket('v4')]), 'SYNC_UNREACHABLE', true],
  [
    'connect',
    fromSocket('self-signed certificate in certificate chain', 'SELF_SIGNED_CERT_IN_CHAIN'),
    'SYNC_TLS',
    false,
  ],
  [
    'connect',
    fromSocket("Hostname/IP does not match certificate's altnames", 'ERR_TLS_CERT_ALTNAME_INVALID'),
    'SYNC_TLS',
    false,
  ],
  [
    'connect',
    fromSocket('unable to get local issuer', 'UNABLE_TO_GET_ISSUER_CERT_LOCALLY'),
    'SYNC_TLS',
    false,
  ],
  ['connect', fromSocket('The server does not support SSL connections'), 'SYNC_TLS', false],
  [
    'connect',
    fromServer('XX000', '(ENOTFOUND) tenant/user node.ref not found'),
    'SYNC_POOLER_REFUSED',
    false,
  ],
  ['connect', fromServer('XX000', 'Tenant or user not found'), 'SYNC_POOLER_REFUSED', false],
  [
    'connect',
    fromServer('XX000', '(EMAXCONNSESSION) max clients reached in session mode'),
    'SYNC_POOLER_REFUSED',
    true,
  ],
  [
    'connect',
    fromServer('XX000', '(ECIRCUITBREAKER) too many authentication failures'),
    'SYNC_POOLER_REFUSED',
    true,
  ],
  [
    'connect',
    fromServer('XX000', '(EADDRNOTALLOWED) address not in tenant allow_list'),
    'SYNC_POOLER_REFUSED',
    false,
  ],
  ['connect', fromServer('XX000', '(ESOMETHINGNEW) what next'), 'SYNC_POOLER_REFUSED', true],
  ['transaction', fromServer('XX000', '(EDBHANDLEREXITED) DbHandler exited'), 'SYNC_CONNECTION_LOST', true],
  ['transaction', fromServer('42501', 'permission denied for table hosts'), 'SYNC_PERMISSION', false],
  [
    'transaction',
    fromServer('25006', 'cannot execute INSERT in a read-only transaction'),
    'SYNC_READ_ONLY',
    false,
  ],
  [
    'transaction',
    fromServer('53100', 'could not extend file: No space left on device'),
    'SYNC_OUT_OF_SPACE',
    false,
  ],
  ['transaction', fromServer('40P01', 'deadlock detected'), 'SYNC_TRANSACTION_CONFLICT', true],
  ['commit', fromServer('40001', 'could not serialize access'), 'SYNC_TRANSACTION_CONFLICT', true],
  [
    'transaction',
    fromServer('55P03', 'canceling statement due to lock timeout'),
    'SYNC_TRANSACTION_CONFLICT',
    true,
  ],
  [
    'transaction',
    fromServer('57014', 'canceling statement due to statement timeout'),
    'SYNC_STATEMENT_TIMEOUT',
    true,
  ],
  [
    'transaction',
    fromServer('57P01', 'terminating connection due to administrator command'),
    'SYNC_CONNECTION_LOST',
    true,
  ],
  [
    'transaction',
    fromServer('25P03', 'idle-in-transaction timeout', {severity: 'FATAL'}),
    'SYNC_CONNECTION_LOST',
    true,
  ],
  ['transaction', fromServer('XX000', 'something fatal', {severity: 'FATAL'}), 'SYNC_CONNECTION_LOST', true],
  ['transaction', fromSocket('read ECONNRESET', 'ECONNRESET'), 'SYNC_CONNECTION_LOST', true],
  ['commit', fromSocket('Connection terminated unexpectedly'), 'SYNC_CONNECTION_LOST', true],
  ['transaction', fromServer('22003', 'value out of range'), 'SYNC_DATA', false],
  ['transaction', fromServer('23505', 'duplicate key value'), 'SYNC_DATA', false],
  ['transaction', fromServer('54000', 'index row size exceeds maximum'), 'SYNC_DATA', false],
] as const satisfies readonly (readonly [During, Error, string, boolean])[]) {
  test(`${error.message || 'several addresses failing'} (${during}) is ${code}${retryable ? ', worth another try' : ''}`, () => {
    const translated = translate(error, during, address) as SyncError
    assert.equal(translated.code, code)
    assert.equal(translated.retryable, retryable)
    assert.equal(translated.cause, error)
    assert.match(translated.next, /^[A-Z].*\.$/)
    assert.equal(translate(translated, 'commit', address), translated)
  })
}

test('a mistake in our own SQL stays what it is, and quotes no row to a logger', () => {
  const error = fromServer('42601', 'syntax error', {
    detail: 'row (secret)',
    where: 'COPY t, line 1: "secret"',
  })
  assert.equal(translate(error, 'transaction', address), error)
  assert.doesNotMatch(JSON.stringify(error), /secret/)
  assert.equal(error.where, 'COPY t, line 1: "secret"')
})

test('an error of the code that ran within a transaction passes through', () => {
  const ours = new TypeError('ours')
  assert.equal(translate(ours, 'transaction', address), ours)
  assert.equal(translate('text', 'transaction', address), 'text')
})

test('a refused row is named by its line and never quoted', () => {
  const where = 'COPY staging_1, line 42, column chat: "secret, line 7"'
  const error = translate(
    fromServer('22P02', 'invalid input: "secret"', {where, table: 't', column: 'c'}),
    'transaction',
    '',
  )
  assert.ok(isDataError(error))
  assert.equal(copyLine(error), 42)
  assert.equal(error.message, 'Postgres refused a value (22P02), table t, column c')
  const german = fromServer('22P02', 'ungültig', {where: 'COPY staging_1, Zeile 3, Spalte a: »x«'})
  assert.equal(copyLine(translate(german, 'transaction', '')), 3)
  assert.equal(copyLine(translate(fromServer('23502', 'null'), 'transaction', '')), undefined)
  assert.equal(copyLine(new Error('x')), undefined)
})
