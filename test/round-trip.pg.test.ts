import assert from 'node:assert/strict'
import {join} from 'node:path'
import {afterAll, beforeAll, describe, test} from 'vitest'
import {restore} from '../src/restore/restore.ts'
import {compareFiles} from './compare.ts'
import {shapes} from './shapes.ts'
import {syncedHost, type SyncedHost} from './synced-host.ts'

let m: SyncedHost

beforeAll(async () => {
  m = await syncedHost()
})

afterAll(async () => {
  await m[Symbol.asyncDispose]()
})

describe('what was synced verifies as equal and is restored value for value', () => {
  for (const [i, shape] of shapes.entries())
    test(shape.name, async () => {
      const client = `shape_${i}`
      const source = m.source(client, shape.build)
      await m.sync(client, source)
      await holds(client, source, '1')
      if (shape.change === undefined) return
      for (const step of shape.change) m.source(client, step)
      // What has not been synced is no difference.
      assert.deepEqual((await m.verify(client)).differences, [])
      await m.sync(client)
      await holds(client, source, '2')
    })
})

async function holds(client: string, source: string, suffix: string): Promise<void> {
  for (const quick of [false, true]) {
    const {differences, pending, moving, accepted} = await m.verify(client, {quick})
    assert.deepEqual(
      {differences, pending, moving, accepted},
      {differences: [], pending: 0, moving: 0, accepted: 0},
    )
  }
  const to = join(m.folder, `${client}-${suffix}.db`)
  await restore(
    {pool: m.host, clientName: client, schemaName: client, to, force: false},
    new AbortController().signal,
  )
  assert.deepEqual(compareFiles(source, to), [])
}
