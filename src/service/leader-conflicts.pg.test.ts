import assert from 'node:assert/strict'
import {DatabaseSync} from 'node:sqlite'
import {afterAll, beforeAll, test} from 'vitest'
import {testApi} from '../../test/api.ts'
import {editorOf} from '../../test/editor.ts'
import {askFor, endOf, leadingJobs, quickPace, until, valueOf} from '../../test/leading-jobs.ts'
import {leadingClient, leadingHost, type LeadingHost} from '../../test/leading-host.ts'
import {holdingUp} from '../../test/workers.ts'
import {raw} from '../postgres/sql.ts'
import {countMarks} from '../state/scheduled.ts'
import {resolveConflict} from '../sync/resolve.ts'
import {silentLog} from '../telemetry/log.ts'

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
  // The leader counts it when the worker has told of its run.
  const unresolved = () => valueOf(jobs.metrics, 'conflicts_unresolved', {client: 'edited-1'})
  await holds('the conflict to be counted', async () => (await unresolved()) === 1)
  assert.equal(
    await valueOf(jobs.metrics, 'conflicts_detected_total', {client: 'edited-1', type: 'drift'}),
    1,
  )

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

test('an edit that is told of while a sync is about to end is met by another one at once', async () => {
  await using client = await leadingClient(leader, 'edited-3')
  using app = new DatabaseSync(client.file)
  app.exec(
    `create table note (id text primary key, v text); insert into note values ('a', 'source'), ('b', 'same')`,
  )
  await leader.host`update sync_metadata.client_deployments set sync_schedule = 'live'
    where client_name = ${client.name}`
  const lines: unknown[] = []
  await using jobs = await leadingJobs(leader, {
    // Nobody comes upon it by chance.
    pace: {...quickPace, marksMs: 600_000},
    log: {...silentLog, info: ({client}, message) => lines.push(`${String(client)}: ${message}`)},
  })
  await holds('the first load', async () => (await client.deployment()).generation === 1n)
  await using editor = await editorOf(leader.admin, client.name)
  await holdingUp(leader, client, async isHeld => {
    app.exec(`update note set v = 'other' where id = 'b'`)
    await isHeld()
    await editor`update edited_3.note set v = 'edited' where id = 'a'`
    jobs.notice('marks')
    await holds('it to be counted', () =>
      lines.includes(`${client.name}: rows of the target wait for a sync`),
    )
  })
  const {deploymentId} = await client.deployment()
  await holds(
    'it to be met',
    async () => (await countMarks(leader.host, [deploymentId])).get(deploymentId) === 0n,
  )
})

const holds = async (what: string, is: () => boolean | Promise<boolean>) => {
  await until(what, async () => ((await is()) ? true : undefined))
}

test('what is set about a client holds from its next sync on, for one that the leader has open too', async () => {
  await using client = await leadingClient(leader, 'edited-2')
  const change = async (sql: string) => {
    await leader.host`update sync_metadata.client_deployments set ${raw(sql)} where client_name = 'edited-2'`
  }
  const inFile = () => {
    using app = new DatabaseSync(client.file, {readOnly: true, timeout: 5_000})
    return app
      .prepare('select id, v from note order by id')
      .all()
      .map(({id, v}) => `${String(id)}=${String(v)}`)
      .join(' ')
  }
  {
    using app = new DatabaseSync(client.file)
    app.exec(
      `create table note (id text primary key, v text); insert into note values ('a', 'x'), ('b', 'x')`,
    )
  }
  await change(
    `config = '{"conflict_resolution": {"default_strategy": "source_wins"}}', sync_interval = 3600`,
  )
  await using jobs = await leadingJobs(leader)
  await endOf(leader, await askFor(leader, client))
  await using editor = await editorOf(leader.admin, client.name)
  const edit = async (sql: string) => {
    await editor`${raw(sql)}`
    jobs.notice('marks')
  }
  const target = async () => {
    const [row] = await editor<{v: string; mark: boolean}>`
      select v, _sync_edited_by is not null as mark from edited_2.note where id = 'a'`
    return row!.mark ? 'not decided' : row!.v
  }
  await edit(`update edited_2.note set v = 'one' where id = 'a'`)
  await holds('the rule of then to hold', async () => (await target()) === 'x')

  // Another rule, and another direction: the session knows of neither.
  await change(`config = '{"conflict_resolution": {"default_strategy": "target_wins"}}'`)
  await edit(`update edited_2.note set v = 'two' where id = 'a'`)
  await holds('the rule of now to hold', async () => (await target()) === 'two')
  assert.equal(inFile(), 'a=x b=x')
  await change(`direction = 'two_way'`)
  jobs.notice('cache')
  jobs.notice('marks')
  await holds('what was decided to be in the file', () => inFile() === 'a=two b=x')
  await holds(
    'the rows to be counted',
    async () => (await valueOf(jobs.metrics, 'sync_bytes_transferred_total', {direction: 'received'})) > 0,
  )
  // A person's decision is written without another edit or sync being asked for.
  await change(`config = '{"conflict_resolution": {"default_strategy": "manual"}}'`)
  jobs.notice('cache')
  await edit(`delete from edited_2.note where id = 'b'`)
  const pending = await until('the edit to wait for a person', async () => {
    const [row] = await leader.admin<{id: string}>`
      select conflict_id as id from sync_metadata.conflict_log
      where status = 'pending' and deployment_id = ${(await client.deployment()).deploymentId}`
    return row?.id
  })
  assert.equal(inFile(), 'a=two b=x')
  await using heard = await leader.host.reserve()
  const notices: string[] = []
  heard.onNotify((_, payload) => notices.push(payload))
  const [channel] = await leader.host<{name: string}>`
    select sync_metadata.channel_of(sync_metadata.my_host()) as name`
  await heard`${raw(`listen "${channel!.name}"`)}`
  await resolveConflict(leader.host, pending, {choice: 'target'}, 'test')
  await holds('nodes to hear of it', async () => {
    await heard`select 1`
    return notices.includes('marks')
  })
  jobs.notice('marks')
  await holds('the decision to be in the file', () => inFile() === 'a=two')

  await change(
    `direction = 'one_way', config = '{"conflict_resolution": {"default_strategy": "target_wins"}}'`,
  )
  jobs.notice('cache')
  await edit(`update edited_2.note set v = 'three' where id = 'a'`)
  await holds('the edit to be decided', async () => (await target()) === 'three')
  await endOf(leader, await askFor(leader, client))
  assert.equal(inFile(), 'a=two')
  assert.deepEqual(jobs.warnings, [])
})
