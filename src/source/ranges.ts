/** Rowids above `after` and up to `upTo`; a missing bound is none. */
export type RowidRange = {readonly after: bigint | undefined; readonly upTo: bigint | undefined}

export const everything: RowidRange = {after: undefined, upTo: undefined}

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
      result.push({after: range.after, upTo: range.upTo})
      continue
    }
    const reachesFurther = last.upTo !== undefined && (range.upTo === undefined || range.upTo > last.upTo)
    if (reachesFurther) result[result.length - 1] = {after: last.after, upTo: range.upTo}
  }
  return result
}
