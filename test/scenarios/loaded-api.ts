import assert from 'node:assert/strict'
import {execFile} from 'node:child_process'
import {existsSync} from 'node:fs'
import {mkdir, writeFile} from 'node:fs/promises'
import {join} from 'node:path'
import {setTimeout as sleep} from 'node:timers/promises'
import {promisify} from 'node:util'
import {test} from 'vitest'
import {newToken} from '../../src/api/tokens.ts'
import type {Sql} from '../../src/postgres/sql.ts'
import {chanceOf, seedOf} from '../mutator.ts'
import {apiOf, busyClient, epochOf, holdsAfterwards, isSynced, leaderOf, startNode} from '../nodes.ts'
import {testSite, type Site} from '../site.ts'

// The API of the leader under more than anybody asks of it, while it leads: nobody is refused, the lease is renewed and
// the node heard of as ever, and the client's file goes on being synced.

const program = ['/usr/bin/wrk', '/usr/local/bin/wrk'].find(existsSync)

/** Why nothing is loaded; `undefined` when it can be. */
const noWrk = program === undefined ? 'wrk is not installed (apt install wrk)' : undefined

const CONNECTIONS = 100
const DEPLOYMENTS = 200
export const LEASE_MS = 10_000
export const HEARTBEAT_MS = 2_500
const LOOK_EVERY_MS = 100

/**
 * Defines the test.
 *
 * @param seconds for how long each path is loaded.
 * @param silentMs for how long the node may not be heard of.
 */
export function loadedApi(seconds: number, silentMs: number): void {
  if (noWrk !== undefined) process.stderr.write(`skipped: ${noWrk}\n`)

  test.skipIf(noWrk !== undefined)(
    `${CONNECTIONS} connections that ask for ${seconds} s as fast as they can: no error, and no heartbeat is missed`,
    {timeout: 300_000 + 4 * seconds * 1_000},
    async () => {
      const seed = seedOf()
      process.stderr.write(`OWSYNC_SEED=${seed}\n`)
      await using site = await testSite()
      await using client = await busyClient(site, 'acme', chanceOf(seed))
      await manyDeployments(site)
      const reader = newToken('reader', 'read')
      const env = {
        API_TOKENS_FILE: join(site.stateDir, 'tokens'),
        LEASE_DURATION: `${LEASE_MS}ms`,
        HEARTBEAT_INTERVAL: `${HEARTBEAT_MS}ms`,
      }
      await mkdir(site.stateDir, {recursive: true})
      await writeFile(env.API_TOKENS_FILE, `${reader.line}\n`, {mode: 0o600})
      await using first = startNode(site, 'node-a', {env})
      await using second = startNode(site, 'node-b', {env})
      const leader = await leaderOf(site, [first, second])
      await isSynced(site.db, client)
      const api = await apiOf(leader)
      const epoch = await epochOf(site.db)

      for (const path of ['/health', '/api/v1/deployments']) {
        const over = new AbortController()
        const watching = longestSilences(site.db, leader.nodeId, over.signal)
        const load = await wrk(`${api}${path}`, reader.token, seconds)
        over.abort()
        const silences = await watching
        process.stderr.write(
          `${path}: ${load.requestsPerSecond} requests/s, ${load.failures} failures; ` +
            `longest without a renewal ${silences.renewalMs} ms, without a heartbeat ${silences.heartbeatMs} ms\n`,
        )
        assert.equal(load.failures, 0)
        assert.ok(silences.renewalMs < silentMs, `no renewal for ${silences.renewalMs} ms`)
        assert.ok(silences.heartbeatMs < silentMs, `no heartbeat for ${silences.heartbeatMs} ms`)
        await isSynced(site.db, client)
      }
      assert.equal(await epochOf(site.db), epoch)
      assert.equal(await holdsAfterwards(site, [first, second], client), leader)
    },
  )
}

async function manyDeployments({host}: Site): Promise<void> {
  for (let i = 1; i < DEPLOYMENTS; i++)
    await host`select sync_metadata.register_deployment(${`client-${i}`}, '{"sync_enabled": false}')`
}

/** @returns the longest times, on the database's clock, that it had to wait for the node's next sign until `signal` aborts. */
async function longestSilences(
  sql: Sql,
  nodeId: string,
  signal: AbortSignal,
): Promise<{renewalMs: number; heartbeatMs: number}> {
  const longest = {renewalMs: 0, heartbeatMs: 0}
  while (!signal.aborted) {
    const [row] = await sql<{renewal: number; heartbeat: number}>`
      select extract(epoch from clock_timestamp() - l.renewed_at)::float8 as renewal,
        extract(epoch from clock_timestamp() - n.last_heartbeat)::float8 as heartbeat
      from sync_metadata.leader_election l, sync_metadata.sync_nodes n where n.node_id = ${nodeId}`
    assert.ok(row)
    longest.renewalMs = Math.max(longest.renewalMs, Math.round(row.renewal * 1_000))
    longest.heartbeatMs = Math.max(longest.heartbeatMs, Math.round(row.heartbeat * 1_000))
    await sleep(LOOK_EVERY_MS)
  }
  return longest
}

async function wrk(
  url: string,
  token: string,
  seconds: number,
): Promise<{requestsPerSecond: number; failures: number}> {
  const args = ['-t', '1', '-c', String(CONNECTIONS), '-d', `${seconds}s`, '--timeout', '30s']
  const {stdout} = await promisify(execFile)(program!, [...args, '-H', `Authorization: Bearer ${token}`, url])
  const requestsPerSecond = Number(/Requests\/sec:\s+([\d.]+)/.exec(stdout)?.[1])
  assert.ok(requestsPerSecond > 0, stdout)
  const sockets = /Socket errors: connect (\d+), read (\d+), write (\d+), timeout (\d+)/.exec(stdout) ?? []
  const refused = /Non-2xx or 3xx responses: (\d+)/.exec(stdout) ?? []
  const failures = [...sockets.slice(1), ...refused.slice(1)].reduce((sum, text) => sum + Number(text), 0)
  return {requestsPerSecond, failures}
}
