import type {ConflictRules} from '../config/config.ts'
import {ConflictRulesError, rulesOf} from '../conflict/rules.ts'
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
type Retention = {
  readonly everyMs: number
  readonly tombstonesMs: number
  /** Of clients without rules of their own. */
  readonly conflictConfig: ConflictRules | undefined
}

/**
 * Counts the rows of each target that somebody has edited, or that wait to be written to the source: a notice of them may
 * have been lost.
 */
export async function pollMarks({pool, log, entries}: Upkeep): Promise<void> {
  const loaded = [...entries.values()].filter(({place}) => place.generation > 0n)
  const found = await countMarks(
    pool,
    loaded.map(({place}) => place.deploymentId),
  )
  for (const entry of loaded) {
    const {deploymentId, clientName: client} = entry.place
    const marks = found.get(deploymentId) ?? 0n
    if (marks !== entry.marks) log.info({client, rows: Number(marks)}, 'rows of the target wait for a sync')
    entry.marks = marks
    entry.countedAt = performance.now()
  }
}

const FOR_EVER_DAYS = 1_000_000

/** Removes what need not be kept, when that has not been done for `everyMs`. */
export async function purge(
  {pool, log, entries}: Upkeep,
  {everyMs, tombstonesMs, conflictConfig}: Retention,
  signal: AbortSignal,
): Promise<void> {
  if (!(await claimRetention(pool, everyMs))) return
  const shared = rulesOf(conflictConfig).resolutionLog.retentionDays
  const own = new Map<string, number>()
  for (const {place} of entries.values()) {
    try {
      const {deploymentId, clientName: name, config} = place
      const {retentionDays} = rulesOf(conflictConfig, {name, config}).resolutionLog
      if (retentionDays !== shared) own.set(deploymentId, retentionDays)
    } catch (error) {
      if (!(error instanceof ConflictRulesError)) throw error
      // Its syncs fail by it and say so. What it would keep is not known, so that nothing of it goes.
      own.set(place.deploymentId, FOR_EVER_DAYS)
    }
  }
  const jobs = await purgeHistory(pool, shared, own)
  let tombstones = 0n
  for (const {place} of [...entries.values()]) {
    signal.throwIfAborted()
    tombstones += await purgeTombstones(pool, place.deploymentId, tombstonesMs)
  }
  log.info({jobs: Number(jobs), tombstones: Number(tombstones)}, 'what need not be kept was removed')
}
