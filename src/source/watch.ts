import {watch, type BigIntStats, type FSWatcher} from 'node:fs'
import {realpath, stat} from 'node:fs/promises'
import {basename, dirname, join, resolve} from 'node:path'
import {setTimeout as sleep} from 'node:timers/promises'
import type {Log} from '../telemetry/log.ts'
import {decide, usualPatience, type Patience, type Sight} from './debounce.ts'

/** A source may have changed. */
export type Hint = {
  /** The changes that this hint is about are not older: `performance.now()` at their first sign. */
  readonly since: number
}

/** Watches one source until the signal aborts; its reason is then thrown. */
export type WatchSource = (path: string, signal: AbortSignal) => AsyncGenerator<Hint, never>

/**
 * Makes a watcher of sources. It says at once that a source may have changed, and again soon after each commit, never
 * more often than it is listened to. It opens no file, so it disturbs no lock of anybody; whether something has changed
 * is for the gate of a session to say.
 *
 * What it hears comes from the folder: SQLite writes the file or its `-wal` with every commit. Nothing it hears is
 * needed: it also looks at the two now and then, and often where the file system tells nothing.
 */
export function sourceWatcher(log: Log, patience: Patience = usualPatience): WatchSource {
  let isTold = false
  const cannotHear = (error: unknown) => {
    // Once: the next hundred sources meet the same limit.
    if (!isTold)
      log.warn(
        {err: error, look_ms: patience.deafLookMs},
        'sources cannot be watched, they are looked at instead',
      )
    isTold = true
  }
  return (path, signal) => watchSource(resolve(path), patience, cannotHear, signal)
}

async function* watchSource(
  path: string,
  patience: Patience,
  cannotHear: (error: unknown) => void,
  signal: AbortSignal,
): AsyncGenerator<Hint, never> {
  using ear = new Ear(path, cannotHear)
  let lookedAt = performance.now()
  await ear.look()
  ear.note(lookedAt)
  let seen: Seen = {print: 'never seen', ageMs: 0, at: lookedAt}
  for (;;) {
    signal.throwIfAborted()
    const now = performance.now()
    const step = decide({now, lookedAt, signs: ear.signs, isDeaf: ear.isDeaf}, patience)
    switch (step.do) {
      case 'wait':
        await ear.pause(step.ms, signal)
        break
      case 'look': {
        lookedAt = now
        const isChanged = (await ear.look()).print !== seen.print
        if (isChanged) await ear.blameSilence(signal)
        if (ear.signs !== undefined) break
        if (isChanged) ear.note(seen.at)
        // Where we hear, a change without a trace would most likely have been heard: this one is not as old as it could be.
        else if (seen.ageMs < COARSEST_GRAIN_MS) ear.note(ear.isDeaf ? seen.at : now)
        break
      }
      case 'tell': {
        const {since, isHearsay} = ear.take()
        const before = seen
        // Before whoever listens reads the file: what happens from now on is another change.
        seen = await ear.see()
        // Opening a file as root, SQLite sets its log's owner anew: we hear of our own reads.
        if (isHearsay && seen.print === before.print && before.ageMs >= GRAIN_MS) break
        yield {since}
      }
    }
  }
}

/** Where the source's files are: beside the real one, when the path leads over links. */
type Place = {readonly folder: string; readonly name: string; readonly folderId: string}

/** What could be seen of a source from outside at an instant, and how long it had not been written to by then. */
type Seen = {readonly print: string; readonly ageMs: number; readonly at: number}

// Times of files have a grain: one that had just been written to when it was seen may have changed once more without a
// trace. The kernel's grain is ten milliseconds at most, FAT counts in steps of two seconds.
const GRAIN_MS = 100
const COARSEST_GRAIN_MS = 2_000
/** How long the news of a change may be on its way to us. */
const NEWS_MS = 50

/** Listens to the folder of one source. */
class Ear implements Disposable {
  readonly #path: string
  readonly #cannotHear: (error: unknown) => void
  #place: Place | undefined
  #watcher: FSWatcher | undefined
  #heardAt = -Infinity
  /** Something happened and nothing was heard of it: this file system does not tell. */
  #isMute = false
  #signs: Sight['signs']
  #isHearsay = true
  #wake: () => void = () => undefined

  constructor(path: string, cannotHear: (error: unknown) => void) {
    this.#path = path
    this.#cannotHear = cannotHear
  }

  get signs(): Sight['signs'] {
    return this.#signs
  }

  get isDeaf(): boolean {
    return this.#watcher === undefined || this.#isMute
  }

  /** Notes a sign of a change that is not older than `since`, and was not only heard of. */
  note(since: number): void {
    this.#isHearsay = false
    this.#sign(since)
  }

  #sign(since: number): void {
    const lastAt = performance.now()
    if (this.#signs === undefined) this.#wake()
    this.#signs = {firstAt: Math.min(since, this.#signs?.firstAt ?? Infinity), lastAt}
  }

  /** Begins to wait for new signs. @returns when the first one came, and whether all of them were only heard. */
  take(): {readonly since: number; readonly isHearsay: boolean} {
    const taken = {since: this.#signs?.firstAt ?? performance.now(), isHearsay: this.#isHearsay}
    this.#signs = undefined
    this.#isHearsay = true
    return taken
  }

  /** Waits for a first sign, or for the end of our hearing, but not longer than `ms`. */
  async pause(ms: number, signal: AbortSignal): Promise<void> {
    const woken = new AbortController()
    this.#wake = () => {
      woken.abort()
    }
    const either = AbortSignal.any([signal, woken.signal])
    await sleep(ms, undefined, {signal: either}).catch(() => undefined)
  }

  /** Sees to it that we listen where the source is now, and looks at it. */
  async look(): Promise<Seen> {
    const place = await placeOf(this.#path)
    const isElsewhere = JSON.stringify(place) !== JSON.stringify(this.#place)
    if (isElsewhere) this.#close()
    this.#place = place
    if (place !== undefined && this.#watcher === undefined) this.#listen(place)
    return await this.see()
  }

  async see(): Promise<Seen> {
    const at = performance.now()
    return this.#place === undefined
      ? {print: 'no folder', ageMs: Infinity, at}
      : {...(await printOf(this.#place)), at}
  }

  /** Something happened: unless we hear of it now, this file system does not tell. */
  async blameSilence(signal: AbortSignal): Promise<void> {
    if (this.isDeaf || this.#signs !== undefined) return
    const before = this.#heardAt
    await this.pause(NEWS_MS, signal)
    if (this.#heardAt > before || this.#watcher === undefined || signal.aborted) return
    this.#isMute = true
    this.#cannotHear(new Error(`${this.#path} has changed, and the file system did not tell`))
  }

  #listen({folder, name}: Place): void {
    const isOurs = (kind: string, changed: string) =>
      changed === name ||
      changed === `${name}-wal` ||
      // It comes and goes with a transaction. Its content says nothing that the file does not say.
      (changed === `${name}-journal` && kind === 'rename')
    try {
      this.#watcher = watch(folder, (kind, changed) => {
        const isGone = kind === 'rename' && changed === basename(folder)
        // The folder has gone or moved: what has its name now is found by looking.
        if (isGone) this.#close()
        if (isGone || changed === null || isOurs(kind, changed)) this.#hear()
      })
    } catch (error) {
      if (codeOf(error) !== 'ENOENT') this.#cannotHear(error)
      return
    }
    this.#watcher.on('error', error => {
      this.#close()
      this.#cannotHear(error)
    })
    // Nobody knows what happened while nobody listened.
    this.note(performance.now())
  }

  #hear(): void {
    this.#heardAt = performance.now()
    this.#isMute = false
    this.#sign(this.#heardAt)
  }

  #close(): void {
    this.#watcher?.close()
    this.#watcher = undefined
    this.#wake()
  }

  [Symbol.dispose](): void {
    this.#close()
  }
}

/** @returns `undefined` while there is no such folder. */
async function placeOf(path: string): Promise<Place | undefined> {
  const file = await realpath(path).catch(() => undefined)
  const folder = file === undefined ? await realpath(dirname(path)).catch(() => undefined) : dirname(file)
  const own = folder === undefined ? undefined : await statOf(folder)
  if (folder === undefined || own === undefined) return undefined
  return {folder, name: basename(file ?? path), folderId: `${own.dev}:${own.ino}`}
}

async function printOf({folder, name}: Place): Promise<Omit<Seen, 'at'>> {
  const [own, log] = await Promise.all([statOf(join(folder, name)), statOf(join(folder, `${name}-wal`))])
  const times = [own?.mtimeMs, own?.ctimeMs, log?.mtimeMs].map(ms => Number(ms ?? 0))
  return {
    // With `ctime`, because whoever copies over a file may set back its `mtime`. Not that of the log, which our own reads
    // change.
    print: [traceOf(own), own?.ctimeNs, traceOf(log)].join(),
    ageMs: Date.now() - Math.max(...times),
  }
}

function traceOf(found: BigIntStats | undefined): string {
  return found ? [found.dev, found.ino, found.size, found.mtimeNs].join(':') : 'none'
}

/** What cannot be seen is as good as not there: a run says why. */
async function statOf(path: string): Promise<BigIntStats | undefined> {
  return await stat(path, {bigint: true}).catch(() => undefined)
}

function codeOf(error: unknown): unknown {
  return error instanceof Error && 'code' in error ? error.code : undefined
}
