import assert from 'node:assert/strict'
import {hash} from 'node:crypto'
import fc, {type Arbitrary} from 'fast-check'
import {describe, test} from 'vitest'
import {anyCharacter, cell} from '../../test/arbitrary.ts'
import {
  canonical,
  canonicalOrder,
  digestOf,
  fromCanonical,
  keyOf,
  keyOfRowid,
  keyOfUnkeyed,
  LONGEST_KEY_BYTES,
  partsOfKey,
  rowDigester,
} from './canonical.ts'
import {RawText, type Value} from './value.ts'

const value: Arbitrary<Value> = cell.map(cell =>
  typeof cell === 'object' && cell !== null && 'rawText' in cell ? new RawText(cell.rawText) : cell,
)
type Something = Exclude<Value, null>
const something = value.filter(value => value !== null) as Arbitrary<Something>
const texts = fc.oneof(
  fc.string({unit: anyCharacter, maxLength: 12}),
  fc.constantFrom('~', '~h', 'i1;', 't1:a', '1:a', ''),
)

/** What a value is, in words that owe nothing to the code under test. */
function describeValue(value: Value): string {
  if (value instanceof RawText) return JSON.stringify(['raw text', [...value.bytes]])
  if (value instanceof Uint8Array) return JSON.stringify(['blob', [...value]])
  if (typeof value === 'number')
    return JSON.stringify(['real', [...new Uint8Array(Float64Array.of(value).buffer)]])
  return JSON.stringify([typeof value, String(value)])
}

/** Holds that `encode` gives two things the same text exactly when they are the same. */
function assertInjective<T>(
  things: readonly T[],
  encode: (thing: T) => string,
  describe: (thing: T) => string,
): void {
  const byText = new Map<string, string>()
  for (const thing of things) {
    const [text, what] = [encode(thing), describe(thing)]
    assert.equal(byText.get(text) ?? what, what, text)
    byText.set(text, what)
  }
  assert.equal(byText.size, new Set(things.map(describe)).size)
}

describe('the canonical text of a value', () => {
  for (const [value, text] of [
    [42n, 'i42;'],
    [-(2n ** 63n), 'i-9223372036854775808;'],
    [1, 'r3ff0000000000000;'],
    [-0, 'r8000000000000000;'],
    [-Infinity, 'rfff0000000000000;'],
    ['', 't0:'],
    ['größe', 't7:größe'],
    ['1', 't1:1'],
    [Uint8Array.of(0x31), 'b31;'],
    [new Uint8Array(), 'b;'],
    [new RawText(Uint8Array.of(0x61, 0)), 'x6100;'],
  ] as const)
    test(`of ${describeValue(value)} is ${text}`, () => {
      assert.equal(canonical(value), text)
    })

  test('is another one for every other value, storage class included', () => {
    const alike = fc.integer().map((n): Something[] => {
      const text = Buffer.from(String(n))
      return [BigInt(n), n, String(n), text, new RawText(text)]
    })
    const some = something.map(value => [value])
    fc.assert(
      fc.property(fc.array(fc.oneof(some, alike), {maxLength: 40}), values => {
        assertInjective(values.flat(), canonical, describeValue)
      }),
    )
  })

  test('is read back as the value', () => {
    fc.assert(
      fc.property(something, value => {
        assert.equal(describeValue(fromCanonical(canonical(value))), describeValue(value))
      }),
      {numRuns: 1_000},
    )
  })

  test('is not read from what is none', () => {
    for (const text of ['', 'z1;', 'hello']) assert.throws(() => fromCanonical(text), /not a canonical value/)
  })
})

describe('the digest of a row', () => {
  const row = fc.uniqueArray(fc.tuple(texts, value), {maxLength: 5, selector: ([name]) => name})
  const digest = (row: readonly (readonly [string, Value])[], withKey = false, key = '') =>
    rowDigester(
      row.map(([name]) => name),
      withKey,
    )(
      row.map(([, value]) => value),
      key,
    ).toString('hex')
  const describeRow = (row: readonly (readonly [string, Value])[]) =>
    JSON.stringify(
      row
        .filter(([, value]) => value !== null)
        .map(([name, value]) => [name, describeValue(value)])
        .sort(),
    )

  test('is the first half of SHA-256 over names and values, by the bytes of the names', () => {
    const row = [
      ['\u{1f40d}', Uint8Array.of(0)],
      ['aa', 1n],
      ['gone', null],
      ['b', 'x'],
    ] as const
    assert.equal(digest(row), hash('sha256', '2:aai1;1:bt1:x4:\u{1f40d}b00;').slice(0, 32))
    assert.equal(digestOf('').toString('hex'), 'e3b0c44298fc1c149afbf4c8996fb924')
  })

  test('is the same function of a text of any length', () => {
    const long = 'grün €'.repeat(200_000)
    const bytes = Buffer.byteLength(long)
    const whole = `1:ai1;1:bt${bytes}:${long}1:ct1:x1:dt${bytes}:${long}`
    const row = [
      ['a', 1n],
      ['b', long],
      ['c', 'x'],
      ['d', long],
    ] as const
    assert.equal(digest(row), hash('sha256', whole).slice(0, 32))
    assert.equal(digest(row, true, '~i7;'), hash('sha256', `~i7;${whole}`).slice(0, 32))
  })

  test('is another one for every other row', () => {
    fc.assert(
      fc.property(fc.array(row, {maxLength: 30}), rows => {
        assertInjective(rows, row => digest(row), describeRow)
      }),
    )
  })

  test('depends neither on the order of the columns nor on those that hold NULL', () => {
    fc.assert(
      fc.property(row, fc.array(texts), (row, more) => {
        const names = new Set(row.map(([name]) => name))
        const nulls = [...new Set(more)].filter(name => !names.has(name)).map(name => [name, null] as const)
        assert.equal(digest([...nulls, ...row.toReversed()]), digest(row))
      }),
    )
  })

  test('covers the key where no column holds it, and only there', () => {
    const equal = [['a', 1n]] as const
    assert.notEqual(digest(equal, true, keyOfRowid(1n)), digest(equal, true, keyOfRowid(2n)))
    assert.equal(digest(equal, false, keyOfRowid(1n)), digest(equal, false, keyOfRowid(2n)))
  })

  test('orders names by their UTF-8 bytes, which is not how JavaScript orders them', () => {
    assert.deepEqual(canonicalOrder(['\u{1f40d}', '\uff5e', 'b', 'a', '']), [
      '',
      'a',
      'b',
      '\uff5e',
      '\u{1f40d}',
    ])
  })
})

describe('a key', () => {
  for (const [what, values, key] of [
    ['one plain text is itself', ['chat-1'], 'chat-1'],
    ['an empty text is itself', [''], ''],
    ['a text that looks like a key is escaped', ['~i1;'], '~t4:~i1;'],
    ['an integer', [7n], '~i7;'],
    ['a text that is no text', [new RawText(Uint8Array.of(0xff))], '~xff;'],
    ['several columns', ['a', 'bc', 1n], '~t1:at2:bci1;'],
    ['1,000 bytes are kept', ['k'.repeat(LONGEST_KEY_BYTES)], 'k'.repeat(LONGEST_KEY_BYTES)],
    ['1,001 bytes are hashed', ['k'.repeat(1_001)], `~h${hash('sha256', 'k'.repeat(1_001))}`],
    ['bytes count, not characters', ['ü'.repeat(501)], `~h${hash('sha256', 'ü'.repeat(501))}`],
  ] as const)
    test(what, () => {
      assert.equal(keyOf(values), key)
    })

  const keyValues = fc.array(
    fc.oneof(
      something,
      texts,
      fc.nat({max: 2_000}).map(length => 'k'.repeat(length)),
    ),
    {
      minLength: 1,
      maxLength: 3,
    },
  )

  test('is another one for every other key', () => {
    fc.assert(
      fc.property(fc.array(keyValues, {maxLength: 40}), keys => {
        assertInjective(keys, keyOf, values => JSON.stringify(values.map(describeValue)))
      }),
    )
  })

  test('is taken apart into the values it was made of, unless it was hashed', () => {
    fc.assert(
      fc.property(keyValues, values => {
        const key = keyOf(values)
        const parts = partsOfKey(key)
        assert.ok(Buffer.byteLength(key) <= LONGEST_KEY_BYTES)
        if (parts === undefined) assert.match(key, /^~h[0-9a-f]{64}$/)
        else assert.deepEqual('values' in parts && parts.values.map(describeValue), values.map(describeValue))
      }),
      {numRuns: 1_000},
    )
  })

  test('of a row that nothing identifies is its place, and meets no other key', () => {
    assert.deepEqual(partsOfKey(keyOfRowid(-5n)), {values: [-5n]})
    assert.deepEqual(partsOfKey(keyOfUnkeyed(-5n)), {rowid: -5n})
    fc.assert(
      fc.property(fc.bigInt(), keyValues, (rowid, values) => {
        assert.notEqual(keyOfUnkeyed(rowid), keyOf(values))
      }),
    )
  })
})
