import {randomUUID} from 'node:crypto'
import type {SourceSchema} from '../core/layout.ts'
import type {Lease} from '../cluster/lease.ts'
import {json, type Pool, type Tx} from '../postgres/sql.ts'
import {DataError} from '../postgres/sqlstate.ts'
import {fingerprint, openSource, SourceEmptyError, type Source} from '../source/open.ts'
import {readSchemaVersion} from '../source/introspect.ts'
import {PageFinder} from '../source/page-finder.ts'
import type {PageState} from '../source/page-state.ts'
import {
  findDeployment,
  findSourceSchema,
  quarantine,
  readRevisions,
  saveSourceSchema,
  unquarantine,
  type Deployment,
} from '../state/deployments.ts'
import {applyTable, clearColumn, TableRefusedError, tombstoneAll} from '../target/apply.ts'
import {readExisting, type Existing, type Operation} from '../target/plan.ts'
import {captureCut, cookieOf, type Cut, type QuarantinedRow} from './cut.ts'
import {firstLoad, type Loaded} from './first-load.ts'
import {suspicion, type DeleteGuard} from './guard.ts'
import {awaitMigration} from './migration.ts'
import {rebuildSidecar} from './rebuild.ts'
import {direction} from './revisions.ts'
import {Sidecar} from './sidecar.ts'
import {StateDirError} from './state-dir.ts'

/** What a run of one deployment's sync is given. */
export type SyncRun = {
  readonly pool: Pool
  readonly lease: Lease
  readonly deployment: Deployment
  readonly sqlitePath: string
  readonly stateDir: string
  readonly limits: {
    readonly lockBudgetMs: number
    readonly batchRows: number
    readonly statementTimeoutMs: number
    readonly deleteGuard: DeleteGuard
  }
  /** Compare every row with what the target knows, as if the sidecar had been lost. */
  readonly full: boolean
  /** Say what would be applied, and apply nothing. */
  readonly dryRun: boolean
  /** A person has confirmed what the guard holds back. */
  readonly accept: boolean
  /** How changes are found: by pages of the file when it is large, unless this says otherwise. */
  readonly capture?: 'auto' | 'pages' | 'digests'
  /** Keeps the pages of the source in memory between the runs of one process. */
  readonly pages?: {state: PageState | undefined}
  readonly onProgress?: (table: string, rows: number) => void
}

/** What a sync did: SPEC §4's JSON. */
export type SyncResult = {
  readonly client: string
  readonly generation: bigint
  readonly mode: 'full' | 'incremental' | 'unchanged'
  readonly status: 'success' | 'failed' | 'quarantined'
  readonly reason?: string
  /** False when the app committed while its file was being read; the next run heals what that mixed. */
  readonly consistent: boolean
  readonly tables: number
  readonly rows: {
    readonly upserted: number
    readonly tombstoned: number
    readonly unchanged: number
    readonly quarantined: number
  }
  readonly conflicts: {readonly detected: number; readonly resolved: number; readonly pending: number}
  readonly bytes: number
  readonly duration_ms: number
  readonly lock: {readonly max_hold_ms: number; readonly busy_retries: number}
}

/** At most this much of one table's changes goes as parameters of one statement. */
const SMALL_BYTES = 8 * 1024 * 1024

/** Rows of one cut that Postgres may refuse before we suspect ourselves instead of the rows. */
const MOST_REFUSALS = 100

/**
 * Brings one deployment's target to the present state of its source: capture, guard, one fenced transaction, and only
 * then the sidecar. Whatever happens in between, the next run starts from what Postgres has committed.
 *
 * The caller holds the deployment's lock (lock.ts) and the cluster's lease.
 */
export async function syncDeployment(run: SyncRun, signal: AbortSignal): Promise<SyncResult> {
  try {
    return await runSync(run, signal)
  } catch (error) {
    if (!(error instanceof StateDirError) || !error.isDamaged) throw error
    const {deploymentId, schemaName} = run.deployment
    Sidecar.remove(run.stateDir, deploymentId)
    // The damage may have shown only after the commit: what has been applied is asked anew.
    const deployment = (await findDeployment(run.pool, schemaName)) ?? run.deployment
    return await runSync({...run, deployment}, signal)
  }
}

async function runSync(run: SyncRun, signal: AbortSignal): Promise<SyncResult> {
  const startedAt = performance.now()
  const {deployment, pool, stateDir} = run
  const report = new Report(deployment, startedAt)
  using sidecar = Sidecar.open(stateDir, deployment.deploymentId)
  if (sidecar.standing(deployment.cutId) === 'intended') sidecar.settle(deployment.cutId as string)
  const isLoaded = deployment.generation > 0n
  const isInStep = sidecar.standing(deployment.cutId) === 'in step'

  let source: Source
  try {
    source = await openSource(run.sqlitePath, signal)
  } catch (error) {
    if (!(error instanceof SourceEmptyError) || !isLoaded) throw error
    return await hold(run, report, 'the file is empty')
  }
  using open = source
  const seenAs = fingerprint(open.file)
  const isFree =
    !run.full && !run.accept && deployment.quarantinedRows === 0 && deployment.status !== 'quarantined'
  if (isLoaded && isInStep && isFree && seenAs !== undefined && seenAs === sidecar.noted('fingerprint'))
    return report.unchanged(sidecar)

  await awaitMigration(open, signal)
  const previous = await findSourceSchema(pool, deployment.deploymentId)
  const mustRebuild =
    previous !== undefined && deployment.cutId !== null && (!isInStep || (run.full && isLoaded))
  if (mustRebuild)
    await rebuildSidecar(pool, sidecar, deployment.schemaName, previous, deployment.cutId, signal)

  if (!isLoaded && run.dryRun) return await dryFirstLoad(run, report, open, signal)
  const loaded = isLoaded ? undefined : await load(run, open, sidecar, previous, signal)
  const basis = loaded?.schema ?? previous
  const cookie = sidecar.noted('cookie')
  const isKnown =
    basis !== undefined && cookie === cookieOf(open, {schemaVersion: readSchemaVersion(open.db)})
  const existing = isKnown ? existingOf(basis) : await readExisting(pool, deployment.schemaName)
  const finder =
    loaded === undefined && usesPages(run, open)
      ? new PageFinder(open, pagesOf(run, sidecar, open))
      : undefined
  using cut = await captureCut(
    open,
    sidecar,
    {
      previous: basis,
      existing,
      lockBudgetMs: run.limits.lockBudgetMs,
      small: {rows: run.limits.batchRows, bytes: SMALL_BYTES},
      stateDir,
      deploymentId: deployment.deploymentId,
      knownAt: loaded?.undisturbedAt,
      finder,
      ...(run.onProgress ? {onProgress: run.onProgress} : {}),
    },
    signal,
  )
  report.add(cut, loaded, open, sidecar)

  const doubt = run.accept || !isLoaded ? undefined : await doubtOf(run, sidecar, cut, open)
  if (run.dryRun) {
    sidecar.abandon()
    return doubt === undefined ? report.done('incremental', deployment.generation) : report.held(doubt)
  }
  if (doubt !== undefined) {
    sidecar.abandon()
    return await hold(run, report, doubt)
  }
  const note = () => {
    // A row that waits for another try must not be hidden behind an unchanged file.
    const isFresh = !cut.capture.consistent || report.quarantined > 0 || open.isReplaced()
    sidecar.note('fingerprint', isFresh ? undefined : seenAs)
    sidecar.note('identity', open.identity)
    sidecar.note('totals', report.totals)
    keepPages(run, sidecar, open, finder)
    sidecar.note('cookie', cookieOf(open, cut.capture.spec))
  }
  const hasNews = cut.upserted > 0 || cut.tombstoned > 0 || cut.isSchemaChanged || loaded !== undefined
  if (!hasNews) {
    // Rows that only moved are for the sidecar alone: Postgres has their cut already.
    if (cut.hasMoves) {
      sidecar.intend(deployment.cutId as string, cut.capture.consistent)
      sidecar.settle(deployment.cutId as string)
    } else sidecar.abandon()
    if (deployment.status === 'quarantined') await unquarantine(pool, deployment.deploymentId)
    await recordQuarantine(pool, deployment, report.refused)
    note()
    return report.unchanged(sidecar)
  }

  const cutId = randomUUID()
  sidecar.intend(cutId, cut.capture.consistent)
  const generation = await applyCut(run, report, sidecar, cut, cutId, loaded, signal)
  sidecar.settle(cutId)
  note()
  return report.done(loaded !== undefined || run.full ? 'full' : 'incremental', generation)
}

/**
 * Below this size comparing every row takes a few hundredths of a second. Nobody sets it but tests, whose files are
 * small.
 */
export const paged = {bytes: 8 * 1024 * 1024}

function usesPages(run: SyncRun, source: Source): boolean {
  // Rows that wait for another try have changed nothing since: they are met by comparing all rows.
  if (run.full || run.dryRun || run.deployment.quarantinedRows > 0) return false
  return run.capture === undefined || run.capture === 'auto'
    ? source.size() >= paged.bytes
    : run.capture === 'pages'
}

/** The pages as the last cut knew them. Taken away while a capture works with them: a run that fails leaves none. */
function pagesOf(run: SyncRun, sidecar: Sidecar, source: Source): PageState | undefined {
  const inMemory = run.pages?.state
  if (run.pages !== undefined) run.pages.state = undefined
  return sidecar.noted('identity') === source.identity ? sidecar.loadPages(inMemory) : undefined
}

function keepPages(run: SyncRun, sidecar: Sidecar, source: Source, finder: PageFinder | undefined): void {
  if (finder === undefined) return
  // The log of a file that took this one's name may have been read for its own.
  const state = source.isReplaced() ? undefined : finder.state
  sidecar.savePages(state)
  if (run.pages !== undefined) run.pages.state = state
}

async function load(
  run: SyncRun,
  source: Source,
  sidecar: Sidecar,
  previous: SourceSchema | undefined,
  signal: AbortSignal,
): Promise<Loaded> {
  const {pool, lease, deployment, limits, onProgress} = run
  const existing = await readExisting(pool, deployment.schemaName)
  return firstLoad(
    {
      pool,
      lease,
      deployment,
      source,
      sidecar,
      lockBudgetMs: limits.lockBudgetMs,
      statementTimeoutMs: limits.statementTimeoutMs,
      ...(onProgress ? {onProgress} : {}),
    },
    previous,
    existing,
    signal,
  )
}

/** Counts what a first load would copy. */
async function dryFirstLoad(
  run: SyncRun,
  report: Report,
  source: Source,
  signal: AbortSignal,
): Promise<SyncResult> {
  const scratchId = `dry-run-${run.deployment.deploymentId}`
  using stack = new DisposableStack()
  stack.defer(() => {
    Sidecar.remove(run.stateDir, scratchId)
  })
  const scratch = stack.use(Sidecar.open(run.stateDir, scratchId))
  scratch.reset()
  using cut = await captureCut(
    source,
    scratch,
    {
      previous: undefined,
      existing: new Map(),
      lockBudgetMs: run.limits.lockBudgetMs,
      small: {rows: run.limits.batchRows, bytes: SMALL_BYTES},
      stateDir: run.stateDir,
      deploymentId: scratchId,
      ...(run.onProgress ? {onProgress: run.onProgress} : {}),
    },
    signal,
  )
  scratch.abandon()
  report.add(cut, undefined, source, scratch)
  return report.done('full', run.deployment.generation)
}

/** Why a person should confirm this cut, if so. */
async function doubtOf(
  run: SyncRun,
  sidecar: Sidecar,
  cut: Cut,
  source: Source,
): Promise<string | undefined> {
  const history = cut.isSchemaChanged ? await readRevisions(run.pool, run.deployment.deploymentId) : []
  const known = sidecar.noted('identity')
  const tables = cut.plan.tables.map(({source: table}) => {
    const before = sidecar.count(table)
    const tombstones = cut.spools.get(table)?.tombstones.length ?? 0
    const rows = cut.counts.get(table) ?? 0
    return {
      table,
      before,
      deleted: cut.plan.rekeyed.has(table) ? Math.max(0, before - rows) : tombstones,
      hasVanished: false,
    }
  })
  const vanished = cut.plan.vanished.map(({source: table}) => {
    const before = sidecar.count(table)
    return {table, before, deleted: before, hasVanished: true}
  })
  return suspicion(
    {
      tables: [...tables, ...vanished],
      after: rowsAfter(cut, sidecar),
      revision: cut.isSchemaChanged ? direction(history, cut.schema.alembicRevision) : 'same',
      isOtherFile: known !== source.identity,
    },
    run.limits.deleteGuard,
  )
}

/** Keeps a cut back: the target stays as it was, and the deployment says why. */
async function hold(run: SyncRun, report: Report, reason: string): Promise<SyncResult> {
  if (!run.dryRun) await quarantine(run.pool, run.deployment.deploymentId, reason)
  return report.held(reason)
}

/** One fenced transaction for the whole cut; again without a row whenever Postgres refuses that row. */
async function applyCut(
  run: SyncRun,
  report: Report,
  sidecar: Sidecar,
  cut: Cut,
  cutId: string,
  loaded: Loaded | undefined,
  signal: AbortSignal,
): Promise<bigint> {
  const {pool, lease, deployment, limits} = run
  const care = new Care()
  for (;;) {
    try {
      return await pool.begin(
        async tx => {
          await writeCut(tx, deployment, cut, care, signal)
          if (cut.isSchemaChanged)
            await saveSourceSchema(tx, deployment.deploymentId, deployment.generation + 1n, cut.schema)
          await recordQuarantine(tx, deployment, report.refused)
          lease.signal.throwIfAborted()
          const [row] = await tx<{generation: bigint}>`
            select sync_metadata.advance_generation(${deployment.deploymentId}, ${deployment.generation}, ${cutId},
              ${lease.epoch}, ${json({...report.job(loaded !== undefined || run.full), node_id: lease.nodeId})}) as generation`
          return (row as {generation: bigint}).generation
        },
        {setLocal: {statement_timeout: `${limits.statementTimeoutMs}ms`}},
      )
    } catch (error) {
      const refused = await care.learn(error, cut)
      if (refused === undefined) throw error
      if (refused !== 'indexes') {
        sidecar.unremember(refused.source, refused.row.key)
        report.refuse(refused.row)
      }
    }
  }
}

async function writeCut(
  tx: Tx,
  deployment: Deployment,
  cut: Cut,
  care: Care,
  signal: AbortSignal,
): Promise<void> {
  const {deploymentId, schemaName} = deployment
  const loosened: Operation[] = [...care.loosened].map(table => ({op: 'loosen_indexes', table}))
  // Tables that are new in a later cut get their keys before their rows: the rows come as upserts.
  const operations = [...cut.plan.operations, ...cut.plan.finish, ...loosened]
  if (operations.length > 0)
    await tx`select sync_metadata.evolve_schema(${deploymentId}, ${json(operations)})`
  for (const {table, column} of cut.plan.clear) await clearColumn(tx, schemaName, table, column)
  for (const {target} of cut.plan.vanished) await tombstoneAll(tx, schemaName, target)
  for (const spool of cut.spools.values()) {
    const changes = {
      layout: spool.layout,
      small: care.mustStage(spool.layout.source) ? undefined : spool.small,
      count: spool.count,
      tombstones: spool.tombstones,
      mayRepeat: !cut.capture.consistent,
      stream: (skip: ReadonlySet<number>) => spool.stream(skip),
    }
    await applyTable(tx, schemaName, changes, care.skip(spool.layout.source), signal)
  }
  if (cut.widenings.length > 0)
    await tx`select sync_metadata.evolve_schema(${deploymentId}, ${json(cut.widenings)})`
}

/** What earlier tries of one cut have taught: which rows to leave out, which tables to stage, which indexes to loosen. */
class Care {
  readonly loosened = new Set<string>()
  readonly #staged = new Set<string>()
  readonly #skip = new Map<string, Set<number>>()
  #refusals = 0

  mustStage(table: string): boolean {
    return this.#staged.has(table)
  }

  skip(table: string): ReadonlySet<number> {
    return this.#skip.get(table) ?? new Set()
  }

  /** @returns what the next try does differently, or `undefined` when there is nothing left to try. */
  async learn(
    error: unknown,
    cut: Cut,
  ): Promise<'indexes' | {source: string; row: QuarantinedRow} | undefined> {
    if (!(error instanceof TableRefusedError) || !(error.cause instanceof DataError)) return undefined
    const spool = cut.spools.get(error.table)
    if (spool === undefined || ++this.#refusals > MOST_REFUSALS) return undefined
    const {target} = spool.layout
    if (error.cause.sqlstate === '54000' && !this.loosened.has(target)) {
      this.loosened.add(target)
      return 'indexes'
    }
    if (!this.#staged.has(error.table)) {
      // Staged by COPY, Postgres says which row it is.
      this.#staged.add(error.table)
      return 'indexes'
    }
    if (error.cause.line === undefined) return undefined
    const skip = this.#skip.get(error.table) ?? new Set<number>()
    this.#skip.set(error.table, skip)
    let line = error.cause.line
    for (const left of [...skip].sort((a, b) => a - b)) if (left <= line) line++
    skip.add(line)
    const key = await spool.keyAt(line)
    if (key === undefined) return undefined
    return {
      source: error.table,
      row: {table: target, key, code: error.cause.code, reason: error.cause.message},
    }
  }
}

/** Notes which rows wait for another try, and that those which waited before and are not among them have passed. */
async function recordQuarantine(
  sql: Pool | Tx,
  deployment: Deployment,
  rows: readonly QuarantinedRow[],
): Promise<void> {
  if (rows.length === 0 && deployment.quarantinedRows === 0) return
  const column = (pick: (row: QuarantinedRow) => string) => rows.map(pick)
  await sql`
    with refused as (
      select * from unnest(${column(row => row.table)}::text[], ${column(row => row.key)}::text[],
        ${column(row => row.code)}::text[], ${column(row => row.reason)}::text[]) as r (table_name, record_key, code, reason)
    ), passed as (
      update sync_metadata.row_quarantine q set resolved_at = now()
      where deployment_id = ${deployment.deploymentId} and resolved_at is null
        and not exists (select 1 from refused r where (r.table_name, r.record_key) = (q.table_name, q.record_key))
    )
    insert into sync_metadata.row_quarantine as q (deployment_id, table_name, record_key, code, reason)
    select ${deployment.deploymentId}, table_name, record_key, code, reason from refused
    on conflict (deployment_id, table_name, record_key) do update
    set code = excluded.code, reason = excluded.reason, last_seen_at = now(), attempts = q.attempts + 1, resolved_at = null`
}

/** The client schema as far as a schema that has not changed needs to know it. */
function existingOf(schema: SourceSchema): Existing {
  return new Map(
    schema.tables.map(({target, columns}) => [
      target,
      new Map(columns.map(column => [column.target, column.type])),
    ]),
  )
}

/** Live rows of the source as of a cut that has not compared all of them. */
function rowsAfter(cut: Cut, sidecar: Sidecar): number {
  if (cut.capture.comparedAll) return cut.capture.rows
  const before = Number(sidecar.noted('totals')?.split(' ')[1] ?? 0)
  return Math.max(0, before + cut.inserted - cut.tombstoned)
}

/** Gathers what the result says. */
class Report {
  readonly #deployment: Deployment
  readonly #startedAt: number
  readonly #refused: QuarantinedRow[] = []
  #consistent = true
  #tables = 0
  #upserted = 0
  #tombstoned = 0
  #seen = 0
  #bytes = 0
  #maxHoldMs = 0
  #busyRetries = 0

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

  add(cut: Cut, loaded: Loaded | undefined, source: Source, sidecar: Sidecar): void {
    const known = new Set(cut.refused.map(row => JSON.stringify([row.table, row.key])))
    this.#refused.push(
      ...cut.refused,
      ...(loaded?.refused ?? []).filter(row => !known.has(JSON.stringify([row.table, row.key]))),
    )
    this.#consistent = cut.capture.consistent
    this.#tables = cut.plan.tables.length
    this.#upserted = cut.upserted + (loaded?.rows ?? 0)
    this.#tombstoned = cut.tombstoned
    this.#seen = rowsAfter(cut, sidecar)
    this.#bytes = [...cut.spools.values()].reduce((bytes, spool) => bytes + spool.bytes, loaded?.bytes ?? 0)
    this.#maxHoldMs = Math.max(cut.capture.maxHoldMs, loaded?.maxHoldMs ?? 0)
    this.#busyRetries = source.busyRetries
  }

  refuse(row: QuarantinedRow): void {
    this.#refused.push(row)
    this.#upserted--
  }

  /** What the control schema records of this run. */
  job(full: boolean): Record<string, unknown> {
    const failed = this.#refused.length > 0
    return {
      sync_type: full ? 'full' : 'incremental',
      triggered_by: 'cli',
      status: failed ? 'failed' : 'success',
      rows_upserted: this.#upserted,
      rows_tombstoned: this.#tombstoned,
      rows_unchanged: this.#unchanged,
      rows_quarantined: this.#refused.length,
      bytes: this.#bytes,
      duration_ms: Math.round(performance.now() - this.#startedAt),
      ...(failed ? {error_code: 'SYNC_ROWS_QUARANTINED', error_message: this.#rowsReason} : {}),
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

  get #unchanged(): number {
    return Math.max(0, this.#seen - this.#upserted - this.#refused.length)
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
      conflicts: {detected: 0, resolved: 0, pending: 0},
      bytes: this.#bytes,
      duration_ms: Math.round(performance.now() - this.#startedAt),
      lock: {max_hold_ms: Math.round(this.#maxHoldMs * 10) / 10, busy_retries: this.#busyRetries},
    }
  }
}
