import {test} from 'vitest'
import {seedOf} from './mutator.ts'
import {concurrentPages, fuzzPages, newTally} from './page-fuzz.ts'

const steps = 50_000

for (const half of ['one', 'another'] as const)
  test
    .runIf(process.env['OWSYNC_TORTURE'])
    .concurrent(
      `whatever happens to a file, its pages show every change (${half} history)`,
      async ({annotate}) => {
        const seed = seedOf() + (half === 'one' ? 0 : 1)
        await annotate(`OWSYNC_SEED=${seed}`)
        await fuzzPages(seed, steps, newTally())
      },
    )

test
  .runIf(process.env['OWSYNC_TORTURE'])
  .concurrent('while another process writes without a pause, no change stays missed', async ({annotate}) => {
    const seed = seedOf()
    await annotate(`OWSYNC_SEED=${seed}`)
    const tally = newTally()
    for (let i = 0; i < 60; i++) await concurrentPages(seed + i, 6_000, tally)
  })
