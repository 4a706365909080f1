import assert from 'node:assert/strict'
import {describe, test} from 'vitest'
import {forgetPages} from './session.ts'

describe('of sessions that may keep 100 bytes of pages together', () => {
  for (const [what, bytes, expected] of [
    ['nobody forgets anything while there is room', [40, 60], [40, 60]],
    ['whoever ran least recently forgets first', [40, 30, 60], [0, 30, 60]],
    ['and the next one, until it is enough', [40, 30, 30, 60], [0, 0, 30, 60]],
    ['one that has none is no help', [0, 50, 60], [0, 0, 60]],
    ['one alone that needs too much forgets too', [10, 101], [0, 0]],
  ] as const)
    test(what, () => {
      const sessions = bytes.map(pageBytes => ({
        pageBytes: pageBytes,
        forgetPages() {
          this.pageBytes = 0
        },
      }))
      forgetPages(sessions, 100)
      assert.deepEqual(
        sessions.map(({pageBytes}) => pageBytes),
        expected,
      )
    })
})
