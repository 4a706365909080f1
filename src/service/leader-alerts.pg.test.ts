import assert from 'node:assert/strict'
import {afterAll, beforeAll, beforeEach, describe, expect, test} from 'vitest'
import {leadingHost, type LeadingHost} from '../../test/leading-host.ts'
import {httpReceiver, type HttpReceiver} from '../../test/receivers.ts'
import {testClient} from '../../test/host.ts'
import type {Lease} from '../cluster/lease.ts'
import {Secret} from '../config/secret.ts'
import {alertBooks, readAlertBook} from '../state/alert-book.ts'
import {silentLog, type Fields, type Log} from '../telemetry/log.ts'
import {createMetrics} from '../telemetry/metrics.ts'
import {runAlerts, type AlertOptions} from './leader-alerts.ts'

let leader: LeadingHost
let http: HttpReceiver
let id: string

beforeAll(async () => {
  leader = await leadingHost()
  id = await testClient(leader.host, 'acme', {sync_interval: 60})
})
afterAll(() => leader[Symbol.asyncDispose]())

beforeEach(async () => {
  http = await httpReceiver()
  const {admin} = leader
  for (const table of ['sync_jobs', 'conflict_log', 'row_quarantine', 'verifications', 'state', 'audit_log'])
    await admin`delete from sync_metadata.${admin(table)}`
  await admin`update sync_metadata.client_deployments
    set status = 'active', status_reason = null, checked_at = now() + interval '1 day', last_sync_at = null,
      sync_enabled = true, load_position = null, config = '{}'`
  return () => http[Symbol.asyncDispose]()
})

/** What was sent, as `event key`, oldest first. */
function told(): string[] {
  return http.posts.flatMap(({body}) =>
    (body as {alerts: {event: string; key: string}[]}).alerts.map(({event, key}) => `${event} ${key}`),
  )
}

type Running = AsyncDisposable & {
  readonly metrics: ReturnType<typeof createMetrics>
  readonly stop: () => Promise<void>
  /** Resolves after so many further looks. */
  readonly looks: (count: number) => Promise<void>
}

function watching(changes: Partial<AlertOptions> = {}): Running {
  const stop = new AbortController()
  const metrics = createMetrics()
  let count = 0
  // A gauge that each look fills says that there has been one.
  const reset = metrics.targetSize.reset.bind(metrics.targetSize)
  metrics.targetSize.reset = () => {
    count++
    reset()
  }
  const running = runAlerts(
    {
      pool: leader.host,
      config: {
        alertsSlackUrl: undefined,
        alertsWebhookUrl: new Secret(`${http.url}/hook`),
        alertsPagerdutyKey: undefined,
        alertsSmtpUrl: undefined,
        alertsEmailTo: [],
        clusterName: 'host-a',
        dbSizeLimitBytes: undefined,
        conflictResolutionConfig: undefined,
      },
      lease: leader.lease,
      log: silentLog,
      metrics,
      everyMs: 30,
      coolDownMs: 0,
      settleMs: 0,
      ...changes,
    },
    stop.signal,
  )
  const end = async () => {
    stop.abort()
    await running
  }
  return {
    metrics,
    stop: end,
    async looks(more) {
      const until = count + more
      await expect.poll(() => count, {timeout: 30_000, interval: 20}).toBeGreaterThanOrEqual(until)
    },
    [Symbol.asyncDispose]: end,
  }
}

const config = {
  alertsSlackUrl: undefined,
  alertsPagerdutyKey: undefined,
  alertsSmtpUrl: undefined,
  alertsEmailTo: [],
  clusterName: 'host-a',
  dbSizeLimitBytes: undefined,
  conflictResolutionConfig: undefined,
}

async function becomes(expected: readonly string[]): Promise<void> {
  await expect.poll(told, {timeout: 30_000, interval: 20}).toEqual(expected)
}

const failedJob = (error: string, attempt = 1) => leader.admin`
  insert into sync_metadata.sync_jobs (deployment_id, status, attempt, started_at, finished_at, error_code, error_message)
  values (${id}, 'failed', ${attempt}, now(), clock_timestamp() + interval '2 days', ${error}, 'secret-in-message')`
const succeed = () => leader.admin`
  update sync_metadata.client_deployments set checked_at = clock_timestamp() + interval '3 days'`
const conflict = (status: string, count: number) => leader.admin`
  insert into sync_metadata.conflict_log (deployment_id, table_name, record_key, conflict_type, status, source_data)
  select ${id}, 'chat', 'k' || i, 'update_update', ${status}, '{"text": "row-content"}' from generate_series(1, ${count}) i`

/** Each condition of which somebody is told: how it begins, and how it ends. */
const conditions: readonly {
  readonly key: string
  readonly options?: () => Promise<Partial<AlertOptions>>
  readonly begin: () => Promise<unknown>
  readonly end: () => Promise<unknown>
}[] = [
  {
    key: 'repeated_failure/acme',
    begin: async () => {
      for (let i = 0; i < 3; i++) await failedJob('SYNC_WRONG_PASSWORD')
    },
    end: succeed,
  },
  {
    key: 'sync_lag/acme',
    begin: () =>
      leader.admin`update sync_metadata.client_deployments set checked_at = now() - interval '20 minutes'`,
    end: succeed,
  },
  {
    key: 'quarantine/acme',
    begin: () => leader.admin`update sync_metadata.client_deployments
      set status = 'quarantined', status_reason = '120 of 150 rows of chat would be deleted'`,
    end: () => leader.admin`update sync_metadata.client_deployments set status = 'active'`,
  },
  {
    key: 'rows_quarantined/acme',
    begin:
      () => leader.admin`insert into sync_metadata.row_quarantine (deployment_id, table_name, record_key, code, reason)
      values (${id}, 'chat', 'k', 'SYNC_DATA', 'too long')`,
    end: () => leader.admin`update sync_metadata.row_quarantine set resolved_at = now()`,
  },
  {
    key: 'manual_conflict/acme',
    begin: () => conflict('pending', 2),
    end: () => leader.admin`update sync_metadata.conflict_log set status = 'resolved'`,
  },
  {
    key: 'conflict_rate/acme',
    begin: () => conflict('resolved', 11),
    end: () =>
      leader.admin`update sync_metadata.conflict_log set detected_at = now() - interval '11 minutes'`,
  },
  {
    key: 'conflict_notice/acme',
    begin: () => leader.admin`insert into sync_metadata.sync_jobs
      (deployment_id, status, created_at, finished_at, conflicts_detected, result)
      values (${id}, 'success', now(), now(), 2, '{"conflicts": {"detected": 2, "to_tell": 1}}')`,
    end: () => leader.admin`update sync_metadata.sync_jobs set finished_at = now() - interval '11 minutes'`,
  },
  {
    key: 'verification_difference/acme',
    begin:
      () => leader.admin`insert into sync_metadata.verifications (deployment_id, generation, difference_count)
      values (${id}, 1, 3)`,
    end: () => leader.admin`insert into sync_metadata.verifications
      (deployment_id, generation, difference_count, repaired, verified_at)
      values (${id}, 1, 3, 3, clock_timestamp())`,
  },
  {
    key: 'leader_flapping',
    begin: async () => {
      for (let i = 0; i < 4; i++)
        await leader.host`insert into sync_metadata.audit_log (host_id, actor, action)
          values (sync_metadata.my_host(), 'host-a-node-a', 'lease.acquired')`
    },
    end: () => leader.admin`update sync_metadata.audit_log set recorded_at = now() - interval '11 minutes'`,
  },
]

for (const {key, begin, end} of conditions)
  test(`${key} is told once, and its end`, async () => {
    await using running = watching()
    await running.looks(2)
    assert.deepEqual(told(), [], 'nothing is wrong yet')
    await begin()
    await becomes([`raised ${key}`])
    await running.looks(3)
    assert.deepEqual(told(), [`raised ${key}`], 'it is not repeated')
    const {body} = http.posts[0]!
    assert.doesNotMatch(JSON.stringify(body), /row-content|secret-in-message/)
    await end()
    await becomes([`raised ${key}`, `recovered ${key}`])
    await running.looks(3)
    assert.deepEqual(told(), [`raised ${key}`, `recovered ${key}`])
  })

test('the size of the database is told when it nears what it may be', async () => {
  const webhook = {alertsWebhookUrl: new Secret(http.url)}
  {
    await using running = watching({config: {...config, ...webhook, dbSizeLimitBytes: 1_000_000}})
    await becomes(['raised target_size'])
    const {values} = await running.metrics.targetSize.get()
    assert.deepEqual(
      values.map(({labels}) => labels),
      [{client: 'acme'}],
    )
    // Whoever ends between sending and noting it has it sent once more.
    await running.looks(2)
  }
  await using _ = watching({config: {...config, ...webhook, dbSizeLimitBytes: 1e15}})
  await becomes(['raised target_size', 'recovered target_size'])
})

test('attempts of one job count, a takeover and a sync that left rows behind do not', async () => {
  await using running = watching()
  for (let i = 0; i < 5; i++) await failedJob('SYNC_FENCED_OUT')
  await leader.admin`insert into sync_metadata.sync_jobs (deployment_id, status, attempt, generation, error_code,
      finished_at, created_at)
    select ${id}, 'failed', 1, i, 'SYNC_DATA', clock_timestamp() + interval '2 days', now() from generate_series(1, 5) i`
  await running.looks(2)
  assert.deepEqual(told(), [])
  await failedJob('SYNC_UNREACHABLE')
  await leader.admin`insert into sync_metadata.sync_jobs (deployment_id, status, attempt, error_code, started_at)
    values (${id}, 'pending', 2, 'SYNC_UNREACHABLE', clock_timestamp() + interval '2 days')`
  await becomes(['raised repeated_failure/acme'])
})

describe('a client’s own rules', () => {
  const rule = (own: object) => leader.admin`
    update sync_metadata.client_deployments set config = ${JSON.stringify({conflict_resolution: own})}::jsonb`

  test('say how many conflicts are many, and within which time', async () => {
    await rule({notification: {high_conflict_rate: {threshold: 2, time_window_minutes: 60}}})
    await conflict('resolved', 3)
    await leader.admin`update sync_metadata.conflict_log set detected_at = now() - interval '30 minutes'`
    await using _ = watching()
    await becomes(['raised conflict_rate/acme'])
    await rule({notification: {high_conflict_rate: {threshold: 2}}})
    await becomes(['raised conflict_rate/acme', 'recovered conflict_rate/acme'])
  })

  test('that record nothing do not hide how many there are', async () => {
    await rule({resolution_log: {enabled: false}})
    await leader.admin`insert into sync_metadata.sync_jobs
      (deployment_id, status, created_at, finished_at, conflicts_detected) values (${id}, 'success', now(), now(), 11)`
    await using _ = watching()
    await becomes(['raised conflict_rate/acme'])
  })

  test('with values that are none are passed over', async () => {
    await rule({notification: {high_conflict_rate: {threshold: 'many', time_window_minutes: null}}})
    await conflict('resolved', 11)
    await using _ = watching()
    await becomes(['raised conflict_rate/acme'])
  })
})

describe('over a takeover', () => {
  test('nothing is repeated and nothing is forgotten', async () => {
    await conflict('pending', 1)
    {
      await using first = watching()
      await becomes(['raised manual_conflict/acme'])
      await first.looks(2)
    }
    await using second = watching({settleMs: 60_000})
    await second.looks(4)
    assert.deepEqual(told(), ['raised manual_conflict/acme'], 'not repeated')
    await leader.admin`update sync_metadata.conflict_log set status = 'resolved'`
    await becomes(['raised manual_conflict/acme', 'recovered manual_conflict/acme'])
  })

  test('what could not be delivered before is delivered after, in its order', async () => {
    http.answer = 503
    await conflict('pending', 1)
    {
      await using first = watching()
      await expect.poll(() => http.posts.length, {timeout: 30_000}).toBeGreaterThan(1)
      await leader.admin`update sync_metadata.conflict_log set status = 'resolved'`
      await expect
        .poll(async () => (await readAlertBook(leader.host, alertBooks.leader)).outbox.length, {
          timeout: 30_000,
        })
        .toBe(2)
      await first.stop()
    }
    http.posts.splice(0)
    http.answer = 200
    await using second = watching()
    await becomes(['raised manual_conflict/acme', 'recovered manual_conflict/acme'])
    await second.looks(3)
    assert.deepEqual((await readAlertBook(leader.host, alertBooks.leader)).outbox, [])
    assert.equal(told().length, 2)
  })

  test('a leader that is none any more decides nothing', async () => {
    const deposed: Lease = {...leader.lease, epoch: 0n}
    await conflict('pending', 1)
    await using running = watching({lease: deposed})
    await running.looks(3)
    assert.deepEqual(told(), [])
    assert.deepEqual(await readAlertBook(leader.host, alertBooks.leader), {alerts: {}, outbox: []})
  })

  test('it ends with the lease', async () => {
    const over = new AbortController()
    const running = runAlerts(
      {
        pool: leader.host,
        config: {...config, alertsWebhookUrl: undefined},
        lease: {...leader.lease, signal: over.signal},
        log: silentLog,
        metrics: createMetrics(),
      },
      new AbortController().signal,
    )
    over.abort()
    await running
  })

  test('lag that a new leader inherits is told only when it stays; what was told before stays told', async () => {
    await leader.admin`update sync_metadata.client_deployments set checked_at = now() - interval '20 minutes'`
    {
      await using early = watching({settleMs: 600_000})
      await early.looks(3)
      assert.deepEqual(told(), [])
    }
    {
      await using _ = watching()
      await becomes(['raised sync_lag/acme'])
      // A leader that goes before it has kept that it was taken leaves it to be sent once more.
      await expect
        .poll(async () => (await readAlertBook(leader.host, alertBooks.leader)).outbox, {timeout: 30_000})
        .toEqual([])
    }
    await using later = watching({settleMs: 600_000})
    await later.looks(3)
    assert.deepEqual(told(), ['raised sync_lag/acme'], 'it has not recovered by a takeover')
  })
})

test('a receiver that fails is tried again, counted, and named in the log without its address', async () => {
  const lines: {level: string; fields: Fields; message: string}[] = []
  const log = recorder(lines)
  http.answer = 500
  await using running = watching({log})
  await conflict('pending', 1)
  await expect.poll(() => http.posts.length, {timeout: 30_000}).toBeGreaterThanOrEqual(3)
  http.answer = 200
  await expect
    .poll(async () => (await readAlertBook(leader.host, alertBooks.leader)).outbox.length, {timeout: 30_000})
    .toBe(0)
  const failures = lines.filter(({message}) => message === 'an alert was not delivered')
  assert.ok(failures.length >= 3)
  assert.deepEqual(
    failures.map(({level}) => level).slice(0, 3),
    ['warn', 'warn', 'error'],
    'the third time is louder',
  )
  assert.ok(!JSON.stringify(lines).includes(http.url))
  const {values} = await running.metrics.errors.get()
  const counted = values.find(({labels}) => labels.error_type === 'SYNC_ALERT_NOT_DELIVERED')
  assert.equal(counted?.value, failures.length)
})

test('a channel that fails does not keep another one waiting, and none is sent twice', async () => {
  await using other = await httpReceiver()
  other.answer = 500
  await using running = watching({
    config: {...config, alertsWebhookUrl: new Secret(http.url), alertsSlackUrl: new Secret(other.url)},
  })
  await conflict('pending', 1)
  await becomes(['raised manual_conflict/acme'])
  await expect.poll(() => other.posts.length, {timeout: 30_000}).toBeGreaterThanOrEqual(3)
  other.answer = 200
  await expect
    .poll(async () => (await readAlertBook(leader.host, alertBooks.leader)).outbox.length, {timeout: 30_000})
    .toBe(0)
  await running.looks(2)
  assert.deepEqual(told(), ['raised manual_conflict/acme'])
})

test('without any channel, alerts are in the log and are remembered', async () => {
  const lines: {level: string; fields: Fields; message: string}[] = []
  await conflict('pending', 1)
  await using running = watching({log: recorder(lines), config: {...config, alertsWebhookUrl: undefined}})
  await running.looks(3)
  const raised = lines.filter(({message}) => message === 'alert raised')
  assert.deepEqual(
    raised.map(({level, fields}) => [level, fields.rule, fields.client, fields.runbook]),
    [['warn', 'manual_conflict', 'acme', 'docs/operations.md#alert-manual-conflict']],
  )
  const book = await readAlertBook(leader.host, alertBooks.leader)
  assert.deepEqual([Object.keys(book.alerts), book.outbox], [['manual_conflict/acme'], []])
})

test('a document that somebody has spoiled is taken for what it is worth', async () => {
  await leader.host`insert into sync_metadata.state (key, value) values (${alertBooks.leader},
    '{"alerts": {"x": 5, "sync_lag/beta": {"rule": "none"}}, "outbox": [null, 7, {"to": [], "by": "x", "notice": {}}]}')`
  await conflict('pending', 1)
  await using _ = watching()
  await becomes(['raised manual_conflict/acme'])
})

test('a cause that comes and goes is told once within the cool-down', async () => {
  await using running = watching({coolDownMs: 600_000})
  for (let i = 0; i < 3; i++) {
    await conflict('pending', 1)
    await running.looks(2)
    await leader.admin`delete from sync_metadata.conflict_log`
    await running.looks(2)
  }
  assert.deepEqual(told(), ['raised manual_conflict/acme', 'recovered manual_conflict/acme'])
})

test('gauges are filled from the control schema while it runs, and empty after', async () => {
  const running = watching()
  await conflict('pending', 2)
  await leader.admin`insert into sync_metadata.verifications (deployment_id, generation) values (${id}, 1)`
  const {conflictsUnresolved, lastVerified} = running.metrics
  const valueOf = async (gauge: typeof conflictsUnresolved) => (await gauge.get()).values[0]?.value
  await expect.poll(() => valueOf(conflictsUnresolved), {timeout: 30_000}).toBe(2)
  await expect.poll(() => valueOf(lastVerified), {timeout: 30_000}).toBeGreaterThan(1.7e9)
  await running.stop()
  assert.equal(await valueOf(conflictsUnresolved), undefined)
})

function recorder(lines: {level: string; fields: Fields; message: string}[]): Log {
  const at = (level: string) => (fields: Fields, message: string) => {
    const err =
      fields.err instanceof Error ? {message: fields.err.message, stack: fields.err.stack} : undefined
    lines.push({level, fields: {...fields, ...(err && {err})}, message})
  }
  const log: Log = {
    fatal: at('fatal'),
    error: at('error'),
    warn: at('warn'),
    info: at('info'),
    debug: at('debug'),
    trace: at('trace'),
    child: () => log,
  }
  return log
}
