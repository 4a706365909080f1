import type {Pool} from '../postgres/sql.ts'
import {claimRetention, countMarks, purgeHistory, purgeTombstones} from '../state/scheduled.ts'
import type {Log} from '../telemetry/log.ts'
import type {Entry} from './job-runs.ts'

type Upkeep = {
  readonly pool: Pool
  readonly log: Log
  readonly entries: ReadonlyMap<string, Entry>
}

/** How often things are removed, and how old they are then. */
type Retention = {readonly everyMs: number; readonly tombstonesMs: number; readonly snapshotDays: number}

/** Counts the rows of each target that somebody has edited: a notice of them may have been lost. */
export async function pollMarks({pool, log, entries}: Upkeep): Promise<void> {
  const loaded = [...entries.values()].filter(({place}) => place.generation > 0n)
  const found = await countMarks(
    pool,
    loaded.map(({place}) => place.deploymentId),
  )
  for (const entry of loaded) {
    const {deploymentId, clientName: client} = entry.place
    const marks = found.get(deploymentId) ?? 0n
    if (marks !== entry.marks) log.info({client, rows: Number(marks)}, 'rows of the target were edited')
    entry.marks = marks
  }
}

/** Removes what need not be kept, when that has not been done for `everyMs`. */
export async function purge(
  {pool, log, entries}: Upkeep,
  {everyMs, tombstonesMs, snapshotDays}: Retention,
  signal: AbortSignal,
): Promise<void> {
  if (!(await claimRetention(pool, everyMs))) return
  const jobs = await purgeHistory(pool, snapshotDays)
  let tombstones = 0n
  for (const {place} of [...entries.values()]) {
    signal.throwIfAborted()
    tombstones += await purgeTombstones(pool, place.deploymentId, tombstonesMs)
  }
  log.info({jobs: Number(jobs), tombstones: Number(tombstones)}, 'what need not be kept was removed')
}
