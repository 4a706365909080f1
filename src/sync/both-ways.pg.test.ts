import assert from 'node:assert/strict'
import {spawn} from 'node:child_process'
import {once} from 'node:events'
import {rmSync, statSync, writeFileSync} from 'node:fs'
import {join} from 'node:path'
import {DatabaseSync} from 'node:sqlite'
import {afterAll, beforeAll, describe, test} from 'vitest'
import {bothWays, keepsTarget, notes} from '../../test/both-ways.ts'
import {editorOf} from '../../test/editor.ts'
import {leadingClient, leadingHost, tapped, type LeadingHost} from '../../test/leading-host.ts'
import {watchOpenFiles} from '../../test/open-files.ts'
import {until} from '../../test/until.ts'
import {FencedOutError} from '../postgres/refusals.ts'
import {raw} from '../postgres/sql.ts'
import {fingerprint} from '../source/open.ts'
import {undoConflict} from './resolve.ts'

// Deployments that are two_way: what was decided in Postgres reaches the live file, whatever the app does meanwhile.

let leader: LeadingHost
beforeAll(async () => {
  leader = await leadingHost('both-ways')
})
afterAll(() => leader[Symbol.asyncDispose]())

const stage = async (ddl: string, mode?: 'wal' | 'delete') => await bothWays(leader, ddl, mode)

describe.each(['delete', 'wal'] as const)('in journal mode %s', mode => {
  test('what somebody changes, inserts and deletes in Postgres is in the file after one sync', async () => {
    await using s = await stage(notes, mode)
    await s.edit(`update $.note set v = 'edited' where id = 'a'`)
    await s.edit(`delete from $.note where id = 'b'`)
    await s.edit(`insert into $.note values ('d', 'new', 1700000100)`)
    const result = await s.client.sync()
    assert.deepEqual(result.written_to_source, {inserted: 1, updated: 1, deleted: 1, refused: 0, left: 0})
    assert.deepEqual(s.rows('select id, v from note order by id'), [
      {id: 'a', v: 'edited'},
      {id: 'c', v: 'three'},
      {id: 'd', v: 'new'},
    ])
    assert.equal(result.status, 'success')
    await s.equal()
    // It is over: nothing waits, nothing differs, and the next sync does nothing.
    const before = await s.client.written()
    const again = await s.client.sync({marks: true})
    assert.deepEqual([again.mode, again.written_to_source], ['unchanged', undefined])
    assert.equal(await s.client.written(), before)
  })
})

test('the file is copied once before anything is written to it, for this user alone', async () => {
  await using s = await stage(notes, 'wal')
  const copies = async () => {
    const [row] = await leader.admin<{copy: {file: string; bytes: number} | null}>`
      select source_backup as copy from sync_metadata.client_deployments where client_name = ${s.client.name}`
    return row?.copy
  }
  // Nothing is to be written: nothing is copied.
  s.app.exec(`update note set v = 'app' where id = 'c'`)
  await s.client.sync()
  assert.equal(await copies(), null)

  const before = join(leader.folder, 'before.db')
  s.app.exec(`vacuum into '${before}'`)
  await s.edit(`update $.note set v = 'edited' where id = 'a'`)
  await s.client.sync()
  const copy = await copies()
  assert.ok(copy)
  assert.equal(statSync(copy.file).mode & 0o777, 0o600)
  assert.equal(statSync(copy.file).size, copy.bytes)
  using kept = new DatabaseSync(copy.file, {readOnly: true})
  using was = new DatabaseSync(before, {readOnly: true})
  const all = 'select rowid, * from note order by rowid'
  assert.deepEqual(kept.prepare(all).all(), was.prepare(all).all())
  const audited = await leader.admin<{details: {file: string}}>`
    select details from sync_metadata.audit_log where action = 'client.copied' and client_name = ${s.client.name}`
  assert.deepEqual(
    audited.map(({details}) => details.file),
    [copy.file],
  )

  await s.edit(`update $.note set v = 'edited again' where id = 'a'`)
  await s.client.sync()
  assert.deepEqual(await copies(), copy)
  // Switched on anew, the file is copied anew.
  await s.direct('one_way')
  await s.direct('two_way')
  assert.equal(await copies(), null)
})

test('without a copy nothing is written, and what waits goes on waiting', async () => {
  await using s = await stage(notes)
  const folder = join(leader.stateDir, 'backups')
  rmSync(folder, {recursive: true, force: true})
  writeFileSync(folder, 'no folder')
  try {
    await s.edit(`update $.note set v = 'edited' where id = 'a'`)
    const {written_to_source: wrote, status} = await s.client.sync()
    assert.equal(status, 'success')
    assert.deepEqual([wrote?.updated, wrote?.left], [0, 1])
    assert.match(wrote?.reason ?? '', /backups/)
    assert.deepEqual(s.rows(`select v from note where id = 'a'`), [{v: 'one'}])
    // The file is as the last cut has left it, and known to be: only what waits says that there is something to do.
    await until(() => fingerprint(s.client.file) !== undefined)
    for (let n = 0; n < 2; n++) assert.equal((await s.client.sync()).written_to_source?.left, 1)
  } finally {
    rmSync(folder, {force: true})
  }
  // No mark says so any more: the queue itself does.
  const {written_to_source: wrote} = await s.client.sync()
  assert.deepEqual([wrote?.updated, wrote?.left], [1, 0])
  await s.equal()
})

/** The statement that reads what is to be written, right before it is. */
const READ_TO_WRITE = 'w.conflict'

describe('while rows are on their way to the file', () => {
  test('what the app does to one of them first stays, and is decided about anew', async () => {
    await using s = await stage(notes, 'wal')
    await s.edit(`update $.note set v = 'edited', updated_at = 1700000100 where id in ('a', 'b')`)
    let times = 0
    const pool = tapped(leader.host, READ_TO_WRITE, () => {
      if (times++ === 0) s.app.exec(`update note set v = 'app', updated_at = 1700000200 where id = 'a'`)
    })
    const result = await s.client.sync({pool})
    assert.deepEqual(s.rows('select id, v from note order by id'), [
      {id: 'a', v: 'app'},
      {id: 'b', v: 'edited'},
      {id: 'c', v: 'three'},
    ])
    // The app's is the newer one, and the edit is in the ledger.
    assert.equal(result.written_to_source?.updated, 1)
    await s.equal()
    const types = await leader.admin<{type: string; outcome: string}>`
      select conflict_type as type, outcome from sync_metadata.conflict_log
      where record_key = 'a' and deployment_id = ${(await s.client.deployment()).deploymentId} order by detected_at`
    assert.deepEqual(types, [
      {type: 'drift', outcome: 'target'},
      {type: 'update_update', outcome: 'source'},
    ])
  })

  test('a row that the app deletes, or makes, first is not made again, or overwritten', async () => {
    await using s = await stage(notes)
    await s.edit(`update $.note set v = 'edited' where id = 'a'`)
    await s.edit(`insert into $.note values ('n', 'edited', 1700000100)`)
    let times = 0
    const pool = tapped(leader.host, READ_TO_WRITE, () => {
      if (times++ === 0)
        s.app.exec(`delete from note where id = 'a'; insert into note values ('n', 'app', 1700000200)`)
    })
    await s.client.sync({pool})
    // Nothing was written: the app's changes are the next sync's.
    await s.client.sync()
    assert.deepEqual(s.rows(`select id, v from note where id in ('a', 'n')`), [{id: 'n', v: 'app'}])
    await s.equal()
  })

  for (const [what, change, left] of [
    ['changes it once more', `update note set v = 'app' where id = 'a'`, 'app'],
    ['makes it again what it was', `update note set v = 'one' where id = 'a'`, 'one'],
    ['deletes it', `delete from note where id = 'a'`, undefined],
  ] as const)
    test(`what was written is the app’s then: it ${what}, under a rule that always keeps the target`, async () => {
      const more = Array.from({length: 60}, (_, i) => `('b${i}', 'x', 1700000000)`).join(', ')
      await using s = await stage(`${notes}; insert into note values ${more}`, 'wal')
      await s.edit(`update $.note set v = 'edited' where id <> 'c'`)
      let batches = 0
      const pool = tapped(leader.host, READ_TO_WRITE, () => {
        if (++batches !== 2) return
        assert.deepEqual(s.rows(`select v from note where id = 'a'`), [{v: 'edited'}])
        s.app.exec(change)
      })
      const result = await s.client.sync({pool, conflictConfig: keepsTarget})
      assert.equal(result.written_to_source?.updated, 62)
      assert.deepEqual(s.rows(`select v from note where id = 'a'`), left === undefined ? [] : [{v: left}])
      await s.equal()
      const [entries] = await leader.admin<{n: number}>`
        select count(*)::int as n from sync_metadata.conflict_log
        where record_key = 'a' and deployment_id = ${(await s.client.deployment()).deploymentId}`
      assert.equal(entries!.n, 1)
    })

  test('what is edited once more is decided about once more', async () => {
    await using s = await stage(notes)
    await s.edit(`update $.note set v = 'edited' where id = 'a'`)
    let times = 0
    const pool = tapped(leader.host, READ_TO_WRITE, async () => {
      if (times++ === 0) await s.edit(`update $.note set v = 'edited again' where id = 'a'`)
    })
    await s.client.sync({pool})
    assert.deepEqual(s.rows(`select v from note where id = 'a'`), [{v: 'one'}])
    await s.client.sync({marks: true})
    assert.deepEqual(s.rows(`select v from note where id = 'a'`), [{v: 'edited again'}])
    await s.equal()
    const decided = await leader.admin<{v: string}>`
      select target_data ->> 'v' as v from sync_metadata.conflict_log
      where deployment_id = ${(await s.client.deployment()).deploymentId} order by detected_at`
    assert.deepEqual(decided, [{v: 'edited'}, {v: 'edited again'}])
  })

  test('a change of the app’s schema comes first', async () => {
    await using s = await stage(notes)
    await s.edit(`update $.note set v = 'edited' where id = 'a'`)
    let times = 0
    const pool = tapped(leader.host, READ_TO_WRITE, () => {
      if (times++ === 0) s.app.exec('alter table note add column more text')
    })
    const {status, written_to_source: wrote} = await s.client.sync({pool})
    assert.deepEqual([status, wrote?.updated, wrote?.left], ['success', 0, 1])
    assert.match(wrote?.reason ?? '', /schema/)
    assert.deepEqual(s.rows(`select v from note where id = 'a'`), [{v: 'one'}])
    await s.client.sync()
    assert.deepEqual(s.rows(`select v from note where id = 'a'`), [{v: 'edited'}])
    await s.equal()
  })

  test('switched off, not one row more is written', async () => {
    await using s = await stage(notes)
    await s.edit(`update $.note set v = 'edited' where id = 'a'`)
    const pool = tapped(leader.host, 'source_backup', () => s.direct('one_way'))
    const {written_to_source: wrote} = await s.client.sync({pool})
    assert.equal(wrote, undefined)
    assert.deepEqual(s.rows(`select v from note where id = 'a'`), [{v: 'one'}])
    const {accepted} = await s.client.verify()
    assert.equal(accepted, 1)
    // Switched on again, what had waited is written.
    await s.direct('two_way')
    await s.client.sync()
    await s.equal()
  })
})

describe('the lease', () => {
  const many = `create table t (id integer primary key, v text);
    insert into t with recursive n (i) as (select 1 union all select i + 1 from n where i < 200) select i, 'x' from n`

  test('is looked at before each transaction: once it is lost, not one row more is written', async () => {
    await using s = await stage(many)
    await s.edit(`update $.t set v = 'edited'`)
    const over = new AbortController()
    let batches = 0
    const pool = tapped(leader.host, READ_TO_WRITE, () => {
      if (++batches === 3) over.abort(new FencedOutError('another node leads'))
    })
    const lease = {...leader.lease, signal: over.signal}
    await assert.rejects(s.client.sync({pool, lease, conflictConfig: keepsTarget}), {code: 'SYNC_FENCED_OUT'})
    assert.deepEqual(s.rows(`select count(*) as n from t where v = 'edited'`), [{n: 100}])
    // Whoever leads next goes on with the rest.
    const {written_to_source: wrote} = await s.client.sync({conflictConfig: keepsTarget})
    assert.deepEqual([wrote?.updated, wrote?.left], [100, 0])
    await s.equal()
  })

  test('that is about to end begins nothing: what waits is left', async () => {
    await using s = await stage(notes)
    await s.edit(`update $.note set v = 'edited' where id = 'a'`)
    const lease = {...leader.lease, endsAt: () => performance.now() + 100}
    const {written_to_source: wrote} = await s.client.sync({lease})
    assert.deepEqual([wrote?.updated, wrote?.left, wrote?.reason], [0, 1, 'the lease is about to end'])
    assert.deepEqual(s.rows(`select v from note where id = 'a'`), [{v: 'one'}])
    await s.client.sync()
    await s.equal()
  })
})

describe.each(['delete', 'wal'] as const)('the app’s locks, in journal mode %s', mode => {
  test('are waited for, and what is kept locked for long is left for later', async () => {
    await using s = await stage(notes, mode)
    await s.edit(`update $.note set v = 'edited' where id = 'a'`)
    const pool = tapped(leader.host, READ_TO_WRITE, () => {
      if (!s.app.isTransaction) s.app.exec(`begin immediate; update note set v = 'app' where id = 'c'`)
    })
    const {written_to_source: wrote, lock} = await s.client.sync({pool})
    assert.deepEqual([wrote?.updated, wrote?.left, wrote?.reason], [0, 1, 'the app keeps its file locked'])
    assert.ok(lock.busy_retries > 0)
    s.app.exec('commit')
    const then = await s.client.sync()
    assert.deepEqual([then.written_to_source?.updated, then.written_to_source?.left], [1, 0])
    assert.deepEqual(s.rows('select v from note order by id'), [{v: 'edited'}, {v: 'two'}, {v: 'app'}])
    await s.equal()
  })
})

test('what a crashed app has left is the app’s to roll back, not ours', async () => {
  const rows = Array.from({length: 300}, (_, i) => `('n${i}', hex(randomblob(500)), 1)`).join(', ')
  await using s = await stage(`${notes}; insert into note values ${rows}`)
  await s.edit(`update $.note set v = 'edited' where id = 'a'`)
  let times = 0
  const pool = tapped(leader.host, READ_TO_WRITE, async () => {
    if (times++ > 0) return
    const script = `
      const db = new (require('node:sqlite').DatabaseSync)(${JSON.stringify(s.client.file)})
      db.exec("pragma cache_size = 5; pragma cache_spill = 1; begin; update note set v = hex(randomblob(2000))")
      process.kill(process.pid, 'SIGKILL')`
    await once(spawn(process.execPath, ['-e', script], {stdio: 'ignore'}), 'close')
  })
  const journal = `${s.client.file}-journal`
  const {written_to_source: wrote} = await s.client.sync({pool})
  assert.deepEqual([wrote?.updated, wrote?.left], [0, 1])
  assert.ok(statSync(journal).size > 0)
  await assert.rejects(s.client.sync(), {code: 'SYNC_SOURCE_BUSY'})
  // The app starts again.
  assert.deepEqual(s.rows(`select v from note where id = 'a'`), [{v: 'one'}])
  await s.client.sync()
  assert.deepEqual(s.rows(`select v from note where id = 'a'`), [{v: 'edited'}])
  await s.equal()
})

describe('deletes that look like an accident', () => {
  const many = `create table t (id integer primary key, v text); create table other (id integer primary key, v text);
    insert into t with recursive n (i) as (select 1 union all select i + 1 from n where i < 300) select i, 'x' from n;
    insert into other values (1, 'x')`

  test('are held back until a person has confirmed them', async () => {
    await using s = await stage(many)
    await s.edit(`delete from $.t where id <= 200`)
    for (let n = 0; n < 2; n++) {
      const held = await s.client.sync({conflictConfig: keepsTarget})
      assert.equal(held.status, 'quarantined')
      assert.match(held.reason ?? '', /deleted in Postgres.*table t lost 200 of 300 rows/)
      assert.deepEqual(s.rows('select count(*) as n from t'), [{n: 300}])
    }
    assert.equal((await s.client.deployment()).status, 'quarantined')
    const accepted = await s.client.sync({conflictConfig: keepsTarget, accept: true})
    assert.deepEqual([accepted.status, accepted.written_to_source?.deleted], ['success', 200])
    assert.deepEqual(s.rows('select count(*) as n from t'), [{n: 100}])
    assert.equal((await s.client.deployment()).status, 'active')
    await s.equal()
  })

  test('are let go when somebody brings the rows back', async () => {
    await using s = await stage(many)
    await s.edit(`delete from $.t where id <= 200`)
    await s.client.sync({conflictConfig: keepsTarget})
    await s.edit(`insert into $.t select i, 'x' from generate_series(1, 200) i`)
    const then = await s.client.sync({conflictConfig: keepsTarget})
    assert.equal(then.status, 'success')
    assert.deepEqual(s.rows('select count(*) as n from t'), [{n: 300}])
    await s.equal()
  })
})

test('thousands of rows are written in rounds', async () => {
  await using s = await stage(`create table t (id integer primary key, v text);
    insert into t with recursive n (i) as (select 1 union all select i + 1 from n where i < 5200) select i, 'x' from n`)
  await s.edit(`update $.t set v = 'edited ' || id`)
  const {written_to_source: wrote} = await s.client.sync({conflictConfig: keepsTarget})
  assert.deepEqual(wrote, {inserted: 0, updated: 5_200, deleted: 0, refused: 0, left: 0})
  await s.equal()
})

test('a decision that was written to the file can be taken back, and that is written too', async () => {
  await using s = await stage(notes)
  await s.edit(`update $.note set v = 'edited' where id = 'a'`)
  await s.client.sync()
  assert.deepEqual(s.rows(`select v from note where id = 'a'`), [{v: 'edited'}])
  const [entry] = await leader.admin<{id: string}>`
    select conflict_id as id from sync_metadata.conflict_log
    where deployment_id = ${(await s.client.deployment()).deploymentId}`
  await undoConflict(leader.host, entry!.id, 'test')
  await s.client.sync()
  assert.deepEqual(s.rows(`select v from note where id = 'a'`), [{v: 'one'}])
  await s.equal()
})

test('a dry run says what would be written, by the rules, and writes nothing on either side', async () => {
  await using s = await stage(notes)
  await s.edit(`update $.note set v = 'edited' where id = 'a'`)
  await s.edit(`delete from $.note where id = 'b'`)
  await s.edit(`insert into $.note values ('d', 'new', 1700000100)`)
  s.app.exec(`update note set v = 'app', updated_at = 1700000300 where id = 'c'`)
  const before = await s.client.written()
  const dry = await s.client.sync({dryRun: true})
  const {tables, ...counts} = dry.written_to_source!
  assert.deepEqual(counts, {inserted: 1, updated: 1, deleted: 1, refused: 0, left: 0})
  assert.deepEqual(tables, [
    {
      table: 'note',
      inserted: 1,
      updated: 1,
      deleted: 1,
      keys: {insert: ['d'], update: ['a'], delete: ['b']},
    },
  ])
  assert.equal(dry.rows.upserted, 1)
  assert.equal(await s.client.written(), before)
  assert.deepEqual(s.rows('select v from note order by id'), [{v: 'one'}, {v: 'two'}, {v: 'app'}])
  const {written_to_source: wrote} = await s.client.sync()
  assert.deepEqual(wrote, counts)
  await s.equal()
})

// By what the kernel says of this process's open files.
describe.runIf(process.platform === 'linux').each(['delete', 'wal'] as const)(
  'a deployment that is one_way, in journal mode %s,',
  mode => {
    test('never has its file open for writing; one that is two_way has it when there is something to write', async () => {
      const name = `one-way-${mode}`
      const schema = name.replaceAll('-', '_')
      await using client = await leadingClient(leader, name)
      const atWork = (sql: string) => {
        using app = new DatabaseSync(client.file)
        app.exec(`pragma journal_mode = ${mode}; ${sql}`)
      }
      const direct = async (direction: string) => {
        await leader.host`update sync_metadata.client_deployments set direction = ${direction} where client_name = ${name}`
      }
      atWork(notes)
      await using editor = await editorOf(leader.admin, name)
      const edit = async (sql: string) => {
        await editor`${raw(sql.replaceAll('$', schema))}`
      }
      const watched = [client.file, `${client.file}-journal`]
      const options = {conflictConfig: keepsTarget}
      const writable = async (work: () => Promise<unknown>, looks = 20) => {
        await using files = await watchOpenFiles(watched)
        await work()
        await until(async () => (await files.seen()).looks >= looks)
        return (await files.seen()).writable
      }
      const everything = async () => {
        await client.sync(options)
        await client.sync({...options, full: true})
        await client.sync({...options, dryRun: true})
        await client.verify()
      }
      assert.deepEqual(await writable(everything), [])
      atWork(`update note set v = 'app' where id = 'c'`)
      await edit(`update $.note set v = 'edited' where id = 'a'; delete from $.note where id = 'b'`)
      assert.deepEqual(await writable(everything), [])
      // Two_way with nothing to write, and a dry run with something.
      await direct('two_way')
      assert.deepEqual(await writable(() => client.sync({...options, dryRun: true})), [])
      await direct('one_way')
      assert.deepEqual(await writable(() => client.sync(options)), [])

      await direct('two_way')
      // The lease is too short to write by: the file stays open, as long as it takes to be seen.
      let askedAt: number | undefined
      const endsAt = () => {
        askedAt ??= performance.now()
        return performance.now() - askedAt < 1_000 ? 0 : Infinity
      }
      const lease = {...leader.lease, endsAt}
      const seen = await writable(async () => {
        const {written_to_source: wrote} = await client.sync({...options, lease})
        assert.deepEqual([wrote?.updated, wrote?.deleted, wrote?.left], [1, 1, 0])
      })
      assert.ok(seen.includes(client.file))
      assert.deepEqual(await writable(() => client.sync({...options, full: true})), [])
    })
  },
)
