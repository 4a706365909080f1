import {json, type Pool, type Tx} from '../postgres/sql.ts'
import {saveSourceSchema, type Deployment} from '../state/deployments.ts'
import {applyTable, clearColumn, isSent, stageRows, TableRefusedError, tombstoneAll} from '../target/apply.ts'
import {valuesOfRow} from '../target/encode.ts'
import {passedOver, passedOverInStage, stagedSides, type SourceSide} from '../target/marks.ts'
import type {Operation} from '../target/plan.ts'
import {reshape} from './reshape.ts'
import {decideRows, PAGE_ROWS, Tally, type Court} from './conflicts.ts'
import type {Cut, QuarantinedRow} from './cut.ts'
import {rulesOf, type Rules} from '../conflict/rules.ts'
import type {Loaded} from './first-load.ts'
import type {Report} from './report.ts'
import type {Sidecar} from './sidecar.ts'
import type {Spool} from './spool.ts'
import type {SyncRun} from './sync.ts'

/** Rows of one cut that Postgres may refuse before we suspect ourselves instead of the rows. */
const MOST_REFUSALS = 100

/**
 * One fenced transaction for the whole cut; again without a row whenever Postgres refuses that row.
 *
 * @returns the new generation, or `undefined` when Postgres refused all there was.
 */
export async function applyCut(
  run: SyncRun,
  report: Report,
  sidecar: Sidecar,
  cut: Cut,
  cutId: string,
  loaded: Loaded | undefined,
  signal: AbortSignal,
): Promise<bigint | undefined> {
  const {deployment, lease} = run
  const advance = async (tx: Tx) => {
    const [row] = await tx<{generation: bigint}>`
      select sync_metadata.advance_generation(${deployment.deploymentId}, ${deployment.generation}, ${cutId},
        ${lease.epoch}, ${json({...report.job(run, modeOf(run, loaded)), node_id: lease.nodeId})}) as generation`
    return (row as {generation: bigint}).generation
  }
  return await inOneTransaction({run, report, sidecar, cut, loaded}, advance, signal)
}

/**
 * Applies a cut and takes all of it back: what `look` sees at its end is what would have come of it.
 *
 * @returns `undefined` when Postgres refused all there was.
 */
export async function rehearseCut<T>(
  run: SyncRun,
  report: Report,
  sidecar: Sidecar,
  cut: Cut,
  look: (tx: Tx) => Promise<T>,
  signal: AbortSignal,
): Promise<T | undefined> {
  const seen: {value?: T} = {}
  try {
    await inOneTransaction(
      {run, report, sidecar, cut, loaded: undefined},
      async tx => {
        seen.value = await look(tx)
        throw new TakenBack()
      },
      signal,
    )
  } catch (error) {
    if (!(error instanceof TakenBack)) throw error
  }
  return seen.value
}

/** Ends a transaction that was only tried. */
class TakenBack extends Error {}

async function inOneTransaction<T>(
  {
    run,
    report,
    sidecar,
    cut,
    loaded,
  }: {
    readonly run: SyncRun
    readonly report: Report
    readonly sidecar: Sidecar
    readonly cut: Cut
    readonly loaded: Loaded | undefined
  },
  end: (tx: Tx) => Promise<T>,
  signal: AbortSignal,
): Promise<T | undefined> {
  const {pool, lease, deployment, limits} = run
  const care = new Care()
  const rules = rulesFor(run)
  for (;;) {
    try {
      const court: Court = {
        deployment,
        rules,
        jobId: run.jobId,
        by: lease.nodeId,
        tally: new Tally(),
        written: run.written,
        previousOf: cut.previousOf,
      }
      return await pool.begin(
        async tx => {
          await writeCut(tx, court, cut, care, limits.lockBudgetMs, signal)
          report.conflicts = court.tally
          if (cut.isSchemaChanged)
            await saveSourceSchema(tx, deployment.deploymentId, deployment.generation + 1n, cut.schema)
          await recordQuarantine(tx, deployment, report.refused)
          lease.signal.throwIfAborted()
          return await end(tx)
        },
        {setLocal: {statement_timeout: `${limits.statementTimeoutMs}ms`}, signal: lease.signal},
      )
    } catch (error) {
      const refused = await care.learn(error, cut)
      if (refused === undefined) throw error
      for (const {source, row} of refused) {
        sidecar.unremember(source, row.key)
        report.refuse(row)
      }
      if (report.hasNoRows && !cut.isSchemaChanged && loaded === undefined && cut.taken === 0)
        return undefined
    }
  }
}

/**
 * What would be decided if the cut were applied. Nothing is written that stays, and nobody is kept from editing but for
 * the moment in which tables would change.
 */
export async function dryDecisions(run: SyncRun, cut: Cut, signal: AbortSignal): Promise<Tally> {
  const {pool, lease, deployment, limits} = run
  const court: Court = {
    deployment,
    rules: rulesFor(run),
    jobId: undefined,
    by: lease.nodeId,
    tally: new Tally(),
    previousOf: cut.previousOf,
    isDry: true,
    met: new Map([...cut.plan.rekeyed].map(table => [table, new Set()])),
  }
  const undo = new Error('a dry run is undone')
  const {schemaName, deploymentId} = deployment
  const [found] = await pool<{any: boolean}>`
    select exists (select from sync_metadata.marked_tables(${schemaName})) or exists (
      select from sync_metadata.conflict_log where deployment_id = ${deploymentId} and is_standing) as any`
  if (found?.any !== true) return court.tally
  try {
    await pool.begin(
      async tx => {
        await reshape(tx, {deploymentId, schemaName, lockBudgetMs: limits.lockBudgetMs}, cut, [], signal)
        await decideVanished(tx, court, cut)
        for (const spool of cut.spools.values()) {
          const isSmall = spool.small !== undefined
          if (!isSmall && spool.count > 0)
            await stageRows(tx, schemaName, spool.layout, spool.stream(new Set()), signal)
          if (spool.count > 0) await decideUpserts(tx, court, spool, isSmall, spool.count)
          await decideTombstones(tx, court, spool)
        }
        await decideStrangers(tx, court, cut)
        throw undo
      },
      {setLocal: {statement_timeout: `${limits.statementTimeoutMs}ms`}, signal: lease.signal},
    )
  } catch (error) {
    if (error !== undo) throw error
  }
  return court.tally
}

/** The rules that hold, read when they are first asked for. */
function rulesFor({conflictConfig, deployment}: SyncRun): () => Rules {
  let rules: Rules | undefined
  return () => (rules ??= rulesOf(conflictConfig, {name: deployment.clientName, config: deployment.config}))
}

export function modeOf(run: Pick<SyncRun, 'full'>, loaded: Loaded | undefined): 'full' | 'incremental' {
  return loaded !== undefined || run.full ? 'full' : 'incremental'
}

async function writeCut(
  tx: Tx,
  court: Court,
  cut: Cut,
  care: Care,
  lockBudgetMs: number,
  signal: AbortSignal,
): Promise<void> {
  const {deploymentId, schemaName} = court.deployment
  const loosened: Operation[] = [...care.loosened].map(table => ({op: 'loosen_indexes', table}))
  await reshape(tx, {deploymentId, schemaName, lockBudgetMs}, cut, loosened, signal)
  for (const {table, column} of cut.plan.clear) await clearColumn(tx, schemaName, table, column)
  for (const layout of cut.plan.vanished) await tombstoneAll(tx, schemaName, layout.target)
  await decideVanished(tx, court, cut)
  for (const spool of cut.spools.values()) {
    const changes = {
      layout: spool.layout,
      small: care.mustStage(spool.layout.source) ? undefined : spool.small,
      count: spool.count,
      tombstones: spool.tombstones,
      // A row that was taken for its mark may have been captured as well, while it was otherwise.
      mayRepeat: !cut.capture.consistent || cut.taken > 0,
      findRefused: care.mustSearch(spool.layout.source),
      stream: (skip: ReadonlySet<number>) => spool.stream(skip),
    }
    const skip = care.skip(spool.layout.source)
    const passed = await applyTable(tx, schemaName, changes, skip, signal)
    if (passed.upserts > 0) await decideUpserts(tx, court, spool, isSent(changes, skip), passed.upserts)
    if (passed.tombstones > 0) await decideTombstones(tx, court, spool)
  }
  await decideStrangers(tx, court, cut)
  if (cut.widenings.length > 0)
    await tx`select sync_metadata.evolve_schema(${deploymentId}, ${json(cut.widenings)})`
}

/**
 * Decides about rows of tables with new keys that are in no cut: the source has none of them, or they would have been met
 * under the keys that it has.
 */
async function decideStrangers(tx: Tx, court: Court, cut: Cut): Promise<void> {
  const {schemaName} = court.deployment
  for (const layout of cut.plan.tables.filter(({source}) => cut.plan.rekeyed.has(source))) {
    const refused = new Set(cut.refused.filter(({table}) => table === layout.target).map(({key}) => key))
    const keys = await passedOver(tx, schemaName, layout, 'marked')
    const met = court.met?.get(layout.source)
    const strangers = keys.filter(key => !refused.has(key) && met?.has(key) !== true)
    await decideRows(tx, court, layout, strangers, nothing)
  }
}

/** Decides about the rows of tables that the app has dropped. */
async function decideVanished(tx: Tx, court: Court, cut: Cut): Promise<void> {
  const {schemaName} = court.deployment
  for (const layout of cut.plan.vanished) {
    const keys = await passedOver(tx, schemaName, layout, 'all')
    await decideRows(tx, {...court, isTableGone: true, previousOf: () => undefined}, layout, keys, nothing)
  }
}

/** Decides about rows that stay in the source and that the upsert has passed over. */
async function decideUpserts(
  tx: Tx,
  court: Court,
  spool: Spool,
  isSmall: boolean,
  most: number,
): Promise<void> {
  const {layout} = spool
  const {schemaName} = court.deployment
  if (!isSmall) {
    for await (const keys of passedOverInStage(tx, schemaName, layout, most, PAGE_ROWS))
      await decideRows(tx, court, layout, keys, page => stagedSides(tx, layout, page))
    return
  }
  const rows = new Map((spool.small ?? []).map(row => [row.key, row]))
  const keys = await passedOver(tx, schemaName, layout, [...rows.keys()])
  const sides = new Map<string, SourceSide>()
  for (const key of keys) {
    const row = rows.get(key)
    if (row !== undefined) sides.set(key, {digest: Buffer.from(row.digest), values: valuesOfRow(row, layout)})
  }
  await decideRows(tx, court, layout, keys, () => Promise.resolve(sides))
}

/** Decides about rows that the source has no more and that the tombstones have passed over. */
async function decideTombstones(tx: Tx, court: Court, {layout, tombstones}: Spool): Promise<void> {
  for (let at = 0; at < tombstones.length; at += MANY_KEYS) {
    const some = tombstones.slice(at, at + MANY_KEYS)
    const keys = await passedOver(tx, court.deployment.schemaName, layout, some)
    await decideRows(tx, court, layout, keys, nothing)
  }
}

const MANY_KEYS = 10_000

/** The source has none of the rows. */
const nothing = () => Promise.resolve(new Map<string, SourceSide>())

/** What earlier tries of one cut have taught: which rows to leave out, which tables to stage, which indexes to loosen. */
class Care {
  readonly loosened = new Set<string>()
  readonly #staged = new Set<string>()
  readonly #searched = new Set<string>()
  readonly #skip = new Map<string, Set<number>>()
  #refusals = 0

  mustStage(table: string): boolean {
    return this.#staged.has(table)
  }

  mustSearch(table: string): boolean {
    return this.#searched.has(table)
  }

  skip(table: string): ReadonlySet<number> {
    return this.#skip.get(table) ?? new Set()
  }

  /**
   * @returns the rows to be left out from now on, none when the next try does something else differently;
   * `undefined` when there is nothing left to try.
   */
  async learn(
    error: unknown,
    cut: Cut,
  ): Promise<readonly {source: string; row: QuarantinedRow}[] | undefined> {
    if (!(error instanceof TableRefusedError)) return undefined
    const {table, cause, lines} = error
    const spool = cut.spools.get(table)
    if (spool === undefined) return undefined
    const {target} = spool.layout
    if (cause.sqlstate === '54000' && !this.loosened.has(target)) {
      this.loosened.add(target)
      return []
    }
    if (!this.#staged.has(table)) {
      // Staged by COPY, Postgres says which row it is when the value itself is the reason.
      this.#staged.add(table)
      return []
    }
    if (lines.length === 0) {
      if (this.#searched.has(table)) return undefined
      this.#searched.add(table)
      return []
    }
    this.#refusals += lines.length
    if (this.#refusals > MOST_REFUSALS) return undefined
    const skip = this.#skip.get(table) ?? new Set<number>()
    this.#skip.set(table, skip)
    const left = [...skip].sort((a, b) => a - b)
    const refused = []
    for (const {line: sent, cause} of lines) {
      // Postgres counts the rows it was sent; ours are counted with those that were left out.
      let line = sent
      for (const before of left) if (before <= line) line++
      skip.add(line)
      const key = await spool.keyAt(line)
      if (key === undefined) return undefined
      refused.push({source: table, row: {table: target, key, code: cause.code, reason: cause.message}})
    }
    return refused
  }
}

/** Notes which rows wait for another try, and that those which waited before and are not among them have passed. */
export async function recordQuarantine(
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
