import type {TableLayout} from '../core/layout.ts'
import type {Entry} from '../source/capture.ts'
import type {TableSpec} from '../source/introspect.ts'
import {TableReader, type PageBudget} from '../source/read.ts'
import type {DatabaseSync} from 'node:sqlite'

const SAMPLE_ROWS = 24
const BUDGET: PageBudget = {ms: 2, bytes: 1024 * 1024, rows: SAMPLE_ROWS}

/**
 * Finds tables that the app renamed, by their content: a table stands for a remembered one when sampled rows have
 * the digests that were remembered at their places. Names alone would take `config_old` for new, and a swap for
 * thousands of changes.
 *
 * @param sample remembered rows of a table, by its source name as of the last cut.
 * @returns source name now -> source name as of the last cut.
 */
export function findRenames(
  db: DatabaseSync,
  tables: readonly TableSpec[],
  previous: readonly TableLayout[],
  sample: (table: string, limit: number) => readonly Entry[],
): Map<string, string> {
  const remembered = new Map(previous.map(layout => [layout.source, layout]))
  const present = new Set(tables.map(table => table.name))
  const likeness = (table: TableSpec, layout: TableLayout): number | undefined => {
    if (table.withoutRowid || !hasSameColumns(table, layout)) return undefined
    const entries = sample(layout.source, SAMPLE_ROWS)
    if (entries.length === 0) return undefined
    const {rows, asked} = new TableReader(db, table).fetch(
      entries.map(entry => entry.rowid),
      BUDGET,
    )
    const digests = new Map(rows.map(row => [row.rowid, row.digest]))
    const same = entries
      .slice(0, asked)
      .filter(entry => digests.get(entry.rowid)?.equals(entry.digest) === true)
    return same.length / asked
  }
  const renames = new Map<string, string>()
  const claimed = new Set<string>()
  for (const table of tables) {
    const own = remembered.get(table.name)
    // Where it stood, and it still looks like itself: the usual case, one small read.
    if (own !== undefined && (likeness(table, own) ?? 1) >= 0.5) continue
    for (const layout of previous) {
      if (layout === own || claimed.has(layout.source)) continue
      const successor = tables.find(each => each.name === layout.source)
      const isFree =
        !present.has(layout.source) || successor === undefined || !((likeness(successor, layout) ?? 0) >= 0.5)
      if (!isFree || !((likeness(table, layout) ?? 0) >= 0.5)) continue
      renames.set(table.name, layout.source)
      claimed.add(layout.source)
      break
    }
  }
  return renames
}

function hasSameColumns(table: TableSpec, layout: TableLayout): boolean {
  const names = (columns: readonly string[]) => JSON.stringify([...columns].sort())
  return (
    (table.keyedBy === 'rowid') === (layout.keyedBy === 'rowid') &&
    names(table.columns.map(column => column.name)) === names(layout.columns.map(column => column.source))
  )
}
