import type {Sql} from '../postgres/sql.ts'

/** One job of the history. */
export type PastJob = {
  readonly job_id: string
  readonly client: string
  readonly sync_type: string
  readonly triggered_by: string
  readonly status: string
  readonly node_id: string | null
  readonly generation: bigint | null
  readonly created_at: Date
  readonly started_at: Date | null
  readonly finished_at: Date | null
  readonly duration_ms: bigint | null
  readonly rows_upserted: bigint
  readonly rows_tombstoned: bigint
  readonly rows_quarantined: bigint
  readonly conflicts_detected: bigint
  readonly bytes: bigint
  readonly error_code: string | null
  readonly error_message: string | null
}

/** Which part of the history is wanted: of one deployment or of all, the newest first. */
export type HistoryQuery = {readonly deploymentId: string | undefined; readonly limit: number}

/** @returns jobs of this host, the newest first. */
export async function readHistory(sql: Sql, {deploymentId, limit}: HistoryQuery): Promise<PastJob[]> {
  return await sql<PastJob>`
    select j.job_id, d.client_name as client, j.sync_type, j.triggered_by, j.status, j.node_id, j.generation,
      j.created_at, j.started_at, j.finished_at, j.duration_ms, j.rows_upserted, j.rows_tombstoned,
      j.rows_quarantined, j.conflicts_detected, j.bytes, j.error_code, j.error_message
    from sync_metadata.sync_jobs j
    join sync_metadata.client_deployments d using (deployment_id)
    where d.host_id = (select sync_metadata.my_host())
      and (${deploymentId}::uuid is null or j.deployment_id = ${deploymentId})
    order by coalesce(j.finished_at, j.started_at, j.created_at) desc
    limit ${limit}`
}

/** One thing that happened to a client: a job, a verification, a conflict, or what somebody asked for. */
export type LogEntry = {
  readonly at: Date
  readonly client: string
  readonly kind: 'job' | 'verification' | 'conflict' | 'audit'
  /** `failed`, `resolved`, `client.paused`. */
  readonly what: string
  /** Who did it: a node, a person, a strategy. */
  readonly by: string | null
  readonly text: string
}

/** @returns what happened to clients of this host, the newest first. Of rows it says their table, never their key. */
export async function readLog(sql: Sql, {deploymentId, limit}: HistoryQuery): Promise<LogEntry[]> {
  return await sql<LogEntry>`
    with mine as (
      select deployment_id, client_name from sync_metadata.client_deployments
      where host_id = (select sync_metadata.my_host())
        and (${deploymentId}::uuid is null or deployment_id = ${deploymentId})
    )
    select coalesce(j.finished_at, j.started_at, j.created_at) as at, m.client_name as client, 'job' as kind,
      j.status as what, coalesce(j.node_id, j.triggered_by) as by,
      concat_ws(' ', j.sync_type,
        case when j.generation is not null then format('generation %s,', j.generation) end,
        case when j.status = 'success' and j.sync_type in ('full', 'incremental')
          then format('%s upserted, %s deleted', j.rows_upserted, j.rows_tombstoned) end,
        case when j.error_code is not null then concat_ws(': ', j.error_code, j.error_message) end) as text
    from sync_metadata.sync_jobs j join mine m using (deployment_id)
    union all
    select v.verified_at, m.client_name, 'verification',
      case when v.difference_count = 0 then 'equal' else 'differences' end, null,
      format('%s rows compared, %s differences, %s repaired', v.rows_compared, v.difference_count, v.repaired)
    from sync_metadata.verifications v join mine m using (deployment_id)
    union all
    select coalesce(c.resolved_at, c.detected_at), m.client_name, 'conflict', c.status,
      coalesce(c.resolved_by, c.resolution_strategy), format('%s in table %s', c.conflict_type, c.table_name)
    from sync_metadata.conflict_log c join mine m using (deployment_id)
    union all
    select a.recorded_at, a.client_name, 'audit', a.action, a.actor,
      coalesce((select string_agg(format('%s %s', key, value #>> '{}'), ', ' order by key)
        from jsonb_each(a.details) d (key, value) where jsonb_typeof(value) not in ('object', 'null')), '')
    from sync_metadata.audit_log a
    where a.client_name in (select client_name from mine)
    order by 1 desc
    limit ${limit}`
}
