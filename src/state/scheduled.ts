import {json, type Sql, type Tx} from '../postgres/sql.ts'
import {unwritten, type Deployment} from './deployments.ts'

/** A deployment as its leader needs to know it to look after it. Ages are of the database's clock. */
export type Scheduled = Pick<
  Deployment,
  'deploymentId' | 'clientName' | 'schemaName' | 'sqlitePath' | 'status' | 'statusReason' | 'generation'
> & {
  readonly isEnabled: boolean
  readonly syncInterval: number | null
  readonly syncSchedule: string | null
  readonly config: Readonly<Record<string, unknown>>
  /** Raised by every change of its settings. */
  readonly settingsVersion: bigint
  /** How long ago the target was last known to equal its source; `null`: never. */
  readonly freshMs: number | null
  /** The version of the source that was seen then. */
  readonly sourceVersion: string | null
  /** For how long another version has been known that is not applied; `null`: none is known. */
  readonly behindMs: number | null
}

/** All deployments of this host with a SQLite file, in the order of their names. */
export async function listScheduled(sql: Sql): Promise<Scheduled[]> {
  return await sql<Scheduled>`
    select deployment_id as "deploymentId", client_name as "clientName", schema_name as "schemaName",
      sqlite_path as "sqlitePath", status, status_reason as "statusReason", generation,
      sync_enabled as "isEnabled", sync_interval as "syncInterval", sync_schedule as "syncSchedule", config,
      settings_version as "settingsVersion",
      extract(epoch from clock_timestamp() - greatest(checked_at, last_sync_at))::float8 * 1000 as "freshMs",
      source_version as "sourceVersion",
      extract(epoch from clock_timestamp() - behind_since)::float8 * 1000 as "behindMs"
    from sync_metadata.client_deployments
    where host_id = (select sync_metadata.my_host()) and database_type = 'sqlite'
    order by client_name`
}

/** What the leader has found out about a deployment without a job that would say it. */
export type Check = {
  readonly deploymentId: string
  /** How long ago its target was found to equal its source; `null`: not since the last time. */
  readonly freshMs: number | null
  readonly sourceVersion: string | null
  readonly behindMs: number | null
  /** In how long it is due; `null`: not by itself. */
  readonly dueInMs: number | null
}

/** Keeps what was found out, of all of them at once. */
export async function saveChecks(tx: Tx, checks: readonly Check[]): Promise<void> {
  if (checks.length === 0) return
  // First, so that the next statement sees the failures of those who had them locked.
  await tx`
    select from sync_metadata.client_deployments where deployment_id = any (${checks.map(check => check.deploymentId)}::uuid[])
    order by deployment_id for no key update`
  await tx`
    update sync_metadata.client_deployments d
    set checked_at = greatest(d.checked_at, clock_timestamp() - c.fresh * interval '1 millisecond'),
      source_version = coalesce(c.version, d.source_version),
      behind_since = clock_timestamp() - c.behind * interval '1 millisecond',
      next_sync_at = clock_timestamp() + c.due * interval '1 millisecond',
      -- What was found before a sync failed is no news after it.
      last_sync_status = case when c.fresh is null or d.generation = 0 or exists (
          select from sync_metadata.sync_jobs j
          where j.deployment_id = d.deployment_id and j.status = 'failed'
            and j.created_at > clock_timestamp() - interval '1 day'
            and j.finished_at > clock_timestamp() - c.fresh * interval '1 millisecond')
        then d.last_sync_status else 'success' end
    from unnest(${checks.map(check => check.deploymentId)}::uuid[], ${checks.map(check => check.freshMs)}::float8[],
      ${checks.map(check => check.sourceVersion)}::text[], ${checks.map(check => check.behindMs)}::float8[],
      ${checks.map(check => check.dueInMs)}::float8[]) as c (id, fresh, version, behind, due)
    where d.deployment_id = c.id`
}

/**
 * @returns how many rows of each client's target a sync has to look at: somebody else has edited them since they were last
 * synced or, where it is two_way, the source does not have yet what was decided.
 */
export async function countMarks(
  sql: Sql,
  deploymentIds: readonly string[],
): Promise<ReadonlyMap<string, bigint>> {
  const rows = await sql<{id: string; marks: bigint}>`
    select id, sync_metadata.count_marks(id) + (
        select count(*) ${unwritten}) as marks
    from unnest(${deploymentIds}::uuid[]) as t (id)
    join sync_metadata.client_deployments d on d.deployment_id = id`
  return new Map(rows.map(({id, marks}) => [id, marks]))
}

/**
 * Takes upon itself to remove, for this host, what need not be kept any longer.
 *
 * @returns whether it is time, and nobody else has taken it.
 */
export async function claimRetention(sql: Sql, everyMs: number): Promise<boolean> {
  const rows = await sql`
    update sync_metadata.hosts
    set metadata = metadata || jsonb_build_object('purged_at', clock_timestamp())
    where host_id = (select sync_metadata.my_host())
      and coalesce((metadata ->> 'purged_at')::timestamptz, '-infinity')
        < clock_timestamp() - ${everyMs}::float8 * interval '1 millisecond'
    returning host_id`
  return rows.length > 0
}

/**
 * Removes finished jobs, seen events, what belongs to them, and the rows that decided conflicts of so many days ago show.
 *
 * @param own days of the deployments that have their own.
 * @returns how many jobs.
 */
export async function purgeHistory(
  sql: Sql,
  snapshotDays: number,
  own: ReadonlyMap<string, number> = new Map(),
): Promise<bigint> {
  const intervals = Object.fromEntries([...own].map(([id, days]) => [id, `${days} days`]))
  const [row] = await sql<{jobs: bigint}>`
    select jobs from sync_metadata.purge_history(p_snapshots => ${snapshotDays}::int * interval '1 day',
      p_own => ${json(intervals)})`
  return row?.jobs ?? 0n
}

/** Removes the client's rows that were deleted so long ago. @returns how many. */
export async function purgeTombstones(sql: Sql, deploymentId: string, olderMs: number): Promise<bigint> {
  const [row] = await sql<{rows: bigint}>`
    select sync_metadata.purge_tombstones(${deploymentId}, ${olderMs}::float8 * interval '1 millisecond') as rows`
  return row?.rows ?? 0n
}
