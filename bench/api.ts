import {writeFile} from 'node:fs/promises'
import {join} from 'node:path'
import {monitorEventLoopDelay} from 'node:perf_hooks'
import {newToken} from '../src/api/tokens.ts'
import {loadConfig} from '../src/config/config.ts'
import {parseEndpoint} from '../src/net/endpoint.ts'
import {connect} from '../src/postgres/connect.ts'
import type {Pool} from '../src/postgres/sql.ts'
import {startApi, type RunningApi} from '../src/service/http.ts'
import {readSizes} from '../src/state/deployment-list.ts'
import {silentLog} from '../src/telemetry/log.ts'
import {createMetrics} from '../src/telemetry/metrics.ts'
import type {Benchmark} from './bench.ts'
import {environmentOf, stateFolder} from './ours.ts'
import {CLUSTER, type Database} from './postgres.ts'
import {areInstalled, run} from './program.ts'
import {bounded, median, unmeasured, type Result} from './result.ts'

const DEPLOYMENTS = 200
const JOBS = 500
const TABLES = 10
const CONNECTIONS = 100
const LOAD_SECONDS = 30

const whole = `${DEPLOYMENTS} deployments with ${JOBS} jobs each`
const list = {name: 'api', work: `${whole}, listed over HTTP`, must: 50}
const loads = ['/health', '/api/v1/deployments?limit=1000'].map(path => ({
  path,
  failed: {
    name: 'api',
    work: `${path}, ${CONNECTIONS} connections for ${LOAD_SECONDS} s: what failed`,
    must: 0,
  },
  // A renewal of the lease has this long before it is missed.
  held: {name: 'api', work: `${path}, that load: the longest that the node's loop was held up`, must: 2_500},
}))

/** What the API of a node takes, and what it takes from the node: one process serves both. */
export const benchApi: Benchmark = async ({server, rounds, say}) => {
  await using database = await server.database('migrated')
  using state = stateFolder()
  await makeHistory(database)
  const config = await loadConfig({...environmentOf(database, state.path), API_PORT: '0'})
  await using pool = connect(parseEndpoint(database.url), {max: 3, applicationName: 'owsync-bench'})
  const {token, line} = newToken('bench', 'read')
  await writeFile(join(state.path, 'api-tokens'), line)
  await using api = await startApi({
    config,
    pool,
    node: {
      nodeId: `${CLUSTER}-node-a`,
      role: 'node-a',
      clusterName: CLUSTER,
      version: 'bench',
      startedAt: performance.now(),
      isLeader: () => true,
    },
    notices: {on: () => ({[Symbol.dispose]: () => undefined})},
    log: silentLog,
    metrics: createMetrics(),
  })
  const times = await listed(api, token, 20 * rounds)
  say(`api: ${whole}: the slowest of ${times.length} lists took ${Math.max(...times).toFixed(1)} ms`)
  await sized(pool, say)
  const results: Result[] = [bounded(list, times)]
  for (const {path, failed, held} of loads) {
    if (!areInstalled('wrk')) {
      say('api: no load without wrk')
      results.push(unmeasured(failed), unmeasured(held))
      continue
    }
    const {requestsPerSecond, failures, longestMs} = await underLoad(api.url + path, token)
    say(`api: ${path}: ${requestsPerSecond.toFixed(0)} requests a second`)
    results.push({...unmeasured(failed), holds: failures === 0, value: failures, unit: 'requests'})
    results.push(bounded(held, [longestMs]))
  }
  return results
}

async function listed({url}: RunningApi, token: string, times: number): Promise<number[]> {
  const took: number[] = []
  for (let i = 0; i < times; i++) {
    const since = performance.now()
    const response = await fetch(`${url}/api/v1/deployments?limit=1000`, {
      headers: {authorization: `Bearer ${token}`},
    })
    const {count} = (await response.json()) as {count: number}
    took.push(performance.now() - since)
    if (count !== DEPLOYMENTS) throw new Error(`${count} deployments were listed`)
  }
  return took
}

/** Sizes are looked up beside the list, once a minute: this is why. */
async function sized(pool: Pool, say: (text: string) => void): Promise<void> {
  const took: number[] = []
  for (let i = 0; i < 5; i++) {
    const since = performance.now()
    await readSizes(pool)
    took.push(performance.now() - since)
  }
  say(`api: the sizes of ${DEPLOYMENTS * TABLES} tables take ${median(took).toFixed(1)} ms`)
}

async function underLoad(url: string, token: string) {
  const loop = monitorEventLoopDelay({resolution: 10})
  loop.enable()
  const args = ['-t', '2', '-c', String(CONNECTIONS), '-d', `${LOAD_SECONDS}s`]
  const {out: output} = await run('wrk', [...args, '-H', `Authorization: Bearer ${token}`, url])
  loop.disable()
  const numbers = (pattern: RegExp) => [...(pattern.exec(output) ?? [])].slice(1).map(Number)
  const failures = [
    ...numbers(/Socket errors: connect (\d+), read (\d+), write (\d+), timeout (\d+)/),
    ...numbers(/Non-2xx or 3xx responses: (\d+)/),
  ]
  const [requestsPerSecond] = numbers(/Requests\/sec:\s+([\d.]+)/)
  if (requestsPerSecond === undefined) throw new Error(`wrk said: ${output}`)
  return {
    requestsPerSecond,
    failures: failures.reduce((sum, each) => sum + each, 0),
    longestMs: loop.max / 1e6,
  }
}

/** A host as it is after months: clients, their tables, their jobs, some of them failed, conflicts and verifications. */
async function makeHistory({admin, url}: Database): Promise<void> {
  {
    await using host = connect(parseEndpoint(url), {max: 1, applicationName: 'owsync-bench'})
    for (let i = 0; i < DEPLOYMENTS; i++)
      await host`select sync_metadata.register_deployment(${`client-${i}`}, '{"sync_interval": 60}')`
  }
  await admin`
    do $$
    declare
      v_schema text;
    begin
      for v_schema in select schema_name from sync_metadata.client_deployments loop
        for n in 1..10 loop
          execute format('create table %I.t%s (id text primary key, v text); create index on %I.t%s (v)',
            v_schema, n, v_schema, n);
        end loop;
      end loop;
    end $$;
    update sync_metadata.client_deployments set last_sync_at = now(), checked_at = now(), last_sync_status = 'success';
    insert into sync_metadata.sync_jobs (deployment_id, status, created_at, finished_at, error_code, error_message)
    select d.deployment_id, case when n % 10 = 1 then 'failed' else 'success' end, now() - n * interval '1 hour',
      now() - n * interval '1 hour', 'SYNC_SOURCE_BUSY', 'it is locked'
    from sync_metadata.client_deployments d, generate_series(1, 500) n;
    insert into sync_metadata.conflict_log (deployment_id, table_name, record_key, conflict_type, status)
    select d.deployment_id, 'chat', n::text, 'drift', case when n % 10 = 0 then 'pending' else 'resolved' end
    from sync_metadata.client_deployments d, generate_series(1, 50) n;
    insert into sync_metadata.verifications (deployment_id, generation)
    select d.deployment_id, n from sync_metadata.client_deployments d, generate_series(1, 50) n;
    analyze sync_metadata.sync_jobs, sync_metadata.conflict_log, sync_metadata.verifications,
      sync_metadata.client_deployments`
}
