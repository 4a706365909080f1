-- Foreign edits: who is a host of a client is what host_roles says, and nothing else. A role that is only called like
-- one, and the role of another host, are editors like any other.

set local role sync_owner;

/* Writes `_sync_is_host(name)` of a client's schema: whether a login is a valid role of the host that has the client.

   Its names stand in its text, so that it is one comparison that the triggers' conditions are compiled with: they are
   asked for each row that a sync writes, and neither a look-up nor a call is to be had for that. A condition is checked
   with the rights of whoever writes, so that hosts and editors may execute it; who was granted a table by hand and not
   this is refused. */
create function sync_metadata.write_host_check(p_schema text) returns void
  language plpgsql set search_path = pg_catalog, pg_temp
as $$
declare
  v_check text;
  v_role  text;
begin
  if to_regnamespace(quote_ident(p_schema)) is null then
    return;
  end if;
  -- One after the other: two that replace a function at once are an error.
  perform pg_advisory_xact_lock(hashtext('openwebui-sync hosts'), hashtext(p_schema));
  select string_agg(
      case when r.valid_until is null then format('p_login = %L::name', r.db_role)
        else format('(p_login = %L::name and now() < %L::timestamptz)', r.db_role, r.valid_until) end,
      ' or ' order by r.valid_until nulls first, r.db_role)
    into v_check
  from sync_metadata.client_deployments d
  join sync_metadata.host_roles r using (host_id)
  where d.schema_name = p_schema and (r.valid_until is null or r.valid_until > now());
  execute format('create or replace function %I._sync_is_host(p_login name) returns boolean
    language sql stable parallel safe return %s', p_schema, coalesce(v_check, 'false'));
  -- Of other hosts too: such a role is an editor like any other.
  execute format('grant execute on function %I._sync_is_host(name) to sync_service', p_schema);
  for v_role in
    select g.db_role from sync_metadata.client_deployments d
    join sync_metadata.access_grants g using (deployment_id)
    join pg_catalog.pg_roles p on p.rolname = g.db_role
    where d.schema_name = p_schema and g.mode = 'edit'
  loop
    execute format('grant execute on function %I._sync_is_host(name) to %I', p_schema, v_role);
  end loop;
end $$;

/* Keeps the check of each client in step with host_roles, and with which host it is of. A client without tables has
   none yet: install_marks writes it. */
create function sync_metadata.note_host_roles() returns trigger
  language plpgsql security definer set search_path = pg_catalog, pg_temp
as $$
declare
  v_old jsonb := case when tg_op <> 'INSERT' then to_jsonb(old) end;
  v_new jsonb := case when tg_op <> 'DELETE' then to_jsonb(new) end;
begin
  perform sync_metadata.write_host_check(c.schema_name)
  from (
    select d.schema_name from sync_metadata.client_deployments d
    where case when tg_table_name = 'host_roles'
        then d.host_id in ((v_old ->> 'host_id')::uuid, (v_new ->> 'host_id')::uuid)
        else d.deployment_id = (v_new ->> 'deployment_id')::uuid end
      and to_regprocedure(format('%I._sync_is_host(name)', d.schema_name)) is not null
    order by d.schema_name
  ) c;
  return null;
end $$;

create trigger note_host_roles after insert or update or delete on sync_metadata.host_roles
  for each row execute function sync_metadata.note_host_roles();
create trigger note_host_roles after update of host_id on sync_metadata.client_deployments
  for each row when (new.host_id is distinct from old.host_id) execute function sync_metadata.note_host_roles();

create or replace function sync_metadata.set_rights(p_schema text, p_role text, p_mode text) returns void
  language plpgsql set search_path = pg_catalog, pg_temp
as $$
declare
  v_table text;
begin
  if to_regnamespace(quote_ident(p_schema)) is null
      or not exists (select 1 from pg_catalog.pg_roles r where r.rolname = p_role) then
    return;
  end if;
  execute format('revoke all on all tables in schema %I from %I', p_schema, p_role);
  execute format('revoke all on all functions in schema %I from %I', p_schema, p_role);
  execute format('revoke all on schema %I from %I', p_schema, p_role);
  if p_mode is not null then
    execute format('grant usage on schema %I to %I', p_schema, p_role);
    execute format('grant select on all tables in schema %I to %I', p_schema, p_role);
  end if;
  if p_mode in ('host', 'edit') then
    perform sync_metadata.grant_writes(p_schema, p_role);
  end if;
  if p_mode = 'edit' then
    for v_table in select t.qualified from sync_metadata.tables_of(p_schema) t loop
      execute format('grant delete on %s to %I', v_table, p_role);
    end loop;
    execute format('grant execute on all functions in schema %I to %I', p_schema, p_role);
  end if;
end $$;

drop function sync_metadata.install_marks(text);

/* Gives each table of a client the triggers it lacks, or all of them anew. A table whose first load goes on has no key
   yet: nobody else may change it, and no trigger for its rows keeps COPY from writing many at once. */
create function sync_metadata.install_marks(p_schema text, p_anew boolean default false) returns void
  language plpgsql set search_path = pg_catalog, pg_temp
as $$
declare
  v_table    text;
  v_loading  boolean;
  v_was      boolean;
  v_foreign  constant text := format('when (not %I._sync_is_host(session_user))', p_schema);
begin
  if p_anew or to_regprocedure(format('%I._sync_is_host(name)', p_schema)) is null then
    perform sync_metadata.write_host_check(p_schema);
  end if;
  for v_table, v_loading, v_was in
    select t.qualified,
      not exists (select 1 from pg_catalog.pg_index i where i.indrelid = c.oid and i.indisprimary),
      exists (select 1 from pg_catalog.pg_trigger g where g.tgrelid = c.oid and g.tgname = '_sync_loading')
    from sync_metadata.tables_of(p_schema) t
    join pg_catalog.pg_class c on c.oid = t.qualified::regclass
    where p_anew
      or not exists (select 1 from pg_catalog.pg_trigger g where g.tgrelid = c.oid and g.tgname = '_sync_2_mark')
  loop
    if v_loading then
      if p_anew or not v_was then
        execute format('create or replace trigger _sync_loading before insert or update or delete or truncate on %s
          for each statement %s execute function sync_metadata.refuse_edit()', v_table, v_foreign);
      end if;
      continue;
    end if;
    if v_was then
      execute format('drop trigger _sync_loading on %s', v_table);
    end if;
    execute format('create or replace trigger _sync_1_guard before insert or update on %s
      for each row %s execute function sync_metadata.guard_edit()', v_table, v_foreign);
    execute format('create or replace trigger _sync_2_mark before insert or update or delete on %s
      for each row %s execute function sync_metadata.mark_edit()', v_table, v_foreign);
    execute format('create or replace trigger _sync_3_announce after insert or update or delete on %s
      for each statement %s execute function sync_metadata.announce_edit()', v_table, v_foreign);
    execute format('create or replace trigger _sync_truncate before truncate on %s
      for each statement %s execute function sync_metadata.refuse_edit()', v_table, v_foreign);
  end loop;
end $$;

-- A table that the app has dropped is not there to be edited: no sync would ever meet the mark.

create or replace function sync_metadata.guard_edit() returns trigger
  language plpgsql security definer
  set search_path = pg_catalog, pg_temp set bytea_output = 'hex' set extra_float_digits = 1
as $$
declare
  v_keys   sync_metadata.table_keys;
  v_column text;
  v_value  text;
  v_before text;
  v_type   text;
  v_parts  text[] := array[]::text[];
  v_raw    jsonb;
begin
  select * into v_keys from sync_metadata.table_keys k
  where k.schema_name = tg_table_schema and k.table_name = tg_table_name;
  if not found and exists (select from sync_metadata.table_keys k where k.schema_name = tg_table_schema) then
    raise exception 'the app has dropped the table that %.% mirrors', tg_table_schema, tg_table_name
      using errcode = 'OS006', hint = 'No sync looks at its rows any more; they stay as they are. A new table can be edited after its next sync.';
  end if;

  if tg_op = 'INSERT' then
    if v_keys.schema_name is null then
      raise exception 'no sync has said what identifies a row of %.%', tg_table_schema, tg_table_name
        using errcode = 'OS006', hint = 'A new table takes rows after its first sync.';
    end if;
    for i in 1 .. coalesce(cardinality(v_keys.columns), 0) loop
      execute format('select ($1).%1$I::text, pg_typeof(($1).%1$I)::text', v_keys.columns[i])
        into v_value, v_type using new;
      v_parts := v_parts || sync_metadata.canonical_of(v_type, v_keys.affinities[i], v_value);
    end loop;
    -- A row whose key is its rowid gets one that SQLite itself does not give.
    new._sync_key := case
      when v_keys.columns is null then '~i-' || (random() * 4e18)::bigint + 1 || ';'
      when array_position(v_parts, null) is not null then '~0-' || (random() * 4e18)::bigint + 1 || ';'
      else sync_metadata.key_of(v_parts) end;
    new._sync_hash := null;
    new._sync_at := now();
    new._sync_deleted_at := null;
    new._sync_diverged := null;
    new._sync_raw := null;
    return new;
  end if;

  if new._sync_key is distinct from old._sync_key then
    raise exception '_sync_key is not to be changed' using errcode = 'OS006',
      hint = 'Insert the row under its new key and delete the old one.';
  end if;
  new._sync_hash := old._sync_hash;
  new._sync_at := old._sync_at;
  new._sync_diverged := old._sync_diverged;
  new._sync_edited_by := old._sync_edited_by;
  new._sync_raw := old._sync_raw;
  if new._sync_deleted_at is not null then
    -- A row that is deleted is not there to be changed; one that is being deleted keeps its last values.
    if old._sync_deleted_at is not null then
      return null;
    end if;
    new := old;
    new._sync_deleted_at := now();
    return new;
  end if;
  -- As bytes: json has no equality.
  if new operator(pg_catalog.*=) old then
    return new;
  end if;
  foreach v_column in array coalesce(v_keys.columns, array[]::text[]) loop
    execute format('select ($1).%1$I::text, ($2).%1$I::text', v_column) into v_value, v_before using new, old;
    if v_value is distinct from v_before then
      raise exception 'column % is the key of %.% and is not to be changed', quote_ident(v_column), tg_table_schema,
        tg_table_name using errcode = 'OS006', hint = 'Insert the row under its new key and delete the old one.';
    end if;
  end loop;
  -- What a column holds now is what it says, no longer what it could not say.
  v_raw := old._sync_raw;
  for v_column in select k from jsonb_object_keys(coalesce(old._sync_raw, '{}')) k
    join pg_catalog.pg_attribute a on a.attrelid = tg_relid and a.attname = k and not a.attisdropped
  loop
    execute format('select ($1).%1$I::text, ($2).%1$I::text', v_column) into v_value, v_before using new, old;
    if v_value is distinct from v_before then
      v_raw := nullif(v_raw - v_column, '{}');
    end if;
  end loop;
  new._sync_raw := v_raw;
  -- Brought back: of a row that the source had deleted it has none.
  if old._sync_deleted_at is not null and old._sync_edited_by is null and old._sync_diverged is null then
    new._sync_hash := null;
  end if;
  return new;
end $$;

-- Entries of the ledger follow tables and rows to the names and keys that an upgrade of the app gives them.
grant update (table_name, record_key) on sync_metadata.conflict_log to sync_service;

-- Retention: `retention_days` of each client's own rules.

drop function sync_metadata.purge_history(interval, interval, interval);

/* Removes what the calling host need not know any more: finished jobs with what belongs to them and conflicts that were
   decided p_jobs ago, events that every cache has seen, and the rows that conflicts show which were decided p_snapshots
   ago, or as long ago as p_own says of their client: {deployment_id: interval}. @returns how many of each. */
create function sync_metadata.purge_history(
    p_jobs interval default '90 days', p_events interval default '1 day', p_snapshots interval default '30 days',
    p_own jsonb default '{}')
  returns table (jobs bigint, events bigint, snapshots bigint)
  language plpgsql security definer set search_path = pg_catalog, pg_temp
as $$
declare
  v_host uuid := sync_metadata.require_host();
  v_mine uuid[] := array(select d.deployment_id from sync_metadata.client_deployments d where d.host_id = v_host);
begin
  if least(p_jobs, p_events, p_snapshots) < interval '0' or num_nulls(p_jobs, p_events, p_snapshots) > 0
      or exists (select 1 from jsonb_each_text(p_own) o where o.value is null or o.value::interval < interval '0') then
    raise exception 'history is kept for some time' using errcode = 'OS006';
  end if;
  delete from sync_metadata.sync_jobs j
  where j.deployment_id = any (v_mine) and j.status in ('success', 'failed', 'cancelled')
    and coalesce(j.finished_at, j.created_at) < now() - p_jobs;
  get diagnostics jobs = row_count;
  delete from sync_metadata.verifications v where v.deployment_id = any (v_mine) and v.verified_at < now() - p_jobs;
  delete from sync_metadata.row_quarantine q where q.deployment_id = any (v_mine) and q.resolved_at < now() - p_jobs;
  delete from sync_metadata.conflict_log c
  where c.deployment_id = any (v_mine) and c.status <> 'pending' and not c.is_standing
    and coalesce(c.resolved_at, c.detected_at)
      < now() - greatest(p_jobs, coalesce((p_own ->> c.deployment_id::text)::interval, p_snapshots));
  delete from sync_metadata.cache_events e where e.host_id = v_host and e.created_at < now() - p_events;
  get diagnostics events = row_count;
  update sync_metadata.conflict_log c
  set source_data = null, target_data = null, resolved_data = null
  where c.deployment_id = any (v_mine) and c.status <> 'pending' and not c.is_standing
    and coalesce(c.resolved_at, c.detected_at)
      < now() - coalesce((p_own ->> c.deployment_id::text)::interval, p_snapshots)
    and num_nonnulls(c.source_data, c.target_data, c.resolved_data) > 0;
  get diagnostics snapshots = row_count;
  return next;
end $$;
grant execute on function sync_metadata.purge_history(interval, interval, interval, jsonb) to sync_service;

-- Clients that are there already.
do $$
declare
  v_schema text;
begin
  for v_schema in
    select d.schema_name from sync_metadata.client_deployments d
    where to_regnamespace(quote_ident(d.schema_name)) is not null
    order by d.schema_name
  loop
    perform sync_metadata.install_marks(v_schema, p_anew => true);
  end loop;
end $$;

reset role;
