// Answers are looked at field by field, whatever is in them.
/* eslint-disable @typescript-eslint/no-unsafe-member-access, @typescript-eslint/no-unsafe-assignment */
import assert from 'node:assert/strict'
import {spawnSync} from 'node:child_process'
import {copyFileSync, readFileSync} from 'node:fs'
import {writeFile} from 'node:fs/promises'
import {get as httpsGet} from 'node:https'
import {join} from 'node:path'
import {PassThrough} from 'node:stream'
import {afterAll, beforeAll, beforeEach, describe, test} from 'vitest'
import {isProblem, testApi} from '../../test/api.ts'
import {testDatabase, type TestDatabase} from '../../test/database.ts'
import {codeOf, refusal, testClient, testHost, type TestHost} from '../../test/host.ts'
import {proxyTo} from '../../test/proxy.ts'
import {until} from '../../test/until.ts'
import {connect} from '../postgres/connect.ts'
import {createLog, silentLog} from '../telemetry/log.ts'
import {HealthWatch} from './health-watch.ts'

let db: TestDatabase
let host: TestHost

beforeAll(async () => {
  db = await testDatabase()
  host = await testHost(db, 'host-a', 8)
})

afterAll(async () => {
  await host.end()
  await db[Symbol.asyncDispose]()
})

const lead = (node = 'host-a-node-a') => host`select * from sync_metadata.acquire_lease(${node}, 600000)`
const beat = (node: string) => host`
  insert into sync_metadata.sync_nodes (node_id, role, version) values (${node}, ${node.slice('host-a-'.length)}, '1.2.3')
  on conflict (host_id, node_id) do update set last_heartbeat = now()`

describe('health', () => {
  let id: string
  let name: string
  let count = 0

  beforeEach(async () => {
    await lead()
    await db`update sync_metadata.client_deployments set sync_enabled = false`
    name = `health-${++count}`
    id = await testClient(host, name)
  })

  async function healthOf() {
    await using api = await testApi({pool: host, cluster: 'host-a'})
    return (await api.call('/health', {token: null})) as {status: number; body: Record<string, unknown>}
  }

  test('is healthy while somebody leads and every deployment is in order', async () => {
    await host`update sync_metadata.client_deployments set sync_interval = 60, last_sync_status = 'success',
      last_sync_at = now(), checked_at = now() where deployment_id = ${id}`
    const {status, body} = await healthOf()
    const {uptime_seconds, last_sync, ...others} = body
    assert.equal(status, 200)
    assert.deepEqual(others, {
      status: 'healthy',
      node_id: 'host-a-node-a',
      role: 'node-a',
      is_leader: false,
      leader_id: 'host-a-node-a',
      cluster_name: 'host-a',
      version: '1.2.3',
      reasons: [],
    })
    assert.equal(typeof uptime_seconds, 'number')
    assert.ok(Date.parse(String(last_sync)) > 0)
  })

  const late = {
    fails: () =>
      host`update sync_metadata.client_deployments set last_sync_status = 'failed' where deployment_id = ${id}`,
    'has failed three times and is tried again': () =>
      host`insert into sync_metadata.sync_jobs (deployment_id, sync_type, status, attempt, error_code, run_after)
        values (${id}, 'incremental', 'pending', 3, 'SYNC_WORKER_LOST', now() + interval '1 hour')`,
    'is held back': () =>
      host`update sync_metadata.client_deployments set status = 'quarantined' where deployment_id = ${id}`,
    'is behind its source': () =>
      host`update sync_metadata.client_deployments set behind_since = now() - interval '11 minutes', checked_at = now()
        where deployment_id = ${id}`,
    'has not been looked at, although it is followed': () =>
      host`update sync_metadata.client_deployments set sync_schedule = 'live', checked_at = now() - interval '11 minutes',
        last_sync_at = now() - interval '11 minutes' where deployment_id = ${id}`.then(
        () =>
          db`update sync_metadata.client_deployments set created_at = now() - interval '1 day' where deployment_id = ${id}`,
      ),
    'has not been looked at for three intervals': () =>
      host`update sync_metadata.client_deployments set sync_interval = 3600, checked_at = now() - interval '181 minutes'
        where deployment_id = ${id}`.then(
        () =>
          db`update sync_metadata.client_deployments set created_at = now() - interval '1 day' where deployment_id = ${id}`,
      ),
    'was due long ago': () =>
      host`update sync_metadata.client_deployments set sync_schedule = '0 3 * * *', next_sync_at = now() - interval '11 minutes'
        where deployment_id = ${id}`,
  }
  for (const [what, make] of Object.entries(late))
    test(`is degraded when a deployment ${what}, and not when that one is switched off`, async () => {
      await make()
      const {status, body} = await healthOf()
      assert.deepEqual([status, body.status], [200, 'degraded'])
      assert.match(JSON.stringify(body.reasons), /^\["1 deployment is (failed or held back|behind)"\]$/)
      assert.ok(!JSON.stringify(body).includes(name), 'it names no client')
      await host`update sync_metadata.client_deployments set sync_enabled = false where deployment_id = ${id}`
      assert.equal((await healthOf()).body.status, 'healthy')
    })

  test('is healthy when an attempt has failed that may have done so in passing', async () => {
    await host`insert into sync_metadata.sync_jobs (deployment_id, sync_type, status, attempt, error_code)
      values (${id}, 'incremental', 'running', 3, 'SYNC_WORKER_LOST')`
    assert.equal((await healthOf()).body.status, 'healthy')
  })

  test('is healthy with deployments that wait to be asked for, or are within three intervals', async () => {
    await host`update sync_metadata.client_deployments set checked_at = now() - interval '30 days' where deployment_id = ${id}`
    assert.equal((await healthOf()).body.status, 'healthy')
    await host`update sync_metadata.client_deployments set sync_interval = 3600, checked_at = now() - interval '179 minutes'
      where deployment_id = ${id}`
    assert.equal((await healthOf()).body.status, 'healthy')
  })

  test('is degraded while nobody leads', async () => {
    await host`select sync_metadata.release_lease('host-a-node-a', epoch) from sync_metadata.leader_election`
    const {body} = await healthOf()
    assert.deepEqual([body.status, body.leader_id, body.reasons], ['degraded', null, ['no node leads']])
  })

  test('is unhealthy when Postgres has not answered for longer than a lease, and healthy again when it does', async () => {
    await using proxy = await proxyTo(host.endpoint)
    await using pool = connect(proxy.endpoint, {
      max: 4,
      applicationName: 'owsync-test',
      answerWithinMs: 2_000,
    })
    await using api = await testApi({pool, cluster: 'host-a', config: {leaseDurationMs: 2_000}})
    const status = async (path: string) => (await api.call(path, {token: null})).status
    assert.deepEqual([await status('/health'), await status('/readyz')], [200, 200])
    proxy.silence('up', 'down')
    await until(async () => (await status('/health')) === 503)
    const {body} = await api.call('/health', {token: null})
    assert.equal(body.status, 'unhealthy')
    assert.match(String(body.reasons), /^Postgres has not answered for \d+ s/)
    assert.equal(await status('/readyz'), 503)
    assert.equal(await status('/livez'), 200)
    proxy.heal()
    proxy.cut()
    await until(async () => (await status('/health')) === 200)
    assert.equal(await status('/readyz'), 200)
  })

  test('of a node that Postgres has never answered is unhealthy', async () => {
    const never = (() => new Promise(() => undefined)) as never
    const view = {
      nodeId: 'n',
      role: 'node-a',
      clusterName: 'c',
      version: '1',
      startedAt: performance.now(),
      isLeader: () => false,
    }
    const watch = new HealthWatch(never, view, 10_000)
    assert.deepEqual(
      [(await watch.health()).status, await watch.faults()],
      ['unhealthy', ['Postgres has not answered yet']],
    )
  })

  test('a hundred who ask at once cost one statement', async () => {
    let statements = 0
    const counting = new Proxy(host, {
      apply(target, self, args) {
        statements++
        return Reflect.apply(target, self, args) as unknown
      },
    })
    const watch = new HealthWatch(
      counting,
      {
        nodeId: 'n',
        role: 'node-a',
        clusterName: 'c',
        version: '1',
        startedAt: performance.now(),
        isLeader: () => true,
      },
      10_000,
    )
    await Promise.all(Array.from({length: 100}, () => watch.health()))
    assert.equal(statements, 1)
  })
})

test('/leader tells the leader from the others', async () => {
  let leads = true
  await using api = await testApi({pool: host, cluster: 'host-a', isLeader: () => leads})
  assert.equal((await api.call('/leader', {token: null})).status, 200)
  leads = false
  assert.equal((await api.call('/leader', {token: null})).status, 503)
})

describe('the cluster', () => {
  test('is shown, and asked to let another node lead', async () => {
    await lead('host-a-node-a')
    await beat('host-a-node-a')
    await beat('host-a-node-b')
    await using api = await testApi({pool: host, cluster: 'host-a'})
    const {body} = await api.call('/api/v1/cluster/status')
    assert.deepEqual([body.cluster_name, body.leader_id, body.paused], ['host-a', 'host-a-node-a', false])
    assert.ok(body.epoch >= 1 && Date.parse(body.lease_expires_at as string) > Date.now() - 3_600_000)
    const nodes = body.nodes as Record<string, unknown>[]
    assert.deepEqual(
      nodes.map(({node_id, role, health, is_leader, version}) => ({
        node_id,
        role,
        health,
        is_leader,
        version,
      })),
      [
        {node_id: 'host-a-node-a', role: 'node-a', health: 'active', is_leader: true, version: '1.2.3'},
        {node_id: 'host-a-node-b', role: 'node-b', health: 'active', is_leader: false, version: '1.2.3'},
      ],
    )
    const promote = (asked: object) => api.call('/api/v1/cluster/promote', {body: asked})
    const wish = async () => {
      const [row] = await host<{
        preferred: string | null
      }>`select preferred from sync_metadata.leader_election`
      return row?.preferred
    }
    isProblem(await promote({node_id: 'host-a-node-z'}), 404, 'SYNC_API_NOT_FOUND')
    isProblem(
      await promote({node_id: 'node-b', expected_leader: 'host-a-node-b'}),
      409,
      'SYNC_LEADER_CHANGED',
    )
    for (const asked of [
      {},
      {node_id: ''},
      {node_id: 1},
      {node_id: 'node-b', force: 'yes'},
      {node: 'node-b'},
    ])
      isProblem(await promote(asked), 400, 'SYNC_API_INVALID')
    assert.equal(await wish(), null)
    const asked = await promote({node_id: 'node-b', expected_leader: 'host-a-node-a'})
    assert.deepEqual([asked.status, asked.body], [202, {success: true, node_id: 'host-a-node-b'}])
    assert.equal(await wish(), 'host-a-node-b')
    const [entry] = await host<{actor: string; action: string; details: object}>`
      select actor, action, details from sync_metadata.audit_log order by audit_id desc limit 1`
    assert.deepEqual(entry, {
      actor: 'api:operator',
      action: 'cluster.promote',
      details: {from: 'host-a-node-a', to: 'host-a-node-b', force: false, node: 'host-a-node-a'},
    })
    assert.equal((await promote({node_id: 'node-a'})).status, 202, 'who leads already goes on')
    await host`select sync_metadata.prefer_node(null)`
    const stepped = await api.call('/api/v1/cluster/step-down', {method: 'POST'})
    assert.deepEqual([stepped.status, stepped.body], [202, {success: true, successor: 'host-a-node-b'}])
    isProblem(
      await api.call('/api/v1/cluster/step-down', {body: {expected_leader: 'host-a-node-b'}}),
      409,
      'SYNC_LEADER_CHANGED',
    )
    await host`select sync_metadata.set_paused(true)`
    isProblem(await promote({node_id: 'node-b'}), 409, 'SYNC_CANNOT_LEAD')
    isProblem(await api.call('/api/v1/cluster/step-down', {method: 'POST'}), 409, 'SYNC_CANNOT_LEAD')
    await host`select sync_metadata.set_paused(false)`
    await host`update sync_metadata.sync_nodes set last_heartbeat = now() - interval '1 hour' where role = 'node-b'`
    isProblem(await promote({node_id: 'node-b'}), 409, 'SYNC_CANNOT_LEAD')
    isProblem(await api.call('/api/v1/cluster/step-down', {method: 'POST'}), 409, 'SYNC_CANNOT_LEAD')
  })
})

describe('where it listens', () => {
  const start = (config: object) => testApi({pool: host, cluster: 'host-a', config})

  test('an address that others reach is refused without tokens, and without TLS or a gateway', async () => {
    for (const apiHost of ['0.0.0.0', '::', '192.0.2.1']) {
      assert.equal(await codeOf(start({apiHost})), 'SYNC_USAGE')
      assert.equal(await codeOf(start({apiHost, apiTokensFile: '/tmp/tokens'})), 'SYNC_USAGE')
    }
    const published = {
      apiHost: '0.0.0.0',
      apiTokensFile: '/nowhere/tokens',
      apiLocalNetworks: ['172.18.0.1/32'],
    }
    await using api = await start(published)
    assert.equal(
      (await fetch(`http://127.0.0.1:${api.port}/livez`)).status,
      401,
      'loopback is not the gateway',
    )
  })

  test('a port that is taken is said in words', async () => {
    await using first = await start({})
    const error = await refusal(start({apiPort: first.port}))
    assert.match(String(error), /cannot listen on 127\.0\.0\.1, port \d+ \(EADDRINUSE\)/)
    assert.equal((error as {code: string}).code, 'SYNC_API_ADDRESS')
  })

  test('a certificate that is none is said in words', async () => {
    await using other = await start({})
    const file = join(other.folder, 'api-tokens')
    assert.equal(await codeOf(start({apiTlsCertFile: file, apiTlsKeyFile: file})), 'SYNC_USAGE')
    assert.equal(await codeOf(start({apiTlsCertFile: '/nowhere', apiTlsKeyFile: '/nowhere'})), 'SYNC_USAGE')
  })

  describe.skipIf(spawnSync('openssl', ['version']).status !== 0)(
    'with a certificate (needs openssl)',
    () => {
      test('it speaks TLS, and goes by the certificate’s names', async () => {
        await using other = await start({})
        const files = makeCertificate(other.folder, 'sync.example.com')
        await using api = await start(files)
        assert.match(api.url, /^https:/)
        assert.equal(await statusAs(api.url, files, 'sync.example.com'), 200)
        assert.equal(await statusAs(api.url, files, 'evil.example'), 403)
        await assert.rejects(fetch(api.url.replace('https', 'http')))
      })

      test('one that is renewed is taken; files that do not fit change nothing and are told of', async () => {
        await using other = await start({})
        const files = makeCertificate(other.folder, 'old.example.com')
        let logged = ''
        const stream = new PassThrough()
        stream.on('data', (chunk: Buffer) => (logged += chunk.toString()))
        await using api = await testApi({
          pool: host,
          cluster: 'host-a',
          config: files,
          log: createLog({level: 'info', format: 'json', stream}),
        })
        const known = {apiTlsCertFile: join(other.folder, 'known.pem')}
        copyFileSync(files.apiTlsCertFile, known.apiTlsCertFile)
        await writeFile(files.apiTlsKeyFile, 'changed later')
        await until(() => logged.includes('keeps its old certificate'))
        assert.equal(await statusAs(api.url, known, 'old.example.com'), 200)

        makeCertificate(other.folder, 'new.example.com')
        await until(() => logged.includes('has been read anew'))
        assert.equal(await statusAs(api.url, files, 'new.example.com'), 200)
        assert.equal(await statusAs(api.url, files, 'old.example.com'), 403)
        await assert.rejects(statusAs(api.url, known, 'new.example.com'), /self-signed|certificate/)
      })

      /** Makes a key and a certificate for itself, or replaces them. */
      function makeCertificate(folder: string, name: string) {
        const files = {apiTlsKeyFile: join(folder, 'key.pem'), apiTlsCertFile: join(folder, 'cert.pem')}
        const made = spawnSync('openssl', [
          ...[
            'req',
            '-x509',
            '-newkey',
            'ec',
            '-pkeyopt',
            'ec_paramgen_curve:prime256v1',
            '-nodes',
            '-days',
            '2',
          ],
          ...['-keyout', files.apiTlsKeyFile, '-out', files.apiTlsCertFile, '-subj', `/CN=${name}`],
          ...['-addext', `subjectAltName=DNS:${name},IP:127.0.0.1`],
        ])
        assert.equal(made.status, 0, made.stderr.toString())
        return files
      }

      function statusAs(
        url: string,
        {apiTlsCertFile}: {apiTlsCertFile: string},
        name: string,
      ): Promise<number> {
        return new Promise((resolve, reject) => {
          const options = {
            ca: readFileSync(apiTlsCertFile),
            headers: {host: name},
            agent: false as const,
            checkServerIdentity: () => undefined,
          }
          httpsGet(`${url}/livez`, options, response => {
            response.resume()
            resolve(response.statusCode!)
          }).once('error', reject)
        })
      }
    },
  )
})

test('an API that is stopped leaves nothing behind', async () => {
  const api = await testApi({pool: host, cluster: 'host-a', log: silentLog})
  await api.call('/api/v1/deployments')
  await api[Symbol.asyncDispose]()
  await assert.rejects(fetch(`${api.url}/livez`))
})
