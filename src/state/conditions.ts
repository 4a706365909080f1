import {raw, type Sql} from '../postgres/sql.ts'

/** What the control schema says about a deployment that somebody may have to hear of. */
export type DeploymentCondition = {
  readonly deploymentId: string
  readonly client: string
  readonly status: 'active' | 'paused' | 'migrating' | 'stopped' | 'quarantined'
  readonly statusReason: string | null
  readonly isEnabled: boolean
  readonly isLoading: boolean
  readonly syncInterval: number | null
  readonly syncSchedule: string | null
  /** How long ago it was last known to be fresh, or was registered. */
  readonly uncheckedSeconds: number
  readonly hasSynced: boolean
  /** The age of the oldest version of the source that was seen and is not applied; 0 when there is none. */
  readonly behindSeconds: number
  /** Attempts in a row that have failed since the last one that did not. */
  readonly syncFailures: number
  readonly verifyFailures: number
  readonly lastErrorCode: string | null
  readonly quarantinedRows: number
  readonly pendingConflicts: number
  /** Within the window that its rules name. */
  readonly recentConflicts: number
  /** From more of them on people are told. */
  readonly conflictLimit: {readonly threshold: number; readonly windowMinutes: number}
  /** Conflicts of the last ten minutes whose rules ask that people are told. */
  readonly conflictsToTell: number
  /** What the last verification found and did not put right. */
  readonly differences: bigint
  readonly lastVerifiedAt: Date | null
}

export type ClusterCondition = {
  /** The database's clock. */
  readonly now: Date
  /** How often a node has taken the lease in the last ten minutes; commands that lead for a moment do not count. */
  readonly takeovers: number
}

/** What the rules say that hold for clients without their own. */
export type ConflictLimits = DeploymentCondition['conflictLimit'] & {
  /** Decisions are recorded. */
  readonly isLogged: boolean
}

/**
 * @param limits of the deployments whose rules do not name their own.
 * @returns this host's deployments, as they are now. One round trip, and none that reads clients' data.
 */
export async function readDeploymentConditions(
  sql: Sql,
  limits: ConflictLimits,
): Promise<DeploymentCondition[]> {
  // A client's own rules have been checked when they were set; a value that is none after all is passed over.
  const own = (path: string, type: string) =>
    raw(`case when jsonb_typeof(d.config #> '{conflict_resolution,${path}}') = '${type}'
      then d.config #>> '{conflict_resolution,${path}}' end`)
  return await sql<DeploymentCondition>`
    select d.deployment_id as "deploymentId", d.client_name as client, d.status, d.status_reason as "statusReason",
      d.sync_enabled as "isEnabled", d.load_position is not null as "isLoading",
      d.sync_interval as "syncInterval", d.sync_schedule as "syncSchedule",
      extract(epoch from now() - coalesce(greatest(d.last_sync_at, d.checked_at), d.created_at))::float8
        as "uncheckedSeconds",
      greatest(d.last_sync_at, d.checked_at) is not null as "hasSynced",
      coalesce(extract(epoch from now() - d.behind_since), 0)::float8 as "behindSeconds",
      f.sync as "syncFailures", f.verify as "verifyFailures", f.code as "lastErrorCode",
      (select count(*)::int from sync_metadata.row_quarantine q
        where q.deployment_id = d.deployment_id and q.resolved_at is null) as "quarantinedRows",
      (select count(*)::int from sync_metadata.conflict_log c
        where c.deployment_id = d.deployment_id and c.status = 'pending') as "pendingConflicts",
      -- Where decisions are not recorded, the syncs say how many they were.
      case when l.is_logged then (select count(*)::int from sync_metadata.conflict_log c
        where c.deployment_id = d.deployment_id and c.detected_at > now() - l.minutes * interval '1 minute')
      else (select coalesce(sum(j.conflicts_detected), 0)::int from sync_metadata.sync_jobs j
        where j.deployment_id = d.deployment_id and j.created_at > now() - l.minutes * interval '1 minute' - interval '1 day'
          and j.finished_at > now() - l.minutes * interval '1 minute') end as "recentConflicts",
      json_build_object('threshold', l.threshold, 'windowMinutes', l.minutes) as "conflictLimit",
      (select coalesce(sum((j.result #>> '{conflicts,to_tell}')::int), 0)::int from sync_metadata.sync_jobs j
        where j.deployment_id = d.deployment_id and j.created_at > now() - interval '1 day'
          and j.finished_at > now() - interval '10 minutes' and j.conflicts_detected > 0) as "conflictsToTell",
      greatest(0, coalesce(v.difference_count - v.repaired, 0)) as differences, v.verified_at as "lastVerifiedAt"
    from sync_metadata.client_deployments d
    cross join lateral (
      select coalesce((${own('resolution_log,enabled', 'boolean')})::boolean, ${limits.isLogged}) as is_logged,
        coalesce((${own('notification,high_conflict_rate,threshold', 'number')})::float8, ${limits.threshold}::float8)
          as threshold,
        coalesce((${own('notification,high_conflict_rate,time_window_minutes', 'number')})::float8,
          ${limits.windowMinutes}::float8) as minutes
    ) l
    left join lateral (
      select w.difference_count, w.repaired, w.verified_at from sync_metadata.verifications w
      where w.deployment_id = d.deployment_id order by w.verified_at desc limit 1
    ) v on true
    -- A job has failed once for each of its attempts. One that a takeover interrupted, and one that has applied its cut
    -- and left rows behind, have not.
    cross join lateral (
      select
        coalesce(sum(j.failures) filter (where j.is_sync), 0)::int as sync,
        coalesce(sum(j.failures) filter (where not j.is_sync), 0)::int as verify,
        (array_agg(j.error_code order by j.at desc))[1] as code
      from (
        select k.error_code, k.sync_type in ('full', 'incremental') as is_sync,
          coalesce(k.finished_at, k.started_at, k.created_at) as at,
          case when k.status = 'running' then k.attempt - 1 else greatest(k.attempt, 1) end as failures
        -- The last ones only: a client that is synced live has thousands of them.
        from (
          select * from sync_metadata.sync_jobs r
          where r.deployment_id = d.deployment_id order by r.created_at desc limit 20
        ) k
        where k.status in ('failed', 'pending', 'running') and k.created_at > now() - interval '7 days'
          and k.sync_type in ('full', 'incremental', 'verify')
          and k.error_code is not null and k.error_code <> 'SYNC_FENCED_OUT' and k.generation is null
      ) j
      where j.at > coalesce(case when j.is_sync then greatest(d.last_sync_at, d.checked_at) else v.verified_at end,
        '-infinity')
    ) f
    where d.host_id = (select sync_metadata.my_host())
    order by d.client_name`
}

export async function readClusterCondition(sql: Sql): Promise<ClusterCondition> {
  const [row] = await sql<ClusterCondition>`
    select clock_timestamp() as now, count(*)::int as takeovers
    from sync_metadata.audit_log
    where host_id = (select sync_metadata.my_host()) and action = 'lease.acquired'
      and recorded_at > now() - interval '10 minutes' and actor not like '%-cli'`
  return row as ClusterCondition
}

/** Sizes in bytes: of the whole database, and of each client's schema. Costs a look at every file. */
export type Sizes = {readonly databaseBytes: number; readonly clients: ReadonlyMap<string, number>}

export async function readSizes(sql: Sql): Promise<Sizes> {
  const rows = await sql<{client: string | null; bytes: bigint}>`
    select null as client, pg_database_size(current_database()) as bytes
    union all
    select d.client_name, coalesce(sum(pg_total_relation_size(c.oid)), 0)::bigint
    from sync_metadata.client_deployments d
    left join pg_catalog.pg_namespace n on n.nspname = d.schema_name
    left join pg_catalog.pg_class c on c.relnamespace = n.oid and c.relkind = 'r'
    where d.host_id = (select sync_metadata.my_host())
    group by d.client_name`
  const sizes = new Map(rows.map(({client, bytes}) => [client, Number(bytes)]))
  const databaseBytes = sizes.get(null) ?? 0
  sizes.delete(null)
  return {databaseBytes, clients: sizes as Map<string, number>}
}

export type LeaderSeen = {
  /** `null` when nobody has a lease that still holds. */
  readonly leaderId: string | null
  /** Nobody is meant to lead. */
  readonly isPaused: boolean
}

/** @returns who leads this host's cluster now, by the database's clock. */
export async function readLeader(sql: Sql): Promise<LeaderSeen> {
  const [row] = await sql<LeaderSeen>`
    select case when expires_at > clock_timestamp() then leader_id end as "leaderId", paused as "isPaused"
    from sync_metadata.leader_election where cluster_name = (select sync_metadata.my_cluster())`
  return row ?? {leaderId: null, isPaused: false}
}
