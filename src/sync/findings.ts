import type {Sql} from '../postgres/sql.ts'
import {columnHashes} from '../target/digests.ts'
import type {Pair, StructureFinding} from './pairs.ts'
import {judge, type Verdict} from './verdict.ts'

/** One row, table or column that is not what the last cut made of the source. */
export type Difference = {
  readonly table: string
  /** The row's `_sync_key`; `null` when it is the table itself that differs. */
  readonly key: string | null
  readonly kind: 'missing' | 'extra' | 'changed'
  /** Which columns of a changed row; the first thousand rows are looked at so closely. */
  readonly columns: readonly string[]
}

/** Differences that are listed one by one, and looked at down to their columns; beyond that they are counted. */
export const MOST_LISTED = 1_000

/** How often a row is read, at most, to see whether it holds still. */
export const READS = 3

/** For rows of the source a short hash of each column's canonical value, as `columnHashes` gives it for the target's. */
export type Explained = ReadonlyMap<Pair, ReadonlyMap<string, readonly (string | null)[]>>

/**
 * Says of every candidate what it is.
 *
 * @param quarantined ids, by {@link quarantineId}, of rows that could not be applied.
 */
export function judgeAll(
  {candidates, isRemembered, layout}: Pair,
  mayBeNewer: boolean,
  quarantined: ReadonlySet<string>,
): void {
  candidates?.judge(isRemembered, candidate => {
    const verdict = judge(candidate, mayBeNewer)
    if (verdict === 'equal' || verdict === 'accepted') return verdict
    const isHeldBack = candidate.isRefused || quarantined.has(quarantineId(layout.target, candidate.key))
    // A row that cannot be applied is not on its way: somebody has to do something about it.
    if (isHeldBack && verdict === 'pending') return candidate.target === 'live' ? 'changed' : 'missing'
    return candidate.changes >= READS - 1 ? 'moving' : verdict
  })
}

export function quarantineId(target: string, key: string): string {
  return JSON.stringify([target, key])
}

/** Where the target's values can be asked for. */
export type Target = {readonly sql: Sql; readonly schemaName: string}

const kinds: readonly Verdict[] = ['missing', 'extra', 'changed', 'hash']

/** What is to be told, as it comes together. */
export class Findings {
  readonly listed: Difference[] = []
  /** Tables whose structure somebody changed in the target. */
  readonly broken: readonly StructureFinding[]
  count = 0
  pending = 0
  moving = 0

  constructor(structure: readonly StructureFinding[], mayBeNewer: boolean) {
    for (const {difference, isOfSource, rows} of structure) {
      if (isOfSource && mayBeNewer) this.pending += rows
      else this.#list(difference)
    }
    this.broken = structure.filter(finding => !finding.isOfSource)
  }

  async add(target: Target, pair: Pair, explained: Explained): Promise<void> {
    const {candidates, layout} = pair
    if (candidates === undefined) return
    const counts = candidates.counts()
    this.pending += counts.get('pending') ?? 0
    this.moving += counts.get('moving') ?? 0
    for (const verdict of kinds) {
      const found = counts.get(verdict) ?? 0
      if (found === 0) continue
      const [keys = []] = candidates.keys(Math.max(1, MOST_LISTED - this.listed.length), verdict)
      const columnsOf = await this.#columns(target, pair, verdict, keys, explained)
      const kind = verdict === 'hash' ? 'changed' : (verdict as Difference['kind'])
      for (const key of keys) this.#list({table: layout.source, key, kind, columns: columnsOf(key)})
      this.count += found - keys.length
    }
  }

  async #columns(
    {sql, schemaName}: Target,
    pair: Pair,
    verdict: Verdict,
    keys: readonly string[],
    explained: Explained,
  ): Promise<(key: string) => string[]> {
    if (verdict === 'hash') return () => ['_sync_hash']
    if (verdict !== 'changed') return () => []
    const {layout} = pair
    const here = explained.get(pair)
    const there = await columnHashes(sql, schemaName, layout, keys)
    return key => {
      const [ours, theirs] = [here?.get(key), there.get(key)]
      if (ours === undefined || theirs === undefined) return []
      return layout.columns.filter((_, i) => ours[i] !== theirs[i]).map(column => column.source)
    }
  }

  #list(difference: Difference): void {
    this.count++
    if (this.listed.length < MOST_LISTED) this.listed.push(difference)
  }
}
