-- Deployments whose direction is two_way: decided values are written to the live SQLite file. docs/conflicts.md.

set local role sync_owner;

alter table sync_metadata.client_deployments
  -- The copy of the source that was made before it was written to: {file, identity, bytes, at}. Null: none since the
  -- direction was last set to two_way, so the next write makes one first.
  add column source_backup jsonb;
grant update (source_backup) on sync_metadata.client_deployments to sync_service;

-- Rows that were decided, and that the source does not have so: the queue of what is written to it.
create index on sync_metadata.conflict_log (deployment_id, table_name, record_key)
  where is_standing and status in ('resolved', 'undone');

create function sync_metadata.note_direction() returns trigger
  language plpgsql set search_path = pg_catalog, pg_temp
as $$
begin
  new.source_backup := null;
  return new;
end $$;
create trigger note_direction before update of direction on sync_metadata.client_deployments
  for each row when (new.direction = 'two_way' and old.direction <> 'two_way')
  execute function sync_metadata.note_direction();

/* Nodes look at once, instead of within a minute: the direction was set, or a person has decided. */
create function sync_metadata.announce_decided() returns trigger
  language plpgsql security definer set search_path = pg_catalog, pg_temp
as $$
begin
  perform sync_metadata.wake(d.host_id, 'marks')
  from sync_metadata.client_deployments d
  where d.deployment_id = new.deployment_id and d.host_id is not null and d.direction = 'two_way';
  return null;
end $$;
create trigger announce_direction after update of direction on sync_metadata.client_deployments
  for each row when (new.direction <> old.direction)
  execute function sync_metadata.announce_decided();
create trigger announce_decided after update of status on sync_metadata.conflict_log
  for each row when (new.is_standing and new.status in ('resolved', 'undone') and new.status <> old.status)
  execute function sync_metadata.announce_decided();

-- Triggers call them, and nobody else.
revoke execute on function sync_metadata.note_direction(), sync_metadata.announce_decided() from public;

reset role;
