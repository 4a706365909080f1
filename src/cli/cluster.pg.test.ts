import assert from 'node:assert/strict'
import {setTimeout as sleep} from 'node:timers/promises'
import {afterAll, beforeAll, describe, test} from 'vitest'
import {runCli} from '../../test/cli.ts'
import {syncedHost, type SyncedHost} from '../../test/synced-host.ts'

let m: SyncedHost

beforeAll(async () => {
  m = await syncedHost()
})

afterAll(async () => {
  await m[Symbol.asyncDispose]()
})

type Document = Record<string, unknown>
type Node = {node_id: string; health: string; is_leader: boolean}

const cluster = (...more: string[]) => runCli(['cluster', ...more], {env: m.env})

async function json(...more: string[]): Promise<Document> {
  const {code, out, err, json} = await cluster(...more, '--json')
  assert.equal(code, 0, out + err)
  return json() as Document
}

async function errorOf(
  ...more: string[]
): Promise<{code: string; message: string; next: string; exit: number}> {
  const {code, json} = await cluster(...more, '--json')
  const {error} = json() as {error: {code: string; message: string; next: string}}
  return {...error, exit: code}
}

/**
 * What a node does about its lease, and nothing else: takes it when it may, renews it, hands over when it is asked to.
 * `deaf` nodes never hand over.
 */
function node(role: string, {deaf = false} = {}): AsyncDisposable {
  const nodeId = `${m.host.cluster}-${role}`
  const over = new AbortController()
  const running = (async () => {
    let epoch: bigint | undefined
    while (!over.signal.aborted) {
      await m.host`
        insert into sync_metadata.sync_nodes (node_id, role) values (${nodeId}, ${role})
        on conflict (host_id, node_id) do update set last_heartbeat = now()`
      if (epoch === undefined) {
        const [taken] = await m.host<{epoch: bigint}>`
          select epoch from sync_metadata.acquire_lease(${nodeId}, 60000)`
        epoch = taken?.epoch
      } else {
        const [kept] = await m.host<{preferred: string | null}>`
          select preferred from sync_metadata.renew_lease(${nodeId}, ${epoch}, 60000)`
        if (kept === undefined) epoch = undefined
        else if (kept.preferred !== null && kept.preferred !== nodeId && !deaf) {
          await m.host`select sync_metadata.release_lease(${nodeId}, ${epoch})`
          epoch = undefined
        }
      }
      await sleep(20, undefined, {signal: over.signal}).catch(() => undefined)
    }
    if (epoch !== undefined) await m.host`select sync_metadata.release_lease(${nodeId}, ${epoch})`
  })()
  return {
    async [Symbol.asyncDispose]() {
      over.abort()
      await running
      await m.admin`delete from sync_metadata.sync_nodes where node_id = ${nodeId}`
    },
  }
}

/** Waits until the nodes have shown themselves and one of them leads. @returns the leader's role. */
async function leader(nodes: number): Promise<string> {
  const until = Date.now() + 30_000
  while (Date.now() < until) {
    const {leader_id, nodes: known} = await json('status')
    if (leader_id !== null && (known as Node[]).length === nodes)
      return (leader_id as string).slice(m.host.cluster.length + 1)
    await sleep(20)
  }
  return assert.fail('nobody leads')
}

describe('with no node', () => {
  test('cluster status says so', async () => {
    const {lease_expires_at, leader_id, nodes, cluster_name, paused} = await json('status')
    assert.deepEqual(
      {lease_expires_at, leader_id, nodes, cluster_name, paused},
      {lease_expires_at: null, leader_id: null, nodes: [], cluster_name: m.host.cluster, paused: false},
    )
    const {out} = await cluster('status')
    assert.equal(out, `${m.host.cluster}: nobody leads\n\nNo node has been started yet.\n`)
    assert.deepEqual(await json('nodes'), {nodes: [], count: 0})
  })

  test('nobody can be asked to lead, or to stop leading', async () => {
    assert.equal((await errorOf('promote', 'node-b')).code, 'SYNC_CANNOT_LEAD')
    assert.equal((await errorOf('step-down')).code, 'SYNC_CANNOT_LEAD')
    const {code, exit} = await errorOf('failover-test', '--yes')
    assert.deepEqual([code, exit], ['SYNC_CANNOT_LEAD', 1])
  })
})

test('with one node, a failover test fails and says what is missing', async () => {
  await using _a = node('node-a')
  await leader(1)
  const {message, next, exit} = await errorOf('failover-test', '--yes')
  assert.equal(exit, 1)
  assert.match(message, /needs two active nodes, and .* has only .*-node-a/)
  assert.match(next, /owsync cluster nodes/)
  assert.match((await errorOf('step-down')).message, /no other node is alive/)
})

describe('with two nodes', () => {
  test('cluster status and nodes show both, and who leads', async () => {
    await using _a = node('node-a')
    await using _b = node('node-b')
    const leading = await leader(2)
    const {nodes} = await json('nodes')
    assert.deepEqual(
      (nodes as Node[]).map(({node_id, health, is_leader}) => [node_id, health, is_leader]),
      ['node-a', 'node-b'].map(role => [`${m.host.cluster}-${role}`, 'active', role === leading]),
    )
    for (const words of [['status'], ['nodes']]) {
      const {out} = await cluster(...words)
      assert.match(out, /node-b/)
      assert.deepEqual(
        out.split('\n').filter(line => line.length > 100),
        [],
      )
    }
  })

  test('promote makes the named node lead, by role, alias or id', async () => {
    await using _a = node('node-a')
    await using _b = node('node-b')
    await leader(2)
    await json('promote', 'node-a')
    const before = (await json('status'))['epoch'] as number
    const {from, to, epoch} = await json('promote', 'secondary')
    assert.deepEqual([from, to], [`${m.host.cluster}-node-a`, `${m.host.cluster}-node-b`])
    assert.ok((epoch as number) > before)
    assert.equal(await leader(2), 'node-b')
    // Again: it is so already.
    assert.deepEqual((await json('promote', `${m.host.cluster}-node-b`))['took_ms'], 0)
    const [row] = await m.host<{actor: string; details: Document}>`
      select actor, details from sync_metadata.audit_log where action = 'cluster.promote' order by audit_id desc limit 1`
    assert.match(row!.actor, /^cli:/)
    assert.deepEqual(row!.details, {from, to, force: false})
  })

  test('promote does nothing when another node leads than was expected', async () => {
    await using _a = node('node-a')
    await using _b = node('node-b')
    const leading = await leader(2)
    const other = leading === 'node-a' ? 'node-b' : 'node-a'
    const {code} = await errorOf('promote', leading, '--expected-leader', other)
    assert.equal(code, 'SYNC_LEADER_CHANGED')
    assert.equal(await leader(2), leading)
    assert.equal((await errorOf('promote', 'node-c')).code, 'SYNC_CANNOT_LEAD')
  })

  test('promote --force fences a leader that does not answer', async () => {
    await using _a = node('node-a', {deaf: true})
    await leader(1)
    await using _b = node('node-b')
    await leader(2)
    const {to} = await json('promote', 'node-b', '--force', '--yes')
    assert.equal(to, `${m.host.cluster}-node-b`)
  })

  test('step-down hands over to the other node', async () => {
    await using _a = node('node-a')
    await using _b = node('node-b')
    const before = await leader(2)
    await json('step-down')
    assert.notEqual(await leader(2), before)
  })

  test('failover-test measures a switch and finds the old leader fenced and alive', async () => {
    await using _a = node('node-a')
    await using _b = node('node-b')
    const before = await leader(2)
    const {cluster_name, ok, from, took_ms, without_leader_ms, fenced, standby_alive} = await json(
      'failover-test',
      '--yes',
    )
    assert.deepEqual(
      {cluster_name, ok, from, fenced, standby_alive},
      {
        cluster_name: m.host.cluster,
        ok: true,
        from: `${m.host.cluster}-${before}`,
        fenced: true,
        standby_alive: true,
      },
    )
    assert.ok((took_ms as number) >= 0 && (without_leader_ms as number) >= 0)
    assert.notEqual(await leader(2), before)
    assert.match((await cluster('failover-test', '--yes')).out, /The failover works\.\n$/)
  })

  test('while paused nobody is asked to lead, until resume', async () => {
    await using _a = node('node-a')
    await using _b = node('node-b')
    await leader(2)
    assert.equal((await json('pause'))['paused'], true)
    assert.match((await cluster('status')).out, /Paused: nobody takes over/)
    assert.match((await errorOf('step-down')).next, /owsync cluster resume/)
    assert.equal((await json('resume'))['paused'], false)
    await json('step-down')
    const rows = await m.host<{action: string}>`
      select action from sync_metadata.audit_log where action in ('cluster.paused', 'cluster.resumed') order by audit_id`
    assert.deepEqual(
      rows.map(({action}) => action),
      ['cluster.paused', 'cluster.resumed'],
    )
  })
})
