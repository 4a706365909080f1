import {DigestSums} from '../core/digest-sums.ts'
import type {TableLayout} from '../core/layout.ts'
import type {TableSpec} from '../source/introspect.ts'
import type {StoredSums} from '../target/digests.ts'
import type {Existing} from '../target/plan.ts'
import type {Candidates} from './candidates.ts'
import type {Difference} from './findings.ts'

/** One table that both sides have in the same shape, and what was found out about its rows. */
export type Pair = {
  readonly layout: TableLayout
  /** With its columns in the layout's order. */
  readonly spec: TableSpec
  readonly sums: DigestSums
  stored: StoredSums | undefined
  candidates: Candidates | undefined
  isRemembered: boolean
}

/** A table that cannot be compared row by row. */
export type StructureFinding = {
  readonly difference: Difference
  /** True when the source has changed its schema since the last cut, if it has changed at all. */
  readonly isOfSource: boolean
  readonly layout: TableLayout | undefined
  readonly spec: TableSpec | undefined
  rows: number
}

/** Finds for each table of the source the one of the target, and tells what is amiss where there is none to compare. */
export function pairTables(
  specs: readonly TableSpec[],
  layouts: readonly TableLayout[],
  existing: Existing,
  buckets: ReadonlyMap<string, number>,
): {pairs: Pair[]; findings: StructureFinding[]} {
  const pairs: Pair[] = []
  const findings: StructureFinding[] = []
  const left = new Map(specs.map(spec => [spec.name, spec]))
  const find = (
    table: string,
    kind: Difference['kind'],
    columns: readonly string[],
    rest: {isOfSource: boolean; layout?: TableLayout; spec?: TableSpec | undefined},
  ) => {
    const {isOfSource, layout, spec} = rest
    findings.push({difference: {table, key: null, kind, columns}, isOfSource, layout, spec, rows: 0})
  }
  for (const layout of layouts) {
    const table = layout.source
    const spec = left.get(table)
    left.delete(table)
    const present = existing.get(layout.target)
    const broken = layout.columns.filter(column => present?.get(column.target) !== column.type)
    if (present === undefined) find(table, 'missing', [], {isOfSource: false, layout, spec})
    else if (broken.length > 0) {
      const columns = broken.map(column => column.source)
      find(table, 'changed', columns, {isOfSource: false, layout, spec})
    } else if (spec === undefined) find(table, 'extra', [], {isOfSource: true, layout})
    else if (!hasSameShape(spec, layout)) {
      const columns = unlike(spec, layout)
      find(table, 'changed', columns, {isOfSource: true, layout, spec})
    } else {
      pairs.push({
        layout,
        spec: inOrderOf(layout, spec),
        sums: new DigestSums(buckets.get(layout.target) ?? 1),
        stored: undefined,
        candidates: undefined,
        isRemembered: false,
      })
    }
  }
  for (const spec of left.values()) find(spec.name, 'missing', [], {isOfSource: true, spec})
  return {pairs, findings}
}

/** Whether rows of the two can be compared by key and digest. */
export function hasSameShape(spec: TableSpec, layout: TableLayout): boolean {
  return (
    unlike(spec, layout).length === 0 &&
    spec.withoutRowid === layout.withoutRowid &&
    (spec.keyedBy === 'rowid') === (layout.keyedBy === 'rowid') &&
    JSON.stringify(spec.key) === JSON.stringify(layout.key)
  )
}

/** @returns the table with its columns in the layout's order. */
export function inOrderOf(layout: TableLayout, spec: TableSpec): TableSpec {
  const columns = layout.columns.map(
    ({source}) => spec.columns.find(column => column.name === source) as TableSpec['columns'][number],
  )
  return {...spec, columns}
}

/** Columns that only one of the two has. */
function unlike(spec: TableSpec, layout: TableLayout): string[] {
  const here = new Set(spec.columns.map(column => column.name))
  const there = new Set(layout.columns.map(column => column.source))
  return [...here.symmetricDifference(there)]
}

/** @returns the buckets that differ, or whose rows have a stored hash or key that is not theirs. */
export function differing({sums, stored}: Pair): number[] {
  if (stored === undefined) throw new Error('the target was not summed')
  return [...new Set([...sums.differing(stored.sums), ...stored.odd])]
}
