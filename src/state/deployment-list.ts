import {fragment, join, type Fragment, type Sql} from '../postgres/sql.ts'
import type {Settings} from './deployment-settings.ts'
import type {JobStatus, JobType} from './jobs.ts'

/** A deployment with how it stands. */
export type ListedDeployment = Settings & {
  readonly deployment_id: string
  readonly settings_version: bigint
  readonly generation: bigint
  /** True while a first load is unfinished. */
  readonly is_loading: boolean
  readonly last_sync_at: Date | null
  readonly last_sync_status: 'success' | 'failed' | 'running' | 'pending' | null
  readonly next_sync_at: Date | null
  /** When the source was last looked at and found to be applied. */
  readonly checked_at: Date | null
  /** Since when the source has had a version that the target does not have; `null` when there is none. */
  readonly behind_since: Date | null
  /** How long ago the target was last known to equal its source; `null` before that was ever so. */
  readonly freshness_seconds: number | null
  readonly last_error: {readonly code: string | null; readonly message: string | null} | null
  readonly open_job: OpenJob | null
  readonly pending_conflicts: number
  readonly quarantined_rows: number
  readonly last_verified_at: Date | null
  readonly last_differences: bigint | null
  readonly created_at: Date
  readonly updated_at: Date
}

/** The job that a deployment waits for or that runs; rows are those that its tables have said so far. */
export type OpenJob = {
  readonly job_id: string
  readonly sync_type: JobType
  readonly status: JobStatus
  readonly rows_total: number | null
  readonly rows_processed: number | null
}

/** Which deployments of this host, by client name. */
export type DeploymentQuery = {
  readonly schemaName?: string
  readonly status?: string
  /** The client name that the page before ended with. */
  readonly after?: string
  readonly limit: number
}

/**
 * Reads deployments in one statement, whose cost grows with the deployments asked for and not with their history. Sizes
 * are left out: they cost a look at every file of every table ({@link readSizes}).
 */
export async function readDeployments(
  sql: Sql,
  {schemaName, status, after, limit}: DeploymentQuery,
): Promise<ListedDeployment[]> {
  const conditions: Fragment[] = [fragment`d.host_id = (select sync_metadata.my_host())`]
  if (schemaName !== undefined) conditions.push(fragment`d.schema_name = ${schemaName}`)
  if (status !== undefined) conditions.push(fragment`d.status = ${status}`)
  if (after !== undefined) conditions.push(fragment`d.client_name collate "C" > ${after}`)
  return await sql<ListedDeployment>`
    with mine as materialized (
      select * from sync_metadata.client_deployments d
      where ${join(conditions, ' and ')}
      order by d.client_name collate "C"
      limit ${limit}
    )
    select d.deployment_id, d.client_name, d.schema_name, d.container_name, d.fqdn, d.port, d.database_type,
      d.sqlite_path, d.direction, d.sync_enabled, d.sync_interval, d.sync_schedule, d.status, d.status_reason, d.config,
      d.settings_version, d.generation, d.load_position is not null as is_loading, d.last_sync_at, d.last_sync_status,
      d.next_sync_at, d.checked_at, d.behind_since, d.created_at, d.updated_at,
      extract(epoch from now() - greatest(d.last_sync_at, d.checked_at))::float8 as freshness_seconds,
      case when l.status = 'failed' then jsonb_build_object('code', l.error_code, 'message', l.error_message) end
        as last_error,
      o.open_job,
      coalesce(c.pending, 0) as pending_conflicts,
      coalesce(q.quarantined, 0) as quarantined_rows,
      v.verified_at as last_verified_at, v.difference_count as last_differences
    from mine d
    left join lateral (
      select j.status, j.error_code, j.error_message
      from sync_metadata.sync_jobs j
      where j.deployment_id = d.deployment_id and j.status in ('success', 'failed')
      order by j.created_at desc
      limit 1
    ) l on true
    left join lateral (
      select jsonb_build_object('job_id', j.job_id, 'sync_type', j.sync_type, 'status', j.status,
        'rows_total', p.total, 'rows_processed', p.processed) as open_job
      from sync_metadata.sync_jobs j
      left join lateral (
        select sum(s.rows_total) as total, sum(s.rows_processed) as processed
        from sync_metadata.sync_progress s where s.job_id = j.job_id
      ) p on true
      where j.deployment_id = d.deployment_id and j.status in ('pending', 'running')
    ) o on true
    left join (
      select deployment_id, count(*)::int as pending from sync_metadata.conflict_log where status = 'pending' group by 1
    ) c using (deployment_id)
    left join (
      select deployment_id, count(*)::int as quarantined from sync_metadata.row_quarantine
      where resolved_at is null group by 1
    ) q using (deployment_id)
    left join lateral (
      select w.verified_at, w.difference_count
      from sync_metadata.verifications w
      where w.deployment_id = d.deployment_id
      order by w.verified_at desc
      limit 1
    ) v on true
    order by d.client_name collate "C"`
}

/** @returns how many bytes each client's schema takes, by schema name. Costs a look at every file of every table. */
export async function readSizes(sql: Sql): Promise<Map<string, bigint>> {
  const rows = await sql<{schema: string; bytes: bigint}>`
    select d.schema_name as schema, coalesce(sum(pg_total_relation_size(c.oid)), 0)::bigint as bytes
    from sync_metadata.client_deployments d
    left join pg_catalog.pg_namespace n on n.nspname = d.schema_name
    left join pg_catalog.pg_class c on c.relnamespace = n.oid and c.relkind = 'r'
    where d.host_id = (select sync_metadata.my_host())
    group by 1`
  return new Map(rows.map(({schema, bytes}) => [schema, bytes]))
}
