import {randomUUID} from 'node:crypto'
import type {SourceSchema, TableLayout} from '../core/layout.ts'
import type {Lease} from '../cluster/lease.ts'
import {json, type Pool, type Tx} from '../postgres/sql.ts'
import type {DataError} from '../postgres/sqlstate.ts'
import {Pace} from '../source/capture.ts'
import {introspect, readDataVersion, type SourceSpec} from '../source/introspect.ts'
import {whenFree, type Source} from '../source/open.ts'
import {TableReader, type Position} from '../source/read.ts'
import {saveSourceSchema, type Deployment} from '../state/deployments.ts'
import {copyInto, TableRefusedError} from '../target/apply.ts'
import {COPY_HEADER, COPY_TRAILER, TupleWriter} from '../target/copy-format.ts'
import {RowEncoder} from '../target/encode.ts'
import {finishOperation, plan, type Existing} from '../target/plan.ts'
import {classesOf, schemaOf, withSeen, type QuarantinedRow} from './cut.ts'
import type {Sidecar} from './sidecar.ts'

/**
 * Rows are committed in chunks of this many bytes, so that a load that is cut short goes on where it was. Nobody sets
 * it but the tests of interrupted loads, which cannot wait for files of that size.
 */
export const chunk = {bytes: 64 * 1024 * 1024}
const PIECE_BYTES = 256 * 1024
/** A row that Postgres refuses costs a chunk once more; so many in one load point to a fault of ours. */
const MOST_REFUSALS = 100

export type LoadRun = {
  readonly pool: Pool
  readonly lease: Lease
  readonly deployment: Deployment
  readonly source: Source
  readonly sidecar: Sidecar
  readonly lockBudgetMs: number
  readonly statementTimeoutMs: number
  readonly onProgress?: (table: string, rows: number) => void
}

/** What a first load has put into the target; the cut that closes it is compared with the source once more. */
export type Loaded = {
  readonly schema: SourceSchema
  readonly rows: number
  readonly bytes: number
  readonly maxHoldMs: number
  readonly refused: readonly QuarantinedRow[]
  /** The connection's data version when no commit of the app came in between: what was loaded is one state. */
  readonly undisturbedAt: bigint | undefined
  readonly spec: SourceSpec
}

type LoadPosition = {readonly finished: readonly string[]; readonly rows: number; readonly bytes: number}

/**
 * Copies every table into the client schema for the first time, in committed chunks, each behind the fence.
 *
 * Interrupted, it goes on from the last chunk when the sidecar knows it, and else leaves what is missing to the
 * capture that follows, which compares every row anyway. Nothing is visible as complete before that one's commit.
 */
export async function firstLoad(
  run: LoadRun,
  previous: SourceSchema | undefined,
  existing: Existing,
  signal: AbortSignal,
): Promise<Loaded> {
  const {source, sidecar, deployment} = run
  const before = await whenFree(source, () => readDataVersion(source.db), signal)
  const spec = await whenFree(source, () => introspect(source.db), signal)
  const planned = plan(spec.tables, previous?.tables ?? [], new Map(), existing, classesOf(source, spec))
  const isResumed = deployment.loadPosition !== null && previous !== undefined
  const load = new Load(
    run,
    planned.tables,
    isResumed ? (deployment.loadPosition as LoadPosition) : undefined,
  )

  if (!isResumed) await load.start(planned.operations, schemaOf(spec, planned.tables))
  else if (planned.operations.length > 0 || !isInStep(sidecar, deployment) || !load.knowsPlace) {
    // The schema or the sidecar is not what the load began with: make the tables whole, and let the capture fill them.
    await load.finishAll(previous.tables)
    return load.result(previous, spec, undefined)
  }
  const readers = new Map(spec.tables.map(table => [table.name, new TableReader(source.db, table)]))
  await load.copyAll(readers, isResumed, signal)
  const after = await whenFree(source, () => readDataVersion(source.db), signal)
  const isUndisturbed = !isResumed && after === before
  if (!isUndisturbed) load.keepLastPlaces()
  return load.result(schemaOf(spec, planned.tables), spec, isUndisturbed ? after : undefined)
}

function isInStep(sidecar: Sidecar, deployment: Deployment): boolean {
  return sidecar.standing(deployment.cutId) === 'in step'
}

class Load {
  readonly #run: LoadRun
  readonly #layouts: readonly TableLayout[]
  readonly #encoders: ReadonlyMap<string, RowEncoder>
  #finished: Set<string>
  readonly #refused: QuarantinedRow[] = []
  /** Numbers of rows, within the current chunk and by table, that Postgres has refused. */
  readonly #skip = new Map<string, Map<number, DataError>>()
  readonly #pace: Pace
  #rows: number
  #bytes: number

  constructor(run: LoadRun, layouts: readonly TableLayout[], position: LoadPosition | undefined) {
    this.#run = run
    this.#layouts = layouts
    this.#encoders = new Map(layouts.map(layout => [layout.source, new RowEncoder(layout)]))
    this.#finished = new Set(position?.finished)
    this.#rows = position?.rows ?? 0
    this.#bytes = position?.bytes ?? 0
    this.#pace = new Pace(run.source, run.lockBudgetMs, run.lease.signal)
  }

  /** False when rows are in an unfinished table of which nobody knows where they stood: the sidecar was lost. */
  get knowsPlace(): boolean {
    return this.#layouts.every(
      ({source, withoutRowid}) =>
        withoutRowid || this.#finished.has(source) || !this.#run.sidecar.hasAdrift(source),
    )
  }

  async start(operations: readonly object[], schema: SourceSchema): Promise<void> {
    const {sidecar, deployment} = this.#run
    const cutId = randomUUID()
    sidecar.reset()
    await this.#transaction(async tx => {
      await tx`select sync_metadata.evolve_schema(${deployment.deploymentId}, ${json(operations)})`
      await saveSourceSchema(tx, deployment.deploymentId, 1n, schema)
      await this.#recordStep(tx, cutId)
    })
    sidecar.standAt(cutId)
  }

  async copyAll(
    readers: ReadonlyMap<string, TableReader>,
    isResumed: boolean,
    signal: AbortSignal,
  ): Promise<void> {
    const cursor = this.#unfinished(isResumed)
    while (cursor.left.length > 0) {
      signal.throwIfAborted()
      const start = {
        left: cursor.left,
        position: cursor.position,
        rows: this.#rows,
        bytes: this.#bytes,
        refused: this.#refused.length,
      }
      const finished = [...this.#finished]
      try {
        await this.#chunk(readers, cursor, signal)
        this.#skip.clear()
      } catch (error) {
        this.#run.sidecar.abandon()
        if (!this.#noteRefusal(error)) throw error
        // Once more from where the chunk began, without the row.
        cursor.left = start.left
        cursor.position = start.position
        this.#rows = start.rows
        this.#bytes = start.bytes
        this.#refused.length = start.refused
        this.#finished = new Set(finished)
      }
    }
  }

  /** Gives every table of an interrupted load its key, so that rows can be compared and replaced. */
  async finishAll(layouts: readonly TableLayout[]): Promise<void> {
    const open = layouts.filter(layout => !this.#finished.has(layout.source))
    if (open.length === 0) return
    const {sidecar, deployment} = this.#run
    const wasInStep = isInStep(sidecar, deployment)
    const cutId = randomUUID()
    await this.#transaction(async tx => {
      await this.#finish(tx, open)
      await this.#recordStep(tx, cutId)
    })
    if (wasInStep) sidecar.standAt(cutId)
  }

  keepLastPlaces(): void {
    this.#run.sidecar.beginChunk()
    for (const layout of this.#layouts)
      if (!layout.withoutRowid) this.#run.sidecar.keepLastPlaces(layout.source)
    this.#run.sidecar.endChunk()
  }

  result(schema: SourceSchema, spec: SourceSpec, undisturbedAt: bigint | undefined): Loaded {
    return {
      schema: {...schema, tables: withSeen(schema.tables, this.#encoders)},
      rows: this.#rows,
      bytes: this.#bytes,
      maxHoldMs: this.#pace.maxHoldMs,
      refused: this.#refused,
      undisturbedAt,
      spec,
    }
  }

  #unfinished(isResumed: boolean): {left: readonly TableLayout[]; position: Position | undefined} {
    // A table without rowids has no place to go on from; the capture that follows completes it.
    const left = this.#layouts.filter(layout => !this.#finished.has(layout.source))
    const [first] = left
    const highest =
      !isResumed || first === undefined
        ? undefined
        : this.#run.sidecar.remembered(first.source, first.withoutRowid).highestRowid()
    return {left, position: highest === undefined ? undefined : [highest]}
  }

  /** One committed chunk: rows of one or more tables, and the keys and indexes of those it completes. */
  async #chunk(
    readers: ReadonlyMap<string, TableReader>,
    cursor: {left: readonly TableLayout[]; position: Position | undefined},
    signal: AbortSignal,
  ): Promise<void> {
    const {sidecar, deployment} = this.#run
    const cutId = randomUUID()
    const end = this.#bytes + chunk.bytes
    sidecar.beginChunk()
    await this.#transaction(async tx => {
      const complete: TableLayout[] = []
      while (cursor.left.length > 0 && this.#bytes < end) {
        const [layout, ...rest] = cursor.left as [TableLayout, ...TableLayout[]]
        const reader = readers.get(layout.source) as TableReader
        const rows = this.#rowsOf(layout, reader, cursor, end)
        const first = await rows.next()
        if (first.done !== true)
          await copyInto(tx, deployment.schemaName, layout, resume(first.value, rows), signal)
        if (cursor.position !== undefined) break
        complete.push(layout)
        cursor.left = rest
      }
      if (complete.length > 0) await this.#finish(tx, complete)
      await this.#recordStep(tx, cutId)
    })
    sidecar.commitChunk(cutId)
  }

  /** The COPY stream of a table's rows from the cursor on, until the table or the chunk ends. Nothing when there are none. */
  async *#rowsOf(
    layout: TableLayout,
    reader: TableReader,
    cursor: {position: Position | undefined},
    end: number,
  ): AsyncGenerator<Uint8Array, undefined> {
    const {sidecar, onProgress} = this.#run
    const encoder = this.#encoders.get(layout.source) as RowEncoder
    const writer = new TupleWriter(
      layout.columns.map(column => column.type),
      2 * PIECE_BYTES,
    )
    const skip = this.#skip.get(layout.source)
    const append = sidecar.appender(layout.source, layout.withoutRowid)
    let line = 0
    let sent = 0
    do {
      const at = cursor.position
      const page = await this.#pace.read(() => reader.page(at, this.#pace.budget))
      cursor.position = page.next
      for (const row of page.rows) {
        const refusal = skip?.get(++line)
        if (refusal !== undefined) {
          this.#refused.push({
            table: layout.target,
            key: row.key,
            code: refusal.code,
            reason: refusal.message,
          })
          continue
        }
        writer.write(encoder.encode(row))
        append(row)
        if (writer.bytes >= PIECE_BYTES) {
          if (sent === 0) yield COPY_HEADER
          sent += writer.bytes
          yield writer.take()
        }
      }
      for (const row of page.refused)
        this.#refused.push({
          table: layout.target,
          key: row.key,
          code: 'SYNC_VALUE_TOO_LARGE',
          reason: row.reason,
        })
      this.#rows += page.rows.length
      onProgress?.(layout.source, this.#rows)
    } while (cursor.position !== undefined && this.#bytes + sent + writer.bytes < end)
    const wrote = sent + writer.bytes
    this.#bytes += wrote
    if (wrote === 0) return
    if (sent === 0) yield COPY_HEADER
    yield writer.take()
    yield COPY_TRAILER
  }

  async #finish(tx: Tx, layouts: readonly TableLayout[]): Promise<void> {
    const operations = layouts.map(finishOperation)
    await tx`select sync_metadata.evolve_schema(${this.#run.deployment.deploymentId}, ${json(operations)})`
    for (const layout of layouts) this.#finished.add(layout.source)
  }

  async #recordStep(tx: Tx, cutId: string): Promise<void> {
    const {deployment, lease} = this.#run
    const position: LoadPosition = {finished: [...this.#finished], rows: this.#rows, bytes: this.#bytes}
    await tx`select sync_metadata.record_load_step(${deployment.deploymentId}, ${cutId}, ${lease.epoch}, ${json(position)})`
  }

  async #transaction(work: (tx: Tx) => Promise<void>): Promise<void> {
    const {pool, lease, statementTimeoutMs} = this.#run
    lease.signal.throwIfAborted()
    await pool.begin(work, {
      setLocal: {statement_timeout: `${statementTimeoutMs}ms`},
      signal: lease.signal,
    })
  }

  /** @returns whether it was one row that Postgres refused, which is then left out of the next try. */
  #noteRefusal(error: unknown): boolean {
    if (!(error instanceof TableRefusedError) || error.cause.line === undefined) return false
    const skip = this.#skip.get(error.table) ?? new Map<number, DataError>()
    this.#skip.set(error.table, skip)
    if (this.#refused.length + skip.size >= MOST_REFUSALS) return false
    // Postgres counts the rows it was sent; ours are counted with those that were left out.
    let line = error.cause.line
    for (const left of [...skip.keys()].sort((a, b) => a - b)) if (left <= line) line++
    skip.set(line, error.cause)
    return true
  }
}

async function* resume(first: Uint8Array, rest: AsyncIterable<Uint8Array>): AsyncIterable<Uint8Array> {
  yield first
  yield* rest
}
