import {setImmediate as breathe} from 'node:timers/promises'
import {DatabaseSync} from 'node:sqlite'
import {DigestSums} from '../core/digest-sums.ts'
import {LargeGarbage} from '../core/garbage.ts'
import type {TableLayout} from '../core/layout.ts'
import {ident, introspect} from '../source/introspect.ts'
import {errcode} from '../source/open.ts'
import {TableReader, type Position} from '../source/read.ts'
import {RestoreFailedError} from './errors.ts'

/** A table of the new file, and what the target said of the rows that went into it. */
export type FilledTable = {
  /** With the columns that were written and summed, in the source's order. */
  readonly layout: TableLayout
  readonly sums: DigestSums
}

/** What SQLite's own checks say of a file whose structure is whole. */
export type Remarks = {
  /** Values that the schema forbids and the source held all the same, as `integrity_check` words them; the first few. */
  readonly forbidden: readonly string[]
  /** Rows whose foreign key leads nowhere; real files hold such rows. */
  readonly orphans: number
}

// Small: what outlives a young garbage collection makes the process grow.
const BUDGET = {ms: 20, bytes: 512 * 1024, rows: 200}
const MOST_REMARKS = 20

/**
 * Reads the new file as a source is read, and holds every row against the target's digests.
 *
 * @param onPage told as often as a page was read, so that somebody knows that it goes on: a table and how many rows it has.
 * @throws {RestoreFailedError} naming the first table that is not equal, or what is broken in the file.
 */
export async function checkFile(
  file: string,
  tables: readonly FilledTable[],
  signal: AbortSignal,
  onPage: (table: string, rows: number) => void = () => undefined,
): Promise<Remarks> {
  using db = new DatabaseSync(file, {
    readOnly: true,
    enableForeignKeyConstraints: false,
    enableDoubleQuotedStringLiterals: true,
  })
  db.exec('pragma cache_size = -4000')
  const specs = new Map(introspect(db).tables.map(table => [table.name, table]))
  for (const {layout, sums} of tables) {
    const spec = specs.get(layout.source)
    if (spec === undefined) throw new RestoreFailedError(`table ${layout.source} is not in it`)
    const names = new Set(layout.columns.map(column => column.source))
    const columns = spec.columns.filter(column => names.has(column.name))
    // A key that SQLite computes is not read; it is in no digest either.
    const key = layout.key.every(name => names.has(name)) ? layout.key : []
    const read = new DigestSums()
    const reader = new TableReader(db, {...spec, columns, key, keyedBy: layout.keyedBy})
    const garbage = new LargeGarbage()
    let position: Position | undefined
    do {
      await breathe(undefined, {signal})
      const page = reader.page(position, BUDGET)
      for (const {digest, values} of page.rows) {
        read.add(digest)
        values.length = 0
      }
      garbage.note(page.bytes)
      garbage.sweep()
      position = page.next
      onPage(layout.source, sums.rows)
    } while (position !== undefined)
    if (read.rows !== sums.rows)
      throw new RestoreFailedError(`table ${layout.source} has ${read.rows} rows instead of ${sums.rows}`)
    if (read.differing(sums).length > 0)
      throw new RestoreFailedError(`rows of table ${layout.source} read back with other values`)
  }
  return {forbidden: checkStructure(db, [...specs.keys()]), orphans: countOrphans(db)}
}

// Rules that a value breaks, as opposed to a broken file: https://sqlite.org/pragma.html#pragma_integrity_check
const aboutValues =
  /^(NULL value in |NUMERIC value in |TEXT value in |non-\w+ value in |CHECK constraint failed in |non-unique entry in index |malformed inverted index |unable to validate the inverted index |In RTree )/

function checkStructure(db: DatabaseSync, tables: readonly string[]): string[] {
  const remarks: string[] = []
  const run = (table: string) => {
    for (const row of db.prepare(`pragma integrity_check(${table})`).iterate()) {
      const line = String(row['integrity_check'])
      if (line === 'ok') continue
      if (!aboutValues.test(line)) throw new RestoreFailedError(`SQLite finds it damaged: ${line}`)
      if (remarks.length < MOST_REMARKS) remarks.push(line)
    }
  }
  try {
    run('2147483647')
  } catch (error) {
    // A virtual table whose module or tokenizer this build lacks stops the check: then the others one by one.
    if (errcode(error) !== 1) throw error
    remarks.length = 0
    for (const table of tables) run(ident(table))
  }
  return remarks
}

function countOrphans(db: DatabaseSync): number {
  let orphans = 0
  try {
    for (const row of db.prepare('pragma foreign_key_check').iterate())
      if (row['table'] !== undefined) orphans++
  } catch {
    return orphans // a key to columns that are not unique cannot be checked; SQLite does not enforce it either
  }
  return orphans
}
