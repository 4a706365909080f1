import {afterAll, beforeAll, test} from 'vitest'
import {holdLaw, hurryTime, modes} from './law.ts'
import {leadingHost, type LeadingHost} from './leading-host.ts'

let leader: LeadingHost
let restoreTime: () => void
beforeAll(async () => {
  leader = await leadingHost()
  restoreTime = hurryTime()
})
afterAll(async () => {
  restoreTime()
  await leader[Symbol.asyncDispose]()
})

// Both files together: 504 histories of one to six intervals, about 2,200 syncs, each followed by a restore and by two
// that find nothing.
const cases = Number(process.env['OWSYNC_CASES']) || 84

for (const mode of modes.filter(({journalMode}) => journalMode === 'delete'))
  test.concurrent(
    `whatever happens to a file, its target follows exactly (${mode.journalMode}, ${mode.way})`,
    {timeout: 600_000},
    async ({annotate}) => {
      const seed = Number(process.env['OWSYNC_SEED']) || Math.trunc(Math.random() * 2 ** 31)
      await annotate(`OWSYNC_SEED=${seed}`)
      await holdLaw(leader, mode, cases, seed)
    },
  )
