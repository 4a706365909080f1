-- A run that nobody has queued is shown among the jobs when it takes long, maybe at the very moment its cut ends: the cut
-- looked for its job, found none, and failed because there was one when it made it.

/* As before, whether the job of the cut has a row, gets one at this moment, or has none yet.
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
  v_job        uuid;
  v_started    timestamptz;
  v_is_new     boolean;
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
  v_job := coalesce((v_count ->> 'job_id')::uuid, gen_random_uuid());
  v_started := coalesce((v_count ->> 'started_at')::timestamptz,
    clock_timestamp() - coalesce((v_count ->> 'duration_ms')::bigint, 0) * interval '1 millisecond');
  loop
    insert into sync_metadata.sync_jobs (job_id, deployment_id, sync_type, triggered_by, status, attempt, started_at)
    values (v_job, p_deployment, coalesce(v_count ->> 'sync_type', 'incremental'),
      coalesce(v_count ->> 'triggered_by', 'scheduler'), v_status, 1, v_started)
    -- Waits for whoever makes the same row.
    on conflict (job_id) do nothing;
    v_is_new := found;
    update sync_metadata.sync_jobs j
    set status             = v_status,
        started_at         = coalesce(j.started_at, v_started),
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
    where j.job_id = v_job and j.deployment_id = p_deployment and (v_is_new or j.status in ('pending', 'running'));
    exit when found;
    -- Its job was cancelled too late to stop it.
    v_job := gen_random_uuid();
  end loop;

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
