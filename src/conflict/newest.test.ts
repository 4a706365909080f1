import assert from 'node:assert/strict'
import fc from 'fast-check'
import {describe, test} from 'vitest'
import {RawText, type Value} from '../core/value.ts'
import {instantOf, newerSide} from './newest.ts'

const now = new Date('2026-03-01T12:00:00Z')
const at = (iso: string) => BigInt(Date.parse(iso)) * 1_000_000n

describe('a time is read by its magnitude or its text', () => {
  for (const [what, value, expected] of [
    ['integer seconds', 1_700_000_000n, 1_700_000_000_000_000_000n],
    ['integer milliseconds', 1_700_000_000_123n, 1_700_000_000_123_000_000n],
    ['integer microseconds', 1_700_000_000_123_456n, 1_700_000_000_123_456_000n],
    ['integer nanoseconds beyond 2^53', 1_700_000_000_123_456_789n, 1_700_000_000_123_456_789n],
    ['the largest SQLite integer', 9_223_372_036_854_775_807n, 9_223_372_036_854_775_807n],
    ['REAL seconds', 1_700_000_000.5, 1_700_000_000_500_000_000n],
    ['REAL milliseconds', 1_700_000_000_123.25, 1_700_000_000_123_250_000n],
    ['REAL nanoseconds', 1.7e18, 1_700_000_000_000_000_000n],
    ['digits as text', '1700000000', 1_700_000_000_000_000_000n],
    ['nanoseconds as text', '1700000000123456789', 1_700_000_000_123_456_789n],
    ['a decimal as text', '1700000000.5', 1_700_000_000_500_000_000n],
    ['a date', '2026-02-03', at('2026-02-03T00:00:00Z')],
    ['SQLite text without a zone', '2026-02-03 04:05:06', at('2026-02-03T04:05:06Z')],
    ['without seconds', '2026-02-03 04:05', at('2026-02-03T04:05:00Z')],
    [
      'Python text with microseconds',
      '2026-02-03 04:05:06.123456',
      at('2026-02-03T04:05:06Z') + 123_456_000n,
    ],
    [
      'nanoseconds in a fraction',
      '2026-02-03T04:05:06.123456789Z',
      at('2026-02-03T04:05:06Z') + 123_456_789n,
    ],
    ['ISO with Z', '2026-02-03T04:05:06Z', at('2026-02-03T04:05:06Z')],
    ['ISO with an offset', '2026-02-03T04:05:06+02:00', at('2026-02-03T02:05:06Z')],
    ['ISO with an offset to the west', '2026-02-03T04:05:06-03:30', at('2026-02-03T07:35:06Z')],
    ['Postgres text', '2026-02-03 04:05:06.5+00', at('2026-02-03T04:05:06.500Z')],
    ['an offset without a colon', '2026-02-03T04:05:06+0530', at('2026-02-02T22:35:06Z')],
    ['blanks around it', ' 2026-02-03T04:05:06Z ', at('2026-02-03T04:05:06Z')],
    ['NULL', null, undefined],
    ['zero', 0n, undefined],
    ['a negative number', -1n, undefined],
    ['zero as REAL', 0.0, undefined],
    ['infinity', Infinity, undefined],
    ['empty text', '', undefined],
    ['words', 'yesterday', undefined],
    ['the 30th of February', '2026-02-30 00:00:00', undefined],
    ['the 25th hour', '2026-02-03 24:00:00', undefined],
    ['a date before 1970', '1969-01-01', undefined],
    ['bytes', new Uint8Array([1]), undefined],
    ['text that is not valid', new RawText(new Uint8Array([0xff])), undefined],
  ] as const) {
    test(what, () => {
      assert.equal(instantOf(value), expected)
    })
  }

  test('the same instant in every unit is one time, whatever it is', () => {
    fc.assert(
      // From 1973, where a count of milliseconds is as long as no count of seconds, to 2286.
      fc.property(fc.bigInt({min: 100_000_001n, max: 9_000_000_000n}), seconds => {
        const expected = seconds * 1_000_000_000n
        const iso = new Date(Number(seconds) * 1_000).toISOString()
        for (const value of [
          seconds,
          seconds * 1_000n,
          seconds * 1_000_000n,
          seconds * 1_000_000_000n,
          Number(seconds),
          iso,
          iso.replace('T', ' ').replace('Z', ''),
          String(seconds),
        ]) {
          assert.equal(instantOf(value), expected, String(value))
        }
      }),
    )
  })
})

const T = 1_770_000_000n // 2026-02-02

describe('newest_wins', () => {
  for (const [what, source, target, side, reason] of [
    ['the target is newer in seconds', T, T + 30n, 'target', "the target's updated_at is later by 30 s"],
    ['the source is newer in seconds', T + 120n, T, 'source', "the source's updated_at is later by 2 min"],
    ['the target is newer by a millisecond', T * 1000n, T * 1000n + 1n, 'target', 'later by 1 ms'],
    ['the target is newer by a microsecond', T * 10n ** 6n, T * 10n ** 6n + 1n, 'target', 'later by 1 us'],
    ['the target is newer by a nanosecond', T * 10n ** 9n, T * 10n ** 9n + 1n, 'target', 'later by 1 ns'],
    ['the source is newer by a nanosecond', T * 10n ** 9n + 1n, T * 10n ** 9n, 'source', 'later by 1 ns'],
    ['the target is newer and in another unit', T, T * 1000n + 1n, 'target', 'later by 1 ms'],
    ['the source is newer and in another unit', T + 1n, T * 10n ** 9n, 'source', 'later by 1 s'],
    ['the target is REAL and newer', T, Number(T) + 0.5, 'target', 'later by 500 ms'],
    ['text without a zone, target newer', '2026-02-03 04:05:06', '2026-02-03 04:05:07', 'target', '1 s'],
    ['text with zones, target newer', '2026-02-03T04:05:06Z', '2026-02-03T04:05:07+00:00', 'target', '1 s'],
    [
      'text whose order is not that of time',
      '2026-02-03T04:00:00+02:00',
      '2026-02-03T03:00:00Z',
      'target',
      '1 h',
    ],
    ['text on one side, seconds on the other', '2026-02-01 00:00:00', T, 'target', 'later'],
    ['equal times', T, T, 'source', 'updated_at is the same on both sides, so the source wins'],
    ['equal times in other units', T, T * 10n ** 9n, 'source', 'the same on both sides'],
    ['equal times, one as text', T, '2026-02-02T02:40:00Z', 'source', 'the same on both sides'],
    ['NULL in the source', null, T, 'source', "the source's updated_at is NULL, so the source wins"],
    ['NULL in the target', T, null, 'source', "the target's updated_at is NULL, so the source wins"],
    ['NULL on both sides', null, null, 'source', 'is NULL'],
    ['zero in the target', T, 0n, 'source', 'holds no time'],
    ['text that is no time', T, 'soon', 'source', "the target's updated_at holds no time"],
    ['a target far in the future', T, T + 10n * 365n * 86_400n, 'source', 'lies in the future'],
    ['a source far in the future', T + 10n * 365n * 86_400n, T, 'source', 'lies in the future'],
    ['a target an hour ahead of now', T, BigInt(now.getTime() / 1000 + 3600), 'target', 'later by'],
  ] as const) {
    test(`${what}: ${side}`, () => {
      const found = newerSide(rows(source, target), 'updated_at')
      assert.equal(found.side, side)
      assert.ok(found.reason.includes(reason), found.reason)
    })
  }

  test('a table without the column goes to the source', () => {
    const found = newerSide({...rows(T, T + 1n), columns: ['id']}, 'updated_at')
    assert.deepEqual(found, {
      side: 'source',
      isDecided: false,
      reason: 'the table has no updated_at, so the source wins',
    })
  })

  test('a row that one side has not goes to the source', () => {
    assert.equal(newerSide({...rows(T, T), target: undefined}, 'updated_at').side, 'source')
    assert.equal(newerSide({...rows(T, T), source: undefined}, 'updated_at').side, 'source')
  })
})

function rows(source: Value, target: Value) {
  return {
    columns: ['id', 'updated_at'],
    source: new Map<string, Value>([['updated_at', source]]),
    target: new Map<string, Value>([['updated_at', target]]),
    now,
  }
}
