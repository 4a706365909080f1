import assert from 'node:assert/strict'
import {test} from 'vitest'
import {seedOf} from '../mutator.ts'
import {torture} from './killed-anywhere.ts'

test('wherever it is killed or cut off, 500 times, the next run makes the target equal to the source', async () => {
  const seed = seedOf()
  process.stderr.write(`OWSYNC_SEED=${seed}\n`)
  const tally = await torture(500, seed)
  process.stderr.write(`${JSON.stringify(tally)}\n`)
  assert.ok(tally.killed >= 200 && tally.cut > 20)
})
