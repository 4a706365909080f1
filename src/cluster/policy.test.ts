import assert from 'node:assert/strict'
import fc from 'fast-check'
import {describe, test} from 'vitest'
import {
  decide,
  HINT_GRACE_MS,
  POLL_MS,
  UNHINTED_MS,
  type Decision,
  type LeaseRow,
  type Standing,
} from './policy.ts'

const A = 'host-a-node-a'
const B = 'host-a-node-b'

const heldByB: LeaseRow = {
  leaderId: B,
  epoch: 7n,
  isFree: false,
  isPaused: false,
  preferred: undefined,
  isPreferredAlive: false,
}
const free = {...heldByB, leaderId: undefined, isFree: true}
const ranOut = {...heldByB, isFree: true}
const ours = {...heldByB, leaderId: A}

const leader: Standing & {leads: true} = {
  leads: true,
  remainingMs: 9_000,
  sinceRenewedMs: 1_000,
  renewEveryMs: 2_500,
  isNoticed: false,
}
const standby: Standing & {leads: false} = {
  leads: false,
  isSettling: false,
  restMs: 0,
  hasSession: true,
  hintHeldMs: undefined,
  freeForMs: 0,
  isLeaderGone: false,
}

const wait = (ms: number): Decision => ({do: 'wait', ms})
const acquire = (isHolderDead: boolean): Decision => ({do: 'acquire', isHolderDead})

describe('a leader', () => {
  for (const [what, row, changes, expected] of [
    ['waits until a renewal is due', ours, {}, wait(1_500)],
    ['renews when it is due', ours, {sinceRenewedMs: 2_500}, {do: 'renew'}],
    ['renews at once when somebody has said something', ours, {isNoticed: true}, {do: 'renew'}],
    [
      'is not made to renew without pause by whoever sends notices',
      ours,
      {isNoticed: true, sinceRenewedMs: 10},
      wait(40),
    ],
    ['looks again when its lease ends, however late a renewal is due', ours, {remainingMs: 5}, wait(5)],
    ['stops when its time is over, whatever the row says', ours, {remainingMs: 0}, {do: 'stop'}],
    ['keeps the lease of a paused cluster', {...ours, isPaused: true}, {}, wait(1_500)],
    [
      'hands over to the node that is wanted',
      {...ours, preferred: B, isPreferredAlive: true},
      {},
      {do: 'hand-over', to: B},
    ],
    ['does not hand over to a dead node', {...ours, preferred: B}, {}, wait(1_500)],
    [
      'goes on when it is the one that is wanted',
      {...ours, preferred: A, isPreferredAlive: true},
      {},
      wait(1_500),
    ],
  ] satisfies [string, LeaseRow, Partial<Standing>, Decision][]) {
    test(what, () => {
      assert.deepEqual(decide({nodeId: A, row, standing: {...leader, ...changes}}), expected)
    })
  }
})

describe('a standby', () => {
  for (const [what, row, changes, expected] of [
    ['waits while another leads', heldByB, {}, wait(POLL_MS)],
    ['takes a free lease with the hint at once', free, {hintHeldMs: 0}, acquire(true)],
    ['leaves a free lease to whoever has the hint', free, {}, wait(UNHINTED_MS)],
    ['takes it when nobody has for a second', free, {freeForMs: UNHINTED_MS}, acquire(false)],
    ['takes one that ran out like one given back', ranOut, {freeForMs: UNHINTED_MS}, acquire(false)],
    ['takes it at once where nobody can have the hint', free, {hasSession: false}, acquire(false)],
    ['takes it at once when it is the one that is wanted', {...free, preferred: A}, {}, acquire(false)],
    ['leaves it to the one that is wanted', {...free, preferred: B}, {hintHeldMs: 5_000}, wait(POLL_MS)],
    [
      'does not take the lease of a paused cluster',
      {...free, isPaused: true},
      {hintHeldMs: 0},
      wait(POLL_MS),
    ],
    ['lets a leader without a session renew', heldByB, {hintHeldMs: 0}, wait(POLL_MS / 4)],
    [
      'takes the lease of a leader that stays without one',
      heldByB,
      {hintHeldMs: HINT_GRACE_MS},
      acquire(true),
    ],
    ['takes the lease of a process that has ended at once', heldByB, {isLeaderGone: true}, acquire(true)],
    ['takes the lease that its own process before had', ours, {}, acquire(false)],
    ['rests after it lost the lease', {...free}, {restMs: 300, hintHeldMs: 5_000}, wait(300)],
    ['does not rest when it is wanted', {...free, preferred: A}, {restMs: 300}, acquire(false)],
    [
      'does not lead again before its last term has ended',
      free,
      {isSettling: true, hintHeldMs: 0},
      wait(POLL_MS),
    ],
  ] satisfies [string, LeaseRow, Partial<Standing>, Decision][]) {
    test(what, () => {
      assert.deepEqual(decide({nodeId: A, row, standing: {...standby, ...changes}}), expected)
    })
  }
})

test('nobody takes a paused cluster or the turn of another, and every wait ends', () => {
  const ms = fc.nat(20_000)
  const node = fc.constantFrom(A, B, undefined)
  const row = fc.record({
    leaderId: node,
    epoch: fc.bigInt({min: 0n, max: 9n}),
    isFree: fc.boolean(),
    isPaused: fc.boolean(),
    preferred: node,
    isPreferredAlive: fc.boolean(),
  })
  const standing: fc.Arbitrary<Standing> = fc.oneof(
    fc.record({
      leads: fc.constant(true as const),
      remainingMs: fc.integer({min: -5_000, max: 20_000}),
      sinceRenewedMs: ms,
      renewEveryMs: fc.integer({min: 100, max: 5_000}),
      isNoticed: fc.boolean(),
    }),
    fc.record({
      leads: fc.constant(false as const),
      isSettling: fc.boolean(),
      restMs: ms,
      hasSession: fc.boolean(),
      hintHeldMs: fc.option(ms, {nil: undefined}),
      freeForMs: ms,
      isLeaderGone: fc.boolean(),
    }),
  )
  fc.assert(
    fc.property(row, standing, (row, standing) => {
      const decision = decide({nodeId: A, row, standing})
      if (decision.do === 'wait') assert.ok(decision.ms > 0 && decision.ms <= 5_000)
      if (decision.do === 'acquire') {
        assert.ok(!standing.leads && !row.isPaused && (row.preferred ?? A) === A)
        assert.ok(
          row.isFree ||
            row.leaderId === A ||
            standing.isLeaderGone ||
            (standing.hintHeldMs ?? 0) >= HINT_GRACE_MS,
        )
      }
      if (standing.leads && standing.remainingMs <= 0) assert.equal(decision.do, 'stop')
    }),
  )
})
