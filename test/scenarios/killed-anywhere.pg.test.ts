import assert from 'node:assert/strict'
import {test} from 'vitest'
import {seedOf} from '../mutator.ts'
import {torture} from './killed-anywhere.ts'

test('wherever it is killed or cut off, the next run makes the target equal to the source', async () => {
  const seed = seedOf()
  process.stderr.write(`OWSYNC_SEED=${seed}\n`)
  const {killed, cut} = await torture(16, seed)
  assert.ok(killed + cut > 0)
})
