import type {ColumnLayout, TableLayout} from '../core/layout.ts'
import type {Value} from '../core/value.ts'
import {fenced, type Lease} from '../cluster/lease.ts'
import {GenerationMovedError} from '../postgres/refusals.ts'
import {json, raw, type Pool, type Tx} from '../postgres/sql.ts'
import type {TableSpec} from '../source/introspect.ts'
import type {Source} from '../source/open.ts'
import {findDeployment, type Deployment} from '../state/deployments.ts'
import {applyTable} from '../target/apply.ts'
import {RowEncoder} from '../target/encode.ts'
import {finishOperation, type Existing, type Operation} from '../target/plan.ts'
import {lockMarked, type MarkedRow} from '../target/marks.ts'
import {quote} from '../target/row-sql.ts'
import type {Candidates} from './candidates.ts'
import {newConflictId, writeEntries, type LedgerEntry} from './ledger.ts'
import {withSnapshot} from './snapshot.ts'
import {Sidecar} from './sidecar.ts'
import {clearSpools, Spool} from './spool.ts'

export type RepairRun = {
  readonly pool: Pool
  readonly lease: Lease
  readonly deployment: Deployment
  readonly source: Source
  readonly stateDir: string
  readonly lockBudgetMs: number
  readonly batchRows: number
  readonly statementTimeoutMs: number
}

/** A table with rows to be put right, or, without candidates, one whose structure is: then all rows are. */
export type TableRepair = {
  /** With its columns in the layout's order. */
  readonly spec: TableSpec
  readonly layout: TableLayout
  readonly candidates: Candidates | undefined
}

const SMALL_BYTES = 8 * 1024 * 1024
const PAGE_ROWS = 200

/**
 * Applies the source's rows again where the target differs, and marks what the source lacks as deleted, in one fenced
 * transaction. The cut stays the same one: the next sync finds nothing new because of it. So a row that the source has
 * changed since that cut is left to the next sync: put right here, it would be wrong for good if the source then went
 * back to what the cut knows. Where a whole table is put right, the next sync compares all rows with the target instead.
 *
 * @returns how many differences it has put right.
 * @throws {GenerationMovedError} when somebody applied another cut since `deployment` was read.
 */
export async function repair(
  run: RepairRun,
  tables: readonly TableRepair[],
  existing: Existing,
  signal: AbortSignal,
): Promise<number> {
  using resources = new DisposableStack()
  const place = {stateDir: run.stateDir, deploymentId: run.deployment.deploymentId}
  clearSpools(place)
  const small = {rows: run.batchRows, bytes: SMALL_BYTES}
  const spools = tables.map(({layout}, i) => resources.use(new Spool(layout, place, i, small)))
  const left = await gather(run, tables, spools, signal)
  const operations = tables.flatMap(({layout}) => structureOperations(layout, existing))
  const changes = tables.map(({candidates}, i) => {
    return {candidates, spool: spools[i] as Spool, left: left[i] as ReadonlySet<string>}
  })
  const work = changes.filter(({spool}) => spool.count > 0 || spool.tombstones.length > 0)
  if (operations.length === 0 && work.length === 0) return 0
  // Of a whole table the rows are applied as they are now: what the sidecar knows of them is of the cut, and must not
  // hide that the source goes back to it. The next sync compares with the target.
  if (tables.some(({candidates}) => candidates === undefined))
    Sidecar.remove(run.stateDir, run.deployment.deploymentId)

  await fenced(run.pool, run.lease, async tx => {
    await tx`select set_config('statement_timeout', ${`${run.statementTimeoutMs}ms`}, true)`
    await requireSameCut(tx, run.deployment)
    if (operations.length > 0)
      await tx`select sync_metadata.evolve_schema(${run.deployment.deploymentId}, ${json(operations)})`
    for (const {spool, candidates, left} of work) {
      if (candidates === undefined) await forgetHashes(tx, run.deployment.schemaName, spool.layout)
      else await recordUndone(tx, run, spool.layout, candidates, left)
      await applyTable(
        tx,
        run.deployment.schemaName,
        {
          layout: spool.layout,
          small: spool.small,
          count: spool.count,
          tombstones: spool.tombstones,
          mayRepeat: true,
          overwrites: true,
          stream: skip => spool.stream(skip),
        },
        new Set(),
        signal,
      )
      if (candidates !== undefined)
        await clearMarks(tx, run.deployment.schemaName, spool.layout, candidates, left)
    }
  })
  const rows = work.reduce((total, {candidates, spool}) => {
    return total + (candidates === undefined ? 0 : spool.count + spool.tombstones.length)
  }, 0)
  return rows + tables.filter(({candidates}) => candidates === undefined).length
}

/** Reads the rows to be applied, before any transaction is open. @returns, for each table, the keys of those left out. */
async function gather(
  run: RepairRun,
  tables: readonly TableRepair[],
  spools: readonly Spool[],
  signal: AbortSignal,
): Promise<ReadonlySet<string>[]> {
  const left = tables.map(() => new Set<string>())
  await withSnapshot(
    run.source,
    run.lockBudgetMs,
    async snapshot => {
      for (const [i, {spec, layout, candidates}] of tables.entries()) {
        const spool = spools[i] as Spool
        const isLeft = (key: string, digest: Uint8Array | undefined) => {
          if (candidates?.wasAtCut(key, digest) ?? true) return false
          left[i]?.add(key)
          return true
        }
        for (const keys of candidates?.keys(5_000, 'extra') ?? [])
          spool.tombstones.push(...keys.filter(key => !isLeft(key, undefined)))
        const encoder = new RowEncoder(layout)
        const isWanted = (key: string) => {
          const verdict = candidates?.verdictOf(key)
          return (
            candidates === undefined || verdict === 'missing' || verdict === 'changed' || verdict === 'hash'
          )
        }
        await snapshot.scan(spec, {
          row: row => {
            if (isWanted(row.key) && !isLeft(row.key, row.digest)) spool.add(encoder.encode(row))
          },
        })
      }
    },
    signal,
  )
  return left
}

/** Puts back what a layout says and the client schema lacks. */
function structureOperations(layout: TableLayout, existing: Existing): Operation[] {
  const table = layout.target
  const present = existing.get(table)
  const describe = ({target, type}: ColumnLayout) => ({name: target, type})
  if (present === undefined)
    return [{op: 'create_table', table, columns: layout.columns.map(describe)}, finishOperation(layout)]
  const operations = layout.columns.flatMap(({target, type}): Operation[] => {
    const is = present.get(target)
    if (is === type) return []
    return [{op: is === undefined ? 'add_column' : 'set_type', table, column: target, type}]
  })
  return operations.length === 0 ? [] : [...operations, finishOperation(layout)]
}

async function requireSameCut(tx: Tx, {schemaName, cutId, clientName}: Deployment): Promise<void> {
  const now = await findDeployment(tx, schemaName)
  if (now?.cutId !== cutId)
    throw new GenerationMovedError(`${clientName} was synced while it was being repaired`)
}

/** A row that the source lacks at the moment has lost values with the structure, too: its hash must not say otherwise. */
async function forgetHashes(tx: Tx, schemaName: string, {target}: TableLayout): Promise<void> {
  await tx`update ${tx(schemaName, target)} set _sync_hash = null where _sync_deleted_at is null`
}

/** Edits that are undone by a repair leave their trace in the ledger, as those do that a rule has decided. */
async function recordUndone(
  tx: Tx,
  {deployment, lease}: RepairRun,
  layout: TableLayout,
  candidates: Candidates,
  left: ReadonlySet<string>,
): Promise<void> {
  for (const verdict of ['missing', 'changed', 'hash', 'extra'] as const)
    for (const keys of candidates.keys(PAGE_ROWS, verdict)) {
      const marked = await lockMarked(
        tx,
        deployment.schemaName,
        layout,
        keys.filter(key => !left.has(key)),
      )
      await writeEntries(
        tx,
        deployment.deploymentId,
        undefined,
        marked.map(row => undoneEntry(layout, row, lease.nodeId)),
      )
    }
}

function undoneEntry(layout: TableLayout, {key, target, editedBy}: MarkedRow, by: string): LedgerEntry {
  const fields = layout.columns.map(({source}, i): [string, Value] => [source, target?.values[i] ?? null])
  const side =
    target === undefined
      ? {digest: undefined, fields: new Map<string, Value>()}
      : {digest: target.digest.toString('hex'), fields: new Map(fields)}
  return {
    conflictId: newConflictId(),
    table: layout.target,
    key,
    type: 'drift',
    source: undefined,
    target: side,
    resolved: undefined,
    strategy: 'source_wins',
    rule: 'verify --repair',
    outcome: 'source',
    status: 'resolved',
    isStanding: false,
    editedBy,
    resolvedBy: by,
    notes: 'a repair has made the row the source’s again',
  }
}

/** Rows that are the source's again carry no mark of the edit that was undone. */
async function clearMarks(
  tx: Tx,
  schemaName: string,
  layout: TableLayout,
  candidates: Candidates,
  left: ReadonlySet<string>,
): Promise<void> {
  const table = raw(`${quote(schemaName)}.${quote(layout.target)}`)
  for (const verdict of ['missing', 'changed', 'hash', 'extra'] as const)
    for (const keys of candidates.keys(5_000, verdict))
      await tx`update ${table} set _sync_edited_by = null
        where _sync_edited_by is not null and _sync_key = any(${keys.filter(key => !left.has(key))}::text[])`
}
