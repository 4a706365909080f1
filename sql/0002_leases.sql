-- Leases. The row elects, on the database's clock; the epoch protects: a transaction that ends with assert_lease()
-- commits before the next epoch begins or not at all. docs/concepts.md, "Roles and isolation".
--
-- SQLSTATEs of our own: OS001 fenced out, OS002 generation moved, OS003 not yours, OS004 refused name,
-- OS005 taken, OS006 invalid operation.

set local role sync_owner;

/* The caller's host. @raises OS003 for anyone but a host role. */
create function sync_metadata.require_host() returns uuid
  language plpgsql stable set search_path = pg_catalog, pg_temp
as $$
declare
  v_host uuid := sync_metadata.my_host();
begin
  if v_host is null then
    raise exception 'role % is not the role of a host', quote_ident(session_user) using errcode = 'OS003',
      hint = 'Connect with the URL that `owsync db grant-host` printed.';
  end if;
  return v_host;
end $$;

/* The caller's cluster. @raises OS003 when p_node_id is not the id of one of its nodes: `<cluster>-…`. */
create function sync_metadata.require_node(p_node_id text) returns text
  language plpgsql stable set search_path = pg_catalog, pg_temp
as $$
declare
  v_host    uuid := sync_metadata.require_host();
  v_cluster text;
begin
  select h.cluster_name into v_cluster from sync_metadata.hosts h where h.host_id = v_host;
  if p_node_id is null or not starts_with(p_node_id, v_cluster || '-') or octet_length(p_node_id) > 255
      or substr(p_node_id, length(v_cluster) + 2) !~ '^[A-Za-z0-9][A-Za-z0-9._-]*$' then
    raise exception 'node id % is not one of cluster %', coalesce(quote_literal(left(p_node_id, 80)), 'null'), v_cluster
      using errcode = 'OS003', hint = format('A node of this cluster is called %s-node-a.', v_cluster);
  end if;
  return v_cluster;
end $$;

create function sync_metadata.require_duration(p_ms int) returns interval
  language plpgsql immutable set search_path = pg_catalog, pg_temp
as $$
begin
  if p_ms is null or p_ms not between 100 and 3600000 then
    raise exception 'a duration of % ms is not between 100 ms and an hour', coalesce(p_ms::text, 'null')
      using errcode = 'OS006';
  end if;
  return p_ms * interval '1 millisecond';
end $$;

create function sync_metadata.wake(p_host uuid, p_what text) returns void
  language sql set search_path = pg_catalog, pg_temp
as $$ select pg_notify(sync_metadata.channel_of(p_host), p_what) $$;

/* Takes the lease when it is free, when it is ours already, or when p_hint says that its holder is dead (the caller
   holds the cluster's advisory lock). No row: someone else leads, or another node is preferred, or the cluster is
   paused. Waits for transactions that have asserted the old epoch, no longer than lock_timeout. */
create function sync_metadata.acquire_lease(p_node_id text, p_duration_ms int, p_hint boolean default false)
  returns table (epoch bigint, expires_at timestamptz)
  language plpgsql security definer set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
declare
  v_cluster  text := sync_metadata.require_node(p_node_id);
  v_duration interval := sync_metadata.require_duration(p_duration_ms);
  v_previous text;
begin
  select l.leader_id into v_previous from sync_metadata.leader_election l where l.cluster_name = v_cluster;
  update sync_metadata.leader_election l
  set leader_id       = p_node_id,
      epoch           = l.epoch + 1,
      acquired_at     = clock_timestamp(),
      renewed_at      = clock_timestamp(),
      expires_at      = clock_timestamp() + v_duration,
      preferred       = null,
      preferred_until = null
  where l.cluster_name = v_cluster
    and not l.paused
    and (l.expires_at < clock_timestamp() or l.leader_id = p_node_id or coalesce(p_hint, false))
    and (l.preferred is null or l.preferred = p_node_id
      or coalesce(l.preferred_until, '-infinity') < clock_timestamp())
  returning l.epoch, l.expires_at into epoch, expires_at;
  if not found then
    return;
  end if;
  insert into sync_metadata.audit_log (host_id, actor, action, details)
  values (sync_metadata.my_host(), p_node_id, 'lease.acquired',
    jsonb_build_object('epoch', epoch, 'previous', v_previous));
  perform sync_metadata.wake(sync_metadata.my_host(), 'lease');
  return next;
end $$;

/* Extends the lease. No row: it is lost. Never waits behind a fence: it changes no key column. `preferred` is the node
   that should lead instead, while that wish lasts. */
create function sync_metadata.renew_lease(p_node_id text, p_epoch bigint, p_duration_ms int)
  returns table (expires_at timestamptz, preferred text, paused boolean)
  language plpgsql security definer set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
declare
  v_cluster  text := sync_metadata.require_node(p_node_id);
  v_duration interval := sync_metadata.require_duration(p_duration_ms);
begin
  return query
    update sync_metadata.leader_election l
    set renewed_at = clock_timestamp(), expires_at = clock_timestamp() + v_duration
    where l.cluster_name = v_cluster and l.leader_id = p_node_id and l.epoch = p_epoch
    returning l.expires_at, case when l.preferred_until > clock_timestamp() then l.preferred end, l.paused;
end $$;

/* Gives the lease back and wakes the others. The epoch stays: the next leader's is greater. False: it was not ours. */
create function sync_metadata.release_lease(p_node_id text, p_epoch bigint) returns boolean
  language plpgsql security definer set search_path = pg_catalog, pg_temp
as $$
declare
  v_cluster text := sync_metadata.require_node(p_node_id);
begin
  update sync_metadata.leader_election l
  set leader_id = null, expires_at = '-infinity'
  where l.cluster_name = v_cluster and l.leader_id = p_node_id and l.epoch = p_epoch;
  if not found then
    return false;
  end if;
  insert into sync_metadata.audit_log (host_id, actor, action, details)
  values (sync_metadata.my_host(), p_node_id, 'lease.released', jsonb_build_object('epoch', p_epoch));
  perform sync_metadata.wake(sync_metadata.my_host(), 'lease');
  return true;
end $$;

/* The fence, as the last statement of every transaction that writes. Until that transaction ends no other node can
   take the lease; renewing it is not held up. @raises OS001 when the epoch has moved on. */
create function sync_metadata.assert_lease(p_epoch bigint) returns void
  language plpgsql security definer set search_path = pg_catalog, pg_temp
as $$
declare
  v_host uuid := sync_metadata.require_host();
begin
  perform 1
  from sync_metadata.leader_election l
  where l.cluster_name = (select h.cluster_name from sync_metadata.hosts h where h.host_id = v_host)
    and l.epoch = p_epoch
  for key share;
  if not found then
    raise exception 'the lease of epoch % has been superseded', coalesce(p_epoch::text, 'null') using errcode = 'OS001';
  end if;
end $$;

/* Asks that p_node_id leads: the leader hands over at its next renewal, and until p_for_ms have passed nobody else may
   take the lease. With p_force the present leader is fenced at once, for when it does not answer. p_node_id null takes
   the wish back. False: p_expected_leader does not lead (any more). */
create function sync_metadata.prefer_node(
    p_node_id text, p_for_ms int default 10000, p_expected_leader text default null, p_force boolean default false)
  returns boolean
  language plpgsql security definer set search_path = pg_catalog, pg_temp
as $$
declare
  v_host    uuid := sync_metadata.require_host();
  v_cluster text := sync_metadata.my_cluster();
  v_for     interval := sync_metadata.require_duration(p_for_ms);
  v_force   boolean := coalesce(p_force, false) and p_node_id is not null;
begin
  if p_node_id is not null then
    perform sync_metadata.require_node(p_node_id);
  end if;
  update sync_metadata.leader_election l
  set preferred       = p_node_id,
      preferred_until = case when p_node_id is not null then clock_timestamp() + v_for end,
      epoch           = case when v_force then l.epoch + 1 else l.epoch end,
      leader_id       = case when v_force then null else l.leader_id end,
      expires_at      = case when v_force then '-infinity' else l.expires_at end
  where l.cluster_name = v_cluster and (p_expected_leader is null or l.leader_id = p_expected_leader);
  if not found then
    return false;
  end if;
  perform sync_metadata.wake(v_host, 'lease');
  return true;
end $$;

/* Asks the leader to hand over to the other node that was alive last. Null: nobody leads (or not p_expected_leader),
   or there is nobody to take over. */
create function sync_metadata.step_down(p_expected_leader text default null, p_for_ms int default 10000) returns text
  language plpgsql security definer set search_path = pg_catalog, pg_temp
as $$
declare
  v_host      uuid := sync_metadata.require_host();
  v_cluster   text := sync_metadata.my_cluster();
  v_leader    text;
  v_successor text;
begin
  select l.leader_id into v_leader
  from sync_metadata.leader_election l
  where l.cluster_name = v_cluster and (p_expected_leader is null or l.leader_id = p_expected_leader);
  if v_leader is null then
    return null;
  end if;
  select n.node_id into v_successor
  from sync_metadata.sync_nodes n
  where n.host_id = v_host and n.node_id <> v_leader and n.last_heartbeat > clock_timestamp() - interval '1 minute'
  order by n.last_heartbeat desc
  limit 1;
  if v_successor is null or not sync_metadata.prefer_node(v_successor, p_for_ms, v_leader) then
    return null;
  end if;
  return v_successor;
end $$;

/* While paused nobody takes the lease; whoever has it keeps it. */
create function sync_metadata.set_paused(p_paused boolean) returns void
  language plpgsql security definer set search_path = pg_catalog, pg_temp
as $$
declare
  v_host uuid := sync_metadata.require_host();
begin
  update sync_metadata.leader_election l
  set paused = coalesce(p_paused, false)
  where l.cluster_name = sync_metadata.my_cluster();
  perform sync_metadata.wake(v_host, 'lease');
end $$;

grant execute on function
  sync_metadata.acquire_lease(text, int, boolean), sync_metadata.renew_lease(text, bigint, int),
  sync_metadata.release_lease(text, bigint), sync_metadata.assert_lease(bigint),
  sync_metadata.prefer_node(text, int, text, boolean), sync_metadata.step_down(text, int),
  sync_metadata.set_paused(boolean)
  to sync_service;

-- Changes of control state reach the caches of both nodes: the event is the truth, the notification only wakes.

create function sync_metadata.note_state_change() returns trigger
  language plpgsql security definer set search_path = pg_catalog, pg_temp
as $$
begin
  insert into sync_metadata.cache_events (host_id, key, version, action)
  values (new.host_id, new.key, new.version, lower(tg_op));
  perform sync_metadata.wake(new.host_id, 'cache');
  return null;
end $$;
create trigger note_change after insert or update on sync_metadata.state
  for each row execute function sync_metadata.note_state_change();

create function sync_metadata.note_deployment_change() returns trigger
  language plpgsql security definer set search_path = pg_catalog, pg_temp
as $$
declare
  v_host uuid;
begin
  if tg_op = 'UPDATE' and row(old.host_id, old.container_name, old.fqdn, old.port, old.database_type, old.sqlite_path,
      old.direction, old.sync_enabled, old.sync_interval, old.sync_schedule, old.status, old.status_reason, old.config)
    is not distinct from row(new.host_id, new.container_name, new.fqdn, new.port, new.database_type, new.sqlite_path,
      new.direction, new.sync_enabled, new.sync_interval, new.sync_schedule, new.status, new.status_reason, new.config)
  then
    return null;
  end if;
  -- Of the host that has it and, when it moved, of the one that had it, unless that host was just removed.
  for v_host in
    select h.host_id from sync_metadata.hosts h
    where h.host_id = new.host_id or tg_op = 'UPDATE' and h.host_id = old.host_id
  loop
    insert into sync_metadata.cache_events (host_id, key, action)
    values (v_host, 'deployment.' || new.client_name,
      case when v_host = new.host_id then lower(tg_op) else 'delete' end);
    perform sync_metadata.wake(v_host, 'cache');
  end loop;
  return null;
end $$;
-- Settings and status, not what every sync writes.
create trigger note_change
  after insert or update of
    host_id, container_name, fqdn, port, database_type, sqlite_path, direction, sync_enabled, sync_interval,
    sync_schedule, status, status_reason, config
  on sync_metadata.client_deployments
  for each row execute function sync_metadata.note_deployment_change();

create function sync_metadata.note_job() returns trigger
  language plpgsql security definer set search_path = pg_catalog, pg_temp
as $$
begin
  perform sync_metadata.wake(d.host_id, 'jobs')
  from sync_metadata.client_deployments d
  where d.deployment_id = new.deployment_id and d.host_id is not null;
  return null;
end $$;
create trigger note_job after insert on sync_metadata.sync_jobs
  for each row when (new.status = 'pending') execute function sync_metadata.note_job();

reset role;
