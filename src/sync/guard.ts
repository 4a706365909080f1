import type {Direction} from './revisions.ts'

/** What a cut would do to one table. */
export type TableLoss = {
  readonly table: string
  /** Rows as of the last cut. */
  readonly before: number
  /** Rows that would be marked deleted. */
  readonly deleted: number
  readonly hasVanished: boolean
}

/** What a cut would do as a whole. */
export type Loss = {
  readonly tables: readonly TableLoss[]
  /** Live rows after the cut. */
  readonly after: number
  readonly revision: Direction
  /** The file is another one than at the last cut (or nobody knows). */
  readonly isOtherFile: boolean
}

/** The `DELETE_GUARD` setting: more deletes of a table than both wait for a person. `undefined` is `off`. */
export type DeleteGuard = {readonly rows: number; readonly share: number} | undefined

/**
 * Whether a cut looks like an accident: a swapped, emptied or older file. Pure.
 *
 * @returns why a person has to confirm it, as one sentence, or `undefined` to go ahead.
 */
export function suspicion(loss: Loss, guard: DeleteGuard): string | undefined {
  if (loss.revision === 'backward') return 'the schema went back to an earlier Alembic revision'
  const before = sum(loss.tables.map(table => table.before))
  if (before > 0 && loss.after === 0) return `the file has lost all its ${before} rows`
  // An upgrade may drop and rewrite whole tables.
  if (loss.revision === 'forward' || guard === undefined) return undefined
  const vanished = loss.tables.filter(table => table.hasVanished && table.before > 0)
  if (vanished.length > 0)
    return `${listed(vanished.map(table => `table ${table.table}`))} vanished with ${sum(vanished.map(table => table.before))} rows`
  const many = loss.tables.filter(
    table => table.deleted > guard.rows && table.deleted > table.before * guard.share,
  )
  if (many.length > 0)
    return `${listed(many.map(({table, deleted, before}) => `table ${table} lost ${deleted} of ${before} rows`))}, more than DELETE_GUARD allows`
  const deleted = sum(loss.tables.map(table => table.deleted))
  if (loss.isOtherFile && before >= 10 && deleted > before / 2)
    return `this is another file than at the last sync, and ${deleted} of ${before} rows are not in it`
  if (deleted < before * 0.8) return undefined
  const emptied = loss.tables.filter(table => table.before > 0 && table.deleted === table.before)
  if (emptied.length >= 3)
    return `${deleted} of ${before} rows are gone, all of ${listed(emptied.map(table => table.table))}: this looks like another client's file`
  // Who deletes nearly everything does not at once make as much anew. A file copied over another one has its inode.
  const others = loss.after - (before - deleted)
  if (before >= 10 && others >= Math.max(3, deleted / 10))
    return `${deleted} of ${before} rows are gone and ${others} others have come: this looks like another client's file`
  return undefined
}

function sum(numbers: readonly number[]): number {
  return numbers.reduce((total, number) => total + number, 0)
}

function listed(names: readonly string[]): string {
  return names.length <= 3 ? names.join(', ') : `${names.slice(0, 3).join(', ')} and ${names.length - 3} more`
}
