import {join} from 'node:path'
import {setTimeout as sleep} from 'node:timers/promises'
import type {RestoreResult} from '../restore/restore.ts'
import type {Tx} from '../postgres/sql.ts'
import {compareContent} from '../sample/differences.ts'
import {generate} from '../sample/generate.ts'
import type {Writer} from '../sample/writer.ts'
import type {SyncResult} from '../sync/sync.ts'
import {DEMO_CLIENT, DemoFailedError, demoSample, openDemo, type Demo, type Ending} from './demo.ts'

/** One step of the story, when it is over. `said` is what happened, for a person. */
export type Step = {
  readonly step: StepName
  readonly ok: boolean
  readonly ms: number
  readonly said: string
}

/** How long the writer has the file to itself before what it did is synced. */
const LIVE_MS = 2_000
/** Actions a second: a busy office. */
const WRITER_RATE = 25
const CRASH_WITHIN_MS = 20_000
/** A busy file, a lost connection: exit code 75 says that the same command will do later. */
const TRY_AGAIN = 'ended with 75'
const TRIES = 3

/** The steps in their order. Each returns what happened, or throws when it did not hold. */
const steps = {
  async postgres(scene) {
    scene.demo = scene.resources.use(await openDemo(scene.stateDir, scene.signal))
    return `${scene.demo.server}, with a database of its own`
  },

  sample(scene) {
    const {rows, sizeBytes} = generate(scene.file, demoSample)
    const size = `${count(rows)} rows, ${(sizeBytes / 1e6).toFixed(1)} MB`
    return Promise.resolve(`a file as Open WebUI ${demoSample.version} has it: ${size}`)
  },

  async 'full-sync'(scene) {
    const {rows, tables} = await scene.owsync<SyncResult>('sync', '--sqlite', scene.file)
    hold(rows.upserted > 0, 'nothing was copied')
    return `${count(rows.upserted)} rows in ${tables} tables copied`
  },

  async 'live-changes'(scene) {
    scene.writer = scene.demo.startWriter(scene.file, WRITER_RATE)
    await sleep(LIVE_MS, undefined, {signal: scene.signal})
    const {writes} = scene.writer.totals()
    hold(writes > 0, 'the writer wrote nothing')
    return `a writer has begun to use the file: ${writes} transactions, and it goes on`
  },

  async sync(scene) {
    const {rows} = await scene.owsync<SyncResult>('sync')
    hold(
      rows.upserted > 0 && rows.tombstoned > 0,
      'the writer changed and deleted rows, and the sync saw none',
    )
    return `${changesOf(rows)}, while the writer wrote`
  },

  async crash(scene) {
    const before = await scene.generation()
    await scene.demo.owner.begin(async tx => {
      // A cut ends by moving the generation. Held here, everything else of it is written, and nothing is committed.
      await tx`select from sync_metadata.client_deployments for no key update`
      await killHeldUp(scene, tx, performance.now() + CRASH_WITHIN_MS)
    })
    hold((await scene.generation()) === before, 'a killed sync has committed')
    return 'a sync was killed (SIGKILL) with everything written but not committed'
  },

  async recover(scene) {
    const {locked, worst_ms} = await scene.writer.stop()
    hold(locked === 0, `the writer was refused the file ${locked} times`)
    const {rows} = await scene.owsync<SyncResult>('sync')
    hold(rows.upserted + rows.tombstoned > 0, 'what the killed sync had not committed is missing')
    return `the next sync: ${changesOf(rows)}; the writer never waited longer than ${Math.ceil(worst_ms)} ms`
  },

  async verify(scene) {
    const found = await scene.owsync<Verified>('verify')
    const {rows_compared, differences, pending, moving} = found
    hold(rows_compared > 0 && differences.length + pending + moving === 0, 'the two sides are not equal')
    return `${count(rows_compared)} rows compared by digest, computed on both sides: equal`
  },

  async restore(scene) {
    const {rows, tables} = await scene.owsync<RestoreResult>('restore', '--to', scene.restored)
    return `${count(rows)} rows in ${tables} tables restored to a new file`
  },

  compare(scene) {
    const {tables, rows, differences} = compareContent(scene.file, scene.restored)
    hold(rows > 0 && differences.length === 0, `the restored file is not the same: ${differences.join('; ')}`)
    const what = `${count(rows)} rows in ${tables} tables of both files`
    return Promise.resolve(`${what} compared by SQLite itself: equal in value and storage class`)
  },
} as const satisfies Record<string, (scene: Scene) => Promise<string>>

export type StepName = keyof typeof steps

/** What `owsync verify --json` prints, as far as the story asks. */
type Verified = {
  readonly rows_compared: number
  readonly differences: readonly unknown[]
  readonly pending: number
  readonly moving: number
}

/**
 * Tells the story once and yields each step when it is over: synced, verified and restored by the commands that a person
 * would type. However it ends, nothing is left of it: no process, no database, no file.
 *
 * @param onBegin called when a step begins.
 * @throws {DemoFailedError} after the step that did not hold; the signal's reason when it was stopped.
 */
export async function* demoStory(
  stateDir: string,
  onBegin: (step: StepName) => void,
  signal: AbortSignal,
): AsyncGenerator<Step> {
  await using scene = new Scene(stateDir, signal)
  for (const step of Object.keys(steps) as StepName[]) {
    onBegin(step)
    const since = performance.now()
    let said: string
    let failure: DemoFailedError | undefined
    try {
      said = await steps[step](scene)
    } catch (error) {
      signal.throwIfAborted()
      failure = new DemoFailedError(step, error)
      said = failure.message
    }
    yield {step, ok: failure === undefined, ms: Math.round(performance.now() - since), said}
    if (failure) throw failure
    signal.throwIfAborted()
  }
}

/** Starts a sync and kills it as soon as it waits for `tx`. */
async function killHeldUp(scene: Scene, tx: Tx, deadline: number): Promise<void> {
  const sync = scene.demo.start(['sync', '--client', DEMO_CLIENT])
  const ended: Ending[] = []
  void sync.ended.then(ending => ended.push(ending))
  try {
    while (ended.length === 0) {
      const [row] = await tx<{isHeldUp: boolean}>`
        select exists (
          select from pg_locks where not granted and transactionid = pg_current_xact_id()::xid) as "isHeldUp"`
      if (row?.isHeldUp === true) return
      hold(performance.now() < deadline, 'the sync that was to be killed did not come to its commit')
      await sleep(5, undefined, {signal: scene.signal})
    }
  } finally {
    sync.kill()
    await sync.ended
  }
  const {how, out, err} = await sync.ended
  hold(how === TRY_AGAIN, `the sync that was to be killed ${how}: ${out}${err}`)
  await killHeldUp(scene, tx, deadline)
}

/** What the steps share. */
class Scene implements AsyncDisposable {
  readonly stateDir: string
  readonly signal: AbortSignal
  readonly resources = new AsyncDisposableStack()
  #demo: Demo | undefined
  #writer: Writer | undefined

  constructor(stateDir: string, signal: AbortSignal) {
    this.stateDir = stateDir
    this.signal = signal
  }

  get demo(): Demo {
    return present(this.#demo)
  }

  set demo(demo: Demo) {
    this.#demo = demo
  }

  get writer(): Writer {
    return present(this.#writer)
  }

  set writer(writer: Writer) {
    this.#writer = writer
  }

  get file(): string {
    return join(this.demo.folder, 'webui.db')
  }

  get restored(): string {
    return join(this.demo.folder, 'restored.db')
  }

  async generation(): Promise<bigint | undefined> {
    const [row] = await this.demo.owner<{generation: bigint}>`
      select generation from sync_metadata.client_deployments`
    return row?.generation
  }

  /** Runs `owsync` for the demo's client to its end, again when it asks for that. @returns the document it printed. */
  async owsync<T>(command: string, ...args: readonly string[]): Promise<T> {
    for (let left = TRIES - 1; ; left--) {
      const {how, out, err} = await this.#ended([command, '--client', DEMO_CLIENT, ...args])
      this.signal.throwIfAborted()
      if (how === TRY_AGAIN && left > 0) continue
      const line = out.trimEnd().split('\n').at(-1) ?? ''
      const document = (line.startsWith('{') ? JSON.parse(line) : {}) as {
        error?: {message: string}
        reason?: string
      }
      const because = document.error?.message ?? document.reason ?? (err === '' ? line : err)
      hold(how === 'ended with 0', `owsync ${command} ${how}: ${because}`)
      return document as T
    }
  }

  async #ended(args: readonly string[]): Promise<Ending> {
    this.signal.throwIfAborted()
    const program = this.demo.start(args)
    this.signal.addEventListener('abort', program.kill)
    try {
      return await program.ended
    } finally {
      this.signal.removeEventListener('abort', program.kill)
    }
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.resources.disposeAsync()
  }
}

function hold(isSo: boolean, otherwise: string): asserts isSo {
  if (!isSo) throw new Error(otherwise)
}

function present<T>(made: T | undefined): T {
  if (made === undefined) throw new Error('an earlier step of the demo makes this')
  return made
}

function changesOf({upserted, tombstoned}: SyncResult['rows']): string {
  return `${count(upserted)} rows changed, ${count(tombstoned)} deleted`
}

function count(number: number): string {
  return number.toLocaleString('en-US')
}
