import type {DatabaseSync, SQLInputValue} from 'node:sqlite'

/** Values by column name. Columns that a release lacks are left out when the row is written. */
export type Row = Readonly<Record<string, SQLInputValue | undefined>>

/** @returns the names of the columns of `table`; none when the file has no such table. */
export function columnsOf(db: DatabaseSync, table: string): string[] {
  const columns = db.prepare('select name from pragma_table_info(?)').all(table)
  return columns.map(column => column['name'] as string)
}
