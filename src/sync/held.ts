import {realpathSync} from 'node:fs'
import {isWal} from '../source/capture.ts'
import {openSource, type Source} from '../source/open.ts'
import type {PageState} from '../source/page-state.ts'
import type {Written, WrittenRow} from './conflicts.ts'
import {Sidecar} from './sidecar.ts'

/** Pages of a source as the last cut knew them, in memory. */
export type KeptPages = {state: PageState | undefined}

/** What a sync of one deployment has open, and may keep open for the next one: the sidecar, the source and its pages. */
export class Held implements Disposable {
  readonly pages: KeptPages
  /** Of the source in this run, also of one that could not be opened. */
  readonly lock: Source['lock'] = {busyRetries: 0, maxHoldMs: 0}
  #written = new Map<string, ReadonlyMap<string, WrittenRow>>()
  readonly #stateDir: string
  readonly #deploymentId: string
  #sidecar: Sidecar | undefined
  #source: Source | undefined

  constructor(stateDir: string, deploymentId: string, pages: KeptPages = {state: undefined}) {
    this.#stateDir = stateDir
    this.#deploymentId = deploymentId
    this.pages = pages
  }

  get sidecar(): Sidecar {
    return (this.#sidecar ??= Sidecar.open(this.#stateDir, this.#deploymentId))
  }

  /** The source, if it is open. */
  get openSource(): Source | undefined {
    return this.#source
  }

  /** Rows that were written to the source and that no cut has met there yet. */
  get written(): Written {
    return this.#written
  }

  noteWritten(written: Written): void {
    for (const [table, rows] of written)
      this.#written.set(table, new Map([...(this.#written.get(table) ?? []), ...rows]))
  }

  /** A cut has met them. */
  forgetWritten(): void {
    this.#written = new Map()
  }

  /** Opens the source, unless it is open and still the file that has this name. What is said of locks counts from 0. */
  async source(path: string, signal: AbortSignal): Promise<Source> {
    this.forgetLock()
    if (this.#source === undefined || !isOf(path, this.#source)) {
      // Before the other one is opened: closing any descriptor of a file drops all of this process's locks on it.
      this.closeSource()
      this.#source = await openSource(path, signal, this.lock)
    }
    return this.#source
  }

  /** What is said of locks counts from 0. */
  forgetLock(): void {
    Object.assign(this.lock, {busyRetries: 0, maxHoldMs: 0})
  }

  closeSource(): void {
    this.#source?.[Symbol.dispose]()
    this.#source = undefined
  }

  /**
   * Between two runs a source is kept open only in rollback-journal mode, where that holds no lock. In WAL mode every
   * open connection has one: the app could not leave WAL mode, and would leave its last commits in the log when it stops.
   */
  rest(): void {
    if (this.#source === undefined) return
    if (!isAtRest(this.#source)) this.closeSource()
    // SQLite keeps pages while the file's header says that nobody has changed them, and so may a file copied over it.
    else this.#source.db.exec('pragma shrink_memory')
  }

  /** Gives back the memory that makes the next run faster, but the pages. */
  shrink(): void {
    this.#sidecar?.shrink()
    this.#source?.db.exec('pragma shrink_memory')
  }

  /** Removes a damaged sidecar; the next use builds it anew. */
  removeSidecar(): void {
    this.#closeSidecar()
    Sidecar.remove(this.#stateDir, this.#deploymentId)
  }

  /** Closes everything; the next use opens it again. */
  [Symbol.dispose](): void {
    this.closeSource()
    this.#closeSidecar()
  }

  #closeSidecar(): void {
    this.#sidecar?.[Symbol.dispose]()
    this.#sidecar = undefined
  }
}

function isAtRest(source: Source): boolean {
  try {
    return !isWal(source)
  } catch {
    return false // locked just now; the run is over, and the next one opens it again
  }
}

function isOf(path: string, source: Source): boolean {
  try {
    return realpathSync(path) === source.file && !source.isReplaced()
  } catch {
    return false // no longer there: opening it says what is wrong
  }
}
