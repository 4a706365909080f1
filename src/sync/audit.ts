import {isWal, Pace, type Finder, type Suspects} from '../source/capture.ts'
import {endRead, type Source} from '../source/open.ts'
import {PageFinder} from '../source/page-finder.ts'
import type {RowidRange} from '../source/ranges.ts'
import type {Cut} from './cut.ts'
import type {Sidecar} from './sidecar.ts'

/**
 * A source that is captured by pages has all its rows compared at least this often: pages are an accelerator, and an
 * error in it would otherwise stay forever. Not a setting: nobody would want to know less.
 */
export const AUDIT_EVERY_MS = 24 * 3_600_000
/** They are compared up to this much sooner, each deployment at a time of its own. */
const SPREAD_MS = 4 * 3_600_000

/**
 * @param audited when all rows were compared last, as noted in the sidecar (this machine's clock, ms).
 * @returns when they must be compared again; now, when nobody knows or the clock has been set back.
 */
export function auditDueAt(deploymentId: string, audited: string | undefined): number {
  const at = Number(audited)
  if (audited === undefined || !(at <= Date.now())) return 0
  const share = parseInt(deploymentId.slice(0, 4), 16) / 0x1_0000
  return at + AUDIT_EVERY_MS - (Number.isNaN(share) ? 0 : Math.floor(share * SPREAD_MS))
}

/** Rows that have changed although no page said so. */
export type Missed = {readonly rows: number; readonly tables: readonly string[]}

/**
 * A capture that compares all rows of a source, and holds what it finds against the pages. Whatever was committed
 * between the last cut and the reading of a row shows on the pages that are looked at before it or on those that are
 * looked at after it, however busy the app is; what shows on neither has been missed.
 */
export class Audit implements Finder {
  readonly #source: Source
  readonly #finder: PageFinder
  #before: ((table: string) => Suspects) | undefined

  constructor(source: Source, finder: PageFinder) {
    this.#source = source
    this.#finder = finder
  }

  async find(pace: Pace, isWal: boolean, signal: AbortSignal): Promise<(table: string) => undefined> {
    this.#before = await this.#finder.find(pace, isWal, signal)
    return () => undefined
  }

  witness(table: string, range: RowidRange, rowids: readonly bigint[]): void {
    this.#finder.witness(table, range, rowids)
  }

  doubt(table: string, rowid: bigint): void {
    this.#finder.doubt(table, rowid)
  }

  /** @param cut what was captured with this finder, its places noted, and not yet settled. */
  async missed(cut: Cut, sidecar: Sidecar, lockBudgetMs: number, signal: AbortSignal): Promise<Missed> {
    const {state} = this.#finder
    if (this.#before === undefined || state === undefined || cut.places === undefined)
      return {rows: 0, tables: []}
    // A copy: what is remembered must not be newer than the rows that were read.
    const after = new PageFinder(this.#source, state.copy())
    const pace = new Pace(this.#source, lockBudgetMs, signal)
    const later = await after.find(pace, isWal(this.#source), signal).finally(() => {
      endRead(this.#source.db)
    })
    let rows = 0
    const tables: string[] = []
    for (const [table, places] of cut.places) {
      const suspects = [this.#before(table), later(table)]
      // All of it may have changed, or is always compared.
      if (suspects.includes(undefined) || sidecar.hasAdrift(table)) continue
      const isSuspect = (rowid: bigint) => suspects.some(each => each !== undefined && has(each, rowid))
      const tombstones = cut.spools.get(table)?.tombstones ?? []
      const left = tombstones.length === 0 ? new Map<string, bigint>() : sidecar.placesLeft(table)
      const gone = tombstones.flatMap(key => left.get(key) ?? [])
      const count = [...places, ...gone].filter(rowid => !isSuspect(rowid)).length
      if (count === 0) continue
      rows += count
      tables.push(table)
    }
    return {rows, tables}
  }
}

/** Whether a rowid is in one of the ranges, which ascend: there can be as many as the cut has rows. */
function has(ranges: readonly RowidRange[], rowid: bigint): boolean {
  let low = 0
  for (let high = ranges.length; low < high;) {
    const middle = (low + high) >> 1
    const upTo = ranges[middle]?.upTo
    if (upTo !== undefined && upTo < rowid) low = middle + 1
    else high = middle
  }
  const range = ranges[low]
  return range !== undefined && (range.after === undefined || rowid > range.after)
}
