import {fragment, join, type Fragment, type Sql} from '../postgres/sql.ts'
import {isUuid, pageOf, placeOf, type Page} from './page.ts'

/** One decision, or one that a person has to make. */
export type Conflict = {
  readonly conflict_id: string
  readonly client_name: string
  readonly job_id: string | null
  readonly table_name: string
  readonly record_key: string
  readonly conflict_type: string
  readonly resolution_strategy: string | null
  readonly status: ConflictStatus
  readonly detected_at: Date
  readonly resolved_at: Date | null
  readonly resolved_by: string | null
  readonly notes: string | null
}

export type ConflictStatus = 'pending' | 'resolved' | 'superseded' | 'undone'

/** A conflict with both its sides, as far as they are kept. */
export type WholeConflict = Conflict & {
  readonly source_data: unknown
  readonly target_data: unknown
  readonly resolved_data: unknown
}

export type ConflictFilter = {readonly schemaName?: string; readonly status?: ConflictStatus}

/** The newest first. @throws {UsageError} when the cursor is not one of ours. */
export async function listConflicts(
  sql: Sql,
  {schemaName, status}: ConflictFilter,
  {limit, cursor}: Page,
): Promise<{readonly conflicts: Conflict[]; readonly next: string | null}> {
  const conditions: Fragment[] = [fragment`d.host_id = (select sync_metadata.my_host())`]
  if (schemaName !== undefined) conditions.push(fragment`d.schema_name = ${schemaName}`)
  if (status !== undefined) conditions.push(fragment`c.status = ${status}`)
  if (cursor !== undefined) {
    const {micros, id} = placeOf(cursor)
    conditions.push(
      fragment`(c.detected_at, c.conflict_id) < (timestamptz 'epoch' + ${micros}::bigint * interval '1 microsecond', ${id}::uuid)`,
    )
  }
  const rows = await sql<Conflict & {micros: bigint}>`
    select ${columns}, (extract(epoch from c.detected_at) * 1000000)::bigint as micros
    from sync_metadata.conflict_log c join sync_metadata.client_deployments d using (deployment_id)
    where ${join(conditions, ' and ')}
    order by c.detected_at desc, c.conflict_id desc
    limit ${limit + 1}`
  const {items, next} = pageOf(rows, limit, row => row.conflict_id)
  return {conflicts: items, next}
}

/** @returns the conflict, if this host has it. */
export async function findConflict(sql: Sql, conflictId: string): Promise<WholeConflict | undefined> {
  if (!isUuid(conflictId)) return undefined
  const [row] = await sql<WholeConflict>`
    select ${columns}, c.source_data, c.target_data, c.resolved_data
    from sync_metadata.conflict_log c join sync_metadata.client_deployments d using (deployment_id)
    where c.conflict_id = ${conflictId} and d.host_id = (select sync_metadata.my_host())`
  return row
}

const columns = fragment`
  c.conflict_id, d.client_name, c.job_id, c.table_name, c.record_key, c.conflict_type, c.resolution_strategy, c.status,
  c.detected_at, c.resolved_at, c.resolved_by, c.notes`
