import assert from 'node:assert/strict'
import {fork} from 'node:child_process'
import {join} from 'node:path'
import {afterAll, beforeAll, describe, expect, test} from 'vitest'
import {lockDeployment} from '../sync/lock.ts'
import {leadingHost, type LeadingHost} from '../../test/leading-host.ts'
import {assertMirror} from '../../test/mirror.ts'
import {chanceOf, seedOf, type Chance} from '../../test/mutator.ts'
import type {ParentNews, ParentOrder} from '../../test/worker-parent.ts'
import {areFree, holdingUp, isGone, optionsOf, workerClient, workersOf} from '../../test/workers.ts'

const {signal} = new AbortController()

let leader: LeadingHost
let chance: Chance
let clients = 0

beforeAll(async () => {
  const seed = seedOf()
  process.stderr.write(`OWSYNC_SEED=${seed}\n`)
  chance = chanceOf(seed)
  leader = await leadingHost()
})
afterAll(() => leader[Symbol.asyncDispose]())

const newClient = () => workerClient(leader, `left-${++clients}`, chance)
type Client = Awaited<ReturnType<typeof newClient>>

describe('whoever started the workers', () => {
  test('is killed: they are gone within seconds, and commit nothing', async () => {
    await using held = await newClient()
    await using done = await newClient()
    const before = await held.deployment()
    const parent = await startParent([held, done], 60_000)
    await holdingUp(leader, held, async isHeld => {
      parent.begin()
      await isHeld()
      await expect.poll(() => parent.news().ended, {timeout: 30_000}).toBe(1)
      const pids = parent.pids()
      assert.equal(pids.length, 2)
      parent.kill('SIGKILL')
      await isGone(pids, 3_000)
    })
    assert.equal((await held.deployment()).generation, before.generation)
    await areFree(leader, [held, done], 0)
    await using workers = workersOf(leader)
    assert.equal((await workers.sync(held.order, signal)).status, 'success')
    await assertMirror(leader.admin, schemaOf(held), held.file)
  })

  test('is frozen: when its lease is over, the next leader has the deployments', async () => {
    await using client = await newClient()
    const parent = await startParent([client], 1_500)
    parent.begin()
    await expect.poll(() => parent.news().ended, {timeout: 30_000}).toBe(1)
    assert.throws(() => lockDeployment(leader.stateDir, client.order.deploymentId, client.name))
    parent.kill('SIGSTOP')
    await areFree(leader, [client], 6_000)
    const pids = parent.pids()
    parent.kill('SIGKILL')
    await isGone(pids, 3_000)
  })
})

/** Starts a process that has workers of its own. It begins to sync when it is told to. */
async function startParent(clients: readonly Client[], leaseMs: number) {
  const child = fork(join(import.meta.dirname, '../../test/worker-parent.ts'), {
    serialization: 'advanced',
    execArgv: ['--disable-warning=ExperimentalWarning'],
    stdio: ['ignore', 'ignore', 'inherit', 'ipc'],
  })
  let news: ParentNews = {pids: [], ended: 0}
  child.on('message', (told: ParentNews) => {
    news = told
  })
  const {settings} = optionsOf(leader)
  const order: ParentOrder = {settings, leaseMs, orders: clients.map(({order}) => order)}
  return await Promise.resolve({
    begin: () => child.send(order),
    news: () => news,
    pids: () => news.pids.filter(pid => pid !== undefined),
    kill: (how: NodeJS.Signals) => child.kill(how),
  })
}

function schemaOf({name}: {readonly name: string}): string {
  return name.replaceAll('-', '_')
}
