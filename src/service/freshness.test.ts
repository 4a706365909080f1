import assert from 'node:assert/strict'
import {appendFileSync, mkdtempSync, rmSync, utimesSync, writeFileSync} from 'node:fs'
import {tmpdir} from 'node:os'
import {join} from 'node:path'
import {afterAll, describe, test} from 'vitest'
import type {Scheduled} from '../state/scheduled.ts'
import {Freshness} from './freshness.ts'

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
      await freshness.note(place.deploymentId, await freshness.versionOf(sqlitePath), startedAt)
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
    const behindMs = freshness.behindMs(id)
    assert.ok(behindMs > 0)
    assert.ok(behindMs >= performance.now() - before - 1, 'since it was last seen to be equal')
    await sync()
    assert.equal(freshness.behindMs(id), 0)
  })

  test('is behind when its app wrote while it was synced: since the sync began', async () => {
    const {freshness, id, path, write} = watched()
    const startedAt = performance.now()
    const version = await freshness.versionOf(path)
    write()
    await freshness.note(id, version, startedAt)
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
    const version = (await freshness.versionOf(path))!
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
