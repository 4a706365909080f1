import assert from 'node:assert/strict'
import {setTimeout as sleep} from 'node:timers/promises'
import {expect, test} from 'vitest'
import {hostWithClient} from '../../test/host.ts'
import {proxyTo} from '../../test/proxy.ts'
import {httpReceiver, type HttpReceiver} from '../../test/receivers.ts'
import {Secret} from '../config/secret.ts'
import {connect} from '../postgres/connect.ts'
import type {Pool} from '../postgres/sql.ts'
import {alertBooks, readAlertBook} from '../state/alert-book.ts'
import {silentLog} from '../telemetry/log.ts'
import {createMetrics} from '../telemetry/metrics.ts'
import {watchLeader, type LeaderWatchOptions} from './leader-watch.ts'

/** What was sent, as `event key`, oldest first. */
function told({posts}: HttpReceiver): string[] {
  return posts.flatMap(({body}) =>
    (body as {alerts: {event: string; key: string}[]}).alerts.map(({event, key}) => `${event} ${key}`),
  )
}

async function becomes(http: HttpReceiver, expected: readonly string[]): Promise<void> {
  await expect.poll(() => told(http), {timeout: 30_000, interval: 20}).toEqual(expected)
}

function watching(
  pool: Pool,
  http: HttpReceiver,
  role: 'node-a' | 'node-b',
  changes: Partial<LeaderWatchOptions> = {},
) {
  const stop = new AbortController()
  const metrics = createMetrics()
  const running = watchLeader(
    {
      pool,
      config: {
        alertsSlackUrl: undefined,
        alertsWebhookUrl: new Secret(http.url),
        alertsPagerdutyKey: undefined,
        alertsSmtpUrl: undefined,
        alertsEmailTo: [],
        clusterName: 'host-a',
      },
      nodeId: `host-a-${role}`,
      log: silentLog,
      metrics,
      everyMs: 30,
      patienceMs: 300,
      coolDownMs: 0,
      ...changes,
    },
    stop.signal,
  )
  return {
    metrics,
    async [Symbol.asyncDispose]() {
      stop.abort()
      await running
    },
  }
}

const lead = (pool: Pool) => pool`select from sync_metadata.acquire_lease('host-a-node-a', 3600000)`
const standDown = (pool: Pool) =>
  pool`select sync_metadata.release_lease('host-a-node-a', epoch) from sync_metadata.leader_election`

test('that nobody leads is told once by two nodes, and its end', async () => {
  await using world = await hostWithClient()
  await using http = await httpReceiver()
  await using _a = watching(world.host, http, 'node-a')
  await using _b = watching(world.host, http, 'node-b')
  await becomes(http, ['raised no_leader'])
  await sleep(500)
  assert.deepEqual(told(http), ['raised no_leader'])
  await lead(world.host)
  await becomes(http, ['raised no_leader', 'recovered no_leader'])
  await sleep(500)
  assert.equal(told(http).length, 2)
  assert.deepEqual((await readAlertBook(world.host, alertBooks.nodes)).outbox, [])
})

test('a short time without a leader is a failover, and a paused cluster is meant to have none', async () => {
  await using world = await hostWithClient()
  await using http = await httpReceiver()
  await lead(world.host)
  await using patient = watching(world.host, http, 'node-a', {patienceMs: 3_600_000})
  await standDown(world.host)
  await sleep(500)
  assert.deepEqual(told(http), [])
  await patient[Symbol.asyncDispose]()

  await world.host`select sync_metadata.set_paused(true)`
  await using _ = watching(world.host, http, 'node-b')
  await sleep(1_000)
  assert.deepEqual(told(http), [])
  await world.host`select sync_metadata.set_paused(false)`
  await becomes(http, ['raised no_leader'])
})

test('a node that has only just begun to look does not take back what another one has told', async () => {
  await using world = await hostWithClient()
  await using http = await httpReceiver()
  {
    await using _ = watching(world.host, http, 'node-a')
    await becomes(http, ['raised no_leader'])
  }
  await using _ = watching(world.host, http, 'node-b', {patienceMs: 3_600_000})
  await sleep(500)
  assert.deepEqual(told(http), ['raised no_leader'])
  await lead(world.host)
  await becomes(http, ['raised no_leader', 'recovered no_leader'])
})

for (const [how, breakIt] of [
  ['refuses connections', 'refuse'],
  ['says nothing any more', 'silence'],
] as const)
  test(`a node tells for itself that Postgres ${how}, and that it is back`, async () => {
    await using world = await hostWithClient()
    await using http = await httpReceiver()
    await lead(world.host)
    await using proxy = await proxyTo(world.host.endpoint)
    await using pool = connect(proxy.endpoint, {
      max: 2,
      applicationName: 'owsync-test',
      answerWithinMs: 2_000,
    })
    await using watch = watching(pool, http, 'node-b', {answerWithinMs: 1_500, patienceMs: 3_000})
    await sleep(300)
    assert.deepEqual(told(http), [])
    if (breakIt === 'refuse') {
      proxy.refuse()
      proxy.cut()
    } else proxy.silence('up', 'down')
    await becomes(http, ['raised database_unreachable/host-a-node-b'])
    await sleep(500)
    assert.equal(told(http).length, 1, 'not repeated')
    const {body} = http.posts[0]!
    assert.doesNotMatch(JSON.stringify(body), new RegExp(String(proxy.endpoint.password)))
    proxy.heal()
    if (breakIt === 'silence') proxy.cut()
    await becomes(http, [
      'raised database_unreachable/host-a-node-b',
      'recovered database_unreachable/host-a-node-b',
    ])
    assert.ok(
      (await watch.metrics.errors.get()).values.some(({labels}) => labels.component === 'leader_watch'),
    )
  })
