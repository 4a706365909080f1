import assert from 'node:assert/strict'
import {test} from 'vitest'
import {turnsOf, type Turns} from './turns.ts'

const plans: readonly [what: string, waits: Record<string, string>, turns: Partial<Turns<string>>][] = [
  ['a chain, from its free end', {a: 'b', b: 'c', c: ''}, {ordered: ['c', 'b', 'a']}],
  ['two that change places', {a: 'b', b: 'a'}, {rings: [['a', 'b']]}],
  ['who waits for a ring goes with it', {a: 'b', b: 'a', c: 'a'}, {rings: [['a', 'b', 'c']]}],
  ['a ring that is too large', {a: 'b', b: 'c', c: 'd', d: 'a'}, {hopeless: ['a', 'b', 'c', 'd']}],
  ['what stays, and all behind it', {a: 'b', b: 'x', c: ''}, {hopeless: ['a', 'b'], ordered: ['c']}],
  ['what may be in the way, and stays', {a: '?x'}, {ordered: ['a']}],
  ['what may be in the way, and goes', {a: '?b', b: ''}, {ordered: ['b', 'a']}],
]

test.each(plans)('%s', (_, waits, turns) => {
  const all = new Map(
    Object.entries(waits).map(([item, before]) => {
      const isPossible = before.startsWith('?')
      const ids = before === '' ? [] : [before.replace('?', '')]
      return [item, {item, certain: isPossible ? [] : ids, possible: isPossible ? ids : []}]
    }),
  )
  const {ordered, rings, hopeless} = turnsOf(all, 3)
  const sorted = {
    ordered,
    rings: rings.map(ring => ring.toSorted()),
    hopeless: hopeless.toSorted(),
  }
  assert.deepEqual(sorted, {ordered: [], rings: [], hopeless: [], ...turns})
})
