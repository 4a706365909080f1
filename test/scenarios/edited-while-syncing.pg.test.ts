import assert from 'node:assert/strict'
import {setTimeout as sleep} from 'node:timers/promises'
import {DatabaseSync} from 'node:sqlite'
import {afterAll, beforeAll, test} from 'vitest'
import {raw} from '../../src/postgres/sql.ts'
import {editorOf} from '../editor.ts'
import {leadingClient, leadingHost, type LeadingHost} from '../leading-host.ts'

// People and programs edit rows in Postgres, several at once and in transactions of several rows, while the app writes
// and syncs run without pause: no edit is lost, and who has to wait for a lock waits no longer than a transaction.

let leader: LeadingHost
beforeAll(async () => {
  leader = await leadingHost('busy')
})
afterAll(() => leader[Symbol.asyncDispose]())

const rows = 60
const editors = 8
/** At least; and until there were enough edits and syncs, however slow the machine is. */
const seconds = 10
const enough = {edits: 500, syncs: 10}

for (const strategy of ['source_wins', 'target_wins'] as const)
  test(
    `no edit is lost while syncs run without pause (${strategy})`,
    {timeout: 300_000},
    async ({annotate}) => {
      const name = `busy-${strategy.replace('_', '-')}`
      const schema = name.replaceAll('-', '_')
      await using client = await leadingClient(leader, name)
      using app = new DatabaseSync(client.file)
      // The app is in this process: while it waits for its disk, nobody else here does anything.
      app.exec(`pragma synchronous = off; create table note (id integer primary key, v text, w text);
      with recursive n (n) as (select 1 union all select n + 1 from n where n < ${rows})
      insert into note select n, 'source-0;', 'w' from n`)
      const conflictConfig = {place: 'test', document: {default_strategy: strategy}}
      using session = client.session()
      await session.sync({conflictConfig})
      await using editor = await editorOf(leader.admin, name)

      const stop = new AbortController()
      const began = performance.now()
      const isGoingOn = () => {
        const forMs = performance.now() - began
        return forMs < seconds * 1_000 || ((edits < enough.edits || syncs < enough.syncs) && forMs < 100_000)
      }
      /** The last edit of each row that was committed, and how many there were. */
      const last = new Map<number, string>()
      let edits = 0
      let retried = 0
      let syncs = 0
      let token = 0
      const edit = async (own: number) => {
        while (isGoingOn()) {
          // Rows of its own, so that it knows which edit of a row was the last; in any order, so that locks cross.
          const ids = Array.from(
            {length: 3},
            () => own + editors * Math.floor((Math.random() * rows) / editors),
          ).filter(id => id >= 1 && id <= rows)
          const value = `edit-${++token};`
          try {
            await editor.begin(async tx => {
              for (const id of ids) {
                const sql = `update ${schema}.note set v = '${value}' where id = ${id} and _sync_deleted_at is null`
                await tx`${raw(sql)}`
              }
            })
            for (const id of ids) last.set(id, value)
            edits += ids.length
          } catch (error) {
            // A deadlock is told to one of those that are in it; it may be the editor.
            if ((error as {code?: string}).code !== 'SYNC_TRANSACTION_CONFLICT') throw error
            retried++
          }
          // Eight who write three rows each come to two thousand edits a second on a machine that has time.
          await sleep(10)
        }
      }
      const write = async () => {
        while (isGoingOn()) {
          const id = 1 + Math.floor(Math.random() * rows)
          app.prepare('update note set w = ? where id = ?').run(`source-${++token};`, id)
          await sleep(3)
        }
      }
      const sync = async () => {
        while (!stop.signal.aborted) {
          try {
            const result = await session.sync({conflictConfig, marks: true})
            assert.equal(result.status, 'success')
            syncs++
          } catch (error) {
            if ((error as {code?: string}).code !== 'SYNC_TRANSACTION_CONFLICT') throw error
            retried++
          }
        }
      }
      const syncing = sync()
      await Promise.all([...Array.from({length: editors}, (_, i) => edit(i + 1)), write()])
      const perSecond = Math.round(edits / ((performance.now() - began) / 1_000))
      await annotate(`${perSecond} edits a second, ${syncs} syncs, ${retried} tried again`)
      stop.abort()
      await syncing
      await session.sync({conflictConfig, marks: true})

      assert.ok(
        edits >= enough.edits && syncs >= enough.syncs,
        `${edits} edits, ${syncs} syncs, ${retried} tried again`,
      )
      const stored = await leader.admin<{id: number; v: string; mark: boolean}>`
      ${raw(`select id::int as id, v, _sync_edited_by is not null as mark from ${schema}.note`)}`
      const ledger = await leader.admin<{key: string; target: string}>`
      select record_key as key, target_data::text as target from sync_metadata.conflict_log c
      join sync_metadata.client_deployments d using (deployment_id) where d.client_name = ${name}`
      for (const {id, v, mark} of stored) {
        assert.ok(!mark)
        const edit = last.get(id)
        if (edit === undefined) continue
        const isTold = ledger.some(({key, target}) => key === `~i${id};` && target.includes(edit))
        assert.ok(isTold, `the last edit of row ${id} is not in the ledger`)
        assert.equal(v, strategy === 'target_wins' ? edit : 'source-0;')
      }
      const {differences} = await client.verify()
      assert.deepEqual(differences, [])
      assert.equal((await session.sync({conflictConfig, marks: true})).mode, 'unchanged')
    },
  )
