import assert from 'node:assert/strict'
import {test} from 'vitest'
import {Bits} from './bits.ts'

test('holds what was added, and nothing else, through being kept', () => {
  const bits = new Bits()
  const added = [0, 7, 8, 9, 1_000, 65_537, 3_000_001]
  for (const n of [...added, 8]) bits.add(n)
  for (const set of [bits, new Bits(bits.bytes)]) {
    assert.equal(set.size, added.length)
    for (const n of added) {
      assert.ok(set.has(n))
      assert.equal(set.has(n + 1), added.includes(n + 1))
    }
  }
  assert.ok(!bits.has(2 ** 30))
})
