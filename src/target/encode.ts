import {canonical, fromCanonical} from '../core/canonical.ts'
import type {TableLayout} from '../core/layout.ts'
import type {Value} from '../core/value.ts'
import type {TargetRow} from './copy-format.ts'
import {fromDouble, fromText, seenBit, toPostgres, type Typed} from './type-map.ts'

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
  encode(row: {
    readonly key: string
    readonly digest: Uint8Array
    readonly values: readonly Value[]
  }): TargetRow {
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
      if (!answer.exact)
        (inexact ??= Object.create(null) as Record<string, string>)[column.target] = canonical(value)
    }
    if (columns.length >= WIDE_COLUMNS) inexact = this.#squeeze(row.values, typed, inexact)
    return {
      key: row.key,
      digest: row.digest,
      typed,
      raw: inexact === undefined ? null : JSON.stringify(inexact),
    }
  }

  /** Moves the last columns of a row that would not fit into a page to `_sync_raw`, which Postgres stores elsewhere. */
  #squeeze(
    values: readonly Value[],
    typed: Typed[],
    inexact: Record<string, string> | undefined,
  ): Record<string, string> | undefined {
    let bytes = typed.reduce<number>((sum, value) => sum + inlineBytes(value), 0)
    let kept = inexact
    for (let i = typed.length - 1; bytes > MOST_INLINE_BYTES && i >= 0; i--) {
      const value = values[i] as Value
      if (value === null) continue
      bytes -= inlineBytes(typed[i] as Typed)
      typed[i] = null
      ;(kept ??= {})[(this.layout.columns[i] as TableLayout['columns'][number]).target] = canonical(value)
    }
    return kept
  }
}

/** @returns the values that {@link RowEncoder.encode} was given: what the row will read back as. */
export function valuesOfRow({typed, raw}: TargetRow, {columns}: TableLayout): Value[] {
  const kept = raw === null ? undefined : (JSON.parse(raw) as Record<string, string>)
  return columns.map((column, i): Value => {
    const exact = kept !== undefined && Object.hasOwn(kept, column.target) ? kept[column.target] : undefined
    if (exact !== undefined) return fromCanonical(exact)
    const value = typed[i] as Typed
    switch (typeof value) {
      case 'boolean':
        return value ? 1n : 0n
      case 'number':
        return fromDouble(value, column.affinity)
      case 'string':
        return column.type === 'text' ? fromText(value, column.affinity) : value
      default:
        return value
    }
  })
}

/** Below this many columns, values stored out of line leave room enough in the 8 KB page that a row must fit into. */
const WIDE_COLUMNS = 300
const MOST_INLINE_BYTES = 7_000

/** What a value takes of its row's page at least, alignment included: a long one leaves an 18-byte pointer. */
function inlineBytes(value: Typed): number {
  if (value === null) return 0
  if (typeof value === 'string') return Math.min(24, value.length * 3 + 4)
  if (value instanceof Uint8Array) return Math.min(24, value.byteLength + 4)
  return typeof value === 'boolean' ? 1 : 8
}
