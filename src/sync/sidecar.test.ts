import assert from 'node:assert/strict'
import {mkdtempSync, rmSync} from 'node:fs'
import {tmpdir} from 'node:os'
import {join} from 'node:path'
import {afterEach, beforeEach, describe, test} from 'vitest'
import {PageState} from '../source/page-state.ts'
import {Sidecar} from './sidecar.ts'

let folder: string

beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), 'owsync-sidecar-'))
})
afterEach(() => {
  rmSync(folder, {recursive: true})
})

const digest = (n: number) => new Uint8Array(16).fill(n)
const rows = Array.from({length: 100}, (_, i) => ({key: `key ${i}`, digest: digest(i)}))

/** A sidecar that knows of these rows, not where they are, and a capture that has met all of them but the last. */
function captured(): Sidecar {
  const sidecar = Sidecar.open(folder, 'one')
  sidecar.reset()
  sidecar.recall('t', rows)
  sidecar.standAt('before')
  sidecar.begin()
  const memory = sidecar.remembered('t', false)
  for (const [i, {key, digest}] of rows.slice(0, -1).entries()) {
    assert.deepEqual(memory.claim(key), digest)
    sidecar.remember('t', {rowid: BigInt(i), key, digest}, false)
  }
  return sidecar
}

describe('rows adrift', () => {
  test('are claimed once', () => {
    using sidecar = captured()
    const memory = sidecar.remembered('t', false)
    assert.equal(memory.claim('key 0'), undefined)
    assert.equal(memory.claim('another key'), undefined)
    assert.deepEqual(memory.unclaimed(undefined, 10), ['key 99'])
  })

  for (const isReopened of [false, true])
    test(`have their places when the cut is settled${isReopened ? ' by another process' : ''}`, () => {
      const sidecar = captured()
      sidecar.remembered('t', false).tombstoned('key 99')
      sidecar.intend('after', true)
      if (isReopened) sidecar[Symbol.dispose]()
      using settled = isReopened ? Sidecar.open(folder, 'one') : sidecar
      settled.settle('after')
      assert.equal(settled.standing('after'), 'in step')
      assert.equal(settled.hasAdrift('t'), false)
      assert.deepEqual(
        settled
          .remembered('t', false)
          .range(undefined, undefined)
          .map(({key}) => key),
        rows.slice(0, -1).map(({key}) => key),
      )
    })

  test('that were met go adrift again with a cut that is not settled', () => {
    {
      using sidecar = captured()
      sidecar.intend('never', true)
    }
    using sidecar = Sidecar.open(folder, 'one')
    assert.equal(sidecar.standing('before'), 'in step')
    sidecar.begin()
    const memory = sidecar.remembered('t', false)
    for (const {key, digest} of rows) assert.deepEqual(memory.claim(key), digest)
    assert.deepEqual(memory.unclaimed(undefined, 10), [])
  })

  test('are kept when nobody could read them', () => {
    using sidecar = captured()
    sidecar.remembered('t', false).keep('key 99')
    sidecar.intend('after', true)
    sidecar.settle('after')
    sidecar.begin()
    assert.deepEqual(sidecar.remembered('t', false).unclaimed(undefined, 10), ['key 99'])
  })
})

test('how many rows of a table are remembered is right after whatever happens to them', () => {
  const sidecar = captured()
  sidecar.intend('loaded', true)
  sidecar.settle('loaded')
  assert.equal(sidecar.count('t'), 100, 'one of them without its place')

  sidecar.begin()
  const memory = sidecar.remembered('t', false)
  const at = (n: number) => memory.range(BigInt(n - 1), BigInt(n))[0]!
  sidecar.remember('t', {rowid: 200n, key: 'key 200', digest: digest(1)}, false)
  sidecar.remember('t', {rowid: 201n, key: 'key 201', digest: digest(1)}, false)
  sidecar.remember('t', {...at(3), digest: digest(1)}, false)
  memory.setAside(at(4))
  memory.tombstoned('key 4')
  memory.tombstoned('key 99')
  sidecar.intend('changed', true)
  sidecar.settle('changed')
  assert.equal(sidecar.count('t'), 100)

  sidecar.begin()
  sidecar.setAdrift('t')
  assert.equal(sidecar.count('t'), 100)
  sidecar.abandon()
  assert.equal(sidecar.count('t'), 100)

  sidecar.beginChunk()
  sidecar.append('t', false, [{rowid: 300n, key: 'key 300', digest: digest(1)}])
  sidecar.commitChunk('appended')
  assert.equal(sidecar.count('t'), 101)
  sidecar[Symbol.dispose]()
  using other = Sidecar.open(folder, 'one')
  assert.equal(other.count('t'), 101, 'somebody who has to count')
})

test('a place in a log is kept with the file that it was the log of, and goes without it', () => {
  using sidecar = Sidecar.open(folder, 'one')
  const place = {salt1: 1, salt2: 2, frames: 3, sum1: 4, sum2: 5}
  const file = {stamp: '6:7', commits: 8, backfilled: 1, attempted: 2}
  const saved = (wal: object) => {
    const state = new PageState(4096)
    state.resize(9)
    state.wal = wal as NonNullable<PageState['wal']>
    sidecar.savePages(state)
    return sidecar.loadPages(undefined)
  }
  assert.deepEqual(saved({...place, file})?.wal, {...place, file})
  assert.equal(saved(place)?.pageCount, 9)
  assert.equal(saved(place)?.wal, undefined)
})
