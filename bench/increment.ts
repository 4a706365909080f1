import {DatabaseSync} from 'node:sqlite'
import type {Bench, Benchmark} from './bench.ts'
import {load, ownCopy} from './loaded.ts'
import {bounded, type Result} from './result.ts'
import {inSession} from './session.ts'

/** How many rows change and how many go. */
export type Change = {readonly changed: number; readonly deleted: number}

export const usualChange: Change = {changed: 100, deleted: 10}

export type Journal = 'delete' | 'wal'

/** 100 changed and 10 deleted rows in a file whose app commits with a rollback journal. */
export const benchIncrementRollback: Benchmark = bench =>
  increment(bench, 'delete', {name: 'increment-rollback', must: 800})

/** The same in a file in WAL mode, which the app keeps open. */
export const benchIncrementWal: Benchmark = bench =>
  increment(bench, 'wal', {name: 'increment-wal', must: 150})

async function increment(
  bench: Bench,
  journalMode: Journal,
  {name, must}: Pick<Result, 'name'> & {readonly must: number},
): Promise<Result[]> {
  const times = (await incrementTimes(bench, journalMode, [usualChange], name))[0] ?? []
  const {changed, deleted} = usualChange
  const work = `${changed} changed + ${deleted} deleted rows all over the file, in an open session`
  return [bounded({name, work, must}, times)]
}

/**
 * How long whole syncs in an open session take: capture, apply, sidecar. The app's own commit is not counted.
 *
 * @returns the times of each change, in ms.
 */
export async function incrementTimes(
  {server, file, rounds, say}: Pick<Bench, 'server' | 'file' | 'rounds' | 'say'>,
  journalMode: Journal,
  changes: readonly Change[],
  name: string,
): Promise<number[][]> {
  using copy = ownCopy(file)
  using app = new DatabaseSync(copy.path, {enableForeignKeyConstraints: false})
  app.exec(`pragma journal_mode = ${journalMode}`)
  await using loaded = await load(server, copy.path)
  const times: number[][] = []
  await inSession(loaded, copy.path, async (session, run) => {
    for (const [at, {changed, deleted}] of changes.entries()) {
      const own: number[] = []
      // The first one warms the process and is not counted.
      for (let i = 0; i <= rounds + 2; i++) {
        change(app, {changed, deleted}, i + at * 100)
        const since = performance.now()
        const {rows} = await session.run(run, run.lease.signal)
        const ms = performance.now() - since
        if (rows.upserted !== changed || rows.tombstoned !== deleted)
          throw new Error(
            `${changed} + ${deleted} rows, and the sync applied ${rows.upserted} + ${rows.tombstoned}`,
          )
        if (i > 0) own.push(ms)
        if (i > 0) say(`${name}, ${changed} rows, ${i}: ${ms.toFixed(0)} ms`)
      }
      times.push(own)
    }
  })
  return times
}

/** Changes and deletes messages in one commit, spread evenly over the table; other ones each time. */
function change(app: DatabaseSync, {changed, deleted}: Change, round: number): void {
  const {last} = app.prepare('select max(rowid) as last from message').get() as {last: number}
  if (last < changed + deleted) throw new Error(`the file has fewer than ${changed + deleted} messages`)
  const step = Math.floor(last / (changed + deleted))
  // One that an earlier round has deleted, or this one chosen, gives its turn to the next one.
  const find = app.prepare('select rowid as id from message where rowid >= ? order by rowid limit 1')
  const chosen = new Set<number>()
  for (let at = round; chosen.size < changed + deleted; at += step) {
    let id: number | undefined
    for (let from = at; id === undefined || chosen.has(id); from = (id ?? 0) + 1)
      id = (find.get(from % last) as {id: number} | undefined)?.id
    chosen.add(id)
  }
  const update = app.prepare(
    "update message set content = content || ' (edited)', updated_at = updated_at + 1 where rowid = ?",
  )
  const remove = app.prepare('delete from message where rowid = ?')
  app.exec('begin immediate')
  const every = deleted === 0 ? Infinity : Math.floor((changed + deleted) / deleted)
  let left = deleted
  for (const [i, id] of [...chosen].entries()) (i % every === 0 && left-- > 0 ? remove : update).run(id)
  app.exec('commit')
}
