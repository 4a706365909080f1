import type {SourceSchema} from '../core/layout.ts'
import {readDataVersion} from '../source/introspect.ts'
import {look, type Look} from '../source/look.ts'
import type {Source} from '../source/open.ts'
import {findDeployment, UnknownClientError, type Deployment} from '../state/deployments.ts'
import type {Log} from '../telemetry/log.ts'
import {Held} from './held.ts'
import {lockOf} from './report.ts'
import {syncHeld, unchangedSince, type SyncResult, type SyncRun} from './sync.ts'

/** Which deployment a session is for. */
export type Place = {
  readonly stateDir: string
  readonly deploymentId: string
  readonly clientName: string
  readonly schemaName: string
}

/** What one run within a session is given: the rest it knows. */
export type SessionRun = Omit<SyncRun, 'stateDir' | 'deployment' | 'pages' | 'knownSchema' | 'written'> & {
  readonly log?: Log
  /** Of the deployment's settings: what was known of others holds no more. */
  readonly settingsVersion?: bigint
  /** Called with what a run that fails tells of its locks: it has no result to tell it. */
  readonly onFailedLock?: (lock: SyncResult['lock']) => void
}

/**
 * One deployment held open between its runs: its lock, its sidecar, what the pages of its source look like and, in
 * rollback-journal mode, the source itself. So the next run asks neither Postgres nor the disk for what is known, and an
 * unchanged file costs some microseconds.
 *
 * What is known holds for one epoch: whoever has the lease and the lock is the only one who changes it.
 */
export class Session implements Disposable {
  readonly #place: Place
  readonly #lock: Disposable
  readonly #held: Held
  #known: Known | undefined
  #settled: Settled | undefined

  /** @param lock the deployment's (lock.ts), which goes with the session. */
  constructor(place: Place, lock: Disposable) {
    this.#place = place
    this.#lock = lock
    this.#held = new Held(place.stateDir, place.deploymentId)
  }

  /** About how much memory the pages of the source take, in bytes; {@link forgetPages} gives it back. */
  get pageBytes(): number {
    const {state} = this.#held.pages
    // What is known of interior pages is about as much again as the arrays.
    return state === undefined
      ? 0
      : 2 * (state.hashes.byteLength + state.up.byteLength + state.kinds.byteLength)
  }

  /**
   * The gate: the result of the last run once more, when nothing has happened since that it does not know of. Neither
   * Postgres nor a row is asked.
   */
  unchanged(run: SessionRun): SyncResult | undefined {
    const settled = this.#settled
    if (settled === undefined || run.full || run.dryRun || run.accept || run.marks === true) return undefined
    if (settled.path !== run.sqlitePath || settled.epoch !== run.lease.epoch) return undefined
    if (settled.settingsVersion !== run.settingsVersion) return undefined
    if (Date.now() >= settled.auditAt) return undefined
    const source = this.#held.openSource
    const now = look(run.sqlitePath, source === undefined)
    if (now === undefined || now.file !== settled.look.file) return undefined
    const isSame =
      source === undefined
        ? now.content !== undefined && now.content === settled.look.content
        : dataVersionOf(source) === settled.dataVersion
    return isSame ? again(settled.result) : undefined
  }

  /** The same of the last run of any process, as the sidecar knows it; see {@link unchangedSince}. */
  unchangedSince(deployment: Deployment, path: string): SyncResult | undefined {
    return unchangedSince(deployment, path, this.#held)
  }

  /**
   * One sync, behind the gate or not. After a failure everything is closed but the lock: the next run begins anew.
   *
   * @throws {UnknownClientError} when the deployment is gone.
   */
  async run(run: SessionRun, signal: AbortSignal): Promise<SyncResult> {
    const atGate = this.unchanged(run)
    if (atGate !== undefined) return atGate
    const {settingsVersion} = run
    const {epoch} = run.lease
    const isKnown = this.#known?.epoch === epoch && this.#known.settingsVersion === settingsVersion
    const known = isKnown ? this.#known : undefined
    this.#known = undefined
    this.#settled = undefined
    // A run that fails before it comes to the source has nothing to tell of the last one's locks.
    this.#held.forgetLock()
    try {
      const {stateDir, schemaName, clientName} = this.#place
      const deployment = known?.deployment ?? (await findDeployment(run.pool, schemaName))
      if (deployment === undefined) throw new UnknownClientError(clientName)
      // Before anything is read: what happens from now on will show.
      const seen = look(run.sqlitePath, this.#held.openSource === undefined)
      const outcome = await syncHeld(
        {...run, stateDir, deployment, knownSchema: known?.schema},
        this.#held,
        signal,
      )
      if (outcome.known !== undefined) this.#known = {epoch, settingsVersion, ...outcome.known}
      if (outcome.settledAt !== undefined && seen !== undefined)
        this.#settled = {
          epoch,
          settingsVersion,
          path: run.sqlitePath,
          look: seen,
          dataVersion: outcome.settledAt,
          auditAt: outcome.auditAt ?? Infinity,
          result: outcome.result,
        }
      this.#held.rest()
      warnOfHold(outcome.result, run)
      tellMissed(outcome.result, run)
      return outcome.result
    } catch (error) {
      const lock = lockOf(this.#held)
      warnOfHold({client: this.#place.clientName, lock}, run)
      run.onFailedLock?.(lock)
      this.#held[Symbol.dispose]()
      throw error
    }
  }

  /** Gives back the memory that only makes things faster. */
  shrink(): void {
    this.#held.shrink()
  }

  /** Forgets the pages in memory; the sidecar has them too. */
  forgetPages(): void {
    this.#held.pages.state = undefined
  }

  [Symbol.dispose](): void {
    this.#held[Symbol.dispose]()
    this.#lock[Symbol.dispose]()
  }
}

/** Has sessions forget their pages, the first ones first, until all of them together keep at most `mostBytes`. */
export function forgetPages(
  sessions: Iterable<Pick<Session, 'pageBytes' | 'forgetPages'>>,
  mostBytes: number,
): void {
  const all = [...sessions]
  let bytes = all.reduce((sum, session) => sum + session.pageBytes, 0)
  for (const session of all) {
    if (bytes <= mostBytes) return
    bytes -= session.pageBytes
    session.forgetPages()
  }
}

/** What a run has left known of the control schema. */
type Known = {
  readonly epoch: bigint
  readonly settingsVersion: bigint | undefined
  readonly deployment: Deployment
  readonly schema: SourceSchema
}

/** The state of a source at which its last run has left nothing to do. */
type Settled = {
  readonly epoch: bigint
  readonly settingsVersion: bigint | undefined
  readonly path: string
  readonly look: Look
  readonly dataVersion: bigint
  readonly auditAt: number
  readonly result: SyncResult
}

/** The lock budget is a promise to the app: a hold that breaks it is told, whatever came of the sync. */
function warnOfHold({client, lock}: Pick<SyncResult, 'client' | 'lock'>, {limits, log}: SessionRun): void {
  if (lock.max_hold_ms <= limits.lockBudgetMs) return
  const facts = {client, ...lock, budget_ms: limits.lockBudgetMs}
  log?.warn(facts, 'a lock was held longer than LOCK_BUDGET_MS')
}

/** A change that pages had not shown is an error of ours: it is applied now, and somebody has to know. */
function tellMissed({client, audit}: SyncResult, {log}: SessionRun): void {
  if (audit === undefined || audit.rows === 0) return
  log?.error({client, ...audit}, 'changes had been missed; they are applied now')
}

function dataVersionOf(source: Source): bigint | undefined {
  try {
    return readDataVersion(source.db)
  } catch {
    return undefined // locked, or waiting to be recovered: a run says which
  }
}

/** The result of a run that finds everything as the one before has left it. */
function again(result: SyncResult): SyncResult {
  const {rows} = result
  const nothing = {
    conflicts: {...result.conflicts, detected: 0, resolved: 0},
    bytes: 0,
    audit: undefined,
    details: undefined,
    decisions: undefined,
    written_to_source: undefined,
    duration_ms: 0,
    lock: {max_hold_ms: 0, busy_retries: 0},
  }
  // What the guard holds back is held back for the same reason.
  if (result.status !== 'success') return {...result, ...nothing}
  return {
    ...result,
    ...nothing,
    mode: 'unchanged',
    rows: {upserted: 0, tombstoned: 0, unchanged: rows.unchanged + rows.upserted, quarantined: 0},
  }
}
