import {join} from 'node:path'
import {setTimeout as sleep} from 'node:timers/promises'
import type {RestoreResult} from '../restore/restore.ts'
import {json, type Tx} from '../postgres/sql.ts'
import {compareContent} from '../sample/differences.ts'
import {generate} from '../sample/generate.ts'
import type {Writer} from '../sample/writer.ts'
import {awaitLeader, demoRoles, readLeader, type DemoNode} from './demo-nodes.ts'
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
const PATIENCE_MS = 30_000
/** A lost connection: exit code 75 says that the same command will do later. */
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

  async nodes(scene) {
    for (const role of demoRoles) scene.nodes.push(scene.demo.startNode(role))
    const {leader, epoch} = await scene.until('a node leads', signal =>
      awaitLeader(scene.demo.owner, () => true, signal),
    )
    return `${leader} leads with epoch ${epoch}, the other node stands by`
  },

  async 'full-sync'(scene) {
    const settings = {sqlite_path: scene.file, sync_schedule: 'live', sync_enabled: true}
    await scene.demo.host`select sync_metadata.register_deployment(${DEMO_CLIENT}, ${json(settings)})`
    const {upserted} = await scene.synced(cut => cut.generation >= 1n)
    hold(upserted > 0, 'nothing was copied')
    return `the client is registered, and the leader copies ${count(upserted)} rows`
  },

  async 'live-changes'(scene) {
    const before = await scene.cuts()
    scene.writer = scene.demo.startWriter(scene.file, WRITER_RATE)
    await sleep(LIVE_MS, undefined, {signal: scene.signal})
    const {generation, upserted, tombstoned} = await scene.synced(
      cut => cut.upserted > before.upserted && cut.tombstoned > before.tombstoned,
    )
    const {writes} = scene.writer.totals()
    hold(writes > 0, 'the writer wrote nothing')
    const rows = {upserted: upserted - before.upserted, tombstoned: tombstoned - before.tombstoned}
    return `a writer uses the file, ${writes} transactions so far; ${generation - before.generation} cuts followed it: ${changesOf(rows)}`
  },

  async kill(scene) {
    const before = await scene.cuts()
    const {leader, epoch} = await readLeader(scene.demo.owner)
    const node = scene.nodes.find(({nodeId}) => nodeId === leader)
    hold(node !== undefined, 'nobody leads')
    await scene.demo.owner.begin(async tx => {
      // A cut ends by moving the generation. Held here, everything else of it is written, and nothing is committed.
      await tx`select from sync_metadata.client_deployments for no key update`
      await scene.until('a sync comes to its commit', signal => heldUp(tx, signal))
      node.kill()
      scene.killedAt = performance.now()
      // Of this one cut the fate is to be known: the lock is kept until the next leader has the lease.
      scene.next = await scene.until('the other node leads', signal =>
        awaitLeader(scene.demo.owner, seen => seen.leader !== leader, signal),
      )
      scene.tookMs = performance.now() - scene.killedAt
      hold((await scene.cuts()).generation === before.generation, 'a killed leader has committed')
    })
    return `${node.nodeId}, the leader of epoch ${epoch}, was killed (SIGKILL) with a cut written and not committed`
  },

  async takeover(scene) {
    const {leader, epoch} = scene.next
    const {locked, worst_ms} = await scene.writer.stop()
    hold(locked === 0, `the writer was refused the file ${locked} times`)
    const {generation} = await scene.cuts()
    const cut = await scene.synced(cut => cut.generation > generation || cut.epoch === epoch)
    hold(cut.epoch === epoch, `a cut of epoch ${cut.epoch} came after epoch ${epoch} had begun`)
    return `${leader} led with epoch ${epoch} after ${Math.ceil(scene.tookMs)} ms and goes on; the writer never waited longer than ${Math.ceil(worst_ms)} ms`
  },

  async verify(scene) {
    // The last of what the writer did may be on its way.
    const rest = (found: Verified) => found.differences.length + found.pending + found.moving
    let found = await scene.owsync<Verified>('verify')
    for (let left = TRIES; left > 0 && found.differences.length === 0 && rest(found) > 0; left--) {
      await sleep(1_000, undefined, {signal: scene.signal})
      found = await scene.owsync<Verified>('verify')
    }
    const {rows_compared} = found
    hold(rows_compared > 0 && rest(found) === 0, 'the two sides are not equal')
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
 * Tells the story once and yields each step when it is over: synced by two nodes, verified and restored by the commands that a
 * person would type. However it ends, nothing is left of it: no process, no database, no file.
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

/** Resolves when a sync waits for `tx`, which holds what it ends with. */
async function heldUp(tx: Tx, signal: AbortSignal): Promise<void> {
  for (;;) {
    const [row] = await tx<{isHeldUp: boolean}>`
      select exists (
        select from pg_locks where not granted and transactionid = pg_current_xact_id()::xid) as "isHeldUp"`
    if (row?.isHeldUp === true) return
    await sleep(5, undefined, {signal})
  }
}

/** The cuts of the demo's client so far, and the epoch of the last one. */
type Cuts = {
  readonly generation: bigint
  readonly epoch: bigint
  readonly upserted: number
  readonly tombstoned: number
}

/** What the steps share. */
class Scene implements AsyncDisposable {
  readonly stateDir: string
  readonly signal: AbortSignal
  readonly resources = new AsyncDisposableStack()
  readonly nodes: DemoNode[] = []
  killedAt = 0
  tookMs = 0
  next: {readonly leader: string; readonly epoch: bigint} = {leader: '', epoch: 0n}
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

  async cuts(): Promise<Cuts> {
    const [row] = await this.demo.owner<Cuts>`
      select coalesce(max(generation), 0) as generation,
        coalesce((array_agg(epoch order by generation desc))[1], 0) as epoch,
        coalesce(sum(rows_upserted), 0)::float8 as upserted, coalesce(sum(rows_tombstoned), 0)::float8 as tombstoned
      from sync_metadata.sync_jobs where generation is not null`
    return row ?? {generation: 0n, epoch: 0n, upserted: 0, tombstoned: 0}
  }

  /** Waits until the nodes have synced so far. */
  async synced(isEnough: (cuts: Cuts) => boolean): Promise<Cuts> {
    return await this.until('the leader syncs', async signal => {
      for (;;) {
        const cuts = await this.cuts()
        if (isEnough(cuts)) return cuts
        await sleep(50, undefined, {signal})
      }
    })
  }

  /** @throws Error when it does not come to that in time. */
  async until<T>(what: string, wait: (signal: AbortSignal) => Promise<T>): Promise<T> {
    const late = AbortSignal.timeout(PATIENCE_MS)
    try {
      return await wait(AbortSignal.any([this.signal, late]))
    } catch (error) {
      this.signal.throwIfAborted()
      if (!late.aborted) throw error
      throw new Error(`in ${PATIENCE_MS / 1_000} s it has not come to this: ${what}`, {cause: error})
    }
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

function changesOf({upserted, tombstoned}: Pick<Cuts, 'upserted' | 'tombstoned'>): string {
  return `${count(upserted)} rows changed, ${count(tombstoned)} deleted`
}

function count(number: number): string {
  return number.toLocaleString('en-US')
}
