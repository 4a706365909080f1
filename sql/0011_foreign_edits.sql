-- Foreign edits: changes to a client's rows by anyone but a host role. A trigger leaves a mark on the row and keeps the
-- bookkeeping right; the next sync meets the mark and decides. docs/concepts.md, "Foreign edits".
--
-- Who is a host is decided by the name of session_user, which no setting changes: only host roles are called
-- `sync_host_…`, only those of the owning host have rights in a client's schema, and nobody else is granted any under
-- such a name (set_access). A name can be compared for each row; a look-up in host_roles cannot.

set local role sync_owner;

-- The ledger: which side a decision kept, by which rule, and whether a row still differs by it.
alter table sync_metadata.conflict_log
  add column outcome     text check (outcome in ('source', 'target', 'merged')),
  add column rule        text,
  -- Who made the edit, as its mark said.
  add column edited_by   text,
  -- The row's _sync_diverged is this conflict: what it says of the source is needed for as long as it does.
  add column is_standing boolean not null default false;
create index on sync_metadata.conflict_log (deployment_id) where is_standing;
grant update (conflict_type, outcome, rule, edited_by, is_standing) on sync_metadata.conflict_log to sync_service;
grant select (outcome, rule, edited_by, is_standing) on sync_metadata.conflict_log to sync_viewer;

-- What identifies a row of each client table, for rows that people insert; follows source_schemas. For definer functions
-- alone.
create table sync_metadata.table_keys (
  deployment_id uuid   not null references sync_metadata.client_deployments on delete cascade,
  schema_name   text   not null,
  table_name    text   not null,
  -- Null: the rowid.
  columns       text[],
  affinities    text[],
  primary key (schema_name, table_name)
);
create index on sync_metadata.table_keys (deployment_id);
alter table sync_metadata.table_keys enable row level security;

create function sync_metadata.note_table_keys() returns trigger
  language plpgsql security definer set search_path = pg_catalog, pg_temp
as $$
begin
  delete from sync_metadata.table_keys k where k.deployment_id = new.deployment_id;
  insert into sync_metadata.table_keys (deployment_id, schema_name, table_name, columns, affinities)
  select d.deployment_id, d.schema_name, t ->> 'target', k.columns, k.affinities
  from sync_metadata.client_deployments d
  cross join jsonb_array_elements(new.tables) t
  cross join lateral (
    select array_agg(c ->> 'target' order by n) as columns, array_agg(c ->> 'affinity' order by n) as affinities
    from jsonb_array_elements_text(case when t ->> 'keyedBy' <> 'rowid' then t -> 'key' else '[]' end)
      with ordinality names (name, n)
    join jsonb_array_elements(t -> 'columns') c on c ->> 'source' = name
  ) k
  where d.deployment_id = new.deployment_id and t ->> 'target' is not null
  on conflict (schema_name, table_name) do nothing;
  return null;
end $$;

create trigger note_table_keys after insert or update of tables on sync_metadata.source_schemas
  for each row execute function sync_metadata.note_table_keys();

/* A value's canonical text, from its column's type, the affinity that reads it back, and the value as text. The same as
   target/type-map.ts. */
create function sync_metadata.canonical_of(p_type text, p_affinity text, p_value text) returns text
  language sql immutable set search_path = pg_catalog, pg_temp
as $$
  select case p_type
    when 'bigint' then 'i' || p_value || ';'
    when 'boolean' then case p_value when 'true' then 'i1;' else 'i0;' end
    when 'double precision' then
      case when p_affinity = 'numeric' and p_value::float8 = trunc(p_value::float8)
          and abs(p_value::float8) <= 9007199254740992
        then 'i' || p_value::float8::bigint || ';'
        else 'r' || encode(float8send(p_value::float8), 'hex') || ';' end
    when 'text' then
      case when p_affinity in ('integer', 'numeric', 'real') and p_value ~ '^(0|-?[1-9][0-9]{0,17})$'
        then 'i' || p_value || ';'
        else 't' || octet_length(p_value) || ':' || p_value end
    when 'bytea' then 'b' || substr(p_value, 3) || ';'
    else 't' || octet_length(p_value) || ':' || p_value
  end
$$;

/* The `_sync_key` of these key values, given in canonical form: `keyOf` of core/canonical.ts. */
create function sync_metadata.key_of(p_values text[]) returns text
  language plpgsql immutable set search_path = pg_catalog, pg_temp
as $$
declare
  v_key text := case when cardinality(p_values) = 1 then substring(p_values[1] from '^t[0-9]+:([^~].*|)$') end;
begin
  v_key := coalesce(v_key, '~' || array_to_string(p_values, ''));
  return case when octet_length(v_key) > 1000 then '~h' || encode(sha256(convert_to(v_key, 'UTF8')), 'hex')
    else v_key end;
end $$;

-- The triggers. In the order of their names: the first looks after the bookkeeping, with the owner's rights because the
-- keys are not the editor's to read; the second marks, with the editor's own, because it says who that is.

create function sync_metadata.guard_edit() returns trigger
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

  if tg_op = 'INSERT' then
    if not found then
      raise exception 'no sync has said what identifies a row of %.%', tg_table_schema, tg_table_name
        using errcode = 'OS006', hint = 'A table that the app has dropped takes no rows; a new one does after its next sync.';
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

create function sync_metadata.mark_edit() returns trigger
  language plpgsql set search_path = pg_catalog, pg_temp
as $$
declare
  v_columns text;
  v_count   bigint;
begin
  if tg_op = 'DELETE' then
    execute format('update %I.%I set _sync_deleted_at = now() where _sync_key = $1 and _sync_deleted_at is null',
      tg_table_schema, tg_table_name) using old._sync_key;
    return null;
  end if;
  if tg_op = 'UPDATE' then
    if new operator(pg_catalog.*<>) old then
      new._sync_edited_by := current_user;
    end if;
    return new;
  end if;
  new._sync_edited_by := current_user;
  -- A row of that key that was deleted comes back.
  select string_agg(quote_ident(a.attname), ', ') into v_columns
  from pg_catalog.pg_attribute a
  where a.attrelid = tg_relid and a.attnum > 0 and not a.attisdropped and not starts_with(a.attname, '_sync_');
  execute format('update %1$I.%2$I set (%3$s, _sync_deleted_at) = (select %3$s, null::timestamptz from (select ($1).*) n)
    where _sync_key = $2 and _sync_deleted_at is not null', tg_table_schema, tg_table_name, v_columns)
    using new, new._sync_key;
  get diagnostics v_count = row_count;
  return case when v_count = 0 then new end;
end $$;

/* Once for each statement: nodes look at once, instead of within a minute. Equal notices of one transaction are one. */
create function sync_metadata.announce_edit() returns trigger
  language plpgsql security definer set search_path = pg_catalog, pg_temp
as $$
begin
  perform sync_metadata.wake(d.host_id, 'marks')
  from sync_metadata.client_deployments d
  where d.schema_name = tg_table_schema and d.host_id is not null;
  return null;
end $$;

create function sync_metadata.refuse_edit() returns trigger
  language plpgsql set search_path = pg_catalog, pg_temp
as $$
begin
  if tg_op = 'TRUNCATE' then
    raise exception '%.% mirrors a table of its client and cannot be truncated', tg_table_schema, tg_table_name
      using errcode = 'OS006', hint = 'Use DELETE: each row becomes a tombstone, and the next sync decides about it.';
  end if;
  raise exception 'the first load of %.% has not finished', tg_table_schema, tg_table_name
    using errcode = 'OS006', hint = 'Try again when it has.';
end $$;

/* Gives each table of a client the triggers it lacks. A table whose first load goes on has no key yet: nobody else may
   change it, and no trigger for its rows keeps COPY from writing many at once. */
create function sync_metadata.install_marks(p_schema text) returns void
  language plpgsql set search_path = pg_catalog, pg_temp
as $$
declare
  v_table    text;
  v_loading  boolean;
  v_was      boolean;
  v_foreign  constant text := 'when (not starts_with(session_user::text, ''sync_host_''))';
begin
  for v_table, v_loading, v_was in
    select t.qualified,
      not exists (select 1 from pg_catalog.pg_index i where i.indrelid = c.oid and i.indisprimary),
      exists (select 1 from pg_catalog.pg_trigger g where g.tgrelid = c.oid and g.tgname = '_sync_loading')
    from sync_metadata.tables_of(p_schema) t
    join pg_catalog.pg_class c on c.oid = t.qualified::regclass
    where not exists (select 1 from pg_catalog.pg_trigger g where g.tgrelid = c.oid and g.tgname = '_sync_2_mark')
  loop
    if v_loading then
      if not v_was then
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

-- Tables get their triggers where they are made: what `evolve_schema` did so far is called `evolve_tables` now.
alter function sync_metadata.evolve_schema(uuid, jsonb) rename to evolve_tables;
revoke execute on function sync_metadata.evolve_tables(uuid, jsonb) from sync_service;

/* Changes a client schema, as evolve_tables says, and gives new tables their triggers. */
create function sync_metadata.evolve_schema(p_deployment uuid, p_operations jsonb) returns void
  language plpgsql security definer set search_path = pg_catalog, pg_temp
as $$
begin
  perform sync_metadata.evolve_tables(p_deployment, p_operations);
  if p_operations @? '$[*].op ? (@ == "create_table" || @ == "finish_table")' then
    perform sync_metadata.install_marks(sync_metadata.require_deployment(p_deployment));
  end if;
end $$;
grant execute on function sync_metadata.evolve_schema(uuid, jsonb) to sync_service;

-- The queue of foreign edits.

/* The client's tables that have marked rows. An index that never had an entry is one page: tables that nobody has
   edited cost a look at a file's size, and no plan. */
create function sync_metadata.marked_tables(p_schema text) returns setof text
  language plpgsql stable set search_path = pg_catalog, pg_temp
as $$
declare
  v_table  text;
  v_marked boolean;
begin
  for v_table in
    select c.relname
    from pg_catalog.pg_class c
    join pg_catalog.pg_index i on i.indrelid = c.oid and i.indpred is not null
    where c.relnamespace = to_regnamespace(quote_ident(p_schema)) and c.relkind = 'r'
      and pg_relation_size(i.indexrelid) > current_setting('block_size')::int
    order by c.relname
  loop
    execute format('select exists (select from %I.%I where _sync_edited_by is not null)', p_schema, v_table) into v_marked;
    if v_marked then
      return next v_table;
    end if;
  end loop;
end $$;
grant execute on function sync_metadata.marked_tables(text) to sync_service;

-- Rights: whoever may edit may delete too, now that a delete leaves a tombstone.

create or replace function sync_metadata.grant_relation(p_deployment uuid, p_schema text, p_relation text) returns void
  language plpgsql set search_path = pg_catalog, pg_temp
as $$
declare
  v_role text;
  v_mode text;
  v_kind "char" := (
    select c.relkind from pg_catalog.pg_class c
    where c.relnamespace = to_regnamespace(quote_ident(p_schema)) and c.relname = p_relation);
begin
  for v_role, v_mode in select * from sync_metadata.roles_of(p_deployment) loop
    execute format('grant %s on %I.%I to %I',
      case when v_kind = 'v' or v_mode = 'read' then 'select' when v_mode = 'edit' then 'select, insert, update, delete'
        else 'select, insert, update' end,
      p_schema, p_relation, v_role);
  end loop;
end $$;

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
  end if;
end $$;

-- Retention: what a row that differs still refers to stays.

create or replace function sync_metadata.purge_history(
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
  where c.deployment_id = any (v_mine) and c.status <> 'pending' and not c.is_standing
    and coalesce(c.resolved_at, c.detected_at) < now() - p_jobs;
  delete from sync_metadata.cache_events e where e.host_id = v_host and e.created_at < now() - p_events;
  get diagnostics events = row_count;
  update sync_metadata.conflict_log c
  set source_data = null, target_data = null, resolved_data = null
  where c.deployment_id = any (v_mine) and c.status <> 'pending' and not c.is_standing
    and coalesce(c.resolved_at, c.detected_at) < now() - p_snapshots
    and num_nonnulls(c.source_data, c.target_data, c.resolved_data) > 0;
  get diagnostics snapshots = row_count;
  return next;
end $$;

-- What is there already.

do $$
declare
  v_schema text;
  v_role   text;
begin
  -- Fires note_table_keys.
  update sync_metadata.source_schemas s set tables = s.tables
  where s.version = (
    select max(n.version) from sync_metadata.source_schemas n where n.deployment_id = s.deployment_id);
  for v_schema in
    select d.schema_name from sync_metadata.client_deployments d
    where to_regnamespace(quote_ident(d.schema_name)) is not null
  loop
    perform sync_metadata.install_marks(v_schema);
  end loop;
  for v_schema, v_role in
    select d.schema_name, g.db_role
    from sync_metadata.access_grants g join sync_metadata.client_deployments d using (deployment_id)
    where g.mode = 'edit'
  loop
    perform sync_metadata.set_rights(v_schema, v_role, 'edit');
  end loop;
end $$;

reset role;
