import {rowDigester} from '../core/canonical.ts'
import type {TableLayout} from '../core/layout.ts'
import {isSameValue, type Value} from '../core/value.ts'
import {
  rulingOn,
  type Conflict,
  type ConflictType,
  type RowValues,
  type Ruling,
} from '../conflict/conflict.ts'
import {ruleFor, type Rules} from '../conflict/rules.ts'
import type {Tx} from '../postgres/sql.ts'
import type {Deployment} from '../state/deployments.ts'
import {refusal} from '../target/apply.ts'
import {RowEncoder} from '../target/encode.ts'
import {lockMarked, settle, type MarkedRow, type Settlement, type SourceSide} from '../target/marks.ts'
import {baseOf} from './base.ts'
import {nextPage, sizeOf} from './paging.ts'
import type {LedgerSide} from '../state/ledger-data.ts'
import {
  closeEntries,
  newConflictId,
  readStandings,
  writeEntries,
  type LedgerEntry,
  type Standing,
} from './ledger.ts'

// Rows on which both sides may have something to say: those of a cut whose target carries a mark or an accepted
// difference. Decided by the rules, within the transaction that applies the cut.

/** Decisions of one kind, counted. */
export type Decided = {
  /** The source's name of it. */
  readonly table: string
  readonly type: ConflictType
  readonly strategy: Ruling['strategy']
  readonly status: 'resolved' | 'pending'
  /** What was kept; what is pending keeps the target. */
  readonly outcome: Ruling['verdict']['keep']
  readonly count: number
  /** What deciding took, in ms. */
  readonly ms: number
}

/** What the decisions of one run come to. */
export class Tally {
  readonly #decided = new Map<string, Decided>()
  detected = 0
  resolved = 0
  /** By how many the pending ones of the deployment have become more. */
  pending = 0
  /** Decided ones of which rules ask that people are told; of those that wait for them they are told anyway. */
  toTell = 0
  /** How many rows are decided about at once; follows from how large the last ones were. */
  pageRows = 10

  add(decided: Omit<Decided, 'count'>): void {
    const id = JSON.stringify([
      decided.table,
      decided.type,
      decided.strategy,
      decided.status,
      decided.outcome,
    ])
    const before = this.#decided.get(id)
    this.#decided.set(id, {
      ...decided,
      count: (before?.count ?? 0) + 1,
      ms: (before?.ms ?? 0) + decided.ms,
    })
    this.detected++
    if (decided.status === 'resolved') this.resolved++
  }

  get decisions(): readonly Decided[] {
    return [...this.#decided.values()]
  }
}

/** A row as a sync has written it to the source: until a capture has met it there, this is what both sides have. */
export type WrittenRow = {
  /** Values of the key columns; absent where the key holds a rowid. */
  readonly parts: readonly Value[] | undefined
  /** Digest of the source's row before, and as it was written; `undefined`: none. */
  readonly before: Uint8Array | undefined
  readonly source: Uint8Array | undefined
  /** Digest of the target's row. It may differ in what SQLite computes. */
  readonly target: Uint8Array | undefined
}

/** Rows that have been written, by the source's name of the table and by key. */
export type Written = ReadonlyMap<string, ReadonlyMap<string, WrittenRow>>

/** What deciding takes. */
export type Court = {
  readonly deployment: Deployment
  readonly rules: () => Rules
  readonly jobId: string | undefined
  /** Who decides, for the ledger: the node. */
  readonly by: string
  readonly tally: Tally
  /** What was written to the source since the last cut. */
  readonly written?: Written | undefined
  /** The app has dropped the table: nobody can be asked about rows that nothing stands against. */
  readonly isTableGone?: boolean
  /** What a table was as of the last cut, by its name in the source now. */
  readonly previousOf?: (table: string) => TableLayout | undefined
  /** Nothing is written: only counted, what would be decided. */
  readonly isDry?: boolean
  /** Where it is given: filled with the keys of what was decided about, by the source's name of their table. */
  readonly met?: Map<string, Set<string>>
}

/** Rows a statement, and bytes as far as the last ones tell: the longest values may be megabytes. */
export const PAGE_ROWS = 200
const PAGE_BYTES = 2 * 1024 * 1024

/**
 * Decides about rows that a write has passed over, and makes them so.
 *
 * @param sides the source's side of some of the keys; the source has no row with one that is missing. Asked page by page.
 */
export async function decideRows(
  tx: Tx,
  court: Court,
  layout: TableLayout,
  keys: readonly string[],
  sides: (keys: readonly string[]) => Promise<ReadonlyMap<string, SourceSide>>,
): Promise<void> {
  const sorted = [...new Set(keys)].sort()
  const {tally} = court
  for (let at = 0; at < sorted.length;) {
    const page = sorted.slice(at, at + tally.pageRows)
    at += page.length
    const bytes = await decidePage(tx, court, layout, page, await sides(page))
    tally.pageRows = nextPage(page.length, bytes, {rows: PAGE_ROWS, bytes: PAGE_BYTES})
  }
}

/** @returns how many bytes the rows had on both sides. */
async function decidePage(
  tx: Tx,
  court: Court,
  layout: TableLayout,
  keys: readonly string[],
  sides: ReadonlyMap<string, SourceSide>,
): Promise<number> {
  const {deployment, by, jobId} = court
  const how = court.isDry === true ? 'look' : 'lock'
  const marked = await lockMarked(tx, deployment.schemaName, layout, keys, 'touched', how)
  if (marked.length === 0) return 0
  const lost = await lostEdits(tx, court, layout, marked)
  const ids = marked.flatMap(({divergedBy}) => divergedBy ?? [])
  const standings = await readStandings(tx, deployment.deploymentId, ids)
  const settlements: Settlement[] = []
  const entries: LedgerEntry[] = []
  const closed: string[] = []
  for (const row of marked) {
    const standing = standings.get(row.divergedBy ?? '')
    const decision = decide(court, layout, row, sides.get(row.key), standing, lost.get(row.key))
    settlements.push(decision.settlement)
    if (decision.entry !== undefined) entries.push(decision.entry)
    if (standing !== undefined && decision.entry?.conflictId !== standing.conflictId)
      closed.push(standing.conflictId)
    const isPending = decision.entry?.status === 'pending'
    court.tally.pending += Number(isPending) - Number(standing?.status === 'pending')
  }
  const rows = [...marked.flatMap(({target}) => target ?? []), ...sides.values()]
  const bytes = rows.reduce((sum, {values}) => sum + sizeOf(values), 0)
  const met = court.met?.get(layout.source)
  for (const {key} of marked) met?.add(key)
  if (court.isDry === true) return bytes
  try {
    await settle(tx, deployment.schemaName, layout, settlements)
  } catch (cause) {
    throw refusal(layout, cause)
  }
  await closeEntries(tx, deployment.deploymentId, closed, by)
  await writeEntries(tx, deployment.deploymentId, jobId, entries)
  return bytes
}

type Decision = {readonly settlement: Settlement; readonly entry: LedgerEntry | undefined}

function decide(
  court: Court,
  layout: TableLayout,
  row: MarkedRow,
  source: SourceSide | undefined,
  standing: Standing | undefined,
  lost: LostEdit | undefined,
): Decision {
  const since = performance.now()
  const {key} = row
  const agreed = {key, hash: source?.digest, divergedBy: undefined}
  const written = court.written?.get(layout.source)?.get(key)
  // What was written to the source is what both sides had last.
  const hash = written === undefined ? row.hash : written.source && Buffer.from(written.source)
  const type = classify({hash, target: row.target}, source)
  if (type === 'equal')
    return {
      settlement: {...agreed, do: 'keep'},
      entry: lost && entryOfLost(court, layout, row, source, lost, since),
    }
  const isAsItWas = row.editedBy === undefined
  if (isAsItWas && written !== undefined && isSame(row.target?.digest, written.target)) {
    // The app has changed what we had written, and nobody the target: that is a change like any other.
    const taken: Settlement =
      source === undefined
        ? {...agreed, do: 'delete'}
        : {...agreed, do: 'write', row: encoded(layout, key, source)}
    return {settlement: taken, entry: undefined}
  }
  const isComputedOnly = differsInComputed(layout, source, row.target)
  if (isComputedOnly && isAsItWas && source !== undefined)
    return {settlement: {...agreed, do: 'write', row: encoded(layout, key, source)}, entry: undefined}
  // Somebody made a row and took it away again before anybody else had one: all there is is the source's.
  if (type === 'new in source' && source !== undefined)
    return {settlement: {...agreed, do: 'write', row: encoded(layout, key, source)}, entry: undefined}

  const conflict = conflictOf(layout, {...row, hash}, source, type as ConflictType, court.deployment)
  const rules = court.rules()
  const decided = rulingOn(conflict, rules)
  const ruling: Ruling = isComputedOnly
    ? {...decided, verdict: {keep: 'source'}, reason: 'only SQLite computes what was edited', fields: []}
    : decided
  const {verdict} = ruling
  const asks = verdict.keep === 'target' && verdict.isPending === true
  const isPending = asks && court.isTableGone !== true
  const merged = verdict.keep === 'merged' ? sideOfMerged(layout, key, verdict.row, row, source) : undefined
  const result = verdict.keep === 'source' ? source : verdict.keep === 'target' ? row.target : merged
  const isStanding = !isSame(result?.digest, source?.digest)
  // What a person is asked stays one question while the sides go on changing.
  const isContinued = standing?.status === 'pending'
  const conflictId = isContinued ? standing.conflictId : newConflictId()

  court.tally.add({
    table: layout.source,
    type: conflict.type,
    strategy: ruling.strategy,
    status: isPending ? 'pending' : 'resolved',
    outcome: verdict.keep,
    ms: performance.now() - since,
  })
  if (ruling.notify && !isPending) court.tally.toTell++
  const common = {key, hash: source?.digest, divergedBy: isStanding ? conflictId : undefined}
  const settlement: Settlement =
    verdict.keep === 'target'
      ? {...common, do: 'keep'}
      : result === undefined
        ? {...common, do: 'delete'}
        : {...common, do: 'write', row: encoded(layout, key, result)}
  // Without a ledger only what a row refers to is written.
  if (!rules.resolutionLog.enabled && !isStanding && !isContinued) return {settlement, entry: undefined}
  const whole = rules.resolutionLog.includeDataSnapshot
  const differs = differing(layout, source, row.target, result)
  const entry: LedgerEntry = {
    conflictId,
    table: layout.target,
    key,
    type: conflict.type,
    source: ledgerSide(layout, source, whole, differs),
    target: withLost(ledgerSide(layout, row.target, whole, differs), lost),
    resolved: isPending ? undefined : ledgerSide(layout, result, whole, differs),
    strategy: ruling.strategy,
    rule: `${ruling.rule} (${ruling.place})`,
    outcome: isPending ? undefined : verdict.keep,
    status: isPending ? 'pending' : 'resolved',
    isStanding,
    editedBy: row.editedBy ?? standing?.editedBy,
    resolvedBy: isPending ? undefined : court.by,
    notes: [
      ruling.reason,
      ...(asks && !isPending ? ['the app has dropped the table: its row stays as it was edited'] : []),
      ...ruling.fields.map(({field, from, reason}) => `${field}: ${from} (${reason})`),
    ].join('; '),
  }
  return {settlement, entry}
}

/**
 * What a rule or a person had kept and the source does not take: it is for a person to decide, and until then both sides
 * stay as they are.
 */
export function refusedEntry(
  court: Court,
  layout: TableLayout,
  {key, editedBy, target}: MarkedRow,
  {
    why,
    reason,
    found,
  }: {
    readonly why: 'constraint' | 'type'
    /** As SQLite says it. */
    readonly reason: string
    /** The source's row. */
    readonly found: SourceSide | undefined
  },
): LedgerEntry {
  const rules = court.rules()
  const {strategy, entry, place} = ruleFor(rules, layout.source)
  const type = why === 'constraint' ? 'constraint_violation' : 'type_mismatch'
  court.tally.add({table: layout.source, type, strategy, status: 'pending', outcome: 'target', ms: 0})
  court.tally.pending++
  const source = found && {digest: found.digest, values: found.values}
  const differs = differing(layout, source, target)
  const whole = rules.resolutionLog.includeDataSnapshot
  return {
    conflictId: newConflictId(),
    table: layout.target,
    key,
    type,
    source: ledgerSide(layout, source, whole, differs),
    target: ledgerSide(layout, target, whole, differs),
    resolved: undefined,
    strategy,
    rule: `${entry} (${place})`,
    outcome: undefined,
    status: 'pending',
    isStanding: true,
    editedBy,
    resolvedBy: undefined,
    notes: `the source does not take it: ${reason}; a person decides`,
  }
}

/** What a row holds in columns that the app drops in this cut, by their source names. */
type LostEdit = ReadonlyMap<string, Value>

/**
 * Edits of rows that may have been of columns which the app drops: the columns stay as they are in the target, but nothing
 * is compared with them any more, and the source's side is gone.
 */
async function lostEdits(
  tx: Tx,
  {deployment, previousOf}: Court,
  layout: TableLayout,
  marked: readonly MarkedRow[],
): Promise<ReadonlyMap<string, LostEdit>> {
  const was = previousOf?.(layout.source)
  const stays = new Map(layout.columns.map(column => [column.target, column]))
  const dropped = was?.columns.filter(({target}) => !stays.has(target)) ?? []
  const edited = marked.filter(row => row.editedBy !== undefined && row.target !== undefined)
  if (was === undefined || dropped.length === 0 || edited.length === 0) return new Map()
  // As it was, in the types that its columns have now.
  const shape = {
    ...was,
    target: layout.target,
    columns: was.columns.map(each => stays.get(each.target) ?? each),
  }
  const keys = edited.map(({key}) => key)
  const rows = await lockMarked(tx, deployment.schemaName, shape, keys, 'touched', 'look')
  return new Map(
    rows.flatMap(({key, hash, target}): [string, LostEdit][] => {
      if (target === undefined || isSame(target.digest, hash)) return []
      const values = was.columns.flatMap((column, i): [string, Value][] =>
        dropped.includes(column) ? [[column.source, target.values[i] as Value]] : [],
      )
      return [[key, new Map(values)]]
    }),
  )
}

function withLost(side: LedgerSide, lost: LostEdit | undefined): LedgerSide {
  return lost === undefined ? side : {...side, fields: new Map([...lost, ...side.fields])}
}

/** Says what somebody wrote into columns that the app drops; otherwise the row is as the source has it. */
function entryOfLost(
  court: Court,
  layout: TableLayout,
  row: MarkedRow,
  source: SourceSide | undefined,
  lost: LostEdit,
  since: number,
): LedgerEntry | undefined {
  court.tally.add({
    table: layout.source,
    type: 'drift',
    strategy: 'source_wins',
    status: 'resolved',
    outcome: 'source',
    ms: performance.now() - since,
  })
  const {enabled, includeDataSnapshot} = court.rules().resolutionLog
  if (!enabled) return undefined
  const sourceSide = ledgerSide(layout, source, includeDataSnapshot, new Set([-1]))
  return {
    conflictId: newConflictId(),
    table: layout.target,
    key: row.key,
    type: 'drift',
    source: sourceSide,
    target: withLost(ledgerSide(layout, row.target, includeDataSnapshot, new Set([-1])), lost),
    resolved: sourceSide,
    strategy: 'source_wins',
    rule: 'the source has no such column any more',
    outcome: 'source',
    status: 'resolved',
    isStanding: false,
    editedBy: row.editedBy,
    resolvedBy: court.by,
    notes: `the app has dropped ${[...lost.keys()].join(', ')}: the values stay in the target's column`,
  }
}

/** What both sides did since the last cut. The source's row of then is known by its digest alone. */
export function classify(
  {hash, target}: Pick<MarkedRow, 'hash' | 'target'>,
  source: Pick<SourceSide, 'digest'> | undefined,
): ConflictType | 'equal' | 'new in source' {
  if (isSame(source?.digest, target?.digest)) return 'equal'
  if (source === undefined) return hash === undefined ? 'drift' : 'delete_update'
  if (hash === undefined) return target === undefined ? 'new in source' : 'insert_insert'
  if (isSame(source.digest, hash)) return 'drift'
  return target === undefined ? 'update_delete' : 'update_update'
}

function conflictOf(
  layout: TableLayout,
  row: MarkedRow,
  source: SourceSide | undefined,
  type: ConflictType,
  {direction}: Deployment,
): Conflict {
  const names = layout.columns.map(column => column.source)
  const base =
    type === 'update_update' && source !== undefined && row.target !== undefined && row.hash !== undefined
      ? baseOf(layout, row.key, source.values, row.target.values, row.hash)
      : undefined
  return {
    table: layout.source,
    key: row.key,
    type,
    columns: layout.columns.filter(({generated}) => !generated).map(column => column.source),
    source: source && rowOf(names, source.values),
    target: row.target && rowOf(names, row.target.values),
    ...(base === undefined
      ? {}
      : {
          base: rowOf(names, base),
          changed: {
            source: changedSince(names, base, source?.values ?? []),
            target: changedSince(names, base, row.target?.values ?? []),
          },
        }),
    direction,
    now: new Date(),
  }
}

function changedSince(
  names: readonly string[],
  base: readonly Value[],
  values: readonly Value[],
): ReadonlySet<string> {
  return new Set(names.filter((_, i) => !isSameValue(base[i] as Value, values[i] as Value)))
}

/** A merged row as it is written: what SQLite computes is the source's, which is the only one that computes. */
function sideOfMerged(
  layout: TableLayout,
  key: string,
  merged: RowValues,
  row: MarkedRow,
  source: SourceSide | undefined,
): SourceSide {
  const values = layout.columns.map(({source: name}, i): Value => {
    const value = merged.get(name)
    return value === undefined ? ((source ?? row.target)?.values[i] ?? null) : value
  })
  return {values, digest: digestOfRow(layout, key, values)}
}

/** The digest of a row of the table, as a capture computes it. */
export function digestOfRow(layout: TableLayout, key: string, values: readonly Value[]): Buffer {
  return rowDigester(
    layout.columns.map(column => column.source),
    layout.keyedBy === 'rowid',
  )(values, key)
}

export function encoded(layout: TableLayout, key: string, {values, digest}: SourceSide) {
  return new RowEncoder(layout).encode({key, digest, values})
}

/** Whether two rows hold the same, but for what SQLite computes from it. */
function differsInComputed(
  {columns}: TableLayout,
  source: SourceSide | undefined,
  target: MarkedRow['target'],
): boolean {
  if (source === undefined || target === undefined || !columns.some(({generated}) => generated)) return false
  return columns.every(
    ({generated}, i) => generated || isSameValue(source.values[i] as Value, target.values[i] as Value),
  )
}

/** Positions of the columns in which any two of the sides that are there differ. */
function differing(layout: TableLayout, ...sides: (SourceSide | undefined)[]): ReadonlySet<number> {
  const present = sides.filter(side => side !== undefined)
  const [first] = present
  return new Set(
    layout.columns.flatMap((_, i) =>
      present.some(side => !isSameValue(side.values[i] as Value, first?.values[i] as Value)) ? [i] : [],
    ),
  )
}

/** A side for the ledger: all columns, or those that differ. One that stands alone is kept whole: nothing else tells. */
function ledgerSide(
  layout: TableLayout,
  side: SourceSide | undefined,
  whole: boolean,
  differs: ReadonlySet<number>,
): LedgerSide {
  if (side === undefined) return {digest: undefined, fields: new Map()}
  const isAlone = differs.size === 0
  const fields = layout.columns.flatMap(({source}, i): [string, Value][] =>
    whole || isAlone || differs.has(i) ? [[source, side.values[i] as Value]] : [],
  )
  return {digest: side.digest.toString('hex'), fields: new Map(fields)}
}

function rowOf(names: readonly string[], values: readonly Value[]): RowValues {
  return new Map(names.map((name, i) => [name, values[i] as Value]))
}

function isSame(a: Uint8Array | undefined, b: Uint8Array | undefined): boolean {
  return a === undefined || b === undefined ? a === b : Buffer.compare(a, b) === 0
}
