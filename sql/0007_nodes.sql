-- Nodes that stop say so, and a new leader ends what an older epoch has left on the server.

set local role sync_owner;

-- When the node was stopped in good order; null while it runs, also when it was killed.
alter table sync_metadata.sync_nodes add column stopped_at timestamptz;
-- Names its process, so that another one on the same machine can know that this very process has ended.
alter table sync_metadata.sync_nodes add column instance uuid;
grant update (stopped_at, instance) on sync_metadata.sync_nodes to sync_service;

/* Terminates the sessions of this host's roles that write under an epoch older than p_epoch, and says how many. A
   frozen COPY cannot be cancelled, only terminated, and until then it keeps its locks. With the caller's rights: what
   another role of the host has open only goes when the caller is a member of it. */
create function sync_metadata.end_older_sessions(p_epoch bigint) returns int
  language sql volatile set search_path = pg_catalog, pg_temp
as $$
  select (count(*) filter (where pg_terminate_backend(a.pid)))::int
  from pg_catalog.pg_stat_activity a
  where a.datname = current_database() and a.pid <> pg_backend_pid()
    and a.usename in (select r.db_role from sync_metadata.host_roles r where r.host_id = sync_metadata.my_host())
    and pg_has_role(a.usesysid, 'usage')
    and substring(a.application_name from '^owsync/.+/([0-9]{1,18})$')::bigint < p_epoch
$$;
grant execute on function sync_metadata.end_older_sessions(bigint) to sync_service;

/* Asks the leader to hand over to the other node that was alive last. Null: nobody leads (or not p_expected_leader),
   or there is nobody to take over. */
create or replace function sync_metadata.step_down(p_expected_leader text default null, p_for_ms int default 10000)
  returns text
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
  where n.host_id = v_host and n.node_id <> v_leader and n.stopped_at is null
    and n.last_heartbeat > clock_timestamp() - interval '1 minute'
  order by n.last_heartbeat desc
  limit 1;
  if v_successor is null or not sync_metadata.prefer_node(v_successor, p_for_ms, v_leader) then
    return null;
  end if;
  return v_successor;
end $$;

create or replace view sync_metadata.v_cluster_health with (security_invoker = true) as
select
  h.cluster_name,
  h.host_id,
  h.hostname,
  n.node_id,
  n.role,
  n.version,
  n.address,
  n.started_at,
  n.last_heartbeat,
  case
    when n.stopped_at is not null then 'offline'
    when n.last_heartbeat > now() - interval '2 minutes' then 'active'
    when n.last_heartbeat > now() - interval '5 minutes' then 'degraded'
    else 'offline'
  end as health,
  coalesce(l.leader_id = n.node_id and l.expires_at > now(), false) as is_leader,
  case when l.expires_at > now() then l.leader_id end as leader_id,
  l.epoch,
  l.expires_at as lease_expires_at,
  l.paused,
  n.stopped_at
from sync_metadata.sync_nodes n
join sync_metadata.hosts h using (host_id)
left join sync_metadata.leader_election l using (cluster_name);

reset role;
