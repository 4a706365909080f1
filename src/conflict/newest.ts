import type {Value} from '../core/value.ts'
import type {Conflict} from './conflict.ts'

// Which side is newer. Columns hold seconds, milliseconds, microseconds or nanoseconds since 1970, or text, and
// nothing declares which (docs/conflicts.md, "newest_wins"), so each value is read by its magnitude.

/** The side whose row is newer, and why that is so, without row contents. */
export type Newer = {
  readonly side: 'source' | 'target'
  /** False when the times say nothing and the side is chosen by convention. */
  readonly isDecided: boolean
  readonly reason: string
}

/** How far ahead of now a time may lie: time zones that nobody wrote down, and clocks, reach no further. */
const aheadNs = 24n * 3_600n * 1_000_000_000n

/** Compares the rows' times in `field`. Whatever cannot be told goes to the source. */
export function newerSide(
  {source, target, columns, now}: Pick<Conflict, 'source' | 'target' | 'columns' | 'now'>,
  field: string,
): Newer {
  const undecided = (why: string): Newer => ({
    side: 'source',
    isDecided: false,
    reason: `${why}, so the source wins`,
  })
  if (!columns.includes(field)) return undecided(`the table has no ${field}`)
  if (!source) return undecided('the source has no row that could carry a time')
  if (!target) return undecided('the target has no row that could carry a time')
  const ours = usableTime(source.get(field) ?? null, now)
  const theirs = usableTime(target.get(field) ?? null, now)
  if (typeof ours === 'string') return undecided(`the source's ${field} ${ours}`)
  if (typeof theirs === 'string') return undecided(`the target's ${field} ${theirs}`)
  if (ours === theirs) return undecided(`${field} is the same on both sides`)
  const side = theirs > ours ? 'target' : 'source'
  const by = spanText(theirs > ours ? theirs - ours : ours - theirs)
  return {side, isDecided: true, reason: `the ${side}'s ${field} is later by ${by}`}
}

/**
 * @returns nanoseconds since 1970, or `undefined` when the value is no time: NULL, zero or less, bytes, other text.
 * Text without a time zone is taken as UTC.
 */
export function instantOf(value: Value): bigint | undefined {
  switch (typeof value) {
    case 'bigint':
      return value > 0n ? value * unitNs(value) : undefined
    case 'number':
      return ofReal(value)
    case 'string':
      return ofText(value)
    default:
      return undefined
  }
}

function usableTime(value: Value, now: Date): bigint | string {
  if (value === null) return 'is NULL'
  const instant = instantOf(value)
  if (instant === undefined) return 'holds no time'
  return instant > BigInt(now.getTime()) * 1_000_000n + aheadNs ? 'lies in the future' : instant
}

/** Nanoseconds in the unit that a number of this size counts: each is right from 1973 to 5138. */
function unitNs(whole: bigint): bigint {
  if (whole < 100_000_000_000n) return 1_000_000_000n
  if (whole < 100_000_000_000_000n) return 1_000_000n
  return whole < 100_000_000_000_000_000n ? 1_000n : 1n
}

function ofReal(value: number): bigint | undefined {
  if (!Number.isFinite(value) || value <= 0) return undefined
  const whole = BigInt(Math.trunc(value))
  const unit = unitNs(whole)
  return whole * unit + BigInt(Math.round((value - Math.trunc(value)) * Number(unit)))
}

const numeric = /^\d{1,19}$/
const decimal = /^\d{1,19}\.\d+$/
const dateTime =
  /^(\d{4})-(\d\d)-(\d\d)(?:[T ](\d\d):(\d\d)(?::(\d\d)(?:[.,](\d+))?)?\s*(?:(Z|UTC|GMT)|([+-])(\d\d):?(\d\d)?)?)?$/i

function ofText(value: string): bigint | undefined {
  const text = value.trim()
  if (numeric.test(text)) return instantOf(BigInt(text))
  if (decimal.test(text)) return ofReal(Number(text))
  const found = dateTime.exec(text)
  if (!found) return undefined
  const [year, month, day, hour, minute, second] = [1, 2, 3, 4, 5, 6].map(i => Number(found[i] ?? 0)) as [
    number,
    number,
    number,
    number,
    number,
    number,
  ]
  const [fraction = '', , sign = '+', zoneHours = '0', zoneMinutes = '0'] = found.slice(7)
  const date = new Date(Date.UTC(year, month - 1, day))
  // Date.UTC turns 31 February into a day of March, and the year 85 into 1985.
  const isDate =
    date.getUTCFullYear() === year && date.getUTCMonth() === month - 1 && date.getUTCDate() === day
  if (!isDate || hour > 23 || minute > 59 || second > 59) return undefined
  const offsetMinutes = (Number(zoneHours) * 60 + Number(zoneMinutes)) * (sign === '-' ? -1 : 1)
  const seconds = date.getTime() / 1_000 + hour * 3_600 + (minute - offsetMinutes) * 60 + second
  const instant = BigInt(seconds) * 1_000_000_000n + BigInt(fraction.slice(0, 9).padEnd(9, '0'))
  return instant > 0n ? instant : undefined
}

function spanText(ns: bigint): string {
  for (const [unit, sizeNs] of spans) if (ns >= sizeNs) return `${ns / sizeNs} ${unit}`
  return `${ns} ns`
}

const spans = [
  ['d', 86_400_000_000_000n],
  ['h', 3_600_000_000_000n],
  ['min', 60_000_000_000n],
  ['s', 1_000_000_000n],
  ['ms', 1_000_000n],
  ['us', 1_000n],
] as const
