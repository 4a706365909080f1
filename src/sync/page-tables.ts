import {randomUUID} from 'node:crypto'
import {interiorBytes, interiorFrom, PageState, PART_PAGES} from '../source/page-state.ts'

// The tables of the sidecar that keep what is known of a source's pages between two processes.

export const pageTables = `
  create table if not exists pages (part integer primary key, bytes blob not null);
  create table if not exists interiors (page integer primary key, bytes blob not null);`

/** The database that they are in. */
export type Rows = {
  run(sql: string, ...values: readonly (number | Uint8Array)[]): void
  all(sql: string): Record<string, unknown>[]
}

/**
 * Writes what has changed of the state since it was written or read last; all of it when it never was.
 *
 * @returns what tells this state from others, and the rest of it.
 */
export function writePages(rows: Rows, state: PageState): string {
  if (state.token === undefined) removePages(rows)
  for (const part of state.changedParts)
    rows.run('insert or replace into pages values (?, ?)', part, state.part(part))
  rows.run('delete from pages where part > ?', Math.floor(state.pageCount / PART_PAGES))
  for (const page of state.changedInteriors) {
    const interior = state.interiors.get(page)
    if (interior === undefined) rows.run('delete from interiors where page = ?', page)
    else rows.run('insert or replace into interiors values (?, ?)', page, interiorBytes(interior))
  }
  const {schema, pageSize, pageCount, wal} = state
  const about: About = {token: randomUUID(), schema, pageSize, pageCount, wal}
  state.token = about.token
  state.changedParts.clear()
  state.changedInteriors.clear()
  return JSON.stringify(about)
}

export function removePages(rows: Rows): void {
  rows.run('delete from pages')
  rows.run('delete from interiors')
}

/**
 * @param about what {@link writePages} returned last.
 * @param inMemory what this process has of it, which is taken when nobody has written since.
 * @returns `undefined` when it is damaged: without it all rows are compared once.
 */
export function readPages(rows: Rows, about: string, inMemory: PageState | undefined): PageState | undefined {
  try {
    const {token, schema, pageSize, pageCount, wal} = JSON.parse(about) as About
    if (inMemory?.token === token) return inMemory
    const state = new PageState(pageSize)
    state.token = token
    state.schema = schema
    state.resize(pageCount)
    // One that was kept without the file is not known to be that file's log.
    if (wal?.file !== undefined) state.wal = wal as PageState['wal']
    for (const {part, bytes} of rows.all('select part, bytes from pages'))
      state.loadPart(Number(part), bytes as Uint8Array)
    const interiors = rows.all('select page, bytes from interiors')
    state.interiors = new Map(
      interiors.map(({page, bytes}) => [Number(page), interiorFrom(bytes as Uint8Array)]),
    )
    state.changedParts.clear()
    return state
  } catch {
    return undefined
  }
}

type About = {
  readonly token: string
  readonly schema?: string | undefined
  readonly pageSize: number
  readonly pageCount: number
  readonly wal?: Partial<NonNullable<PageState['wal']>> | undefined
}
