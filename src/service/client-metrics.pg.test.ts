import assert from 'node:assert/strict'
import {rmSync} from 'node:fs'
import {DatabaseSync} from 'node:sqlite'
import {afterAll, beforeAll, test} from 'vitest'
import {SyncError} from '../core/errors.ts'
import {refusal} from '../../test/host.ts'
import {leadingHost, type LeadingClient, type LeadingHost} from '../../test/leading-host.ts'
import {askFor, endOf, leadingJobs, until, valueOf, type LeadingJobs} from '../../test/leading-jobs.ts'
import {chanceOf, mutate, seedOf, type Chance} from '../../test/mutator.ts'
import {areFree, workerClient, workersOf} from '../../test/workers.ts'

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

const newClient = () => workerClient(leader, `shown-${++clients}`, chance)

test('a run that fails tells how often it had to wait for a lock of the app', async () => {
  await using client = await newClient()
  const told: [string, number][] = []
  await using workers = workersOf(leader, {
    onFailedLock: (name, {busy_retries}) => told.push([name, busy_retries]),
  })
  using app = new DatabaseSync(client.file)
  // Once with the file held open by the session, as it is between the runs, and once with it closed by the failure.
  await workers.sync(client.order, signal)
  for (let runs = 1; runs <= 2; runs++) {
    app.exec('begin exclusive')
    const error = await refusal(workers.sync(client.order, signal))
    assert.ok(error instanceof SyncError && error.code === 'SYNC_SOURCE_BUSY')
    app.exec('rollback')
    assert.equal(told.length, runs)
    const [name, retries] = told.at(-1)!
    assert.ok(name === client.name && retries > 5, `${retries} retries`)
  }
  rmSync(client.file)
  await refusal(workers.sync(client.order, signal))
  assert.deepEqual(told.at(-1), [client.name, 0], 'what one run waited for is not told of the next one')
})

test('a sync that an app keeps from its file for long fails, and what it waited for is counted', async () => {
  await using client = await newClient()
  await using jobs = await leadingJobs(leader)
  using app = new DatabaseSync(client.file)
  app.exec('begin exclusive')
  await askFor(leader, client)
  await until('the failure', () => (jobs.ended.some(({status}) => status === 'failed') ? true : undefined))
  app.exec('rollback')
  assert.ok((await valueOf(jobs.metrics, 'sync_lock_busy_total', {client: client.name})) > 5)
})

test('a file that went to WAL mode shows no hold of a lock any more', async () => {
  await using client = await newClient()
  await using jobs = await leadingJobs(leader)
  const hold = () => valueOf(jobs.metrics, 'sync_lock_hold_seconds', {client: client.name})
  await endOf(leader, await askFor(leader, client))
  await until('its hold', async () => ((await hold()) > 0 ? true : undefined))
  using app = new DatabaseSync(client.file)
  app.exec('pragma journal_mode = wal')
  mutate(client.file, chance)
  await endOf(leader, await askFor(leader, client))
  await until('none', async () => ((await hold()) === 0 ? true : undefined))
})

test('of a client that goes away while it is synced nothing is shown, nor of any by one that leads no more', async () => {
  await using client = await newClient()
  await using other = await newClient()
  await using jobs = await leadingJobs(leader)
  for (const one of [client, other]) await endOf(leader, await askFor(leader, one))
  for (const one of [client, other])
    await until('its gauges', async () =>
      (await gaugesOf(jobs, one)).includes('sync_lock_hold_seconds') ? true : undefined,
    )
  mutate(client.file, chance)
  const {tables} = await client.schema()
  const schema = client.name.replaceAll('-', '_')
  const jobId = await leader.admin.begin(async tx => {
    for (const {target} of tables) await tx`lock table ${tx(schema, target)} in exclusive mode`
    const jobId = await askFor(leader, client)
    await until('the job to wait for a table', async () => {
      const waiting = await leader.admin`select from pg_stat_activity where datname = current_database()
        and application_name like 'owsync/%/%' and wait_event_type = 'Lock'`
      return waiting.length > 0 ? true : undefined
    })
    await leader.host`update sync_metadata.client_deployments set database_type = 'postgresql'
      where client_name = ${client.name}`
    jobs.notice('cache')
    await until('it to be forgotten', async () =>
      (await gaugesOf(jobs, client)).length === 0 ? true : undefined,
    )
    return jobId
  })
  await endOf(leader, jobId)
  await areFree(leader, [client], 10_000)
  assert.deepEqual(await gaugesOf(jobs, client), [], 'the run that was in hand has shown it anew')
  assert.ok((await gaugesOf(jobs, other)).length > 0)
  jobs.stop.abort()
  await jobs.over
  assert.deepEqual(await gaugesOf(jobs, other), [])
})

/** The gauges that show something of the client. */
async function gaugesOf({metrics}: LeadingJobs, {name}: LeadingClient): Promise<string[]> {
  const all = await metrics.registry.getMetricsAsJSON()
  return all
    .filter(
      ({type, values}) => String(type) === 'gauge' && values.some(({labels}) => labels['client'] === name),
    )
    .map(({name}) => name)
}
