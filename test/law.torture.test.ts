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

const cases = 1_667

for (const mode of modes)
  test
    .runIf(process.env['OWSYNC_TORTURE'])
    .concurrent(
      `whatever happens to a file, its target follows exactly (${mode.journalMode}, ${mode.way})`,
      async ({annotate}) => {
        const seed = Number(process.env['OWSYNC_SEED']) || Math.trunc(Math.random() * 2 ** 31)
        await annotate(`OWSYNC_SEED=${seed}`)
        await holdLaw(leader, mode, cases, seed)
      },
    )
