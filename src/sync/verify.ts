import {setTimeout as sleep} from 'node:timers/promises'
import {canonical, digestOf} from '../core/canonical.ts'
import {SyncError} from '../core/errors.ts'
import type {SourceSchema, TableLayout} from '../core/layout.ts'
import {together} from '../core/together.ts'
import type {Lease} from '../cluster/lease.ts'
import {json, type BeginOptions, type Pool, type Sql} from '../postgres/sql.ts'
import type {TableSpec} from '../source/introspect.ts'
import {fingerprint, openSource, type Source} from '../source/open.ts'
import {findDeployment, findSourceSchema, type Deployment} from '../state/deployments.ts'
import {chooseBuckets, digestsInBuckets, digestsOf, sumDigests, type DigestSource} from '../target/digests.ts'
import {readExisting, type Existing} from '../target/plan.ts'
import {Candidates} from './candidates.ts'
import {
  Findings,
  judgeAll,
  MOST_LISTED,
  quarantineId,
  READS,
  type Difference,
  type Explained,
} from './findings.ts'
import {Knowledge} from './known.ts'
import {differing, hasSameShape, inOrderOf, pairTables, type Pair, type StructureFinding} from './pairs.ts'
import {repair, type TableRepair} from './repair.ts'
import {versionOf, withSnapshot, type Snapshot} from './snapshot.ts'

/** What a verification of one deployment is given. */
export type VerifyRun = {
  readonly pool: Pool
  readonly deployment: Deployment
  readonly sqlitePath: string
  readonly stateDir: string
  readonly lockBudgetMs: number
  /** Trust the hashes stored in the target, and the marks of foreign edits, instead of computing what is there. */
  readonly quick: boolean
  /** The job that it is for. */
  readonly jobId?: string
  /** What applying the source's rows again takes; the caller holds the deployment's lock. Without it nothing is changed. */
  readonly repair?: {readonly lease: Lease; readonly batchRows: number; readonly statementTimeoutMs: number}
  readonly onProgress?: (table: string, rows: number) => void
}

/** What a verification found: SPEC §4's JSON. */
export type VerifyResult = {
  readonly client: string
  readonly generation: bigint
  readonly tables: number
  readonly rows_compared: number
  /** The first thousand of them. */
  readonly differences: readonly Difference[]
  readonly accepted: number
  readonly pending: number
  readonly moving: number
  readonly repaired: number
  readonly duration_ms: number
}

/** What a person may want to know beside the result. */
export type VerifyTotals = {
  /** All differences, also those that are too many to be listed. */
  readonly differences: number
}

/** There is nothing in the target yet that could be compared. */
export class NothingToVerifyError extends SyncError {
  override readonly name = 'NothingToVerifyError'
  readonly code = 'SYNC_NOTHING_TO_VERIFY'
  readonly next = 'Run `owsync sync` until it succeeds, then verify.'

  constructor(client: string, deployment: Deployment) {
    const why =
      deployment.loadPosition === null ? 'it has never been synced' : 'its first load has not finished'
    super(`${client} cannot be verified: ${why}`)
  }
}

const KEYS_AT_ONCE = 5_000
const SIDECAR_MS = 200

/**
 * Proves that the target holds what the source holds, row by row and value by value.
 *
 * Both sides sum up the digests of their rows, the target in SQL and from the values that stand there; where sums
 * differ the rows are compared, again a little later when the app goes on writing, and what then differs is told from
 * what the app has changed since the last cut.
 */
export async function verifyDeployment(
  run: VerifyRun,
  signal: AbortSignal,
): Promise<{result: VerifyResult; totals: VerifyTotals}> {
  const startedAt = performance.now()
  using source = await openSource(run.sqlitePath, signal)
  using knowledge = Knowledge.open(run.stateDir, run.deployment.deploymentId)
  using resources = new DisposableStack()
  const version = await versionOf(source, signal)
  const basis = await sumBoth(run, source, signal)
  const {cut, pairs, findings} = basis
  const suspects = pairs.filter(pair => differing(pair).length > 0)
  for (const pair of suspects) pair.candidates = resources.use(new Candidates())
  if (suspects.length > 0) await collect(run, source, suspects, signal)
  const explained = await settle(run, {source, knowledge, version}, suspects, signal)

  // As late as can be: when the file is as the last cut left it now, it was so all the while.
  const seenAs = fingerprint(source.file)
  const mayBeNewer = seenAs === undefined || seenAs !== knowledge?.fingerprint(cut.deployment.cutId ?? '')
  const report = new Findings(findings, mayBeNewer)
  const quarantined = await readQuarantined(run.pool, run.deployment.deploymentId)
  for (const pair of suspects) {
    judgeAll(pair, mayBeNewer, quarantined)
    await report.add({sql: run.pool, schemaName: run.deployment.schemaName}, pair, explained)
  }
  const repaired = run.repair === undefined ? 0 : await repairAll(run, source, basis, report, signal)
  const result: VerifyResult = {
    client: cut.deployment.clientName,
    generation: cut.deployment.generation,
    tables: cut.schema.tables.length,
    rows_compared: pairs.reduce((total, {sums}) => total + sums.rows, 0),
    differences: report.listed,
    accepted: pairs.reduce((total, {stored}) => total + (stored?.accepted ?? 0), 0),
    pending: report.pending,
    moving: report.moving,
    repaired,
    duration_ms: Math.round(performance.now() - startedAt),
  }
  await record(run, cut.deployment, result, report.count)
  return {result, totals: {differences: report.count}}
}

type VerifiedCut = {readonly deployment: Deployment; readonly schema: SourceSchema}

type Basis = {
  readonly cut: VerifiedCut
  readonly existing: Existing
  readonly pairs: Pair[]
  readonly findings: StructureFinding[]
}

/**
 * Sums up both sides at the same time. Neither transaction waits for the other's work: an idle one would be ended by
 * the server.
 */
async function sumBoth(run: VerifyRun, source: Source, signal: AbortSignal): Promise<Basis> {
  const {schemaName} = run.deployment
  const shape = Promise.withResolvers<readonly TableSpec[]>()
  const basis = Promise.withResolvers<Basis>()
  // Whoever fails tells the other, which waits for the promise; nobody may be left to wait for it.
  for (const {promise} of [shape, basis]) promise.catch(() => undefined)
  const orTell = async (work: Promise<void>) => {
    try {
      await work
    } catch (error) {
      shape.reject(error)
      basis.reject(error)
      throw error
    }
  }
  const sumTarget = async () => {
    const specs = await shape.promise
    await run.pool.begin(async tx => {
      const cut = await readCut(tx, run.deployment)
      const existing = await readExisting(tx, schemaName)
      const buckets = await chooseBuckets(tx, schemaName)
      const {pairs, findings} = pairTables(specs, cut.schema.tables, existing, buckets)
      basis.resolve({cut, existing, pairs, findings})
      for (const pair of pairs)
        pair.stored = await sumDigests(tx, schemaName, pair.layout, digestsFrom(run), pair.sums.mask + 1)
      for (const finding of findings)
        if (finding.layout !== undefined && finding.difference.kind === 'extra')
          finding.rows = await countLive(tx, schemaName, finding.layout)
    }, readOnce)
  }
  const read = async (snapshot: Snapshot) => {
    shape.resolve(snapshot.spec.tables)
    await sumSource(run, snapshot, await basis.promise)
  }
  await together(
    signal,
    () => orTell(sumTarget()),
    signal => orTell(withSnapshot(source, run.lockBudgetMs, read, signal)),
  )
  return await basis.promise
}

/**
 * One snapshot, for as long as it takes: a table may have any size. On one of the server's cores: we read the source on
 * another one, and that takes longer.
 */
const readOnce: BeginOptions = {
  isolation: 'repeatable read',
  readOnly: true,
  setLocal: {statement_timeout: '0', max_parallel_workers_per_gather: '0'},
}

async function countLive(sql: Sql, schemaName: string, {target}: TableLayout): Promise<number> {
  const [row] = await sql<{rows: bigint}>`
    select count(*) as rows from ${sql(schemaName, target)} where _sync_deleted_at is null`
  return Number(row?.rows ?? 0n)
}

async function readCut(
  sql: Sql,
  {schemaName, clientName, deploymentId}: Pick<Deployment, 'schemaName' | 'clientName' | 'deploymentId'>,
): Promise<VerifiedCut> {
  const deployment = await findDeployment(sql, schemaName)
  const schema = await findSourceSchema(sql, deploymentId)
  if (deployment === undefined) throw new Error(`the deployment of ${clientName} has gone`)
  if (schema === undefined || deployment.generation === 0n || deployment.loadPosition !== null)
    throw new NothingToVerifyError(clientName, deployment)
  return {deployment, schema}
}

async function sumSource(run: VerifyRun, snapshot: Snapshot, {pairs, findings}: Basis): Promise<void> {
  for (const {spec, sums} of pairs) {
    await snapshot.scan(spec, {
      row: ({digest}) => {
        sums.add(digest)
      },
      onProgress: progressOf(run, spec),
    })
  }
  for (const finding of findings)
    if (finding.spec !== undefined) finding.rows = await snapshot.scan(finding.spec, {row: () => undefined})
}

function progressOf({onProgress}: VerifyRun, {name}: TableSpec): (rows: number) => void {
  return rows => onProgress?.(name, rows)
}

function digestsFrom(run: VerifyRun): DigestSource {
  return run.quick ? 'stored' : 'values'
}

/** The first closer look: all rows of the buckets that differ, from both sides. */
async function collect(
  run: VerifyRun,
  source: Source,
  suspects: readonly Pair[],
  signal: AbortSignal,
): Promise<void> {
  await withSnapshot(
    source,
    run.lockBudgetMs,
    async snapshot => {
      for (const {spec, sums, candidates, ...rest} of suspects) {
        const wanted = new Set(differing({spec, sums, candidates, ...rest}))
        await snapshot.scan(spec, {
          row: ({key, digest}) => {
            if (wanted.has(sums.bucketOf(digest))) candidates?.addSource(key, digest)
          },
          refused: ({key}) => {
            candidates?.addSource(key, undefined)
          },
          onProgress: progressOf(run, spec),
        })
      }
    },
    signal,
  )
  await run.pool.begin(async tx => {
    for (const pair of suspects) {
      const {mask} = pair.sums
      const where = {mask, buckets: differing(pair)}
      const digests = digestsInBuckets(
        tx,
        run.deployment.schemaName,
        pair.layout,
        digestsFrom(run),
        where,
        signal,
      )
      for await (const rows of digests) for (const row of rows) pair.candidates?.addTarget(row)
      pair.candidates?.dropEqual()
    }
  }, readOnce)
}

type Sides = {readonly source: Source; readonly knowledge: Knowledge | undefined; readonly version: bigint}

/**
 * Reads the candidates again until they hold still: what was only being written, or synced, meanwhile is equal then,
 * and what changes at each of three reads is moving.
 */
async function settle(
  run: VerifyRun,
  sides: Sides,
  suspects: readonly Pair[],
  signal: AbortSignal,
): Promise<Explained> {
  const explained = new Map(suspects.map(pair => [pair, new Map<string, readonly (string | null)[]>()]))
  let {version} = sides
  for (let read = 2; read <= READS && suspects.length > 0; read++) {
    const now = await versionOf(sides.source, signal)
    // The sidecar follows Postgres by some milliseconds: before that it cannot say what the newest cut applied.
    const isBehind = read > 2 && sides.knowledge !== undefined && suspects.some(pair => !pair.isRemembered)
    const mustReread = now !== version || isBehind
    version = now
    if (read > 2 && !mustReread) break
    if (isBehind) await sleep(SIDECAR_MS, undefined, {signal})
    // A source that has held still is read again only to say which columns of a row differ.
    const wanted = suspects.filter(({candidates}) => mustReread || candidates?.hasPairs === true)
    if (wanted.length > 0) await readAgain(run, sides.source, wanted, explained, signal)
    await readTarget(run, sides.knowledge, suspects)
  }
  return explained
}

async function readAgain(
  run: VerifyRun,
  source: Source,
  pairs: readonly Pair[],
  explained: ReadonlyMap<Pair, Map<string, readonly (string | null)[]>>,
  signal: AbortSignal,
): Promise<void> {
  await withSnapshot(
    source,
    run.lockBudgetMs,
    async snapshot => {
      for (const pair of pairs) {
        const {spec, candidates} = pair
        const columns = explained.get(pair)
        if (candidates === undefined || columns === undefined) continue
        candidates.beginRead()
        await snapshot.scan(spec, {
          row: ({key, digest, values}) => {
            if (!candidates.has(key)) return
            candidates.seeAgain(key, digest)
            if (columns.size >= MOST_LISTED || !candidates.isOnBothSides(key)) return
            columns.set(
              key,
              values.map(value => (value === null ? null : digestOf(canonical(value)).toString('hex', 0, 8))),
            )
          },
          refused: ({key}) => {
            if (candidates.has(key)) candidates.seeAgain(key, undefined)
          },
          onProgress: progressOf(run, spec),
        })
        candidates.endRead()
      }
    },
    signal,
  )
}

/** The target's rows of all candidates in one snapshot, and what the sidecar knows of them at the same cut. */
async function readTarget(
  run: VerifyRun,
  knowledge: Knowledge | undefined,
  pairs: readonly Pair[],
): Promise<void> {
  const {schemaName} = run.deployment
  const cutId = await run.pool.begin(async tx => {
    const {deployment} = await readCut(tx, run.deployment)
    for (const {candidates, layout} of pairs) {
      candidates?.clearTarget()
      for (const keys of candidates?.keys(KEYS_AT_ONCE) ?? [])
        for (const row of await digestsOf(tx, schemaName, layout, digestsFrom(run), keys))
          candidates?.addTarget(row)
    }
    return deployment.cutId ?? ''
  }, readOnce)
  for (const pair of pairs)
    pair.isRemembered =
      knowledge?.visit(cutId, pair.layout.source, (key, digest) => {
        pair.candidates?.remember(key, digest)
      }) ?? false
}

async function readQuarantined(sql: Sql, deploymentId: string): Promise<ReadonlySet<string>> {
  const rows = await sql<{table_name: string; record_key: string}>`
    select table_name, record_key from sync_metadata.row_quarantine
    where deployment_id = ${deploymentId} and resolved_at is null`
  return new Set(rows.map(row => quarantineId(row.table_name, row.record_key)))
}

async function repairAll(
  run: VerifyRun,
  source: Source,
  {cut, existing, pairs}: Basis,
  report: Findings,
  signal: AbortSignal,
): Promise<number> {
  if (run.repair === undefined || report.count === 0) return 0
  const rows = pairs.flatMap(({spec, layout, candidates}): TableRepair[] =>
    candidates === undefined ? [] : [{spec, layout, candidates}],
  )
  const tables = report.broken.flatMap(({spec, layout}): TableRepair[] =>
    spec === undefined || layout === undefined || !hasSameShape(spec, layout)
      ? []
      : [{spec: inOrderOf(layout, spec), layout, candidates: undefined}],
  )
  return await repair(
    {
      ...run.repair,
      pool: run.pool,
      deployment: cut.deployment,
      stateDir: run.stateDir,
      source,
      lockBudgetMs: run.lockBudgetMs,
    },
    [...rows, ...tables],
    existing,
    signal,
  )
}

async function record(
  run: VerifyRun,
  {deploymentId, cutId}: Deployment,
  result: VerifyResult,
  count: number,
): Promise<void> {
  await run.pool`
    insert into sync_metadata.verifications (deployment_id, job_id, generation, cut_id, quick, tables, rows_compared,
      differences, difference_count, accepted, pending, moving, repaired, duration_ms)
    values (${deploymentId}, ${run.jobId ?? null}, ${result.generation}, ${cutId}, ${run.quick}, ${result.tables},
      ${result.rows_compared}, ${json(result.differences)}, ${count}, ${result.accepted}, ${result.pending}, ${result.moving},
      ${result.repaired}, ${result.duration_ms})`
}
