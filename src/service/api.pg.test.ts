import assert from 'node:assert/strict'
import {test} from 'vitest'
import {testApi} from '../../test/api.ts'
import {hostWithClient} from '../../test/host.ts'

test('smoke', async () => {
  await using site = await hostWithClient()
  await using api = await testApi({pool: site.host, cluster: 'host-a'})
  const show = async (path: string, o = {}) => {
    const r = await api.call(path, o)
    console.log(path, r.status, JSON.stringify(r.body ?? r.text.slice(0, 200)))
  }
  for (const p of ['/health', '/livez', '/readyz', '/leader', '/api/v1/cluster/status', '/api/v1/deployments', '/api/v1/deployments/acme', '/api/v1/state/deployment.acme', '/api/v1/state/x', '/api/v1/state?key=x', '/api/v1/jobs', '/api/v1/conflicts', '/nope', '/docs', '/docs/', '/docs/static/index.html'])
    await show(p)
  await show('/api/v1/state/x', {method: 'PUT', body: {value: 1}})
  await show('/api/v1/sync/trigger', {body: {client_name: 'acme'}})
  await show('/api/v1/sync/trigger/acme', {method: 'POST'})
  await show('/api/v1/deployments/acme', {method: 'PATCH', body: {interval: '5m', port: null}})
  await show('/api/v1/deployments/acme', {method: 'PATCH', body: {interval: 'x'}})
  await show('/api/v1/deployments', {body: {client_name: 'beta'}})
  const r = await api.call('/docs/json')
  console.log(r.status, r.text.length, JSON.stringify(r.body.paths['/api/v1/deployments'].get).slice(0, 3000))
  console.log((await api.call('/metrics')).text.split('\n').filter((l: string) => l.startsWith('http_request_duration_seconds_count')).join('\n'))
  assert.ok(true)
})
