import assert from 'node:assert/strict'
import {setTimeout as sleep} from 'node:timers/promises'
import {expect, test} from 'vitest'
import {adminEndpoint} from '../../test/database.ts'
import {hostWithClient, refusal} from '../../test/host.ts'
import {withChanges} from '../net/endpoint.ts'
import {createMetrics, observePool} from '../telemetry/metrics.ts'
import {connect, type ConnectOptions} from './connect.ts'
import {FencedOutError} from './refusals.ts'
import {fragment} from './sql.ts'

function observed(changes: Partial<ConnectOptions> = {}, endpoint = adminEndpoint()) {
  const metrics = createMetrics()
  const observer = observePool(metrics, 'test')
  const pool = connect(endpoint, {applicationName: 'owsync-test', observer, ...changes})
  /** @returns every series of the metric as `labels value`. */
  const series = async (name: string) => {
    const {values} = (await metrics.registry.getSingleMetric(name)?.get()) ?? {values: []}
    return values.map(({labels, value}) => `${Object.values(labels).join(' ')} ${value}`).sort()
  }
  return {pool, metrics, series, [Symbol.asyncDispose]: () => pool.end()}
}

async function* rows(...lines: string[]): AsyncGenerator<Buffer> {
  await sleep(0)
  for (const line of lines) yield Buffer.from(line)
}

test('every statement is counted by what it is and how it ended', async () => {
  await using db = observed()
  await db.pool.begin(async tx => {
    await tx`create temporary table t (a int)`
    await tx`insert into t values (${1})`
    await tx.copyFrom(fragment`copy t from stdin`, rows('2\n', '3\n'))
    for await (const chunk of tx.copyTo(fragment`copy t to stdout`)) assert.ok(chunk.length > 0)
    await refusal(tx.savepoint(() => tx`insert into t values ('no number')`))
    await tx`update t set a = a + 1`
  })
  await refusal(db.pool`select * from there_is_no_such_table`)
  await refusal(
    db.pool.begin(() => {
      throw new Error('changed its mind')
    }),
  )
  assert.deepEqual(await db.series('db_queries_total'), [
    'begin success 2',
    'commit success 1',
    'connect success 1',
    'copy success 2',
    'ddl success 1',
    'insert error 1',
    'insert success 1',
    'rollback success 2',
    'savepoint success 1',
    'select error 1',
    'update success 1',
  ])
  assert.deepEqual(await db.series('errors_total'), ['postgres 42P01 1', 'postgres SYNC_DATA 1'])
})

test('a statement’s duration is that of Postgres, without waiting for its turn', async () => {
  await using db = observed()
  await db.pool.begin(async tx => {
    await Promise.all([tx`select pg_sleep(2)`, tx`update pg_class set relname = '' where false`])
  })
  const histogram = await db.metrics.registry.getSingleMetricAsString('db_query_duration_seconds')
  const sum = (type: string) =>
    Number(new RegExp(`_sum{query_type="${type}"} (.+)`).exec(histogram)?.[1] ?? NaN)
  assert.ok(sum('select') >= 2, `${sum('select')} s`)
  assert.ok(sum('update') < 2, `${sum('update')} s`)
})

test('connections that are open and that are free are shown as they come and go', async () => {
  await using db = observed({max: 3})
  await db.pool`select 1`
  assert.deepEqual(await db.series('db_pool_size'), ['test 1'])
  assert.deepEqual(await db.series('db_pool_available'), ['test 3'])
  await using listening = await db.pool.reserve()
  await db.pool.begin(async tx => {
    await tx`select 1`
    assert.deepEqual(await db.series('db_pool_size'), ['test 2'])
    assert.deepEqual(await db.series('db_pool_available'), ['test 1'])
  })
  await listening[Symbol.asyncDispose]()
  await expect.poll(() => db.series('db_pool_size'), {timeout: 20_000}).toEqual(['test 1'])
  assert.deepEqual(await db.series('db_pool_available'), ['test 3'])
  await db.pool.end()
  await expect.poll(() => db.series('db_pool_size'), {timeout: 20_000}).toEqual(['test 0'])
})

test('a connection that does not come about is counted with its reason', async () => {
  await using db = observed({}, withChanges(adminEndpoint(), {port: 1}))
  await refusal(db.pool`select 1`)
  assert.deepEqual(await db.series('db_queries_total'), ['connect error 1'])
  assert.deepEqual(await db.series('errors_total'), ['postgres SYNC_UNREACHABLE 1'])
})

test('a write that the fence refuses is counted once', async () => {
  await using world = await hostWithClient()
  await using db = observed({}, world.host.endpoint)
  const error = await refusal(
    db.pool.begin(async tx => {
      await tx`select sync_metadata.assert_lease(99)`
    }),
  )
  assert.ok(error instanceof FencedOutError)
  assert.deepEqual(await db.series('fenced_writes_total'), [' 1'])
})
