import assert from 'node:assert/strict'
import {describe, test} from 'vitest'
import {UsageError} from '../core/errors.ts'
import {columnsOf, parseInterval, scheduleOf, type Schedule} from './interval.ts'

const read: readonly (readonly [text: string, schedule: Schedule])[] = [
  ['realtime', {kind: 'every', seconds: 60}],
  ['1m', {kind: 'every', seconds: 60}],
  ['5m', {kind: 'every', seconds: 300}],
  ['frequent', {kind: 'every', seconds: 3_600}],
  ['hourly', {kind: 'every', seconds: 3_600}],
  ['4h', {kind: 'every', seconds: 14_400}],
  ['10', {kind: 'every', seconds: 10}],
  [' 86400 ', {kind: 'every', seconds: 86_400}],
  ['daily', {kind: 'daily'}],
  ['live', {kind: 'live'}],
  ['manual', {kind: 'manual'}],
  ['*/15 8-18 * * 1-5', {kind: 'cron', expression: '*/15 8-18 * * 1-5'}],
  ['0  3 * *   SUN', {kind: 'cron', expression: '0 3 * * SUN'}],
]

test.each(read)('%j is read', (text, schedule) => {
  assert.deepEqual(parseInterval(text), schedule)
})

test.each([
  '',
  'sometimes',
  '9',
  '0',
  '-60',
  '1.5',
  '1e3',
  '99999999999',
  '* * * * * *',
  '61 * * * *',
  '* * 31 2 *',
  'constructor',
])('%j is refused', text => {
  assert.throws(() => parseInterval(text), UsageError)
})

describe('in the control schema', () => {
  test.each(read)('%j is kept as it is', (_, schedule) => {
    assert.deepEqual(scheduleOf(columnsOf(schedule)), schedule)
  })

  test('neither interval nor schedule is manual, and what is no schedule is refused', () => {
    assert.deepEqual(scheduleOf({syncInterval: null, syncSchedule: null}), {kind: 'manual'})
    assert.throws(() => scheduleOf({syncInterval: 60, syncSchedule: 'now and then'}), UsageError)
  })
})
