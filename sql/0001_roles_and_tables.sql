-- The control schema: who may do what, and what is known. docs/concepts.md, "Roles and isolation".

-- Roles belong to the server, not to this database: another database may have them already, or be making them now.
do $$
declare
  v_role text;
begin
  foreach v_role in array array['sync_owner', 'sync_service', 'sync_viewer'] loop
    begin
      execute format('create role %I nologin', v_role);
    exception
      when duplicate_object or unique_violation then null;
    end;
  end loop;
  -- An admin that is no superuser must be a member to hand objects over. From PostgreSQL 16 on the creator of a role
  -- may administer it but not use it, so the membership is granted in any case.
  if not pg_has_role(current_user, 'sync_owner', 'usage') then
    begin
      grant sync_owner to current_user;
    exception
      when unique_violation then null;
    end;
  end if;
  execute format('grant create, temporary on database %I to sync_owner', current_database());
  execute format('grant temporary on database %I to sync_service', current_database());
end $$;

create schema sync_metadata authorization sync_owner;

set local role sync_owner;

-- Everywhere in this database, and before the first function: nothing of ours is for PUBLIC to execute.
alter default privileges revoke execute on functions from public;
revoke all on schema sync_metadata from public;
grant usage on schema sync_metadata to sync_service, sync_viewer;

create table sync_metadata.schema_migrations (
  version    int         primary key,
  name       text        not null,
  sha256     text        not null,
  applied_at timestamptz not null default now(),
  applied_by text        not null default session_user
);

create table sync_metadata.hosts (
  host_id        uuid        primary key default gen_random_uuid(),
  hostname       text        not null,
  cluster_name   text        not null unique check (cluster_name ~ '^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$'),
  ip_address     text,
  status         text        not null default 'active' check (status in ('active', 'maintenance', 'offline')),
  last_heartbeat timestamptz,
  metadata       jsonb       not null default '{}',
  created_at     timestamptz not null default now()
);

-- Two rows for a host while its password is being rotated.
create table sync_metadata.host_roles (
  db_role     text        primary key,
  host_id     uuid        not null references sync_metadata.hosts on delete cascade,
  -- Null: until further notice.
  valid_until timestamptz,
  created_at  timestamptz not null default now()
);
create index on sync_metadata.host_roles (host_id);

/* The host of whoever logged in; null for everyone else. No setting and no SET ROLE changes what session_user is.

   The temporary schema stands last in every definer function's path: left out, it would come first, and a caller's
   temporary type called "text" would be used in place of the real one, with the caller's code in its constraint. */
create function sync_metadata.my_host() returns uuid
  language sql stable security definer set search_path = pg_catalog, pg_temp
as $$
  select r.host_id
  from sync_metadata.host_roles r
  where r.db_role = session_user::text and (r.valid_until is null or r.valid_until > now())
$$;

create function sync_metadata.my_cluster() returns text
  language sql stable security definer set search_path = pg_catalog, pg_temp
as $$
  select h.cluster_name from sync_metadata.hosts h where h.host_id = sync_metadata.my_host()
$$;

/* The channel on which a host's nodes hear that there is something to look at: 'lease', 'cache', 'jobs'. A hint and
   nothing more: any role of the database may send on it. */
create function sync_metadata.channel_of(p_host uuid) returns text
  language sql immutable set search_path = pg_catalog, pg_temp
as $$ select 'owsync:' || p_host $$;

create table sync_metadata.sync_nodes (
  -- The host first: a unique check sees every row, and must not tell one host about another's nodes.
  host_id        uuid        not null default sync_metadata.my_host() references sync_metadata.hosts on delete cascade,
  node_id        text        not null,
  role           text        not null,
  version        text,
  address        text,
  started_at     timestamptz not null default now(),
  last_heartbeat timestamptz not null default now(),
  primary key (host_id, node_id)
);

create table sync_metadata.client_deployments (
  deployment_id    uuid        primary key default gen_random_uuid(),
  -- Null: detached. No host may write it until `db transfer` gives it to one.
  host_id          uuid        references sync_metadata.hosts on delete set null,
  client_name      text        not null unique,
  schema_name      text        not null unique,
  container_name   text,
  fqdn             text,
  port             int         check (port between 1 and 65535),
  database_type    text        not null default 'sqlite' check (database_type in ('sqlite', 'postgresql')),
  sqlite_path      text,
  direction        text        not null default 'one_way' check (direction in ('one_way', 'two_way')),
  sync_enabled     boolean     not null default true,
  sync_interval    int         check (sync_interval >= 10),
  -- Cron text or `live`; with no interval either, syncs are asked for by hand.
  sync_schedule    text,
  status           text        not null default 'active'
                               check (status in ('active', 'paused', 'migrating', 'stopped', 'quarantined')),
  status_reason    text,
  -- How many cuts have been applied, and the random id of the last one: whoever asks "did it commit?" compares it.
  generation       bigint      not null default 0,
  cut_id           uuid,
  -- How far an unfinished first load got; null when there is none.
  load_position    jsonb,
  last_sync_at     timestamptz,
  last_sync_status text        check (last_sync_status in ('success', 'failed', 'running', 'pending')),
  next_sync_at     timestamptz,
  -- When the source was last looked at and found to be applied.
  checked_at       timestamptz,
  source_version   text,
  config           jsonb       not null default '{}',
  created_at       timestamptz not null default now(),
  updated_at       timestamptz not null default now()
);
create index on sync_metadata.client_deployments (host_id);

create table sync_metadata.leader_election (
  cluster_name    text        primary key references sync_metadata.hosts (cluster_name) on update cascade on delete cascade,
  leader_id       text,
  epoch           bigint      not null default 0,
  acquired_at     timestamptz,
  renewed_at      timestamptz,
  expires_at      timestamptz not null default '-infinity',
  preferred       text,
  preferred_until timestamptz,
  paused          boolean     not null default false,
  -- Makes epoch a key column: taking over locks it against `for key share`, renewing does not.
  unique (cluster_name, epoch)
) with (fillfactor = 50);

create table sync_metadata.sync_jobs (
  job_id             uuid        primary key default gen_random_uuid(),
  deployment_id      uuid        not null references sync_metadata.client_deployments on delete cascade,
  sync_type          text        not null default 'incremental'
                                 check (sync_type in ('full', 'incremental', 'verify', 'restore')),
  triggered_by       text        not null default 'scheduler'
                                 check (triggered_by in ('scheduler', 'api', 'cli', 'change', 'user')),
  status             text        not null default 'pending'
                                 check (status in ('pending', 'running', 'success', 'failed', 'cancelled')),
  options            jsonb       not null default '{}',
  node_id            text,
  epoch              bigint,
  attempt            int         not null default 0,
  run_after          timestamptz not null default now(),
  created_at         timestamptz not null default now(),
  started_at         timestamptz,
  finished_at        timestamptz,
  -- The deployment's generation after this job; null when the job applied nothing.
  generation         bigint,
  rows_upserted      bigint      not null default 0,
  rows_tombstoned    bigint      not null default 0,
  rows_unchanged     bigint      not null default 0,
  rows_quarantined   bigint      not null default 0,
  conflicts_detected bigint      not null default 0,
  conflicts_resolved bigint      not null default 0,
  bytes              bigint      not null default 0,
  duration_ms        bigint,
  error_code         text,
  error_message      text,
  error_details      jsonb
);
create unique index sync_jobs_one_open on sync_metadata.sync_jobs (deployment_id) where status in ('pending', 'running');
create index on sync_metadata.sync_jobs (deployment_id, created_at desc);
create index on sync_metadata.sync_jobs (run_after) where status = 'pending';

create table sync_metadata.sync_progress (
  job_id         uuid        not null references sync_metadata.sync_jobs on delete cascade,
  table_name     text        not null,
  rows_total     bigint,
  rows_processed bigint      not null default 0,
  status         text        not null default 'pending' check (status in ('pending', 'running', 'success', 'failed')),
  updated_at     timestamptz not null default now(),
  primary key (job_id, table_name)
);

create table sync_metadata.conflict_log (
  conflict_id         uuid        primary key default gen_random_uuid(),
  deployment_id       uuid        not null references sync_metadata.client_deployments on delete cascade,
  job_id              uuid        references sync_metadata.sync_jobs on delete set null,
  table_name          text        not null,
  record_key          text        not null,
  conflict_type       text        not null
                                  check (conflict_type in ('update_update', 'update_delete', 'delete_update',
                                    'insert_insert', 'drift', 'constraint_violation', 'type_mismatch')),
  -- Whole rows, or changed fields and digests only, as the deployment's settings say.
  source_data         jsonb,
  target_data         jsonb,
  resolved_data       jsonb,
  resolution_strategy text,
  status              text        not null default 'pending'
                                  check (status in ('pending', 'resolved', 'superseded', 'undone')),
  detected_at         timestamptz not null default now(),
  resolved_at         timestamptz,
  resolved_by         text,
  notes               text
);
create index on sync_metadata.conflict_log (deployment_id, detected_at desc);
create index on sync_metadata.conflict_log (deployment_id, table_name, record_key);
create index on sync_metadata.conflict_log (deployment_id) where status = 'pending';
create index on sync_metadata.conflict_log (job_id);

/* Rows that could not be applied; retried with every sync until they can. */
create table sync_metadata.row_quarantine (
  deployment_id uuid        not null references sync_metadata.client_deployments on delete cascade,
  table_name    text        not null,
  record_key    text        not null,
  code          text        not null,
  reason        text        not null,
  first_seen_at timestamptz not null default now(),
  last_seen_at  timestamptz not null default now(),
  attempts      int         not null default 1,
  resolved_at   timestamptz,
  primary key (deployment_id, table_name, record_key)
);

/* What happened to control state, for caches. Read by `xid`, never by `event_id`: numbers are given before commits.
   select … where xid >= $cursor and xid < pg_snapshot_xmin(pg_current_snapshot()); that xmin is the next cursor. */
create table sync_metadata.cache_events (
  event_id   bigint      generated always as identity primary key,
  xid        xid8        not null default pg_current_xact_id(),
  host_id    uuid        not null default sync_metadata.my_host() references sync_metadata.hosts on delete cascade,
  key        text        not null,
  version    bigint      not null default 0,
  action     text        not null default 'update' check (action in ('insert', 'update', 'delete', 'invalidate')),
  created_at timestamptz not null default now()
);
create index on sync_metadata.cache_events (host_id, xid);

create table sync_metadata.state (
  host_id    uuid        not null default sync_metadata.my_host() references sync_metadata.hosts on delete cascade,
  key        text        not null check (octet_length(key) between 1 and 512),
  value      jsonb       not null,
  version    bigint      not null default 1,
  updated_at timestamptz not null default now(),
  updated_by text,
  primary key (host_id, key)
);

create table sync_metadata.source_schemas (
  deployment_id    uuid        not null references sync_metadata.client_deployments on delete cascade,
  version          int         not null,
  -- The first generation whose rows have this shape.
  first_generation bigint      not null,
  objects          jsonb       not null,
  pragmas          jsonb       not null,
  alembic_revision text,
  tables           jsonb       not null,
  recorded_at      timestamptz not null default now(),
  primary key (deployment_id, version)
);

create table sync_metadata.verifications (
  verification_id  uuid        primary key default gen_random_uuid(),
  deployment_id    uuid        not null references sync_metadata.client_deployments on delete cascade,
  job_id           uuid        references sync_metadata.sync_jobs on delete set null,
  generation       bigint      not null,
  cut_id           uuid,
  quick            boolean     not null default false,
  tables           int         not null default 0,
  rows_compared    bigint      not null default 0,
  -- [{table, key, kind, columns}]: which rows, never what is in them.
  differences      jsonb       not null default '[]',
  difference_count bigint      not null default 0,
  accepted         bigint      not null default 0,
  pending          bigint      not null default 0,
  moving           bigint      not null default 0,
  repaired         bigint      not null default 0,
  duration_ms      bigint,
  verified_at      timestamptz not null default now()
);
create index on sync_metadata.verifications (deployment_id, verified_at desc);
create index on sync_metadata.verifications (job_id);

create table sync_metadata.audit_log (
  audit_id    bigint      generated always as identity primary key,
  host_id     uuid        default sync_metadata.my_host() references sync_metadata.hosts on delete set null,
  recorded_at timestamptz not null default now(),
  -- Who it was, as the node says; and which role it was, which the node cannot choose.
  actor       text        not null,
  db_role     text        not null default session_user,
  action      text        not null,
  client_name text,
  details     jsonb       not null default '{}'
);
create index on sync_metadata.audit_log (host_id, recorded_at desc);

/* Database roles, other than hosts, that may see or edit a client's data. */
create table sync_metadata.access_grants (
  deployment_id uuid        not null references sync_metadata.client_deployments on delete cascade,
  db_role       text        not null,
  mode          text        not null check (mode in ('read', 'edit')),
  granted_at    timestamptz not null default now(),
  primary key (deployment_id, db_role)
);

-- Row level security: a host sees its own rows, a viewer sees all, nobody else is granted anything.
do $$
declare
  v_table text;
  v_mine  text;
begin
  for v_table in
    select tablename from pg_catalog.pg_tables where schemaname = 'sync_metadata'
  loop
    execute format('alter table sync_metadata.%I enable row level security', v_table);
    execute format('create policy viewer_reads on sync_metadata.%I for select to sync_viewer using (true)', v_table);
  end loop;

  -- `(select …)` around the function: asked once for a statement, not once for a row.
  foreach v_table in array array['hosts', 'host_roles', 'client_deployments', 'cache_events', 'state', 'audit_log'] loop
    execute format('create policy host_owns on sync_metadata.%I to sync_service
      using (host_id = (select sync_metadata.my_host())) with check (host_id = (select sync_metadata.my_host()))', v_table);
  end loop;

  v_mine := 'deployment_id in (select d.deployment_id from sync_metadata.client_deployments d
    where d.host_id = (select sync_metadata.my_host()))';
  foreach v_table in array array['sync_jobs', 'conflict_log', 'row_quarantine', 'source_schemas', 'verifications'] loop
    execute format('create policy host_owns on sync_metadata.%I to sync_service using (%s) with check (%s)',
      v_table, v_mine, v_mine);
  end loop;
end $$;

create policy host_owns on sync_metadata.sync_nodes to sync_service
  using (host_id = (select sync_metadata.my_host()))
  with check (
    host_id = (select sync_metadata.my_host())
    and starts_with(node_id, (select sync_metadata.my_cluster()) || '-')
  );
create policy host_owns on sync_metadata.leader_election to sync_service
  using (cluster_name = (select sync_metadata.my_cluster()));
-- The subquery is under the policy of sync_jobs itself.
create policy host_owns on sync_metadata.sync_progress to sync_service
  using (exists (select 1 from sync_metadata.sync_jobs j where j.job_id = sync_progress.job_id))
  with check (exists (select 1 from sync_metadata.sync_jobs j where j.job_id = sync_progress.job_id));
create policy host_reads on sync_metadata.schema_migrations for select to sync_service using (true);

-- Hosts: by column, and never DELETE or TRUNCATE.
grant execute on function sync_metadata.my_host(), sync_metadata.my_cluster(), sync_metadata.channel_of(uuid)
  to sync_service, sync_viewer;
grant select on
  sync_metadata.schema_migrations, sync_metadata.hosts, sync_metadata.host_roles, sync_metadata.sync_nodes,
  sync_metadata.client_deployments, sync_metadata.leader_election, sync_metadata.sync_jobs,
  sync_metadata.sync_progress, sync_metadata.conflict_log, sync_metadata.row_quarantine,
  sync_metadata.cache_events, sync_metadata.state, sync_metadata.source_schemas, sync_metadata.verifications,
  sync_metadata.audit_log
  to sync_service;
grant update (status, last_heartbeat, ip_address, metadata) on sync_metadata.hosts to sync_service;
grant insert, update (role, version, address, started_at, last_heartbeat) on sync_metadata.sync_nodes to sync_service;
grant update (
    container_name, fqdn, port, database_type, sqlite_path, direction, sync_enabled, sync_interval, sync_schedule,
    status, status_reason, last_sync_at, last_sync_status, next_sync_at, checked_at, source_version, config, updated_at)
  on sync_metadata.client_deployments to sync_service;
grant insert, update (
    sync_type, triggered_by, status, options, node_id, epoch, attempt, run_after, started_at, finished_at, generation,
    rows_upserted, rows_tombstoned, rows_unchanged, rows_quarantined, conflicts_detected, conflicts_resolved, bytes,
    duration_ms, error_code, error_message, error_details)
  on sync_metadata.sync_jobs to sync_service;
grant insert, update (rows_total, rows_processed, status, updated_at) on sync_metadata.sync_progress to sync_service;
grant insert, update (
    job_id, source_data, target_data, resolved_data, resolution_strategy, status, resolved_at, resolved_by, notes)
  on sync_metadata.conflict_log to sync_service;
grant insert, update (code, reason, last_seen_at, attempts, resolved_at) on sync_metadata.row_quarantine to sync_service;
grant insert (host_id, key, version, action) on sync_metadata.cache_events to sync_service;
grant insert, update (value, version, updated_at, updated_by) on sync_metadata.state to sync_service;
grant insert, update (first_generation, objects, pragmas, alembic_revision, tables, recorded_at)
  on sync_metadata.source_schemas to sync_service;
grant insert on sync_metadata.verifications to sync_service;
grant insert (host_id, actor, action, client_name, details) on sync_metadata.audit_log to sync_service;

-- Viewers: everything but what was in a row, which a key can tell too.
grant select on
  sync_metadata.schema_migrations, sync_metadata.hosts, sync_metadata.sync_nodes, sync_metadata.client_deployments,
  sync_metadata.leader_election, sync_metadata.sync_progress, sync_metadata.state, sync_metadata.audit_log
  to sync_viewer;
grant select (
    job_id, deployment_id, sync_type, triggered_by, status, options, node_id, epoch, attempt, run_after, created_at,
    started_at, finished_at, generation, rows_upserted, rows_tombstoned, rows_unchanged, rows_quarantined,
    conflicts_detected, conflicts_resolved, bytes, duration_ms, error_code, error_message)
  on sync_metadata.sync_jobs to sync_viewer;
grant select (
    conflict_id, deployment_id, job_id, table_name, conflict_type, resolution_strategy, status, detected_at, resolved_at,
    resolved_by)
  on sync_metadata.conflict_log to sync_viewer;
grant select (deployment_id, table_name, code, first_seen_at, last_seen_at, attempts, resolved_at)
  on sync_metadata.row_quarantine to sync_viewer;
grant select (deployment_id, version, first_generation, alembic_revision, recorded_at)
  on sync_metadata.source_schemas to sync_viewer;
grant select (
    verification_id, deployment_id, job_id, generation, cut_id, quick, tables, rows_compared, difference_count, accepted,
    pending, moving, repaired, duration_ms, verified_at)
  on sync_metadata.verifications to sync_viewer;

reset role;
