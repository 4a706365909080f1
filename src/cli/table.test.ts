import assert from 'node:assert/strict'
import {test} from 'vitest'
import {sizeText, table} from './table.ts'

test('columns are aligned, numbers to the right, and nothing is left out silently', () => {
  assert.equal(
    table(
      ['client', 'generation', 'last sync', 'paused'],
      [
        ['acme', 12_345n, new Date('2026-01-02T03:04:05.678Z'), false],
        ['a-longer-name', 7, undefined, true],
      ],
    ),
    [
      'client         generation  last sync            paused',
      'acme               12,345  2026-01-02 03:04:05  no',
      'a-longer-name           7  -                    yes',
    ].join('\n'),
  )
})

test('a name that would move the cursor is made harmless', () => {
  assert.equal(table(['name'], [['a\u001b[2Jb\n']]), 'name\na?[2Jb?')
})

for (const [bytes, text] of [
  [0, '0 B'],
  [999, '999 B'],
  [1_000n, '1.0 kB'],
  [48_200_000, '48.2 MB'],
  [7_500_000_000_000_000n, '7500.0 TB'],
] as const) {
  test(`${bytes} bytes are ${text}`, () => {
    assert.equal(sizeText(bytes), text)
  })
}
