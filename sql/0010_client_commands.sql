-- What `owsync client` does to one deployment: a host gives it up, or erases a row of it; an admin removes it.
-- One more SQLSTATE of our own: OS007 the client is still synced.

set local role sync_owner;

/* Gives a client up: no host syncs it any more, its tables and its history stay, and `db transfer` gives it to a host
   again. What is in flight for it cannot commit. @returns its name. @raises OS003, OS007 while its sync is enabled and
   p_force is not said. */
create function sync_metadata.detach_deployment(p_deployment uuid, p_actor text, p_force boolean default false)
  returns text
  language plpgsql security definer set search_path = pg_catalog, pg_temp
as $$
declare
  v_host   uuid := sync_metadata.require_host();
  v_schema text;
  v_name   text;
  v_active boolean;
  v_role   text;
begin
  -- For update: waits for a cut that is being committed, and for tables that are being made.
  perform 1 from sync_metadata.client_deployments d
  where d.deployment_id = p_deployment and d.host_id = v_host
  for update;
  v_schema := sync_metadata.require_deployment(p_deployment);
  select d.client_name, d.sync_enabled into v_name, v_active
  from sync_metadata.client_deployments d
  where d.deployment_id = p_deployment;
  if v_active and not coalesce(p_force, false) then
    raise exception '% is still synced', v_name using errcode = 'OS007',
      hint = format('Stop that first with `owsync client pause %s`, or say --force.', v_name);
  end if;
  update sync_metadata.client_deployments d
  set host_id = null, sync_enabled = false, next_sync_at = null, updated_at = now()
  where d.deployment_id = p_deployment;
  update sync_metadata.sync_jobs j
  set status = 'cancelled', finished_at = now(), error_message = 'the client was deregistered'
  where j.deployment_id = p_deployment and j.status in ('pending', 'running');
  for v_role in select r.db_role from sync_metadata.host_roles r where r.host_id = v_host loop
    perform sync_metadata.set_rights(v_schema, v_role, null);
  end loop;
  insert into sync_metadata.audit_log (host_id, actor, action, client_name)
  values (v_host, coalesce(p_actor, session_user), 'client.detached', v_name);
  return v_name;
end $$;

grant execute on function sync_metadata.detach_deployment(uuid, text, boolean) to sync_service;

/* Removes a client for good: its schema with every row in it, and all that is recorded of it but the audit log. For
   admins. @returns its schema. @raises OS006 for an unknown client, OS007 while its sync is enabled and p_force is not
   said. */
create function sync_metadata.drop_client(p_client_name text, p_actor text, p_force boolean default false) returns text
  language plpgsql security definer set search_path = pg_catalog, pg_temp
as $$
declare
  v_schema text := translate(p_client_name, '.-', '__');
  v_client sync_metadata.client_deployments;
begin
  select * into v_client from sync_metadata.client_deployments d where d.schema_name = v_schema for update;
  if v_client.deployment_id is null then
    raise exception 'there is no client "%"', left(p_client_name, 80) using errcode = 'OS006';
  end if;
  if v_client.sync_enabled and v_client.host_id is not null and not coalesce(p_force, false) then
    raise exception '% is still synced', v_client.client_name using errcode = 'OS007',
      hint = format('Stop that first with `owsync client pause %s`, or say --force.', v_client.client_name);
  end if;
  execute format('drop schema if exists %I cascade', v_schema);
  insert into sync_metadata.audit_log (host_id, actor, action, client_name)
  values (v_client.host_id, coalesce(p_actor, session_user), 'client.dropped', v_client.client_name);
  -- Its host's caches have to forget it: nothing else tells them of a row that is gone.
  if v_client.host_id is not null then
    insert into sync_metadata.cache_events (host_id, key, action)
    values (v_client.host_id, 'deployment.' || v_client.client_name, 'delete');
    perform sync_metadata.wake(v_client.host_id, 'cache');
  end if;
  delete from sync_metadata.client_deployments d where d.deployment_id = v_client.deployment_id;
  return v_schema;
end $$;

/* As before, but a row that was deleted in Postgres only is not taken for one that the source has deleted: the source
   still has it. @raises OS006 for both. */
create or replace function sync_metadata.erase_row(p_deployment uuid, p_table text, p_key text) returns boolean
  language plpgsql security definer set search_path = pg_catalog, pg_temp
as $$
declare
  v_schema text := sync_metadata.require_deployment(p_deployment);
  v_table  text := (select t.qualified from sync_metadata.tables_of(v_schema) t where t.table_name = p_table);
  v_lives  boolean;
  v_edited boolean;
  v_erased bigint := 0;
  v_count  bigint;
begin
  if v_table is null then
    raise exception 'there is no table %', coalesce(quote_literal(left(p_table, 80)), 'null') using errcode = 'OS006',
      hint = 'Give it as it is called in Postgres; `owsync client status --count` lists the tables.';
  end if;
  execute format('select _sync_deleted_at is null, _sync_edited_by is not null or _sync_diverged is not null
    from %s where _sync_key = $1 for update', v_table) into v_lives, v_edited using p_key;
  if v_lives then
    raise exception 'the row still exists in the source' using errcode = 'OS006',
      hint = 'Delete it in Open WebUI, let that be synced, and erase it then.';
  end if;
  if v_edited then
    raise exception 'the row was deleted in Postgres, and may still exist in the source' using errcode = 'OS006',
      hint = 'Run `owsync verify --repair` for the client; delete the row in Open WebUI if it comes back.';
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

reset role;
