import {isWal, Pace, readSchema} from './capture.ts'
import {ident, introspect, type TableSpec} from './introspect.ts'
import {beginRead, endRead, whenFree, type Source} from './open.ts'
import {TableReader, type Position} from './read.ts'

/** How many rows each table has, and whether all of them were counted at one instant. */
export type RowCounts = {readonly tables: ReadonlyMap<string, number>; readonly consistent: boolean}

/**
 * Counts the rows of every table. In WAL mode that is one read transaction; in rollback-journal mode, where a reader
 * stops the app's commits, no lock is held for longer than the budget, and the app may write in between.
 */
export async function countRows(
  source: Source,
  lockBudgetMs: number,
  signal: AbortSignal,
): Promise<RowCounts> {
  const {db} = source
  const tables = new Map<string, number>()
  if (await whenFree(source, () => isWal(source), signal)) {
    await whenFree(
      source,
      () => {
        beginRead(db)
      },
      signal,
    )
    try {
      for (const {name} of introspect(db).tables) {
        signal.throwIfAborted()
        const row = db.prepare(`select count(*) as n from ${ident(name)}`).get()
        tables.set(name, Number(row?.['n']))
      }
      return {tables, consistent: true}
    } finally {
      endRead(db)
    }
  }
  const pace = new Pace(source, lockBudgetMs, signal)
  for (const table of (await readSchema(source, signal)).tables)
    tables.set(table.name, await countSlowly(source, table, pace))
  return {tables, consistent: false}
}

/** Rows of one step at first; each step that is done in time doubles it. */
const FIRST_STEP = 500

const LAST_ROWID = 2n ** 63n - 1n

async function countSlowly(source: Source, table: TableSpec, pace: Pace): Promise<number> {
  if (table.rowidName === undefined) return await countByReading(source, table, pace)
  const rowid = table.rowidName
  const statement = source.db.prepare(
    `select count(*) as n, max(r) as last from (select ${rowid} as r from ${ident(table.name)} where ${rowid} >= ? order by ${rowid} limit ?)`,
  )
  statement.setReadBigInts(true)
  let rows = 0
  let step = FIRST_STEP
  let from = -LAST_ROWID - 1n
  for (;;) {
    const {n, last, holdMs} = await pace.read(() => {
      const since = performance.now()
      const found = statement.get(from, step) as {n: bigint; last: bigint | null}
      return {...found, holdMs: performance.now() - since}
    })
    rows += Number(n)
    if (n < BigInt(step) || last === null || last === LAST_ROWID) return rows
    from = last + 1n
    if (holdMs < pace.budget.ms / 2) step *= 2
    else if (holdMs > pace.budget.ms) step = Math.max(FIRST_STEP, Math.floor(step / 2))
  }
}

/** Rows without a rowid that can be asked for: they are read, as a sync reads them. */
async function countByReading({db}: Source, table: TableSpec, pace: Pace): Promise<number> {
  const reader = new TableReader(db, table)
  let rows = 0
  let at: Position | undefined
  do {
    const from = at
    const page = await pace.read(() => reader.locked(() => reader.page(from, pace.budget)))
    rows += page.rows.length + page.refused.length
    at = page.next
  } while (at !== undefined)
  return rows
}
