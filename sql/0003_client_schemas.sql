-- Client schemas: one per deployment, made and changed only here, from validated descriptions. Every name goes through
-- format('%I'), every type is one of six. docs/concepts.md, "A client table".

set local role sync_owner;

-- Who may touch what.

/* The deployment's schema. @raises OS003 unless the deployment is the caller's; an unknown one looks the same. */
create function sync_metadata.require_deployment(p_deployment uuid) returns text
  language plpgsql stable set search_path = pg_catalog, pg_temp
as $$
declare
  v_host   uuid := sync_metadata.require_host();
  v_schema text;
begin
  select d.schema_name into v_schema
  from sync_metadata.client_deployments d
  where d.deployment_id = p_deployment and d.host_id = v_host;
  if v_schema is null then
    raise exception 'deployment % is not one of this host', coalesce(p_deployment::text, 'null') using errcode = 'OS003';
  end if;
  return v_schema;
end $$;

/* Roles with rights in a client's schema, and which: the valid roles of its host, and whom `grant-access` named. */
create function sync_metadata.roles_of(p_deployment uuid) returns table (db_role text, mode text)
  language sql stable set search_path = pg_catalog, pg_temp
as $$
  select r.db_role, 'host'
  from sync_metadata.client_deployments d
  join sync_metadata.host_roles r using (host_id)
  join pg_catalog.pg_roles p on p.rolname = r.db_role
  where d.deployment_id = p_deployment and (r.valid_until is null or r.valid_until > now())
  union all
  select g.db_role, g.mode
  from sync_metadata.access_grants g
  join pg_catalog.pg_roles p on p.rolname = g.db_role
  where g.deployment_id = p_deployment
$$;

/* Gives every role of a deployment its rights on one table or view of it. */
create function sync_metadata.grant_relation(p_deployment uuid, p_schema text, p_relation text) returns void
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
      case when v_kind = 'v' or v_mode = 'read' then 'select' else 'select, insert, update' end,
      p_schema, p_relation, v_role);
  end loop;
end $$;

-- Client names.

/* The schema that a client name stands for. @raises OS004 naming the rule it breaks. Same rules: core/client-name.ts. */
create function sync_metadata.schema_of(p_client_name text) returns text
  language plpgsql stable set search_path = pg_catalog, pg_temp
as $$
declare
  v_schema text := translate(p_client_name, '.-', '__');
begin
  if p_client_name is null or p_client_name !~ '\A[a-z0-9][a-z0-9._-]{0,61}[a-z0-9]\Z' then
    raise exception '% is not a client name', coalesce(quote_literal(left(p_client_name, 80)), 'null')
      using errcode = 'OS004',
      hint = 'Use 2 to 63 characters of a-z, 0-9, "-", "_" and ".", beginning and ending with a letter or digit.';
  end if;
  if starts_with(v_schema, 'pg_') or v_schema = any (array[
      'auth', 'cron', 'dbdev', 'extensions', 'graphql', 'graphql_public', 'information_schema', 'net', 'pgbouncer',
      'pgmq', 'pgmq_public', 'pgsodium', 'pgsodium_masks', 'pgtle', 'public', 'realtime', 'repack', 'storage',
      'supabase_functions', 'supabase_migrations', 'sync_metadata', 'tiger', 'tiger_data', 'topology', 'vault'])
      -- A schema called like a role comes first in that role's search path: "$user".
      or exists (select 1 from pg_catalog.pg_roles r where r.rolname = v_schema) then
    raise exception '"%" is not a client name: Postgres or Supabase owns a schema or role of that name', p_client_name
      using errcode = 'OS004', hint = format('Use another name, for example "client-%s".', p_client_name);
  end if;
  return v_schema;
end $$;

/* A name near p_client_name that nothing is called yet. */
create function sync_metadata.suggest_name(p_client_name text) returns text
  language sql stable set search_path = pg_catalog, pg_temp
as $$
  select rtrim(left(p_client_name, 60), '.-_') || '-' || n
  from generate_series(2, 99) n
  where not exists (
    select 1 from pg_catalog.pg_namespace s
    where s.nspname = translate(rtrim(left(p_client_name, 60), '.-_') || '-' || n, '.-', '__'))
  order by n
  limit 1
$$;

/* Registers a client of the calling host and makes its schema; the same client again gives the same id and changes
   nothing. p_settings: any of the columns listed below. @raises OS004, OS005, OS006. */
create function sync_metadata.register_deployment(p_client_name text, p_settings jsonb default '{}') returns uuid
  language plpgsql security definer set search_path = pg_catalog, pg_temp
as $$
declare
  v_host     uuid := sync_metadata.require_host();
  v_schema   text := sync_metadata.schema_of(p_client_name);
  v_settings jsonb := coalesce(p_settings, '{}');
  v_fqdn     text;
  v_key      text;
  v_id       uuid;
  v_known    sync_metadata.client_deployments;
  v_role     text;
begin
  if jsonb_typeof(v_settings) <> 'object' then
    raise exception 'settings must be a JSON object' using errcode = 'OS006';
  end if;
  select k into v_key
  from jsonb_object_keys(v_settings) k
  where k <> all (array['container_name', 'fqdn', 'port', 'database_type', 'sqlite_path', 'direction', 'sync_enabled',
    'sync_interval', 'sync_schedule', 'config'])
  limit 1;
  if v_key is not null then
    raise exception 'unknown setting "%"', left(v_key, 80) using errcode = 'OS006';
  end if;
  -- A client name with a dot is a host name.
  v_fqdn := lower(case when p_client_name like '%.%' then p_client_name else v_settings ->> 'fqdn' end);

  begin
    insert into sync_metadata.client_deployments (
      host_id, client_name, schema_name, container_name, fqdn, port, database_type, sqlite_path, direction,
      sync_enabled, sync_interval, sync_schedule, config)
    values (
      v_host, p_client_name, v_schema, v_settings ->> 'container_name', v_fqdn, (v_settings ->> 'port')::int,
      coalesce(v_settings ->> 'database_type', 'sqlite'), v_settings ->> 'sqlite_path',
      coalesce(v_settings ->> 'direction', 'one_way'), coalesce((v_settings ->> 'sync_enabled')::boolean, true),
      (v_settings ->> 'sync_interval')::int, v_settings ->> 'sync_schedule',
      coalesce(nullif(v_settings -> 'config', 'null'), '{}'))
    -- Waits for whoever registers the same client at this moment, by whichever of its names is met first.
    on conflict do nothing
    returning deployment_id into v_id;
  exception
    when check_violation or invalid_text_representation or numeric_value_out_of_range then
      raise exception 'a setting of "%" is out of its range', p_client_name using errcode = 'OS006', detail = sqlerrm;
  end;

  if v_id is null then
    select * into v_known from sync_metadata.client_deployments d where d.schema_name = v_schema;
    -- Whose it is stays unsaid.
    if v_known.host_id is distinct from v_host then
      raise exception 'the client name "%" is taken', p_client_name using errcode = 'OS005',
        hint = format('Use another name, for example "%s"; if the client moved here, `owsync db transfer` brings it along.',
          sync_metadata.suggest_name(p_client_name));
    end if;
    if v_fqdn is distinct from lower(v_known.fqdn) and v_fqdn is not null then
      if v_known.fqdn is not null then
        raise exception '"%" would share the schema % with "%"', v_fqdn, v_schema, v_known.fqdn using errcode = 'OS005',
          hint = format('Register it under another name, for example "%s".', sync_metadata.suggest_name(p_client_name));
      end if;
      update sync_metadata.client_deployments d set fqdn = v_fqdn where d.deployment_id = v_known.deployment_id;
    end if;
    return v_known.deployment_id;
  end if;

  begin
    execute format('create schema %I', v_schema);
  exception
    when duplicate_schema then
      raise exception 'there is a schema "%" already, which no client owns', v_schema using errcode = 'OS005',
        hint = format('Use another name, for example "%s".', sync_metadata.suggest_name(p_client_name));
  end;
  for v_role in select r.db_role from sync_metadata.roles_of(v_id) r loop
    execute format('grant usage on schema %I to %I', v_schema, v_role);
  end loop;
  insert into sync_metadata.audit_log (host_id, actor, action, client_name)
  values (v_host, session_user, 'client.registered', p_client_name);
  return v_id;
end $$;

-- Reading one operation.

create function sync_metadata.op_fail(p_op jsonb, p_problem text) returns void
  language plpgsql set search_path = pg_catalog, pg_temp
as $$
begin
  raise exception '%: %', coalesce(left(p_op ->> 'op', 40), 'operation'), p_problem using errcode = 'OS006',
    detail = left(p_op::text, 500);
end $$;

create function sync_metadata.op_only(p_op jsonb, variadic p_keys text[]) returns void
  language plpgsql set search_path = pg_catalog, pg_temp
as $$
declare
  v_key text;
begin
  if jsonb_typeof(p_op) is distinct from 'object' then
    perform sync_metadata.op_fail('{}', format('%s is not an object', left(coalesce(p_op::text, 'null'), 80)));
  end if;
  select k into v_key from jsonb_object_keys(p_op) k where k <> all (p_keys) limit 1;
  if v_key is not null then
    perform sync_metadata.op_fail(p_op, format('unknown key "%s"', left(v_key, 80)));
  end if;
end $$;

create function sync_metadata.op_text(p_op jsonb, p_key text) returns text
  language plpgsql set search_path = pg_catalog, pg_temp
as $$
begin
  if jsonb_typeof(p_op -> p_key) is distinct from 'string' or p_op ->> p_key = '' then
    perform sync_metadata.op_fail(p_op, format('"%s" must be a text that is not empty', p_key));
  end if;
  return p_op ->> p_key;
end $$;

create function sync_metadata.op_array(p_op jsonb, p_key text) returns jsonb
  language plpgsql set search_path = pg_catalog, pg_temp
as $$
begin
  if not p_op ? p_key then
    return '[]';
  end if;
  if jsonb_typeof(p_op -> p_key) <> 'array' then
    perform sync_metadata.op_fail(p_op, format('"%s" must be an array', p_key));
  end if;
  return p_op -> p_key;
end $$;

create function sync_metadata.op_type(p_op jsonb) returns text
  language plpgsql set search_path = pg_catalog, pg_temp
as $$
declare
  v_type text := sync_metadata.op_text(p_op, 'type');
begin
  if v_type <> all (array['bigint', 'boolean', 'double precision', 'text', 'json', 'bytea']) then
    perform sync_metadata.op_fail(p_op, format('unknown type "%s"', left(v_type, 80)));
  end if;
  return v_type;
end $$;

/* A name for something new. @raises OS004 when Postgres or the bookkeeping has a use for it. */
create function sync_metadata.op_new_name(p_op jsonb, p_key text, p_what text) returns text
  language plpgsql set search_path = pg_catalog, pg_temp
as $$
declare
  v_name text := sync_metadata.op_text(p_op, p_key);
begin
  if octet_length(v_name) > 63 then
    raise exception 'the % name "%…" has more than 63 bytes', p_what, left(v_name, 60) using errcode = 'OS004';
  end if;
  if starts_with(v_name, '_sync_') or (p_what = 'table' and starts_with(v_name, 'live_')) or (p_what = 'column'
      and v_name = any (array['ctid', 'xmin', 'xmax', 'cmin', 'cmax', 'tableoid'])) then
    raise exception 'the % name "%" has another use', p_what, v_name using errcode = 'OS004';
  end if;
  return v_name;
end $$;

create function sync_metadata.table_oid(p_schema text, p_table text) returns oid
  language sql stable set search_path = pg_catalog, pg_temp
as $$
  select c.oid
  from pg_catalog.pg_class c
  join pg_catalog.pg_namespace n on n.oid = c.relnamespace
  where n.nspname = p_schema and c.relname = p_table and c.relkind = 'r'
$$;

/* An existing table of the schema. */
create function sync_metadata.op_table(p_schema text, p_op jsonb) returns text
  language plpgsql set search_path = pg_catalog, pg_temp
as $$
declare
  v_name text := sync_metadata.op_text(p_op, 'table');
begin
  if sync_metadata.table_oid(p_schema, v_name) is null then
    perform sync_metadata.op_fail(p_op, format('there is no table "%s"', left(v_name, 80)));
  end if;
  return v_name;
end $$;

/* The type of a source column of the table, null when there is none of that name. */
create function sync_metadata.column_type(p_schema text, p_table text, p_column text) returns text
  language sql stable set search_path = pg_catalog, pg_temp
as $$
  select format_type(a.atttypid, null)
  from pg_catalog.pg_attribute a
  where a.attrelid = sync_metadata.table_oid(p_schema, p_table) and a.attname = p_column
    and a.attnum > 0 and not a.attisdropped and not starts_with(a.attname, '_sync_')
$$;

create function sync_metadata.op_column(p_schema text, p_table text, p_op jsonb, p_key text) returns text
  language plpgsql set search_path = pg_catalog, pg_temp
as $$
declare
  v_name text := sync_metadata.op_text(p_op, p_key);
begin
  if sync_metadata.column_type(p_schema, p_table, v_name) is null then
    perform sync_metadata.op_fail(p_op, format('table "%s" has no column "%s"', p_table, left(v_name, 80)));
  end if;
  return v_name;
end $$;

create function sync_metadata.op_columns(p_schema text, p_table text, p_op jsonb) returns text[]
  language plpgsql set search_path = pg_catalog, pg_temp
as $$
declare
  v_columns text[] := array[]::text[];
  v_column  jsonb;
begin
  for v_column in select value from jsonb_array_elements(sync_metadata.op_array(p_op, 'columns')) loop
    v_columns := v_columns
      || sync_metadata.op_column(p_schema, p_table, jsonb_build_object('op', p_op ->> 'op', 'columns', v_column), 'columns');
  end loop;
  if cardinality(v_columns) = 0 then
    perform sync_metadata.op_fail(p_op, '"columns" is empty');
  end if;
  return v_columns;
end $$;

-- Notes for people: a table's comment, a line for each.

create function sync_metadata.note(p_schema text, p_table text, p_line text) returns void
  language plpgsql set search_path = pg_catalog, pg_temp
as $$
declare
  v_comment text := obj_description(sync_metadata.table_oid(p_schema, p_table), 'pg_class');
begin
  if p_line <> all (coalesce(string_to_array(v_comment, e'\n'), array[]::text[])) then
    execute format('comment on table %I.%I is %L', p_schema, p_table, concat_ws(e'\n', v_comment, p_line));
  end if;
end $$;

create function sync_metadata.unnote(p_schema text, p_table text, p_start text) returns void
  language plpgsql set search_path = pg_catalog, pg_temp
as $$
declare
  v_comment text := obj_description(sync_metadata.table_oid(p_schema, p_table), 'pg_class');
begin
  if v_comment is not null then
    execute format('comment on table %I.%I is %L', p_schema, p_table, (
      select string_agg(line, e'\n') from unnest(string_to_array(v_comment, e'\n')) line
      where not starts_with(line, p_start)));
  end if;
end $$;

-- Indexes.

create function sync_metadata.index_alias(p_table oid, p_name text) returns text
  language sql immutable set search_path = pg_catalog, pg_temp
as $$ select left(regexp_replace(p_name, '[^ -~]', '_', 'g'), 40) || '_' || left(md5(p_table::text || ':' || p_name), 12) $$;

/* The relation under which an index of the source stands on this table; null when it does not. Relations of a schema
   share their names and a dropped table keeps its indexes, so the name may have had to give way. */
create function sync_metadata.index_on(p_schema text, p_table text, p_name text) returns text
  language sql stable set search_path = pg_catalog, pg_temp
as $$
  select c.relname
  from pg_catalog.pg_index i
  join pg_catalog.pg_class c on c.oid = i.indexrelid
  where i.indrelid = sync_metadata.table_oid(p_schema, p_table)
    and c.relname in (p_name, sync_metadata.index_alias(i.indrelid, p_name))
    and not i.indisprimary and i.indpred is null
$$;

create function sync_metadata.create_index(p_schema text, p_table text, p_name text, p_columns text[]) returns void
  language plpgsql set search_path = pg_catalog, pg_temp
as $$
declare
  v_table oid := sync_metadata.table_oid(p_schema, p_table);
  v_name  text := p_name;
  v_list  text := (select string_agg(quote_ident(c), ', ' order by n) from unnest(p_columns) with ordinality u (c, n));
begin
  if sync_metadata.index_on(p_schema, p_table, p_name) is not null then
    return;
  end if;
  if exists (
    select 1 from unnest(p_columns) c where sync_metadata.column_type(p_schema, p_table, c) = 'json') then
    perform sync_metadata.note(p_schema, p_table, format('index %s left out: json has no order', quote_ident(p_name)));
    return;
  end if;
  if octet_length(p_name) > 63 or exists (
    select 1 from pg_catalog.pg_class c
    where c.relname = p_name and c.relnamespace = to_regnamespace(quote_ident(p_schema))) then
    v_name := sync_metadata.index_alias(v_table, p_name);
  end if;
  begin
    execute format('create index %I on %I.%I (%s)', v_name, p_schema, p_table, v_list);
  exception
    -- A value longer than a third of a page cannot be in a btree; its hash can.
    when program_limit_exceeded or too_many_columns then
      if cardinality(p_columns) = 1 then
        execute format('create index %I on %I.%I using hash (%s)', v_name, p_schema, p_table, v_list);
      else
        perform sync_metadata.note(p_schema, p_table,
          format('index %s left out: a value is too long for it', quote_ident(p_name)));
      end if;
  end;
end $$;

/* After a value that was too long for one of the table's indexes: none of them can refuse a value any more. */
create function sync_metadata.loosen_indexes(p_schema text, p_table text) returns void
  language plpgsql set search_path = pg_catalog, pg_temp
as $$
declare
  v_index   text;
  v_columns text[];
begin
  for v_index, v_columns in
    select c.relname, array_agg(a.attname::text order by k.n)
    from pg_catalog.pg_index i
    join pg_catalog.pg_class c on c.oid = i.indexrelid
    join pg_catalog.pg_am m on m.oid = c.relam
    cross join unnest(i.indkey::int2[]) with ordinality k (attnum, n)
    join pg_catalog.pg_attribute a on a.attrelid = i.indrelid and a.attnum = k.attnum
    where i.indrelid = sync_metadata.table_oid(p_schema, p_table) and m.amname = 'btree'
      and not i.indisprimary and i.indpred is null
    group by c.relname
    having bool_or(a.atttypid in ('pg_catalog.text'::regtype, 'pg_catalog.bytea'::regtype))
  loop
    execute format('drop index %I.%I', p_schema, v_index);
    if cardinality(v_columns) = 1 then
      execute format('create index %I on %I.%I using hash (%I)', v_index, p_schema, p_table, v_columns[1]);
      perform sync_metadata.note(p_schema, p_table,
        format('index %s is a hash: a value is too long to be ordered', quote_ident(v_index)));
    else
      perform sync_metadata.note(p_schema, p_table,
        format('index %s left out: a value is too long for it', quote_ident(v_index)));
    end if;
  end loop;
end $$;

-- Views.

create function sync_metadata.live_name(p_table text) returns text
  language sql immutable set search_path = pg_catalog, pg_temp
as $$ select case when octet_length(p_table) <= 58 then 'live_' || p_table else 'live_' || md5(p_table) end $$;

/* Makes live_<table>: the rows that are not deleted, with the columns [{name, as}], or all that are not marked as
   dropped. */
create function sync_metadata.replace_view(p_deployment uuid, p_schema text, p_table text, p_op jsonb, p_columns jsonb)
  returns void
  language plpgsql set search_path = pg_catalog, pg_temp
as $$
declare
  v_view   text := sync_metadata.live_name(p_table);
  v_list   text;
  v_column jsonb;
  v_text   text;
begin
  if jsonb_array_length(p_columns) = 0 then
    select string_agg(quote_ident(a.attname), ', ' order by a.attnum) into v_list
    from pg_catalog.pg_attribute a
    where a.attrelid = sync_metadata.table_oid(p_schema, p_table) and a.attnum > 0 and not a.attisdropped
      and not starts_with(a.attname, '_sync_')
      and col_description(a.attrelid, a.attnum) is distinct from 'dropped from the source';
  else
    for v_column in select value from jsonb_array_elements(p_columns) loop
      v_column := case jsonb_typeof(v_column) when 'object' then v_column || jsonb_build_object('op', p_op -> 'op')
        else v_column end;
      perform sync_metadata.op_only(v_column, 'op', 'name', 'as');
      if octet_length(sync_metadata.op_text(v_column, 'as')) > 63 then
        raise exception 'the view column name "%…" has more than 63 bytes', left(v_column ->> 'as', 60)
          using errcode = 'OS004';
      end if;
      v_list := concat_ws(', ', v_list,
        format('%I as %I', sync_metadata.op_column(p_schema, p_table, v_column, 'name'), v_column ->> 'as'));
    end loop;
  end if;
  v_text := format('view %I.%I with (security_invoker = true) as select %s from %I.%I where _sync_deleted_at is null',
    p_schema, v_view, v_list, p_schema, p_table);
  begin
    execute 'create or replace ' || v_text;
  exception
    -- A column went, moved or changed its type, which only a new view can follow.
    when invalid_table_definition then
      execute format('drop view %I.%I', p_schema, v_view);
      execute 'create ' || v_text;
    when duplicate_column then
      perform sync_metadata.op_fail(p_op, 'two columns of the view have one name');
  end;
  perform sync_metadata.grant_relation(p_deployment, p_schema, v_view);
end $$;

-- The operations.

create function sync_metadata.evolve_create_table(p_deployment uuid, p_schema text, p_op jsonb) returns void
  language plpgsql set search_path = pg_catalog, pg_temp
as $$
declare
  v_table  text := sync_metadata.op_new_name(p_op, 'table', 'table');
  v_lz4    text := case when exists (
    select 1 from pg_catalog.pg_settings s where s.name = 'default_toast_compression' and 'lz4' = any (s.enumvals))
    then ' compression lz4' else '' end;
  v_list   text := '';
  v_names  text[] := array[]::text[];
  v_column jsonb;
  v_name   text;
  v_type   text;
begin
  perform sync_metadata.op_only(p_op, 'op', 'table', 'columns');
  if exists (
    select 1 from pg_catalog.pg_class c
    where c.relname = v_table and c.relnamespace = to_regnamespace(quote_ident(p_schema))) then
    perform sync_metadata.op_fail(p_op, format('there is a "%s" already', v_table));
  end if;
  for v_column in select value from jsonb_array_elements(sync_metadata.op_array(p_op, 'columns')) loop
    perform sync_metadata.op_only(v_column, 'name', 'type');
    v_column := v_column || jsonb_build_object('op', 'create_table');
    v_name := sync_metadata.op_new_name(v_column, 'name', 'column');
    v_type := sync_metadata.op_type(v_column);
    if v_name = any (v_names) then
      perform sync_metadata.op_fail(p_op, format('two columns are called "%s"', v_name));
    end if;
    v_names := v_names || v_name;
    v_list := v_list || format('%I %s%s, ', v_name, v_type,
      case when v_type in ('text', 'json', 'bytea') then v_lz4 else '' end);
  end loop;
  if v_list = '' then
    perform sync_metadata.op_fail(p_op, '"columns" is empty');
  end if;
  -- No primary key yet: a first load is copied in before anything is indexed.
  execute format('create table %I.%I (%s
    _sync_key text collate "C" not null,
    _sync_hash bytea,
    _sync_at timestamptz not null default now(),
    _sync_deleted_at timestamptz,
    _sync_edited_by text,
    _sync_diverged uuid,
    _sync_raw jsonb%s)', p_schema, v_table, v_list, v_lz4);
  -- In the table's own statement only from PostgreSQL 16 on.
  execute format('alter table %I.%I alter column _sync_hash set storage plain', p_schema, v_table);
  perform sync_metadata.grant_relation(p_deployment, p_schema, v_table);
end $$;

create function sync_metadata.evolve_add_column(p_schema text, p_op jsonb) returns void
  language plpgsql set search_path = pg_catalog, pg_temp
as $$
declare
  v_table  text := sync_metadata.op_table(p_schema, p_op);
  v_column text := sync_metadata.op_new_name(p_op, 'column', 'column');
  v_type   text := sync_metadata.op_type(p_op);
begin
  perform sync_metadata.op_only(p_op, 'op', 'table', 'column', 'type');
  if sync_metadata.column_type(p_schema, v_table, v_column) is not null then
    perform sync_metadata.op_fail(p_op, format('table "%s" has a column "%s" already', v_table, v_column));
  end if;
  execute format('alter table %I.%I add column %I %s%s', p_schema, v_table, v_column, v_type,
    case when v_type in ('text', 'json', 'bytea') and exists (
      select 1 from pg_catalog.pg_settings s where s.name = 'default_toast_compression' and 'lz4' = any (s.enumvals))
      then ' compression lz4' else '' end);
end $$;

/* Changes a column's type in place. A value that would not read back as it was first goes into _sync_raw, in the
   canonical form of docs/concepts.md; then it is converted as closely as the new type allows, or becomes null. */
create function sync_metadata.evolve_set_type(p_deployment uuid, p_schema text, p_op jsonb) returns void
  language plpgsql set search_path = pg_catalog, pg_temp
as $$
declare
  v_table  text := sync_metadata.op_table(p_schema, p_op);
  v_column text := sync_metadata.op_column(p_schema, v_table, p_op, 'column');
  v_to     text := sync_metadata.op_type(p_op);
  v_from   text := sync_metadata.column_type(p_schema, v_table, v_column);
  v_view   text := sync_metadata.live_name(v_table);
  v_text   text;
  -- Of the column as %1$I: which values the new type does not hold exactly, their canonical form, the conversion.
  v_lossy  text;
  v_raw    text;
  v_using  text;
begin
  perform sync_metadata.op_only(p_op, 'op', 'table', 'column', 'type');
  if v_from = v_to then
    return;
  end if;
  v_raw := case v_from
    when 'bigint' then '''i'' || %1$I || '';'''
    when 'double precision' then '''r'' || encode(float8send(%1$I), ''hex'') || '';'''
    when 'text' then '''t'' || octet_length(%1$I) || '':'' || %1$I'
  end;
  case v_from || ' -> ' || v_to
    when 'boolean -> bigint' then
      v_lossy := 'false';
      v_using := '%1$I::int::bigint';
    when 'boolean -> text' then
      v_lossy := 'false';
      v_using := '%1$I::int::text';
    when 'bigint -> text' then
      v_lossy := '%1$I not between -999999999999999999 and 999999999999999999';
      v_using := '%1$I::text';
    when 'bigint -> double precision' then
      v_lossy := '%1$I not between -9007199254740992 and 9007199254740992';
      v_using := '%1$I::double precision';
    when 'double precision -> bigint' then
      v_lossy := '%1$I <> trunc(%1$I) or abs(%1$I) > 9007199254740992';
      v_using := 'case when not (' || v_lossy || ') then %1$I::bigint end';
    when 'text -> bigint' then
      v_lossy := '%1$I !~ ''\A(0|-?[1-9][0-9]{0,17})\Z''';
      v_using := 'case when not (' || v_lossy || ') then %1$I::bigint end';
    when 'text -> double precision' then
      v_lossy := '%1$I !~ ''\A(0|-?[1-9][0-9]{0,14})\Z''';
      v_using := 'case when %1$I ~ ''\A-?[0-9]{1,17}(\.[0-9]{1,17})?\Z'' then %1$I::double precision end';
    else
      perform sync_metadata.op_fail(p_op, format('%s does not become %s', v_from, v_to));
  end case;

  if v_lossy <> 'false' then
    execute format(
      'update %2$I.%3$I set _sync_raw = coalesce(_sync_raw, ''{}'') || jsonb_build_object(%1$L, ' || v_raw || ')
       where (' || v_lossy || ') and not coalesce(_sync_raw ? %1$L, false)', v_column, p_schema, v_table);
  end if;
  -- A view holds its columns' types.
  select pg_get_viewdef(c.oid) into v_text
  from pg_catalog.pg_class c
  where c.relnamespace = to_regnamespace(quote_ident(p_schema)) and c.relname = v_view and c.relkind = 'v';
  if v_text is not null then
    execute format('drop view %I.%I', p_schema, v_view);
  end if;
  execute format('alter table %2$I.%3$I alter column %1$I type ' || v_to || ' using (' || v_using || ')',
    v_column, p_schema, v_table);
  if v_text is not null then
    execute format('create view %I.%I with (security_invoker = true) as %s', p_schema, v_view, v_text);
    perform sync_metadata.grant_relation(p_deployment, p_schema, v_view);
  end if;
end $$;

create function sync_metadata.evolve_rename_table(p_schema text, p_op jsonb) returns void
  language plpgsql set search_path = pg_catalog, pg_temp
as $$
declare
  v_table text := sync_metadata.op_table(p_schema, p_op);
  v_to    text := sync_metadata.op_new_name(p_op, 'to', 'table');
  v_old   text;
  v_new   text;
begin
  perform sync_metadata.op_only(p_op, 'op', 'table', 'to');
  foreach v_new in array array[v_to, sync_metadata.live_name(v_to)] loop
    if exists (
      select 1 from pg_catalog.pg_class c
      where c.relname = v_new and c.relnamespace = to_regnamespace(quote_ident(p_schema))) then
      perform sync_metadata.op_fail(p_op, format('there is a "%s" already', v_new));
    end if;
  end loop;
  execute format('alter table %I.%I rename to %I', p_schema, v_table, v_to);
  v_old := sync_metadata.live_name(v_table);
  if to_regclass(format('%I.%I', p_schema, v_old)) is not null then
    execute format('alter view %I.%I rename to %I', p_schema, v_old, sync_metadata.live_name(v_to));
  end if;
end $$;

create function sync_metadata.evolve_mark(p_schema text, p_op jsonb, p_dropped boolean) returns void
  language plpgsql set search_path = pg_catalog, pg_temp
as $$
declare
  v_table text := sync_metadata.op_table(p_schema, p_op);
begin
  perform sync_metadata.op_only(p_op, 'op', 'table', 'column');
  if p_op ? 'column' then
    execute format('comment on column %I.%I.%I is %L', p_schema, v_table,
      sync_metadata.op_column(p_schema, v_table, p_op, 'column'),
      case when p_dropped then 'dropped from the source' end);
  elsif p_dropped then
    perform sync_metadata.note(p_schema, v_table, 'dropped from the source');
  else
    perform sync_metadata.unnote(p_schema, v_table, 'dropped from the source');
  end if;
end $$;

create function sync_metadata.evolve_finish_table(p_deployment uuid, p_schema text, p_op jsonb) returns void
  language plpgsql set search_path = pg_catalog, pg_temp
as $$
declare
  v_table text := sync_metadata.op_table(p_schema, p_op);
  v_oid   oid := sync_metadata.table_oid(p_schema, v_table);
  v_index jsonb;
  v_key   text;
begin
  perform sync_metadata.op_only(p_op, 'op', 'table', 'indexes', 'view_columns');
  -- The key's index first, because it fails when rows are to go; made the primary key last, because that locks
  -- readers out until the transaction ends.
  select c.relname into v_key
  from pg_catalog.pg_index i join pg_catalog.pg_class c on c.oid = i.indexrelid
  where i.indrelid = v_oid and i.indisprimary;
  if v_key is null then
    begin
      execute format('create unique index on %I.%I (_sync_key)', p_schema, v_table);
    exception
      when unique_violation then
        -- A load that was interrupted and resumed, or that read a file while it changed, has rows twice.
        execute format('delete from %1$I.%2$I t using (
            select ctid as row_id, row_number() over (partition by _sync_key order by _sync_at desc, ctid desc) as n
            from %1$I.%2$I) d
          where t.ctid = d.row_id and d.n > 1', p_schema, v_table);
        execute format('create unique index on %I.%I (_sync_key)', p_schema, v_table);
    end;
    select c.relname into v_key
    from pg_catalog.pg_index i join pg_catalog.pg_class c on c.oid = i.indexrelid
    where i.indrelid = v_oid and i.indisunique and i.indpred is null;
  end if;
  for v_index in select value from jsonb_array_elements(sync_metadata.op_array(p_op, 'indexes')) loop
    perform sync_metadata.op_only(v_index, 'name', 'columns');
    v_index := v_index || jsonb_build_object('op', 'finish_table');
    perform sync_metadata.create_index(p_schema, v_table, sync_metadata.op_text(v_index, 'name'),
      sync_metadata.op_columns(p_schema, v_table, v_index));
  end loop;
  -- The queue of target changes.
  if not exists (select 1 from pg_catalog.pg_index i where i.indrelid = v_oid and i.indpred is not null) then
    execute format('create index on %I.%I (_sync_key) where _sync_edited_by is not null', p_schema, v_table);
  end if;
  perform sync_metadata.replace_view(p_deployment, p_schema, v_table, p_op, sync_metadata.op_array(p_op, 'view_columns'));
  if not exists (select 1 from pg_catalog.pg_index i where i.indrelid = v_oid and i.indisprimary) then
    execute format('alter table %I.%I add primary key using index %I', p_schema, v_table, v_key);
  end if;
end $$;

/* Changes a client schema: an array of operations, in order, all or none.
     {"op": "create_table",  "table", "columns": [{"name", "type"}]}
     {"op": "add_column" | "set_type", "table", "column", "type"}
     {"op": "rename_table",  "table", "to"}
     {"op": "mark_dropped" | "unmark_dropped", "table", "column"?}
     {"op": "finish_table",  "table", "indexes"?: [{"name", "columns": […]}], "view_columns"?: [{"name", "as"}]}
     {"op": "create_index",  "table", "name", "columns": […]}      {"op": "drop_index", "table", "name"}
     {"op": "loosen_indexes", "table"}                             {"op": "replace_view", "table", "columns"?: [{"name", "as"}]}
   @raises OS003, OS004 (a name), OS006 (anything else that is not as above, naming it). */
create function sync_metadata.evolve_schema(p_deployment uuid, p_operations jsonb) returns void
  language plpgsql security definer set search_path = pg_catalog, pg_temp set maintenance_work_mem = '256MB'
as $$
declare
  v_schema text;
  v_op     jsonb;
  v_table  text;
  v_index  text;
begin
  -- Whoever changes who has rights here waits for the tables that are being made, and the other way round; else a new
  -- role would lack what both did at once.
  perform 1 from sync_metadata.client_deployments d where d.deployment_id = p_deployment for key share;
  v_schema := sync_metadata.require_deployment(p_deployment);
  if jsonb_typeof(p_operations) is distinct from 'array' then
    raise exception 'operations must be a JSON array' using errcode = 'OS006';
  end if;
  for v_op in select value from jsonb_array_elements(p_operations) with ordinality order by ordinality loop
    if jsonb_typeof(v_op) <> 'object' then
      raise exception '% is not an operation', left(v_op::text, 80) using errcode = 'OS006';
    end if;
    case v_op ->> 'op'
      when 'create_table' then perform sync_metadata.evolve_create_table(p_deployment, v_schema, v_op);
      when 'add_column' then perform sync_metadata.evolve_add_column(v_schema, v_op);
      when 'set_type' then perform sync_metadata.evolve_set_type(p_deployment, v_schema, v_op);
      when 'rename_table' then perform sync_metadata.evolve_rename_table(v_schema, v_op);
      when 'mark_dropped' then perform sync_metadata.evolve_mark(v_schema, v_op, true);
      when 'unmark_dropped' then perform sync_metadata.evolve_mark(v_schema, v_op, false);
      when 'finish_table' then perform sync_metadata.evolve_finish_table(p_deployment, v_schema, v_op);
      when 'create_index' then
        perform sync_metadata.op_only(v_op, 'op', 'table', 'name', 'columns');
        v_table := sync_metadata.op_table(v_schema, v_op);
        perform sync_metadata.create_index(v_schema, v_table, sync_metadata.op_text(v_op, 'name'),
          sync_metadata.op_columns(v_schema, v_table, v_op));
      when 'drop_index' then
        perform sync_metadata.op_only(v_op, 'op', 'table', 'name');
        v_table := sync_metadata.op_table(v_schema, v_op);
        v_index := sync_metadata.index_on(v_schema, v_table, sync_metadata.op_text(v_op, 'name'));
        if v_index is not null then
          execute format('drop index %I.%I', v_schema, v_index);
        end if;
        perform sync_metadata.unnote(v_schema, v_table, format('index %s ', quote_ident(v_op ->> 'name')));
      when 'loosen_indexes' then
        perform sync_metadata.op_only(v_op, 'op', 'table');
        perform sync_metadata.loosen_indexes(v_schema, sync_metadata.op_table(v_schema, v_op));
      when 'replace_view' then
        perform sync_metadata.op_only(v_op, 'op', 'table', 'columns');
        perform sync_metadata.replace_view(p_deployment, v_schema, sync_metadata.op_table(v_schema, v_op), v_op,
          sync_metadata.op_array(v_op, 'columns'));
      else
        raise exception 'unknown operation %', coalesce(quote_literal(left(v_op ->> 'op', 80)), left(v_op::text, 80))
          using errcode = 'OS006';
    end case;
  end loop;
end $$;

grant execute on function sync_metadata.schema_of(text), sync_metadata.register_deployment(text, jsonb),
  sync_metadata.evolve_schema(uuid, jsonb)
  to sync_service;

reset role;
