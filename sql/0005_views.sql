-- What dashboards and people ask most. All with the caller's rights: a host sees itself, a viewer everyone.

set local role sync_owner;

create view sync_metadata.v_cluster_health with (security_invoker = true) as
select
  h.cluster_name,
  h.host_id,
  h.hostname,
  n.node_id,
  n.role,
  n.version,
  n.address,
  n.started_at,
  n.last_heartbeat,
  case
    when n.last_heartbeat > now() - interval '2 minutes' then 'active'
    when n.last_heartbeat > now() - interval '5 minutes' then 'degraded'
    else 'offline'
  end as health,
  coalesce(l.leader_id = n.node_id and l.expires_at > now(), false) as is_leader,
  case when l.expires_at > now() then l.leader_id end as leader_id,
  l.epoch,
  l.expires_at as lease_expires_at,
  l.paused
from sync_metadata.sync_nodes n
join sync_metadata.hosts h using (host_id)
left join sync_metadata.leader_election l using (cluster_name);

create view sync_metadata.v_active_sync_jobs with (security_invoker = true) as
select
  j.job_id,
  j.deployment_id,
  d.client_name,
  j.sync_type,
  j.triggered_by,
  j.status,
  j.node_id,
  j.epoch,
  j.attempt,
  j.run_after,
  j.created_at,
  j.started_at,
  extract(epoch from now() - j.started_at)::double precision as running_seconds,
  p.tables_total,
  p.tables_done,
  p.rows_total,
  p.rows_processed
from sync_metadata.sync_jobs j
join sync_metadata.client_deployments d using (deployment_id)
left join lateral (
  select
    count(*) as tables_total,
    count(*) filter (where s.status = 'success') as tables_done,
    sum(s.rows_total)::bigint as rows_total,
    sum(s.rows_processed)::bigint as rows_processed
  from sync_metadata.sync_progress s
  where s.job_id = j.job_id
) p on true
where j.status in ('pending', 'running');

-- Without keys and rows, so that viewers may see it; conflict_log has them.
create view sync_metadata.v_recent_conflicts with (security_invoker = true) as
select
  c.conflict_id,
  c.deployment_id,
  d.client_name,
  c.job_id,
  c.table_name,
  c.conflict_type,
  c.resolution_strategy,
  c.status,
  c.detected_at,
  c.resolved_at,
  c.resolved_by
from sync_metadata.conflict_log c
join sync_metadata.client_deployments d using (deployment_id)
where c.detected_at > now() - interval '24 hours';

create view sync_metadata.v_conflict_summary with (security_invoker = true) as
select
  c.deployment_id,
  d.client_name,
  c.table_name,
  c.conflict_type,
  c.resolution_strategy,
  count(*) as conflicts,
  count(*) filter (where c.status = 'pending') as pending,
  count(*) filter (where c.status = 'resolved') as resolved,
  count(*) filter (where c.status = 'superseded') as superseded,
  count(*) filter (where c.status = 'undone') as undone,
  min(c.detected_at) as first_detected_at,
  max(c.detected_at) as last_detected_at
from sync_metadata.conflict_log c
join sync_metadata.client_deployments d using (deployment_id)
group by c.deployment_id, d.client_name, c.table_name, c.conflict_type, c.resolution_strategy;

create view sync_metadata.v_last_completed_sync_jobs with (security_invoker = true) as
select distinct on (j.deployment_id)
  j.deployment_id,
  d.client_name,
  j.job_id,
  j.sync_type,
  j.triggered_by,
  j.status,
  j.node_id,
  j.generation,
  j.started_at,
  j.finished_at,
  j.duration_ms,
  j.rows_upserted,
  j.rows_tombstoned,
  j.rows_unchanged,
  j.rows_quarantined,
  j.conflicts_detected,
  j.conflicts_resolved,
  j.bytes,
  j.error_code,
  j.error_message
from sync_metadata.sync_jobs j
join sync_metadata.client_deployments d using (deployment_id)
where j.status in ('success', 'failed', 'cancelled')
order by j.deployment_id, j.finished_at desc nulls last, j.created_at desc;

create view sync_metadata.v_sync_status with (security_invoker = true) as
select
  d.deployment_id,
  d.client_name,
  d.schema_name,
  h.cluster_name,
  d.status,
  d.status_reason,
  d.sync_enabled,
  d.sync_interval,
  d.sync_schedule,
  d.direction,
  d.generation,
  d.load_position is not null as is_loading,
  d.last_sync_at,
  d.last_sync_status,
  d.next_sync_at,
  d.checked_at,
  d.source_version,
  -- How long ago the target was last known to equal its source.
  extract(epoch from now() - greatest(d.last_sync_at, d.checked_at))::double precision as lag_seconds,
  j.error_code as last_error_code,
  j.error_message as last_error,
  (select count(*) from sync_metadata.conflict_log c
    where c.deployment_id = d.deployment_id and c.status = 'pending') as pending_conflicts,
  (select count(*) from sync_metadata.row_quarantine q
    where q.deployment_id = d.deployment_id and q.resolved_at is null) as quarantined_rows,
  v.verified_at as last_verified_at,
  v.difference_count as last_differences,
  (select coalesce(sum(pg_total_relation_size(c.oid)), 0)::bigint
    from pg_catalog.pg_class c
    join pg_catalog.pg_namespace n on n.oid = c.relnamespace
    where n.nspname = d.schema_name and c.relkind = 'r') as size_bytes
from sync_metadata.client_deployments d
left join sync_metadata.hosts h using (host_id)
left join sync_metadata.v_last_completed_sync_jobs j on j.deployment_id = d.deployment_id and j.status = 'failed'
left join lateral (
  select w.verified_at, w.difference_count
  from sync_metadata.verifications w
  where w.deployment_id = d.deployment_id
  order by w.verified_at desc
  limit 1
) v on true;

grant select on
  sync_metadata.v_cluster_health, sync_metadata.v_active_sync_jobs, sync_metadata.v_recent_conflicts,
  sync_metadata.v_conflict_summary, sync_metadata.v_last_completed_sync_jobs, sync_metadata.v_sync_status
  to sync_service, sync_viewer;

reset role;
