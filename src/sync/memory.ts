import type {Entry, Remembered} from '../source/capture.ts'
import {Bits} from './bits.ts'

/** What the sidecar's file is asked. */
export type Statements = {
  readonly get: (sql: string, ...values: Bindable[]) => Record<string, unknown> | undefined
  readonly all: (sql: string, ...values: Bindable[]) => Record<string, unknown>[]
  readonly run: (sql: string, ...values: Bindable[]) => void
}

export type Bindable = string | number | bigint | Uint8Array | null

/** Which entries without a place a capture has met, by their numbers. In memory, because writes all over the file cost
 * more than all the rest. */
export class Claims {
  /** Found, or known to be gone. */
  found = new Bits()
  /** Of these, the ones that are no longer without a place when the cut is settled. */
  ended = new Bits()

  clear(): void {
    this.found = new Bits()
    this.ended = new Bits()
  }
}

/** What is remembered of the table with this id, for a capture to compare with. */
export function memoryOf(
  {get, all, run}: Statements,
  claims: Claims,
  id: number,
  withoutRowid: boolean,
): Remembered & {tombstoned(key: string): void} {
  const hasAdrift = get('select 1 from adrift where t = ? limit 1', id) !== undefined
  let hasAside = get('select 1 from temp.aside where t = ? limit 1', id) !== undefined
  /** @returns the entry without a place that has this key, if nothing has claimed it. */
  const findAdrift = (key: string): {n: number; digest: Uint8Array} | undefined => {
    const entry = hasAdrift ? get('select n, digest from adrift where t = ? and key = ?', id, key) : undefined
    if (entry === undefined) return undefined
    const n = Number(entry['n'])
    return claims.found.has(n) ? undefined : {n, digest: entry['digest'] as Uint8Array}
  }
  return {
    range: (after, upTo) => {
      const low = after === undefined ? '' : 'and rid > ?'
      const high = upTo === undefined ? '' : 'and rid <= ?'
      const bounds = [after, upTo].filter(bound => bound !== undefined)
      return all(`select rid, key, digest from s${id} where true ${low} ${high} order by rid`, ...bounds).map(
        toEntry,
      )
    },
    hasAdrift: () => !withoutRowid && hasAdrift,
    highestRowid: () =>
      (get(`select max(rid) as rid from s${id}`)?.['rid'] as bigint | undefined) ?? undefined,
    setAside: entry => {
      hasAside = true
      run(
        'insert or replace into temp.aside values (?, ?, ?, ?, 0)',
        id,
        entry.key,
        entry.rowid,
        entry.digest,
      )
      run('insert or ignore into intent values (?, ?, ?, null)', id, entry.rowid, entry.key)
    },
    setAsideRow: ({rowid, key, digest}) => {
      run('insert or replace into temp.rows_aside values (?, ?, ?, ?)', id, rowid, key, digest)
    },
    claim: key => {
      if (hasAside) {
        const entry = get(
          'update temp.aside set claimed = 1 where t = ? and key = ? and claimed = 0 returning digest',
          id,
          key,
        )
        if (entry !== undefined) return entry['digest'] as Uint8Array
      }
      const entry = findAdrift(key)
      if (entry === undefined) return undefined
      claims.found.add(entry.n)
      // Found in a place that is now known: no longer without one, unless `keep` takes it back.
      if (!withoutRowid) claims.ended.add(entry.n)
      return entry.digest
    },
    rowsAside: (after, limit) =>
      all(
        `select rid, key, digest from temp.rows_aside where t = ? ${after === undefined ? '' : 'and rid > ?'} order by rid limit ${limit}`,
        ...(after === undefined ? [id] : [id, after]),
      ).map(toEntry),
    unclaimed: (after, limit) =>
      all(
        `select key from temp.aside where t = ?1 and claimed = 0 and (?2 is null or key > ?2)
         union
         select key from adrift where t = ?1 and (?2 is null or key > ?2) and not is_found(n)
         order by key limit ${limit}`,
        id,
        after ?? null,
      ).map(row => row['key'] as string),
    keep: key => {
      const aside = get('update temp.aside set claimed = 1 where t = ? and key = ? returning digest', id, key)
      const adrift = get('select n, digest from adrift where t = ? and key = ?', id, key)
      if (adrift !== undefined) claims.found.add(Number(adrift['n']))
      const digest = (aside ?? adrift)?.['digest'] as Uint8Array | undefined
      if (digest !== undefined) run('insert or replace into intent_adrift values (?, ?, ?)', id, key, digest)
    },
    tombstoned: key => {
      const wasPlaced = get(
        'update temp.aside set claimed = 1 where t = ? and key = ? and claimed = 0 returning 1',
        id,
        key,
      )
      if (wasPlaced !== undefined) return
      const entry = findAdrift(key)
      if (entry === undefined) return
      claims.found.add(entry.n)
      claims.ended.add(entry.n)
    },
  }
}

export function toEntry(row: Record<string, unknown>): Entry {
  return {rowid: row['rid'] as bigint, key: row['key'] as string, digest: row['digest'] as Uint8Array}
}
