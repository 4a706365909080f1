import type {Sql} from '../postgres/sql.ts'

/** One node of this host's cluster, as its heartbeats tell. */
export type NodeStatus = {
  readonly node_id: string
  readonly role: string
  /** Active: heard within 2 minutes; degraded: within 5; else offline. */
  readonly health: 'active' | 'degraded' | 'offline'
  readonly is_leader: boolean
  readonly started_at: Date
  readonly last_heartbeat: Date
  readonly version: string | null
  readonly address: string | null
}

export type ClusterStatus = {
  readonly cluster_name: string
  /** `null` while nobody leads. */
  readonly leader_id: string | null
  readonly epoch: bigint
  /** `null` when nobody has the lease. */
  readonly lease_expires_at: Date | null
  readonly acquired_at: Date | null
  readonly paused: boolean
  /** Who is to lead instead, while that wish lasts. */
  readonly preferred: string | null
  readonly nodes: readonly NodeStatus[]
}

/** Reads this host's cluster in one statement. */
export async function readCluster(sql: Sql): Promise<ClusterStatus> {
  const [row] = await sql<ClusterRow>`
    select h.cluster_name, case when l.expires_at > clock_timestamp() then l.leader_id end as leader_id,
      coalesce(l.epoch, 0) as epoch, nullif(l.expires_at, '-infinity') as lease_expires_at, l.acquired_at,
      coalesce(l.paused, false) as paused,
      case when l.preferred_until > clock_timestamp() then l.preferred end as preferred,
      coalesce((
        select jsonb_agg(jsonb_build_object('node_id', n.node_id, 'role', n.role, 'health', n.health,
          'is_leader', n.is_leader, 'started_at', n.started_at, 'last_heartbeat', n.last_heartbeat,
          'version', n.version, 'address', n.address) order by n.node_id)
        from sync_metadata.v_cluster_health n where n.host_id = h.host_id), '[]') as nodes
    from sync_metadata.hosts h
    left join sync_metadata.leader_election l using (cluster_name)
    where h.host_id = (select sync_metadata.my_host())`
  if (!row) throw new Error('this role has no host')
  return {
    ...row,
    nodes: row.nodes.map(node => ({
      ...node,
      started_at: new Date(node.started_at),
      last_heartbeat: new Date(node.last_heartbeat),
    })),
  }
}

type ClusterRow = Omit<ClusterStatus, 'nodes'> & {
  readonly nodes: (Omit<NodeStatus, 'started_at' | 'last_heartbeat'> & {
    readonly started_at: string
    readonly last_heartbeat: string
  })[]
}

/** How the host as a whole is: what `GET /health` is made of. */
export type Overview = {
  readonly leaderId: string | null
  readonly lastSyncAt: Date | null
  readonly deployments: number
  /** Enabled ones whose last sync failed or is being tried again for the third time, or that are quarantined. */
  readonly failing: number
  /** Enabled ones whose target has not been known to equal its source for too long. */
  readonly lagging: number
}

/** A deployment may be this much behind, and a scheduled sync this late, before it counts as lagging. */
const LATE_SECONDS = 600

/** So many attempts of a job have failed before its deployment counts as failing: one or two may pass by themselves. */
const FAILURES = 3

/** Reads the overview in one statement. */
export async function readOverview(sql: Sql): Promise<Overview> {
  const [row] = await sql<Overview>`
    select
      (select case when l.expires_at > clock_timestamp() then l.leader_id end
        from sync_metadata.leader_election l
        where l.cluster_name = (select sync_metadata.my_cluster())) as "leaderId",
      max(d.last_sync_at) as "lastSyncAt",
      count(*)::int as deployments,
      count(*) filter (where d.sync_enabled
        and (d.last_sync_status = 'failed' or d.status = 'quarantined' or exists (
          select from sync_metadata.sync_jobs j
          where j.deployment_id = d.deployment_id and j.status in ('pending', 'running')
            and j.sync_type in ('full', 'incremental') and j.error_code <> 'SYNC_FENCED_OUT'
            and case when j.status = 'running' then j.attempt - 1 else j.attempt end >= ${FAILURES}
        )))::int as failing,
      -- Behind: a version of the source waits. Not looked at: nobody would know if one did.
      count(*) filter (where d.sync_enabled and d.status = 'active' and (
        d.behind_since < now() - ${LATE_SECONDS} * interval '1 second'
        or d.next_sync_at < now() - ${LATE_SECONDS} * interval '1 second'
        or (d.sync_interval is not null or d.sync_schedule = 'live')
          and greatest(d.last_sync_at, d.checked_at, d.created_at)
            < now() - greatest(${LATE_SECONDS}, 3 * coalesce(d.sync_interval, 0)) * interval '1 second'
      ))::int as lagging
    from sync_metadata.client_deployments d
    where d.host_id = (select sync_metadata.my_host())`
  if (!row) throw new Error('an aggregate gave no row')
  return row
}
