import assert from 'node:assert/strict'
import {setTimeout as sleep} from 'node:timers/promises'
import {DatabaseSync} from 'node:sqlite'
import {afterAll, beforeAll, test} from 'vitest'
import {raw} from '../../src/postgres/sql.ts'
import {generate, sizes} from '../../src/sample/generate.ts'
import {startWriter} from '../../src/sample/writer.ts'
import {compareFiles} from '../compare.ts'
import {editorOf} from '../editor.ts'
import {startProbe} from '../probe-writer.ts'
import {leadingClient, leadingHost, type LeadingHost} from '../leading-host.ts'

// A two_way deployment whose app writes its file without pause, in a process of its own, while people edit Postgres and
// syncs write their edits to that file: the app never meets a lock that it cannot wait for, nothing that it has committed
// is lost but to a decision that the ledger has, the file stays sound, and in the end both sides are equal.

let leader: LeadingHost
beforeAll(async () => {
  leader = await leadingHost('written')
})
afterAll(() => leader[Symbol.asyncDispose]())

/** So much has to have happened, however slow the machine is. */
const enough = {writes: 150, edits: 150, written: 60, syncs: 8}
const patienceMs = 90_000
const probes = 40

for (const journalMode of ['wal', 'delete'] as const)
  test(`an app at work and people at work, in journal mode ${journalMode}`, {timeout: 300_000}, async () => {
    const name = `written-${journalMode}`
    const schema = name.replaceAll('-', '_')
    await using client = await leadingClient(leader, name)
    generate(client.file, {...sizes.tiny, version: '0.6.31', seed: 7, journalMode})
    const app = new DatabaseSync(client.file)
    app.exec(`create table probe (id integer primary key, ours integer, theirs text, updated_at integer);
      insert into probe with recursive n (i) as (select 1 union all select i + 1 from n where i < ${probes})
      select i, 0, '', 1 from n`)
    app.close()
    await client.sync()
    await leader.host`update sync_metadata.client_deployments set direction = 'two_way' where client_name = ${name}`
    await using editor = await editorOf(leader.admin, name)
    using session = client.session()
    // The probe keeps the target, which is the worst for the app; the others are decided as they are by default.
    const conflictConfig = {place: 'test', document: {table_strategies: {probe: 'target_wins'}}}
    const sync = async () => await session.sync({conflictConfig, marks: true, accept: true})

    const began = performance.now()
    const counts = {edits: 0, written: 0, syncs: 0}
    await using writer = startWriter({file: client.file, seed: 3, rate: 60, journalMode})
    await using probe = startProbe(client.file, probes)
    const isGoingOn = () =>
      performance.now() - began < patienceMs &&
      (writer.totals().writes < enough.writes ||
        counts.edits < enough.edits ||
        counts.written < enough.written ||
        counts.syncs < enough.syncs)

    const edit = async () => {
      const now = () => `(extract(epoch from clock_timestamp())::bigint + ${counts.edits % 3})`
      const any = (table: string) =>
        `id = (select id from ${schema}.${table} where _sync_deleted_at is null order by random() limit 1)`
      while (isGoingOn()) {
        const n = counts.edits
        const sql = [
          `update ${schema}.probe set theirs = 'edit-${n};' where id = ${1 + (n % probes)}`,
          `update ${schema}.chat set title = 'edit-${n};', updated_at = ${now()} where ${any('chat')}`,
          `update ${schema}."user" set name = 'edit-${n};', updated_at = ${now()} where ${any('"user"')}`,
          `insert into ${schema}.probe (id, ours, theirs, updated_at) values (${1_000 + n}, 0, 'edit-${n};', 1)`,
          `delete from ${schema}.probe where id = ${1_000 + n - 8}`,
          `update ${schema}.message set content = 'edit-${n};', updated_at = ${now()} where ${any('message')}`,
        ][n % 6]!
        try {
          await editor`${raw(sql)}`
          counts.edits++
        } catch (error) {
          // A deadlock is told to one of those that are in it; it may be the editor.
          if ((error as {code?: string}).code !== 'SYNC_TRANSACTION_CONFLICT') throw error
        }
        await sleep(10)
      }
    }
    const stop = new AbortController()
    const syncing = (async () => {
      while (!stop.signal.aborted) {
        try {
          const {status, reason, written_to_source: wrote} = await sync()
          assert.equal(status, 'success', reason)
          counts.syncs++
          counts.written += (wrote?.inserted ?? 0) + (wrote?.updated ?? 0) + (wrote?.deleted ?? 0)
        } catch (error) {
          if ((error as {code?: string}).code !== 'SYNC_TRANSACTION_CONFLICT') throw error
        }
      }
    })()
    await edit()
    const report = await writer.stop()
    const probed = await probe.stop()
    stop.abort()
    await syncing

    assert.equal(report.locked + probed.locked, 0, 'the app met a lock for longer than it waits')
    const did = {...counts, writes: report.writes}
    for (const [what, n] of Object.entries(enough))
      assert.ok(
        did[what as keyof typeof did] >= n,
        `only ${JSON.stringify(did)} within ${patienceMs / 1_000} s`,
      )

    // Nobody writes any more: it comes to rest, and then a sync does nothing.
    for (let n = 0; (await sync()).mode !== 'unchanged'; n++) assert.ok(n < 10, 'it does not come to rest')
    const before = await client.written()
    assert.equal((await sync()).mode, 'unchanged')
    assert.equal(await client.written(), before)

    using file = new DatabaseSync(client.file, {readOnly: true})
    assert.deepEqual({...file.prepare('pragma integrity_check').get()}, {integrity_check: 'ok'})
    const ledger = await leader.admin<{
      table: string
      key: string
      source: string
      status: string
      standing: boolean
    }>`
      select table_name as table, record_key as key, source_data::text as source, c.status, is_standing as standing
      from sync_metadata.conflict_log c join sync_metadata.client_deployments d using (deployment_id)
      where d.client_name = ${name}`
    const standing = ledger.filter(entry => entry.standing)
    assert.deepEqual(
      standing.filter(({status}) => status !== 'pending'),
      [],
    )
    const {differences, accepted} = await client.verify()
    assert.deepEqual({differences, accepted}, {differences: [], accepted: standing.length})
    assert.deepEqual(compareFiles(client.file, await client.restore({asSource: true})), [])
    if (standing.length === 0) assert.deepEqual(compareFiles(client.file, await client.restore()), [])

    // What the app committed last stands, or the ledger says what was kept in its place.
    for (const [id, ours] of probed.last) {
      const row = file.prepare('select ours from probe where id = ?').get(id)
      if (row?.['ours'] === ours) continue
      const isTold = ledger.some(
        entry =>
          entry.table === 'probe' &&
          entry.key === `~i${id};` &&
          (JSON.parse(entry.source) as {ours?: number}).ours === ours,
      )
      assert.ok(isTold, `the app's last write to row ${id} is gone: ${ours} is now ${String(row?.['ours'])}`)
    }
  })
