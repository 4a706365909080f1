-- A deployment's settings have a version, as control documents have: for caches, and for whoever changes only what he
-- has read (`If-Match`).

set local role sync_owner;

alter table sync_metadata.client_deployments add column settings_version bigint not null default 1;

/* The same changes that note_deployment_change() reports. Nobody sets it: hosts have no right to the column. */
create function sync_metadata.count_settings() returns trigger
  language plpgsql set search_path = pg_catalog, pg_temp
as $$
begin
  if row(old.host_id, old.container_name, old.fqdn, old.port, old.database_type, old.sqlite_path, old.direction,
      old.sync_enabled, old.sync_interval, old.sync_schedule, old.status, old.status_reason, old.config)
    is distinct from row(new.host_id, new.container_name, new.fqdn, new.port, new.database_type, new.sqlite_path,
      new.direction, new.sync_enabled, new.sync_interval, new.sync_schedule, new.status, new.status_reason, new.config)
  then
    new.settings_version := old.settings_version + 1;
  end if;
  return new;
end $$;
create trigger count_settings
  before update of
    host_id, container_name, fqdn, port, database_type, sqlite_path, direction, sync_enabled, sync_interval,
    sync_schedule, status, status_reason, config
  on sync_metadata.client_deployments
  for each row execute function sync_metadata.count_settings();

/* As before, and the event says the version. */
create or replace function sync_metadata.note_deployment_change() returns trigger
  language plpgsql security definer set search_path = pg_catalog, pg_temp
as $$
declare
  v_host uuid;
begin
  if tg_op = 'UPDATE' and old.settings_version = new.settings_version then
    return null;
  end if;
  -- Of the host that has it and, when it moved, of the one that had it, unless that host was just removed.
  for v_host in
    select h.host_id from sync_metadata.hosts h
    where h.host_id = new.host_id or tg_op = 'UPDATE' and h.host_id = old.host_id
  loop
    insert into sync_metadata.cache_events (host_id, key, version, action)
    values (v_host, 'deployment.' || new.client_name, new.settings_version,
      case when v_host is distinct from new.host_id then 'delete'
        when tg_op = 'UPDATE' and old.host_id is distinct from new.host_id then 'insert'
        else lower(tg_op) end);
    perform sync_metadata.wake(v_host, 'cache');
  end loop;
  return null;
end $$;

reset role;
