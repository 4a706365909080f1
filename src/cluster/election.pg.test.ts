import assert from 'node:assert/strict'
import {randomUUID} from 'node:crypto'
import {setTimeout as sleep} from 'node:timers/promises'
import {expect, test} from 'vitest'
import {testDatabase, type TestDatabase} from '../../test/database.ts'
import {testHost, type TestHost} from '../../test/host.ts'
import {proxyTo} from '../../test/proxy.ts'
import {withChanges, type Endpoint} from '../net/endpoint.ts'
import {rotatePassword} from '../postgres/admin.ts'
import {connect} from '../postgres/connect.ts'
import {silentLog} from '../telemetry/log.ts'
import {createMetrics} from '../telemetry/metrics.ts'
import {runElection, type ClusterView, type Notice} from './election.ts'
import type {Lease} from './lease.ts'

/** Processes that this machine knows to have ended. */
const gone = new Set<string>()
const patient = {timeout: 30_000, interval: 20}

test('of nodes that start together one leads; when it is stopped the next one does', async () => {
  await using place = await setup()
  await using nodes = place.nodes('a', 'b', 'c')
  const first = await nodes.leader()
  assert.equal(first.lease?.epoch, 1n)
  await first.stop()
  const second = await nodes.leader(first)
  assert.equal(second.lease?.epoch, 2n)
  assert.ok(first.terms[0]?.signal.aborted)
  await expect.poll(() => second.view?.leaderId, patient).toBe(second.nodeId)
  assert.equal(await place.sum('leader_elections_total', nodes.list), 2)
})

test('a leader whose session is ended goes on under the same epoch', async () => {
  await using place = await setup()
  await using nodes = place.nodes('a', 'b')
  const leader = await nodes.leader()
  for (let round = 0; round < 3; round++) {
    const seen = leader.notices.filter(what => what === 'connected').length
    await place.db`
      select pg_terminate_backend(pid) from pg_stat_activity
      where datname = current_database() and application_name = ${`owsync/${leader.nodeId}`}`
    await expect
      .poll(() => leader.notices.filter(what => what === 'connected').length, patient)
      .toBeGreaterThan(seen)
    await sleep(1_500)
  }
  assert.equal(nodes.list.flatMap(({terms}) => terms).length, 1)
  assert.equal(leader.terms[0]?.signal.aborted, false)
})

test('a leader that is gone is followed long before its lease ends', async () => {
  await using place = await setup({durationMs: 60_000})
  await using proxy = await proxyTo(place.host.endpoint)
  await using dying = place.nodes({name: 'a', endpoint: proxy.endpoint})
  await dying.leader()
  await using nodes = place.nodes('b')
  await expect.poll(() => nodes.list[0]?.view?.leaderId, patient).toBe('host-a-node-a')
  proxy.refuse()
  proxy.cut()
  const since = performance.now()
  await nodes.leader()
  assert.ok(performance.now() - since < 30_000)
  proxy.heal()
  // It learns from the row what has become of its lease.
  await expect.poll(() => dying.list[0]?.terms[0]?.signal.aborted, patient).toBe(true)
  await expect.poll(() => dying.list[0]?.view?.leaderId, patient).toBe('host-a-node-b')
})

test('a leader whose process is known to have ended is followed although its session and its lease live on', async () => {
  await using place = await setup({durationMs: 60_000, renewEveryMs: 15_000})
  await using nodes = place.nodes('a', 'b')
  const leader = await nodes.leader()
  gone.add(leader.instance)
  const next = await nodes.leader(leader)
  assert.equal(next.lease?.epoch, 2n)
  await expect.poll(() => leader.leads, patient).toBe(false)
})

test('a leader that hears nothing any more has stopped before another one leads', async () => {
  await using place = await setup({durationMs: 3_000, renewEveryMs: 500})
  await using proxy = await proxyTo(place.host.endpoint)
  await using silenced = place.nodes({name: 'a', endpoint: proxy.endpoint})
  const deaf = await silenced.leader()
  await using nodes = place.nodes('b')
  for (const direction of ['down', 'up'] as const) {
    await expect.poll(() => deaf.leads, patient).toBe(true)
    proxy.silence(direction)
    const next = await nodes.leader()
    assert.equal(deaf.leads, false)
    proxy.heal()
    proxy.cut()
    await expect.poll(() => deaf.view?.isConnected, patient).toBe(true)
    await place.host`select sync_metadata.prefer_node('host-a-node-a')`
    await expect.poll(() => next.leads, patient).toBe(false)
  }
})

test('a promotion is followed at once, and one to a node that is not there is not', async () => {
  await using place = await setup({durationMs: 60_000, renewEveryMs: 10_000})
  await using nodes = place.nodes('a', 'b')
  const leader = await nodes.leader()
  await place.host`select sync_metadata.prefer_node('host-a-node-c')`
  await sleep(1_000)
  assert.equal(leader.leads, true)
  await expect.poll(() => place.beating(), patient).toBe(2)
  const other = nodes.list.find(node => node !== leader)
  await place.host`select sync_metadata.prefer_node(${other?.nodeId})`
  await expect.poll(() => other?.leads, patient).toBe(true)
  assert.equal(leader.leads, false)
  // By force, against whoever does not answer.
  await place.host`select sync_metadata.prefer_node(${leader.nodeId}, p_force => true)`
  await expect.poll(() => leader.leads, patient).toBe(true)
  await expect.poll(() => other?.leads, patient).toBe(false)
})

test('no node loses its session by a handover', async () => {
  await using place = await setup()
  await using nodes = place.nodes('a', 'b', 'c')
  let leader = await nodes.leader()
  for (let round = 0; round < 12; round++) {
    await expect.poll(() => place.beating(), patient).toBe(3)
    const next = nodes.list[(nodes.list.indexOf(leader) + 1) % 3] as TestNode
    await place.host`select sync_metadata.prefer_node(${next.nodeId}, 30000)`
    await expect.poll(() => next.leads, patient).toBe(true)
    await expect.poll(() => nodes.list.every(({view}) => view?.leaderId === next.nodeId), patient).toBe(true)
    leader = next
  }
  for (const {metrics, nodeId} of nodes.list) {
    const {values} = await metrics.heartbeatFailures.get()
    assert.deepEqual(values, [], nodeId)
  }
})

test('a paused cluster keeps its leader and gets no new one', async () => {
  await using place = await setup()
  await using nodes = place.nodes('a', 'b')
  const leader = await nodes.leader()
  await place.host`select sync_metadata.set_paused(true)`
  await expect.poll(() => nodes.list.map(({view}) => view?.isPaused), patient).toEqual([true, true])
  await leader.stop()
  await sleep(2_000)
  assert.ok(nodes.list.every(({leads}) => !leads))
  await place.host`select sync_metadata.set_paused(false)`
  await nodes.leader(leader)
})

test('a leader whose work fails gives the lease back, and the other one gets it', async () => {
  await using place = await setup()
  await using nodes = place.nodes('a', 'b')
  const leader = await nodes.leader()
  leader.fail(new Error('the work broke'))
  const next = await nodes.leader(leader)
  assert.equal(next.lease?.epoch, 2n)
})

test('the lease is not given back before the work under it has ended', async () => {
  await using place = await setup()
  await using nodes = place.nodes({name: 'a', settleMs: 300}, 'b')
  const [slow, quick] = nodes.list
  await place.host`select sync_metadata.prefer_node('host-a-node-a')`
  await expect.poll(() => slow?.leads, patient).toBe(true)
  void slow?.stop()
  await expect.poll(() => quick?.leads, patient).toBe(true)
  assert.equal(slow?.working, 0)
})

test('a node says that it is there, where, and when it has gone', async () => {
  await using place = await setup()
  await using nodes = place.nodes('a')
  const node = await nodes.leader()
  await expect.poll(() => place.beating(), patient).toBe(1)
  const health = async () =>
    (
      await place.host`select node_id, role, version, address, health, is_leader from sync_metadata.v_cluster_health`
    )[0]
  const facts = {node_id: 'host-a-node-a', role: 'node-a', version: '1.2.3', address: '127.0.0.1:9443'}
  assert.deepEqual(await health(), {...facts, health: 'active', is_leader: true})
  const [before] = await place.host<{at: Date}>`select last_heartbeat as at from sync_metadata.hosts`
  assert.ok(before?.at)
  await node.stop()
  assert.deepEqual(await health(), {...facts, health: 'offline', is_leader: false})
})

test('a takeover ends what the epochs before it have open, and nothing else', async () => {
  await using place = await setup()
  await using frozen = connect(place.host.endpoint, {applicationName: 'owsync/host-a-node-b/0'})
  await using innocent = connect(place.host.endpoint, {applicationName: 'owsync/host-a-cli'})
  await using old = await frozen.reserve()
  await using other = await innocent.reserve()
  await using nodes = place.nodes('a')
  await nodes.leader()
  await expect.poll(() => old.lost.aborted, patient).toBe(true)
  assert.equal(other.lost.aborted, false)
})

test('a takeover ends the sessions of all roles of its host, whichever of them was rotated', async () => {
  await using place = await setup()
  const rotation = await rotatePassword(place.db, place.db.endpoint, {cluster: 'host-a', graceMs: 600_000})
  await using other = await testHost(place.db, 'host-b')
  for (const [ours, theirs] of [
    [place.host.endpoint, rotation.endpoint],
    [rotation.endpoint, place.host.endpoint],
  ] as const) {
    await using frozen = connect(theirs, {applicationName: 'owsync/host-a-node-b/0'})
    await using stranger = connect(other.endpoint, {applicationName: 'owsync/host-a-node-b/0'})
    await using old = await frozen.reserve()
    await using innocent = await stranger.reserve()
    await using nodes = place.nodes({name: 'a', endpoint: ours})
    await nodes.leader()
    await expect.poll(() => old.lost.aborted, patient).toBe(true)
    assert.equal(innocent.lost.aborted, false)
  }
})

test('a name that the server may have cut says nothing of an epoch', async () => {
  await using place = await setup()
  // Of epoch 12 what is left after 63 bytes is epoch 1.
  const cut = `owsync/${'c'.repeat(54)}/1`
  assert.equal(cut.length, 64 - 1)
  await place.db`update sync_metadata.leader_election set epoch = 11`
  await using leader = connect(place.host.endpoint, {applicationName: `${cut}2`})
  await using innocent = await leader.reserve()
  const [row] = await innocent<{name: string}>`select current_setting('application_name') as name`
  assert.equal(row?.name, cut)
  await using nodes = place.nodes('a')
  await nodes.leader()
  await place.host`select sync_metadata.end_older_sessions(12)`
  assert.equal(innocent.lost.aborted, false)
})

test('the lease is taken from a process that is frozen in its commit', async () => {
  await using place = await setup({durationMs: 2_000, renewEveryMs: 300})
  await place.host`select sync_metadata.acquire_lease('host-a-node-b', 2000)`
  await using frozen = connect(place.host.endpoint, {applicationName: 'owsync/host-a-node-b/1'})
  await using held = await frozen.reserve()
  const commit = held.begin(async tx => {
    await tx`set local idle_in_transaction_session_timeout = 0`
    await tx`select sync_metadata.assert_lease(1)`
    await new Promise(resolve => {
      held.lost.addEventListener('abort', resolve)
    })
  })
  await using nodes = place.nodes('a')
  await nodes.leader()
  await assert.rejects(commit)
})

type NodeSettings = {readonly name: string; readonly endpoint?: Endpoint; readonly settleMs?: number}

async function setup({durationMs = 10_000, renewEveryMs = 500} = {}) {
  const resources = new AsyncDisposableStack()
  const db: TestDatabase = resources.use(await testDatabase())
  const host: TestHost = resources.use(await testHost(db))
  return {
    db,
    host,
    async beating() {
      const [row] = await host<{count: number}>`select count(*)::int as count from sync_metadata.sync_nodes`
      return row?.count
    },
    async sum(metric: string, nodes: readonly TestNode[]) {
      const all = await Promise.all(nodes.map(({metrics}) => metrics.registry.getMetricsAsJSON()))
      const values = all.flat().find(({name}) => name === metric)
      assert.ok(values)
      return all
        .flat()
        .filter(({name}) => name === metric)
        .flatMap(({values}) => values as {value: number; labels: {result?: string}}[])
        .filter(({labels}) => labels.result === 'won')
        .reduce((sum, {value}) => sum + value, 0)
    },
    nodes(...named: readonly (string | NodeSettings)[]) {
      const list = named.map(each => {
        const {
          name,
          endpoint = host.endpoint,
          settleMs = 0,
        }: NodeSettings = typeof each === 'string' ? {name: each} : each
        return new TestNode(name, {endpoint, settleMs, durationMs, renewEveryMs})
      })
      return {
        list,
        async leader(except?: TestNode): Promise<TestNode> {
          const find = () => list.find(node => node !== except && node.leads)
          await expect.poll(find, patient).toBeDefined()
          return find() as TestNode
        },
        async [Symbol.asyncDispose]() {
          await Promise.all(list.map(node => node.stop()))
        },
      }
    },
    [Symbol.asyncDispose]: () => resources.disposeAsync(),
  }
}

/** A node with nothing but its election. */
class TestNode {
  readonly nodeId: string
  readonly instance = randomUUID()
  readonly metrics = createMetrics()
  readonly terms: Lease[] = []
  readonly notices: Notice[] = []
  view: ClusterView | undefined
  working = 0
  fail: (reason: Error) => void = () => undefined
  readonly #stop = new AbortController()
  readonly #ended: Promise<void>

  constructor(
    name: string,
    settings: {endpoint: Endpoint; settleMs: number; durationMs: number; renewEveryMs: number},
  ) {
    this.nodeId = `host-a-node-${name}`
    const {endpoint, settleMs, durationMs, renewEveryMs} = settings
    const pool = connect(withChanges(endpoint, {}), {max: 4, applicationName: `owsync/${this.nodeId}`})
    const options = {
      nodeId: this.nodeId,
      clusterName: 'host-a',
      role: `node-${name}`,
      version: '1.2.3',
      address: '127.0.0.1:9443',
      instance: this.instance,
      durationMs,
      renewEveryMs,
      log: silentLog,
      metrics: this.metrics,
    }
    const ports = {
      connect: () => pool.reserve(),
      lead: async (lease: Lease) => {
        this.terms.push(lease)
        this.working++
        await new Promise<void>((resolve, reject) => {
          this.fail = reject
          lease.signal.addEventListener('abort', () => {
            setTimeout(resolve, settleMs)
          })
        }).finally(() => this.working--)
      },
      onNotice: (what: Notice) => this.notices.push(what),
      onView: (view: ClusterView) => (this.view = view),
      isFatal: () => false,
      isGone: (_: string, instance: string) => gone.has(instance),
    }
    this.#ended = runElection(options, ports, this.#stop.signal).finally(() => pool.end())
    this.#ended.catch(() => undefined)
  }

  get lease(): Lease | undefined {
    return this.terms.findLast(({signal, endsAt}) => !signal.aborted && performance.now() < endsAt())
  }

  get leads(): boolean {
    return this.lease !== undefined
  }

  async stop(): Promise<void> {
    this.#stop.abort(new Error('stopped'))
    await this.#ended
  }
}
