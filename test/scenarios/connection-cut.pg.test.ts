import assert from 'node:assert/strict'
import {existsSync} from 'node:fs'
import {join} from 'node:path'
import {setImmediate as nextTurn} from 'node:timers/promises'
import {afterAll, beforeAll, describe, test} from 'vitest'
import {assertMirror} from '../mirror.ts'
import {chanceOf, makeFile, mutate, seedOf, type Chance} from '../mutator.ts'
import {proxyTo, type Proxy} from '../proxy.ts'
import {testSite, type Run, type Site} from '../site.ts'

// The connection breaks after so many round trips of a sync: while it connects, asks for its lease, copies, applies,
// commits, releases. Each time the process says in words that it may be tried again, and the next run finishes.

let site: Site
let proxy: Proxy
let chance: Chance

beforeAll(async () => {
  const seed = seedOf()
  process.stderr.write(`OWSYNC_SEED=${seed}\n`)
  chance = chanceOf(seed)
  site = await testSite()
  proxy = await proxyTo(site.host.endpoint)
})

afterAll(async () => {
  await proxy[Symbol.asyncDispose]()
  await site[Symbol.asyncDispose]()
})

describe('during a first load', () => {
  for (const turn of [2, 6, 10, 15, 17, 19, 22]) {
    cutAt(turn, () => {
      const client = `client${turn}`
      const file = join(site.folder, `${client}.db`)
      makeFile(file, chance, {rows: 40})
      return Promise.resolve({client, file})
    })
  }
})

describe('during an increment', () => {
  for (const turn of [12, 16, 20, 22, 24]) {
    cutAt(turn, async () => {
      const file = join(site.folder, 'loaded.db')
      if (!existsSync(file)) {
        makeFile(file, chance, {rows: 40})
        const run = await site.sync('loaded', {sqlite: file})
        assert.equal(run.code, 0, run.out)
      }
      mutate(file, chance)
      return {client: 'loaded', file}
    })
  }
})

type Client = {readonly client: string; readonly file: string}

function cutAt(turn: number, prepare: () => Promise<Client>): void {
  test(`cut at turn ${turn}: it is told as a lost connection, and the next run goes on`, async () => {
    const client = await prepare()
    const run = await runCutAt(turn, client)
    if (run.code !== 0) {
      assert.equal(run.code, 75, run.out + run.err)
      assert.match(run.error!.code, /^SYNC_(CONNECTION_LOST|UNREACHABLE)$/)
      assert.ok(run.afterMs < 15_000, `it took ${run.afterMs} ms to notice`)
    }
    const next = await site.sync(client.client, {sqlite: client.file})
    assert.equal(next.code, 0, next.out + next.err)
    await assertMirror(site.db, client.client, client.file)
  })
}

/** @returns the run, and how long it went on after the cut, in ms. */
async function runCutAt(turn: number, {client, file}: Client): Promise<Run & {readonly afterMs: number}> {
  const first = proxy.turns
  const started = site.start(client, {
    sqlite: file,
    endpoint: proxy.endpoint,
    preload: 'crash-points.ts',
    env: {CHUNK_BYTES: '60000', LOCK_BUDGET_MS: '1'},
  })
  while (!started.hasEnded() && proxy.turns - first < turn) await nextTurn()
  proxy.cut()
  const cutAt = performance.now()
  return {...(await started.ended), afterMs: performance.now() - cutAt}
}
