import assert from 'node:assert/strict'
import {readdirSync, readlinkSync, renameSync, rmSync} from 'node:fs'
import {DatabaseSync} from 'node:sqlite'
import {createServer} from 'node:http'
import type {AddressInfo} from 'node:net'
import {join} from 'node:path'
import {isDeepStrictEqual} from 'node:util'
import {setTimeout as sleep} from 'node:timers/promises'
import {afterAll, beforeAll, describe, test} from 'vitest'
import {ConnectionLostError} from '../postgres/sqlstate.ts'
import {cancelJob, findJob, readProgress} from '../state/jobs.ts'
import {countMarks} from '../state/scheduled.ts'
import {
  askFor,
  endOf,
  jobsConfig,
  jobsOf,
  leadingJobs,
  schedule,
  until,
  valueOf,
  type LeadingJobs,
} from '../../test/leading-jobs.ts'
import {leadingHost, type LeadingClient, type LeadingHost} from '../../test/leading-host.ts'
import {assertMirror} from '../../test/mirror.ts'
import {chanceOf, mutate, seedOf, type Chance} from '../../test/mutator.ts'
import {areFree, holdingUp, workerClient} from '../../test/workers.ts'
import {passOnce} from './leader-jobs.ts'
import {tablesInTarget} from './rows-ahead.ts'
import {createMetrics} from '../telemetry/metrics.ts'
import {silentLog} from '../telemetry/log.ts'

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

const newClient = () => workerClient(leader, `led-${++clients}`, chance)
const schemaOf = ({name}: LeadingClient) => name.replaceAll('-', '_')
const mirrors = (client: LeadingClient) => assertMirror(leader.admin, schemaOf(client), client.file)
const statusesOf = ({ended}: LeadingJobs, {name}: LeadingClient) =>
  ended.filter(({client}) => client === name).map(({status}) => status)

describe('a job that is asked for', () => {
  test('is one row from the asking to the cut, with what the command would print', async () => {
    await using client = await newClient()
    await using jobs = await leadingJobs(leader)
    const first = await endOf(leader, await askFor(leader, client))
    assert.deepEqual(
      [first.status, first.triggeredBy, first.syncType, first.generation, first.attempt],
      ['success', 'api', 'incremental', 1n, 1],
    )
    const {client: name, generation, mode, status, consistent, rows} = first.result as Record<string, unknown>
    assert.deepEqual([name, generation, mode, status, consistent], [client.name, 1, 'full', 'success', true])
    assert.equal((rows as {upserted: number}).upserted, Number(first.rowsUpserted))
    assert.ok(!('details' in (first.result as object)))
    await mirrors(client)

    const second = await endOf(leader, await askFor(leader, client))
    assert.deepEqual(
      [second.status, second.generation, (second.result as {mode: string}).mode],
      ['success', null, 'unchanged'],
    )
    mutate(client.file, chance)
    const third = await endOf(leader, await askFor(leader, client, 'full'))
    assert.deepEqual([third.status, third.syncType, third.generation], ['success', 'full', 2n])
    await mirrors(client)
    assert.equal((await jobsOf(leader, client)).length, 3)
    await until('all three ends', () => (jobs.ended.length === 3 ? true : undefined))
    assert.equal(await valueOf(jobs.metrics, 'sync_operations_total', {client: client.name}), 3)
    assert.equal(await valueOf(jobs.metrics, 'sync_queue_processing_time_seconds'), 3)
    const applied = Number(first.rowsUpserted) + Number(third.rowsUpserted) + Number(third.rowsTombstoned)
    assert.equal(await valueOf(jobs.metrics, 'sync_rows_processed_total', {client: client.name}), applied)
    assert.ok((await valueOf(jobs.metrics, 'sync_bytes_transferred_total', {client: client.name})) > 0)
    assert.ok((await valueOf(jobs.metrics, 'last_successful_sync_timestamp', {client: client.name})) > 0)
  })

  test('of many deployments, they are all served by so many workers, at most so many at once', async () => {
    await using resources = new AsyncDisposableStack()
    const some: LeadingClient[] = []
    for (let i = 0; i < 6; i++) some.push(resources.use(await newClient()))
    const ids = []
    for (const client of some) ids.push(await askFor(leader, client))
    resources.use(await leadingJobs(leader, {env: {MAX_SYNC_WORKERS: '2'}}))
    let most = 0
    const watching = new AbortController()
    const watch = (async () => {
      while (!watching.signal.aborted) {
        const rows = await leader.host`select from sync_metadata.sync_jobs where status = 'running'`
        most = Math.max(most, rows.length)
        await sleep(5)
      }
    })()
    for (const id of ids) assert.equal((await endOf(leader, id)).status, 'success')
    watching.abort()
    await watch
    assert.ok(most >= 1 && most <= 2, `${most} at once`)
    for (const client of some) await mirrors(client)
  })

  test('verifies, and keeps what it found with the job', async () => {
    await using client = await newClient()
    await using jobs = await leadingJobs(leader)
    await endOf(leader, await askFor(leader, client))
    const jobId = await askFor(leader, client, 'verify')
    const job = await endOf(leader, jobId)
    assert.equal(job.status, 'success')
    const {differences, generation} = job.result as {differences: unknown[]; generation: number}
    assert.deepEqual([differences, generation], [[], 1])
    assert.deepEqual(job.errorDetails, {totals: {differences: 0}})
    assert.deepEqual(
      await leader.host`select difference_count from sync_metadata.verifications
      where job_id = ${jobId}`,
      [{difference_count: 0n}],
    )
    assert.ok((await valueOf(jobs.metrics, 'last_verified_timestamp', {client: client.name})) > 0)
  })

  test('restores to a new file, and fails by name when there is one', async () => {
    await using client = await newClient()
    await using _ = await leadingJobs(leader)
    await endOf(leader, await askFor(leader, client))
    const to = join(leader.folder, `${client.name}-again.db`)
    const job = await endOf(leader, await askFor(leader, client, 'restore', {to}))
    assert.equal(job.status, 'success')
    await assertMirror(leader.admin, schemaOf(client), to)
    const again = await endOf(leader, await askFor(leader, client, 'restore', {to}))
    assert.deepEqual([again.status, again.errorCode, again.attempt], ['failed', 'SYNC_DESTINATION', 1])
    const nowhere = await endOf(leader, await askFor(leader, client, 'restore', {}))
    assert.deepEqual([nowhere.status, nowhere.errorCode], ['failed', 'SYNC_USAGE'])
    rmSync(to)
  })

  test('is cancelled while it runs: its worker lets go, and nothing of it is committed', async () => {
    await using client = await newClient()
    await using jobs = await leadingJobs(leader)
    await endOf(leader, await askFor(leader, client))
    mutate(client.file, chance)
    await holdingUp(leader, client, async isHeld => {
      const jobId = await askFor(leader, client)
      await isHeld()
      assert.equal((await cancelJob(leader.host, jobId))!.isCancelled, true)
      await until('the end of it', () => (statusesOf(jobs, client).includes('cancelled') ? true : undefined))
    })
    assert.equal((await client.deployment()).generation, 1n)
    assert.equal((await endOf(leader, await askFor(leader, client))).generation, 2n)
    await mirrors(client)
  })

  test('that fails for now is tried again, and that it failed is seen meanwhile', async () => {
    await using client = await newClient()
    await using _ = await leadingJobs(leader)
    await endOf(leader, await askFor(leader, client))
    mutate(client.file, chance)
    const jobId = await holdingUp(leader, client, async isHeld => {
      const jobId = await askFor(leader, client)
      await isHeld()
      // Its session is ended, as by a restart of the server.
      await leader.admin`select pg_terminate_backend(pid) from pg_stat_activity
        where datname = current_database() and application_name like 'owsync/host-a-cli/%' and state = 'active'
          and wait_event_type = 'Lock'`
      await until('the failure', async () => {
        const job = await findJob(leader.host, jobId)
        return job?.errorCode === null ? undefined : job
      })
      return jobId
    })
    const job = await endOf(leader, jobId)
    assert.deepEqual([job.status, job.errorCode], ['success', null])
    assert.ok(job.attempt >= 2)
    await mirrors(client)
  })

  test('says how far it is, table by table, to the last row', async () => {
    await using client = await newClient()
    await using _ = await leadingJobs(leader)
    for (const what of ['incremental', 'verify'] as const) {
      const {jobId} = await endOf(leader, await askFor(leader, client, what))
      const tables = await until('the last progress', async () => {
        const told = await readProgress(leader.host, jobId)
        const isLast = told.every(each => each.status === 'success' && each.rowsTotal === each.rowsProcessed)
        return isLast && told.length > 0 ? told : undefined
      })
      const rows = new Map(tables.map(({table, rowsProcessed}) => [table, Number(rowsProcessed)]))
      assert.deepEqual(rows, await tablesInTarget(leader.host, client.order, AbortSignal.timeout(10_000)))
    }
  })
})

describe('what is due', () => {
  test('is synced without being asked for; what it finds unchanged leaves no row, only when it was looked at', async () => {
    await using client = await newClient()
    await schedule(leader, client, {interval: 10})
    await using jobs = await leadingJobs(leader)
    await until('a first sync and a second look', () =>
      statusesOf(jobs, client).length >= 2 ? true : undefined,
    )
    assert.deepEqual(statusesOf(jobs, client).slice(0, 2), ['success', 'unchanged'])
    const rows = await jobsOf(leader, client)
    assert.deepEqual(
      rows.map(({triggeredBy, status, generation}) => [triggeredBy, status, generation]),
      [['scheduler', 'success', 1n]],
    )
    await until('the look to be kept', async () => {
      const [row] = await leader.host<{kept: boolean}>`
        select checked_at > last_sync_at + interval '5 seconds' and next_sync_at > now() and behind_since is null
          and source_version is not null and last_sync_status = 'success' as kept
        from sync_metadata.client_deployments where client_name = ${client.name}`
      return row?.kept === true ? true : undefined
    })
    await mirrors(client)
  })

  test('is left alone when it is paused, disabled or manual, and begins when that is changed', async () => {
    await using client = await newClient()
    await using other = await newClient()
    await schedule(leader, client, {interval: 60})
    await leader.host`update sync_metadata.client_deployments set status = 'paused' where client_name = ${client.name}`
    await using jobs = await leadingJobs(leader, {pace: {pollMs: 100, reloadMs: 600_000, lookMs: 100}})
    // By the time that a job of another has been served, it would have been begun.
    await endOf(leader, await askFor(leader, other))
    assert.deepEqual(statusesOf(jobs, client), [])
    await leader.host`update sync_metadata.client_deployments set status = 'active' where client_name = ${client.name}`
    jobs.notice('cache')
    await until('its sync', () => (statusesOf(jobs, client).includes('success') ? true : undefined))
  })

  test('live is synced as soon as its file changes', async () => {
    await using client = await newClient()
    await schedule(leader, client, {schedule: 'live'})
    await using jobs = await leadingJobs(leader)
    await until('the first sync', () => (statusesOf(jobs, client).includes('success') ? true : undefined))
    for (let round = 0; round < 3; round++) {
      const before = (await client.deployment()).generation
      mutate(client.file, chance)
      await until('the change', async () =>
        (await client.deployment()).generation > before ? true : undefined,
      )
      await until('a quiet moment', async () =>
        (await valueOf(jobs.metrics, 'state_sync_lag_seconds', {client: client.name})) === 0
          ? true
          : undefined,
      )
      await mirrors(client)
    }
    const triggers = (await jobsOf(leader, client)).map(({triggeredBy}) => triggeredBy)
    assert.ok(triggers.includes('change'))
  })

  test('a live sync that fails leaves a failed row, and goes on once the reason is gone', async () => {
    await using client = await newClient()
    await schedule(leader, client, {schedule: 'live'})
    await using jobs = await leadingJobs(leader)
    await until('the first sync', () => (statusesOf(jobs, client).includes('success') ? true : undefined))
    const {file} = client
    rmSync(file)
    const failed = await until('a failed row', async () =>
      (await jobsOf(leader, client)).find(({status}) => status === 'failed'),
    )
    assert.deepEqual(
      [failed.errorCode, failed.generation, failed.triggeredBy],
      ['SYNC_SOURCE_UNREADABLE', null, 'change'],
    )
    const [row] = await leader.host`select last_sync_status from sync_metadata.client_deployments
      where client_name = ${client.name}`
    assert.deepEqual(row, {last_sync_status: 'failed'})
  })

  test('a live source that was missing for long is synced as soon as it is there', async () => {
    await using client = await newClient()
    await schedule(leader, client, {schedule: 'live'})
    renameSync(client.file, `${client.file}-later`)
    await using jobs = await leadingJobs(leader)
    // By now another failure would be waited out for two minutes.
    for (let tries = 0; tries < 8; tries++)
      assert.equal((await endOf(leader, await askFor(leader, client))).errorCode, 'SYNC_SOURCE_UNREADABLE')
    renameSync(`${client.file}-later`, client.file)
    await until('its sync', () => (statusesOf(jobs, client).includes('success') ? true : undefined))
    await mirrors(client)
  })

  test('a source that changes and is not synced is behind, whatever its schedule; a sync makes it fresh', async () => {
    await using client = await newClient()
    await using jobs = await leadingJobs(leader)
    await endOf(leader, await askFor(leader, client))
    const behind = async () => {
      const [row] = await leader.host<{seconds: number}>`
        select behind_seconds as seconds from sync_metadata.v_sync_status where client_name = ${client.name}`
      return row!.seconds
    }
    const lag = () => valueOf(jobs.metrics, 'state_sync_lag_seconds', {client: client.name})
    await until('it to be fresh', async () =>
      (await behind()) === 0 && (await lag()) === 0 ? true : undefined,
    )
    mutate(client.file, chance)
    await until('it to be behind', async () =>
      (await behind()) > 0.5 && (await lag()) > 0.5 ? true : undefined,
    )
    await endOf(leader, await askFor(leader, client))
    await until('it to be fresh again', async () =>
      (await behind()) === 0 && (await lag()) === 0 ? true : undefined,
    )
  })

  test('what the guard holds back is said once', async () => {
    await using client = await newClient()
    await schedule(leader, client, {schedule: 'live'})
    await using jobs = await leadingJobs(leader, {env: {DELETE_GUARD: '0,0%'}})
    await until('the first sync', () => (statusesOf(jobs, client).includes('success') ? true : undefined))
    const touch = (statement: string) => {
      using db = new DatabaseSync(client.file, {timeout: 5_000})
      db.exec(statement)
    }
    touch('create table guarded (id integer primary key); insert into guarded values (1), (2), (3)')
    await until('the new table', async () => ((await client.relations()).has('guarded') ? true : undefined))
    touch('delete from guarded where id = 1')
    await until('it to be held back', () =>
      statusesOf(jobs, client).includes('quarantined') ? true : undefined,
    )
    // The app goes on: what is held back grows, and is the same matter.
    touch('delete from guarded where id = 2')
    await until('it to be held back again', () =>
      statusesOf(jobs, client).filter(status => status === 'quarantined').length >= 2 ? true : undefined,
    )
    assert.deepEqual(
      jobs.warnings.filter(message => message.includes('held back')),
      ['a sync is held back until a person has looked'],
    )
    const held = (await jobsOf(leader, client)).filter(({status}) => status === 'failed')
    assert.deepEqual(
      held.map(({errorCode}) => errorCode),
      ['SYNC_QUARANTINED'],
    )
    const job = await endOf(leader, await askFor(leader, client, 'incremental', {accept: true}))
    assert.equal(job.status, 'success')
    await mirrors(client)
  })
})

describe('trouble of one deployment', () => {
  test('touches no other: one whose worker dies again and again is tried again, and the others are synced meanwhile', async () => {
    await using sick = await newClient()
    await using well = await newClient()
    await schedule(leader, well, {schedule: 'live'})
    await using jobs = await leadingJobs(leader)
    await endOf(leader, await askFor(leader, sick))
    await until('the first sync', () => (statusesOf(jobs, well).includes('success') ? true : undefined))
    mutate(sick.file, chance)
    const jobId = await holdingUp(leader, sick, async isHeld => {
      const jobId = await askFor(leader, sick)
      await isHeld()
      for (let kill = 1; kill <= 2; kill++) {
        await until('its worker', async () => ((await killWorkerOf(sick)) ? true : undefined))
        await until('the loss', async () => {
          const job = await findJob(leader.host, jobId)
          return job!.status === 'pending' && job!.attempt === kill ? true : undefined
        })
        const {generation} = await well.deployment()
        mutate(well.file, chance)
        await until('the sync of the other', async () =>
          (await well.deployment()).generation > generation ? true : undefined,
        )
      }
      return jobId
    })
    const job = await endOf(leader, jobId)
    assert.equal(job.status, 'success')
    assert.ok(job.attempt >= 3, `${job.attempt} attempts`)
    await mirrors(sick)
    await mirrors(well)
    assert.deepEqual(
      statusesOf(jobs, well).filter(status => status === 'failed'),
      [],
    )
  })
})

test('a client that goes away while it is synced takes nobody along, and is let go of when that is over', async () => {
  await using client = await newClient()
  await using other = await newClient()
  await using jobs = await leadingJobs(leader)
  await endOf(leader, await askFor(leader, client))
  mutate(client.file, chance)
  const {tables} = await client.schema()
  const jobId = await leader.admin.begin(async tx => {
    for (const {target} of tables) await tx`lock table ${tx(schemaOf(client), target)} in exclusive mode`
    const jobId = await askFor(leader, client)
    await until('the job to wait for a table', async () => {
      const waiting = await leader.admin`select from pg_stat_activity where datname = current_database()
        and application_name like 'owsync/%/%' and wait_event_type = 'Lock'`
      return waiting.length > 0 ? true : undefined
    })
    await leader.host`update sync_metadata.client_deployments set database_type = 'postgresql'
      where client_name = ${client.name}`
    jobs.notice('cache')
    await until('it to be forgotten', async () => {
      const {values} = await jobs.metrics.syncLag.get()
      return values.some(({labels}) => labels['client'] === client.name) ? undefined : true
    })
    assert.equal((await endOf(leader, await askFor(leader, other))).status, 'success')
    return jobId
  })
  await endOf(leader, jobId)
  await areFree(leader, [client], 10_000)
  assert.equal((await endOf(leader, await askFor(leader, other))).status, 'success')
})

test('a cut is told to the webhook of its client', async () => {
  await using client = await newClient()
  const told: unknown[] = []
  const server = createServer((request, response) => {
    request.on('data', (piece: Buffer) => told.push(JSON.parse(piece.toString())))
    request.on('end', () => response.writeHead(204).end())
  })
  await new Promise<void>(resolve => server.listen(0, '127.0.0.1', resolve))
  const {port} = server.address() as AddressInfo
  await leader.host`update sync_metadata.client_deployments
    set config = ${JSON.stringify({webhook: `http://127.0.0.1:${port}/`})} where client_name = ${client.name}`
  {
    await using _ = await leadingJobs(leader)
    await endOf(leader, await askFor(leader, client))
    await until('the webhook', () => (told.length > 0 ? true : undefined))
    await endOf(leader, await askFor(leader, client))
  }
  server.close()
  assert.equal(told.length, 1, 'what changed nothing is not told')
  const {client: name, generation, tables} = told[0] as {client: string; generation: number; tables: string[]}
  assert.deepEqual([name, generation], [client.name, 1])
  const {tables: targets} = await client.schema()
  assert.ok(tables.length > 0 && tables.every(table => targets.some(({target}) => target === table)))
})

test('a run that nobody has queued is shown while it takes long, and is one row', async () => {
  await using client = await newClient()
  await schedule(leader, client, {schedule: 'live'})
  await using jobs = await leadingJobs(leader)
  await until('the first sync', () => (statusesOf(jobs, client).includes('success') ? true : undefined))
  const before = (await jobsOf(leader, client)).length
  await holdingUp(leader, client, async isHeld => {
    mutate(client.file, chance)
    await isHeld()
    const shown = await until('it among the jobs', async () =>
      (await jobsOf(leader, client)).find(({status}) => status === 'running'),
    )
    assert.deepEqual(
      [shown.triggeredBy === 'change' || shown.triggeredBy === 'scheduler', shown.attempt],
      [true, 1],
    )
  })
  await until('its end', async () =>
    (await jobsOf(leader, client)).every(({status}) => status === 'success') ? true : undefined,
  )
  assert.equal((await jobsOf(leader, client)).length, before + 1)
})

test('once a day what need not be kept is removed, by one leader', async () => {
  await using client = await newClient()
  await using first = await leadingJobs(leader)
  const old = await endOf(leader, await askFor(leader, client))
  await first[Symbol.asyncDispose]()
  await leader.admin`update sync_metadata.sync_jobs set finished_at = now() - interval '100 days' where job_id = ${old.jobId}`
  {
    await using _ = await leadingJobs(leader)
    await endOf(leader, await askFor(leader, client))
    assert.ok(await findJob(leader.host, old.jobId), 'it was done today')
  }
  // What decided conflicts show goes after as many days as the client's own rules say.
  await using patient = await newClient()
  const settings = {conflict_resolution: {resolution_log: {retention_days: 60}}}
  await leader.host`update sync_metadata.client_deployments set config = ${JSON.stringify(settings)}::jsonb
    where client_name = ${patient.name}`
  for (const {name} of [client, patient])
    await leader.admin`insert into sync_metadata.conflict_log
        (deployment_id, table_name, record_key, conflict_type, status, detected_at, source_data)
      select deployment_id, 't', 'k', 'drift', 'resolved', now() - interval '40 days', '{}'
      from sync_metadata.client_deployments where client_name = ${name}`
  await leader.host`update sync_metadata.hosts set metadata = metadata || '{"purged_at": "2026-01-01T00:00:00Z", "own": 1}'`
  await using _ = await leadingJobs(leader)
  await until('the old job to go', async () =>
    (await findJob(leader.host, old.jobId)) === undefined ? true : undefined,
  )
  const [host] = await leader.host<{
    own: number
  }>`select (metadata ->> 'own')::int as own from sync_metadata.hosts`
  assert.equal(host!.own, 1)
  assert.deepEqual(
    await leader.admin`select client_name as client from sync_metadata.conflict_log
      join sync_metadata.client_deployments using (deployment_id) where source_data is not null`,
    [{client: patient.name}],
  )
})

test('rows that somebody has edited are counted', async () => {
  await using client = await newClient()
  await using jobs = await leadingJobs(leader)
  await endOf(leader, await askFor(leader, client))
  await jobs[Symbol.asyncDispose]()
  for (const {target} of (await client.schema()).tables)
    await leader.admin
      .tamper`update ${leader.admin(schemaOf(client), target)} set _sync_edited_by = 'somebody'`
  const {deploymentId} = await client.deployment()
  assert.ok(((await countMarks(leader.host, [deploymentId])).get(deploymentId) ?? 0n) > 0n)
  const lines: unknown[] = []
  await using _ = await leadingJobs(leader, {
    log: {...silentLog, info: (fields, message) => lines.push([fields['client'], message])},
  })
  await until('them to be counted', () =>
    lines.some(line => isDeepStrictEqual(line, [client.name, 'rows of the target wait for a sync']))
      ? true
      : undefined,
  )
})

test('a new leader begins anew what the one before had in hand', async () => {
  await using client = await newClient()
  const jobId = await askFor(leader, client)
  await leader.host`update sync_metadata.sync_jobs set status = 'running', epoch = 0, attempt = 1 where job_id = ${jobId}`
  await using _ = await leadingJobs(leader)
  const job = await endOf(leader, jobId)
  assert.deepEqual([job.status, job.attempt, job.generation], ['success', 2, 1n])
})

test('a claim whose answer was lost is taken back, and the job is run once', async () => {
  await using client = await newClient()
  const jobId = await askFor(leader, client)
  let lost = 0
  const pool = new Proxy(leader.host, {
    get(target, name) {
      if (name !== 'begin') return Reflect.get(target, name) as unknown
      return async (
        work: Parameters<typeof target.begin>[0],
        options: Parameters<typeof target.begin>[1],
      ) => {
        const result = await target.begin(work, options)
        const isClaim = Array.isArray(result) && (result as {jobId?: string}[])[0]?.jobId === jobId
        if (!isClaim || lost++ > 0) return result
        throw new ConnectionLostError(true)
      }
    },
  })
  await using jobs = await leadingJobs(leader, {pool})
  const job = await endOf(leader, jobId)
  assert.deepEqual([job.status, job.attempt], ['success', 1])
  await until('its end', () => (statusesOf(jobs, client).length > 0 ? true : undefined))
  assert.deepEqual(statusesOf(jobs, client), ['success'])
  assert.ok(lost >= 1)
})

test('a pass runs what is asked for and what is due, once', async () => {
  await using due = await newClient()
  await using asked = await newClient()
  await using manual = await newClient()
  await schedule(leader, due, {interval: 3_600})
  const jobId = await askFor(leader, asked)
  const ended: string[] = []
  const pass = async () => {
    await passOnce(
      {
        pool: leader.host,
        endpoint: leader.host.endpoint,
        config: await jobsConfig(leader),
        lease: leader.lease,
        log: silentLog,
        metrics: createMetrics(),
        notices: {on: () => ({[Symbol.dispose]: () => undefined})},
        onEnd: ({client, status}) => ended.push(`${client} ${status}`),
      },
      new AbortController().signal,
    )
  }
  await pass()
  assert.deepEqual(ended.sort(), [`${due.name} success`, `${asked.name} success`].sort())
  assert.equal((await findJob(leader.host, jobId))!.status, 'success')
  assert.equal((await manual.deployment()).generation, 0n)
  await pass()
  assert.equal(ended.length, 2, 'nothing is due so soon')
})

/** Kills the worker that holds the client's lock. @returns whether there was one. */
async function killWorkerOf(client: LeadingClient): Promise<boolean> {
  const {deploymentId} = await client.deployment()
  for (const pid of readdirSync('/proc').filter(name => /^\d+$/.test(name))) {
    try {
      const files = readdirSync(`/proc/${pid}/fd`).map(fd => readlinkSync(`/proc/${pid}/fd/${fd}`))
      if (!files.some(file => file.endsWith(`${deploymentId}.lock`))) continue
    } catch {
      continue // it has ended meanwhile, or a file of it was closed
    }
    if (Number(pid) !== process.pid) process.kill(Number(pid), 'SIGKILL')
    return true
  }
  return false
}
