import assert from 'node:assert/strict'
import {setTimeout as sleep} from 'node:timers/promises'
import {afterEach, beforeEach, expect, test} from 'vitest'
import {withChanges} from '../../src/net/endpoint.ts'
import {raw} from '../../src/postgres/sql.ts'
import {literal} from '../../src/target/type-map.ts'
import {leaderOf, patient, startNode, type LogLine, type NodeProcess} from '../nodes.ts'
import {refusingServer} from '../refusing-server.ts'
import {testSite, type Site} from '../site.ts'

// Postgres, or the pooler before it, lets the node not in: it says why in words, does not try itself into a lock-out,
// and leads when somebody has put it right.

let site: Site
let node: NodeProcess | undefined

beforeEach(async () => {
  site = await testSite()
})

afterEach(async () => {
  await node?.[Symbol.asyncDispose]()
  await site[Symbol.asyncDispose]()
})

test('a password that is wrong and then put right', async () => {
  await password('other')
  node = startNode(site, 'node-a')
  const told = await refused(node)
  assert.equal(codeOf(told), 'SYNC_WRONG_PASSWORD')
  assert.match(String(told['next']), /rotate-password/)
  await sleep(4_000)
  assert.equal(refusals(node).length, 1, 'it has tried again at once')
  await password(site.host.endpoint.password ?? '')
  await leaderOf(site, [node])
})

test('a role that has no connection left', async () => {
  const {role} = site.host
  await site.db`alter role ${site.db(role)} connection limit 0`
  node = startNode(site, 'node-a')
  assert.equal(codeOf(await refused(node)), 'SYNC_TOO_MANY_CONNECTIONS')
  await site.db`alter role ${site.db(role)} connection limit 20`
  await leaderOf(site, [node])
})

for (const [what, message, reason, waitMs] of [
  ['that does not know the project', '(ENOTFOUND) tenant/user x not found', 'ENOTFOUND', 60_000],
  [
    'that has shut the circuit',
    '(ECIRCUITBREAKER) too many authentication failures, new connections are temporarily blocked',
    'ECIRCUITBREAKER',
    130_000,
  ],
  ['that is full', '(EMAXCONNSESSION) max clients reached in session mode', 'EMAXCONNSESSION', 5_000],
] as const) {
  test(`a pooler ${what} is asked again when that may help, and not before`, async () => {
    await using pooler = await refusingServer(message)
    const endpoint = withChanges(site.host.endpoint, {host: '127.0.0.1', port: pooler.port})
    node = startNode(site, 'node-a', {endpoint})
    const told = await refused(node)
    assert.equal(codeOf(told), 'SYNC_POOLER_REFUSED')
    assert.match((told['err'] as {message: string}).message, new RegExp(reason))
    assert.ok(String(told['next']).length > 20)
    assert.ok(Number(told['retry_ms']) >= waitMs)
    await sleep(2_500)
    assert.equal(pooler.tries, 1)
    assert.ok(node.isRunning())
    // It can be stopped while it waits.
    node.kill('SIGTERM')
    assert.equal(await node.ended, 0)
  })
}

test('the role of another cluster is an error, and the node does not start', async () => {
  node = startNode(site, 'node-a', {env: {CLUSTER_NAME: 'host-b'}})
  assert.equal(await node.ended, 1)
  assert.match(node.log.map(({msg}) => msg).join('\n'), /CLUSTER_NAME is host-b, but the role/)
})

test('a second process of the same node is refused', async () => {
  node = startNode(site, 'node-a')
  await leaderOf(site, [node])
  await using second = startNode(site, 'node-a')
  assert.equal(await second.ended, 75)
  assert.match(second.log.map(({msg}) => msg).join('\n'), /host-a-node-a runs already/)
  assert.ok(node.isRunning())
})

async function password(text: string): Promise<void> {
  await site.db`alter role ${site.db(site.host.role)} password ${raw(literal(text))}`
}

function refusals({log}: NodeProcess): LogLine[] {
  return log.filter(({msg}) => msg.startsWith('the election has no connection'))
}

async function refused(asked: NodeProcess): Promise<LogLine> {
  await expect.poll(() => refusals(asked).length, patient).toBeGreaterThan(0)
  return refusals(asked)[0] as LogLine
}

function codeOf(line: LogLine): string {
  return (line['err'] as {code: string}).code
}
