import {keyOf, keyOfRowid, keyOfUnkeyed, partsOfKey} from '../core/canonical.ts'
import type {TableLayout} from '../core/layout.ts'
import type {Value} from '../core/value.ts'
import {json, type Tx} from '../postgres/sql.ts'
import {isWal, Pace} from '../source/capture.ts'
import type {TableSpec} from '../source/introspect.ts'
import {whenFree} from '../source/open.ts'
import {TableReader, type SourceRow} from '../source/read.ts'
import {lockMarked, moveKeys, passedOver, type MarkedRow} from '../target/marks.ts'
import type {Operation} from '../target/plan.ts'
import type {Cut} from './cut.ts'
import {moveEntries, renameTables, type Renamed} from './ledger.ts'

// An upgrade of the app gives tables other names and other keys. Rows that somebody has edited, and those that may
// differ, go along with their entries in the ledger, so that they are decided as what they are.

/** Where the client is, and how long the source may be locked. */
export type Site = {
  readonly deploymentId: string
  readonly schemaName: string
  readonly lockBudgetMs: number
}

/** Makes the client schema as the cut needs it, before its rows are written. */
export async function reshape(
  tx: Tx,
  site: Site,
  cut: Cut,
  loosened: readonly Operation[],
  signal: AbortSignal,
): Promise<void> {
  // Tables that are new in a later cut get their keys before their rows: the rows come as upserts.
  const operations = [...cut.plan.operations, ...cut.plan.finish, ...loosened]
  if (operations.length > 0)
    await tx`select sync_metadata.evolve_schema(${site.deploymentId}, ${json(operations)})`
  await renameTables(tx, site.deploymentId, renamedIn(cut))
  for (const layout of cut.plan.tables) {
    const was = cut.previousOf(layout.source)
    const spec = cut.capture.spec.tables.find(({name}) => name === layout.source)
    if (was === undefined || spec === undefined || !cut.plan.rekeyed.has(layout.source)) continue
    await rekey(tx, site, cut, {spec, was, layout}, signal)
  }
}

/** Tables whose target is called otherwise from this cut on. */
function renamedIn({plan, previous, previousOf}: Cut): Renamed[] {
  const renamed = (was: TableLayout | undefined, {target}: TableLayout) =>
    was === undefined || was.target === target ? [] : [{from: was.target, to: target}]
  return [
    ...plan.tables.flatMap(layout => renamed(previousOf(layout.source), layout)),
    ...plan.vanished.flatMap(layout =>
      renamed(
        previous.find(({source}) => source === layout.source),
        layout,
      ),
    ),
  ]
}

type Rekeyed = {readonly spec: TableSpec; readonly was: TableLayout; readonly layout: TableLayout}

/** Rows a page; each is looked up in the source. */
const PAGE_ROWS = 50

/**
 * Moves the rows to the keys that they have from now on. One whose key nobody can tell, or whose new one is taken, stays
 * where it is: the source has no row of that key, and it is decided as a row that the source has deleted.
 */
async function rekey(tx: Tx, site: Site, cut: Cut, table: Rekeyed, signal: AbortSignal): Promise<void> {
  const {schemaName, deploymentId} = site
  const {layout} = table
  const keys = await passedOver(tx, schemaName, layout, 'all')
  for (let at = 0; at < keys.length; at += PAGE_ROWS) {
    const rows = await lockMarked(tx, schemaName, layout, keys.slice(at, at + PAGE_ROWS))
    const found = await inSource(cut, table, rows, site.lockBudgetMs, signal)
    const moves = new Map<string, string>()
    for (const row of rows) {
      const key = newKeyOf(row, found.get(row.key), table)
      if (key !== undefined && key !== row.key) moves.set(row.key, key)
    }
    await moveEntries(tx, deploymentId, layout.target, await moveKeys(tx, schemaName, layout, moves))
  }
}

/** The source's rows by the keys that they had, where these columns are still there. */
async function inSource(
  {source}: Cut,
  {spec, was, layout}: Rekeyed,
  rows: readonly MarkedRow[],
  lockBudgetMs: number,
  signal: AbortSignal,
): Promise<ReadonlyMap<string, SourceRow>> {
  const isThere = was.key.every(name => spec.columns.some(column => column.name === name))
  if (was.keyedBy === 'rowid' || !isThere) return new Map()
  const at = was.key.map(name => layout.columns.findIndex(column => column.source === name))
  const wanted = rows.flatMap(({key, target}) => {
    const parts = partsOfKey(key)
    // What stands for a long key does not say what it was; the row does.
    const values =
      parts === undefined
        ? target && at.map(i => target.values[i] ?? null)
        : 'values' in parts
          ? parts.values
          : undefined
    return values?.length === was.key.length ? [{key, values}] : []
  })
  const isInWal = await whenFree(source, () => isWal(source), signal)
  const pace = new Pace(source, isInWal ? undefined : lockBudgetMs, signal)
  const reader = new TableReader(source.db, {...spec, key: was.key, keyedBy: was.keyedBy})
  const found = await pace.read(() => reader.locked(() => reader.find(wanted)))
  return new Map(found.rows.map(row => [row.key, row]))
}

/** @returns `undefined` when nobody can tell. */
function newKeyOf(
  row: MarkedRow,
  source: SourceRow | undefined,
  {spec, was, layout}: Rekeyed,
): string | undefined {
  if (source !== undefined) {
    const values = new Map(spec.columns.map(({name}, i) => [name, source.values[i] as Value]))
    return keyFrom(
      layout,
      layout.key.map(name => values.get(name) ?? null),
      source.rowid,
    )
  }
  // The source once had it and has deleted it, or it had no key that could be looked for.
  const isKnownGone = row.hash !== undefined && was.keyedBy !== 'rowid'
  const hasKey = layout.key.every(name => was.columns.some(column => column.source === name))
  if (isKnownGone || !hasKey || row.target === undefined) return undefined
  const {values} = row.target
  return keyFrom(
    layout,
    layout.key.map(name => values[layout.columns.findIndex(column => column.source === name)] ?? null),
    undefined,
  )
}

function keyFrom(
  layout: TableLayout,
  parts: readonly Value[],
  rowid: bigint | undefined,
): string | undefined {
  if (layout.keyedBy === 'rowid') return rowid === undefined ? undefined : keyOfRowid(rowid)
  const present = parts.filter(value => value !== null)
  if (present.length === parts.length) return keyOf(present)
  return rowid === undefined ? undefined : keyOfUnkeyed(rowid)
}
