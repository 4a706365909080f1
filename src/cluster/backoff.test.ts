import assert from 'node:assert/strict'
import {test} from 'vitest'
import {
  ConnectionLostError,
  PoolerRefusedError,
  TooManyConnectionsError,
  UnreachableError,
  WrongPasswordError,
} from '../postgres/sqlstate.ts'
import {isLoginRefused, pauseAfter} from './backoff.ts'

for (const [what, error, pauses] of [
  ['a lost connection is tried again soon', new ConnectionLostError(false), [100, 200, 400, 5_000]],
  [
    'an outage is asked about every few seconds',
    new UnreachableError('db', 'refused'),
    [100, 200, 400, 5_000],
  ],
  [
    'a wrong password is not tried into a lock-out',
    new WrongPasswordError('db'),
    [10_000, 20_000, 40_000, 300_000],
  ],
  ['a full server is left alone for a while', new TooManyConnectionsError(), [2_000, 4_000, 8_000, 30_000]],
  [
    'a full pooler gets the time it asks for',
    new PoolerRefusedError('EMAXCONNSESSION'),
    [5_000, 5_000, 8_000, 30_000],
  ],
  [
    'an open circuit breaker is waited for',
    new PoolerRefusedError('ECIRCUITBREAKER'),
    [130_000, 130_000, 130_000, 130_000],
  ],
  ['a missing project needs a person', new PoolerRefusedError('ENOTFOUND'), [60_000, 60_000, 60_000, 60_000]],
] as const) {
  test(what, () => {
    assert.deepEqual(
      [1, 2, 3, 100].map(failures => pauseAfter(error, failures, 0.5)),
      pauses,
    )
  })
}

test('those who failed together do not come back together', () => {
  const error = new ConnectionLostError(false)
  assert.deepEqual(
    [0, 1].map(chance => pauseAfter(error, 100, chance)),
    [4_500, 5_500],
  )
})

test('only a refused login keeps the rest of the process from trying', () => {
  assert.ok(isLoginRefused(new WrongPasswordError('db')))
  assert.ok(isLoginRefused(new PoolerRefusedError('ECIRCUITBREAKER')))
  assert.ok(!isLoginRefused(new TooManyConnectionsError()))
  assert.ok(!isLoginRefused(new UnreachableError('db', 'refused')))
})
