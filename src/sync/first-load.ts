import {randomUUID} from 'node:crypto'
import {Channel} from '../core/channel.ts'
import type {SourceSchema, TableLayout} from '../core/layout.ts'
import {together} from '../core/together.ts'
import type {Lease} from '../cluster/lease.ts'
import {json, type Pool, type Tx} from '../postgres/sql.ts'
import type {DataError} from '../postgres/sqlstate.ts'
import {Pace, readSchema, type Entry} from '../source/capture.ts'
import {readDataVersion, type SourceSpec} from '../source/introspect.ts'
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
/** Rows that are gone before V8 moves them to its old generation, where they would pile up. */
const PAGE_ROWS = 250
/** A row that Postgres refuses costs a chunk once more; so many in one load point to a fault of ours. */
const MOST_REFUSALS = 100
/** A table of so many rows ends its chunk: its indexes take longer than a commit, and can be built from then on. */
const MANY_ROWS = 50_000

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
  readonly refused: readonly QuarantinedRow[]
  /** The connection's data version when no commit of the app came in between: what was loaded is one state. */
  readonly undisturbedAt: bigint | undefined
  readonly spec: SourceSpec
}

/** What a transaction of a load adds to its position. */
type Moved = {readonly finished?: readonly string[]; readonly rows?: number; readonly bytes?: number}

type LoadPosition = {readonly finished: readonly string[]; readonly rows: number; readonly bytes: number}

/** How far a load has come. */
type Cursor = {
  /** Tables that nobody has begun to copy. */
  left: readonly TableLayout[]
  readonly lanes: readonly Lane[]
  rows: number
  bytes: number
}

/** One connection that copies, and where it is. */
type Lane = {
  /** From which end of what is left it takes its next table. */
  readonly from: 'first' | 'last'
  table: TableLayout | undefined
  /** Where to go on in it; `undefined` at its start. */
  position: Position | undefined
  /** Rows of it that have been read. */
  tableRows: number
}

/** One chunk while it is being copied. */
type Chunk = {
  /** It ends when the load has read so many bytes. */
  readonly endBytes: number
  readonly isResumed: boolean
  /** Set by the first lane that cannot go on: none waits in its transaction for another one, only within its COPY. */
  isOver: boolean
  /** Resolved with that. */
  readonly over: PromiseWithResolvers<undefined>
}

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
  const spec = await readSchema(source, signal)
  const planned = await whenFree(
    source,
    () => plan(spec.tables, previous?.tables ?? [], new Map(), existing, classesOf(source, spec)),
    signal,
  )
  const isResumed = deployment.loadPosition !== null && previous !== undefined
  const load = new Load(
    run,
    planned.tables,
    isResumed ? (deployment.loadPosition as LoadPosition) : undefined,
  )

  if (!isResumed) await load.start(planned.operations, schemaOf(spec, planned.tables), signal)
  else if (planned.operations.length > 0 || !isInStep(sidecar, deployment) || !load.knowsPlace) {
    // The schema or the sidecar is not what the load began with: make the tables whole, and let the capture fill them.
    await load.finishAll(previous.tables, signal)
    return load.result(previous, spec, undefined)
  }
  const readers = new Map(spec.tables.map(table => [table.name, new TableReader(source.db, table)]))
  const isLarger = await whenFree(source, () => bySize(readers), signal)
  await load.copyAll(readers, isLarger, isResumed, signal)
  const after = await whenFree(source, () => readDataVersion(source.db), signal)
  const isUndisturbed = !isResumed && after === before
  if (!isUndisturbed) load.keepLastPlaces()
  return load.result(schemaOf(spec, planned.tables), spec, isUndisturbed ? after : undefined)
}

/** The order in which tables are copied: the most rows first, for their indexes are built while the others follow. */
function bySize(
  readers: ReadonlyMap<string, TableReader>,
): (a: Pick<TableLayout, 'source'>, b: Pick<TableLayout, 'source'>) => number {
  const highest = new Map([...readers].map(([name, reader]) => [name, reader.highestRowid() ?? 0n]))
  return (a, b) => {
    const [first = 0n, second = 0n] = [highest.get(a.source), highest.get(b.source)]
    return first > second ? -1 : first < second ? 1 : 0
  }
}

function isInStep(sidecar: Sidecar, deployment: Deployment): boolean {
  return sidecar.standing(deployment.cutId) === 'in step'
}

class Load {
  readonly #run: LoadRun
  readonly #layouts: readonly TableLayout[]
  readonly #encoders: ReadonlyMap<string, RowEncoder>
  readonly #refused: QuarantinedRow[] = []
  /** Numbers of rows, within the current chunk and by table, that Postgres has refused. */
  readonly #skip = new Map<string, Map<number, DataError>>()
  readonly #pace: Pace
  /** What Postgres has of this load, and the cut that it was committed as. */
  #position: LoadPosition
  #cutId: string | null
  /** Two transactions may be open at once; they are committed one after the other, each on top of the other's position. */
  #turn: Promise<unknown> = Promise.resolve()

  constructor(run: LoadRun, layouts: readonly TableLayout[], position: LoadPosition | undefined) {
    this.#run = run
    this.#layouts = layouts
    this.#encoders = new Map(layouts.map(layout => [layout.source, new RowEncoder(layout)]))
    this.#position = position ?? {finished: [], rows: 0, bytes: 0}
    this.#cutId = run.deployment.cutId
    this.#pace = new Pace(run.source, run.lockBudgetMs, run.lease.signal)
  }

  /** False when rows are in an unfinished table of which nobody knows where they stood: the sidecar was lost. */
  get knowsPlace(): boolean {
    return this.#unfinished(this.#layouts).every(
      ({source, withoutRowid}) => withoutRowid || !this.#run.sidecar.hasAdrift(source),
    )
  }

  async start(operations: readonly object[], schema: SourceSchema, signal: AbortSignal): Promise<void> {
    const {sidecar, deployment} = this.#run
    const cutId = randomUUID()
    sidecar.reset()
    await this.#step(
      async tx => {
        await tx`select sync_metadata.evolve_schema(${deployment.deploymentId}, ${json(operations)})`
        await saveSourceSchema(tx, deployment.deploymentId, 1n, schema)
        return {}
      },
      cutId,
      signal,
    )
    sidecar.standAt(cutId)
  }

  /** Copies what is left, and meanwhile finishes, on a connection of its own, tables that are complete. */
  async copyAll(
    readers: ReadonlyMap<string, TableReader>,
    isLarger: (a: TableLayout, b: TableLayout) => number,
    isResumed: boolean,
    signal: AbortSignal,
  ): Promise<void> {
    const complete = new Channel<readonly TableLayout[]>()
    // Tables of many rows keep us busy and tables of long values keep Postgres busy, which compresses them: side by
    // side both are. What fits into a chunk is not worth a second connection.
    const isLarge = this.#run.source.size() > chunk.bytes
    const lane = {table: undefined, position: undefined, tableRows: 0}
    const cursor: Cursor = {
      left: this.#unfinished(this.#layouts).toSorted(isLarger),
      lanes: isLarge
        ? [
            {...lane, from: 'first'},
            {...lane, from: 'last'},
          ]
        : [{...lane, from: 'first'}],
      rows: this.#position.rows,
      bytes: this.#position.bytes,
    }
    await together(
      signal,
      async signal => {
        try {
          await this.#copyChunks(readers, cursor, isResumed, complete, signal)
        } finally {
          complete.close()
        }
      },
      async signal => {
        for await (const layouts of complete)
          await this.#step(tx => this.#finish(tx, layouts), undefined, signal)
      },
    )
  }

  async #copyChunks(
    readers: ReadonlyMap<string, TableReader>,
    cursor: Cursor,
    isResumed: boolean,
    complete: Channel<readonly TableLayout[]>,
    signal: AbortSignal,
  ): Promise<void> {
    while (cursor.left.length > 0 || cursor.lanes.some(({table}) => table !== undefined)) {
      signal.throwIfAborted()
      const start = {...cursor}
      const lanes = cursor.lanes.map(lane => ({...lane}))
      const refused = this.#refused.length
      try {
        const layouts = await this.#chunk(readers, cursor, isResumed, signal)
        if (layouts.length > 0) complete.push(layouts)
        this.#skip.clear()
      } catch (error) {
        this.#run.sidecar.abandon()
        if (!this.#noteRefusal(error)) throw error
        // Once more from where the chunk began, without the row.
        Object.assign(cursor, start)
        for (const [i, lane] of cursor.lanes.entries()) Object.assign(lane, lanes[i])
        this.#refused.length = refused
      }
    }
  }

  /** Gives every table of an interrupted load its key, so that rows can be compared and replaced. */
  async finishAll(layouts: readonly TableLayout[], signal: AbortSignal): Promise<void> {
    const open = this.#unfinished(layouts)
    if (open.length === 0) return
    const {sidecar, deployment} = this.#run
    const wasInStep = isInStep(sidecar, deployment)
    const cutId = randomUUID()
    await this.#step(tx => this.#finish(tx, open), cutId, signal)
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
      rows: this.#position.rows,
      bytes: this.#position.bytes,
      refused: this.#refused,
      undisturbedAt,
      spec,
    }
  }

  #unfinished(layouts: readonly TableLayout[]): TableLayout[] {
    return layouts.filter(({source}) => !this.#position.finished.includes(source))
  }

  /**
   * One committed chunk: rows of one or more tables, in one transaction a lane. They are committed one after the other
   * once all of them have their rows; whoever dies in between leaves a sidecar that is rebuilt.
   *
   * @returns the tables it completes, which are still to be finished; none after the last chunk of a single lane, which
   * finishes them.
   */
  async #chunk(
    readers: ReadonlyMap<string, TableReader>,
    cursor: Cursor,
    isResumed: boolean,
    signal: AbortSignal,
  ): Promise<readonly TableLayout[]> {
    const {sidecar} = this.#run
    const chunkOf: Chunk = {
      endBytes: cursor.bytes + chunk.bytes,
      isResumed,
      isOver: false,
      over: Promise.withResolvers(),
    }
    const complete: TableLayout[] = []
    for (const lane of cursor.lanes) takeTable(lane, cursor)
    const active = cursor.lanes.filter(({table}) => table !== undefined)
    const copied = active.map(() => Promise.withResolvers<undefined>())
    const all = Promise.all(copied.map(({promise}) => promise))
    all.catch(() => undefined) // told by the lane that failed
    sidecar.beginChunk()
    const copy = async (tx: Tx, lane: Lane, signal: AbortSignal, hasCopied: () => void) => {
      const moved = await this.#copyLane(tx, readers, cursor, lane, chunkOf, complete, signal)
      hasCopied()
      await all
      const isLast = cursor.left.length === 0 && lane.table === undefined
      if (cursor.lanes.length > 1 || !isLast) return moved
      return {...moved, ...(await this.#finish(tx, complete.splice(0)))}
    }
    await together(
      signal,
      ...active.map((lane, i) => async (signal: AbortSignal) => {
        const own = copied[i] as PromiseWithResolvers<undefined>
        const hasCopied = () => {
          own.resolve(undefined)
        }
        try {
          await this.#step(tx => copy(tx, lane, signal, hasCopied), randomUUID(), signal)
        } catch (error) {
          // Also when it got no connection: nobody may be left to wait for it.
          end(chunkOf)
          own.reject(error)
          throw error
        }
      }),
    )
    sidecar.commitChunk(this.#cutId as string)
    return complete
  }

  /** Copies tables until the chunk is over. @returns how many rows and bytes that were. */
  async #copyLane(
    tx: Tx,
    readers: ReadonlyMap<string, TableReader>,
    cursor: Cursor,
    lane: Lane,
    chunkOf: Chunk,
    complete: TableLayout[],
    signal: AbortSignal,
  ): Promise<Moved> {
    const {sidecar, deployment} = this.#run
    const moved = {rows: 0, bytes: 0}
    while (!chunkOf.isOver) {
      takeTable(lane, cursor)
      const layout = lane.table
      if (layout === undefined) {
        end(chunkOf)
        break
      }
      // A table without rowids has no place to go on from; the capture that follows completes it.
      if (chunkOf.isResumed && lane.tableRows === 0)
        lane.position = placeAfter(sidecar.remembered(layout.source, layout.withoutRowid).highestRowid())
      const rows = this.#rowsOf(
        layout,
        readers.get(layout.source) as TableReader,
        cursor,
        lane,
        chunkOf,
        moved,
      )
      const first = await rows.next()
      if (first.done !== true)
        await copyInto(tx, deployment.schemaName, layout, resume(first.value, rows), signal)
      if (lane.position !== undefined) break
      complete.push(layout)
      if (lane.tableRows >= MANY_ROWS) end(chunkOf)
      lane.table = undefined
      lane.tableRows = 0
    }
    return moved
  }

  /** The COPY stream of a table's rows from the lane's place on, until the table or the chunk ends. Nothing when there are none. */
  async *#rowsOf(
    layout: TableLayout,
    reader: TableReader,
    cursor: Cursor,
    lane: Lane,
    chunkOf: Chunk,
    moved: {rows: number; bytes: number},
  ): AsyncGenerator<Uint8Array, undefined> {
    const {sidecar, onProgress} = this.#run
    const encoder = this.#encoders.get(layout.source) as RowEncoder
    const writer = new TupleWriter(
      layout.columns.map(column => column.type),
      2 * PIECE_BYTES,
    )
    const skip = this.#skip.get(layout.source)
    // Postgres is behind with long values: what it still has of them when the chunk ends, we would wait for. And the
    // indexes of many rows are built the sooner.
    const isHeldBack = lane.from === 'last' && cursor.lanes[0]?.table !== undefined
    const endBytes = chunkOf.endBytes - (isHeldBack ? chunk.bytes / 2 : 0)
    let line = 0
    let hasBegun = false
    const take = () => {
      moved.bytes += writer.bytes
      cursor.bytes += writer.bytes
      if (cursor.bytes >= chunkOf.endBytes) end(chunkOf)
      return writer.take()
    }
    do {
      const at = lane.position
      const page = await this.#pace.read(() => reader.page(at, {...this.#pace.budget, rows: PAGE_ROWS}))
      lane.position = page.next
      const entries: Entry[] = []
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
        // At once: Postgres ends transactions in which nothing happens for seconds, but not while they copy.
        if (!hasBegun) yield COPY_HEADER
        hasBegun = true
        writer.write(encoder.encode(row))
        entries.push(row)
        if (writer.bytes >= PIECE_BYTES) yield take()
      }
      sidecar.append(layout.source, layout.withoutRowid, entries)
      for (const row of page.refused)
        this.#refused.push({
          table: layout.target,
          key: row.key,
          code: 'SYNC_VALUE_TOO_LARGE',
          reason: row.reason,
        })
      cursor.rows += page.rows.length
      moved.rows += page.rows.length
      lane.tableRows += page.rows.length + page.refused.length
      onProgress?.(layout.source, lane.tableRows)
      // While the next page is read this one is still referred to; its values would be in memory for nothing.
      for (const {values} of page.rows) values.length = 0
    } while (lane.position !== undefined && !chunkOf.isOver && cursor.bytes + writer.bytes < endBytes)
    if (writer.bytes > 0) yield take()
    if (!hasBegun) return
    if (isHeldBack && cursor.bytes >= endBytes) await chunkOf.over.promise
    yield COPY_TRAILER
  }

  /** Gives complete tables their keys, indexes and views. @returns where the load is then. */
  async #finish(tx: Tx, layouts: readonly TableLayout[]): Promise<Moved> {
    const operations = layouts.map(finishOperation)
    if (operations.length > 0)
      await tx`select sync_metadata.evolve_schema(${this.#run.deployment.deploymentId}, ${json(operations)})`
    return {finished: layouts.map(({source}) => source)}
  }

  /**
   * One fenced transaction, committed when no other one of this load is being committed.
   *
   * @param work says by what it moves the position.
   * @param cutId absent when it changes nothing that the sidecar knows of: Postgres stays at the cut it is at.
   */
  async #step(
    work: (tx: Tx) => Promise<Moved>,
    cutId: string | undefined,
    signal: AbortSignal,
  ): Promise<void> {
    const {pool, lease, deployment, statementTimeoutMs} = this.#run
    signal.throwIfAborted()
    const ended = Promise.withResolvers<undefined>()
    try {
      const reached = await pool.begin(
        async tx => {
          const moved = await work(tx)
          const before = this.#turn
          this.#turn = ended.promise
          await before
          const {finished, rows, bytes} = this.#position
          const reached: LoadPosition = {
            finished: [...finished, ...(moved.finished ?? [])],
            rows: rows + (moved.rows ?? 0),
            bytes: bytes + (moved.bytes ?? 0),
          }
          const cut = cutId ?? this.#cutId
          await tx`select sync_metadata.record_load_step(${deployment.deploymentId}, ${cut}, ${lease.epoch}, ${json(reached)})`
          return reached
        },
        {
          setLocal: {statement_timeout: `${statementTimeoutMs}ms`},
          signal: AbortSignal.any([lease.signal, signal]),
        },
      )
      this.#position = reached
      this.#cutId = cutId ?? this.#cutId
    } finally {
      ended.resolve(undefined)
    }
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

function end(chunkOf: Chunk): void {
  chunkOf.isOver = true
  chunkOf.over.resolve(undefined)
}

/** Gives a lane that has none the next table. */
function takeTable(lane: Lane, cursor: Cursor): void {
  if (lane.table !== undefined) return
  lane.table = lane.from === 'first' ? cursor.left[0] : cursor.left.at(-1)
  cursor.left = lane.from === 'first' ? cursor.left.slice(1) : cursor.left.slice(0, -1)
  lane.position = undefined
}

function placeAfter(rowid: bigint | undefined): Position | undefined {
  return rowid === undefined ? undefined : [rowid]
}

async function* resume(first: Uint8Array, rest: AsyncIterable<Uint8Array>): AsyncIterable<Uint8Array> {
  yield first
  yield* rest
}
