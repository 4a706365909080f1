import {DatabaseSync} from 'node:sqlite'
import {comingAndGoing} from './shapes/coming-and-going.ts'
import {files} from './shapes/files.ts'
import {keys} from './shapes/keys.ts'
import {names} from './shapes/names.ts'
import {tables} from './shapes/tables.ts'
import {values} from './shapes/values.ts'

/** A small SQLite file with something in it that could go wrong, and what happens to it next. */
export type Shape = {
  readonly name: string
  /** Fills a new, empty file. */
  readonly build: (db: DatabaseSync) => void
  /** Steps that follow; after each one the target must equal the source again. */
  readonly change?: readonly ((db: DatabaseSync) => void)[]
}

/** Every shape, in groups: keys, values, names, kinds of tables, tables that come and go, kinds of files. */
export const shapes: readonly Shape[] = [...keys, ...values, ...names, ...tables, ...comingAndGoing, ...files]

/**
 * Opens `file` for building and changing a shape: no foreign keys, as in the app, and no defence against writing
 * to shadow tables, which `node:sqlite` both turns on by default; and no waiting for the disk.
 */
export function openShape(file: string): DatabaseSync {
  const db = new DatabaseSync(file, {enableForeignKeyConstraints: false, defensive: false})
  db.exec('pragma synchronous = off')
  return db
}
