import assert from 'node:assert/strict'
import {describe, test} from 'vitest'
import fc from 'fast-check'
import {COOL_DOWN_MS, decideAlerts, keyOf, openAlerts, type AlertMemory, type Cause} from './alert.ts'

const start = Date.parse('2025-01-01T00:00:00Z')
const lag: Cause = {rule: 'sync_lag', client: 'acme', summary: 'acme is 700 s behind'}
const worse: Cause = {...lag, summary: 'acme is 900 s behind'}
const other: Cause = {...lag, client: 'beta'}
const flapping: Cause = {rule: 'leader_flapping', summary: 'the leader changed 5 times'}
const minutes = (count: number) => count * 60_000
const coolDown = COOL_DOWN_MS / 60_000

/** Each step: minute, causes at that time, what is sent. */
for (const [what, steps] of [
  [
    'nothing is wrong, nothing is sent',
    [
      [0, [], []],
      [1, [], []],
    ],
  ],
  [
    'something goes wrong, it is told once',
    [
      [0, [lag], ['raised sync_lag/acme']],
      [1, [lag], []],
      [300, [lag], []],
    ],
  ],
  [
    'it gets worse, it is the same cause',
    [
      [0, [lag], ['raised sync_lag/acme']],
      [1, [worse], []],
    ],
  ],
  [
    'it ends, that is told once',
    [
      [0, [lag], ['raised sync_lag/acme']],
      [1, [], ['recovered sync_lag/acme']],
      [2, [], []],
    ],
  ],
  [
    'two clients have the same trouble, both are told',
    [
      [0, [lag, other], ['raised sync_lag/acme', 'raised sync_lag/beta']],
      [1, [other], ['recovered sync_lag/acme']],
    ],
  ],
  [
    'it concerns no client, its name is the rule',
    [
      [0, [flapping], ['raised leader_flapping']],
      [1, [], ['recovered leader_flapping']],
    ],
  ],
  [
    'it comes and goes, the cool-down keeps quiet',
    [
      [0, [lag], ['raised sync_lag/acme']],
      [1, [], ['recovered sync_lag/acme']],
      [2, [lag], []],
      [3, [], []],
      [4, [lag], []],
      [5, [], []],
    ],
  ],
  [
    'it has come back to stay, it is told after the cool-down',
    [
      [0, [lag], ['raised sync_lag/acme']],
      [1, [], ['recovered sync_lag/acme']],
      [2, [lag], []],
      [1 + coolDown, [lag], ['raised sync_lag/acme']],
      [40, [lag], []],
    ],
  ],
  [
    'it comes back long after, it is new',
    [
      [0, [lag], ['raised sync_lag/acme']],
      [1, [], ['recovered sync_lag/acme']],
      [60, [], []],
      [61, [lag], ['raised sync_lag/acme']],
    ],
  ],
] as [string, [number, Cause[], string[]][]][])
  // prettier-ignore
  test(`when ${what}`, () => {
    let memory: AlertMemory = {}
    for (const [minute, causes, expected] of steps) {
      const decided = decideAlerts(memory, causes, new Date(start + minutes(minute)))
      assert.deepEqual(
        decided.notices.map(notice => `${notice.event} ${keyOf(notice)}`),
        expected,
        `minute ${minute}`,
      )
      // It outlives whoever decides.
      memory = JSON.parse(JSON.stringify(decided.memory)) as AlertMemory
    }
  })

describe('whatever comes and goes', () => {
  const history = fc.array(
    fc.record({
      pause: fc.integer({min: 1, max: 15}),
      causes: fc.subarray([lag, other, flapping]),
    }),
    {maxLength: 60},
  )

  test('of each cause, raised and recovered take turns, and not more often than the cool-down lets them', () => {
    fc.assert(
      fc.property(history, steps => {
        let memory: AlertMemory = {}
        let minute = 0
        const last = new Map<string, {event: string; minute: number}>()
        for (const {pause, causes} of steps) {
          minute += pause
          const decided = decideAlerts(memory, causes, new Date(start + minutes(minute)))
          for (const notice of decided.notices) {
            const before = last.get(keyOf(notice))
            assert.equal(notice.event, before?.event === 'raised' ? 'recovered' : 'raised')
            if (before !== undefined && notice.event === 'raised')
              assert.ok(minute - before.minute >= coolDown, 'within the cool-down')
            last.set(keyOf(notice), {event: notice.event, minute})
          }
          memory = decided.memory
          // Open is what was raised last: nobody is left in the belief that something is wrong when it is not.
          const raised = [...last].filter(([, {event}]) => event === 'raised').map(([key]) => key)
          assert.deepEqual(openAlerts(memory).map(keyOf).sort(), raised.sort())
        }
        // Nothing is remembered for ever.
        memory = decideAlerts(memory, [], new Date(start + minutes(minute + 1))).memory
        memory = decideAlerts(memory, [], new Date(start + minutes(minute + 2 + coolDown))).memory
        assert.deepEqual(memory, {})
      }),
    )
  })
})
