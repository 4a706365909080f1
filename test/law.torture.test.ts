import {afterAll, beforeAll, test} from 'vitest'
import {holdLaw, modes} from './law.ts'
import {leadingHost, type LeadingHost} from './leading-host.ts'

let leader: LeadingHost
beforeAll(async () => {
  leader = await leadingHost()
})
afterAll(async () => {
  await leader[Symbol.asyncDispose]()
})

const cases = 2_500

for (const mode of modes)
  test.runIf(process.env['OWSYNC_TORTURE'])(
    `whatever happens to a file, its target follows exactly (${mode.journalMode}, ${mode.capture})`,
    async ({annotate}) => {
      const seed = Number(process.env['OWSYNC_SEED']) || Math.trunc(Math.random() * 2 ** 31)
      await annotate(`OWSYNC_SEED=${seed}`)
      await holdLaw(leader, mode, cases, seed)
    },
  )
