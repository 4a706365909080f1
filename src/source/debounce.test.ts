import assert from 'node:assert/strict'
import {describe, test} from 'vitest'
import {decide, type Patience, type Sight, type Step} from './debounce.ts'

const patience: Patience = {quietMs: 100, mostMs: 500, lookMs: 10_000, deafLookMs: 1_000}
const idle: Sight = {now: 50_000, signs: undefined, lookedAt: 50_000, isDeaf: false}
const signs = (firstAt: number, lastAt = firstAt) => ({signs: {firstAt, lastAt}})

describe('a watcher', () => {
  for (const [what, seen, expected] of [
    ['nothing happened', {}, {do: 'wait', ms: 10_000}],
    ['nothing happened since long', {lookedAt: 40_000}, {do: 'look'}],
    ['nothing can be heard', {isDeaf: true}, {do: 'wait', ms: 1_000}],
    ['nothing can be heard and a second is over', {isDeaf: true, lookedAt: 49_000}, {do: 'look'}],
    ['there was a sign just now', signs(50_000), {do: 'wait', ms: 100}],
    ['a sign, and quiet since', signs(49_900), {do: 'tell'}],
    ['signs go on', signs(49_800, 49_990), {do: 'wait', ms: 90}],
    ['signs go on and on', signs(49_510, 49_999), {do: 'wait', ms: 10}],
    ['signs have gone on for longer than a change may wait', signs(49_500, 50_000), {do: 'tell'}],
    ['somebody kept us from telling', signs(10_000), {do: 'tell'}],
    ['telling and looking are due at once', {...signs(49_900), lookedAt: 0}, {do: 'tell'}],
    ['looking is due before telling', {...signs(49_950), lookedAt: 40_000}, {do: 'look'}],
    ['the next look comes before the quiet', {...signs(50_000), lookedAt: 40_050}, {do: 'wait', ms: 50}],
  ] as [string, Partial<Sight>, Step][])
    test(`when ${what}: ${expected.do}`, () => {
      assert.deepEqual(decide({...idle, ...seen}, patience), expected)
    })

  test('however an app writes, it is told of within the most that a change may wait', () => {
    for (const everyMs of [1, 7, 50, 99, 100, 101, 250]) {
      const firstAt = 50_000
      let lastAt = firstAt
      let now = firstAt
      for (;;) {
        const step = decide({...idle, now, signs: {firstAt, lastAt}}, patience)
        if (step.do === 'tell') break
        assert.ok(step.do === 'wait' && step.ms > 0)
        now += step.ms
        lastAt = firstAt + Math.floor((now - firstAt) / everyMs) * everyMs
      }
      assert.ok(now - firstAt <= patience.mostMs, `a write every ${everyMs} ms: ${now - firstAt} ms`)
    }
  })
})
