import {resolve} from 'node:path'
import type {Config} from '../config/config.ts'
import {parseClientName} from '../core/client-name.ts'
import {fragment, join as joined, type Pool, type Sql} from '../postgres/sql.ts'
import {countRows} from '../source/count.ts'
import {openSource} from '../source/open.ts'
import {findDeployment, findSourceSchema} from '../state/deployments.ts'

// How many rows a run has before it: for the bar that a person sees, and for nothing else.

/** A bar is worth no longer wait than this. */
const PATIENCE_MS = 1_500

/** @returns how many rows a first load copies; `undefined` for any other sync, and when counting takes too long. */
export async function rowsToLoad(
  pool: Pool,
  {lockBudgetMs}: Config,
  {client, sqlite}: {readonly client: string; readonly sqlite: string | undefined},
  signal: AbortSignal,
): Promise<number | undefined> {
  return await unlessItFails(signal, async patience => {
    const deployment = await findDeployment(pool, parseClientName(client).schema)
    const path = sqlite ?? deployment?.sqlitePath ?? undefined
    if ((deployment?.generation ?? 0n) > 0n || path === undefined) return undefined
    using source = await openSource(resolve(path), patience)
    const {tables} = await countRows(source, lockBudgetMs, patience)
    return tables.values().reduce((total, rows) => total + rows, 0)
  })
}

/** @returns how many rows Postgres has of a client, tombstones left out; `undefined` when counting takes too long. */
export async function rowsInTarget(
  pool: Pool,
  client: string,
  signal: AbortSignal,
): Promise<number | undefined> {
  return await unlessItFails(signal, async () => {
    const deployment = await findDeployment(pool, parseClientName(client).schema)
    if (deployment === undefined) return undefined
    const counts = await countBriefly(pool, deployment)
    return counts.values().reduce((total, {live}) => total + live, 0)
  })
}

/** @returns the same table by table, by the names of the source's tables. */
export async function tablesInTarget(
  pool: Pool,
  deployment: Place,
  signal: AbortSignal,
): Promise<ReadonlyMap<string, number> | undefined> {
  return await unlessItFails(signal, async () => {
    const counts = await countBriefly(pool, deployment)
    return new Map(counts.values().map(({name, live}) => [name, live]))
  })
}

async function countBriefly(pool: Pool, deployment: Place): Promise<ReadonlyMap<string, TargetCount>> {
  return await pool.begin(tx => countTarget(tx, deployment), {
    readOnly: true,
    setLocal: {statement_timeout: `${PATIENCE_MS}ms`},
  })
}

type Place = {readonly deploymentId: string; readonly schemaName: string}

/** Rows of one source table in Postgres: those there are, and those that the source has deleted. */
export type TargetCount = {readonly name: string; readonly live: number; readonly deleted: number}

/** Counts the rows that Postgres has of a client, by the names of the source's tables. */
export async function countTarget(
  sql: Sql,
  {deploymentId, schemaName}: Place,
): Promise<ReadonlyMap<string, TargetCount>> {
  const layouts = (await findSourceSchema(sql, deploymentId))?.tables ?? []
  if (layouts.length === 0) return new Map()
  const counts = layouts.map(
    ({source, target}) => fragment`select ${source}::text as name,
      count(*) filter (where _sync_deleted_at is null)::float8 as live,
      count(*) filter (where _sync_deleted_at is not null)::float8 as deleted
      from ${sql(schemaName, target)}`,
  )
  const rows = await sql<TargetCount>`${joined(counts, ' union all ')}`
  return new Map(rows.map(row => [row.name, row]))
}

/** Whatever is wrong, the run itself meets it next, and says so in full. */
async function unlessItFails<T>(
  signal: AbortSignal,
  count: (patience: AbortSignal) => Promise<T | undefined>,
): Promise<T | undefined> {
  try {
    return await count(AbortSignal.any([signal, AbortSignal.timeout(PATIENCE_MS)]))
  } catch {
    signal.throwIfAborted()
    return undefined
  }
}
