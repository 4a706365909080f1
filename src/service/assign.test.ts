import assert from 'node:assert/strict'
import {describe, test} from 'vitest'
import {assign, LOYALTY_MS, type Assignment, type Waiting, type WorkerView} from './assign.ts'

const now = 100_000
const free = (...holds: string[]): WorkerView => ({holds: new Set(holds), inHand: undefined})
const busy = (deployment: string, forMs: number, ...holds: string[]): WorkerView => ({
  holds: new Set([deployment, ...holds]),
  inHand: {deployment, since: now - forMs},
})
const run = (...names: string[]): Waiting[] => names.map(deployment => ({deployment, notBefore: 0}))
const later = (deployment: string, inMs: number): Waiting => ({deployment, notBefore: now + inMs})

describe('of at most two workers', () => {
  for (const [what, waiting, workers, expected] of [
    ['nothing waits', [], [free()], {do: 'wait', until: Infinity}],
    ['there is none yet', run('a'), [], {do: 'run', waiting: 0, worker: 'new'}],
    ['one is free', run('b'), [free('a')], {do: 'run', waiting: 0, worker: 0}],
    ['the one is busy', run('b'), [busy('a', 0)], {do: 'run', waiting: 0, worker: 'new'}],
    ['both are busy', run('c'), [busy('a', 9_000), busy('b', 9_000)], {do: 'wait', until: Infinity}],
    [
      'two are free, the emptier one',
      run('d'),
      [free('a', 'b'), free('c')],
      {do: 'run', waiting: 0, worker: 1},
    ],
    [
      'its own is free, though fuller',
      run('a'),
      [free('a', 'b'), free()],
      {do: 'run', waiting: 0, worker: 0},
    ],
    [
      'its own is busy, not for long',
      run('a'),
      [busy('b', 10, 'a'), free()],
      {do: 'wait', until: now - 10 + LOYALTY_MS},
    ],
    [
      'its own is busy for long',
      run('a'),
      [busy('b', LOYALTY_MS, 'a'), free()],
      {do: 'move', waiting: 0, from: 0},
    ],
    [
      'its own is busy for long, no other is there yet',
      run('a'),
      [busy('b', LOYALTY_MS, 'a')],
      {do: 'move', waiting: 0, from: 0},
    ],
    [
      'its own is busy for long, as are all',
      run('a'),
      [busy('b', 9_000, 'a'), busy('c', 0)],
      {do: 'wait', until: Infinity},
    ],
    ['its own is busy with itself', run('a'), [busy('a', 9_000), free()], {do: 'wait', until: Infinity}],
    [
      'the first in line cannot, the next one can',
      run('a', 'b'),
      [busy('a', 0), free('b')],
      {do: 'run', waiting: 1, worker: 1},
    ],
    [
      'both could, the first in line',
      run('a', 'b'),
      [free('b'), free('a')],
      {do: 'run', waiting: 0, worker: 1},
    ],
    ['it must rest a while', [later('a', 700)], [free('a')], {do: 'wait', until: now + 700}],
    [
      'it must rest, the next one need not',
      [later('a', 700), ...run('b')],
      [free('a')],
      {do: 'run', waiting: 1, worker: 0},
    ],
    ['it has rested', [later('a', 0)], [free('a')], {do: 'run', waiting: 0, worker: 0}],
  ] as [string, Waiting[], WorkerView[], Assignment][])
    test(`${what}: ${expected.do}`, () => {
      assert.deepEqual(assign(waiting, workers, 2, now), expected)
    })
})
