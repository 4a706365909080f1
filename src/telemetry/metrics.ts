import {Counter, Gauge, Histogram, Registry} from 'prom-client'
import {errorTypeOf} from '../core/errors.ts'

/** Upper bounds of sync durations, in seconds: an unchanged file to a first load of an hour. */
const syncSeconds = [1, 2.5, 5, 10, 30, 60, 120, 300, 600, 1_800, 3_600]
const querySeconds = [0.001, 0.005, 0.02, 0.1, 0.5, 2.5, 10, 60]
const requestSeconds = [0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1, 5]

/**
 * Every metric of one process, in a registry of its own. Names and labels are those of the product's specification;
 * each is moved where the thing happens that it names. Times are seconds, sizes bytes, timestamps Unix seconds.
 */
export type Metrics = ReturnType<typeof createMetrics>

export function createMetrics() {
  const registry = new Registry()
  const registers = [registry]
  const counter = <L extends string = never>(name: string, help: string, ...labelNames: L[]) =>
    new Counter({name, help, labelNames, registers})
  const gauge = <L extends string = never>(name: string, help: string, ...labelNames: L[]) =>
    new Gauge({name, help, labelNames, registers})
  const histogram = <L extends string = never>(
    name: string,
    help: string,
    buckets: number[],
    ...labelNames: L[]
  ) => new Histogram({name, help, buckets, labelNames, registers})

  return {
    syncOperations: counter(
      'sync_operations_total',
      'Syncs that ended, by how they ended.',
      'client',
      'status',
    ),
    syncDuration: histogram('sync_duration_seconds', 'How long a sync took.', syncSeconds, 'client'),
    syncRows: counter(
      'sync_rows_processed_total',
      'Rows written to the target, tombstones included.',
      'client',
      'table',
    ),
    syncRowsFailed: counter(
      'sync_rows_failed_total',
      'Rows that could not be applied and are quarantined.',
      'client',
      'table',
      'error_type',
    ),
    syncBytes: counter(
      'sync_bytes_transferred_total',
      'Bytes of row data sent or fetched.',
      'client',
      'direction',
    ),
    conflictsDetected: counter('conflicts_detected_total', 'Conflicts met.', 'client', 'table', 'type'),
    conflictsResolved: counter('conflicts_resolved_total', 'Conflicts decided.', 'client', 'strategy'),
    conflictsUnresolved: gauge('conflicts_unresolved', 'Conflicts that wait for a person.', 'client'),
    conflictResolution: histogram(
      'conflict_resolution_duration_seconds',
      'How long it took to decide a conflict.',
      querySeconds,
      'strategy',
    ),
    leaderElections: counter(
      'leader_elections_total',
      'Attempts to take the lease, by their result.',
      'result',
    ),
    isLeader: gauge('sync_container_is_leader', '1 on the node that leads, else 0.', 'node_id', 'cluster'),
    leaseExpires: gauge(
      'leader_lease_expires_timestamp',
      'When the lease ends unless it is renewed.',
      'cluster',
    ),
    leaseEpoch: gauge('leader_lease_epoch', 'The epoch of the lease, as last seen.', 'cluster'),
    heartbeatFailures: counter(
      'heartbeat_failures_total',
      'Heartbeats that did not reach Postgres.',
      'node_id',
    ),
    failovers: counter('failover_events_total', 'Takeovers by this node.', 'from_node', 'to_node', 'reason'),
    fencedWrites: counter('fenced_writes_total', 'Transactions refused because the lease had moved on.'),
    cacheHits: counter('state_cache_hits_total', 'Control documents answered from the cache.'),
    cacheMisses: counter('state_cache_misses_total', 'Control documents that had to be asked of Postgres.'),
    cacheInvalidations: counter('state_cache_invalidations_total', 'Cached documents dropped.', 'reason'),
    cacheSize: gauge('state_cache_size', 'Control documents in the cache.'),
    syncLag: gauge(
      'state_sync_lag_seconds',
      'Age of the oldest source version that was seen and is not applied; 0 when all is.',
      'client',
    ),
    lockHold: gauge(
      'sync_lock_hold_seconds',
      'Longest hold of a lock on the source in the last sync.',
      'client',
    ),
    lockBusy: counter('sync_lock_busy_total', 'Reads of a source that gave way to its app.', 'client'),
    poolSize: gauge('db_pool_size', 'Connections that are open.', 'pool_name'),
    poolAvailable: gauge(
      'db_pool_available',
      'Connections that nobody uses or that may still be opened.',
      'pool_name',
    ),
    queries: counter('db_queries_total', 'Statements sent to Postgres.', 'query_type', 'status'),
    queryDuration: histogram(
      'db_query_duration_seconds',
      'How long Postgres took for a statement.',
      querySeconds,
      'query_type',
    ),
    queueSize: gauge('sync_queue_size', 'Jobs that wait.'),
    queueTime: histogram(
      'sync_queue_processing_time_seconds',
      'From the time a job could run to its end.',
      syncSeconds,
    ),
    jobsActive: gauge('sync_jobs_active', 'Jobs that run.'),
    errors: counter(
      'errors_total',
      'Failures, by where they happened and what they were.',
      'component',
      'error_type',
    ),
    uptime: gauge('container_uptime_seconds', 'How long this node has been running.', 'node_id'),
    lastSync: gauge('last_successful_sync_timestamp', 'When the last sync succeeded.', 'client'),
    lastVerified: gauge(
      'last_verified_timestamp',
      'When the target was last compared with its source.',
      'client',
    ),
    targetSize: gauge('target_size_bytes', 'Size of the client’s schema in Postgres.', 'client'),
    buildInfo: gauge('build_info', 'Always 1; its labels say what runs.', 'version', 'node_version'),
    httpRequests: histogram(
      'http_request_duration_seconds',
      'How long the API took to answer.',
      requestSeconds,
      'method',
      'route',
      'status',
    ),
    /** @returns all of it in Prometheus' text format. */
    render: () => registry.metrics(),
    contentType: registry.contentType,
    registry,
  }
}

/** What a pool's connections and statements do to the metrics; fits the `observer` of a pool. */
export function observePool(metrics: Metrics, poolName: string) {
  return {
    onStatement({
      type,
      seconds,
      error,
    }: {
      readonly type: string
      readonly seconds: number
      readonly error?: string
    }) {
      metrics.queries.inc({query_type: type, status: error === undefined ? 'success' : 'error'})
      metrics.queryDuration.observe({query_type: type}, seconds)
      // Work that was called off is no failure.
      if (error === undefined || error === 'aborted') return
      metrics.errors.inc({component: 'postgres', error_type: error})
      // Each transaction that is refused fails in one statement: the one that asserts the lease.
      if (error === 'SYNC_FENCED_OUT') metrics.fencedWrites.inc()
    },
    onPool({open, available}: {readonly open: number; readonly available: number}) {
      metrics.poolSize.set({pool_name: poolName}, open)
      metrics.poolAvailable.set({pool_name: poolName}, available)
    },
  }
}

/** Counts a failure that nobody throws any further. */
export function countError(metrics: Pick<Metrics, 'errors'>, component: string, error: unknown): void {
  metrics.errors.inc({component, error_type: errorTypeOf(error)})
}
