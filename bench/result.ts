/** One line of the benchmarks: what was done, how long we took, and what it is held against. */
export type Result = {
  readonly name: string
  readonly work: string
  /** Median; `null` when the figure is no time or nothing could be measured. */
  readonly ours_ms: number | null
  readonly reference: string | null
  readonly reference_ms: number | null
  /** Ours over the reference's: the median of the rounds' own ratios, because one round's noise meets both. */
  readonly ratio: number | null
  /** The greatest `ratio` allowed; where there is no reference, the greatest `ours_ms` or `value`. */
  readonly must: number | null
  /** `null` when it was not measured; standard error says why. */
  readonly holds: boolean | null
  /** A figure that is no time, in `unit`. */
  readonly value?: number
  readonly unit?: string
}

/** Times of the same rounds, so that ours and the reference's share each round's noise. */
export type Rounds = {readonly ours: readonly number[]; readonly reference: readonly number[]}

/** A result that is held against a reference measured in the same rounds. */
export function compared(
  about: Pick<Result, 'name' | 'work'> & {readonly reference: string; readonly must: number},
  {ours, reference}: Rounds,
): Result {
  const ratio = rounded(median(ours.map((ms, i) => ms / reference[i]!)), 1000)
  return {
    name: about.name,
    work: about.work,
    ours_ms: rounded(median(ours)),
    reference: about.reference,
    reference_ms: rounded(median(reference)),
    ratio,
    must: about.must,
    holds: ratio <= about.must,
  }
}

/** A result that is held against a fixed time. */
export function bounded(
  about: Pick<Result, 'name' | 'work'> & {readonly must: number},
  ours: readonly number[],
): Result {
  const ms = rounded(median(ours), 1000)
  return {...about, ours_ms: ms, reference: null, reference_ms: null, ratio: null, holds: ms <= about.must}
}

/** A result that could not be measured here. */
export function unmeasured(
  about: Pick<Result, 'name' | 'work'> & {readonly reference?: string; readonly must: number},
): Result {
  const {name, work, reference = null, must} = about
  return {name, work, ours_ms: null, reference, reference_ms: null, ratio: null, must, holds: null}
}

export function median(values: readonly number[]): number {
  const sorted = [...values].sort((a, b) => a - b)
  const middle = sorted.length >> 1
  return sorted.length % 2 === 1 ? sorted[middle]! : (sorted[middle - 1]! + sorted[middle]!) / 2
}

function rounded(value: number, perUnit = 10): number {
  return Math.round(value * perUnit) / perUnit
}

/** The results as a table for people. */
export function tableOf(results: readonly Result[]): string {
  const rows = results.map(result => [
    result.name,
    result.work,
    result.value === undefined ? time(result.ours_ms) : `${result.value} ${result.unit ?? ''}`,
    result.reference === null ? '' : `${result.reference}: ${time(result.reference_ms)}`,
    result.ratio === null ? '' : result.ratio.toFixed(2),
    limitOf(result),
    result.holds === null ? 'not measured' : result.holds ? 'holds' : 'DOES NOT HOLD',
  ])
  const lines = [['name', 'work', 'ours', 'reference', 'ratio', 'must', ''], ...rows]
  const widths = lines[0]!.map((_, i) => Math.max(...lines.map(line => line[i]!.length)))
  return lines
    .map(line =>
      line
        .map((cell, i) => cell.padEnd(widths[i]!))
        .join('  ')
        .trimEnd(),
    )
    .join('\n')
}

function limitOf({must, reference, unit}: Result): string {
  if (must === null) return ''
  if (reference !== null) return `<= ${must.toFixed(2)}`
  return `<= ${unit === undefined ? time(must) : `${must} ${unit}`}`
}

function time(ms: number | null): string {
  if (ms === null) return '-'
  return ms >= 10_000
    ? `${(ms / 1000).toFixed(1)} s`
    : ms >= 10
      ? `${ms.toFixed(0)} ms`
      : `${ms.toFixed(3)} ms`
}
