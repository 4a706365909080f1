import assert from 'node:assert/strict'
import {test} from 'vitest'
import {COPY_HEADER, COPY_TRAILER, TupleWriter} from './copy-format.ts'
import {TupleReader} from './tuples.ts'

const rows = [
  {key: 'a', digest: Buffer.alloc(16, 1), typed: [1n, 'text', null], raw: null},
  {key: '', digest: Buffer.alloc(16, 2), typed: [null, '', Buffer.alloc(0)], raw: '{"v": "i1;"}'},
  {
    key: 'ü'.repeat(500),
    digest: Buffer.alloc(16, 3),
    typed: [-1n, 'x'.repeat(3_000), Buffer.alloc(5_000, 7)],
    raw: null,
  },
]

const stream = Buffer.concat([
  COPY_HEADER,
  ...rows.map(row => {
    const writer = new TupleWriter(['bigint', 'text', 'bytea'])
    writer.write(row)
    return writer.take()
  }),
  COPY_TRAILER,
])

for (const bytes of [1, 2, 3, 7, 19, 20, 64, 4_096, stream.length]) {
  test(`a stream that comes in pieces of ${bytes} bytes gives the same tuples`, () => {
    const reader = new TupleReader(6)
    const read: (string | null)[][] = []
    for (let at = 0; at < stream.length; at += bytes)
      read.push(
        ...reader.read(stream.subarray(at, at + bytes), (tuple, starts, ends) =>
          [...starts].map((start, i) => (start < 0 ? null : tuple.toString('hex', start, ends[i]))),
        ),
      )
    assert.deepEqual(
      read,
      rows.map(({key, digest, typed, raw}) => [
        ...typed.map(value => {
          if (typeof value !== 'bigint') return value === null ? null : Buffer.from(value).toString('hex')
          return BigInt.asUintN(64, value).toString(16).padStart(16, '0')
        }),
        Buffer.from(key).toString('hex'),
        digest.toString('hex'),
        // jsonb is preceded by the version of its format.
        raw === null ? null : `01${Buffer.from(raw).toString('hex')}`,
      ]),
    )
  })
}
