import {existsSync} from 'node:fs'
import {setTimeout as sleep} from 'node:timers/promises'
import {pathsBelow, stopIfUnused} from './embedded.ts'
import {tryLock} from './file-lock.ts'

// A process of its own, started beside an embedded Postgres: stops it when its last user was killed before it could.

const LOOK_EVERY_MS = 1_000

/** Returns when nobody uses the server in `home`, and nobody can have begun to. */
async function guard(home: string): Promise<void> {
  const paths = pathsBelow(home)
  using alone = tryLock(paths.guard, 'exclusive')
  // Another guard is here already.
  if (!alone) return
  for (;;) {
    await sleep(LOOK_EVERY_MS)
    if (!existsSync(paths.mutex)) return
    using mutex = tryLock(paths.mutex, 'exclusive')
    if (mutex && (await stopIfUnused(paths))) {
      // Before the mutex: whoever enters next must not take this guard for one that stays.
      alone[Symbol.dispose]()
      return
    }
  }
}

const [, , home] = process.argv
if (home !== undefined) await guard(home)
