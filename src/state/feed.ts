import type {Sql} from '../postgres/sql.ts'

// What those who watch a host live are told of, read in one statement.

export type FeedLeader = {
  readonly leader_id: string | null
  readonly epoch: number
  readonly paused: boolean
}

export type FeedJob = {
  readonly job_id: string
  readonly client: string
  readonly sync_type: string
  readonly triggered_by: string
  readonly status: string
  readonly attempt: number
  readonly node_id: string | null
  readonly started_at: string | null
  readonly tables_total: number
  readonly tables_done: number
  readonly rows_total: number | null
  readonly rows_processed: number | null
  /** Of a job that has ended. */
  readonly generation?: number | null
  readonly error?: {readonly code: string; readonly message: string | null} | null
}

export type FeedDeployment = {
  readonly client_name: string
  readonly status: string
  readonly enabled: boolean
  readonly generation: number
  readonly last_sync_at: string | null
  readonly last_sync_status: string | null
  readonly behind_since: string | null
  readonly pending_conflicts: number
}

export type FeedState = {
  readonly leader: FeedLeader
  /** Those that wait or run. */
  readonly jobs: readonly FeedJob[]
  readonly deployments: readonly FeedDeployment[]
}

/** @param ended jobs to read although they have ended. */
export async function readFeed(sql: Sql, ended: readonly string[]): Promise<FeedState> {
  const [row] = await sql<FeedState>`
    with mine as materialized (
      select * from sync_metadata.client_deployments where host_id = (select sync_metadata.my_host())
    )
    select
      coalesce((
        select jsonb_build_object(
          'leader_id', case when l.expires_at > clock_timestamp() then l.leader_id end,
          'epoch', l.epoch, 'paused', l.paused)
        from sync_metadata.leader_election l
        where l.cluster_name = (select sync_metadata.my_cluster())
      ), '{"leader_id": null, "epoch": 0, "paused": false}') as leader,
      coalesce((
        select jsonb_agg(jsonb_build_object(
          'job_id', j.job_id, 'client', d.client_name, 'sync_type', j.sync_type, 'triggered_by', j.triggered_by,
          'status', j.status, 'attempt', j.attempt, 'node_id', j.node_id, 'started_at', j.started_at,
          'tables_total', p.tables_total, 'tables_done', p.tables_done, 'rows_total', p.rows_total,
          'rows_processed', p.rows_processed) || case when j.finished_at is null then '{}' else jsonb_build_object(
          'generation', j.generation, 'error', case when j.error_code is not null
            then jsonb_build_object('code', j.error_code, 'message', j.error_message) end) end
          order by j.created_at, j.job_id)
        from (
          select * from sync_metadata.sync_jobs where status in ('pending', 'running')
          union all
          select * from sync_metadata.sync_jobs
          where job_id = any (${ended}::uuid[]) and status not in ('pending', 'running')
        ) j
        join mine d using (deployment_id)
        left join lateral (
          select count(*) as tables_total, count(*) filter (where s.status = 'success') as tables_done,
            sum(s.rows_total) as rows_total, sum(s.rows_processed) as rows_processed
          from sync_metadata.sync_progress s where s.job_id = j.job_id
        ) p on true
      ), '[]') as jobs,
      coalesce((
        select jsonb_agg(jsonb_build_object(
          'client_name', d.client_name, 'status', d.status, 'enabled', d.sync_enabled, 'generation', d.generation,
          'last_sync_at', d.last_sync_at, 'last_sync_status', d.last_sync_status, 'behind_since', d.behind_since,
          'pending_conflicts', coalesce(c.pending, 0)) order by d.client_name)
        from mine d
        left join (
          select deployment_id, count(*) as pending from sync_metadata.conflict_log where status = 'pending' group by 1
        ) c using (deployment_id)
      ), '[]') as deployments`
  if (!row) throw new Error('a select without from gave no row')
  return row
}
