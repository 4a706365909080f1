import type {Value} from '../core/value.ts'
import type {Sql} from '../postgres/sql.ts'
import {isWal, Pace} from '../source/capture.ts'
import {whenFree, type Source} from '../source/open.ts'
import {TableReader} from '../source/read.ts'
import {markedTables, queuedRows, type QueuedRow} from '../target/marks.ts'
import type {Written} from './conflicts.ts'
import type {Cut} from './cut.ts'
import {nextPage, sizeOf} from './paging.ts'

const PAGE_ROWS = 200
/** Rows looked up under one lock: each is a step down an index. Fewer when they are large. */
const LOCK_ROWS = 50
const LOCK_BYTES = 4 * 1024 * 1024

/**
 * Takes marked rows that the source has not changed into a cut, so that they are decided with it: those that the source
 * has come as it has them, those that it lacks as deletes. What the source has changed is in the cut already, or in
 * the next one; its mark waits for it.
 *
 * @returns how many were taken.
 */
export async function takeMarked(
  sql: Sql,
  schemaName: string,
  source: Source,
  cut: Cut,
  lockBudgetMs: number,
  signal: AbortSignal,
): Promise<number> {
  // Under the names that the target has: it does not follow the source before the cut is applied.
  const layouts = new Map(
    cut.plan.tables.flatMap(layout => {
      const was = cut.previousOf(layout.source)
      return was === undefined ? [] : [[was.target, {layout, was}] as const]
    }),
  )
  const specs = new Map(cut.capture.spec.tables.map(spec => [spec.name, spec]))
  const inOneTransaction = await whenFree(source, () => isWal(source), signal)
  const pace = new Pace(source, inOneTransaction ? undefined : lockBudgetMs, signal)
  let taken = 0
  // Large rows come in a few at a time, as far as the last ones tell.
  let lockRows = 1
  for (const table of await markedTables(sql, schemaName)) {
    const {layout, was} = layouts.get(table) ?? {}
    const spec = specs.get(layout?.source ?? '')
    if (layout === undefined || was === undefined || spec === undefined) continue
    // All rows of such a table are in the cut, under their new keys.
    if (cut.plan.rekeyed.has(layout.source)) continue
    const reader = new TableReader(source.db, spec)
    for await (const page of queuedRows(sql, schemaName, was, PAGE_ROWS)) {
      for (let at = 0; at < page.length;) {
        const some = page.slice(at, at + lockRows)
        at += some.length
        const found = await pace.read(() => reader.locked(() => reader.find(some.map(wantedOf))))
        const rows = new Map(found.rows.map(row => [row.key, row]))
        const bytes = found.rows.reduce((sum, row) => sum + sizeOf(row.values), 0)
        lockRows = nextPage(some.length, bytes, {rows: LOCK_ROWS, bytes: LOCK_BYTES})
        for (const queued of some) {
          const row = rows.get(queued.key)
          if (row === undefined) {
            if (queued.hash !== undefined || found.refused.includes(queued.key)) continue
            cut.takeAbsent(layout.source, queued.key)
          } else {
            if (queued.hash === undefined || Buffer.compare(row.digest, queued.hash) !== 0) continue
            cut.take(layout.source, row)
          }
          taken++
        }
      }
    }
  }
  return taken
}

/**
 * Takes rows into a cut that were written to the source and that its app has since made again what they were before: a
 * capture, which compares with what was known before, does not see them.
 */
export async function takeReverted(
  source: Source,
  cut: Cut,
  written: Written,
  lockBudgetMs: number,
  signal: AbortSignal,
): Promise<void> {
  const specs = new Map(cut.capture.spec.tables.map(spec => [spec.name, spec]))
  const inOneTransaction = await whenFree(source, () => isWal(source), signal)
  const pace = new Pace(source, inOneTransaction ? undefined : lockBudgetMs, signal)
  for (const [table, rows] of written) {
    const spec = specs.get(table)
    if (spec === undefined || !cut.plan.tables.some(layout => layout.source === table)) continue
    const reader = new TableReader(source.db, spec)
    const all = [...rows]
    for (let at = 0; at < all.length; at += LOCK_ROWS) {
      const some = all.slice(at, at + LOCK_ROWS)
      const wanted = some.map(([key, {parts}]) => ({key, values: parts}))
      const found = await pace.read(() => reader.locked(() => reader.find(wanted)))
      const now = new Map(found.rows.map(row => [row.key, row]))
      for (const [key, {before}] of some) {
        const row = now.get(key)
        if (row === undefined && before === undefined && !found.refused.includes(key))
          cut.takeAbsent(table, key)
        else if (row !== undefined && before !== undefined && Buffer.compare(row.digest, before) === 0)
          cut.take(table, row)
      }
    }
  }
}

function wantedOf({key, parts}: QueuedRow): {key: string; values: readonly Value[] | undefined} {
  return {key, values: parts.length === 0 || parts.includes(null) ? undefined : parts}
}
