import assert from 'node:assert/strict'
import {test} from 'vitest'
import {seedOf} from './mutator.ts'
import {concurrentPages, fuzzPages, newTally} from './page-fuzz.ts'

test
  .runIf(process.env['OWSYNC_TORTURE'])
  .concurrent('whatever happens to a file, its pages show every change', async ({annotate}) => {
    const steps = 100_000
    const seed = seedOf()
    await annotate(`OWSYNC_SEED=${seed}`)
    const tally = await fuzzPages(seed, steps)
    assert.ok(tally.steps >= steps, JSON.stringify(tally))
  })

test
  .runIf(process.env['OWSYNC_TORTURE'])
  .concurrent('while another process writes without a pause, no change stays missed', async ({annotate}) => {
    const seed = seedOf()
    await annotate(`OWSYNC_SEED=${seed}`)
    const tally = newTally()
    for (let i = 0; i < 60; i++) await concurrentPages(seed + i, 6_000, tally)
  })
