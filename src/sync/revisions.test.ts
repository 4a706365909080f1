import assert from 'node:assert/strict'
import {test} from 'vitest'
import {shapes} from '../sample/schema.ts'
import {direction} from './revisions.ts'

const [older, newer] = ['38d63c18f30f', 'b2c3d4e5f6a7']

for (const [what, history, now, expected] of [
  ['nothing was known', [], newer, 'same'],
  ['nothing was known and nothing is', [], null, 'same'],
  ['it stayed', [older], older, 'same'],
  ['it went on', [older], newer, 'forward'],
  ['it went on again', [older, newer], '42e2978c7933', 'forward'],
  ['it went back', [newer], older, 'backward'],
  ['it went back to where it has been', [older, newer], older, 'backward'],
  ['it says nothing any more', [older], null, 'backward'],
  ['it went on to something newer than we know', [newer], 'unheard of', 'forward'],
  ['it went on from something newer than we know', ['unheard of'], 'unheard of too', 'forward'],
  [
    'it went back to something newer than we know, where it has been',
    ['unheard of', 'unheard of too'],
    'unheard of',
    'backward',
  ],
  ['it went back from something newer than we know', ['unheard of'], older, 'backward'],
] as const)
  test(`${what}: ${expected}`, () => {
    assert.equal(direction(history, now), expected)
  })

test('releases follow one another forwards', () => {
  const revisions = Object.values(shapes).map(shape => shape.revision)
  for (const [i, revision] of revisions.entries()) {
    if (i > 0) assert.equal(direction(revisions.slice(0, i), revision), 'forward')
    if (i > 0) assert.equal(direction(revisions.slice(0, i + 1), revisions[i - 1]!), 'backward')
  }
})
