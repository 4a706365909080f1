import assert from 'node:assert/strict'
import {setTimeout as sleep} from 'node:timers/promises'
import {test} from 'vitest'
import {testDatabase} from '../../test/database.ts'
import {testHost} from '../../test/host.ts'
import {proxyTo} from '../../test/proxy.ts'
import {connect} from '../postgres/connect.ts'
import {withLease} from './lease.ts'

const {signal} = new AbortController()

test('work that stops because the connection of its lease is lost tells that, and not that it has stopped', async () => {
  await using db = await testDatabase()
  await using host = await testHost(db, 'host-a')
  await using proxy = await proxyTo(host.endpoint)
  await using pool = connect(proxy.endpoint, {applicationName: 'owsync-test'})
  const options = {
    nodeId: 'host-a-cli',
    clusterName: 'host-a',
    durationMs: 60_000,
    renewEveryMs: 15_000,
    patienceMs: 0,
  }
  const leading = withLease(
    pool,
    options,
    async lease => {
      proxy.cut()
      await sleep(60_000, undefined, {signal: lease.signal})
    },
    signal,
  )
  await assert.rejects(leading, {code: 'SYNC_CONNECTION_LOST'})
})
