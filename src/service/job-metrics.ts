import type {SyncResult} from '../sync/sync.ts'
import type {Metrics} from '../telemetry/metrics.ts'

/** How a run ended. */
export type RunStatus = 'success' | 'unchanged' | 'quarantined' | 'failed' | 'cancelled'

/** @returns how a sync ended that did not fail. */
export function statusOf({status, mode}: SyncResult): RunStatus {
  return status === 'success' && mode === 'unchanged' ? 'unchanged' : status
}

/** Counts one sync with a result. */
export function countSync(
  metrics: Metrics,
  {result, ms, isApplied}: {readonly result: SyncResult; readonly ms: number; readonly isApplied: boolean},
): void {
  const {client, bytes, lock, conflicts, details, decisions} = result
  const status = statusOf(result)
  metrics.syncOperations.inc({client, status})
  metrics.conflictsUnresolved.set({client}, conflicts.pending)
  if (status === 'success' || status === 'unchanged') metrics.lastSync.set({client}, Date.now() / 1_000)
  countLock(metrics, client, lock, details?.hasRead)
  if (status === 'unchanged') return
  metrics.syncDuration.observe({client}, ms / 1_000)
  for (const {table, code, rows} of details?.refused ?? [])
    metrics.syncRowsFailed.inc({client, table, error_type: code}, rows)
  for (const {table, type, strategy, status, count, ms} of decisions ?? []) {
    metrics.conflictsDetected.inc({client, table, type}, count)
    if (status === 'resolved') metrics.conflictsResolved.inc({client, strategy}, count)
    metrics.conflictResolution.observe({strategy}, ms / count / 1_000)
  }
  for (const {table, inserted, updated, deleted} of details?.written ?? [])
    metrics.syncRows.inc({client, table}, inserted + updated + deleted)
  if (details?.writtenBytes) metrics.syncBytes.inc({client, direction: 'received'}, details.writtenBytes)
  if (!isApplied) return
  metrics.syncBytes.inc({client, direction: 'sent'}, bytes)
  for (const {table, upserted, tombstoned} of details?.changes ?? [])
    metrics.syncRows.inc({client, table}, upserted + tombstoned)
}

/** Counts what a sync tells of its locks, whatever came of it. */
export function countLock(metrics: Metrics, client: string, lock: SyncResult['lock'], hasRead = false): void {
  // Behind the gate nothing was read: the last lock is still the last one. In WAL mode a read holds none.
  if (hasRead || lock.max_hold_ms > 0)
    // It is in tenths of a millisecond; divided in one step it stays short.
    metrics.lockHold.set({client}, Math.round(lock.max_hold_ms * 10) / 10_000)
  metrics.lockBusy.inc({client}, lock.busy_retries)
}

/** Shows nothing more of a client that is gone. Its counters stay: they are of what this process has done, and stand still. */
export function forgetClient(metrics: Metrics, client: string): void {
  for (const gauge of clientGauges(metrics)) gauge.remove({client})
}

/** A standby knows nothing of clients; who is gone meanwhile it would show for good. */
export function forgetClients(metrics: Metrics): void {
  for (const gauge of clientGauges(metrics)) gauge.reset()
}

function clientGauges(metrics: Metrics) {
  const {syncLag, lockHold, lastSync, lastVerified, targetSize, conflictsUnresolved} = metrics
  return [syncLag, lockHold, lastSync, lastVerified, targetSize, conflictsUnresolved]
}
