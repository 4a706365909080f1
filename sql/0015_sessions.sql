-- A takeover ends the sessions of all roles that its host has, also of the one that a password rotation has just replaced,
-- or brought: whoever is cut off or frozen under the one must not keep its locks from a leader under the other.

-- Only a member of a role may end its sessions, and roles of one host cannot be members of each other both ways. As the
-- caller: whoever makes roles may grant them.
do $$
declare
  v_role text;
begin
  for v_role in
    select r.db_role from sync_metadata.host_roles r join pg_catalog.pg_roles p on p.rolname = r.db_role
  loop
    begin
      execute format('grant %I to sync_owner', v_role);
    exception
      when insufficient_privilege then
        raise warning 'role % was not made by %: until its password is rotated, only itself can end its sessions',
          v_role, current_user;
    end;
  end loop;
end $$;

set local role sync_owner;

/* Makes a login for a host. With the caller's rights, because only they can make roles. p_verifier is the SCRAM
   verifier: the password itself never reaches the server, nor its log. */
create or replace function sync_metadata.create_host_login(p_role text, p_verifier text, p_connections int)
  returns void
  language plpgsql set search_path = pg_catalog, pg_temp
as $$
begin
  if p_role !~ '\Async_host_[a-z0-9]{8,40}\Z' or p_verifier !~ '\ASCRAM-SHA-256\$' then
    raise exception 'not a host role with a SCRAM verifier' using errcode = 'OS004';
  end if;
  execute format('create role %I login password %L connection limit %s in role sync_service',
    p_role, p_verifier, p_connections);
  -- For end_rotated_sessions(): only a member of a role may end its sessions.
  execute format('grant %I to sync_owner', p_role);
  -- Guard-rails, not limits: the role may change them. A frozen node must not hold its transaction, and with it the
  -- lease, for longer than the lease lasts.
  execute format('alter role %I set idle_in_transaction_session_timeout = ''5s''', p_role);
  execute format('alter role %I set lock_timeout = ''10s''', p_role);
  execute format('alter role %I set statement_timeout = ''120s''', p_role);
end $$;

/* The epoch that a session says it writes under: application_name is `owsync/<node>/<epoch>`. Null: it says none. The
   server cuts a name after 63 bytes, and what is left of a number is another number. */
create function sync_metadata.epoch_of(p_application_name text) returns bigint
  language sql immutable set search_path = pg_catalog, pg_temp
as $$
  select case when octet_length(p_application_name) < 63
    then substring(p_application_name from '^owsync/.+/([0-9]{1,18})$')::bigint end
$$;

/* Terminates the sessions of the host's other roles that write under an epoch older than p_epoch, and says how many.
   @raises OS003 for anyone but a host role. */
create function sync_metadata.end_rotated_sessions(p_epoch bigint) returns int
  language plpgsql volatile security definer set search_path = pg_catalog, pg_temp
as $$
declare
  v_host  uuid := sync_metadata.require_host();
  v_ended int;
begin
  -- Not for an epoch that nobody has reached or is about to: that would end the leader's sessions.
  if p_epoch > (select l.epoch + 1 from sync_metadata.leader_election l
      join sync_metadata.hosts h using (cluster_name) where h.host_id = v_host) then
    raise exception 'there is no epoch % yet', p_epoch using errcode = 'OS006';
  end if;
  select count(*) filter (where pg_terminate_backend(a.pid)) into v_ended
  from pg_catalog.pg_stat_activity a
  join sync_metadata.host_roles r on r.db_role = a.usename
  where r.host_id = v_host and a.datname = current_database() and a.usename <> session_user
    and pg_has_role(a.usesysid, 'usage')
    and sync_metadata.epoch_of(a.application_name) < p_epoch;
  return v_ended;
end $$;

/* Terminates the sessions of this host's roles that write under an epoch older than p_epoch, and says how many. A
   frozen COPY cannot be cancelled, only terminated, and until then it keeps its locks. */
create or replace function sync_metadata.end_older_sessions(p_epoch bigint) returns int
  language sql volatile set search_path = pg_catalog, pg_temp
as $$
  select sync_metadata.end_rotated_sessions(p_epoch) + (
    select (count(*) filter (where pg_terminate_backend(a.pid)))::int
    from pg_catalog.pg_stat_activity a
    where a.datname = current_database() and a.pid <> pg_backend_pid() and a.usename = session_user
      and sync_metadata.epoch_of(a.application_name) < p_epoch)
$$;

grant execute on function sync_metadata.end_rotated_sessions(bigint), sync_metadata.epoch_of(text) to sync_service;

reset role;
