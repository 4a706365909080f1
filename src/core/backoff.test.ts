import assert from 'node:assert/strict'
import {test} from 'vitest'
import {backoffMs} from './backoff.ts'

const pauses = {firstMs: 1_000, mostMs: 10_000}

test('each pause is twice as long as the one before, up to the longest', () => {
  assert.deepEqual(
    [1, 2, 3, 4, 5, 6, 1_000].map(failures => backoffMs(failures, pauses, 0.5)),
    [1_000, 2_000, 4_000, 8_000, 10_000, 10_000, 10_000],
  )
})

test('a pause is up to a quarter shorter or longer', () => {
  assert.deepEqual(
    [0, 1].map(random => backoffMs(1, pauses, random)),
    [750, 1_250],
  )
  for (let i = 0; i < 100; i++) {
    const ms = backoffMs(3, pauses)
    assert.ok(ms >= 3_000 && ms <= 5_000)
  }
})
