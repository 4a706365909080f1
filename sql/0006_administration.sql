-- What an admin does to hosts and their clients. Nobody but members of sync_owner may call any of it.

set local role sync_owner;

/* Gives one role its rights in one client's schema, or, with p_mode null, takes all of them away. */
create function sync_metadata.set_rights(p_schema text, p_role text, p_mode text) returns void
  language plpgsql set search_path = pg_catalog, pg_temp
as $$
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
end $$;

create function sync_metadata.grant_writes(p_schema text, p_role text) returns void
  language plpgsql set search_path = pg_catalog, pg_temp
as $$
declare
  v_table text;
begin
  for v_table in select t.qualified from sync_metadata.tables_of(p_schema) t loop
    execute format('grant insert, update on %s to %I', v_table, p_role);
  end loop;
end $$;

/* Makes a login for a host. With the caller's rights, because only they can make roles. p_verifier is the SCRAM
   verifier: the password itself never reaches the server, nor its log. */
create function sync_metadata.create_host_login(p_role text, p_verifier text, p_connections int) returns void
  language plpgsql set search_path = pg_catalog, pg_temp
as $$
begin
  if p_role !~ '\Async_host_[a-z0-9]{8,40}\Z' or p_verifier !~ '\ASCRAM-SHA-256\$' then
    raise exception 'not a host role with a SCRAM verifier' using errcode = 'OS004';
  end if;
  execute format('create role %I login password %L connection limit %s in role sync_service',
    p_role, p_verifier, p_connections);
  -- Guard-rails, not limits: the role may change them. A frozen node must not hold its transaction, and with it the
  -- lease, for longer than the lease lasts.
  execute format('alter role %I set idle_in_transaction_session_timeout = ''5s''', p_role);
  execute format('alter role %I set lock_timeout = ''10s''', p_role);
  execute format('alter role %I set statement_timeout = ''120s''', p_role);
end $$;

/* Lets a login in no longer than until p_until: with its password, that is; sessions it has go on. */
create function sync_metadata.expire_host_login(p_role text, p_until timestamptz) returns void
  language plpgsql set search_path = pg_catalog, pg_temp
as $$
begin
  execute format('alter role %I valid until %L', p_role, p_until);
end $$;

/* Adds a host with its first role. @raises OS005 when there is a cluster of that name. */
create function sync_metadata.add_host(p_cluster text, p_hostname text, p_role text) returns uuid
  language plpgsql security definer set search_path = pg_catalog, pg_temp
as $$
declare
  v_host uuid;
begin
  insert into sync_metadata.hosts (cluster_name, hostname)
  values (p_cluster, p_hostname)
  on conflict (cluster_name) do nothing
  returning host_id into v_host;
  if v_host is null then
    raise exception 'there is a cluster "%" already', p_cluster using errcode = 'OS005';
  end if;
  insert into sync_metadata.leader_election (cluster_name) values (p_cluster);
  insert into sync_metadata.host_roles (db_role, host_id) values (p_role, v_host);
  insert into sync_metadata.audit_log (host_id, actor, action, details)
  values (v_host, session_user, 'host.granted', jsonb_build_object('cluster', p_cluster, 'role', p_role));
  return v_host;
exception
  when check_violation then
    raise exception '"%" is not a cluster name', left(p_cluster, 80) using errcode = 'OS004',
      hint = 'Use up to 63 letters, digits, ".", "_" and "-", beginning with a letter or digit.';
end $$;

/* Gives a host another role with the rights of its others, which stay valid until now + p_grace. */
create function sync_metadata.add_host_role(p_cluster text, p_role text, p_grace interval) returns timestamptz
  language plpgsql security definer set search_path = pg_catalog, pg_temp
as $$
declare
  v_host   uuid;
  v_schema text;
begin
  -- For update: waits for clients that are being registered, and for tables that are being made.
  select h.host_id into v_host from sync_metadata.hosts h where h.cluster_name = p_cluster for update;
  if v_host is null then
    raise exception 'there is no cluster "%"', left(p_cluster, 80) using errcode = 'OS006';
  end if;
  perform 1 from sync_metadata.client_deployments d where d.host_id = v_host order by d.deployment_id for update;
  update sync_metadata.host_roles r
  set valid_until = least(r.valid_until, now() + p_grace)
  where r.host_id = v_host;
  insert into sync_metadata.host_roles (db_role, host_id) values (p_role, v_host);
  for v_schema in select d.schema_name from sync_metadata.client_deployments d where d.host_id = v_host loop
    perform sync_metadata.set_rights(v_schema, p_role, 'host');
  end loop;
  insert into sync_metadata.audit_log (host_id, actor, action, details)
  values (v_host, session_user, 'host.rotated', jsonb_build_object('cluster', p_cluster, 'role', p_role));
  return now() + p_grace;
end $$;

/* Takes every right from roles that are no longer valid and forgets them; all roles of p_cluster whose time is over.
   @returns their names, to be dropped. */
create function sync_metadata.retire_host_roles(p_cluster text) returns setof text
  language plpgsql security definer set search_path = pg_catalog, pg_temp
as $$
declare
  v_host   uuid := (select h.host_id from sync_metadata.hosts h where h.cluster_name = p_cluster);
  v_role   text;
  v_schema text;
begin
  for v_role in
    delete from sync_metadata.host_roles r where r.host_id = v_host and r.valid_until <= now() returning r.db_role
  loop
    for v_schema in select d.schema_name from sync_metadata.client_deployments d loop
      perform sync_metadata.set_rights(v_schema, v_role, null);
    end loop;
    return next v_role;
  end loop;
end $$;

/* Removes a host with its lease, its nodes and its control documents. Its clients and their history stay, detached.
   @returns its roles, to be dropped. @raises OS006 while one of its clients is still to be synced. */
create function sync_metadata.remove_host(p_cluster text) returns setof text
  language plpgsql security definer set search_path = pg_catalog, pg_temp
as $$
declare
  v_host    uuid := (select h.host_id from sync_metadata.hosts h where h.cluster_name = p_cluster);
  v_clients text;
begin
  if v_host is null then
    raise exception 'there is no cluster "%"', left(p_cluster, 80) using errcode = 'OS006';
  end if;
  select string_agg(d.client_name, ', ' order by d.client_name) into v_clients
  from sync_metadata.client_deployments d
  where d.host_id = v_host and d.sync_enabled;
  if v_clients is not null then
    raise exception 'clients of this cluster are still synced: %', v_clients using errcode = 'OS006',
      hint = 'Disable their sync, or move them to another host with `owsync db transfer`, first.';
  end if;
  update sync_metadata.host_roles r set valid_until = now() where r.host_id = v_host;
  return query select sync_metadata.retire_host_roles(p_cluster);
  insert into sync_metadata.audit_log (host_id, actor, action, details)
  values (null, session_user, 'host.removed', jsonb_build_object('cluster', p_cluster));
  delete from sync_metadata.hosts h where h.host_id = v_host;
end $$;

/* Lets a role see (read) or see and edit a client's data, present tables and those to come; p_mode null takes it back.
   @raises OS004 for a role that must not have it, OS006 for an unknown client or mode. */
create function sync_metadata.set_access(p_client_name text, p_role text, p_mode text) returns void
  language plpgsql security definer set search_path = pg_catalog, pg_temp
as $$
declare
  v_schema text := sync_metadata.schema_of(p_client_name);
  v_id     uuid;
begin
  select d.deployment_id into v_id from sync_metadata.client_deployments d where d.schema_name = v_schema for update;
  if v_id is null then
    raise exception 'there is no client "%"', p_client_name using errcode = 'OS006';
  end if;
  if p_mode is not null and p_mode not in ('read', 'edit') then
    raise exception 'access is read or edit, not "%"', left(p_mode, 40) using errcode = 'OS006';
  end if;
  if p_mode is not null then
    if not exists (select 1 from pg_catalog.pg_roles r where r.rolname = p_role) then
      raise exception 'there is no role "%"', left(p_role, 80) using errcode = 'OS004';
    end if;
    -- A group that others inherit from (hosts, everyone who uses the API) would give it to all of them.
    if p_role in ('sync_owner', 'sync_service', 'sync_viewer', 'anon', 'authenticated', 'authenticator', 'service_role',
          'public')
        or starts_with(p_role, 'pg_') or starts_with(p_role, 'sync_host_')
        or exists (select 1 from sync_metadata.host_roles h where h.db_role = p_role) then
      raise exception 'role "%" must not have access to one client''s data', p_role using errcode = 'OS004',
        hint = 'Make a role for the person or program that needs it.';
    end if;
  end if;
  delete from sync_metadata.access_grants g where g.deployment_id = v_id and g.db_role = p_role;
  if p_mode is not null then
    insert into sync_metadata.access_grants (deployment_id, db_role, mode) values (v_id, p_role, p_mode);
  elsif not found then
    return;
  end if;
  perform sync_metadata.set_rights(v_schema, p_role, p_mode);
  insert into sync_metadata.audit_log (host_id, actor, action, client_name, details)
  select d.host_id, session_user, case when p_mode is null then 'access.revoked' else 'access.granted' end,
    d.client_name, jsonb_build_object('role', p_role, 'mode', p_mode)
  from sync_metadata.client_deployments d
  where d.deployment_id = v_id;
end $$;

/* Moves a client to another host. The old host loses its rights, and what it has in flight cannot commit: its epoch
   moves on. (The row first and the lease second, as a sync's own end does: else the two could wait for each other.)
   @raises OS006 for an unknown client or cluster. */
create function sync_metadata.transfer_client(p_client_name text, p_to_cluster text) returns uuid
  language plpgsql security definer set search_path = pg_catalog, pg_temp
as $$
declare
  v_schema text := sync_metadata.schema_of(p_client_name);
  v_to     uuid := (select h.host_id from sync_metadata.hosts h where h.cluster_name = p_to_cluster);
  v_id     uuid;
  v_from   uuid;
  v_role   text;
begin
  select d.deployment_id, d.host_id into v_id, v_from
  from sync_metadata.client_deployments d
  where d.schema_name = v_schema
  for update;
  if v_id is null or v_to is null then
    raise exception 'there is no %', case when v_id is null then format('client "%s"', p_client_name)
      else format('cluster "%s"', left(p_to_cluster, 80)) end using errcode = 'OS006';
  end if;
  if v_from = v_to then
    return v_id;
  end if;
  update sync_metadata.client_deployments d
  set host_id = v_to, next_sync_at = null, updated_at = now()
  where d.deployment_id = v_id;
  update sync_metadata.sync_jobs j
  set status = 'cancelled', finished_at = now(), error_message = 'the client moved to another host'
  where j.deployment_id = v_id and j.status in ('pending', 'running');
  update sync_metadata.leader_election l
  set epoch = l.epoch + 1, leader_id = null, expires_at = '-infinity'
  where l.cluster_name = (select h.cluster_name from sync_metadata.hosts h where h.host_id = v_from);
  for v_role in select r.db_role from sync_metadata.host_roles r where r.host_id = v_from loop
    perform sync_metadata.set_rights(v_schema, v_role, null);
  end loop;
  for v_role in select r.db_role from sync_metadata.roles_of(v_id) r where r.mode = 'host' loop
    perform sync_metadata.set_rights(v_schema, v_role, 'host');
  end loop;
  if v_from is not null then
    perform sync_metadata.wake(v_from, 'lease');
  end if;
  insert into sync_metadata.audit_log (host_id, actor, action, client_name, details)
  values (v_to, session_user, 'client.transferred', p_client_name, jsonb_build_object('to', p_to_cluster));
  return v_id;
end $$;

reset role;
