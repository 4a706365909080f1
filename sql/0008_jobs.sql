-- Jobs that can be followed from anywhere, cuts that are announced, and how far a target is behind its source.

set local role sync_owner;

alter table sync_metadata.sync_jobs
  -- What the one who asked is told, as the command prints it. Not for viewers: it can name rows.
  add column result jsonb;
alter table sync_metadata.client_deployments
  -- Since when the source has had a version that the target does not have; null when there is none. Kept in bulk by
  -- the leader, like checked_at and source_version.
  add column behind_since timestamptz;
grant update (result) on sync_metadata.sync_jobs to sync_service;
grant update (behind_since) on sync_metadata.client_deployments to sync_service;

create index on sync_metadata.sync_jobs (created_at desc, job_id);

-- Whoever follows a job hears of every step of it, and the leader that one is no longer wanted.
drop trigger note_job on sync_metadata.sync_jobs;
create trigger note_job after insert or update of status on sync_metadata.sync_jobs
  for each row execute function sync_metadata.note_job();

/* Removes a run of the schedule that had been shown because it took long, and then found nothing to do.
   @returns whether it was there. */
create function sync_metadata.forget_run(p_job uuid) returns boolean
  language plpgsql security definer set search_path = pg_catalog, pg_temp
as $$
declare
  v_host uuid := sync_metadata.require_host();
begin
  delete from sync_metadata.sync_jobs j
  where j.job_id = p_job and j.status = 'running' and j.triggered_by in ('scheduler', 'change') and j.attempt = 1
    and j.generation is null
    and j.deployment_id in (select d.deployment_id from sync_metadata.client_deployments d where d.host_id = v_host);
  return found;
end $$;

/* How many rows of the client somebody else has edited since they were last synced. */
create function sync_metadata.count_marks(p_deployment uuid) returns bigint
  language plpgsql stable security definer set search_path = pg_catalog, pg_temp
as $$
declare
  v_schema text := sync_metadata.require_deployment(p_deployment);
  v_table  text;
  v_count  bigint;
  v_total  bigint := 0;
begin
  for v_table in select t.qualified from sync_metadata.tables_of(v_schema) t loop
    execute format('select count(*) from %s where _sync_edited_by is not null', v_table) into v_count;
    v_total := v_total + v_count;
  end loop;
  return v_total;
end $$;

/* The channel that hears of every cut of a client: `owsync_<schema>`, as LISTEN shortens it. */
create function sync_metadata.cut_channel_of(p_schema text) returns text
  language sql immutable set search_path = pg_catalog, pg_temp
as $$ select left('owsync_' || p_schema, 63) $$;

/* As before, and: a run that had no row yet gets the id that p_result names; what the result says under `result` is kept
   with the job; and the cut is announced, with the tables that p_result.tables names, in the very transaction that
   applies it.
   @returns the new generation. @raises OS003, OS002 when the generation is not p_expected, OS001 when fenced out. */
create or replace function sync_metadata.advance_generation(
    p_deployment uuid, p_expected bigint, p_cut uuid, p_epoch bigint, p_result jsonb default '{}')
  returns bigint
  language plpgsql security definer set search_path = pg_catalog, pg_temp
as $$
declare
  v_generation bigint;
  v_result     jsonb := coalesce(p_result, '{}');
  v_status     text := coalesce(v_result ->> 'status', 'success');
  v_count      jsonb;
  v_told       jsonb;
begin
  perform sync_metadata.require_deployment(p_deployment);
  if jsonb_typeof(v_result) <> 'object' or v_status not in ('success', 'failed') then
    raise exception 'the result of a cut is an object whose status is success or failed' using errcode = 'OS006';
  end if;
  update sync_metadata.client_deployments d
  set generation       = d.generation + 1,
      cut_id           = p_cut,
      load_position    = null,
      last_sync_at     = clock_timestamp(),
      last_sync_status = v_status,
      checked_at       = clock_timestamp(),
      source_version   = coalesce(v_result ->> 'source_version', d.source_version)
  where d.deployment_id = p_deployment and d.host_id = sync_metadata.my_host() and d.generation = p_expected
  returning d.generation into v_generation;
  if not found then
    perform sync_metadata.require_deployment(p_deployment);
    raise exception 'the generation is % and no longer %',
      (select d.generation from sync_metadata.client_deployments d where d.deployment_id = p_deployment), p_expected
      using errcode = 'OS002';
  end if;
  -- What was waiting for a person has been applied. Apart, so that every other cut leaves the caches alone.
  update sync_metadata.client_deployments d
  set status = 'active', status_reason = null
  where d.deployment_id = p_deployment and d.status = 'quarantined';

  v_count := jsonb_build_object('rows_upserted', 0, 'rows_tombstoned', 0, 'rows_unchanged', 0, 'rows_quarantined', 0,
    'conflicts_detected', 0, 'conflicts_resolved', 0, 'bytes', 0) || jsonb_strip_nulls(v_result);
  v_told := case when jsonb_typeof(v_result -> 'result') = 'object'
    then (v_result -> 'result') || jsonb_build_object('generation', v_generation) end;
  update sync_metadata.sync_jobs j
  set status             = v_status,
      started_at         = coalesce(j.started_at, (v_count ->> 'started_at')::timestamptz),
      finished_at        = clock_timestamp(),
      node_id            = coalesce(v_count ->> 'node_id', j.node_id),
      epoch              = p_epoch,
      generation         = v_generation,
      rows_upserted      = (v_count ->> 'rows_upserted')::bigint,
      rows_tombstoned    = (v_count ->> 'rows_tombstoned')::bigint,
      rows_unchanged     = (v_count ->> 'rows_unchanged')::bigint,
      rows_quarantined   = (v_count ->> 'rows_quarantined')::bigint,
      conflicts_detected = (v_count ->> 'conflicts_detected')::bigint,
      conflicts_resolved = (v_count ->> 'conflicts_resolved')::bigint,
      bytes              = (v_count ->> 'bytes')::bigint,
      duration_ms        = (v_count ->> 'duration_ms')::bigint,
      error_code         = v_count ->> 'error_code',
      error_message      = v_count ->> 'error_message',
      error_details      = v_count -> 'error_details',
      result             = v_told
  where j.job_id = (v_count ->> 'job_id')::uuid and j.deployment_id = p_deployment
    and j.status in ('pending', 'running');
  -- A cut that nobody had queued, or whose job was cancelled too late to stop it.
  if not found then
    insert into sync_metadata.sync_jobs (
      job_id, deployment_id, sync_type, triggered_by, status, node_id, epoch, attempt, started_at, finished_at,
      generation, rows_upserted, rows_tombstoned, rows_unchanged, rows_quarantined, conflicts_detected,
      conflicts_resolved, bytes, duration_ms, error_code, error_message, error_details, result)
    values (
      case when exists (select from sync_metadata.sync_jobs j where j.job_id = (v_count ->> 'job_id')::uuid)
        then gen_random_uuid() else coalesce((v_count ->> 'job_id')::uuid, gen_random_uuid()) end,
      p_deployment, coalesce(v_count ->> 'sync_type', 'incremental'), coalesce(v_count ->> 'triggered_by', 'scheduler'),
      v_status, v_count ->> 'node_id', p_epoch, 1,
      coalesce((v_count ->> 'started_at')::timestamptz,
        clock_timestamp() - coalesce((v_count ->> 'duration_ms')::bigint, 0) * interval '1 millisecond'),
      clock_timestamp(), v_generation,
      (v_count ->> 'rows_upserted')::bigint, (v_count ->> 'rows_tombstoned')::bigint,
      (v_count ->> 'rows_unchanged')::bigint, (v_count ->> 'rows_quarantined')::bigint,
      (v_count ->> 'conflicts_detected')::bigint, (v_count ->> 'conflicts_resolved')::bigint,
      (v_count ->> 'bytes')::bigint, (v_count ->> 'duration_ms')::bigint,
      v_count ->> 'error_code', v_count ->> 'error_message', v_count -> 'error_details', v_told);
  end if;

  perform pg_notify(sync_metadata.cut_channel_of(d.schema_name), (case
      -- A notification carries less than 8000 bytes: whoever hears of no tables looks at all of them.
      when octet_length(coalesce(v_result ->> 'tables', '')) < 7000 then
        jsonb_build_object('client', d.client_name, 'generation', v_generation,
          'tables', coalesce(v_result -> 'tables', '[]'))
      else jsonb_build_object('client', d.client_name, 'generation', v_generation)
    end)::text)
  from sync_metadata.client_deployments d
  where d.deployment_id = p_deployment;

  perform sync_metadata.assert_lease(p_epoch);
  return v_generation;
end $$;

create or replace view sync_metadata.v_sync_status with (security_invoker = true) as
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
    where n.nspname = d.schema_name and c.relkind = 'r') as size_bytes,
  d.behind_since,
  -- The age of the oldest version of the source that was seen and is not applied; 0 when there is none.
  coalesce(extract(epoch from now() - d.behind_since), 0)::double precision as behind_seconds
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

grant execute on function sync_metadata.forget_run(uuid), sync_metadata.count_marks(uuid) to sync_service;

reset role;
