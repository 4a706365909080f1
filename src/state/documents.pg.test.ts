import assert from 'node:assert/strict'
import fc from 'fast-check'
import {afterAll, beforeAll, describe, test} from 'vitest'
import {testDatabase, type TestDatabase} from '../../test/database.ts'
import {testClient, testHost, type TestHost} from '../../test/host.ts'
import {until} from '../../test/until.ts'
import type {Sql} from '../postgres/sql.ts'
import {createMetrics} from '../telemetry/metrics.ts'
import {EventCursor} from './cache-events.ts'
import {Documents, saveDocument} from './documents.ts'

// Two nodes of one host, each with its cache, on one real Postgres.

let db: TestDatabase
let host: TestHost
let other: TestHost

beforeAll(async () => {
  db = await testDatabase()
  host = await testHost(db, 'host-a', 8)
  other = await testHost(db, 'host-b', 2)
})

afterAll(async () => {
  await host.end()
  await other.end()
  await db[Symbol.asyncDispose]()
})

const nothing = () => Promise.resolve()
const write = (key: string, value: unknown) => ({key, value, actor: 'tester', expected: undefined})

function node(sql: Sql = host, options: {ttlMs?: number; pollEveryMs?: number} = {}) {
  const metrics = createMetrics()
  return Object.assign(new Documents({sql, ttlMs: 300_000, pollEveryMs: 200, metrics, ...options}), {metrics})
}

describe('a cursor over cache events', () => {
  test('reports every change once, whichever transaction began first', async () => {
    const cursor = new EventCursor(host)
    await cursor.start()
    const slow = Promise.withResolvers<undefined>()
    const hasWritten = Promise.withResolvers<undefined>()
    const slowWrite = host.begin(async tx => {
      await saveDocument(tx, write('order.slow', 1))
      hasWritten.resolve(undefined)
      await slow.promise
    })
    await hasWritten.promise
    await saveDocument(host, write('order.fast', 1))
    assert.deepEqual(
      (await cursor.read()).map(({key}) => key),
      ['order.fast'],
      'the later one is not held back by the open one',
    )
    assert.deepEqual(await cursor.read(), [])
    slow.resolve(undefined)
    await slowWrite
    assert.deepEqual(
      (await cursor.read()).map(({key}) => key),
      ['order.slow'],
      'the earlier one, which committed later, is not lost',
    )
    assert.deepEqual(await cursor.read(), [])
  })

  test('begins with what is committed later, also by a transaction that began before', async () => {
    const go = Promise.withResolvers<undefined>()
    const hasWritten = Promise.withResolvers<undefined>()
    const slowWrite = host.begin(async tx => {
      await saveDocument(tx, write('start.slow', 1))
      hasWritten.resolve(undefined)
      await go.promise
    })
    await hasWritten.promise
    await saveDocument(host, write('start.before', 1))
    const cursor = new EventCursor(host)
    await cursor.start()
    go.resolve(undefined)
    await slowWrite
    assert.deepEqual(
      (await cursor.read()).map(({key}) => key),
      ['start.slow'],
    )
  })

  test('hears nothing of another host', async () => {
    const cursor = new EventCursor(host)
    await cursor.start()
    await saveDocument(other, write('theirs', 1))
    assert.deepEqual(await cursor.read(), [])
  })
})

describe('documents', () => {
  test('are read through the cache, and written to Postgres first', async () => {
    const a = node()
    assert.equal(await a.get('doc'), undefined)
    const written = await a.put(host, write('doc', {hello: 'wörld'}), nothing)
    assert.equal(written.version, 1n)
    const read = await a.get('doc')
    assert.deepEqual(read?.value, {hello: 'wörld'})
    assert.equal(read.isCached, false)
    assert.equal((await a.get('doc'))?.isCached, true)
    assert.equal((await a.put(host, write('doc', null), nothing)).version, 2n)
    assert.deepEqual((await a.get('doc'))?.value, null)
  })

  test('what fails in the same transaction undoes the write', async () => {
    const a = node()
    await assert.rejects(
      a.put(host, write('undone', 1), () => Promise.reject(new Error('no'))),
      /no/,
    )
    assert.equal(await a.get('undone'), undefined)
  })

  test('are changed only as they were read, when that is asked', async () => {
    const a = node()
    await a.put(host, write('match', 1), nothing)
    const at = (expected: bigint | 'any', key = 'match') => ({...write(key, 2), expected})
    await assert.rejects(a.put(host, at(2n), nothing), {code: 'SYNC_VERSION_MOVED'})
    assert.equal((await a.put(host, at(1n), nothing)).version, 2n)
    await assert.rejects(a.put(host, at(1n), nothing), {code: 'SYNC_VERSION_MOVED'})
    await assert.rejects(a.put(host, at('any', 'match.none'), nothing), {code: 'SYNC_VERSION_MOVED'})
    assert.equal((await a.put(host, at('any'), nothing)).version, 3n)
  })

  test('a deployment’s settings are a document under every spelling of its name', async () => {
    await testClient(host, 'chat.acme.com', {sqlite_path: '/data/webui.db'})
    const [a, b] = [node(), node()]
    await b.catchUp()
    const read = await a.get('deployment.chat-acme-com')
    assert.equal(read?.version, 1n)
    assert.deepEqual(read.value, {
      client_name: 'chat.acme.com',
      schema_name: 'chat_acme_com',
      container_name: null,
      fqdn: 'chat.acme.com',
      port: null,
      database_type: 'sqlite',
      sqlite_path: '/data/webui.db',
      direction: 'one_way',
      sync_enabled: true,
      sync_interval: null,
      sync_schedule: null,
      status: 'active',
      status_reason: null,
      config: {},
    })
    await b.get('deployment.chat_acme_com')
    const change = {sync_interval: 60, config: {history_days: 3}}
    const key = 'deployment.chat_acme_com'
    const changed = await a.put(host, {key, change, actor: 'tester', expected: 1n}, nothing)
    assert.equal(changed.version, 2n)
    assert.equal((await a.get('deployment.chat.acme.com'))?.version, 2n)
    await b.catchUp()
    assert.equal((await b.get('deployment.chat-acme-com'))?.version, 2n, 'the event has the registered name')
    await assert.rejects(a.put(host, {key, change, actor: 'tester', expected: 1n}, nothing), {
      code: 'SYNC_VERSION_MOVED',
    })
    await assert.rejects(
      a.put(host, {key: 'deployment.nobody', change, actor: 'tester', expected: undefined}, nothing),
      {code: 'SYNC_UNKNOWN_CLIENT'},
    )
  })

  test('a sync does not raise the version of a deployment’s settings', async () => {
    const id = await testClient(host, 'steady')
    await host`update sync_metadata.client_deployments set checked_at = now(), last_sync_at = now(), source_version = 'x',
      updated_at = now() where deployment_id = ${id}`
    assert.equal((await node().get('deployment.steady'))?.version, 1n)
    await host`update sync_metadata.client_deployments set status = 'active' where deployment_id = ${id}`
    assert.equal((await node().get('deployment.steady'))?.version, 1n, 'nor does what changes nothing')
    await host`update sync_metadata.client_deployments set status = 'paused' where deployment_id = ${id}`
    assert.equal((await node().get('deployment.steady'))?.version, 2n)
  })

  test('enabling and disabling a deployment ends and begins a pause, and leaves a quarantine alone', async () => {
    const id = await testClient(host, 'switched')
    const a = node()
    const set = async (sync_enabled: boolean) => {
      const {value} = await a.put(
        host,
        {key: 'deployment.switched', change: {sync_enabled}, actor: 'tester', expected: undefined},
        nothing,
      )
      const {status, sync_enabled: isEnabled} = value as {status: string; sync_enabled: boolean}
      return [status, isEnabled]
    }
    assert.deepEqual(await set(false), ['paused', false])
    assert.deepEqual(await set(true), ['active', true])
    await host`update sync_metadata.client_deployments set status = 'quarantined' where deployment_id = ${id}`
    assert.deepEqual(await set(false), ['quarantined', false])
    assert.deepEqual(await set(true), ['quarantined', true])
  })

  test('null removes an entry of the configuration, what is not named stays', async () => {
    await testClient(host, 'merged', {config: {a: 1, b: 2}})
    const {value} = await node().put(
      host,
      {
        key: 'deployment.merged',
        change: {config: {a: null, c: 3}},
        actor: 'tester',
        expected: undefined,
      },
      nothing,
    )
    assert.deepEqual((value as {config: object}).config, {b: 2, c: 3})
  })

  test('another host’s documents and deployments do not exist', async () => {
    await testClient(other, 'hidden')
    await saveDocument(other, write('hidden', 1))
    const a = node()
    assert.equal(await a.get('hidden'), undefined)
    assert.equal(await a.get('deployment.hidden'), undefined)
  })

  test('a write reaches the other node, by a notice or by the poll', async () => {
    const stop = new AbortController()
    const [a, b] = [node(), node()]
    const following = Promise.all([a.follow(stop.signal), b.follow(stop.signal)])
    await a.put(host, write('reach', 1), nothing)
    await until(async () => (await b.get('reach'))?.value === 1)
    await a.put(host, write('reach', 2), nothing)
    await until(async () => (await b.get('reach'))?.value === 2)
    stop.abort()
    await following
  })

  test('repeated reads are answered from the cache, and counted', async () => {
    const a = node()
    await a.catchUp()
    await saveDocument(host, write('hot', 1))
    for (let i = 0; i < 50; i++) await a.get('hot')
    const count = async (metric: {get(): Promise<{values: {value: number}[]}>}) =>
      (await metric.get()).values[0]?.value
    assert.equal(await count(a.metrics.cacheHits), 49)
    assert.equal(await count(a.metrics.cacheMisses), 1)
    assert.equal(await count(a.metrics.cacheSize), 1)
  })

  test('a database that does not answer is told once, and reading goes on when it does', async () => {
    const told: string[] = []
    let isDown = true
    const sql = ((...args: Parameters<Sql>) =>
      isDown ? Promise.reject(new Error('down')) : host(...args)) as Sql
    const a = new Documents({
      sql,
      ttlMs: 300_000,
      pollEveryMs: 10,
      onFailure: () => told.push('lost'),
      onRecovery: () => told.push('back'),
    })
    const stop = new AbortController()
    let attempts = 0
    const following = a.follow(stop.signal)
    await until(() => attempts++ > 5)
    isDown = false
    await until(() => told.includes('back'))
    await saveDocument(host, write('after', 1))
    await until(async () => (await a.get('after'))?.value === 1)
    assert.deepEqual(told, ['lost', 'back'])
    stop.abort()
    await following
  })
})

/** What may happen next. Nodes are 0 and 1, keys 0 and 1. */
const steps = fc.oneof(
  {weight: 5, arbitrary: fc.record({do: fc.constant('read' as const), node: bit(), key: bit()})},
  {weight: 4, arbitrary: fc.record({do: fc.constant('write' as const), node: bit(), key: bit()})},
  // Past both nodes: another program, with a transaction that stays open for a while.
  {weight: 2, arbitrary: fc.record({do: fc.constant('begin' as const), key: bit()})},
  {weight: 2, arbitrary: fc.constant({do: 'commit' as const})},
  // The answers of the database are held up on their way to this node, and let through.
  {weight: 3, arbitrary: fc.record({do: fc.constant('hold' as const), node: bit()})},
  {weight: 2, arbitrary: fc.record({do: fc.constant('let through' as const), node: bit()})},
  // A notice arrives, or the poll comes round: without this step both are lost.
  {weight: 4, arbitrary: fc.record({do: fc.constant('catch up' as const), node: bit()})},
  {weight: 1, arbitrary: fc.record({do: fc.constant('reconnect' as const), node: bit()})},
)

function bit() {
  return fc.integer({min: 0, max: 1})
}

describe('whatever is read, written, held up, lost and reconnected', () => {
  test('no read is older than its promise', {timeout: 300_000}, async () => {
    let run = 0
    await fc.assert(
      fc.asyncProperty(fc.array(steps, {minLength: 10, maxLength: 50}), async plan => {
        await keepsItsPromise(`law.${++run}`, plan)
      }),
      {numRuns: 150},
    )
  })
})

type Step = typeof steps extends fc.Arbitrary<infer T> ? T : never

async function keepsItsPromise(prefix: string, plan: readonly Step[]): Promise<void> {
  const keys = [`${prefix}.0`, `${prefix}.1`]
  const nodes = [gatedNode(), gatedNode()] as const
  for (const {documents} of nodes) await documents.catchUp()
  /** What is committed: version by key. */
  const committed = [0n, 0n]
  /** What may be committed by now: a read can see a commit before whoever made it hears of it. */
  const begun = [0n, 0n]
  /** What a read by node and key must at least show: what was committed when the node last caught up or wrote. */
  const promised = [
    [0n, 0n],
    [0n, 0n],
  ]
  const reads: Promise<void>[] = []
  let open: {key: number; finish: () => Promise<void>} | undefined

  for (const step of plan) {
    switch (step.do) {
      case 'read': {
        const least = promised[step.node]![step.key]!
        const read = nodes[step.node]!.documents.get(keys[step.key]!)
        reads.push(
          read.then(found => {
            const version = found?.version ?? 0n
            assert.ok(version >= least, `read version ${version}, promised ${least}`)
            assert.ok(version <= begun[step.key]!, 'read what was not committed')
            if (found) assert.equal(found.value, Number(version), 'the value belongs to its version')
          }),
        )
        // Told at the end, when what comes between has happened.
        reads.at(-1)!.catch(() => undefined)
        // A read that is not held up ends here; a held one goes on beside what follows.
        if (!nodes[step.node]!.isHeld()) await reads.at(-1)
        break
      }
      case 'write': {
        if (open?.key === step.key) break // it would wait for the row
        const value = Number(committed[step.key]) + 1
        begun[step.key]!++
        await nodes[step.node]!.documents.put(host, write(keys[step.key]!, value), nothing)
        committed[step.key]!++
        promised[step.node]![step.key] = committed[step.key]!
        break
      }
      case 'begin':
        if (!open) open = await beginWrite(keys[step.key]!, step.key, Number(committed[step.key]) + 1)
        break
      case 'commit':
        if (open) {
          begun[open.key]!++
          await open.finish()
          committed[open.key]!++
          open = undefined
        }
        break
      case 'hold':
        nodes[step.node]!.hold()
        break
      case 'let through':
        nodes[step.node]!.letThrough()
        break
      case 'catch up':
        await nodes[step.node]!.documents.catchUp()
        promised[step.node] = [...committed]
        break
      case 'reconnect':
        nodes[step.node]!.documents.restart()
        promised[step.node] = [...committed]
        break
    }
  }
  if (open) begun[open.key]!++
  await open?.finish()
  if (open) committed[open.key]!++
  for (const each of nodes) each.letThrough()
  await Promise.all(reads)
  for (const {documents} of nodes) {
    await documents.catchUp()
    for (const [i, key] of keys.entries())
      assert.equal((await documents.get(key))?.version ?? 0n, committed[i], 'in the end both know the newest')
  }
}

/** A node whose reads of documents can be held up after the database has answered. */
function gatedNode() {
  let gate = Promise.withResolvers<undefined>()
  let isHeld = false
  const sql = ((...args: Parameters<Sql>) => {
    const answer = host(...args) as unknown as Promise<unknown>
    const isRead = Array.isArray(args[0]) && args[0].join('').includes('from sync_metadata.state')
    if (!isRead || !isHeld) return answer
    const {promise} = gate
    return answer.then(async rows => {
      await promise
      return rows
    })
  }) as unknown as Sql
  return {
    documents: node(sql),
    isHeld: () => isHeld,
    hold: () => {
      isHeld = true
    },
    letThrough: () => {
      isHeld = false
      gate.resolve(undefined)
      gate = Promise.withResolvers()
    },
  }
}

async function beginWrite(key: string, index: number, value: number) {
  const hasWritten = Promise.withResolvers<undefined>()
  const mayCommit = Promise.withResolvers<undefined>()
  const whole = host.begin(async tx => {
    await saveDocument(tx, write(key, value))
    hasWritten.resolve(undefined)
    await mayCommit.promise
  })
  whole.catch(hasWritten.reject)
  await hasWritten.promise
  return {
    key: index,
    finish: async () => {
      mayCommit.resolve(undefined)
      await whole
    },
  }
}
