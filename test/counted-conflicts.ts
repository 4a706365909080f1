import {countSync} from '../src/service/job-metrics.ts'
import type {SyncResult} from '../src/sync/sync.ts'
import {createMetrics} from '../src/telemetry/metrics.ts'

/** What the metrics say of conflicts once a leader has counted this run: `name{labels}`, and how many. */
export async function countedConflicts(result: SyncResult): Promise<Record<string, number>> {
  const metrics = createMetrics()
  countSync(metrics, {result, ms: result.duration_ms, isApplied: true})
  const counted: Record<string, number> = {}
  for (const [name, metric] of [
    ['conflicts_detected_total', metrics.conflictsDetected],
    ['conflicts_resolved_total', metrics.conflictsResolved],
    ['conflicts_unresolved', metrics.conflictsUnresolved],
  ] as const)
    for (const {labels, value} of (await metric.get()).values)
      counted[`${name}${JSON.stringify(labels)}`] = value
  return counted
}
