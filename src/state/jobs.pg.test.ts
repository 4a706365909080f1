import assert from 'node:assert/strict'
import {afterAll, beforeAll, beforeEach, describe, test} from 'vitest'
import {UsageError} from '../core/errors.ts'
import {testDatabase, type TestDatabase} from '../../test/database.ts'
import {refusal, testClient, testHost, type TestHost} from '../../test/host.ts'
import {waitsForLock} from '../../test/waits-for-lock.ts'
import {
  cancelJob,
  claim,
  enqueue,
  failJob,
  failRun,
  findCancelled,
  findJob,
  finishJob,
  forgetRun,
  listJobs,
  MOST_ATTEMPTS,
  QueueFullError,
  readProgress,
  readQueue,
  requeueOlder,
  saveProgress,
  showRun,
  type Failure,
  type Run,
} from './jobs.ts'
import {saveChecks} from './scheduled.ts'

let db: TestDatabase
let host: TestHost
const ids: string[] = []
let epoch: bigint

beforeAll(async () => {
  db = await testDatabase()
  host = await testHost(db, 'host-a', 8)
  for (let i = 0; i < 8; i++) ids.push(await testClient(host, `client-${i}`))
})
afterAll(async () => {
  await host.end()
  await db[Symbol.asyncDispose]()
})
beforeEach(async () => {
  await db`delete from sync_metadata.sync_jobs`
  await db`update sync_metadata.client_deployments set last_sync_status = null`
  epoch = await nextEpoch()
})

const nodeId = 'host-a-node-a'
async function nextEpoch(): Promise<bigint> {
  const [row] = await host<{epoch: bigint}>`select epoch from sync_metadata.acquire_lease(${nodeId}, 60000)`
  return row!.epoch
}
const ask = async (client = 0, options = {}) =>
  await enqueue(host, {
    deploymentId: ids[client]!,
    syncType: 'incremental',
    triggeredBy: 'api',
    mostWaiting: 1_000,
    ...options,
  })
const take = async (most = 10) => await claim(host, {nodeId, epoch, most})
const passing: Failure = {
  code: 'SYNC_CONNECTION_LOST',
  message: 'lost',
  name: 'ConnectionLostError',
  next: 'Wait.',
  retryable: true,
}
const lasting: Failure = {...passing, code: 'SYNC_SOURCE_UNREADABLE', retryable: false}
const due = async () =>
  await db`update sync_metadata.sync_jobs set run_after = now() where status = 'pending'`
const statusOf = async (jobId: string) => (await findJob(host, jobId))!.status
const runOf = (changes: Partial<Run> = {}): Run => ({
  jobId: crypto.randomUUID(),
  deploymentId: ids[0]!,
  syncType: 'incremental',
  triggeredBy: 'scheduler',
  nodeId,
  epoch,
  forMs: 1_500,
  ...changes,
})

describe('asking for a job', () => {
  test('gives the open one when there is one, whether it waits or runs', async () => {
    const first = await ask()
    assert.equal(first.isNew, true)
    assert.deepEqual(await ask(), {jobId: first.jobId, isNew: false})
    await take()
    assert.deepEqual(await ask(), {jobId: first.jobId, isNew: false})
    await finishJob(host, {jobId: first.jobId, epoch, durationMs: 5, result: {}})
    assert.equal((await ask()).isNew, true)
  })

  test('of one deployment twenty times at once makes one job', async () => {
    const asked = await Promise.all(Array.from({length: 20}, () => ask()))
    assert.equal(new Set(asked.map(({jobId}) => jobId)).size, 1)
    assert.equal(asked.filter(({isNew}) => isNew).length, 1)
  })

  test('is refused by name when too many wait, but not for a deployment whose job is one of them', async () => {
    const {jobId} = await ask(0, {mostWaiting: 2})
    await ask(1, {mostWaiting: 2})
    const error = await refusal(ask(2, {mostWaiting: 2}))
    assert.ok(error instanceof QueueFullError)
    assert.equal(error.retryable, true)
    assert.deepEqual(await ask(0, {mostWaiting: 2}), {jobId, isNew: false})
    await take(1)
    assert.equal((await ask(2, {mostWaiting: 2})).isNew, true)
  })

  test('keeps what it is asked to do', async () => {
    const options = {to: '/tmp/x.db', force: true, as_of: '9007199254740993'}
    const {jobId} = await ask(0, {syncType: 'restore', options})
    const job = (await findJob(host, jobId))!
    assert.deepEqual(
      [job.options, job.syncType, job.clientName, job.attempt, job.status],
      [options, 'restore', 'client-0', 0, 'pending'],
    )
  })
})

describe('claiming', () => {
  test('by many at once gives each job to one of them', async () => {
    for (let i = 0; i < 8; i++) await ask(i)
    const claims = await Promise.all(Array.from({length: 6}, () => take(2)))
    const claimed = claims.flat()
    assert.equal(claimed.length, 8)
    assert.equal(new Set(claimed.map(({jobId}) => jobId)).size, 8)
    for (const {status, attempt, epoch: under, nodeId: by} of claimed)
      assert.deepEqual([status, attempt, under, by], ['running', 1, epoch, nodeId])
  })

  test('passes over jobs that another claimer has just taken, without waiting for it', async () => {
    const first = await ask(0)
    const second = await ask(1)
    await host.begin(async tx => {
      assert.deepEqual(
        (await claim(tx, {nodeId, epoch, most: 1})).map(({jobId}) => jobId),
        [first.jobId],
      )
      assert.deepEqual(
        (await take()).map(({jobId}) => jobId),
        [second.jobId],
      )
    })
  })

  test('takes who has waited longest first, and nobody before the time', async () => {
    const asked = []
    for (let i = 0; i < 4; i++) asked.push((await ask(i)).jobId)
    await db`update sync_metadata.sync_jobs set run_after = now() + interval '1 hour' where job_id = ${asked[0]!}`
    await db`update sync_metadata.sync_jobs set run_after = now() - interval '1 hour' where job_id = ${asked[3]!}`
    assert.deepEqual(
      (await take(2)).map(({jobId}) => jobId),
      [asked[3], asked[1]],
    )
    assert.deepEqual(
      (await take()).map(({jobId}) => jobId),
      [asked[2]],
    )
    assert.ok((await readQueue(host)).nextInMs! > 3_500_000)
  })

  test('a deployment that asks without pause waits behind those that asked before', async () => {
    await ask(0)
    await ask(1)
    const order: string[] = []
    for (let i = 0; i < 4; i++) {
      const [job] = await take(1)
      order.push(job!.clientName)
      await finishJob(host, {jobId: job!.jobId, epoch, durationMs: 1, result: {}})
      await ask(job!.clientName === 'client-0' ? 0 : 1)
    }
    assert.deepEqual(order, ['client-0', 'client-1', 'client-0', 'client-1'])
  })
})

describe('a failure', () => {
  test('that passes is tried again after a pause that doubles, and finally it has failed', async () => {
    const {jobId} = await ask()
    const pauses: number[] = []
    for (let attempt = 1; attempt < MOST_ATTEMPTS; attempt++) {
      assert.equal((await take())[0]?.attempt, attempt)
      const after = await failJob(host, {jobId, epoch, durationMs: 10, failure: passing, random: 0.5})
      assert.ok(after.then === 'retry')
      pauses.push(after.inMs)
      assert.deepEqual(await take(), [], 'not before the pause is over')
      const waitsMs = (await readQueue(host)).nextInMs!
      assert.ok(waitsMs > after.inMs - 2_000 && waitsMs <= after.inMs, `${waitsMs} of ${after.inMs} ms`)
      await due()
    }
    assert.deepEqual(pauses, [2_000, 4_000, 8_000, 16_000, 32_000])
    await take()
    assert.deepEqual(await failJob(host, {jobId, epoch, durationMs: 10, failure: passing}), {then: 'failed'})
    const job = (await findJob(host, jobId))!
    assert.deepEqual(
      [job.status, job.attempt, job.errorCode, job.errorMessage, job.errorDetails],
      [
        'failed',
        MOST_ATTEMPTS,
        passing.code,
        'lost',
        {name: 'ConnectionLostError', next: 'Wait.', retryable: true},
      ],
    )
    assert.ok(job.finishedAt)
    assert.deepEqual(
      await host`select last_sync_status from sync_metadata.client_deployments
      where deployment_id = ${ids[0]!}`,
      [{last_sync_status: 'failed'}],
    )
  })

  test('that does not pass is final at once', async () => {
    const {jobId} = await ask()
    await take()
    assert.deepEqual(await failJob(host, {jobId, epoch, durationMs: 10, failure: lasting}), {then: 'failed'})
    assert.equal((await ask()).isNew, true)
  })

  test('of a job whose cut was committed changes nothing: the answer was lost, the work was not', async () => {
    const {jobId} = await ask()
    await take()
    await advance({job_id: jobId, rows_upserted: 3, result: {client: 'client-0', mode: 'incremental'}})
    assert.deepEqual(await failJob(host, {jobId, epoch, durationMs: 1, failure: passing}), {then: 'ended'})
    assert.equal(await finishJob(host, {jobId, epoch, durationMs: 1, result: {}}), false)
    assert.equal(await requeueOlder(host, epoch + 1n), 0)
    const job = (await findJob(host, jobId))!
    assert.deepEqual([job.status, job.rowsUpserted, job.errorCode], ['success', 3n, null])
    assert.deepEqual(job.result, {
      client: 'client-0',
      mode: 'incremental',
      generation: Number(job.generation),
    })
  })

  test('under an epoch that is over does not touch a job that the next leader has', async () => {
    const {jobId} = await ask()
    const [before] = await take()
    const old = epoch
    epoch = await nextEpoch()
    assert.equal(await requeueOlder(host, epoch), 1)
    const [after] = await take()
    assert.deepEqual([before!.attempt, after!.attempt], [1, 2])
    assert.deepEqual(await failJob(host, {jobId, epoch: old, durationMs: 1, failure: lasting}), {
      then: 'ended',
    })
    assert.equal(await finishJob(host, {jobId, epoch: old, durationMs: 1, result: {}}), false)
    assert.equal(await statusOf(jobId), 'running')
  })
})

describe('a takeover', () => {
  test('gives back what older epochs had in hand, and nothing else', async () => {
    const mine = await ask(0)
    await take()
    const waiting = await ask(1)
    assert.equal(await requeueOlder(host, epoch), 0)
    epoch = await nextEpoch()
    assert.equal(await requeueOlder(host, epoch), 1)
    assert.deepEqual([await statusOf(mine.jobId), await statusOf(waiting.jobId)], ['pending', 'pending'])
    assert.equal((await findJob(host, mine.jobId))!.errorCode, 'SYNC_FENCED_OUT')
  })

  test('does not begin a job for ever that takes its leader along each time', async () => {
    const {jobId} = await ask()
    for (let i = 0; i < MOST_ATTEMPTS; i++) {
      assert.equal((await take()).length, 1)
      epoch = await nextEpoch()
      await requeueOlder(host, epoch)
    }
    assert.equal(await statusOf(jobId), 'failed')
  })
})

describe('cancelling', () => {
  test('a job that waits: it is never begun', async () => {
    const {jobId} = await ask()
    assert.equal((await cancelJob(host, jobId))!.isCancelled, true)
    assert.deepEqual(await take(), [])
    assert.equal((await cancelJob(host, jobId))!.isCancelled, false)
  })

  test('a job that runs: its leader is told, and what it says later counts no more', async () => {
    const {jobId} = await ask()
    const other = await ask(1)
    await take()
    assert.deepEqual(await findCancelled(host, [jobId, other.jobId]), [])
    const {job, isCancelled} = (await cancelJob(host, jobId))!
    assert.deepEqual([job.status, isCancelled], ['cancelled', true])
    assert.deepEqual(await findCancelled(host, [jobId, other.jobId]), [jobId])
    assert.equal(await finishJob(host, {jobId, epoch, durationMs: 1, result: {}}), false)
    assert.deepEqual(await failJob(host, {jobId, epoch, durationMs: 1, failure: passing}), {then: 'ended'})
    assert.equal(await statusOf(jobId), 'cancelled')
  })

  test('a job whose cut commits all the same: the history has both', async () => {
    const {jobId} = await ask()
    await take()
    await cancelJob(host, jobId)
    await advance({job_id: jobId, rows_upserted: 1, triggered_by: 'api'})
    const {jobs} = await listJobs(host, {deploymentId: ids[0]!}, {limit: 10})
    assert.deepEqual(jobs.map(({status}) => status).sort(), ['cancelled', 'success'])
  })

  test('what does not exist', async () => {
    assert.equal(await cancelJob(host, crypto.randomUUID()), undefined)
    assert.equal(await cancelJob(host, 'no uuid'), undefined)
    assert.equal(await findJob(host, "' or true --"), undefined)
  })

  test('wakes whoever listens, as every step of a job does', async () => {
    const heard: string[] = []
    await using connection = await host.reserve()
    connection.onNotify((_, payload) => heard.push(payload))
    const [row] = await host<{channel: string}>`
      select sync_metadata.channel_of(sync_metadata.my_host()) as channel`
    await connection`listen ${host(row!.channel)}`
    const {jobId} = await ask()
    await take()
    await cancelJob(host, jobId)
    for (let i = 0; heard.length < 3 && i < 200; i++) await connection`select pg_sleep(0.05)`
    assert.deepEqual(heard, ['jobs', 'jobs', 'jobs'])
  })
})

describe('a run that nobody has queued', () => {
  test('is shown when it takes long, ended by its cut, and is one row', async () => {
    const run = runOf()
    assert.equal(await showRun(host, run), true)
    assert.equal(await showRun(host, run), false)
    assert.deepEqual(await ask(), {jobId: run.jobId, isNew: false})
    await advance({job_id: run.jobId, triggered_by: 'scheduler', rows_upserted: 1})
    const {jobs} = await listJobs(host, {}, {limit: 10})
    assert.deepEqual(
      jobs.map(({jobId, status, triggeredBy}) => [jobId, status, triggeredBy]),
      [[run.jobId, 'success', 'scheduler']],
    )
    assert.ok(Number(jobs[0]!.finishedAt) - Number(jobs[0]!.startedAt) >= 1_000)
  })

  test('that ended before it was shown gets its own id from its cut', async () => {
    const run = runOf()
    await advance({job_id: run.jobId, triggered_by: 'change'})
    assert.equal((await findJob(host, run.jobId))!.triggeredBy, 'change')
  })

  test('that is being shown while its cut ends is one row', async () => {
    const run = runOf()
    const ended = await db.begin(async tx => {
      await showRun(tx, run)
      const ending = advance({job_id: run.jobId, triggered_by: 'scheduler', rows_upserted: 1})
      await waitsForLock(db)
      return {ending}
    })
    await ended.ending
    const {jobs} = await listJobs(host, {}, {limit: 10})
    assert.deepEqual(
      jobs.map(({jobId, status, rowsUpserted}) => [jobId, status, rowsUpserted]),
      [[run.jobId, 'success', 1n]],
    )
  })

  test('is not shown beside an open job', async () => {
    await ask()
    assert.equal(await showRun(host, runOf()), false)
  })

  test('that finds nothing leaves nothing; a job that somebody asked for is not forgotten', async () => {
    const run = runOf()
    await showRun(host, run)
    await saveProgress(host, run.jobId, [
      {table: 'chat', rowsTotal: null, rowsProcessed: 5n, status: 'running'},
    ])
    await forgetRun(host, run.jobId)
    assert.equal(await findJob(host, run.jobId), undefined)
    const {jobId} = await ask()
    await take()
    await forgetRun(host, jobId)
    assert.equal(await statusOf(jobId), 'running')
  })

  test('that fails becomes a job that is tried again, or a failed one', async () => {
    const run = runOf()
    const after = await failRun(host, run, passing, 0.5)
    assert.deepEqual(after, {then: 'retry', inMs: 2_000})
    await due()
    const [job] = await take()
    assert.deepEqual([job!.jobId, job!.attempt, job!.triggeredBy], [run.jobId, 2, 'scheduler'])
    await finishJob(host, {jobId: run.jobId, epoch, durationMs: 1, result: {}})

    const other = runOf({triggeredBy: 'change'})
    assert.deepEqual(await failRun(host, other, lasting), {then: 'failed'})
    assert.deepEqual(
      [(await findJob(host, other.jobId))!.status, (await findJob(host, other.jobId))!.errorCode],
      ['failed', lasting.code],
    )
  })

  test('that fails beside an open job is in the history, and that job is its next attempt', async () => {
    const {jobId} = await ask()
    const run = runOf()
    assert.deepEqual(await failRun(host, run, passing), {then: 'failed'})
    assert.deepEqual([await statusOf(jobId), await statusOf(run.jobId)], ['pending', 'failed'])
  })
})

test('what was found before a sync failed is no news after it, at the very moment it fails either', async () => {
  const run = runOf()
  const check = {
    deploymentId: ids[0]!,
    freshMs: 5_000,
    sourceVersion: null,
    behindMs: null,
    dueInMs: null,
  }
  const lastStatus = async () =>
    (
      await db`select last_sync_status as status from sync_metadata.client_deployments
      where deployment_id = ${ids[0]!}`
    )[0]!.status
  await advance({job_id: crypto.randomUUID()})
  const kept = await db.begin(async tx => {
    await failRun(tx, run, lasting)
    const keeping = host.begin(its => saveChecks(its, [check]))
    await waitsForLock(db)
    return {keeping}
  })
  await kept.keeping
  assert.equal(await lastStatus(), 'failed')
  await db`update sync_metadata.sync_jobs set finished_at = now() - interval '10 seconds'`
  await host.begin(tx => saveChecks(tx, [check]))
  assert.equal(await lastStatus(), 'success')
})

describe('the list', () => {
  test('comes in pages, the newest first, each job once', async () => {
    for (let i = 0; i < 7; i++) await ask(i)
    // Two of the same instant are told apart by their ids.
    await db`update sync_metadata.sync_jobs set created_at = date_trunc('second', now())`
    const seen: string[] = []
    let cursor: string | undefined
    do {
      const page = await listJobs(host, {}, {limit: 2, ...(cursor === undefined ? {} : {cursor})})
      seen.push(...page.jobs.map(({jobId}) => jobId))
      cursor = page.next ?? undefined
    } while (cursor !== undefined)
    assert.equal(seen.length, 7)
    assert.equal(new Set(seen).size, 7)
  })

  test('is filtered by deployment, status and type', async () => {
    await ask(0)
    await ask(1, {syncType: 'verify'})
    await take(1)
    const clients = async (filter: Parameters<typeof listJobs>[1]) =>
      (await listJobs(host, filter, {limit: 10})).jobs.map(({clientName}) => clientName)
    assert.deepEqual(await clients({deploymentId: ids[1]!}), ['client-1'])
    assert.deepEqual(await clients({status: ['running']}), ['client-0'])
    assert.deepEqual(await clients({syncType: ['verify', 'restore']}), ['client-1'])
    assert.deepEqual(await clients({status: []}), [])
  })

  test('refuses a cursor that it has not given', async () => {
    for (const cursor of ['', 'x', Buffer.from("1 ' or true").toString('base64url')])
      assert.ok((await refusal(listJobs(host, {}, {limit: 1, cursor}))) instanceof UsageError)
  })
})

test('progress is per table, and goes on from where it was', async () => {
  const {jobId} = await ask()
  await saveProgress(host, jobId, [
    {table: 'chat', rowsTotal: 100n, rowsProcessed: 10n, status: 'running'},
    {table: 'user', rowsTotal: null, rowsProcessed: 0n, status: 'pending'},
  ])
  await saveProgress(host, jobId, [{table: 'chat', rowsTotal: null, rowsProcessed: 100n, status: 'success'}])
  const progress = await readProgress(host, jobId)
  assert.deepEqual(
    progress.sort((a, b) => (a.table < b.table ? -1 : 1)),
    [
      {table: 'chat', rowsTotal: 100n, rowsProcessed: 100n, status: 'success'},
      {table: 'user', rowsTotal: null, rowsProcessed: 0n, status: 'pending'},
    ],
  )
})

/** Ends a cut of the first client, as a worker does. */
async function advance(result: object): Promise<void> {
  await host`select sync_metadata.advance_generation(${ids[0]!},
    (select generation from sync_metadata.client_deployments where deployment_id = ${ids[0]!}),
    gen_random_uuid(), ${epoch}, ${JSON.stringify(result)})`
}
