import assert from 'node:assert/strict'
import {DatabaseSync} from 'node:sqlite'
import {afterAll, beforeAll, test} from 'vitest'
import {testApi} from '../../test/api.ts'
import {editorOf} from '../../test/editor.ts'
import {askFor, endOf, leadingJobs, until, valueOf} from '../../test/leading-jobs.ts'
import {leadingClient, leadingHost, type LeadingHost} from '../../test/leading-host.ts'

// An edit in Postgres, from its notice to a person's decision over the API, with the leader's own jobs in between.

let leader: LeadingHost
beforeAll(async () => {
  leader = await leadingHost('edited')
})
afterAll(() => leader[Symbol.asyncDispose]())

type Told = {conflicts: {conflict_id: string; type: string; status: string; job_id: string | null}[]}

test('an edit is met by the leader without being asked, waits for a person, and is decided over the API', async () => {
  await using client = await leadingClient(leader, 'edited-1')
  {
    using app = new DatabaseSync(client.file)
    app.exec(
      `create table note (id text primary key, v text); insert into note values ('a', 'source'), ('b', 'same')`,
    )
  }
  await leader.host`update sync_metadata.client_deployments
    set config = '{"conflict_resolution": {"default_strategy": "manual"}}', sync_interval = 3600`
  await using jobs = await leadingJobs(leader)
  await endOf(leader, await askFor(leader, client))
  await using api = await testApi({pool: leader.host, cluster: 'edited'})
  await using editor = await editorOf(leader.admin, client.name)
  await editor`update edited_1.note set v = 'edited' where id = 'a'`
  jobs.notice('marks')

  const list = async () => (await api.call('/api/v1/conflicts?client_name=edited-1')).body as unknown as Told
  const conflict = await until('the edit to be met', async () => (await list()).conflicts[0])
  assert.deepEqual([conflict.type, conflict.status], ['drift', 'pending'])
  const job = await api.call(`/api/v1/jobs/${conflict.job_id}`)
  assert.equal(job.status, 200, 'the ledger names a job that is there')
  assert.equal(
    await valueOf(jobs.metrics, 'conflicts_detected_total', {client: 'edited-1', type: 'drift'}),
    1,
  )
  assert.equal(await valueOf(jobs.metrics, 'conflicts_unresolved', {client: 'edited-1'}), 1)

  const path = `/api/v1/conflicts/${conflict.conflict_id}`
  const seen = (await api.call(path)).body as {fields: unknown[]}
  assert.deepEqual(seen.fields, [
    {field: 'v', source: 'source', target: 'edited', resolved: null, differs: true},
  ])
  const decided = await api.call(`${path}/resolve`, {body: {choice: 'source'}})
  assert.equal(decided.status, 200, decided.text)
  const value = async () => {
    const [row] = await editor<{v: string}>`select v from edited_1.note where id = 'a'`
    return row!.v
  }
  assert.equal(await value(), 'source')
  assert.equal((await api.call(`${path}/resolve`, {body: {choice: 'source'}})).status, 409)
  assert.equal((await api.call(`${path}/undo`, {method: 'POST'})).status, 200)
  assert.equal(await value(), 'edited')
  const [audit] = await leader.admin<{actors: string[]}>`
    select array_agg(distinct actor) as actors from sync_metadata.audit_log where action like 'conflict%'`
  assert.deepEqual(audit!.actors, ['api:operator'])
})
