import {fromCanonical} from '../core/canonical.ts'
import {SyncError, UsageError} from '../core/errors.ts'
import type {TableLayout} from '../core/layout.ts'
import {isSameValue, type Value} from '../core/value.ts'
import type {Pool, Sql, Tx} from '../postgres/sql.ts'
import {findConflict, type WholeConflict} from '../state/conflicts.ts'
import {findDeployment, findSourceSchema} from '../state/deployments.ts'
import {lockMarked, settle, type MarkedRow, type Settlement, type SourceSide} from '../target/marks.ts'
import {digestOfRow, encoded} from './conflicts.ts'
import {readable, sideToJson, type LedgerSide} from '../state/ledger-data.ts'
import {sideOf} from './ledger.ts'

// A person decides a conflict, or takes a decision back. The row is locked and must still be what the person was shown;
// no lease is needed for that: whatever a sync does with the row meanwhile comes before it or after it.

/** What a person chooses: a side, or the row as it is to be; columns that it leaves out stay as they are in the target. */
export type Choice =
  | {readonly choice: 'source'}
  | {readonly choice: 'target'}
  | {readonly choice: 'row'; readonly row: Readonly<Record<string, unknown>>}

/** One column of a conflict, for people: long integers and bytes as text. */
export type ConflictField = {
  readonly column: string
  readonly source: string | number | null
  readonly target: string | number | null
  readonly resolved: string | number | null
  readonly differs: boolean
}

/** A conflict field by field. A side is `undefined` when the ledger does not keep it any more. */
export type ConflictView = {
  readonly conflict: WholeConflict
  readonly sides: {readonly source: Presence; readonly target: Presence; readonly resolved: Presence}
  /** The columns that the ledger has: all, or those in which the sides differ. */
  readonly fields: readonly ConflictField[]
}

/** `absent`: there is no such row on that side. */
export type Presence = 'present' | 'absent' | 'unknown'

/** No conflict of this host has that id. */
export class UnknownConflictError extends SyncError {
  override readonly name = 'UnknownConflictError'
  readonly code = 'SYNC_UNKNOWN_CONFLICT'
  readonly next = 'See `owsync client conflicts NAME` for those that there are.'

  constructor(conflictId: string) {
    super(`no conflict of this host has the id ${conflictId}`)
  }
}

/** The conflict is not one that this can be done to: it has been decided, undone or overtaken. */
export class ConflictClosedError extends SyncError {
  override readonly name = 'ConflictClosedError'
  readonly code = 'SYNC_CONFLICT_CLOSED'
  readonly next: string

  constructor(conflictId: string, why: string, next: string) {
    super(`the conflict ${conflictId} ${why}`)
    this.next = next
  }
}

/** The row is not as it was when the conflict was told: somebody has changed it, or its table, since. */
export class ConflictMovedError extends SyncError {
  override readonly name = 'ConflictMovedError'
  readonly code = 'SYNC_CONFLICT_MOVED'
  readonly next = 'Sync the client, look at the conflict again, and decide then.'

  constructor(conflictId: string, what: string) {
    super(`the conflict ${conflictId} cannot be decided as it was: ${what}`)
  }
}

/** @returns the conflict field by field, if this host has it. */
export async function viewConflict(sql: Sql, conflictId: string): Promise<ConflictView | undefined> {
  const conflict = await findConflict(sql, conflictId)
  if (conflict === undefined) return undefined
  const entry = await readEntry(sql, conflictId, false)
  const {source, target, resolved} = entry
  const columns = new Set([source, target, resolved].flatMap(side => [...(side?.fields.keys() ?? [])]))
  const valueIn = (side: LedgerSide | undefined, column: string) => side?.fields.get(column) ?? null
  const presence = (side: LedgerSide | undefined): Presence =>
    side === undefined ? 'unknown' : side.digest === undefined ? 'absent' : 'present'
  return {
    conflict,
    sides: {source: presence(source), target: presence(target), resolved: presence(resolved)},
    fields: [...columns].map(column => ({
      column,
      source: readable(valueIn(source, column)),
      target: readable(valueIn(target, column)),
      resolved: readable(valueIn(resolved, column)),
      differs: !isSameValue(valueIn(source, column), valueIn(target, column)),
    })),
  }
}

/**
 * Decides a pending conflict.
 *
 * @param actor who it was, for the ledger and the audit log.
 * @throws {UnknownConflictError}, {ConflictClosedError} when it is not pending, {ConflictMovedError} when the row is no
 * longer what was shown, {UsageError} for a row that the table does not take.
 */
export async function resolveConflict(
  pool: Pool,
  conflictId: string,
  choice: Choice,
  actor: string,
): Promise<void> {
  await pool.begin(async tx => {
    const {entry, layout, row} = await lockEntry(tx, conflictId)
    if (entry.status !== 'pending')
      throw new ConflictClosedError(
        conflictId,
        `does not wait for anybody: it is ${entry.status}`,
        'To have it otherwise, take the decision back: `owsync client undo`.',
      )
    if (row.divergedBy !== conflictId || row.editedBy !== undefined)
      throw new ConflictMovedError(conflictId, 'the row has been edited since')
    const source = () => sourceOf(entry, layout, row)
    const result =
      choice.choice === 'source'
        ? source()
        : choice.choice === 'target'
          ? row.target
          : edited(layout, entry.key, choice.row, row.target ?? source())
    const outcome = choice.choice === 'row' ? 'merged' : choice.choice
    await conclude(tx, entry, layout, row, {result, outcome, status: 'resolved', actor})
  })
}

/**
 * Takes a decision back: a row that was made the source's, or merged, is again what the target had; one that had kept
 * the target's values gets the source's.
 *
 * @throws {UnknownConflictError}, {ConflictClosedError} when it is not decided or its rows are not kept any more,
 * {ConflictMovedError} when the row has changed since.
 */
export async function undoConflict(pool: Pool, conflictId: string, actor: string): Promise<void> {
  await pool.begin(async tx => {
    const {entry, layout, row} = await lockEntry(tx, conflictId)
    if (entry.status !== 'resolved')
      throw new ConflictClosedError(
        conflictId,
        `has no decision to be taken back: it is ${entry.status}`,
        entry.status === 'pending' ? 'Decide it: `owsync client resolve`.' : 'There is nothing to do.',
      )
    const {resolved} = entry
    if (resolved === undefined)
      throw new ConflictClosedError(
        conflictId,
        'cannot be taken back: what the rows held is not kept any more',
        'Edit the row where it is wrong; a sync takes it from there.',
      )
    const isAsDecided =
      row.target?.digest.toString('hex') === resolved.digest &&
      row.editedBy === undefined &&
      (row.divergedBy ?? conflictId) === conflictId
    if (!isAsDecided) throw new ConflictMovedError(conflictId, 'the row has changed since')
    const isTargets = entry.outcome === 'target'
    const result = isTargets
      ? sourceOf(entry, layout, row)
      : restored(conflictId, layout, entry.key, entry.target, row.target)
    await conclude(tx, entry, layout, row, {
      result,
      outcome: isTargets ? 'source' : 'target',
      status: 'undone',
      actor,
    })
  })
}

type Entry = {
  readonly conflictId: string
  readonly deploymentId: string
  readonly schemaName: string
  readonly clientName: string
  readonly table: string
  readonly key: string
  readonly status: string
  readonly outcome: 'source' | 'target' | 'merged' | null
  readonly source: LedgerSide | undefined
  readonly target: LedgerSide | undefined
  readonly resolved: LedgerSide | undefined
}

/** @throws {UnknownConflictError} */
async function readEntry(sql: Sql, conflictId: string, locks: boolean): Promise<Entry> {
  const columns = sql<
    Omit<Entry, 'source' | 'target' | 'resolved'> & Record<'source' | 'target' | 'resolved', string | null>
  >`
    select c.conflict_id as "conflictId", c.deployment_id as "deploymentId", d.schema_name as "schemaName",
      d.client_name as "clientName", c.table_name as table, c.record_key as key, c.status, c.outcome,
      c.source_data::text as source, c.target_data::text as target, c.resolved_data::text as resolved
    from sync_metadata.conflict_log c join sync_metadata.client_deployments d using (deployment_id)
    where c.conflict_id = ${conflictId} and d.host_id = (select sync_metadata.my_host())`
  const [found] = await columns
  if (found === undefined) throw new UnknownConflictError(conflictId)
  if (locks)
    await sql`select 1 from sync_metadata.conflict_log where conflict_id = ${conflictId} for no key update`
  const {source, target, resolved} = found
  return {...found, source: sideOf(source), target: sideOf(target), resolved: sideOf(resolved)}
}

/** The row first and its entry second, as a sync does it: else the two could wait for each other. */
async function lockEntry(
  tx: Tx,
  conflictId: string,
): Promise<{entry: Entry; layout: TableLayout; row: MarkedRow}> {
  const seen = await readEntry(tx, conflictId, false)
  const deployment = await findDeployment(tx, seen.schemaName)
  const schema = await findSourceSchema(tx, seen.deploymentId)
  const layout = schema?.tables.find(({target}) => target === seen.table)
  if (deployment === undefined || layout === undefined)
    throw new ConflictMovedError(conflictId, 'the app has no such table any more')
  const [row] = await lockMarked(tx, seen.schemaName, layout, [seen.key], 'any')
  if (row === undefined) throw new ConflictMovedError(conflictId, 'the row is not there any more')
  // Once more: what was read before the lock may be old.
  await readEntry(tx, conflictId, true)
  return {entry: await readEntry(tx, conflictId, false), layout, row}
}

/** The source's row: what the ledger says of it, over what the target has in common with it. */
function sourceOf(entry: Entry, layout: TableLayout, row: MarkedRow): SourceSide | undefined {
  return restored(entry.conflictId, layout, entry.key, entry.source, row.target)
}

/** A side whole again. @throws {ConflictMovedError} when that does not give the row that the ledger speaks of. */
function restored(
  conflictId: string,
  layout: TableLayout,
  key: string,
  side: LedgerSide | undefined,
  over: MarkedRow['target'],
): SourceSide | undefined {
  if (side === undefined)
    throw new ConflictClosedError(
      conflictId,
      'has no rows any more that could be chosen',
      'Edit the row where it is wrong; a sync takes it from there.',
    )
  if (side.digest === undefined) return undefined
  const found = overlaid(layout, key, side, over)
  if (found.digest.toString('hex') !== side.digest)
    throw new ConflictMovedError(conflictId, 'the row has changed since')
  return found
}

/** @returns a row with what the ledger has of a side, and the rest from `over`. */
export function overlaid(
  layout: TableLayout,
  key: string,
  side: LedgerSide,
  over: MarkedRow['target'],
): SourceSide {
  const values = layout.columns.map(({source}, i): Value => {
    const value = side.fields.get(source)
    return value === undefined ? (over?.values[i] ?? null) : value
  })
  return {values, digest: digestOfRow(layout, key, values)}
}

type Conclusion = {
  readonly result: SourceSide | undefined
  readonly outcome: 'source' | 'target' | 'merged'
  readonly status: 'resolved' | 'undone'
  readonly actor: string
}

async function conclude(
  tx: Tx,
  entry: Entry,
  layout: TableLayout,
  row: MarkedRow,
  {result, outcome, status, actor}: Conclusion,
): Promise<void> {
  const {conflictId, key} = entry
  // What the source has now, as far as Postgres knows: an agreed delete keeps the digest of the row that was. It need not
  // be what the entry says: what had been kept may have been written to the source since.
  const isAgreedDelete = row.divergedBy === undefined && row.target === undefined
  const hash = isAgreedDelete ? undefined : row.hash
  const sourceDigest = hash?.toString('hex')
  const isStanding = result?.digest.toString('hex') !== sourceDigest
  const common = {key, hash, divergedBy: isStanding ? conflictId : undefined}
  const isAsItStands = result?.digest.toString('hex') === row.target?.digest.toString('hex')
  const settlement: Settlement = isAsItStands
    ? {...common, do: 'keep'}
    : result === undefined
      ? {...common, do: 'delete'}
      : {...common, do: 'write', row: encoded(layout, key, result)}
  await settle(tx, entry.schemaName, layout, [settlement])
  const resolved: LedgerSide = {
    digest: result?.digest.toString('hex'),
    fields: new Map(
      layout.columns.flatMap(({source: name}, i): [string, Value][] =>
        result !== undefined && (entry.source?.fields.has(name) ?? entry.target?.fields.has(name) ?? false)
          ? [[name, result.values[i] as Value]]
          : [],
      ),
    ),
  }
  await tx`
    update sync_metadata.conflict_log
    set status = ${status}, outcome = ${outcome}, is_standing = ${isStanding}, resolved_by = ${actor},
      resolved_at = now(), resolved_data = ${sideToJson(resolved)}::jsonb
    where conflict_id = ${conflictId}`
  await tx`
    insert into sync_metadata.audit_log (host_id, actor, action, client_name, details)
    values (sync_metadata.my_host(), ${actor}, ${`conflict.${status}`}, ${entry.clientName},
      jsonb_build_object('conflict_id', ${conflictId}::text, 'table', ${entry.table}::text, 'outcome', ${outcome}::text))`
}

/** The row that a person wrote, over what is there. @throws {UsageError} naming the column that cannot be so. */
function edited(
  layout: TableLayout,
  key: string,
  row: Readonly<Record<string, unknown>>,
  over: SourceSide | undefined,
): SourceSide {
  const fields = new Map<string, Value>()
  for (const [name, given] of Object.entries(row)) {
    const column = layout.columns.find(({source}) => source === name)
    if (column === undefined)
      throw new UsageError(`table ${layout.source} has no column "${name}"`, 'Leave it out.')
    if (column.generated)
      throw new UsageError(`column "${name}" is computed by SQLite`, 'Leave it out: it follows the others.')
    const value = valueFrom(given, name, column.affinity === 'real')
    const at = layout.columns.indexOf(column)
    if (layout.key.includes(name) && !isSameValue(value, over?.values[at] ?? null))
      throw new UsageError(`column "${name}" is the key of ${layout.source}`, 'Leave it as it is.')
    fields.set(name, value)
  }
  return overlaid(layout, key, {digest: undefined, fields}, over)
}

/** JSON as a SQLite value: an object or a list is JSON text, true and false are 1 and 0. */
function valueFrom(given: unknown, column: string, isReal: boolean): Value {
  switch (typeof given) {
    case 'string':
      if (given.includes('\0')) break
      return given
    case 'boolean':
      return given ? 1n : 0n
    case 'number':
      return Number.isSafeInteger(given) && !isReal ? BigInt(given) : given
    case 'object': {
      if (given === null) return null
      const exact = (given as {exact?: unknown}).exact
      if (typeof exact === 'string' && Object.keys(given).length === 1) {
        try {
          return fromCanonical(exact)
        } catch {
          break // no canonical form: said below
        }
      }
      return JSON.stringify(given)
    }
    default: // nothing that JSON can say
  }
  throw new UsageError(`column "${column}" cannot be that`, 'Give text, a number, true, false, null or JSON.')
}
