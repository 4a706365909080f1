import {quarantine} from '../state/deployments.ts'
import type {Held} from './held.ts'
import type {Outcome, SourceWrites, SyncResult, SyncRun} from './sync.ts'
import {writeBack} from './write-back.ts'

/**
 * Goes on where a run has ended, for a deployment that is two_way: writes what was decided to the source, and captures
 * that, round by round, so that both sides are one when it returns.
 *
 * What cannot be written now is told in the result: the cut itself has been applied.
 *
 * @param again one more run.
 */
export async function syncBack(
  run: SyncRun,
  held: Held,
  first: Outcome,
  again: (run: SyncRun) => Promise<Outcome>,
  signal: AbortSignal,
): Promise<Outcome> {
  let outcome = first
  for (let leftBefore = Infinity; ;) {
    const {known, result} = outcome
    const source = held.openSource
    if (known?.deployment.direction !== 'two_way' || source === undefined) return outcome
    const {deployment, schema} = known
    const wrote = await writeBack({...run, deployment, source, sidecar: held.sidecar, schema}, signal)
    if (wrote === undefined) return outcome
    const {written, tally, heldFor, reason, left} = wrote
    if (heldFor !== undefined) {
      await quarantine(run.pool, deployment.deploymentId, heldFor)
      return {result: {...result, status: 'quarantined', reason: heldFor}}
    }
    const conflicts = {
      detected: result.conflicts.detected + tally.detected,
      resolved: result.conflicts.resolved + tally.resolved,
      pending: result.conflicts.pending + tally.pending,
    }
    outcome = unsettled({
      known: {...known, deployment: {...deployment, pendingConflicts: conflicts.pending}},
      result: {
        ...withWrites(result, {...wrote, ...(reason === undefined ? {} : {reason})}),
        conflicts,
        decisions: [...(result.decisions ?? []), ...tally.decisions],
        details: result.details && {
          ...result.details,
          written: [...(result.details.written ?? []), ...wrote.tables],
          writtenBytes: (result.details.writtenBytes ?? 0) + wrote.bytes,
        },
        lock: {
          max_hold_ms: Math.max(result.lock.max_hold_ms, Math.ceil(wrote.maxHoldMs * 10) / 10),
          busy_retries: result.lock.busy_retries + wrote.busyRetries,
        },
      },
    })
    if (written.size === 0) return outcome
    held.noteWritten(written)
    const isApplied = result.generation > run.deployment.generation
    const {jobId, ...rest} = run
    const next = await again({
      ...rest,
      // The job that the first cut has ended is not another cut's.
      ...(jobId === undefined || isApplied ? {} : {jobId}),
      deployment: {...deployment, pendingConflicts: conflicts.pending, hasUnwritten: true},
      knownSchema: schema,
      full: false,
    })
    outcome = {...next, result: together(outcome.result, next.result)}
    // Whoever gets nowhere stops: the app may be faster than we are.
    if (left >= leftBefore) return unsettled(outcome)
    leftBefore = left
  }
}

const nothing: SourceWrites = {inserted: 0, updated: 0, deleted: 0, refused: 0, left: 0}

/** The next run has to look again. */
function unsettled({result, known}: Outcome): Outcome {
  return {
    result,
    ...(known && {known: {...known, deployment: {...known.deployment, hasUnwritten: true}}}),
  }
}

function withWrites(result: SyncResult, wrote: SourceWrites): SyncResult {
  const before = result.written_to_source ?? nothing
  return {
    ...result,
    written_to_source: {
      inserted: before.inserted + wrote.inserted,
      updated: before.updated + wrote.updated,
      deleted: before.deleted + wrote.deleted,
      refused: before.refused + wrote.refused,
      left: wrote.left,
      ...(wrote.reason === undefined ? {} : {reason: wrote.reason}),
    },
  }
}

/** Two runs of one sync, told as one. */
function together(first: SyncResult, second: SyncResult): SyncResult {
  const changes = [...(first.details?.changes ?? []), ...(second.details?.changes ?? [])]
  return {
    ...second,
    mode: first.mode === 'unchanged' ? second.mode : first.mode,
    consistent: first.consistent && second.consistent,
    rows: {
      upserted: first.rows.upserted + second.rows.upserted,
      tombstoned: first.rows.tombstoned + second.rows.tombstoned,
      unchanged: Math.max(0, second.rows.unchanged - first.rows.upserted),
      quarantined: second.rows.quarantined,
    },
    conflicts: {
      detected: first.conflicts.detected + second.conflicts.detected,
      resolved: first.conflicts.resolved + second.conflicts.resolved,
      pending: second.conflicts.pending,
    },
    decisions: [...(first.decisions ?? []), ...(second.decisions ?? [])],
    written_to_source: first.written_to_source,
    bytes: first.bytes + second.bytes,
    audit: first.audit ?? second.audit,
    details: {
      hasRead: true,
      changes,
      refused: second.details?.refused ?? [],
      written: first.details?.written,
      writtenBytes: first.details?.writtenBytes ?? 0,
    },
    duration_ms: first.duration_ms + second.duration_ms,
    lock: {
      max_hold_ms: Math.max(first.lock.max_hold_ms, second.lock.max_hold_ms),
      busy_retries: first.lock.busy_retries + second.lock.busy_retries,
    },
  }
}
