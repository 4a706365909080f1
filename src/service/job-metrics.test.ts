import assert from 'node:assert/strict'
import {test} from 'vitest'
import type {SyncResult} from '../sync/sync.ts'
import {createMetrics} from '../telemetry/metrics.ts'
import {countSync} from './job-metrics.ts'

const unchanged: SyncResult = {
  client: 'acme',
  generation: 7n,
  mode: 'unchanged',
  status: 'success',
  consistent: true,
  tables: 1,
  rows: {upserted: 0, tombstoned: 0, unchanged: 3, quarantined: 0},
  conflicts: {detected: 0, resolved: 0, pending: 0},
  bytes: 0,
  duration_ms: 12,
  lock: {max_hold_ms: 4, busy_retries: 2},
}

test('a sync that found nothing has held its locks all the same, unless it never came past the gate', async () => {
  const metrics = createMetrics()
  countSync(metrics, {result: unchanged, ms: 12, isApplied: false})
  const behindTheGate = {...unchanged, lock: {max_hold_ms: 0, busy_retries: 0}}
  countSync(metrics, {result: behindTheGate, ms: 0, isApplied: false})
  const values = async (metric: {get: () => Promise<{values: readonly {value: number; labels: object}[]}>}) =>
    (await metric.get()).values.map(({value, labels}) => ({value, labels: {...labels}}))
  assert.deepEqual(await values(metrics.lockHold), [{value: 0.004, labels: {client: 'acme'}}])
  assert.deepEqual(await values(metrics.lockBusy), [{value: 2, labels: {client: 'acme'}}])
})

test('the hold of a lock is 0 after a sync that read without one, and has no digits that nobody measured', async () => {
  const metrics = createMetrics()
  const shown = async () => (await metrics.lockHold.get()).values.map(({value}) => value)
  const after = async (max_hold_ms: number, hasRead: boolean) => {
    const details = {hasRead, changes: [], refused: []}
    const result = {...unchanged, details, lock: {max_hold_ms, busy_retries: 0}}
    countSync(metrics, {result, ms: 12, isApplied: false})
    return await shown()
  }
  assert.deepEqual(await after(73.8, true), [0.0738])
  assert.deepEqual(await after(0, false), [0.0738])
  assert.deepEqual(await after(0, true), [0])
})
