import {DatabaseSync} from 'node:sqlite'
import type {Bench, Benchmark} from './bench.ts'
import {load, ownCopy} from './loaded.ts'
import {bounded, type Result} from './result.ts'
import {inSession} from './session.ts'

const CHANGED = 100
const DELETED = 10

/** 100 changed and 10 deleted rows in a file whose app commits with a rollback journal. */
export const benchIncrementRollback: Benchmark = bench =>
  increment(bench, 'delete', {name: 'increment-rollback', must: 800})

/** The same in a file in WAL mode, which the app keeps open. */
export const benchIncrementWal: Benchmark = bench =>
  increment(bench, 'wal', {name: 'increment-wal', must: 150})

/** A whole sync in an open session: capture, apply, sidecar. The app's own commit is not counted. */
async function increment(
  {server, file, rounds, say}: Bench,
  journalMode: 'delete' | 'wal',
  {name, must}: Pick<Result, 'name'> & {readonly must: number},
): Promise<Result[]> {
  using copy = ownCopy(file)
  using app = new DatabaseSync(copy.path, {enableForeignKeyConstraints: false})
  app.exec(`pragma journal_mode = ${journalMode}`)
  await using loaded = await load(server, copy.path)
  const times: number[] = []
  await inSession(loaded, copy.path, async (session, run) => {
    // The first one warms the process and is not counted.
    for (let i = 0; i <= rounds + 2; i++) {
      change(app, i)
      const since = performance.now()
      const {rows} = await session.run(run, run.lease.signal)
      const ms = performance.now() - since
      if (rows.upserted !== CHANGED || rows.tombstoned !== DELETED)
        throw new Error(
          `${CHANGED} + ${DELETED} rows, and the sync applied ${rows.upserted} + ${rows.tombstoned}`,
        )
      if (i === 0) continue
      times.push(ms)
      say(`${name} ${i}: ${ms.toFixed(0)} ms`)
    }
  })
  const work = `${CHANGED} changed + ${DELETED} deleted rows all over the file, in an open session`
  return [bounded({name, work, must}, times)]
}

/** Changes and deletes messages in one commit, spread evenly over the table; other ones each time. */
function change(app: DatabaseSync, round: number): void {
  const {last} = app.prepare('select max(rowid) as last from message').get() as {last: number}
  const step = Math.floor(last / (CHANGED + DELETED))
  // One that an earlier round has deleted gives its turn to the next one.
  const find = app.prepare('select rowid as id from message where rowid >= ? order by rowid limit 1')
  const chosen = Array.from(
    {length: CHANGED + DELETED},
    (_, i) => find.get(i * step + round)!['id'] as number,
  )
  const update = app.prepare(
    "update message set content = content || ' (edited)', updated_at = updated_at + 1 where rowid = ?",
  )
  const remove = app.prepare('delete from message where rowid = ?')
  app.exec('begin immediate')
  for (const [i, id] of chosen.entries()) (i % (CHANGED / DELETED + 1) === 0 ? remove : update).run(id)
  app.exec('commit')
}
