/** What a statement is, by its first word; a closed set, since each makes a time series. */
export type QueryType = (typeof words)[keyof typeof words] | 'connect' | 'other'

/** One statement that Postgres has answered. A COPY takes as long as its source or its reader lets it take. */
export type StatementSeen = {
  readonly type: QueryType
  readonly seconds: number
  /** What kind of failure it was; absent when there was none. */
  readonly error?: string
}

/** The connections of a pool: those that are open, and those that nobody uses or that may still be opened. */
export type PoolSeen = {readonly open: number; readonly available: number}

/** Hears what a pool does. Must not throw. */
export type PoolObserver = {
  readonly onStatement: (statement: StatementSeen) => void
  readonly onPool: (pool: PoolSeen) => void
}

const words = {
  select: 'select',
  values: 'select',
  insert: 'insert',
  update: 'update',
  delete: 'delete',
  copy: 'copy',
  begin: 'begin',
  commit: 'commit',
  rollback: 'rollback',
  savepoint: 'savepoint',
  release: 'savepoint',
  set: 'set',
  listen: 'listen',
  unlisten: 'listen',
  create: 'ddl',
  alter: 'ddl',
  drop: 'ddl',
  truncate: 'ddl',
  grant: 'ddl',
  revoke: 'ddl',
} as const

/** @returns what kind of statement `text` is; several in one message count as the first. */
export function queryTypeOf(text: string): QueryType {
  const word = /^\s*([a-z]+)/i.exec(text)?.[1]?.toLowerCase() ?? ''
  // What a statement with a prelude does is said by the first writing part of it, if there is one.
  if (word === 'with')
    return (/\b(insert|update|delete)\b/i.exec(text)?.[1]?.toLowerCase() ?? 'select') as QueryType
  return word in words ? words[word as keyof typeof words] : 'other'
}
