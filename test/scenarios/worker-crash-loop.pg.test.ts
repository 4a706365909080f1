import assert from 'node:assert/strict'
import {rm, writeFile} from 'node:fs/promises'
import {join} from 'node:path'
import {fileURLToPath} from 'node:url'
import {expect, test} from 'vitest'
import {chanceOf, seedOf} from '../mutator.ts'
import {
  apiOf,
  busyClient,
  epochOf,
  generationOf,
  holdsAfterwards,
  isSynced,
  leaderOf,
  patient,
  startNode,
} from '../nodes.ts'
import {httpReceiver} from '../receivers.ts'
import {testSite} from '../site.ts'

// One client's file kills whoever syncs it, again and again: a crash of SQLite, or the system's hunt for memory. That is
// that client's trouble, and nobody else's.

const preload = fileURLToPath(new URL('../dies-for-one-client.ts', import.meta.url))

test('a client whose worker dies each time rests longer and longer, is told of, and goes on when it can; others never notice', async () => {
  const seed = seedOf()
  process.stderr.write(`OWSYNC_SEED=${seed}\n`)
  await using site = await testSite()
  await using receiver = await httpReceiver()
  await using poison = await busyClient(site, 'poison', chanceOf(seed))
  await using healthy = await busyClient(site, 'healthy', chanceOf(seed + 1))
  const flag = join(site.folder, 'poisonous')
  await writeFile(flag, '')
  await using node = startNode(site, 'node-a', {
    env: {
      NODE_OPTIONS: `--import=${preload}`,
      OWSYNC_TEST_DIES_FOR: 'poison',
      OWSYNC_TEST_DIES_WHILE: flag,
      ALERTS_WEBHOOK_URL: receiver.url,
    },
  })
  const lost = () => node.log.filter(({msg}) => msg === 'a sync worker was lost')
  const alerts = () =>
    receiver.posts
      .flatMap(({body}) => (body as {alerts: {rule: string; client: string | null; event: string}[]}).alerts)
      .filter(({rule, client}) => rule === 'repeated_failure' && client === 'poison')
      .map(({event}) => event)
  const health = async () => {
    const response = await fetch(`${await apiOf(node)}/health`)
    return (await response.json()) as {status: string; reasons: string[]}
  }

  await leaderOf(site, [node])
  await expect.poll(() => lost().length, patient).toBeGreaterThanOrEqual(3)
  await isSynced(site.db, healthy, 3n)
  await expect.poll(alerts, patient).toContain('raised')
  const {status, reasons} = await health()
  assert.equal(status, 'degraded')
  assert.match(reasons.join(), /1 deployment is failed/)

  const losses = lost()
  assert.ok(losses.every(({client}) => client === 'poison'))
  // Each rest is twice as long as the one before.
  const rests = losses.map(line => Number(line['rest_ms']))
  assert.deepEqual(
    rests,
    rests.map((_, i) => Math.min(1_000 * 2 ** i, 300_000)),
  )
  assert.equal(await generationOf(site.db, poison), 0n)
  const failures = await site.db`
    select distinct client_name, error_code from sync_metadata.sync_jobs
    join sync_metadata.client_deployments using (deployment_id) where error_code is not null`
  assert.deepEqual(failures, [{client_name: 'poison', error_code: 'SYNC_WORKER_LOST'}])

  await rm(flag)
  await expect.poll(() => generationOf(site.db, poison), {...patient, timeout: 90_000}).toBeGreaterThan(0n)
  await expect.poll(alerts, patient).toContain('recovered')
  await expect.poll(async () => (await health()).reasons.join(), patient).not.toMatch(/failed/)
  await holdsAfterwards(site, [node], poison)
  await holdsAfterwards(site, [node], healthy)
  assert.equal(await epochOf(site.db), 1n)
})
