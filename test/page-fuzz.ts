import {spawn, type ChildProcess} from 'node:child_process'
import {once} from 'node:events'
import {mkdtempSync, rmSync} from 'node:fs'
import {availableParallelism} from 'node:os'
import {join} from 'node:path'
import {text} from 'node:stream/consumers'
import {setImmediate as breathe, setTimeout as sleep} from 'node:timers/promises'
import {together} from '../src/core/together.ts'
import {capture, type CaptureResult} from '../src/source/capture.ts'
import type {SourceSpec} from '../src/source/introspect.ts'
import {openSource, type Source} from '../src/source/open.ts'
import {PageFinder} from '../src/source/page-finder.ts'
import type {PageState} from '../src/source/page-state.ts'
import {Sidecar} from '../src/sync/sidecar.ts'
import {memoryFolder} from './memory-folder.ts'
import {chanceOf, type Chance} from './mutator.ts'
import {makePagedFile, pagedFileOf, PageWriter} from './page-writer.ts'

// Does the capture by pages find what the capture by digests finds? A random app, a random history, and after each
// step both: whatever the pages have missed, the digests find.

/** What one capture has found. */
export type Look = {
  readonly result: CaptureResult
  readonly upserts: readonly string[]
  readonly tombstones: readonly string[]
  readonly places: readonly string[]
}

/** How a capture ends: as a sync's does, or as one that was cut short. */
export type End = 'settle' | 'settle without pages' | 'abandon' | 'fail'

const signal = new AbortController().signal

/** The side of the sync: a source, a sidecar and what it knows of the pages. */
export class PageMirror implements Disposable {
  readonly #dir: string
  readonly #file: string
  #source: Source | undefined
  #sidecar: Sidecar
  #inMemory: PageState | undefined
  #layouts = new Map<string, string>()
  #cuts = 0

  constructor(dir: string, file: string) {
    this.#dir = dir
    this.#file = file
    this.#sidecar = Sidecar.open(dir, 'mirror')
  }

  /**
   * Captures once, by pages or by digests.
   *
   * @param meanwhile called each time after pages were looked at and before rows are.
   * @param doubting called each time a row is to be read again.
   */
  async look(
    by: 'pages' | 'digests',
    end: End,
    meanwhile?: () => void,
    doubting?: () => void,
  ): Promise<Look> {
    this.#source ??= await openSource(this.#file, signal)
    const source = this.#source
    const sidecar = this.#sidecar
    const state = by === 'pages' ? sidecar.loadPages(this.#inMemory) : undefined
    this.#inMemory = undefined
    const finder = by === 'pages' ? new PageFinder(source, state) : undefined
    if (finder !== undefined && meanwhile !== undefined) {
      const find = finder.find.bind(finder)
      finder.find = async (...args) => {
        const suspects = await find(...args)
        meanwhile()
        return suspects
      }
    }
    if (finder !== undefined && doubting !== undefined) finder.doubt = doubting
    const [upserts, tombstones, places]: string[][] = [[], [], []]
    let layouts = new Map<string, string>()
    const failAt = end === 'fail' ? this.#cuts % 7 : Infinity
    sidecar.begin()
    try {
      const result = await capture(
        source,
        {
          lockBudgetMs: 25,
          finder,
          begin: spec => {
            layouts = this.#begin(spec)
            return {
              remembered: table => sidecar.remembered(table.name, table.withoutRowid),
              isSameSchema: sidecar.noted('cookie') === String(spec.schemaVersion),
            }
          },
          delta: {
            upsert: (table, row) => {
              upserts!.push(`${table.name} ${row.rowid} ${row.key.slice(0, 20)}`)
              sidecar.remember(table.name, row, table.withoutRowid)
              if (upserts!.length > failAt) throw new Error('failed on purpose')
            },
            tombstone: (table, key) => {
              tombstones!.push(`${table.name} ${key.slice(0, 20)}`)
              sidecar.remembered(table.name, table.withoutRowid).tombstoned(key)
            },
            place: (table, entry) => {
              if (table.withoutRowid) return
              places!.push(`${table.name} ${entry.rowid} ${entry.key.slice(0, 20)}`)
              sidecar.remember(table.name, entry, false)
            },
            refuse: () => undefined,
          },
          discard: () => {
            for (const list of [upserts, tombstones, places]) list!.length = 0
            sidecar.discard()
          },
        },
        signal,
      )
      this.#settle(end, result, finder, upserts!.length + tombstones!.length + places!.length > 0)
      if (end.startsWith('settle')) this.#layouts = layouts
      return {result, upserts: upserts!, tombstones: tombstones!, places: places!}
    } catch (error) {
      sidecar.abandon()
      if (end !== 'fail') throw error
      return {result: {} as CaptureResult, upserts: upserts!, tombstones: tombstones!, places: places!}
    }
  }

  /** Another process takes over, with what is on disk. */
  restart(): void {
    this.#inMemory = undefined
    this.#sidecar[Symbol.dispose]()
    this.#sidecar = Sidecar.open(this.#dir, 'mirror')
  }

  /** What a sync does about its pages when it has failed. */
  forget(): void {
    this.#inMemory = undefined
    this.leave()
  }

  /** Remembers nothing any more: another file comes. */
  reset(): void {
    this.#sidecar.reset()
    this.#inMemory = undefined
    this.#layouts = new Map()
  }

  /** Goes away from the file, as between two syncs. */
  leave(): void {
    this.#source?.[Symbol.dispose]()
    this.#source = undefined
  }

  [Symbol.dispose](): void {
    this.leave()
    this.#sidecar[Symbol.dispose]()
  }

  /** What a sync does about schema changes, as far as the sidecar knows of it. */
  #begin(spec: SourceSpec): Map<string, string> {
    const layouts = new Map(
      spec.tables.map(({name, key, keyedBy, withoutRowid}) => [
        name,
        JSON.stringify([key, keyedBy, withoutRowid]),
      ]),
    )
    for (const [name, layout] of this.#layouts) {
      if (!layouts.has(name)) this.#sidecar.forget(name)
      else if (layouts.get(name) !== layout) this.#sidecar.setAdrift(name)
    }
    return layouts
  }

  #settle(end: End, result: CaptureResult, finder: PageFinder | undefined, hasNews: boolean): void {
    const sidecar = this.#sidecar
    if (!end.startsWith('settle')) {
      sidecar.abandon()
      return
    }
    // A sync without news leaves the sidecar as it was and keeps the pages.
    if (hasNews || this.#cuts % 2 === 0 || result.spec.tables.length !== this.#layouts.size) {
      const cutId = `cut-${++this.#cuts}`
      sidecar.intend(cutId, result.consistent)
      sidecar.settle(cutId)
    } else {
      this.#cuts++
      sidecar.abandon()
    }
    sidecar.note('cookie', String(result.spec.schemaVersion))
    if (end === 'settle without pages' || finder === undefined) return
    this.#inMemory = finder.learned(result)
    sidecar.savePages(this.#inMemory)
  }
}

/** What a history of one file came to. */
export type Tally = {
  steps: number
  captures: number
  byPages: number
  disturbed: number
  upserts: number
  tombstones: number
}

/** A step that went wrong, and everything that led to it. */
export class PageFuzzError extends Error {
  readonly step: number

  constructor(step: number, message: string, options?: ErrorOptions) {
    super(message, options)
    this.step = step
  }
}

/**
 * Runs one file's history: `steps` of them, or only those given, each from a seed of its own, so that a failure can be
 * replayed with fewer steps.
 *
 * @throws {PageFuzzError} at the first step after which the digests find what the pages have missed.
 */
export async function pageHistory(seed: number, steps: readonly number[], tally: Tally): Promise<void> {
  const dir = mkdtempSync(join(memoryFolder(), 'owsync-pages-'))
  try {
    const file = join(dir, 'app.db')
    const kind = pagedFileOf(chanceOf(seed))
    makePagedFile(file, kind)
    using mirror = new PageMirror(dir, file)
    const chance = steppedChance(seed)
    using writer = new PageWriter(file, chance)
    const log: string[] = []
    for (const step of steps) {
      chance.begin(step)
      try {
        await pageStep({file, mirror, writer, chance, log, tally})
      } catch (error) {
        const happened = log.slice(-12).join('\n')
        throw new PageFuzzError(
          step,
          `seed ${seed}, step ${step}, ${JSON.stringify(kind)}\n${happened}\n${String(error)}`,
          {cause: error},
        )
      }
      tally.steps++
    }
  } finally {
    rmSync(dir, {recursive: true, force: true})
  }
}

type Stage = {
  readonly file: string
  readonly mirror: PageMirror
  readonly writer: PageWriter
  readonly chance: Chance
  readonly log: string[]
  readonly tally: Tally
}

async function pageStep(stage: Stage): Promise<void> {
  const {mirror, writer, chance, log} = stage
  const note = (line: string) => log.push(line)
  if (chance.below(8) === 0) mirror.leave()
  if (chance.below(12) === 0) mirror.restart()
  if (chance.below(60) === 0) {
    mirror.leave()
    writer.close()
    await crash(stage)
    writer.reopen()
  }
  if (chance.below(8) === 0) {
    if (chance.below(3) > 0) mirror.leave()
    writer.reopen()
    note('app reopened')
  }
  for (let n = chance.pick([0, 1, 1, 2, 5]); n > 0; n--) note(writer.transaction())
  if (chance.below(7) === 0) {
    const isAlone = chance.below(2) === 0
    if (isAlone) mirror.leave()
    note(writer.fileChange(isAlone))
  }
  for (let n = chance.pick([0, 0, 0, 1, 1, 2]); n > 0; n--) {
    const by = chance.below(5) === 0 ? 'digests' : 'pages'
    const end = chance.pick([
      'settle',
      'settle',
      'settle',
      'settle without pages',
      'abandon',
      'fail',
    ] as const)
    await disturbedLook(stage, by, end)
  }
  const found = await mirror.look('pages', 'settle')
  count(stage.tally, found)
  note(`pages: ${summary(found)}`)
  const missed = await mirror.look('digests', 'abandon')
  if (missed.upserts.length + missed.tombstones.length + missed.places.length > 0)
    throw new Error(
      `the pages have missed ${summary(missed)}: ${[...missed.upserts, ...missed.tombstones, ...missed.places].slice(0, 5).join('; ')}`,
    )
}

/** A capture while the app goes on committing, at every turn that the capture leaves it. */
async function disturbedLook(stage: Stage, by: 'pages' | 'digests', end: End): Promise<void> {
  const {mirror, writer, chance, log, tally} = stage
  let isOn = true
  const every = chance.pick([1, 1, 2, 3, 8])
  let turn = 0
  const app = async () => {
    while (isOn) {
      await breathe()
      if (++turn % every !== 0) continue
      try {
        log.push(`  during: ${writer.transaction()}`)
      } catch (error) {
        if (!String(error).includes('locked')) throw error
      }
    }
  }
  const writing = app()
  const found = await mirror.look(by, end).finally(() => (isOn = false))
  await writing
  tally.disturbed++
  log.push(`disturbed, by ${by}, ${end}: ${summary(found)}`)
}

/** The app dies in the middle of a write; whoever opens the file next puts it right. */
async function crash({file, chance, log}: Stage): Promise<void> {
  const child = spawn(
    process.execPath,
    [import.meta.resolve('./page-writer.ts').slice(7), file, String(chance.below(2 ** 30)), 'crash'],
    {
      stdio: ['ignore', 'ignore', 'inherit'],
    },
  )
  const [, by] = (await once(child, 'exit')) as [number | null, string | null]
  if (by !== 'SIGKILL') throw new Error(`the app did not die: ${by}`)
  log.push('crashed')
}

/**
 * Captures again and again while another process writes without a pause, then lets it rest: one more capture by pages,
 * and nothing may be missing.
 */
export async function concurrentPages(seed: number, ms: number, tally: Tally): Promise<void> {
  const dir = mkdtempSync(join(memoryFolder(), 'owsync-pages-'))
  const chance = chanceOf(seed)
  let child: ChildProcess | undefined
  try {
    const file = join(dir, 'app.db')
    const kind = pagedFileOf(chance)
    makePagedFile(file, kind)
    {
      using writer = new PageWriter(file, chance)
      for (let i = 0; i < 40; i++) writer.transaction()
    }
    using mirror = new PageMirror(dir, file)
    for (let round = 0; round < 3; round++) {
      child = spawn(
        process.execPath,
        [import.meta.resolve('./page-writer.ts').slice(7), file, String(seed + round), 'forever'],
        {
          stdio: ['pipe', 'pipe', 'inherit'],
        },
      )
      await once(child.stdout!, 'data')
      const until = performance.now() + ms / 3
      while (performance.now() < until) {
        await whenFree(() => mirror.look('pages', chance.below(6) === 0 ? 'abandon' : 'settle'))
        tally.disturbed++
        if (chance.below(6) === 0) mirror.leave()
        await sleep(chance.below(20))
      }
      child.stdin!.end()
      await once(child, 'exit')
      const found = await mirror.look('pages', 'settle')
      count(tally, found)
      const missed = await mirror.look('digests', 'abandon')
      if (missed.upserts.length + missed.tombstones.length + missed.places.length > 0)
        throw new PageFuzzError(
          round,
          `seed ${seed}, round ${round}, ${JSON.stringify(kind)}: the pages have missed ${summary(missed)}: ${[...missed.upserts, ...missed.tombstones, ...missed.places].slice(0, 5).join('; ')}`,
        )
    }
  } finally {
    child?.kill('SIGKILL')
    rmSync(dir, {recursive: true, force: true})
  }
}

/** A writer that never rests can keep a reader out: the sync says so and comes again. */
async function whenFree(look: () => Promise<Look>): Promise<void> {
  try {
    await look()
  } catch (error) {
    const code = error instanceof Error && 'code' in error ? error.code : undefined
    if (code !== 'SYNC_SOURCE_BUSY' && code !== 'SYNC_SCHEMA_MOVED') throw error
  }
}

/** The fewest steps that still fail, found by leaving out ever smaller parts. */
export async function shrink(
  seed: number,
  steps: readonly number[],
  mostRuns: number,
): Promise<readonly number[]> {
  let kept = [...steps]
  let runs = 0
  for (let size = Math.ceil(kept.length / 2); size >= 1 && runs < mostRuns; size = Math.floor(size / 2)) {
    for (let at = kept.length - size; at >= 0 && runs < mostRuns; at -= size) {
      const fewer = kept.toSpliced(at, size)
      runs++
      if (fewer.length > 0 && (await fails(seed, fewer))) kept = fewer
    }
  }
  return kept
}

async function fails(seed: number, steps: readonly number[]): Promise<boolean> {
  try {
    await pageHistory(seed, steps, newTally())
    return false
  } catch {
    return true
  }
}

/** What one process runs of a fuzz: every `stride`th world from `first` on. */
type Share = {readonly seed: number; readonly steps: number; readonly first: number; readonly stride: number}

/**
 * Runs histories of many files until so many steps are done, in a process a core.
 *
 * @throws what a process has said of a history that failed, made small before it is told.
 */
export async function fuzzPages(seed: number, steps: number): Promise<Tally> {
  const stride = availableParallelism()
  const tally = newTally()
  await together(
    signal,
    ...Array.from({length: stride}, (_, first) => async (signal: AbortSignal) => {
      const done = await fuzzProcess({seed, steps: Math.ceil(steps / stride), first, stride}, signal)
      for (const name of Object.keys(tally) as (keyof Tally)[]) tally[name] += done[name]
    }),
  )
  return tally
}

async function fuzzProcess(share: Share, signal: AbortSignal): Promise<Tally> {
  // Its standard input ends with this process, however that goes.
  const child = spawn(
    process.execPath,
    [import.meta.resolve('./page-fuzz.ts').slice(7), JSON.stringify(share)],
    {stdio: ['pipe', 'pipe', 'pipe'], signal},
  )
  const [out, said, [code, by]] = await Promise.all([
    text(child.stdout),
    text(child.stderr),
    once(child, 'close') as Promise<[number | null, string | null]>,
  ])
  if (code !== 0) throw new Error(`a process of the fuzz ended with ${code ?? by}: ${said}`)
  return JSON.parse(out) as Tally
}

/** Histories that one process runs at a time: while one waits for a lock or for a crash, another goes on. */
const AT_ONCE = 2
const STEPS_PER_FILE = 60

async function fuzzShare({seed, steps, first, stride}: Share, end: AbortSignal): Promise<Tally> {
  const tally = newTally()
  const all = Array.from({length: STEPS_PER_FILE}, (_, i) => i)
  let world = first
  const lane = async (signal: AbortSignal) => {
    while (tally.steps < steps && !signal.aborted) {
      const worldSeed = (seed + world * 7_919) % 2 ** 31
      world += stride
      try {
        await pageHistory(worldSeed, all, tally)
      } catch (error) {
        if (!(error instanceof PageFuzzError)) throw error
        const small = await shrink(worldSeed, all.slice(0, error.step + 1), 60)
        throw new Error(`${error.message}\nreplay: pageHistory(${worldSeed}, ${JSON.stringify(small)})`, {
          cause: error,
        })
      }
    }
  }
  await together(end, ...Array<typeof lane>(AT_ONCE).fill(lane))
  return tally
}

export function newTally(): Tally {
  return {steps: 0, captures: 0, byPages: 0, disturbed: 0, upserts: 0, tombstones: 0}
}

function count(tally: Tally, {result, upserts, tombstones}: Look): void {
  tally.captures++
  if (!result.comparedAll) tally.byPages++
  tally.upserts += upserts.length
  tally.tombstones += tombstones.length
}

function summary({upserts, tombstones, places}: Look): string {
  return `${upserts.length} upserts, ${tombstones.length} tombstones, ${places.length} places`
}

/** Random numbers that depend on the step alone, whatever steps were taken before it. */
function steppedChance(seed: number): Chance & {begin(step: number): void} {
  let chance = chanceOf(seed)
  return {
    begin: step => (chance = chanceOf((seed + step * 104_729) % 2 ** 31)),
    below: n => chance.below(n),
    pick: values => chance.pick(values),
  }
}

// In a process of its own: a share of a fuzz.
if (import.meta.main) {
  const end = new AbortController()
  process.stdin
    .on('end', () => {
      end.abort()
    })
    .resume()
    .unref()
  const tally = await fuzzShare(JSON.parse(process.argv[2] ?? '') as Share, end.signal)
  process.stdout.write(JSON.stringify(tally))
}
