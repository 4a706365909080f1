/** What verify has seen of one row: digests of its states on both sides and as of the last cut. */
export type RowState = {
  /** The source's row as it is now. */
  readonly source: Uint8Array | undefined
  readonly target: 'live' | 'deleted' | 'absent'
  /** Of the values that stand in the target. */
  readonly values: Uint8Array | undefined
  /** `_sync_hash`: what the target says the source's row was at the last cut. */
  readonly hash: Uint8Array | undefined
  /** A conflict's decision accepted that the target differs. */
  readonly isAccepted: boolean
  /** The source's row as of the last cut, by the sidecar: `undefined` is no row, `'unknown'` no such memory. */
  readonly known: Uint8Array | undefined | 'unknown'
}

export type Verdict = 'equal' | 'accepted' | 'pending' | 'missing' | 'extra' | 'changed' | 'hash'

/**
 * What a row's state means. Pure.
 *
 * A row is pending when the source has moved on since the last cut *and* the target still has exactly what that cut
 * applied: only then will the next sync bring it along for sure. Everything else that differs is a difference. `hash`
 * is one too: the values are equal, but the bookkeeping says otherwise.
 *
 * @param mayBeNewer false when the source is known to be as it was at the last cut.
 */
export function judge(row: RowState, mayBeNewer: boolean): Verdict {
  if (row.isAccepted) return 'accepted'
  const isLive = row.target === 'live'
  if (isLive && row.source !== undefined && isSame(row.source, row.values))
    return isSame(row.values, row.hash) ? 'equal' : 'hash'
  if (!isLive && row.source === undefined) return 'equal'
  if (mayBeNewer && isAsApplied(row)) return 'pending'
  if (row.source === undefined) return 'extra'
  return isLive ? 'changed' : 'missing'
}

/** Whether the target has what the last cut applied, and the source has something else by now. */
function isAsApplied({source, target, values, hash, known}: RowState): boolean {
  if (target === 'live') {
    const applied = known === 'unknown' ? hash : known
    return (
      applied !== undefined && isSame(values, applied) && isSame(hash, applied) && !isSame(source, applied)
    )
  }
  if (known !== 'unknown') return known === undefined
  // Without a memory of the last cut: a tombstone of exactly this row is a row that somebody else deleted.
  return target === 'absent' || !isSame(source, hash)
}

function isSame(a: Uint8Array | undefined, b: Uint8Array | undefined): boolean {
  return a === undefined || b === undefined ? a === b : Buffer.compare(a, b) === 0
}
