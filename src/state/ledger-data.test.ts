import assert from 'node:assert/strict'
import fc from 'fast-check'
import {describe, test} from 'vitest'
import {canonical} from '../core/canonical.ts'
import {RawText, type Value} from '../core/value.ts'
import {readable, sideFromJson, sideToJson} from './ledger-data.ts'

const told = (fields: ReadonlyMap<string, Value>) =>
  [...fields].map(([name, is]) => [name, is === null ? null : canonical(is)]).sort()

const value = fc.oneof<fc.Arbitrary<Value>[]>(
  fc.constant(null),
  fc.bigInt({min: -(2n ** 63n), max: 2n ** 63n - 1n}),
  fc.double({noNaN: true}),
  fc.string().filter(text => !text.includes('\0')),
  fc.uint8Array(),
  fc.uint8Array().map(bytes => new RawText(bytes)),
  fc.constantFrom('{"exact": "i1;"}', 1e300, -0, 0.1, 3, Infinity, -Infinity),
)

describe('a side in the ledger', () => {
  test('reads back as what it was, value for value with its storage class', () => {
    const name = fc.string({minLength: 1}).filter(text => !text.includes('\0') && text !== '_sync_digest')
    fc.assert(
      fc.property(fc.array(fc.tuple(name, value)), fc.constantFrom('ab12', undefined), (list, digest) => {
        const side = {digest, fields: new Map(list.filter(([column]) => column !== '__proto__'))}
        const back = sideFromJson(sideToJson(side))
        assert.equal(back.digest, digest)
        assert.deepEqual(told(back.fields), told(side.fields))
      }),
    )
  })

  test('is readable', () => {
    const fields = new Map<string, Value>([
      ['title', 'x'],
      ['n', 2n ** 62n],
      ['r', 1.5],
      ['none', null],
      ['whole', 3],
    ])
    assert.equal(
      sideToJson({digest: 'ab', fields}),
      '{"_sync_digest":"ab","title":"x","n":4611686018427387904,"r":1.5,"none":null,"whole":{"exact":"r4008000000000000;"}}',
    )
    assert.deepEqual([...fields.values()].map(readable), ['x', '4611686018427387904', 1.5, null, 3])
  })
})
