import assert from 'node:assert/strict'
import {test} from 'vitest'
import {nextPage, sizeOf} from './paging.ts'

const limit = {rows: 200, bytes: 1_000}

for (const [what, rows, bytes, next] of [
  ['small rows are as many as may be', 100, 100, 200],
  ['pages grow by degrees', 10, 10, 40],
  ['rows of no size at all are small', 10, 0, 40],
  ['large rows are fewer', 100, 10_000, 10],
  ['one is the least, however large', 1, 10_000_000, 1],
] as const)
  test(`a page: ${what}`, () => {
    assert.equal(nextPage(rows, bytes, limit), next)
  })

test('the size of a row is about that of its values', () => {
  assert.equal(sizeOf(['abc', null, 1n, new Uint8Array(10)]), 3 + 8 + 8 + 10)
})
