import type {DatabaseSync, SQLInputValue} from 'node:sqlite'

/** @returns a step that runs `statements` one after the other. */
export function run(...statements: readonly string[]): (db: DatabaseSync) => void {
  return db => {
    for (const statement of statements) db.exec(statement)
  }
}

/** Inserts `rows` into `table`, a value for each column. */
export function insert(db: DatabaseSync, table: string, rows: readonly (readonly SQLInputValue[])[]): void {
  for (const row of rows) {
    const marks = row.map(() => '?').join(', ')
    db.prepare(`insert into "${table.replaceAll('"', '""')}" values (${marks})`).run(...row)
  }
}
