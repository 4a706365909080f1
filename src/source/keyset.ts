import {mark} from './bind.ts'

/** One term of the order in which rows are read. */
export type OrderTerm = {
  /** What it compares, with its collation. */
  readonly by: string
  readonly descends: boolean
  /** Where its value stands among those that say how far rows have been read. */
  readonly at: number
}

/** Rows in an order. The condition takes the first `bound` values of a position, by {@link mark}. */
export type Stretch = {readonly where: string; readonly orderBy: string; readonly bound: number}

export function allRows(order: readonly OrderTerm[]): Stretch {
  return {where: 'true', orderBy: orderBy(order), bound: 0}
}

/**
 * Keyset pagination in the order of an index: what stands behind a position without NULLs, those nearest to it first: rows
 * that differ from it in the last term only, then in the one before, and so on.
 *
 * One comparison of row values would say the same, but SQLite looks that up in an index only where no collation is named
 * and all terms have the same direction. Otherwise it reads the index from its start, for each page anew.
 */
export function rowsBehind(order: readonly OrderTerm[]): Stretch[] {
  const stretches = order.map((last, i) => {
    const equal = order.slice(0, i)
    const stretch = (condition: string, terms: readonly OrderTerm[]) => ({
      where: [...equal.map(({by, at}) => `${by} = ${mark(at)}`), condition].join(' and '),
      orderBy: orderBy(order.slice(i)),
      bound: terms.reduce((bound, {at}) => Math.max(bound, at + 1), 0),
    })
    const {by, descends, at} = last
    if (!descends) return [stretch(`${by} > ${mark(at)}`, [...equal, last])]
    // Downwards NULL comes last, and is not less than anything.
    return [stretch(`${by} < ${mark(at)}`, [...equal, last]), stretch(`${by} is null`, equal)]
  })
  return stretches.toReversed().flat()
}

function orderBy(order: readonly OrderTerm[]): string {
  return order.map(({by, descends}) => (descends ? `${by} desc` : by)).join(', ')
}
