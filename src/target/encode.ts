import {canonical} from '../core/canonical.ts'
import type {TableLayout} from '../core/layout.ts'
import type {Value} from '../core/value.ts'
import type {TargetRow} from './copy-format.ts'
import {seenBit, toPostgres, type Typed} from './type-map.ts'

/** Turns source rows of one table into target rows, and notes which storage classes each column has held. */
export class RowEncoder {
  readonly layout: TableLayout
  /** Bits of `Seen` for each column, grown by every row. */
  readonly seen: number[]

  constructor(layout: TableLayout) {
    this.layout = layout
    this.seen = layout.columns.map(column => column.seen)
  }

  /** @param values in the order of the layout's columns. */
  encode(row: {readonly key: string; readonly digest: Uint8Array; readonly values: readonly Value[]}): TargetRow {
    const {columns} = this.layout
    const typed: Typed[] = []
    let inexact: Record<string, string> | undefined
    for (let i = 0; i < columns.length; i++) {
      const value = row.values[i] as Value
      if (value === null) {
        typed.push(null)
        continue
      }
      const column = columns[i] as TableLayout['columns'][number]
      const answer = toPostgres(value, column)
      this.seen[i] = (this.seen[i] as number) | seenBit(value)
      typed.push(answer.typed)
      // Without a prototype: a column may be called __proto__.
      if (!answer.exact) (inexact ??= Object.create(null) as Record<string, string>)[column.target] = canonical(value)
    }
    return {key: row.key, digest: row.digest, typed, raw: inexact === undefined ? null : JSON.stringify(inexact)}
  }
}
