import assert from 'node:assert/strict'
import {rmSync} from 'node:fs'
import {join} from 'node:path'
import {setTimeout as sleep} from 'node:timers/promises'
import {afterAll, beforeAll, describe, expect, test} from 'vitest'
import {SyncError} from '../core/errors.ts'
import {FencedOutError} from '../postgres/refusals.ts'
import {refusal} from '../../test/host.ts'
import {leadingHost, type LeadingHost} from '../../test/leading-host.ts'
import {assertMirror} from '../../test/mirror.ts'
import {chanceOf, mutate, seedOf, type Chance} from '../../test/mutator.ts'
import {
  areFree,
  holdingUp,
  isAlive,
  isGone,
  optionsOf,
  pidOf,
  workerClient,
  workersOf,
} from '../../test/workers.ts'
import {silentLog} from '../telemetry/log.ts'
import {createMetrics, observePool} from '../telemetry/metrics.ts'
import type {Workers} from './workers.ts'

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

const newClient = (journal?: 'delete' | 'wal') => workerClient(leader, `worked-${++clients}`, chance, journal)
type Client = Awaited<ReturnType<typeof newClient>>

test('what workers do in Postgres is counted here, and their connections are shown while they live', async () => {
  await using client = await newClient()
  const metrics = createMetrics()
  const valueOf = async (name: string, labels: Record<string, string> = {}) =>
    ((await metrics.registry.getSingleMetric(name)!.get()).values as Value[])
      .filter(({labels: has}) => Object.entries(labels).every(([label, value]) => has[label] === value))
      .reduce((sum, {value}) => sum + value, 0)
  {
    await using workers = workersOf(leader, {observer: observePool(metrics, 'workers')})
    await workers.sync(client.order, signal)
    const before = await valueOf('db_queries_total', {query_type: 'commit', status: 'success'})
    assert.ok(before >= 1, `${before} commits`)
    assert.ok((await valueOf('db_pool_size', {pool_name: 'workers'})) >= 1)
    mutate(client.file, chance)
    await workers.sync(client.order, signal)
    assert.ok((await valueOf('db_queries_total', {query_type: 'commit', status: 'success'})) > before)
    assert.equal(await valueOf('fenced_writes_total'), 0)
  }
  assert.equal(await valueOf('db_pool_size', {pool_name: 'workers'}), 0)

  // The same work under an epoch that was never given.
  const options = optionsOf(leader)
  await using outdated = workersOf(leader, {
    settings: {...options.settings, epoch: 0n},
    observer: observePool(metrics, 'workers'),
  })
  mutate(client.file, chance)
  assert.ok((await refusal(outdated.sync(client.order, signal))) instanceof SyncError)
  assert.equal(await valueOf('fenced_writes_total'), 1)
  assert.equal(await valueOf('errors_total', {error_type: 'SYNC_FENCED_OUT'}), 1)
})

type Value = {readonly labels: Readonly<Record<string, string>>; readonly value: number}

describe('who runs what', () => {
  test('many deployments share a few processes, and each stays with its own', async () => {
    await using resources = new AsyncDisposableStack()
    const some: Client[] = []
    for (let i = 0; i < 6; i++) some.push(resources.use(await newClient(i % 2 === 0 ? 'delete' : 'wal')))
    const workers = resources.use(workersOf(leader, {most: 2}))
    const results = await Promise.all(some.map(({order}) => workers.sync(order, signal)))
    for (const result of results) assert.deepEqual([result.status, result.generation], ['success', 1n])
    const before = workers.states
    assert.equal(before.length, 2)
    assert.equal(before[0]!.deployments + before[1]!.deployments, 6)
    for (const client of some) await assertMirror(leader.admin, schemaOf(client), client.file)

    for (let round = 0; round < 4; round++) {
      const again = await Promise.all(some.map(({order}) => workers.sync(order, signal)))
      // Only a session that has had the file open since can say so without a look: anybody else takes some time.
      for (const [i, {mode, duration_ms}] of again.entries())
        if (round > 0 && i % 2 === 0) assert.deepEqual([mode, duration_ms], ['unchanged', 0])
    }
    assert.deepEqual(workers.states, before)

    for (const client of some) mutate(client.file, chance)
    await Promise.all(some.map(({order}) => workers.sync(order, signal)))
    for (const client of some) await assertMirror(leader.admin, schemaOf(client), client.file)
  })

  test('no process is started before it is needed', async () => {
    await using client = await newClient()
    await using workers = workersOf(leader)
    assert.deepEqual(workers.states, [])
    for (let i = 0; i < 3; i++) await workers.sync(client.order, signal)
    assert.equal(workers.states.length, 1)
  })

  test('whoever waits behind a long run moves to another worker', async () => {
    await using long = await newClient()
    await using short = await newClient()
    await using workers = workersOf(leader, {most: 2})
    await workers.sync(long.order, signal)
    await workers.sync(short.order, signal)
    assert.deepEqual(
      workers.states.map(({deployments}) => deployments),
      [2],
    )
    mutate(long.file, chance)
    mutate(short.file, chance)
    const {slow} = await holdingUp(leader, long, async isHeld => {
      const slow = workers.sync(long.order, signal)
      await isHeld()
      assert.equal((await workers.sync(short.order, signal)).status, 'success')
      assert.deepEqual(
        workers.states.map(({deployments}) => deployments),
        [1, 1],
      )
      return {slow}
    })
    assert.equal((await slow).status, 'success')
    for (const client of [long, short]) await assertMirror(leader.admin, schemaOf(client), client.file)
  })

  test('a run that begins while its deployment is released is known to have it', async () => {
    await using client = await newClient()
    await using other = await newClient()
    await using workers = workersOf(leader)
    await workers.sync(client.order, signal)
    await workers.sync(other.order, signal)
    const released = workers.release(client.order.deploymentId)
    await workers.sync(client.order, signal)
    await released
    assert.equal(workers.states[0]!.deployments, 2)
    mutate(other.file, chance)
    const {slow} = await holdingUp(leader, other, async isHeld => {
      const slow = workers.sync(other.order, signal)
      await isHeld()
      assert.equal((await workers.sync(client.order, signal)).status, 'success')
      return {slow}
    })
    assert.equal((await slow).status, 'success')
  })

  test('what is in hand is not released, and what is released twice is free', async () => {
    await using client = await newClient()
    await using workers = workersOf(leader)
    mutate(client.file, chance)
    const {slow} = await holdingUp(leader, client, async isHeld => {
      const slow = workers.sync(client.order, signal)
      await isHeld()
      await workers.release(client.order.deploymentId)
      return {slow}
    })
    assert.equal((await slow).status, 'success')
    await Promise.all([1, 2, 3].map(() => workers.release(client.order.deploymentId)))
    await areFree(leader, [client], 0)
    assert.equal(workers.states[0]!.deployments, 0)
  })

  test('two runs of one deployment come one after the other', async () => {
    await using client = await newClient()
    await using workers = workersOf(leader)
    const results = await Promise.all([1, 2, 3].map(() => workers.sync(client.order, signal)))
    assert.deepEqual(
      results.map(({mode}) => mode),
      ['full', 'unchanged', 'unchanged'],
    )
    assert.equal(workers.states.length, 1)
  })
})

describe('besides syncs', () => {
  test('a worker verifies, and repairs what differs, whatever its session believed', async () => {
    await using client = await newClient()
    await using workers = workersOf(leader)
    await workers.sync(client.order, signal)
    const {deploymentId, clientName, schemaName, sqlitePath} = client.order
    const order = {task: 'verify', deploymentId, clientName, schemaName, sqlitePath, quick: false} as const
    const equal = await workers.run({...order, repair: false}, signal)
    assert.deepEqual([equal.result.differences, equal.totals.differences], [[], 0])

    const [table] = (await client.relations()).keys()
    const target = (await client.schema()).tables.find(({source}) => source === table)!.target
    await leader.admin`update ${leader.admin(schemaName, target)} set _sync_deleted_at = now()`
    const found = await workers.run({...order, repair: true}, signal)
    assert.ok(found.totals.differences > 0)
    assert.equal(found.result.repaired, found.totals.differences)
    mutate(client.file, chance)
    assert.equal((await workers.sync(client.order, signal)).status, 'success')
    await assertMirror(leader.admin, schemaOf(client), client.file)
  })

  test('a worker restores, and what refuses that arrives by name', async () => {
    await using client = await newClient()
    await using workers = workersOf(leader)
    await workers.sync(client.order, signal)
    const {deploymentId, clientName, schemaName} = client.order
    const to = join(leader.folder, `${client.name}-again.db`)
    const order = {task: 'restore', deploymentId, clientName, schemaName, to, force: false} as const
    const {result} = await workers.run(order, signal)
    assert.deepEqual([result.verified, result.file], [true, to])
    await assertMirror(leader.admin, schemaOf(client), to)
    const error = await refusal(workers.run(order, signal))
    assert.ok(error instanceof SyncError)
    assert.equal(error.code, 'SYNC_DESTINATION')
  })
})

describe('what a run says arrives as it was', () => {
  test('a failure keeps its code, its words and whether to try again', async () => {
    await using client = await newClient()
    await using workers = workersOf(leader)
    rmSync(client.file)
    const error = await refusal(workers.sync(client.order, signal))
    assert.ok(error instanceof SyncError)
    const {name, code, retryable, message, next} = error
    assert.deepEqual([name, code, retryable], ['SourceUnreadableError', 'SYNC_SOURCE_UNREADABLE', false])
    assert.match(message, /there is no such file/)
    assert.match(next, /Check the path/)
    assert.ok((error.cause as Error).message.includes('ENOENT'))
  })

  test('progress, while a first load runs', async () => {
    await using client = await newClient()
    await using workers = workersOf(leader)
    const seen: [string, number][] = []
    await workers.sync(client.order, signal, (table, rows) => seen.push([table, rows]))
    assert.ok(seen.length > 0)
  })

  test('what it logs', async () => {
    await using client = await newClient()
    const lines: unknown[] = []
    const {log, ...options} = optionsOf(leader)
    await using workers = workersOf(leader, {
      ...options,
      settings: {...options.settings, limits: {...options.settings.limits, lockBudgetMs: 0.0001}},
      log: {...log, warn: (fields, message) => lines.push([fields['client'], message])},
    })
    await workers.sync(client.order, signal)
    assert.deepEqual(lines, [[client.name, 'a lock was held longer than LOCK_BUDGET_MS']])
  })
})

describe('a worker that dies', () => {
  test('fails the run that it had in hand, and no other; the next one converges', async () => {
    await using victim = await newClient()
    await using other = await newClient()
    await using workers = workersOf(leader)
    await Promise.all([victim, other].map(({order}) => workers.sync(order, signal)))
    mutate(victim.file, chance)
    mutate(other.file, chance)
    const before = await victim.deployment()
    await holdingUp(leader, victim, async isHeld => {
      const run = assert.rejects(workers.sync(victim.order, signal), {
        code: 'SYNC_WORKER_LOST',
        retryable: true,
        message: /was ended by SIGKILL/,
      })
      await isHeld()
      const pid = pidOf(workers, victim)
      process.kill(pid, 'SIGKILL')
      await run
      assert.equal((await workers.sync(other.order, signal)).status, 'success')
      await isGone([pid], 1_000)
    })
    assert.equal((await victim.deployment()).generation, before.generation)
    assert.equal((await workers.sync(victim.order, signal)).generation, before.generation + 1n)
    for (const client of [victim, other]) await assertMirror(leader.admin, schemaOf(client), client.file)
  })

  test('leaves its other deployments to the others', async () => {
    await using some = new AsyncDisposableStack()
    const clients = [
      some.use(await newClient()),
      some.use(await newClient('wal')),
      some.use(await newClient()),
    ]
    const told: unknown[] = []
    const log = {...silentLog, warn: (...line: unknown[]) => told.push(line)}
    const workers = some.use(workersOf(leader, {most: 1, log}))
    for (const {order} of clients) await workers.sync(order, signal)
    const [{pid} = {pid: undefined}] = workers.states
    process.kill(pid!, 'SIGKILL')
    await expect.poll(() => workers.states, {timeout: 2_000, interval: 5}).toEqual([])
    assert.deepEqual(told, [[{pid, deployments: 3}, 'an idle sync worker was ended by SIGKILL']])
    for (const client of clients) {
      mutate(client.file, chance)
      assert.equal((await workers.sync(client.order, signal)).status, 'success')
      await assertMirror(leader.admin, schemaOf(client), client.file)
    }
    assert.equal(workers.states.length, 1)
  })

  test('again and again with one deployment: that one rests longer each time, the others do not notice', async () => {
    await using victim = await newClient()
    await using other = await newClient()
    await using workers = workersOf(leader)
    await Promise.all([victim, other].map(({order}) => workers.sync(order, signal)))
    const waits: number[] = []
    const pauses: number[] = []
    const over = new AbortController()
    const going = (async () => {
      while (!over.signal.aborted) {
        const since = performance.now()
        mutate(other.file, chance)
        assert.equal((await workers.sync(other.order, signal)).status, 'success')
        waits.push(performance.now() - since)
        await sleep(20)
      }
    })()
    let killedAt = performance.now()
    for (let i = 0; i < 3; i++) {
      mutate(victim.file, chance)
      await holdingUp(leader, victim, async isHeld => {
        const run = assert.rejects(workers.sync(victim.order, signal), {code: 'SYNC_WORKER_LOST'})
        await isHeld()
        pauses.push(performance.now() - killedAt)
        killedAt = performance.now()
        process.kill(pidOf(workers, victim), 'SIGKILL')
        await run
        // What the dead one has left in Postgres waits still, and would be taken for the next one.
        await leader.admin`select pg_terminate_backend(pid, 5000) from pg_stat_activity
          where datname = current_database() and application_name like 'owsync/%' and wait_event = 'transactionid'`
      })
    }
    over.abort()
    await going
    assert.ok(pauses[1]! > 950 && pauses[2]! > 1_950, pauses.join())
    assert.ok(waits.length > 5, 'the other one stood still')
    assert.equal((await workers.sync(victim.order, signal)).status, 'success')
    for (const client of [victim, other]) await assertMirror(leader.admin, schemaOf(client), client.file)
  })

  test('by failing to start is told as that', async () => {
    await using client = await newClient()
    await using workers = workersOf(leader)
    const {execPath} = process
    process.execPath = join(leader.folder, 'no-such-node')
    try {
      await assert.rejects(workers.sync(client.order, signal), {
        code: 'SYNC_WORKER_LOST',
        message: /did not start/,
      })
    } finally {
      process.execPath = execPath
    }
    assert.equal((await workers.sync(client.order, signal)).status, 'success')
  })
})

describe('a worker that works at one go', () => {
  test('for longer than its lease lasts and a frozen one would live, is left to it, and goes on', async () => {
    await using client = await newClient()
    const before = process.env['NODE_OPTIONS']
    process.env['NODE_OPTIONS'] = `--import=${new URL('../../test/works-on-signal.ts', import.meta.url).href}`
    try {
      const lease = {...leader.lease, endsAt: () => performance.now() + 3_000}
      await using workers = workersOf(leader, {lease, mostUnanswered: 4, most: 1})
      await workers.sync(client.order, signal)
      mutate(client.file, chance)
      let run: ReturnType<typeof workers.sync> | undefined
      const pid = await holdingUp(leader, client, async isHeld => {
        run = workers.sync(client.order, signal)
        run.catch(() => undefined)
        await isHeld()
        const pid = pidOf(workers, client)
        process.kill(pid, 'SIGUSR2')
        await sleep(6_000)
        assert.ok(isAlive(pid), 'it was killed')
        return pid
      })
      assert.equal((await run)?.status, 'success')
      assert.deepEqual(
        workers.states.map(state => state.pid),
        [pid],
      )
    } finally {
      if (before === undefined) delete process.env['NODE_OPTIONS']
      else process.env['NODE_OPTIONS'] = before
    }
    await assertMirror(leader.admin, schemaOf(client), client.file)
  })
})

describe('a worker that hangs', () => {
  test('frozen in the middle of a run, it is killed and replaced', async () => {
    await using client = await newClient()
    await using workers = workersOf(leader, {mostUnanswered: 4})
    await workers.sync(client.order, signal)
    mutate(client.file, chance)
    await holdingUp(leader, client, async isHeld => {
      const run = assert.rejects(workers.sync(client.order, signal), {
        code: 'SYNC_WORKER_LOST',
        message: /gave no sign of life for 2 s/,
      })
      await isHeld()
      const pid = pidOf(workers, client)
      process.kill(pid, 'SIGSTOP')
      await run
      await isGone([pid], 1_000)
    })
    assert.equal((await workers.sync(client.order, signal)).status, 'success')
    await assertMirror(leader.admin, schemaOf(client), client.file)
  })

  test('frozen while it has nothing to do, it is killed as well', async () => {
    await using client = await newClient()
    await using workers = workersOf(leader, {mostUnanswered: 4})
    await workers.sync(client.order, signal)
    const pid = workers.states[0]!.pid!
    process.kill(pid, 'SIGSTOP')
    await expect.poll(() => workers.states, {timeout: 10_000}).toEqual([])
    assert.ok(!isAlive(pid))
    assert.equal((await workers.sync(client.order, signal)).status, 'success')
  })

  test('a run without progress is stopped, its worker lives on', async () => {
    await using client = await newClient()
    await using workers = workersOf(leader, {stallMs: 5_000})
    await workers.sync(client.order, signal)
    mutate(client.file, chance)
    const {pid} = workers.states[0]!
    await holdingUp(leader, client, async isHeld => {
      const since = performance.now()
      const run = assert.rejects(workers.sync(client.order, signal), {code: 'SYNC_STALLED', retryable: true})
      await isHeld()
      await run
      assert.ok(performance.now() - since >= 5_000)
    })
    assert.equal((await workers.sync(client.order, signal)).status, 'success')
    assert.equal(workers.states[0]!.pid, pid)
    await assertMirror(leader.admin, schemaOf(client), client.file)
  })

  test('a run that does not stop when it is asked to goes with its worker', async () => {
    await using client = await newClient()
    await using workers = workersOf(leader)
    await workers.sync(client.order, signal)
    mutate(client.file, chance)
    const stop = new AbortController()
    await holdingUp(leader, client, async isHeld => {
      const run = assert.rejects(workers.sync(client.order, stop.signal), /enough/)
      await isHeld()
      const pid = pidOf(workers, client)
      process.kill(pid, 'SIGSTOP')
      stop.abort(new Error('enough'))
      await run
      await isGone([pid], 1_000)
    })
    // It was us who ended it: the deployment need not rest.
    const since = performance.now()
    assert.equal((await workers.sync(client.order, signal)).status, 'success')
    assert.ok(performance.now() - since < 60_000)
  })
})

describe('when it is over', () => {
  test('a run that is given up in the middle commits nothing, and its worker lives on', async () => {
    await using client = await newClient()
    await using workers = workersOf(leader)
    await workers.sync(client.order, signal)
    mutate(client.file, chance)
    const {pid} = workers.states[0]!
    const before = await client.deployment()
    const stop = new AbortController()
    await holdingUp(leader, client, async isHeld => {
      const run = assert.rejects(workers.sync(client.order, stop.signal), /enough/)
      await isHeld()
      stop.abort(new Error('enough'))
      await run
    })
    await sleep(300)
    assert.deepEqual(await client.deployment(), before)
    assert.equal((await workers.sync(client.order, signal)).status, 'success')
    assert.equal(workers.states[0]!.pid, pid)
  })

  test('a run that waits for a worker can be given up', async () => {
    await using busy = await newClient()
    await using waiting = await newClient()
    await using workers = workersOf(leader, {most: 1})
    const stop = new AbortController()
    await holdingUp(leader, busy, async isHeld => {
      const first = workers.sync(busy.order, stop.signal)
      first.catch(() => undefined)
      await isHeld()
      const second = assert.rejects(workers.sync(waiting.order, stop.signal), /enough/)
      assert.equal(workers.queued, 1)
      stop.abort(new Error('enough'))
      await second
      assert.equal(workers.queued, 0)
      await assert.rejects(first, /enough/)
    })
    await assert.rejects(workers.sync(waiting.order, stop.signal), /enough/)
  })

  test('when the leader’s lease is over, nothing of a run is committed, and the deployments are free at once', async () => {
    await using client = await newClient()
    await using idle = await newClient()
    const over = new AbortController()
    const lease = {...leader.lease, signal: AbortSignal.any([leader.lease.signal, over.signal])}
    await using workers = workersOf(leader, {lease, most: 1})
    await workers.sync(idle.order, signal)
    await workers.sync(client.order, signal)
    mutate(client.file, chance)
    const before = await client.deployment()
    await holdingUp(leader, client, async isHeld => {
      const run = assert.rejects(workers.sync(client.order, signal), {code: 'SYNC_FENCED_OUT'})
      await isHeld()
      over.abort(new FencedOutError('another node took it'))
      await run
    })
    await sleep(300)
    assert.deepEqual(await client.deployment(), before)
    await areFree(leader, [client, idle], 3_000)
    await assert.rejects(workers.sync(client.order, signal), {code: 'SYNC_FENCED_OUT'})
  })

  test('a worker that hears of no renewal gives up by its own clock', async () => {
    await using client = await newClient()
    await using idle = await newClient()
    const term = {endsAt: performance.now() + 120_000}
    await using workers = workersOf(leader, {lease: {...leader.lease, endsAt: () => term.endsAt}, most: 1})
    await workers.sync(idle.order, signal)
    await workers.sync(client.order, signal)
    mutate(client.file, chance)
    const before = await client.deployment()
    await holdingUp(leader, client, async isHeld => {
      const run = assert.rejects(workers.sync(client.order, signal), {
        code: 'SYNC_FENCED_OUT',
        message: /ran out, and nobody told this worker/,
      })
      run.catch(() => undefined)
      await isHeld()
      // From here on nothing renews it: the worker hears of this end, and of no later one.
      term.endsAt = performance.now() + 2_000
      await run
      assert.ok(performance.now() < term.endsAt + 1_000)
    })
    assert.deepEqual(await client.deployment(), before)
    await areFree(leader, [client, idle], 1_000)
  })

  test('a lease that is renewed in time lasts', async () => {
    await using client = await newClient()
    const lease = {...leader.lease, endsAt: () => performance.now() + 1_500}
    await using workers = workersOf(leader, {lease})
    const run = await holdingUp(leader, client, async isHeld => {
      const run = workers.sync(client.order, signal)
      run.catch(() => undefined)
      await isHeld()
      await sleep(3_000)
      return {run}
    })
    assert.equal((await run.run).status, 'success')
  })

  test('closed, it leaves no process, also none that is frozen', async () => {
    await using client = await newClient()
    await using frozen = await newClient()
    let pids: number[] = []
    await holdingUp(leader, client, async isHeld => {
      await using workers = workersOf(leader)
      const runs = [client, frozen].map(({order}) => workers.sync(order, signal))
      runs[0]!.catch(() => undefined)
      await runs[1]
      await isHeld()
      pids = pidsOf(workers)
      process.kill(
        pids.find(pid => pid !== pidOf(workers, client))!,
        'SIGSTOP',
      )
    })
    assert.equal(pids.length, 2)
    assert.deepEqual(pids.filter(isAlive), [])
  })
})

function pidsOf(workers: Workers): number[] {
  return workers.states.map(({pid}) => pid).filter(pid => pid !== undefined)
}

function schemaOf({name}: {readonly name: string}): string {
  return name.replaceAll('-', '_')
}
