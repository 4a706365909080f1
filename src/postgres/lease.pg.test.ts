import assert from 'node:assert/strict'
import {setTimeout as sleep} from 'node:timers/promises'
import {describe, test} from 'vitest'
import {testDatabase} from '../../test/database.ts'
import {testHost, type TestHost} from '../../test/host.ts'
import {waitsForLock} from '../../test/waits-for-lock.ts'
import {FencedOutError} from './refusals.ts'
import type {Sql} from './sql.ts'

const A = 'host-a-node-a'
const B = 'host-a-node-b'

describe('the lease', () => {
  test('goes to one of many who ask at once, and its epoch only grows', async () => {
    await using host = await setup(8)
    for (let round = 1; round <= 5; round++) {
      const won = await Promise.all(Array.from({length: 8}, (_, i) => acquire(host, `host-a-node-${i}`)))
      assert.deepEqual(
        won.filter(epoch => epoch !== undefined),
        [BigInt(round)],
      )
      await release(host, `host-a-node-${won.findIndex(epoch => epoch !== undefined)}`, round)
    }
  })

  test('is not taken while it lasts, unless its holder is known to be dead', async () => {
    await using host = await setup()
    assert.equal(await acquire(host, A), 1n)
    assert.equal(await acquire(host, B), undefined)
    assert.equal(await acquire(host, B, {hint: true}), 2n)
  })

  test('is free once it has run out', async () => {
    await using host = await setup()
    await acquire(host, A, {ms: 100})
    await sleep(120)
    assert.equal(await acquire(host, B), 2n)
    assert.equal(await renew(host, A, 1), undefined)
  })

  test('is its holder’s again after a restart, under a new epoch', async () => {
    await using host = await setup()
    await acquire(host, A)
    assert.equal(await acquire(host, A), 2n)
    assert.equal(await renew(host, A, 1), undefined)
    assert.notEqual(await renew(host, A, 2), undefined)
  })

  test('keeps its epoch when it is released; the next is greater', async () => {
    await using host = await setup()
    await acquire(host, A)
    assert.equal(await release(host, B, 1), false)
    assert.equal(await release(host, A, 1), true)
    assert.equal(await release(host, A, 1), false)
    assert.equal(await acquire(host, B), 2n)
  })

  test('wakes whoever listens when it is released', async () => {
    await using host = await setup()
    await using listener = await host.reserve()
    const heard = new Promise<string[]>(resolve => {
      listener.onNotify((...notice) => {
        resolve(notice)
      })
    })
    const [row] = await host<{channel: string}>`
      select sync_metadata.channel_of(sync_metadata.my_host()) as channel`
    await listener`listen ${listener(row!.channel)}`
    await acquire(host, A)
    assert.deepEqual(await heard, [row!.channel, 'lease'])
  })

  test('is not taken while the cluster is paused; its holder keeps it', async () => {
    await using host = await setup()
    await acquire(host, A)
    await host`select sync_metadata.set_paused(true)`
    assert.equal((await renew(host, A, 1))?.paused, true)
    await release(host, A, 1)
    assert.equal(await acquire(host, B), undefined)
    await host`select sync_metadata.set_paused(false)`
    assert.equal(await acquire(host, B), 2n)
  })
})

describe('promotion', () => {
  test('asks the leader to hand over, and lets nobody else in meanwhile', async () => {
    await using host = await setup()
    await acquire(host, A)
    assert.equal(await prefer(host, B), true)
    assert.equal((await renew(host, A, 1))?.preferred, B)
    await release(host, A, 1)
    assert.equal(await acquire(host, A), undefined)
    assert.equal(await acquire(host, B), 2n)
    assert.equal((await renew(host, B, 2))?.preferred, null)
  })

  test('is a wish that ends, and that can be taken back', async () => {
    await using host = await setup()
    await prefer(host, B, {ms: 100})
    await sleep(120)
    assert.equal(await acquire(host, A), 1n)
    await prefer(host, B)
    await prefer(host, null)
    assert.equal((await renew(host, A, 1))?.preferred, null)
  })

  test('is refused when another leads than was thought', async () => {
    await using host = await setup()
    await acquire(host, A)
    assert.equal(await prefer(host, A, {expected: B}), false)
    assert.equal((await renew(host, A, 1))?.preferred, null)
  })

  test('by force fences a leader that does not answer', async () => {
    await using host = await setup()
    await acquire(host, A)
    await prefer(host, B, {force: true})
    await assert.rejects(async () => host`select sync_metadata.assert_lease(1)`, FencedOutError)
    assert.equal(await acquire(host, A), undefined)
    assert.equal(await acquire(host, B), 3n)
  })

  test('step-down names the node that was alive last, and nobody when there is none', async () => {
    await using host = await setup()
    const stepDown = async () =>
      (await host<{to: string | null}>`select sync_metadata.step_down() as to`)[0]?.to
    assert.equal(await stepDown(), null)
    await acquire(host, A)
    await host`insert into sync_metadata.sync_nodes (node_id, role, last_heartbeat)
      values (${A}, 'node-a', now()), (${B}, 'node-b', now() - interval '1 hour')`
    assert.equal(await stepDown(), null)
    await host`update sync_metadata.sync_nodes set last_heartbeat = now()`
    assert.equal(await stepDown(), B)
    assert.equal((await renew(host, A, 1))?.preferred, B)
  })
})

describe('the fence', () => {
  test('a deposed leader cannot commit', async () => {
    await using host = await setup()
    await acquire(host, A)
    await assert.rejects(
      host.begin(async tx => {
        await tx`insert into sync_metadata.state (key, value) values ('k', '1')`
        await acquire(host, B, {hint: true})
        await tx`select sync_metadata.assert_lease(1)`
      }),
      FencedOutError,
    )
    assert.deepEqual(await host`select 1 from sync_metadata.state`, [])
  })

  test('a takeover waits until a writer that holds the fence has committed', async () => {
    await using host = await setup()
    await acquire(host, A)
    const order: string[] = []
    let taking: Promise<void> | undefined
    await host.begin(async tx => {
      await tx`select sync_metadata.assert_lease(1)`
      taking = acquire(host, B, {hint: true}).then(epoch => {
        order.push(`epoch ${epoch ?? 'none'}`)
      })
      await waitsForLock(host)
      order.push('commit')
    })
    await taking
    assert.deepEqual(order, ['commit', 'epoch 2'])
  })

  test('a takeover waits no longer than its lock_timeout', async () => {
    await using host = await setup()
    await acquire(host, A)
    await host.begin(async tx => {
      await tx`select sync_metadata.assert_lease(1)`
      const taking = host.begin(other => acquire(other, B, {hint: true}), {setLocal: {lock_timeout: '100ms'}})
      await assert.rejects(taking, {code: 'SYNC_TRANSACTION_CONFLICT'})
    })
  })

  test('renewing does not wait, not even behind a takeover that does; and then it prevails', async () => {
    await using host = await setup()
    await acquire(host, A, {ms: 100})
    await sleep(120)
    let taking: Promise<bigint | undefined> | undefined
    await host.begin(async tx => {
      await tx`select sync_metadata.assert_lease(1)`
      taking = acquire(host, B)
      await waitsForLock(host)
      const renewed = await host.begin(other => renew(other, A, 1), {setLocal: {lock_timeout: '1s'}})
      assert.notEqual(renewed, undefined)
    })
    assert.equal(await taking, undefined, 'the lease was renewed while the takeover waited')
    assert.notEqual(await renew(host, A, 1), undefined)
  })

  test('writers do not wait for each other', async () => {
    await using host = await setup()
    await acquire(host, A)
    await host.begin(async tx => {
      await tx`select sync_metadata.assert_lease(1)`
      await host.begin(other => other`select sync_metadata.assert_lease(1)`, {setLocal: {lock_timeout: '1s'}})
    })
  })
})

describe('each cluster by itself', () => {
  test('a node is one of its own cluster', async () => {
    await using db = await testDatabase()
    await using host = await testHost(db, 'host-a')
    await using other = await testHost(db, 'host-a-b')
    for (const node of ['host-b-node-a', 'node-a', 'host-a-', 'host-a', '', 'host-a-x y', "host-a-'"]) {
      await assert.rejects(acquire(host, node), {code: 'SYNC_NOT_YOURS'}, node)
    }
    assert.equal(await acquire(host, A), 1n)
    assert.equal(await acquire(other, 'host-a-b-node-a'), 1n)
    assert.equal(await release(host, 'host-a-b-node-a', 1), false, 'only ever its own cluster’s row')
    assert.notEqual(await renew(other, 'host-a-b-node-a', 1), undefined)
  })

  test('changes of state are events for its caches, in commit order', async () => {
    await using db = await testDatabase()
    await using host = await testHost(db)
    await using other = await testHost(db, 'host-b')
    const [from] = await host<{xmin: bigint}>`select pg_snapshot_xmin(pg_current_snapshot()) as xmin`
    await host`insert into sync_metadata.state (key, value) values ('k', '1')`
    await host`update sync_metadata.state set value = '2', version = version + 1 where key = 'k'`
    await host`select sync_metadata.register_deployment('acme')`
    await host`update sync_metadata.client_deployments set sync_interval = 60`
    await host`update sync_metadata.client_deployments set last_sync_status = 'success', checked_at = now()`
    const events = (sql: Sql) => sql`
      select key, version, action from sync_metadata.cache_events
      where xid >= ${from!.xmin} and xid < pg_snapshot_xmin(pg_current_snapshot()) order by xid, event_id`
    // An older transaction anywhere on the server holds the cursor back.
    const deadline = performance.now() + 30_000
    while ((await events(host)).length < 4 && performance.now() < deadline) await sleep(20)
    assert.deepEqual(await events(host), [
      {key: 'k', version: 1n, action: 'insert'},
      {key: 'k', version: 2n, action: 'update'},
      {key: 'deployment.acme', version: 1n, action: 'insert'},
      {key: 'deployment.acme', version: 2n, action: 'update'},
    ])
    assert.deepEqual(await events(other), [])
  })
})

async function setup(max = 4): Promise<TestHost> {
  const db = await testDatabase()
  const host = await testHost(db, 'host-a', max)
  const end = async () => {
    await host.end()
    await db[Symbol.asyncDispose]()
  }
  return Object.assign(host, {[Symbol.asyncDispose]: end})
}

type Bid = {readonly ms?: number; readonly hint?: boolean}

async function acquire(
  sql: Sql,
  node: string,
  {ms = 60_000, hint = false}: Bid = {},
): Promise<bigint | undefined> {
  const [row] = await sql<{
    epoch: bigint
  }>`select epoch from sync_metadata.acquire_lease(${node}, ${ms}, ${hint})`
  return row?.epoch
}

async function renew(sql: Sql, node: string, epoch: number) {
  const [row] = await sql<{expires_at: Date; preferred: string | null; paused: boolean}>`
    select * from sync_metadata.renew_lease(${node}, ${epoch}, 60000)`
  return row
}

async function release(sql: Sql, node: string, epoch: number): Promise<boolean> {
  const [row] = await sql<{
    released: boolean
  }>`select sync_metadata.release_lease(${node}, ${epoch}) as released`
  return row!.released
}

type Wish = {readonly ms?: number; readonly expected?: string; readonly force?: boolean}

async function prefer(sql: Sql, node: string | null, {ms = 60_000, expected, force = false}: Wish = {}) {
  const [row] = await sql<{done: boolean}>`
    select sync_metadata.prefer_node(${node}, ${ms}, ${expected}, ${force}) as done`
  return row!.done
}
