/** Rowids above `after` and up to `upTo`; a missing bound is none. */
export type RowidRange = {readonly after: bigint | undefined; readonly upTo: bigint | undefined}

/** Ascending ranges that neither touch nor overlap. */
export function joined(ranges: readonly RowidRange[]): RowidRange[] {
  const sorted = [...ranges].sort((a, b) => {
    if (a.after === b.after) return 0
    if (a.after === undefined || (b.after !== undefined && a.after < b.after)) return -1
    return 1
  })
  const result: RowidRange[] = []
  for (const range of sorted) {
    const last = result.at(-1)
    if (
      last === undefined ||
      (last.upTo !== undefined && range.after !== undefined && range.after > last.upTo)
    ) {
      result.push(range)
      continue
    }
    const reachesFurther = last.upTo !== undefined && (range.upTo === undefined || range.upTo > last.upTo)
    if (reachesFurther) result[result.length - 1] = {after: last.after, upTo: range.upTo}
  }
  return result
}

/** What lies outside ascending ranges. */
export function gapsBetween(ranges: readonly RowidRange[]): RowidRange[] {
  const gaps: RowidRange[] = []
  let from: bigint | undefined
  let isOpen = true
  for (const [i, range] of ranges.entries()) {
    if (range.after !== undefined) gaps.push({after: i === 0 ? undefined : from, upTo: range.after})
    from = range.upTo
    isOpen = range.upTo !== undefined
  }
  if (ranges.length === 0) return [{after: undefined, upTo: undefined}]
  if (isOpen) gaps.push({after: from, upTo: undefined})
  return gaps
}
