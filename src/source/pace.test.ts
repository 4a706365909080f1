import assert from 'node:assert/strict'
import {mkdtemp, rm} from 'node:fs/promises'
import {tmpdir} from 'node:os'
import {join} from 'node:path'
import {DatabaseSync} from 'node:sqlite'
import {setImmediate as nextTurn} from 'node:timers/promises'
import {test} from 'vitest'
import {nextRest, Pace} from './capture.ts'
import {openSource} from './open.ts'

for (const [what, restMs, wasRefused, expected] of [
  ['nobody was in the way', 0, false, 0],
  ['the app was in the way for the first time', 0, true, 10],
  ['it was again', 10, true, 20],
  ['it is all the time', 200, true, 250],
  ['it was not this time', 40, false, 20],
  ['it has not been for a while', 10, false, 0],
] as const) {
  test(`when ${what}, the app is left alone for ${expected} ms`, () => {
    assert.equal(nextRest(restMs, wasRefused), expected)
  })
}

test('reads that the app refuses come further apart', async () => {
  const folder = await mkdtemp(join(tmpdir(), 'owsync-pace-'))
  try {
    const file = join(folder, 'webui.db')
    using app = new DatabaseSync(file)
    app.exec('create table t (x)')
    const {signal} = new AbortController()
    using source = await openSource(file, signal)
    const pace = new Pace(source, 25, signal)
    const read = () => {
      source.db.prepare('select * from t').all()
      return {holdMs: 0}
    }
    for (let i = 0; i < 3; i++) {
      app.exec('begin exclusive')
      const before = source.busyRetries
      const waiting = pace.read(read)
      while (source.busyRetries === before) await nextTurn()
      app.exec('commit')
      await waiting
    }
    const since = performance.now()
    await pace.read(read)
    // A timer may be early by a fraction of a millisecond.
    assert.ok(performance.now() - since >= 39)
  } finally {
    await rm(folder, {recursive: true, force: true})
  }
})
