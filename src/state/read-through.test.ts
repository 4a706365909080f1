import assert from 'node:assert/strict'
import {test} from 'vitest'
import {ReadThrough, type Dropped, type ReadThroughOptions} from './read-through.ts'

type Thing = {readonly version: bigint; readonly text: string}

/** A cache before a shelf of things, with a clock that a test moves. */
function shelf(options: Partial<ReadThroughOptions<Thing>> = {}) {
  const things = new Map<string, Thing>([['a', {version: 1n, text: 'one'}]])
  const dropped: [Dropped, number][] = []
  const state = {loads: 0, nowMs: 0, hits: 0, misses: 0}
  /** Loads wait here on their way back, when there is a gate. */
  let gate: Promise<void> | undefined
  const cache = new ReadThrough<Thing>({
    async load(key) {
      state.loads++
      const found = things.get(key)
      await gate
      return found
    },
    ttlMs: 100,
    negativeTtlMs: 10,
    now: () => state.nowMs,
    onHit: () => state.hits++,
    onMiss: () => state.misses++,
    onDropped: (reason, count) => dropped.push([reason, count]),
    ...options,
  })
  return {
    cache,
    things,
    dropped,
    state,
    close: () => {
      const {promise, resolve} = Promise.withResolvers<undefined>()
      gate = promise
      return () => {
        gate = undefined
        resolve(undefined)
      }
    },
  }
}

const two = {version: 2n, text: 'two'}

test('what was read once is not asked for again', async () => {
  const {cache, state} = shelf()
  assert.equal((await cache.get('a')).isCached, false)
  const again = await cache.get('a')
  assert.equal(again.isCached, true)
  assert.equal(again.entry?.text, 'one')
  assert.deepEqual({...state, nowMs: 0}, {loads: 1, nowMs: 0, hits: 1, misses: 1})
})

test('callers of one key share one load', async () => {
  const {cache, state, close} = shelf()
  const open = close()
  const all = Promise.all([cache.get('a'), cache.get('a'), cache.get('a')])
  open()
  assert.deepEqual(
    (await all).map(({entry, isCached}) => [entry?.text, isCached]),
    [
      ['one', false],
      ['one', false],
      ['one', false],
    ],
  )
  assert.equal(state.loads, 1)
})

test('a load that an invalidation overtakes is given to nobody who asks after it', async () => {
  const {cache, things, close} = shelf()
  const open = close()
  const before = cache.get('a')
  things.set('a', two)
  cache.invalidate('a', 'notice', 2n)
  const after = cache.get('a')
  open()
  assert.equal((await before).entry?.version, 1n)
  assert.equal((await after).entry?.version, 2n)
  assert.equal((await cache.get('a')).entry?.version, 2n, 'the load that came back last is not kept either')
})

test('a notice of what is here already drops nothing', async () => {
  const {cache, state} = shelf()
  await cache.get('a')
  cache.invalidate('a', 'notice', 1n)
  await cache.get('a')
  assert.equal(state.loads, 1)
  cache.invalidate('a', 'notice', 2n)
  await cache.get('a')
  assert.equal(state.loads, 2)
})

test('an entry lasts for its time, counted from the moment it was asked for', async () => {
  const {cache, things, state, dropped, close} = shelf()
  const open = close()
  const loading = cache.get('a')
  state.nowMs = 60
  open()
  await loading
  things.set('a', two)
  state.nowMs = 99
  assert.equal((await cache.get('a')).entry?.version, 1n)
  state.nowMs = 100
  assert.equal((await cache.get('a')).entry?.version, 2n)
  assert.deepEqual(dropped, [['expired', 1]])
})

test('that there is nothing is believed for a shorter time, and until a notice', async () => {
  const {cache, things, state} = shelf()
  assert.equal((await cache.get('b')).entry, undefined)
  assert.equal((await cache.get('b')).isCached, true)
  things.set('b', two)
  state.nowMs = 10
  assert.equal((await cache.get('b')).entry?.version, 2n)
  assert.equal((await cache.get('c')).entry, undefined)
  things.set('c', {version: 1n, text: 'new'})
  cache.invalidate('c', 'notice', 1n)
  assert.equal((await cache.get('c')).entry?.text, 'new')
})

test('a load that fails is told to all who wait for it, and asked again', async () => {
  let fails = true
  const {cache} = shelf({
    load: () => (fails ? Promise.reject(new Error('no')) : Promise.resolve(two)),
  })
  const results = await Promise.allSettled([cache.get('a'), cache.get('a')])
  assert.deepEqual(
    results.map(({status}) => status),
    ['rejected', 'rejected'],
  )
  assert.equal(cache.size, 0)
  fails = false
  assert.equal((await cache.get('a')).entry, two)
})

test('a load that fails late does not remove what was loaded since', async () => {
  const first = Promise.withResolvers<Thing>()
  let loads = 0
  const {cache} = shelf({load: () => (++loads === 1 ? first.promise : Promise.resolve(two))})
  const failing = cache.get('a')
  cache.invalidate('a', 'notice')
  await cache.get('a')
  first.reject(new Error('no'))
  await assert.rejects(failing)
  assert.equal((await cache.get('a')).isCached, true)
})

test('the oldest entries give way to new ones', async () => {
  const {cache, dropped} = shelf({maxEntries: 2})
  for (const key of ['a', 'b', 'c']) await cache.get(key)
  assert.equal(cache.size, 2)
  assert.equal((await cache.get('c')).isCached, true)
  assert.equal((await cache.get('a')).isCached, false)
  assert.deepEqual(dropped, [
    ['evicted', 1],
    ['evicted', 1],
  ])
})

test('dropping everything also overtakes the loads under way', async () => {
  const {cache, things, dropped, close} = shelf()
  await cache.get('b')
  const open = close()
  const before = cache.get('a')
  things.set('a', two)
  cache.invalidateAll('reconnected')
  open()
  await before
  assert.equal((await cache.get('a')).entry?.version, 2n)
  assert.deepEqual(dropped, [['reconnected', 2]])
})
