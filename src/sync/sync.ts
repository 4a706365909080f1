import {randomUUID} from 'node:crypto'
import {realpathSync} from 'node:fs'
import type {ConflictRules} from '../config/config.ts'
import type {SourceSchema} from '../core/layout.ts'
import {together} from '../core/together.ts'
import type {Lease} from '../cluster/lease.ts'
import type {Pool} from '../postgres/sql.ts'
import {isWal, Pace} from '../source/capture.ts'
import {endRead, explain, fingerprint, SourceEmptyError, whenFree, type Source} from '../source/open.ts'
import {readDataVersion, readSchemaVersion} from '../source/introspect.ts'
import {PageFinder} from '../source/page-finder.ts'
import type {PageState} from '../source/page-state.ts'
import {awaitCommit, mayBeCommitting} from '../source/wal-end.ts'
import {
  findDeployment,
  findSourceSchema,
  quarantine,
  readRevisions,
  recordStatus,
  unquarantine,
  type Deployment,
} from '../state/deployments.ts'
import type {TriggeredBy} from '../state/jobs.ts'
import {readExisting, type Existing} from '../target/plan.ts'
import {countUnwritten} from '../target/unwritten.ts'
import {applyCut, dryDecisions, modeOf, recordQuarantine} from './apply-cut.ts'
import {Audit, auditDueAt, type Missed} from './audit.ts'
import type {Decided, Written} from './conflicts.ts'
import {syncBack} from './both-ways.ts'
import {captureCut, cookieOf, type Cut} from './cut.ts'
import {firstLoad, type Loaded} from './first-load.ts'
import {suspicion, type DeleteGuard} from './guard.ts'
import {Held, type KeptPages} from './held.ts'
import {awaitMigration} from './migration.ts'
import {previewWrites} from './preview.ts'
import {takeMarked, takeReverted} from './queue.ts'
import {rebuildSidecar} from './rebuild.ts'
import {Report, rowsAfter} from './report.ts'
import {direction} from './revisions.ts'
import {Sidecar} from './sidecar.ts'
import {StateDirError} from './state-dir.ts'
import {tooMuch, type TableWrites} from './write-back.ts'

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
  /** Of a dry run: as if the deployment had this direction. */
  readonly asDirection?: Deployment['direction'] | undefined
  /** A person has confirmed what the guard holds back. */
  readonly accept: boolean
  /** There may be foreign edits to decide about, whether the source has changed or not. */
  readonly marks?: boolean
  /** What was written to the source since the last cut. */
  readonly written?: Written
  /** The rules for conflicts that this process was given; a deployment's own come before them. */
  readonly conflictConfig?: ConflictRules | undefined
  /** How changes are found: by pages of the file when it is large, unless this says otherwise. */
  readonly capture?: 'auto' | 'pages' | 'digests'
  /** Keeps the pages of the source in memory between the runs of one process. */
  readonly pages?: KeptPages
  /** The source's shape as of the last cut, from who knows it: it need not be asked of Postgres. */
  readonly knownSchema?: SourceSchema | undefined
  /** The job that the cut ends, in its transaction; one that is not there yet is written with it. */
  readonly jobId?: string
  /** What was seen of the source before the run; with the cut it is kept that this version is in the target. */
  readonly versionSeen?: string | undefined
  /** Who asked for it; without it, the command line. */
  readonly triggeredBy?: TriggeredBy
  /** Called with the rows of a table that have been read so far; without a name, with those of all tables. */
  readonly onProgress?: (table: string, rows: number) => void
}

/** What a run applied to a table of the target. */
export type TableChange = {readonly table: string; readonly upserted: number; readonly tombstoned: number}

export type SyncDetails = {
  /** False behind the gate, where nothing was read. */
  readonly hasRead: boolean
  readonly changes: readonly TableChange[]
  /** Rows that could not be applied, by table of the target and reason. */
  readonly refused: readonly {readonly table: string; readonly code: string; readonly rows: number}[]
  /** What was written to the source, by table of the target. */
  readonly written?: readonly TableWrites[] | undefined
  /** About how long their values were. */
  readonly writtenBytes?: number
}

/** What became of rows that were decided in Postgres and that the source is to have. */
export type SourceWrites = {
  readonly inserted: number
  readonly updated: number
  readonly deleted: number
  /** Those that the source does not take; each is a conflict for a person. */
  readonly refused: number
  /** Those that are left for a later sync, and why. */
  readonly left: number
  readonly reason?: string | undefined
  /** Of a dry run: by table of the target, with the first keys. */
  readonly tables?: readonly TableWrites[]
}

/** What a sync did: SPEC §4's JSON, and what is counted beside it. */
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
  /** Met in this run, and decided in it; `pending` are all that wait for a person. */
  readonly conflicts: {readonly detected: number; readonly resolved: number; readonly pending: number}
  /** Present when there were conflicts: how they were decided. */
  readonly decisions?: readonly Decided[] | undefined
  readonly bytes: number
  /** Present in two_way, when rows were written to the source, or were to be; of a dry run, those that would be. */
  readonly written_to_source?: SourceWrites | undefined
  /** Present when all rows were compared to check the capture by pages. Anything missed is an error of ours. */
  readonly audit?: Missed | undefined
  /** Not for printing; see {@link printed}. */
  readonly details?: SyncDetails | undefined
  readonly duration_ms: number
  readonly lock: {readonly max_hold_ms: number; readonly busy_retries: number}
}

/** @returns the result as it is shown. */
export function printed(result: SyncResult): SyncResult {
  return {...result, details: undefined, decisions: undefined}
}

/** At most this much of one table's changes goes as parameters of one statement. */
const SMALL_BYTES = 8 * 1024 * 1024

/** A run's result, and what it has found out for the next one. */
export type Outcome = {
  readonly result: SyncResult
  /** What Postgres holds now, as far as a run asks for it; absent when it has to be asked. */
  readonly known?: {readonly deployment: Deployment; readonly schema: SourceSchema}
  /** Data version of the open source at which nothing is left to do; absent when something may be. */
  readonly settledAt?: bigint
  /** When the source must be audited, whether it has changed or not (this machine's clock, ms). */
  readonly auditAt?: number
}

/**
 * Brings one deployment's target to the present state of its source: capture, guard, one fenced transaction, and only
 * then the sidecar. Whatever happens in between, the next run starts from what Postgres has committed.
 *
 * The caller holds the deployment's lock (lock.ts) and the cluster's lease.
 */
export async function syncDeployment(run: SyncRun, signal: AbortSignal): Promise<SyncResult> {
  using held = new Held(run.stateDir, run.deployment.deploymentId, run.pages)
  return (await syncHeld(run, held, signal)).result
}

/** The same with what somebody holds open; it stays open, and after a failure it must be closed. */
export async function syncHeld(run: SyncRun, held: Held, signal: AbortSignal): Promise<Outcome> {
  const once = async (run: SyncRun) => {
    const outcome = await runOrRebuild({...run, written: held.written}, held, signal)
    if (outcome.known !== undefined && outcome.result.consistent) held.forgetWritten()
    return outcome
  }
  if (run.dryRun) {
    const {deployment, asDirection = deployment.direction} = run
    return await once({...run, deployment: {...deployment, direction: asDirection}})
  }
  return await syncBack(run, held, await once(run), once, signal)
}

async function runOrRebuild(run: SyncRun, held: Held, signal: AbortSignal): Promise<Outcome> {
  try {
    return await runSync(run, held, signal)
  } catch (error) {
    // What SQLite says and is not said of a file of ours is said of the source.
    if (!(error instanceof StateDirError) || !error.isDamaged) throw explain(run.sqlitePath, error)
    held.removeSidecar()
    // The damage may have shown only after the commit: what has been applied is asked anew.
    const deployment = (await findDeployment(run.pool, run.deployment.schemaName)) ?? run.deployment
    return await runSync({...run, deployment, knownSchema: undefined}, held, signal)
  }
}

/**
 * The gate of a process that has just begun: what a sync would say of a file that is as the last cut has left it.
 * Asks neither Postgres nor the file's content, and needs no lease.
 */
export function unchangedSince(
  deployment: Deployment,
  path: string,
  {sidecar}: Held,
): SyncResult | undefined {
  const isWell = deployment.quarantinedRows === 0 && deployment.status !== 'quarantined'
  if (
    deployment.generation === 0n ||
    !isWell ||
    deployment.hasMarks ||
    deployment.hasUnwritten ||
    sidecar.standing(deployment.cutId) !== 'in step'
  )
    return undefined
  const noted = sidecar.noted('fingerprint')
  if (noted === undefined || noted !== fingerprintOf(path)) return undefined
  return new Report(deployment, performance.now()).unchanged(sidecar)
}

function fingerprintOf(path: string): string | undefined {
  try {
    // SQLite keeps the WAL and the journal beside the real file.
    return fingerprint(realpathSync(path))
  } catch {
    return undefined // a run says what is wrong with it
  }
}

async function runSync(run: SyncRun, held: Held, signal: AbortSignal): Promise<Outcome> {
  const startedAt = performance.now()
  const {deployment, pool, stateDir} = run
  const report = new Report(deployment, startedAt)
  const {sidecar} = held
  if (sidecar.standing(deployment.cutId) === 'intended') sidecar.settle(deployment.cutId as string)
  const isLoaded = deployment.generation > 0n
  const isInStep = sidecar.standing(deployment.cutId) === 'in step'

  let open: Source
  try {
    open = await held.source(run.sqlitePath, signal)
  } catch (error) {
    if (!(error instanceof SourceEmptyError) || !isLoaded) throw error
    return {result: await hold(run, report, 'the file is empty')}
  }
  const isAllToSee = await awaitCommit(open, signal)
  // In this order: a commit between the two shows in the fingerprint.
  const openedAt = await whenFree(open, () => readDataVersion(open.db), signal)
  const seenAs = mayBeCommitting(open) ? undefined : fingerprint(open.file)
  const isByPages = usesPages(run, open)
  const auditAt = () => (isByPages ? auditDueAt(deployment.deploymentId, sidecar.noted('audited')) : Infinity)
  const isAuditDue = isLoaded && Date.now() >= auditAt()
  const hasMarks = run.marks === true || deployment.hasMarks
  const isFree =
    !run.full &&
    !run.accept &&
    !hasMarks &&
    !deployment.hasUnwritten &&
    !(run.dryRun && deployment.direction === 'two_way') &&
    !isAuditDue &&
    deployment.quarantinedRows === 0 &&
    deployment.status !== 'quarantined'
  if (isLoaded && isInStep && isFree && seenAs !== undefined && seenAs === sidecar.noted('fingerprint'))
    return {result: report.unchanged(sidecar), settledAt: openedAt, auditAt: auditAt()}

  await awaitMigration(open, signal)
  const previous = run.knownSchema ?? (await findSourceSchema(pool, deployment.deploymentId))
  const mustRebuild =
    previous !== undefined && deployment.cutId !== null && (!isInStep || (run.full && isLoaded))
  if (mustRebuild)
    await rebuildSidecar(pool, sidecar, deployment.schemaName, previous, deployment.cutId, signal)

  if (!isLoaded && run.dryRun) return {result: await dryFirstLoad(run, report, open, signal)}
  const finder = isByPages ? new PageFinder(open, isLoaded ? pagesOf(held, open) : undefined) : undefined
  const audit = finder !== undefined && isAuditDue ? new Audit(open, finder) : undefined
  const loaded = isLoaded ? undefined : await loadAndLook(run, open, sidecar, previous, finder, signal)
  const basis = loaded?.schema ?? previous
  const cookie = sidecar.noted('cookie')
  const isKnown =
    basis !== undefined && cookie === cookieOf(open, {schemaVersion: readSchemaVersion(open.db)})
  const existing = isKnown ? existingOf(basis) : await readExisting(pool, deployment.schemaName)
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
      finder: isLoaded ? (audit ?? finder) : undefined,
      notePlaces: audit !== undefined,
      ...(run.onProgress ? {onProgress: run.onProgress} : {}),
    },
    signal,
  )
  report.add(cut, loaded, open, sidecar)

  // A row that waits for another try must not be hidden behind an unchanged file.
  const isSettled = () =>
    cut.capture.consistent && report.quarantined === 0 && isAllToSee && !open.isReplaced()
  const settled = () => (isSettled() ? {settledAt: cut.capture.dataVersion, auditAt: auditAt()} : {})
  const doubt = run.accept || !isLoaded ? undefined : await doubtOf(run, sidecar, cut, open)
  if (run.dryRun) {
    try {
      if (doubt !== undefined) return {result: report.held(doubt)}
      if (isLoaded && deployment.direction === 'two_way') {
        const preview = await previewWrites(run, report, sidecar, cut, open, signal)
        return {result: {...report.done('incremental', deployment.generation), written_to_source: preview}}
      }
      if (hasMarks) await takeMarked(pool, deployment.schemaName, open, cut, run.limits.lockBudgetMs, signal)
      report.conflicts = await dryDecisions(run, cut, signal)
      return {result: report.done('incremental', deployment.generation)}
    } finally {
      sidecar.abandon()
    }
  }
  if (doubt !== undefined) {
    sidecar.abandon()
    return {result: await hold(run, report, doubt), ...settled()}
  }
  // A statement like ADD COLUMN changes what rows hold without touching their pages.
  const missed =
    audit !== undefined && cookie === cookieOf(open, cut.capture.spec)
      ? await audit.missed(cut, sidecar, run.limits.lockBudgetMs, signal)
      : undefined
  if (missed !== undefined) report.audit = missed
  const learned = () => {
    // Of a row that waits neither the target nor the sidecar has what its page shows.
    if (report.quarantined > 0 || (missed?.rows ?? 0) > 0) return undefined
    if (loaded === undefined) return finder?.learned(cut.capture)
    // A first load looks at the pages while it reads the rows, and its closing capture looks at none.
    const isUndisturbed = cut.capture.consistent && cut.capture.dataVersion === openedAt
    return finder?.learned({consistent: isUndisturbed, comparedTables: true})
  }
  const note = () => {
    sidecar.note('fingerprint', isSettled() ? seenAs : undefined)
    sidecar.note('identity', open.identity)
    sidecar.note('totals', report.totals)
    if (cut.capture.comparedAll) sidecar.note('audited', String(Date.now()))
    if (finder !== undefined) keepPages(held, open, learned())
    sidecar.note('cookie', cookieOf(open, cut.capture.spec))
  }
  const schema = cut.isSchemaChanged || basis === undefined ? cut.schema : basis
  const status = deployment.status === 'quarantined' ? 'active' : deployment.status
  const after = {...deployment, status, loadPosition: null, hasMarks: false, hasUnwritten: false}
  const keepCut = async (): Promise<Outcome> => {
    if (deployment.status === 'quarantined') await unquarantine(pool, deployment.deploymentId)
    await recordQuarantine(pool, deployment, report.refused)
    if (report.quarantined > 0 || deployment.quarantinedRows > 0)
      await recordStatus(pool, deployment.deploymentId, report.quarantined > 0 ? 'failed' : 'success')
    note()
    const known = {deployment: {...after, quarantinedRows: report.quarantined}, schema}
    return {result: report.unchanged(sidecar), known, ...settled()}
  }
  if (hasMarks && isLoaded)
    await takeMarked(pool, deployment.schemaName, open, cut, run.limits.lockBudgetMs, signal)
  if (run.written !== undefined && run.written.size > 0)
    await takeReverted(open, cut, run.written, run.limits.lockBudgetMs, signal)
  const hasNews =
    cut.upserted > 0 || cut.tombstoned > 0 || cut.isSchemaChanged || loaded !== undefined || cut.taken > 0
  if (!hasNews) {
    // Rows that only moved are for the sidecar alone: Postgres has their cut already.
    if (cut.hasMoves) {
      sidecar.intend(deployment.cutId as string, cut.capture.consistent)
      sidecar.settle(deployment.cutId as string)
    } else sidecar.abandon()
    return await keepCut()
  }

  const cutId = randomUUID()
  sidecar.intend(cutId, cut.capture.consistent)
  const generation = await applyCut(run, report, sidecar, cut, cutId, loaded, signal)
  if (generation === undefined) {
    sidecar.abandon()
    return await keepCut()
  }
  sidecar.settle(cutId)
  note()
  return {
    result: report.done(modeOf(run, loaded), generation),
    known: {
      deployment: {
        ...after,
        generation,
        cutId,
        quarantinedRows: report.quarantined,
        pendingConflicts: report.pendingConflicts,
      },
      schema,
    },
    ...settled(),
  }
}

/** Files from this size on are captured by their pages: the rows of smaller ones are compared as fast. Tests set it. */
export const paged = {bytes: 4 * 1024 * 1024}

function usesPages(run: SyncRun, source: Source): boolean {
  // Rows that wait for another try have changed nothing since: they are met by comparing all rows.
  if (run.full || run.dryRun || run.deployment.quarantinedRows > 0) return false
  return run.capture === undefined || run.capture === 'auto'
    ? source.size() >= paged.bytes
    : run.capture === 'pages'
}

/** The pages as the last cut knew them. Taken away while a capture works with them: a run that fails leaves none. */
function pagesOf({pages, sidecar}: Held, source: Source): PageState | undefined {
  const inMemory = pages.state
  pages.state = undefined
  return sidecar.noted('identity') === source.identity ? sidecar.loadPages(inMemory) : undefined
}

/** @param seen `undefined` when what is known of the pages is not to be believed. */
function keepPages({pages, sidecar}: Held, source: Source, seen: PageState | undefined): void {
  // The log of a file that took this one's name may have been read for its own.
  const state = source.isReplaced() ? undefined : seen
  sidecar.savePages(state)
  pages.state = state
}

/**
 * Copies all rows, and looks at all pages, so that the next sync knows them already. What was looked at counts only when
 * no commit came in between, so the one may be done while the other waits for Postgres.
 */
async function loadAndLook(
  run: SyncRun,
  source: Source,
  sidecar: Sidecar,
  previous: SourceSchema | undefined,
  finder: PageFinder | undefined,
  signal: AbortSignal,
): Promise<Loaded> {
  const isInWal = isWal(source)
  const look = async (signal: AbortSignal) => {
    await finder?.find(new Pace(source, run.limits.lockBudgetMs, signal), isInWal, signal)
  }
  // In WAL mode a look needs a transaction of the connection that the load reads with.
  if (isInWal)
    await look(signal).finally(() => {
      endRead(source.db)
    })
  const loading = Promise.withResolvers<Loaded>()
  await together(
    signal,
    async signal => {
      loading.resolve(await load(run, source, sidecar, previous, signal))
    },
    async signal => {
      if (!isInWal) await look(signal)
    },
  )
  return await loading.promise
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
  if (run.deployment.hasUnwritten) {
    const {deploymentId, schemaName} = run.deployment
    const waiting = await countUnwritten(run.pool, schemaName, deploymentId, cut.schema.tables)
    const doubt = tooMuch(waiting, {schema: cut.schema, sidecar, limits: run.limits})
    if (doubt !== undefined) return doubt
  }
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

/** The client schema as far as a schema that has not changed needs to know it. */
function existingOf(schema: SourceSchema): Existing {
  return new Map(
    schema.tables.map(({target, columns}) => [
      target,
      new Map(columns.map(column => [column.target, column.type])),
    ]),
  )
}
