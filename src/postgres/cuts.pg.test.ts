import assert from 'node:assert/strict'
import {randomUUID} from 'node:crypto'
import {describe, test} from 'vitest'
import {codeOf, evolve, hostWithClient, refusal, testClient, testHost} from '../../test/host.ts'
import {NotYoursError} from './refusals.ts'
import {raw, type Pool} from './sql.ts'

const table = {op: 'create_table', table: 'chat', columns: [{name: 'title', type: 'text'}]}

describe('the end of a cut', () => {
  test('is one call: generation, cut, result and job', async () => {
    await using client = await hostWithClient()
    const {host, id} = client
    const epoch = await lead(host)
    const cut = randomUUID()
    const result = {
      sync_type: 'full',
      triggered_by: 'cli',
      rows_upserted: 5,
      duration_ms: 1000,
      source_version: 'v7',
    }
    assert.equal(await advance(host, id, 0, epoch, cut, result), 1n)
    const [deployment] = await host`
      select generation, cut_id, last_sync_status, source_version, load_position, last_sync_at is not null as synced
      from sync_metadata.client_deployments`
    assert.deepEqual(deployment, {
      generation: 1n,
      cut_id: cut,
      last_sync_status: 'success',
      source_version: 'v7',
      load_position: null,
      synced: true,
    })
    assert.deepEqual(
      await host`select status, sync_type, triggered_by, generation, epoch, rows_upserted, rows_tombstoned,
        round(extract(epoch from finished_at - started_at))::int as seconds from sync_metadata.sync_jobs`,
      [
        {
          status: 'success',
          sync_type: 'full',
          triggered_by: 'cli',
          generation: 1n,
          epoch,
          rows_upserted: 5n,
          rows_tombstoned: 0n,
          seconds: 1,
        },
      ],
    )
  })

  test('finishes the job that was queued for it', async () => {
    await using client = await hostWithClient()
    const {host, id} = client
    const epoch = await lead(host)
    const [job] = await host<{job_id: string}>`
      insert into sync_metadata.sync_jobs (deployment_id, triggered_by) values (${id}, 'api') returning job_id`
    await advance(host, id, 0, epoch, randomUUID(), {job_id: job!.job_id, rows_tombstoned: 2})
    assert.deepEqual(
      await host`select job_id, status, triggered_by, rows_tombstoned from sync_metadata.sync_jobs`,
      [{job_id: job!.job_id, status: 'success', triggered_by: 'api', rows_tombstoned: 2n}],
    )
  })

  test('is announced with its tables when it commits, and not when it does not', async () => {
    await using client = await hostWithClient()
    const {host, id} = client
    const epoch = await lead(host)
    const heard: unknown[] = []
    await using listener = await host.reserve()
    listener.onNotify((_, payload) => heard.push(JSON.parse(payload)))
    await listener`listen owsync_acme`
    assert.equal(
      await codeOf(advance(host, id, 0, epoch + 1n, randomUUID(), {tables: ['never']})),
      'SYNC_FENCED_OUT',
    )
    await advance(host, id, 0, epoch, randomUUID(), {tables: ['chat', 'user']})
    await advance(host, id, 1, epoch, randomUUID(), {
      tables: Array.from({length: 500}, (_, i) => `a_table_${i}`),
    })
    for (let i = 0; heard.length < 2 && i < 400; i++) await listener`select pg_sleep(0.05)`
    assert.deepEqual(heard, [
      {client: 'acme', generation: 1, tables: ['chat', 'user']},
      // Too many to be named in one notification.
      {client: 'acme', generation: 2},
    ])
  })

  test('of the longest name is announced on the channel that LISTEN makes of it', async () => {
    await using client = await hostWithClient()
    const name = 'c'.repeat(63)
    const id = await testClient(client.host, name)
    const epoch = await lead(client.host)
    const heard: string[] = []
    await using listener = await client.host.reserve()
    listener.onNotify(channel => heard.push(channel))
    await listener`listen ${listener(`owsync_${name}`)}`
    await advance(client.host, id, 0, epoch)
    for (let i = 0; heard.length < 1 && i < 400; i++) await listener`select pg_sleep(0.05)`
    assert.deepEqual(heard, [`owsync_${name}`.slice(0, 63)])
  })

  test('is refused when another cut came first', async () => {
    await using client = await hostWithClient()
    const epoch = await lead(client.host)
    await advance(client.host, client.id, 0, epoch)
    assert.equal(await codeOf(advance(client.host, client.id, 0, epoch)), 'SYNC_GENERATION_MOVED')
    assert.equal(await advance(client.host, client.id, 1, epoch), 2n)
  })

  test('is refused under an epoch that has passed, and leaves nothing', async () => {
    await using client = await hostWithClient()
    const epoch = await lead(client.host)
    await lead(client.host)
    assert.equal(await codeOf(advance(client.host, client.id, 0, epoch)), 'SYNC_FENCED_OUT')
    assert.deepEqual(await client.host`select generation from sync_metadata.client_deployments`, [
      {generation: 0n},
    ])
    assert.deepEqual(await client.host`select 1 from sync_metadata.sync_jobs`, [])
  })

  test('is not taken for the client’s if it is another host’s', async () => {
    await using client = await hostWithClient()
    await using other = await testHost(client.db, 'host-b')
    assert.ok((await refusal(advance(other, client.id, 0, await lead(other)))) instanceof NotYoursError)
  })

  test('lifts a quarantine: what waited for a person has been applied', async () => {
    await using client = await hostWithClient()
    const {host, id} = client
    await host`update sync_metadata.client_deployments set status = 'quarantined', status_reason = 'many deletes'`
    await advance(host, id, 0, await lead(host))
    assert.deepEqual(await host`select status, status_reason from sync_metadata.client_deployments`, [
      {status: 'active', status_reason: null},
    ])
  })

  test('chunks of a first load are remembered without moving the generation, and only then', async () => {
    await using client = await hostWithClient()
    const {host, id} = client
    const epoch = await lead(host)
    const step = (position: string, at = epoch) =>
      host`select sync_metadata.record_load_step(${id}, ${randomUUID()}, ${at}, ${position})`
    await step('{"table": 1}')
    await step('{"table": 2}')
    assert.deepEqual(await host`select generation, load_position from sync_metadata.client_deployments`, [
      {generation: 0n, load_position: {table: 2}},
    ])
    assert.equal(await codeOf(step('{}', epoch - 1n)), 'SYNC_FENCED_OUT')
    await advance(host, id, 0, epoch)
    assert.equal(await codeOf(step('{}')), 'OS006')
  })
})

describe('what is removed', () => {
  test('tombstones that are old, unless a conflict still speaks of them', async () => {
    await using client = await hostWithClient()
    const {host, id} = client
    await evolve(host, id, table)
    await host`insert into acme.chat (_sync_key, _sync_deleted_at, _sync_edited_by, _sync_diverged) values
      ('lives', null, null, null), ('old', now() - interval '2 days', null, null), ('young', now(), null, null),
      ('marked', now() - interval '2 days', 'eve', null), ('kept', now() - interval '2 days', null, gen_random_uuid())`
    assert.deepEqual(await host`select sync_metadata.purge_tombstones(${id}, '1 day') as n`, [{n: 1n}])
    assert.deepEqual(
      (await host<{k: string}>`select _sync_key as k from acme.chat order by 1`).map(({k}) => k),
      ['kept', 'lives', 'marked', 'young'],
    )
    assert.equal(await codeOf(host`select sync_metadata.purge_tombstones(${id}, '-1 day')`), 'OS006')
  })

  test('history of the calling host, and of no other', async () => {
    await using client = await hostWithClient()
    const {host, id, db} = client
    await using other = await testHost(db, 'host-b')
    const theirs = await testClient(other, 'theirs')
    for (const deployment of [id, theirs]) {
      await db`insert into sync_metadata.sync_jobs (deployment_id, status, finished_at)
        values (${deployment}, 'success', now() - interval '1 year'), (${deployment}, 'success', now()),
          (${deployment}, 'pending', null)`
      await db`insert into sync_metadata.conflict_log
          (deployment_id, table_name, record_key, conflict_type, status, detected_at, source_data)
        values (${deployment}, 't', 'old', 'drift', 'resolved', now() - interval '1 year', '{}'),
          (${deployment}, 't', 'month', 'drift', 'resolved', now() - interval '40 days', '{}'),
          (${deployment}, 't', 'open', 'drift', 'pending', now() - interval '1 year', '{}')`
    }
    await db`update sync_metadata.cache_events set created_at = now() - interval '2 days'`
    assert.deepEqual(
      await host`select jobs, snapshots, events > 0 as events from sync_metadata.purge_history()`,
      [{jobs: 1n, snapshots: 1n, events: true}],
    )
    const left = (deployment: string) => db`
      select (select count(*)::int from sync_metadata.sync_jobs where deployment_id = ${deployment}) as jobs,
        count(*)::int as conflicts, count(source_data)::int as snapshots
      from sync_metadata.conflict_log where deployment_id = ${deployment}`
    assert.deepEqual(await left(id), [{jobs: 2, conflicts: 2, snapshots: 1}])
    assert.deepEqual(await left(theirs), [{jobs: 3, conflicts: 3, snapshots: 3}])
    assert.deepEqual(await other`select 1 from sync_metadata.cache_events limit 1`, [{'?column?': 1}])
  })

  test('what decided conflicts show, for as long as each client’s rules say', async () => {
    await using client = await hostWithClient()
    const {host, id, db} = client
    const longer = await testClient(host, 'longer')
    for (const deployment of [id, longer])
      await db`insert into sync_metadata.conflict_log
          (deployment_id, table_name, record_key, conflict_type, status, detected_at, source_data)
        values (${deployment}, 't', 'week', 'drift', 'resolved', now() - interval '7 days', '{}'),
          (${deployment}, 't', 'months', 'drift', 'resolved', now() - interval '100 days', '{}'),
          (${deployment}, 't', 'year', 'drift', 'resolved', now() - interval '366 days', '{}')`
    const own = JSON.stringify({[id]: '3 days', [longer]: '365 days'})
    await host`select sync_metadata.purge_history(p_own => ${own})`
    const left = (deployment: string) => db`
      select record_key as key, source_data is not null as shown from sync_metadata.conflict_log
      where deployment_id = ${deployment} order by detected_at desc`
    assert.deepEqual(await left(id), [{key: 'week', shown: false}])
    assert.deepEqual(await left(longer), [
      {key: 'week', shown: true},
      {key: 'months', shown: true},
    ])
    for (const bad of [{[id]: '-1 day'}, {[id]: null}])
      assert.equal(
        await codeOf(
          Promise.resolve(host`select sync_metadata.purge_history(p_own => ${JSON.stringify(bad)})`),
        ),
        'OS006',
      )
  })

  test('one row, everywhere', async () => {
    await using client = await hostWithClient()
    const {host, id, db} = client
    await evolve(host, id, table)
    await host`insert into acme.chat (title, _sync_key, _sync_deleted_at) values ('secret', 'k', now()), ('x', 'l', null)`
    await host`insert into sync_metadata.conflict_log (deployment_id, table_name, record_key, conflict_type, source_data)
      values (${id}, 'chat', 'k', 'drift', '{"title": "secret"}'), (${id}, 'chat', 'l', 'drift', '{"title": "x"}')`
    await host`insert into sync_metadata.row_quarantine (deployment_id, table_name, record_key, code, reason)
      values (${id}, 'chat', 'k', '22P02', 'secret')`
    await host`insert into sync_metadata.verifications (deployment_id, generation, differences)
      values (${id}, 1, '[{"table": "chat", "key": "k"}, {"table": "chat", "key": "l"}]')`
    const erase = (key: string) =>
      host<{erased: boolean}>`select sync_metadata.erase_row(${id}, 'chat', ${key}) as erased`
    assert.deepEqual(await erase('k'), [{erased: true}])
    assert.deepEqual(await erase('k'), [{erased: false}])
    assert.equal(await codeOf(erase('l')), 'OS006', 'a row that lives would be copied again')
    await host`insert into acme.chat (title, _sync_key, _sync_deleted_at, _sync_edited_by) values ('y', 'm', now(), 'me')`
    assert.equal(
      await codeOf(erase('m')),
      'OS006',
      'a row that was deleted in Postgres only lives in the source',
    )
    for (const {name} of await db<{name: string}>`
        select format('%I.%I', schemaname, tablename) as name from pg_tables where schemaname in ('acme', 'sync_metadata')`) {
      assert.deepEqual(await db`select from ${raw(name)} t where t::text like '%secret%'`, [], name)
    }
    assert.deepEqual(await host`select differences from sync_metadata.verifications`, [
      {differences: [{table: 'chat', key: 'l'}]},
    ])
    assert.equal((await host`select from sync_metadata.conflict_log where source_data is not null`).length, 1)
  })
})

describe('the views', () => {
  test('tell how the cluster, its jobs and its clients are', async () => {
    await using client = await hostWithClient()
    const {db, host, id} = client
    const epoch = await lead(host)
    await host`insert into sync_metadata.sync_nodes (node_id, role, last_heartbeat) values
      ('host-a-node-a', 'node-a', now()), ('host-a-node-b', 'node-b', now() - interval '3 minutes'),
      ('host-a-node-c', 'node-b', now() - interval '1 hour')`
    assert.deepEqual(
      await host`select node_id, health, is_leader, leader_id, epoch from sync_metadata.v_cluster_health order by node_id`,
      [
        {node_id: 'host-a-node-a', health: 'active', is_leader: true, leader_id: 'host-a-node-a', epoch},
        {node_id: 'host-a-node-b', health: 'degraded', is_leader: false, leader_id: 'host-a-node-a', epoch},
        {node_id: 'host-a-node-c', health: 'offline', is_leader: false, leader_id: 'host-a-node-a', epoch},
      ],
    )

    await evolve(host, id, table)
    await advance(host, id, 0, epoch, randomUUID(), {rows_upserted: 3})
    await host`insert into sync_metadata.conflict_log (deployment_id, table_name, record_key, conflict_type, status)
      values (${id}, 'chat', 'a', 'drift', 'pending'), (${id}, 'chat', 'b', 'drift', 'resolved')`
    await host`insert into sync_metadata.verifications (deployment_id, generation, difference_count) values (${id}, 1, 2)`
    const [job] = await host<{id: string}>`
      insert into sync_metadata.sync_jobs (deployment_id, status) values (${id}, 'running') returning job_id as id`
    await host`insert into sync_metadata.sync_progress (job_id, table_name, rows_total, rows_processed, status)
      values (${job!.id}, 'chat', 10, 10, 'success'), (${job!.id}, 'user', 10, 4, 'running')`

    assert.deepEqual(
      await host`select client_name, cluster_name, generation, last_sync_status, lag_seconds < 60 as fresh, last_error,
        pending_conflicts, quarantined_rows, last_differences, size_bytes > 0 as stored from sync_metadata.v_sync_status`,
      [
        {
          client_name: 'acme',
          cluster_name: 'host-a',
          generation: 1n,
          last_sync_status: 'success',
          fresh: true,
          last_error: null,
          pending_conflicts: 1n,
          quarantined_rows: 0n,
          last_differences: 2n,
          stored: true,
        },
      ],
    )
    assert.deepEqual(
      await host`select status, tables_total, tables_done, rows_total, rows_processed from sync_metadata.v_active_sync_jobs`,
      [{status: 'running', tables_total: 2n, tables_done: 1n, rows_total: 20n, rows_processed: 14n}],
    )
    assert.deepEqual(await host`select status, rows_upserted from sync_metadata.v_last_completed_sync_jobs`, [
      {status: 'success', rows_upserted: 3n},
    ])
    assert.deepEqual(await host`select conflicts, pending, resolved from sync_metadata.v_conflict_summary`, [
      {conflicts: 2n, pending: 1n, resolved: 1n},
    ])
    await db`update sync_metadata.conflict_log set detected_at = now() - interval '25 hours' where record_key = 'a'`
    assert.deepEqual(await host`select status from sync_metadata.v_recent_conflicts`, [{status: 'resolved'}])
    await db`update sync_metadata.leader_election set expires_at = now()`
    assert.deepEqual(await host`select distinct leader_id, is_leader from sync_metadata.v_cluster_health`, [
      {leader_id: null, is_leader: false},
    ])
  })
})

async function lead(host: Pool & {readonly cluster: string}): Promise<bigint> {
  const [row] = await host<{epoch: bigint}>`
    select epoch from sync_metadata.acquire_lease(${`${host.cluster}-node-a`}, 60000, true)`
  return row!.epoch
}

async function advance(
  host: Pool,
  id: string,
  expected: number | bigint,
  epoch: bigint,
  cut: string = randomUUID(),
  result: object = {},
): Promise<bigint> {
  const [row] = await host<{generation: bigint}>`
    select sync_metadata.advance_generation(${id}, ${expected}, ${cut}, ${epoch}, ${JSON.stringify(result)}) as generation`
  return row!.generation
}
