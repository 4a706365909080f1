import {SyncError} from '../core/errors.ts'
import type {SourceSchema} from '../core/layout.ts'
import {json, raw, type Sql} from '../postgres/sql.ts'

/** One client's Open WebUI, as the control schema knows it. */
export type Deployment = {
  readonly deploymentId: string
  readonly clientName: string
  readonly schemaName: string
  readonly sqlitePath: string | null
  readonly status: 'active' | 'paused' | 'migrating' | 'stopped' | 'quarantined'
  readonly statusReason: string | null
  readonly direction: 'one_way' | 'two_way'
  /** The number of the last applied cut; 0 before the first. */
  readonly generation: bigint
  /** The last cut that was committed; `null` before the first. */
  readonly cutId: string | null
  /** Present while a first load is unfinished. */
  readonly loadPosition: unknown
  /** Rows that could not be applied and are tried again. */
  readonly quarantinedRows: number
  /** Conflicts that wait for a person. */
  readonly pendingConflicts: number
  /** Somebody else has edited rows since they were last decided. */
  readonly hasMarks: boolean
  /** It is two_way, and rows were decided that its source does not have so. */
  readonly hasUnwritten: boolean
  /** Overrides of settings, as they were written. */
  readonly config: unknown
}

/** No deployment of this host has that name. */
export class UnknownClientError extends SyncError {
  override readonly name = 'UnknownClientError'
  readonly code = 'SYNC_UNKNOWN_CLIENT'
  readonly next =
    'Register it with `owsync client register NAME --sqlite FILE`, or see `owsync client list` for the known ones.'

  constructor(clientName: string) {
    super(`no deployment of this host is called ${clientName}`)
  }
}

/** Of a deployment `d` that is two_way: rows that were decided and that the source does not have so. A dropped table has none. */
export const unwritten = raw(`from sync_metadata.conflict_log c
  where c.deployment_id = d.deployment_id and d.direction = 'two_way' and c.is_standing
    and c.status in ('resolved', 'undone') and c.table_name in (
      select t ->> 'target' from (
        select s.tables from sync_metadata.source_schemas s
        where s.deployment_id = d.deployment_id order by s.version desc limit 1
      ) s cross join jsonb_array_elements(s.tables) t)`)

/** @returns the deployment whose schema is `schemaName`, or `undefined`. Names that fold alike are one client. */
export async function findDeployment(sql: Sql, schemaName: string): Promise<Deployment | undefined> {
  const [row] = await sql<Deployment>`
    select deployment_id as "deploymentId", client_name as "clientName", schema_name as "schemaName",
      sqlite_path as "sqlitePath", status, status_reason as "statusReason", direction, generation, cut_id as "cutId",
      load_position as "loadPosition",
      (select count(*)::int from sync_metadata.row_quarantine q
        where q.deployment_id = d.deployment_id and q.resolved_at is null) as "quarantinedRows",
      (select count(*)::int from sync_metadata.conflict_log c
        where c.deployment_id = d.deployment_id and c.status = 'pending') as "pendingConflicts",
      exists (select from sync_metadata.marked_tables(d.schema_name)) as "hasMarks",
      exists (select ${unwritten}) as "hasUnwritten",
      config
    from sync_metadata.client_deployments d
    where schema_name = ${schemaName} and host_id = (select sync_metadata.my_host())`
  return row
}

/** @returns the source's shape as of the last cut, or `undefined` before the first. */
export async function findSourceSchema(sql: Sql, deploymentId: string): Promise<SourceSchema | undefined> {
  const [row] = await sql<SourceSchema>`
    select objects, pragmas, alembic_revision as "alembicRevision", tables
    from sync_metadata.source_schemas where deployment_id = ${deploymentId} order by version desc limit 1`
  return row
}

/** Every Alembic revision the deployment has been at, oldest first. */
export async function readRevisions(sql: Sql, deploymentId: string): Promise<string[]> {
  const rows = await sql<{alembic_revision: string}>`
    select alembic_revision from sync_metadata.source_schemas
    where deployment_id = ${deploymentId} and alembic_revision is not null
    group by alembic_revision order by min(version)`
  return rows.map(row => row.alembic_revision)
}

/** Records the source's shape as its newest version. Part of the transaction that applies the cut. */
export async function saveSourceSchema(
  sql: Sql,
  deploymentId: string,
  generation: bigint,
  schema: SourceSchema,
): Promise<void> {
  await sql`
    insert into sync_metadata.source_schemas
      (deployment_id, version, first_generation, objects, pragmas, alembic_revision, tables)
    select ${deploymentId}, coalesce(max(version), 0) + 1, ${generation}, ${json(schema.objects)}, ${json(schema.pragmas)},
      ${schema.alembicRevision}, ${json(schema.tables)}
    from sync_metadata.source_schemas where deployment_id = ${deploymentId}`
}

/** Registers a client with its file, to be synced every so many seconds; one that is known keeps its settings. */
export async function registerDeployment(
  sql: Sql,
  clientName: string,
  sqlitePath: string,
  intervalSeconds: number,
): Promise<void> {
  const settings = {sqlite_path: sqlitePath, sync_interval: intervalSeconds}
  await sql`select sync_metadata.register_deployment(${clientName}, ${json(settings)})`
}

/** Remembers where the source is now. */
export async function moveSource(sql: Sql, deploymentId: string, sqlitePath: string): Promise<void> {
  await sql`update sync_metadata.client_deployments set sqlite_path = ${sqlitePath}, updated_at = now()
    where deployment_id = ${deploymentId}`
}

/** Holds a deployment back until a person has looked; nothing of the cut was applied. */
export async function quarantine(sql: Sql, deploymentId: string, reason: string): Promise<void> {
  await sql`update sync_metadata.client_deployments
    set status = 'quarantined', status_reason = ${reason}, checked_at = now(), updated_at = now()
    where deployment_id = ${deploymentId}`
}

/** The source is, again, what the target was made from: there is nothing to wait for. */
export async function unquarantine(sql: Sql, deploymentId: string): Promise<void> {
  await sql`update sync_metadata.client_deployments set status = 'active', status_reason = null, updated_at = now()
    where deployment_id = ${deploymentId} and status = 'quarantined'`
}

/** How the last sync ended, when it applied nothing that would say so. */
export async function recordStatus(
  sql: Sql,
  deploymentId: string,
  status: 'success' | 'failed',
): Promise<void> {
  await sql`update sync_metadata.client_deployments set last_sync_status = ${status}, updated_at = now()
    where deployment_id = ${deploymentId} and last_sync_status is distinct from ${status}`
}

/** A run that changed nothing because it failed, for the history. */
export async function recordFailure(
  sql: Sql,
  deploymentId: string,
  failure: {
    readonly code: string
    readonly message: string
    readonly epoch: bigint
    readonly durationMs: number
    readonly full: boolean
  },
): Promise<void> {
  await sql`
    with failed as (
      insert into sync_metadata.sync_jobs (deployment_id, sync_type, triggered_by, status, epoch, attempt, started_at,
        finished_at, duration_ms, error_code, error_message)
      values (${deploymentId}, ${failure.full ? 'full' : 'incremental'}, 'cli', 'failed', ${failure.epoch}, 1,
        now() - ${failure.durationMs} * interval '1 millisecond', now(), ${Math.round(failure.durationMs)}, ${failure.code}, ${failure.message})
    )
    update sync_metadata.client_deployments set last_sync_status = 'failed', updated_at = now()
    where deployment_id = ${deploymentId}`
}
