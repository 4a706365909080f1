import {randomUUID} from 'node:crypto'
import type {ConflictType, Ruling} from '../conflict/conflict.ts'
import {fragment, join, type Sql} from '../postgres/sql.ts'
import {sideFromJson, sideToJson, type LedgerSide} from '../state/ledger-data.ts'

// The ledger of decisions: `sync_metadata.conflict_log`. `table_name` and `record_key` are the target's.

export type ConflictStatus = 'pending' | 'resolved' | 'superseded' | 'undone'

/** One decision, or one that a person is asked for. */
export type LedgerEntry = {
  readonly conflictId: string
  readonly table: string
  readonly key: string
  readonly type: ConflictType
  /** `undefined`: not known here. */
  readonly source: LedgerSide | undefined
  readonly target: LedgerSide
  /** What the row holds after it; `undefined` while it is pending. */
  readonly resolved: LedgerSide | undefined
  readonly strategy: Ruling['strategy']
  readonly rule: string
  readonly outcome: Ruling['verdict']['keep'] | undefined
  readonly status: ConflictStatus
  /** The row differs from the source by this entry from now on. */
  readonly isStanding: boolean
  readonly editedBy: string | undefined
  readonly resolvedBy: string | undefined
  readonly notes: string
}

/** An earlier entry by which a row differs. */
export type Standing = {
  readonly conflictId: string
  readonly status: ConflictStatus
  readonly editedBy: string | undefined
}

export function newConflictId(): string {
  return randomUUID()
}

/** @returns those of the entries that are there, by id. */
export async function readStandings(
  sql: Sql,
  deploymentId: string,
  ids: readonly string[],
): Promise<ReadonlyMap<string, Standing>> {
  if (ids.length === 0) return new Map()
  const rows = await sql<{id: string; status: ConflictStatus; by: string | null}>`
    select conflict_id as id, status, edited_by as by from sync_metadata.conflict_log
    where deployment_id = ${deploymentId} and conflict_id = any(${ids}::uuid[])`
  return new Map(rows.map(({id, status, by}) => [id, {conflictId: id, status, editedBy: by ?? undefined}]))
}

/** Writes entries; one that is there becomes what is said now, but for when it was detected. */
export async function writeEntries(
  sql: Sql,
  deploymentId: string,
  jobId: string | undefined,
  entries: readonly LedgerEntry[],
): Promise<void> {
  if (entries.length === 0) return
  const columns: ((entry: LedgerEntry) => string | boolean | null)[] = [
    entry => entry.conflictId,
    entry => entry.table,
    entry => entry.key,
    entry => entry.type,
    entry => (entry.source === undefined ? null : sideToJson(entry.source)),
    entry => sideToJson(entry.target),
    entry => (entry.resolved === undefined ? null : sideToJson(entry.resolved)),
    entry => entry.strategy,
    entry => entry.rule,
    entry => entry.outcome ?? null,
    entry => entry.status,
    entry => entry.isStanding,
    entry => entry.editedBy ?? null,
    entry => entry.resolvedBy ?? null,
    entry => entry.notes,
  ]
  const arrays = join(columns.map(of => fragment`${entries.map(of)}::text[]`))
  await sql`
    insert into sync_metadata.conflict_log as c (deployment_id, job_id, conflict_id, table_name, record_key, conflict_type,
      source_data, target_data, resolved_data, resolution_strategy, rule, outcome, status, is_standing, edited_by,
      resolved_by, notes, resolved_at)
    select ${deploymentId}, ${jobId ?? null}::uuid, e.id::uuid, e.table_name, e.record_key, e.type, e.source::jsonb,
      e.target::jsonb, e.resolved::jsonb, e.strategy, e.rule, e.outcome, e.status, e.standing::boolean, e.edited_by,
      e.resolved_by, e.notes, case when e.status <> 'pending' then now() end
    from unnest(${arrays}) as e (id, table_name, record_key, type, source, target, resolved, strategy, rule, outcome,
      status, standing, edited_by, resolved_by, notes)
    on conflict (conflict_id) do update set
      job_id = coalesce(excluded.job_id, c.job_id), conflict_type = excluded.conflict_type,
      source_data = excluded.source_data, target_data = excluded.target_data, resolved_data = excluded.resolved_data,
      resolution_strategy = excluded.resolution_strategy, rule = excluded.rule, outcome = excluded.outcome,
      status = excluded.status, is_standing = excluded.is_standing,
      edited_by = coalesce(excluded.edited_by, c.edited_by), resolved_by = excluded.resolved_by, notes = excluded.notes,
      resolved_at = excluded.resolved_at`
}

/** Entries by which no row differs any more; one that nobody has decided has been overtaken. */
export async function closeEntries(
  sql: Sql,
  deploymentId: string,
  ids: readonly string[],
  by: string,
): Promise<void> {
  if (ids.length === 0) return
  await sql`
    update sync_metadata.conflict_log set is_standing = false,
      status = case when status = 'pending' then 'superseded' else status end,
      resolved_at = coalesce(resolved_at, now()), resolved_by = coalesce(resolved_by, ${by})
    where deployment_id = ${deploymentId} and conflict_id = any(${ids}::uuid[])`
}

/** Table names of the target: as the ledger has them, and as they are from now on. */
export type Renamed = {readonly from: string; readonly to: string}

/** Lets the entries of tables follow them to other names; two may swap theirs. */
export async function renameTables(
  sql: Sql,
  deploymentId: string,
  renamed: readonly Renamed[],
): Promise<void> {
  if (renamed.length === 0) return
  await sql`
    update sync_metadata.conflict_log c set table_name = r.now
    from unnest(${renamed.map(({from}) => from)}::text[], ${renamed.map(({to}) => to)}::text[]) as r (was, now)
    where c.deployment_id = ${deploymentId} and c.table_name = r.was`
}

/** Lets the entries of rows follow them to other keys. */
export async function moveEntries(
  sql: Sql,
  deploymentId: string,
  table: string,
  moves: ReadonlyMap<string, string>,
): Promise<void> {
  if (moves.size === 0) return
  await sql`
    update sync_metadata.conflict_log c set record_key = m.now
    from unnest(${[...moves.keys()]}::text[], ${[...moves.values()]}::text[]) as m (was, now)
    where c.deployment_id = ${deploymentId} and c.table_name = ${table} and c.record_key = m.was`
}

/** @param text of a `jsonb` column; SQL NULL is a side that is not kept any more. */
export function sideOf(text: string | null): LedgerSide | undefined {
  return text === null ? undefined : sideFromJson(text)
}
