import type {Source} from '../source/open.ts'
import type {Deployment} from '../state/deployments.ts'
import type {Missed} from './audit.ts'
import {Tally} from './conflicts.ts'
import type {Cut, QuarantinedRow} from './cut.ts'
import type {Loaded} from './first-load.ts'
import type {Sidecar} from './sidecar.ts'
import type {SyncDetails, SyncResult, SyncRun, TableChange} from './sync.ts'

/** Live rows of the source as of a cut that has not compared all of them. */
export function rowsAfter(cut: Cut, sidecar: Sidecar): number {
  if (cut.capture.comparedAll) return cut.capture.rows
  const before = Number(sidecar.noted('totals')?.split(' ')[1] ?? 0)
  return Math.max(0, before + cut.inserted - cut.tombstoned)
}

/** What a run says of its locks: none, where it has read nothing. */
export function lockOf(source: Pick<Source, 'lock'> | undefined): SyncResult['lock'] {
  const {maxHoldMs, busyRetries} = source?.lock ?? {maxHoldMs: 0, busyRetries: 0}
  // Upwards: a lock that was held is never told as none, nor one beyond the budget as within it.
  return {max_hold_ms: Math.ceil(maxHoldMs * 10) / 10, busy_retries: busyRetries}
}

/** Gathers what the result of one run says. */
export class Report {
  readonly #deployment: Deployment
  readonly #startedAt: number
  readonly #refused: QuarantinedRow[] = []
  #audit: Missed | undefined
  #conflicts = new Tally()
  #consistent = true
  #tables = 0
  #upserted = 0
  #tombstoned = 0
  #seen = 0
  #bytes = 0
  #source: Source | undefined
  #changes: readonly TableChange[] = []

  constructor(deployment: Deployment, startedAt: number) {
    this.#deployment = deployment
    this.#startedAt = startedAt
  }

  get refused(): readonly QuarantinedRow[] {
    return this.#refused
  }

  get quarantined(): number {
    return this.#refused.length
  }

  /** True when nothing is left that could be applied. */
  get hasNoRows(): boolean {
    return this.#upserted === 0 && this.#tombstoned === 0
  }

  add(cut: Cut, loaded: Loaded | undefined, source: Source, sidecar: Sidecar): void {
    const known = new Set(cut.refused.map(row => JSON.stringify([row.table, row.key])))
    this.#refused.push(
      ...cut.refused,
      ...(loaded?.refused ?? []).filter(row => !known.has(JSON.stringify([row.table, row.key]))),
    )
    this.#consistent = cut.capture.consistent
    this.#tables = cut.plan.tables.length
    this.#changes = changesOf(cut, loaded, sidecar)
    this.#upserted = cut.upserted + (loaded?.rows ?? 0)
    this.#tombstoned = cut.tombstoned
    this.#seen = rowsAfter(cut, sidecar)
    this.#bytes = [...cut.spools.values()].reduce((bytes, spool) => bytes + spool.bytes, loaded?.bytes ?? 0)
    this.#source = source
  }

  refuse(row: QuarantinedRow): void {
    this.#refused.push(row)
    this.#upserted--
    this.#changes = this.#changes
      .map(change => (change.table === row.table ? {...change, upserted: change.upserted - 1} : change))
      .filter(hasAny)
  }

  /** What an audit has found; rows that no page had shown are an error of ours, and the job says so. */
  set audit(missed: Missed) {
    this.#audit = missed
  }

  /** What has been decided about rows on which both sides had something to say. */
  set conflicts(tally: Tally) {
    this.#conflicts = tally
  }

  /** What the control schema records of this run, and tells those who wait for its cut. */
  job(
    run: Pick<SyncRun, 'jobId' | 'triggeredBy' | 'versionSeen'>,
    mode: 'full' | 'incremental',
  ): Record<string, unknown> {
    const failed = this.#refused.length > 0
    const done = this.done(mode, 0n)
    return {
      ...(run.jobId === undefined ? {} : {job_id: run.jobId}),
      sync_type: mode,
      triggered_by: run.triggeredBy ?? 'cli',
      ...(failed || run.versionSeen === undefined ? {} : {source_version: run.versionSeen}),
      // The cut itself says which generation it has become.
      result: {
        ...done,
        conflicts: {...done.conflicts, ...(this.#conflicts.toTell > 0 && {to_tell: this.#conflicts.toTell})},
        generation: undefined,
        details: undefined,
      },
      tables: this.#changes.map(({table}) => table),
      status: failed ? 'failed' : 'success',
      rows_upserted: this.#upserted,
      rows_tombstoned: this.#tombstoned,
      rows_unchanged: this.#unchanged,
      rows_quarantined: this.#refused.length,
      conflicts_detected: this.#conflicts.detected,
      conflicts_resolved: this.#conflicts.resolved,
      bytes: this.#bytes,
      duration_ms: Math.round(performance.now() - this.#startedAt),
      ...this.#errors,
    }
  }

  unchanged(sidecar: Sidecar): SyncResult {
    // Behind the gate nothing was read: the numbers are those of the run that read it.
    const [tables = '0', rows = '0'] = sidecar.noted('totals')?.split(' ') ?? []
    if (this.#tables === 0) this.#tables = Number(tables)
    if (this.#seen === 0) this.#seen = Number(rows)
    return this.#result('unchanged', this.#deployment.generation)
  }

  /** Tables and live rows of the source, to be remembered beside its fingerprint. */
  get totals(): string {
    return `${this.#tables} ${Math.max(this.#seen, this.#upserted)}`
  }

  done(mode: SyncResult['mode'], generation: bigint): SyncResult {
    return this.#result(mode, generation)
  }

  held(reason: string): SyncResult {
    return {...this.#result('incremental', this.#deployment.generation), status: 'quarantined', reason}
  }

  get #details(): SyncDetails {
    const refused = new Map<string, {table: string; code: string; rows: number}>()
    for (const {table, code} of this.#refused) {
      const key = JSON.stringify([table, code])
      const known = refused.get(key) ?? {table, code, rows: 0}
      refused.set(key, {...known, rows: known.rows + 1})
    }
    return {hasRead: this.#source !== undefined, changes: this.#changes, refused: [...refused.values()]}
  }

  /** Conflicts that wait for a person, after this run. */
  get pendingConflicts(): number {
    return Math.max(0, this.#deployment.pendingConflicts + this.#conflicts.pending)
  }

  get #unchanged(): number {
    return Math.max(0, this.#seen - this.#upserted - this.#refused.length)
  }

  get #errors(): Record<string, unknown> {
    if (this.#refused.length > 0)
      return {error_code: 'SYNC_ROWS_QUARANTINED', error_message: this.#rowsReason}
    const audit = this.#audit
    if (audit === undefined || audit.rows === 0) return {}
    const message = `${audit.rows} changed rows had been missed in ${audit.tables.join(', ')}`
    return {error_code: 'SYNC_CHANGES_MISSED', error_message: message, error_details: {audit}}
  }

  get #rowsReason(): string {
    const [first] = this.#refused
    const more = this.#refused.length > 1 ? ` and ${this.#refused.length - 1} more` : ''
    return `table ${first?.table ?? ''}: ${first?.reason ?? ''}${more}`
  }

  #result(mode: SyncResult['mode'], generation: bigint): SyncResult {
    const held = this.#refused.length > 0
    return {
      client: this.#deployment.clientName,
      generation,
      mode,
      status: held ? 'quarantined' : 'success',
      ...(held ? {reason: this.#rowsReason} : {}),
      consistent: this.#consistent,
      tables: this.#tables,
      rows: {
        upserted: this.#upserted,
        tombstoned: this.#tombstoned,
        unchanged: this.#unchanged,
        quarantined: this.#refused.length,
      },
      conflicts: {
        detected: this.#conflicts.detected,
        resolved: this.#conflicts.resolved,
        pending: this.pendingConflicts,
      },
      bytes: this.#bytes,
      audit: this.#audit,
      details: this.#details,
      ...(this.#conflicts.detected === 0 ? {} : {decisions: this.#conflicts.decisions}),
      duration_ms: Math.round(performance.now() - this.#startedAt),
      lock: lockOf(this.#source),
    }
  }
}

/** What each table of the target is to get. */
function changesOf(cut: Cut, loaded: Loaded | undefined, sidecar: Sidecar): TableChange[] {
  const changed: TableChange[] =
    loaded === undefined
      ? [...cut.spools.values()].map(({layout, count, tombstones}) => ({
          table: layout.target,
          upserted: count,
          tombstoned: tombstones.length,
        }))
      : cut.plan.tables.map(({source, target}) => ({
          table: target,
          // The closing capture need not have read them once more.
          upserted: sidecar.count(source),
          tombstoned: 0,
        }))
  const vanished = cut.plan.vanished.map(({source, target}) => ({
    table: target,
    upserted: 0,
    tombstoned: sidecar.count(source),
  }))
  return [...changed, ...vanished].filter(hasAny)
}

function hasAny({upserted, tombstoned}: TableChange): boolean {
  return upserted + tombstoned > 0
}
