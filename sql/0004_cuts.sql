-- The end of a cut, and what is removed later. Each of these is one round trip.

set local role sync_owner;

/* Ends a cut: moves the generation from p_expected to the next, records the result and the job, and asserts the lease
   last. p_result: {job_id?, sync_type, triggered_by, started_at?, status, rows_upserted, rows_tombstoned,
   rows_unchanged, rows_quarantined, conflicts_detected, conflicts_resolved, bytes, duration_ms, source_version?,
   node_id?, error_code?, error_message?, error_details?}; what is left out is 0 or null.
   @returns the new generation. @raises OS003, OS002 when the generation is not p_expected, OS001 when fenced out. */
create function sync_metadata.advance_generation(
    p_deployment uuid, p_expected bigint, p_cut uuid, p_epoch bigint, p_result jsonb default '{}')
  returns bigint
  language plpgsql security definer set search_path = pg_catalog, pg_temp
as $$
declare
  v_generation bigint;
  v_result     jsonb := coalesce(p_result, '{}');
  v_status     text := coalesce(v_result ->> 'status', 'success');
  v_count      jsonb;
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
      error_details      = v_count -> 'error_details'
  where j.job_id = (v_count ->> 'job_id')::uuid and j.deployment_id = p_deployment
    and j.status in ('pending', 'running');
  -- A cut that nobody had queued, or whose job was cancelled too late to stop it.
  if not found then
    insert into sync_metadata.sync_jobs (
      deployment_id, sync_type, triggered_by, status, node_id, epoch, attempt, started_at, finished_at, generation,
      rows_upserted, rows_tombstoned, rows_unchanged, rows_quarantined, conflicts_detected, conflicts_resolved, bytes,
      duration_ms, error_code, error_message, error_details)
    values (
      p_deployment, coalesce(v_count ->> 'sync_type', 'incremental'), coalesce(v_count ->> 'triggered_by', 'scheduler'),
      v_status, v_count ->> 'node_id', p_epoch, 1,
      coalesce((v_count ->> 'started_at')::timestamptz,
        clock_timestamp() - coalesce((v_count ->> 'duration_ms')::bigint, 0) * interval '1 millisecond'),
      clock_timestamp(), v_generation,
      (v_count ->> 'rows_upserted')::bigint, (v_count ->> 'rows_tombstoned')::bigint,
      (v_count ->> 'rows_unchanged')::bigint, (v_count ->> 'rows_quarantined')::bigint,
      (v_count ->> 'conflicts_detected')::bigint, (v_count ->> 'conflicts_resolved')::bigint,
      (v_count ->> 'bytes')::bigint, (v_count ->> 'duration_ms')::bigint,
      v_count ->> 'error_code', v_count ->> 'error_message', v_count -> 'error_details');
  end if;

  perform sync_metadata.assert_lease(p_epoch);
  return v_generation;
end $$;

/* Ends a chunk of a first load: remembers how far it got, without moving the generation, and asserts the lease last.
   @raises OS003, OS006 when there is nothing to load for the first time, OS001 when fenced out. */
create function sync_metadata.record_load_step(p_deployment uuid, p_cut uuid, p_epoch bigint, p_position jsonb)
  returns void
  language plpgsql security definer set search_path = pg_catalog, pg_temp
as $$
begin
  perform sync_metadata.require_deployment(p_deployment);
  if p_position is null or jsonb_typeof(p_position) = 'null' then
    raise exception 'a load step needs a position' using errcode = 'OS006';
  end if;
  update sync_metadata.client_deployments d
  set load_position = p_position, cut_id = p_cut
  where d.deployment_id = p_deployment and d.host_id = sync_metadata.my_host()
    and (d.generation = 0 or d.load_position is not null);
  if not found then
    perform sync_metadata.require_deployment(p_deployment);
    raise exception 'the first load of this deployment is over' using errcode = 'OS006';
  end if;
  perform sync_metadata.assert_lease(p_epoch);
end $$;

/* The client's tables, as quoted qualified names. */
create function sync_metadata.tables_of(p_schema text) returns table (table_name text, qualified text)
  language sql stable set search_path = pg_catalog, pg_temp
as $$
  select c.relname::text, format('%I.%I', n.nspname, c.relname)
  from pg_catalog.pg_class c
  join pg_catalog.pg_namespace n on n.oid = c.relnamespace
  join pg_catalog.pg_attribute a on a.attrelid = c.oid and a.attname = '_sync_deleted_at' and not a.attisdropped
  where n.nspname = p_schema and c.relkind = 'r'
$$;

/* Removes tombstones older than p_older, but none that a conflict still speaks of. @returns how many. */
create function sync_metadata.purge_tombstones(p_deployment uuid, p_older interval) returns bigint
  language plpgsql security definer set search_path = pg_catalog, pg_temp
as $$
declare
  v_schema text := sync_metadata.require_deployment(p_deployment);
  v_table  text;
  v_count  bigint;
  v_total  bigint := 0;
begin
  if p_older is null or p_older < interval '0' then
    raise exception 'tombstones are kept for some time, not for %', coalesce(p_older::text, 'null') using errcode = 'OS006';
  end if;
  for v_table in select t.qualified from sync_metadata.tables_of(v_schema) t loop
    execute format('delete from %s where _sync_deleted_at < now() - $1 and _sync_edited_by is null
      and _sync_diverged is null', v_table) using p_older;
    get diagnostics v_count = row_count;
    v_total := v_total + v_count;
  end loop;
  return v_total;
end $$;

/* Removes what the calling host need not know any more: finished jobs with what belongs to them (verifications,
   decided conflicts, rows that left quarantine), events that every cache has seen, and the copies of rows in decided
   conflicts. @returns how many of each. */
create function sync_metadata.purge_history(
    p_jobs interval default '90 days', p_events interval default '1 day', p_snapshots interval default '30 days')
  returns table (jobs bigint, events bigint, snapshots bigint)
  language plpgsql security definer set search_path = pg_catalog, pg_temp
as $$
declare
  v_host uuid := sync_metadata.require_host();
  v_mine uuid[] := array(select d.deployment_id from sync_metadata.client_deployments d where d.host_id = v_host);
begin
  if least(p_jobs, p_events, p_snapshots) < interval '0' or num_nulls(p_jobs, p_events, p_snapshots) > 0 then
    raise exception 'history is kept for some time' using errcode = 'OS006';
  end if;
  delete from sync_metadata.sync_jobs j
  where j.deployment_id = any (v_mine) and j.status in ('success', 'failed', 'cancelled')
    and coalesce(j.finished_at, j.created_at) < now() - p_jobs;
  get diagnostics jobs = row_count;
  delete from sync_metadata.verifications v where v.deployment_id = any (v_mine) and v.verified_at < now() - p_jobs;
  delete from sync_metadata.row_quarantine q where q.deployment_id = any (v_mine) and q.resolved_at < now() - p_jobs;
  delete from sync_metadata.conflict_log c
  where c.deployment_id = any (v_mine) and c.status <> 'pending'
    and coalesce(c.resolved_at, c.detected_at) < now() - p_jobs;
  delete from sync_metadata.cache_events e where e.host_id = v_host and e.created_at < now() - p_events;
  get diagnostics events = row_count;
  update sync_metadata.conflict_log c
  set source_data = null, target_data = null, resolved_data = null
  where c.deployment_id = any (v_mine) and c.status <> 'pending'
    and coalesce(c.resolved_at, c.detected_at) < now() - p_snapshots
    and num_nonnulls(c.source_data, c.target_data, c.resolved_data) > 0;
  get diagnostics snapshots = row_count;
  return next;
end $$;

/* Erases a row that the source has deleted, and every trace of what was in it. @returns whether there was anything.
   @raises OS006 for a row that still lives in the source: it would only be copied again. */
create function sync_metadata.erase_row(p_deployment uuid, p_table text, p_key text) returns boolean
  language plpgsql security definer set search_path = pg_catalog, pg_temp
as $$
declare
  v_schema text := sync_metadata.require_deployment(p_deployment);
  v_table  text := (select t.qualified from sync_metadata.tables_of(v_schema) t where t.table_name = p_table);
  v_lives  boolean;
  v_erased bigint := 0;
  v_count  bigint;
begin
  if v_table is null then
    raise exception 'there is no table %', coalesce(quote_literal(left(p_table, 80)), 'null') using errcode = 'OS006';
  end if;
  execute format('select _sync_deleted_at is null from %s where _sync_key = $1 for update', v_table)
    into v_lives using p_key;
  if v_lives then
    raise exception 'the row still exists in the source' using errcode = 'OS006',
      hint = 'Delete it in Open WebUI, let that be synced, and erase it then.';
  end if;
  execute format('delete from %s where _sync_key = $1', v_table) using p_key;
  get diagnostics v_erased = row_count;
  update sync_metadata.conflict_log c
  set record_key = '~erased', source_data = null, target_data = null, resolved_data = null, notes = null,
      status = case when c.status = 'pending' then 'superseded' else c.status end
  where c.deployment_id = p_deployment and c.table_name = p_table and c.record_key = p_key;
  get diagnostics v_count = row_count;
  v_erased := v_erased + v_count;
  delete from sync_metadata.row_quarantine q
  where q.deployment_id = p_deployment and q.table_name = p_table and q.record_key = p_key;
  get diagnostics v_count = row_count;
  v_erased := v_erased + v_count;
  update sync_metadata.verifications v
  set differences = (
    select coalesce(jsonb_agg(d), '[]') from jsonb_array_elements(v.differences) d
    where (d ->> 'table', d ->> 'key') is distinct from (p_table, p_key))
  where v.deployment_id = p_deployment and jsonb_typeof(v.differences) = 'array'
    and v.differences @> jsonb_build_array(jsonb_build_object('table', p_table, 'key', p_key));
  get diagnostics v_count = row_count;
  v_erased := v_erased + v_count;
  insert into sync_metadata.audit_log (host_id, actor, action, client_name, details)
  select d.host_id, session_user, 'row.erased', d.client_name, jsonb_build_object('table', p_table)
  from sync_metadata.client_deployments d
  where d.deployment_id = p_deployment;
  return v_erased > 0;
end $$;

grant execute on function
  sync_metadata.advance_generation(uuid, bigint, uuid, bigint, jsonb),
  sync_metadata.record_load_step(uuid, uuid, bigint, jsonb), sync_metadata.purge_tombstones(uuid, interval),
  sync_metadata.purge_history(interval, interval, interval), sync_metadata.erase_row(uuid, text, text)
  to sync_service;

reset role;
