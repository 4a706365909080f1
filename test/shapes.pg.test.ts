import assert from 'node:assert/strict'
import type {DatabaseSync} from 'node:sqlite'
import {afterAll, beforeAll, describe, test} from 'vitest'
import {snapshot} from './changed-rows.ts'
import {compareFiles} from './compare.ts'
import {leadingClient, leadingHost, type LeadingClient, type LeadingHost} from './leading-host.ts'
import {assertReport, type Rows} from './reported-rows.ts'
import {openShape, shapes} from './shapes.ts'

let leader: LeadingHost
beforeAll(async () => {
  leader = await leadingHost()
})
afterAll(async () => {
  await leader[Symbol.asyncDispose]()
})

describe('a file is followed exactly, step by step', () => {
  for (const capture of ['digests', 'pages'] as const)
    for (const [i, shape] of shapes.entries())
      test(`${shape.name} (${capture})`, async () => {
        await using client = await leadingClient(leader, `shape-${i}-${capture}`)
        const step = (work: (db: DatabaseSync) => void) => {
          using db = openShape(client.file)
          work(db)
        }
        step(shape.build)
        let state = await follows(client, {rows: new Map(), relations: new Map()}, capture)
        for (const change of shape.change ?? []) {
          step(change)
          // What has not been synced is no difference.
          if (capture === 'digests') assert.deepEqual((await client.verify()).differences, [])
          state = await follows(client, state, capture)
        }
      })
})

async function follows(client: LeadingClient, before: Rows, capture: 'digests' | 'pages'): Promise<Rows> {
  // A shape may drop a table on purpose, which somebody would have to confirm.
  const result = await client.sync({capture, accept: true})
  assert.equal(result.status, 'success', result.reason)
  const now = {rows: snapshot(client.file), relations: await client.relations()}
  assertReport(result, before, now)
  const counts = new Map([...now.rows].map(([name, {rows}]) => [name, rows.size]))
  assert.deepEqual(await client.differences(counts), [])
  assert.deepEqual(compareFiles(client.file, await client.restore()), [])
  // The stored values, and then the stored hashes.
  if (capture === 'digests')
    for (const quick of [false, true]) {
      const {differences, pending, moving, accepted} = await client.verify({quick})
      assert.deepEqual(
        {differences, pending, moving, accepted},
        {differences: [], pending: 0, moving: 0, accepted: 0},
      )
    }

  if (capture === 'pages') {
    const full = await client.sync({full: true})
    assert.equal(full.mode, 'unchanged', 'compared with the target')
  }
  const again = await client.sync({capture})
  assert.equal(again.mode, 'unchanged', 'compared with what is remembered')
  return now
}
