import assert from 'node:assert/strict'
import {test} from 'vitest'
import {Bell} from './bell.ts'

const {signal} = new AbortController()

test('a ring ends the wait, whether it comes before or meanwhile, and once', async () => {
  const bell = new Bell()
  bell.ring()
  bell.ring()
  await bell.wait(600_000, signal)
  const waiting = bell.wait(600_000, signal)
  bell.ring()
  await waiting
  await bell.wait(1, signal)
})

test('the signal ends the wait with its reason', async () => {
  const stop = new AbortController()
  const waiting = new Bell().wait(600_000, stop.signal)
  stop.abort(new Error('enough'))
  await assert.rejects(waiting, /enough/)
  await assert.rejects(new Bell().wait(0, stop.signal), /enough/)
})
