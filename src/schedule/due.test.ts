import assert from 'node:assert/strict'
import {describe, test} from 'vitest'
import {dueInMs, pauseMs, type DueView} from './due.ts'
import type {Schedule} from './interval.ts'

const minute = 60_000
const hour = 60 * minute
const hourly: Schedule = {kind: 'every', seconds: 3_600}
const cron = (expression: string): Schedule => ({kind: 'cron', expression})

const view = (changes: Partial<DueView>): DueView => ({
  schedule: hourly,
  deploymentId: '5f0c1f2e-8f34-4a83-9f0e-2b1b0f0f0f0f',
  sinceMs: 0,
  failures: 0,
  now: new Date('2026-06-10T12:00:00Z'),
  timeZone: 'UTC',
  ...changes,
})

const table: readonly (readonly [what: string, changes: Partial<DueView>, inMs: number])[] = [
  ['just run, hourly', {}, hour],
  ['an hour ago, hourly', {sinceMs: hour}, 0],
  ['two hours ago, hourly', {sinceMs: 2 * hour}, -hour],
  ['never run, hourly', {sinceMs: undefined}, 0],
  ['never run, nightly: it does not wait for the night', {schedule: {kind: 'daily'}, sinceMs: undefined}, 0],
  ['never run, live', {schedule: {kind: 'live'}, sinceMs: undefined}, 0],
  ['never run, manual', {schedule: {kind: 'manual'}, sinceMs: undefined}, Infinity],
  ['long ago, manual', {schedule: {kind: 'manual'}, sinceMs: 1e12}, Infinity],
  ['live, idle for half a minute', {schedule: {kind: 'live'}, sinceMs: minute / 2}, minute / 2],
  ['a cron time in ten minutes', {schedule: cron('10 12 * * *'), sinceMs: hour}, 10 * minute],
  ['a cron time five minutes ago', {schedule: cron('55 11 * * *'), sinceMs: hour}, -5 * minute],
  [
    'a cron time that was slept through for days',
    {schedule: cron('0 11 * * *'), sinceMs: 49 * hour},
    -25 * hour,
  ],
  [
    'the same cron time is not run twice',
    {schedule: cron('55 11 * * *'), sinceMs: 5 * minute},
    23 * hour + 55 * minute,
  ],
  [
    'in the time zone of the host',
    {schedule: cron('0 9 * * *'), timeZone: 'America/New_York', sinceMs: 2 * hour},
    hour,
  ],
  ['hourly, once failed', {failures: 1}, hour],
  ['hourly, often failed: not longer than it is', {failures: 20}, hour],
]

test.each(table)('%s', (_, changes, inMs) => {
  assert.equal(dueInMs(view(changes)), inMs)
})

describe('a cron time of the host', () => {
  const at = (now: string, sinceMs: number) =>
    dueInMs(view({schedule: cron('30 2 * * *'), timeZone: 'Europe/Berlin', now: new Date(now), sinceMs}))

  test('that the change to summer time skips comes all the same', () => {
    const inMs = at('2026-03-29T00:00:00Z', hour)
    assert.ok(inMs > 0 && inMs <= 2 * hour, `${inMs}`)
  })

  test('that the change to winter time repeats comes once', () => {
    const first = at('2026-10-25T00:00:00Z', hour)
    assert.equal(first, 30 * minute)
    const again = dueInMs(
      view({
        schedule: cron('30 2 * * *'),
        timeZone: 'Europe/Berlin',
        now: new Date('2026-10-25T00:31:00Z'),
        sinceMs: minute,
      }),
    )
    assert.ok(again > 23 * hour, `${again}`)
  })
})

test('nightly ones are spread over the night, each at its own time, every night', () => {
  const times = new Set<number>()
  for (let i = 0; i < 300; i++) {
    const deploymentId = crypto.randomUUID()
    const now = new Date('2026-06-10T00:00:00Z')
    const inMs = dueInMs(view({schedule: {kind: 'daily'}, deploymentId, now, sinceMs: hour}))
    assert.ok(inMs >= hour && inMs < 5 * hour, `${inMs}`)
    const next = new Date('2026-06-11T00:00:00Z')
    assert.equal(dueInMs(view({schedule: {kind: 'daily'}, deploymentId, now: next, sinceMs: hour})), inMs)
    times.add(inMs)
  }
  assert.ok(times.size > 100, `${times.size} times`)
})

test('pauses grow from the third failure on, up to five minutes', () => {
  assert.deepEqual(
    [0, 1, 2, 3, 4, 5, 6, 1_000].map(failures => pauseMs(minute, failures) / minute),
    [1, 1, 1, 2, 4, 5, 5, 5],
  )
})
