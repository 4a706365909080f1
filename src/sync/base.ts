import {canonical, rowDigester} from '../core/canonical.ts'
import type {TableLayout} from '../core/layout.ts'
import type {Value} from '../core/value.ts'

/** Columns that may differ for every way of the sides to share them to be tried, and bytes that may be digested for it. */
const MOST_COLUMNS = 10
const MOST_BYTES = 16 * 1024 * 1024

/**
 * The row as both sides had it last, found by its digest: when the sides have changed different columns, it is one that
 * has each differing column from the source or from the target.
 *
 * @returns its values in the order of the layout's columns, or `undefined` when both sides changed one and the same
 * column, or too many of them.
 */
export function baseOf(
  layout: TableLayout,
  key: string,
  source: readonly Value[],
  target: readonly Value[],
  digest: Uint8Array,
): readonly Value[] | undefined {
  const texts = (values: readonly Value[]) => values.map(value => (value === null ? '' : canonical(value)))
  const [ours, theirs] = [texts(source), texts(target)]
  const differ = ours.flatMap((text, i) => (text === theirs[i] ? [] : [i]))
  const bytes = ours.reduce((sum, text, i) => sum + Math.max(text.length, theirs[i]?.length ?? 0), 0)
  if (differ.length > MOST_COLUMNS || bytes * 2 ** differ.length > MOST_BYTES) return undefined
  const digester = rowDigester(
    layout.columns.map(column => column.source),
    layout.keyedBy === 'rowid',
  )
  for (let choice = 0; choice < 2 ** differ.length; choice++) {
    const row = [...source]
    for (const [bit, at] of differ.entries()) if ((choice >> bit) & 1) row[at] = target[at] as Value
    if (Buffer.compare(digester(row, key), digest) === 0) return row
  }
  return undefined
}
