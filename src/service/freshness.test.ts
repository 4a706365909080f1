import assert from 'node:assert/strict'
import {appendFileSync, mkdtempSync, rmSync, utimesSync, writeFileSync} from 'node:fs'
import {tmpdir} from 'node:os'
import {join} from 'node:path'
import {setImmediate} from 'node:timers/promises'
import {afterAll, describe, test} from 'vitest'
import {versionSeen} from '../source/seen.ts'
import type {Scheduled} from '../state/scheduled.ts'
import {Freshness} from './freshness.ts'
import {Looks} from './looks.ts'

const folder = mkdtempSync(join(tmpdir(), 'owsync-fresh-'))
afterAll(() => {
  rmSync(folder, {recursive: true})
})
const {signal} = new AbortController()
let files = 0

function watched(changes: Partial<Scheduled> = {}) {
  const sqlitePath = join(folder, `${++files}.db`)
  writeFileSync(sqlitePath, 'x')
  const place: Scheduled = {
    deploymentId: `d${files}`,
    clientName: 'acme',
    schemaName: 'acme',
    sqlitePath,
    status: 'active',
    statusReason: null,
    generation: 1n,
    isEnabled: true,
    syncInterval: null,
    syncSchedule: null,
    config: {},
    settingsVersion: 1n,
    freshMs: 0,
    sourceVersion: null,
    behindMs: null,
    ...changes,
  }
  const freshness = new Freshness()
  freshness.know([place])
  let mtime = 1_000_000
  return {
    freshness,
    place,
    id: place.deploymentId,
    path: sqlitePath,
    /** Writes to the file, however coarse its times are. */
    write: (suffix = '') => {
      appendFileSync(sqlitePath + suffix, 'y')
      utimesSync(sqlitePath + suffix, ++mtime, mtime)
    },
    sync: async () => {
      const startedAt = performance.now()
      await freshness.note(
        place.deploymentId,
        await freshness.versionOf(sqlitePath, signal),
        startedAt,
        signal,
      )
    },
  }
}

describe('a target', () => {
  test('is behind from the first look at a newer version until that is applied', async () => {
    const {freshness, id, write, sync} = watched()
    await sync()
    assert.equal(freshness.behindMs(id), 0)
    const before = performance.now()
    write()
    assert.equal(freshness.behindMs(id), 0, 'nobody has seen it')
    await freshness.look(signal)
    const atLeastMs = performance.now() - before - 1
    const behindMs = freshness.behindMs(id)
    assert.ok(behindMs > 0)
    assert.ok(behindMs >= atLeastMs, 'since it was last seen to be equal')
    await sync()
    assert.equal(freshness.behindMs(id), 0)
  })

  test('is behind when its app wrote while it was synced: since the sync began', async () => {
    const {freshness, id, path, write} = watched()
    const startedAt = performance.now()
    const version = await freshness.versionOf(path, signal)
    write()
    await freshness.note(id, version, startedAt, signal)
    assert.ok(freshness.behindMs(id) > 0)
  })

  test('is behind by what stands in the log, but not by an empty one', async () => {
    const {freshness, id, path, write, sync} = watched()
    await sync()
    writeFileSync(`${path}-wal`, '')
    await freshness.look(signal)
    assert.equal(freshness.behindMs(id), 0)
    write('-wal')
    await freshness.look(signal)
    assert.ok(freshness.behindMs(id) > 0)
  })

  test('is not fresher because its file has gone', async () => {
    const {freshness, id, path, write, sync} = watched()
    await sync()
    write()
    await freshness.look(signal)
    rmSync(path)
    await freshness.look(signal)
    assert.ok(freshness.behindMs(id) > 0)
  })

  test('is known from the leader before: equal to the version it noted, or behind for as long as it said', async () => {
    const {freshness, place, id, path} = watched()
    const version = (await freshness.versionOf(path, signal))!
    const equal = new Freshness()
    equal.know([{...place, sourceVersion: version}])
    await equal.look(signal)
    assert.equal(equal.behindMs(id), 0)
    const behind = new Freshness()
    behind.know([{...place, sourceVersion: 'another', behindMs: 60_000}])
    await behind.look(signal)
    assert.ok(behind.behindMs(id) >= 60_000)
  })
})

test('what was found out is handed over once, and again when it could not be kept', async () => {
  const {freshness, id, write, sync} = watched()
  await sync()
  const [check] = freshness.take()
  assert.deepEqual([check!.deploymentId, check!.behindMs], [id, null])
  assert.ok(check!.freshMs !== null && check!.sourceVersion !== null)
  assert.deepEqual(freshness.take(), [])
  freshness.putBack([check!], performance.now())
  assert.ok(freshness.take()[0]!.freshMs! >= check!.freshMs)
  write()
  await freshness.look(signal)
  const [behind] = freshness.take()
  assert.equal(behind!.freshMs, null)
  assert.ok(behind!.behindMs! > 0)
})

test('a file system that hangs is asked once, and holds up neither the others nor the end', async () => {
  const {place, path: answers} = watched()
  const places = ['gone-1', 'gone-2'].map(name => ({...place, deploymentId: name, sqlitePath: name}))
  const asked: string[] = []
  const looks = new Looks(async path => {
    asked.push(path)
    return await (path === answers ? versionSeen(path) : new Promise<never>(() => undefined))
  }, 1_000)
  const freshness = new Freshness(looks)
  freshness.know([places[0]!, {...place, sourceVersion: 'another'}])
  for (let round = 0; round < 3; round++) await freshness.look(signal)
  assert.ok(freshness.behindMs(place.deploymentId) > 0)
  assert.equal(asked.filter(path => path === 'gone-1').length, 1)
  assert.equal(await freshness.versionOf('gone-1', signal), undefined)
  assert.equal(await freshness.versionOf(answers, signal), await versionSeen(answers))
  // With two that hang nobody is asked any more: there would soon be no thread left.
  for (const path of ['gone-2', 'gone-3', answers])
    assert.equal(await freshness.versionOf(path, signal), undefined)
  assert.equal(asked.at(-1), 'gone-2')

  const end = new AbortController()
  const waiting = new Freshness(new Looks(() => new Promise<never>(() => undefined)))
  waiting.know(places)
  const looked = waiting.look(end.signal)
  const before = performance.now()
  end.abort(new Error('the end'))
  await looked
  assert.ok(performance.now() - before < 1_000)
})

test('what a look shows that had begun before is not taken for what is so now', async () => {
  const begun: PromiseWithResolvers<string>[] = []
  const looks = new Looks(async () => {
    const look = Promise.withResolvers<string>()
    begun.push(look)
    return await look.promise
  })
  const first = looks.at('file', signal)
  const second = looks.at('file', signal)
  assert.equal(begun.length, 1)
  begun[0]!.resolve('before')
  assert.equal(await first, 'before')
  await setImmediate()
  begun[1]!.resolve('now')
  assert.equal(await second, 'now')
})
