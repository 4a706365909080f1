import {canonical, fromCanonical} from '../core/canonical.ts'
import {RawText, type Value} from '../core/value.ts'

// How the ledger keeps a side of a conflict: a JSON object of columns, readable for people and exact for us. Text,
// integers and NULL are themselves; a real number is one with a point; whatever else is `{"exact": canonical form}`,
// which no value of SQLite looks like. `_sync_digest` is the digest of the whole row, null for a row that is not there.

/** One side of a conflict as the ledger has it. */
export type LedgerSide = {
  /** Hex; `undefined` when the row was not there. */
  readonly digest: string | undefined
  /** By source column names: all of them, or those in which the sides differ. */
  readonly fields: ReadonlyMap<string, Value>
}

const DIGEST = '_sync_digest'

/** @returns JSON text for a `jsonb` column. */
export function sideToJson({digest, fields}: LedgerSide): string {
  const members = [`${JSON.stringify(DIGEST)}:${digest === undefined ? 'null' : JSON.stringify(digest)}`]
  // jsonb holds no NUL; a column whose name does is told by the rest of it.
  for (const [name, value] of fields)
    members.push(`${JSON.stringify(name.replaceAll('\0', ''))}:${valueToJson(value)}`)
  return `{${members.join(',')}}`
}

/** @param text the column's value `::text`. */
export function sideFromJson(text: string): LedgerSide {
  const fields = new Map<string, Value>()
  let digest: string | undefined
  for (const [name, value] of Object.entries(parseExactly(text) as Record<string, unknown>)) {
    if (name === DIGEST) digest = (value as string | null) ?? undefined
    else fields.set(name, valueFromJson(value))
  }
  return {digest, fields}
}

function valueToJson(value: Value): string {
  if (value === null) return 'null'
  if (typeof value === 'string') return JSON.stringify(value)
  if (typeof value === 'bigint') return String(value)
  if (typeof value === 'number' && /^-?\d+\.\d+$/.test(String(value))) return String(value)
  return JSON.stringify({exact: canonical(value)})
}

function valueFromJson(value: unknown): Value {
  if (value instanceof WrittenNumber) {
    return value.text.includes('.') ? Number(value.text) : BigInt(value.text)
  }
  if (value === null || typeof value === 'string') return value
  return fromCanonical((value as {exact: string}).exact)
}

/** A number as it was written. */
class WrittenNumber {
  readonly text: string
  constructor(text: string) {
    this.text = text
  }
}

/** JSON.parse makes doubles of numbers; the reviver is told what stood there. */
function parseExactly(text: string): unknown {
  const revive = (_key: string, value: unknown, context?: {source?: string}) =>
    typeof value === 'number' ? new WrittenNumber(context?.source ?? String(value)) : value
  return JSON.parse(text, revive)
}

/** A value for people and for JSON of the API: bytes as hex, integers beyond 2^53 as text. */
export function readable(value: Value): string | number | null {
  if (value === null || typeof value === 'string' || typeof value === 'number') return value
  if (typeof value === 'bigint') return Number.isSafeInteger(Number(value)) ? Number(value) : String(value)
  const bytes = value instanceof RawText ? value.bytes : value
  return `\\x${Buffer.from(bytes).toString('hex')}`
}
