import type {Source} from '../source/open.ts'
import {rehearseCut} from './apply-cut.ts'
import type {Cut} from './cut.ts'
import {takeMarked} from './queue.ts'
import type {Report} from './report.ts'
import type {Sidecar} from './sidecar.ts'
import type {SourceWrites, SyncRun} from './sync.ts'
import {countsOf, previewOf, tooMuch} from './write-back.ts'

/** What a two_way sync would write to the source, found out by applying the cut and taking it back. */
export async function previewWrites(
  run: SyncRun,
  report: Report,
  sidecar: Sidecar,
  cut: Cut,
  source: Source,
  signal: AbortSignal,
): Promise<SourceWrites> {
  const {pool, deployment, limits} = run
  await takeMarked(pool, deployment.schemaName, source, cut, limits.lockBudgetMs, signal)
  const seen = await rehearseCut(
    run,
    report,
    sidecar,
    cut,
    tx => previewOf(tx, deployment, cut.schema.tables),
    signal,
  )
  const {waiting, tables} = seen ?? {waiting: [], tables: []}
  const reason = tooMuch(waiting, {schema: cut.schema, sidecar, limits})
  return {
    ...countsOf(waiting),
    refused: 0,
    left: 0,
    ...(reason === undefined ? {} : {reason}),
    tables,
  }
}
