import type {Finder, Pace} from './capture.ts'
import {readSchemaVersion} from './introspect.ts'
import {whenFree, type Source} from './open.ts'
import {PageMap, type Suspects} from './page-map.ts'
import {locked, pageReader, scanPages} from './page-scan.ts'
import type {PageState} from './page-state.ts'
import {joined} from './ranges.ts'

/** When more of the file's pages than this have changed, comparing all rows is no more work than finding them. */
const MOST_DIRTY_SHARE = 1 / 4
const FEW_DIRTY = 2_000

/**
 * Finds changed rows by changed pages. One capture, one finder: what an earlier look has found stays found, because the
 * state already describes the pages as that look has read them.
 */
export class PageFinder implements Finder {
  readonly #source: Source
  readonly #found = new Map<string, Suspects | undefined>()
  #state: PageState | undefined
  #comparesAll = false

  /** @param state what the last applied cut knew of the pages; it is brought up to date, for better or worse. */
  constructor(source: Source, state: PageState | undefined) {
    this.#source = source
    this.#state = state
  }

  /** The pages as they were read: to be kept once the cut is applied, and never without it. */
  get state(): PageState | undefined {
    return this.#state
  }

  async find(
    pace: Pace,
    isWal: boolean,
    signal: AbortSignal,
  ): Promise<(table: string) => Suspects | undefined> {
    const {db} = this.#source
    if (isWal) db.exec('begin')
    try {
      const before = await whenFree(this.#source, () => readSchemaVersion(db), signal)
      const scanned = await scanPages(this.#source, this.#state, pace, isWal, signal)
      if (scanned === undefined) {
        this.#state = undefined
        this.#comparesAll = true
      } else {
        const {scan, state} = scanned
        this.#state = state
        const isTooMuch = scan.dirtyCount > Math.max(FEW_DIRTY, state.pageCount * MOST_DIRTY_SHARE)
        const map = new PageMap(scan, state, pageReader(this.#source, state))
        for (const {name, rootPage} of await whenFree(this.#source, () => this.#tables(), signal)) {
          const steps = map.table(rootPage)
          let step = steps.next()
          while (step.done !== true) {
            step = await locked(this.#source, pace, isWal, () => runFor(steps, pace.budget.ms))
          }
          this.#add(name, step.value)
        }
        map.finish()
        if (isTooMuch || scan.isFirst) this.#comparesAll = true
      }
      // A table whose root moved while it was walked was walked elsewhere.
      if ((await whenFree(this.#source, () => readSchemaVersion(db), signal)) !== before)
        this.#comparesAll = true
    } finally {
      if (db.isTransaction) db.exec('commit')
    }
    return table => (this.#comparesAll ? undefined : this.#found.get(table))
  }

  #tables(): {name: string; rootPage: number}[] {
    return this.#source.db
      .prepare("select name, rootpage from sqlite_schema where type = 'table' and rootpage > 0")
      .all()
      .map(row => ({name: row['name'] as string, rootPage: Number(row['rootpage'])}))
  }

  #add(table: string, suspects: Suspects | undefined): void {
    if (!this.#found.has(table)) {
      this.#found.set(table, suspects)
      return
    }
    const known = this.#found.get(table)
    const both =
      known === undefined || suspects === undefined
        ? undefined
        : {
            ranges: joined([...known.ranges, ...suspects.ranges]),
            allRowids: known.allRowids || suspects.allRowids,
          }
    this.#found.set(table, both)
  }
}

/** Goes on with a walk until its time is over. */
function runFor<T>(steps: Generator<void, T>, ms: number): IteratorResult<void, T> {
  const since = performance.now()
  let step = steps.next()
  while (step.done !== true && performance.now() - since < ms) step = steps.next()
  return step
}
