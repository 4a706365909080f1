import {readdirSync, rmSync} from 'node:fs'
import {join} from 'node:path'
import {setTimeout as sleep} from 'node:timers/promises'
import {rulesOf} from '../conflict/rules.ts'
import {fenced} from '../cluster/lease.ts'
import {makeFolder} from '../core/folder.ts'
import type {SourceSchema, TableLayout} from '../core/layout.ts'
import type {Value} from '../core/value.ts'
import {recordAudit} from '../postgres/audit-log.ts'
import {json} from '../postgres/sql.ts'
import {copySource, SourceCopyError} from '../source/copy.ts'
import {SourceBusyError, SourceUnreadableError} from '../source/errors.ts'
import type {Source} from '../source/open.ts'
import type {SourceRow} from '../source/read.ts'
import {SourceWriter, type RowWrite, type WriteOutcome} from '../source/write.ts'
import {unwritten} from '../state/deployments.ts'
import {lockMarked, settle} from '../target/marks.ts'
import {
  countUnwritten,
  unwrittenRows,
  valuesToWrite,
  writeKinds,
  type Unwritten,
  type UnwrittenRow,
  type WriteKind,
} from '../target/unwritten.ts'
import {digestOfRow, refusedEntry, Tally, type Court, type Written, type WrittenRow} from './conflicts.ts'
import {cookieOf} from './cut.ts'
import {suspicion} from './guard.ts'
import {closeEntries, readStandings, writeEntries} from './ledger.ts'
import type {Sidecar} from './sidecar.ts'
import {inStateDir, StateDirError} from './state-dir.ts'
import type {SyncRun} from './sync.ts'
import {turnsOf, type Wait} from './turns.ts'

// The way back, for deployments that are two_way: what was decided in Postgres, and committed there, is written to the
// live source. Each row as a compare-and-set, so that nothing of the app's is lost; nothing is noted as done: the next
// capture meets the row as the app's own would be met, finds both sides equal, and that ends the difference.

/** What a round has written to the source, and what not. */
export type WroteBack = {
  readonly inserted: number
  readonly updated: number
  readonly deleted: number
  /** What the source does not take: each is a conflict for a person now. */
  readonly refused: number
  /** What is left for a later sync, because the app has changed the row or kept its file locked. */
  readonly left: number
  /** Why something is left. */
  readonly reason?: string | undefined
  /** Why a person has to confirm it first: nothing was written. */
  readonly heldFor?: string | undefined
  readonly tables: readonly TableWrites[]
  readonly written: Written
  readonly tally: Tally
  readonly maxHoldMs: number
  readonly busyRetries: number
  readonly bytes: number
}

/** Rows written, or to be written, by table of the target. */
export type TableWrites = {
  readonly table: string
  readonly inserted: number
  readonly updated: number
  readonly deleted: number
  /** The first of them, where somebody wants to see what is to come. */
  readonly keys?: Readonly<Record<WriteKind, readonly string[]>>
}

export type WriteBackRun = Pick<
  SyncRun,
  'pool' | 'lease' | 'deployment' | 'stateDir' | 'limits' | 'accept' | 'conflictConfig'
> & {
  readonly source: Source
  readonly sidecar: Sidecar
  /** The source's shape as of the cut that was just applied. */
  readonly schema: SourceSchema
}

/** Rows of one transaction, and bytes of their values; one row alone may have more. */
const BATCH_ROWS = 50
const BATCH_BYTES = 8 * 1024 * 1024
const PAGE_ROWS = 500
/** Rows of one round: what was written is remembered until it has been captured. */
const ROUND_ROWS = 5_000
/** Rows that only together can be written, at most: they go in one transaction. */
const RING_ROWS = 500
/** How long one batch waits for the app's locks, or for the lease to be renewed, before the rest is left. */
const PATIENCE_MS = 5_000
/** A transaction does not begin when the lease may end within this time. */
const LEASE_MARGIN_MS = 500

/**
 * Writes what waits to the source, as much as a round takes.
 *
 * @returns `undefined` when nothing waits, or the deployment is not two_way (any more). When the source cannot be written,
 * or the copy that comes before the first write cannot be made, everything is left, and the result says why.
 */
export async function writeBack(run: WriteBackRun, signal: AbortSignal): Promise<WroteBack | undefined> {
  const {pool, deployment, schema} = run
  const state = await readState(run)
  if (state?.waits !== true) return undefined
  const layouts = schema.tables
  const waiting = await countUnwritten(pool, deployment.schemaName, deployment.deploymentId, layouts)
  if (waiting.length === 0) return undefined
  const heldFor = run.accept ? undefined : tooMuch(waiting, run)
  const round = new Round(run, waiting)
  if (heldFor !== undefined) return {...round.result(), heldFor}
  try {
    if (!state.hasCopy) await keepCopy(run, signal)
    await round.write(signal)
  } catch (error) {
    // The cut has been applied all the same, and what waits goes on waiting: that is told, and tried again.
    if (!isOfTheFile(error)) throw error
    round.stop(error.message)
  }
  return round.result()
}

function isOfTheFile(error: unknown): error is Error {
  return (
    error instanceof SourceCopyError ||
    error instanceof SourceBusyError ||
    error instanceof SourceUnreadableError ||
    (error instanceof StateDirError && !error.isDamaged)
  )
}

/**
 * Whether what waits to be deleted from the source looks like an accident, by the same measure as what the source lost.
 *
 * @returns why a person has to confirm it, or `undefined`.
 */
export function tooMuch(
  waiting: readonly Unwritten[],
  {schema, sidecar, limits}: Pick<WriteBackRun, 'schema' | 'sidecar' | 'limits'>,
): string | undefined {
  const rows = (table: string | undefined, kind: WriteKind) =>
    waiting
      .filter(each => each.kind === kind && (table === undefined || each.table === table))
      .reduce((sum, each) => sum + each.rows, 0)
  if (rows(undefined, 'delete') === 0) return undefined
  const tables = schema.tables.map(({source, target}) => ({
    table: source,
    before: sidecar.count(source),
    deleted: rows(target, 'delete'),
    hasVanished: false,
  }))
  const before = tables.reduce((sum, table) => sum + table.before, 0)
  const after = before + rows(undefined, 'insert') - rows(undefined, 'delete')
  const why = suspicion({tables, after, revision: 'same', isOtherFile: false}, limits.deleteGuard)
  return why === undefined ? undefined : `with what was deleted in Postgres, ${why}`
}

/** What is to be written, with the first keys of each kind. */
export async function previewOf(
  sql: Parameters<typeof countUnwritten>[0],
  {schemaName, deploymentId}: Pick<SyncRun['deployment'], 'schemaName' | 'deploymentId'>,
  layouts: readonly TableLayout[],
): Promise<{readonly waiting: readonly Unwritten[]; readonly tables: readonly TableWrites[]}> {
  const waiting = await countUnwritten(sql, schemaName, deploymentId, layouts)
  const tables: TableWrites[] = []
  for (const table of new Set(waiting.map(each => each.table))) {
    const layout = layouts.find(({target}) => target === table) as TableLayout
    const keys: Record<WriteKind, string[]> = {delete: [], update: [], insert: []}
    for (const {kind} of waiting.filter(each => each.table === table)) {
      const page = {kind, after: undefined, limit: PREVIEW_KEYS}
      keys[kind] = (await unwrittenRows(sql, schemaName, deploymentId, layout, page)).map(({key}) => key)
    }
    tables.push({table, ...countsOf(waiting, table), keys})
  }
  return {waiting, tables}
}

const PREVIEW_KEYS = 5

export function countsOf(
  waiting: readonly Unwritten[],
  table?: string,
): {inserted: number; updated: number; deleted: number} {
  const rows = (kind: WriteKind) =>
    waiting
      .filter(each => each.kind === kind && (table === undefined || each.table === table))
      .reduce((sum, each) => sum + each.rows, 0)
  return {inserted: rows('insert'), updated: rows('update'), deleted: rows('delete')}
}

/** As it is now: switched off a moment ago means not one row more. */
async function readState({
  pool,
  deployment,
  source,
}: WriteBackRun): Promise<{waits: boolean; hasCopy: boolean} | undefined> {
  const [row] = await pool<{waits: boolean; hasCopy: boolean}>`
    select coalesce(source_backup ->> 'identity' = ${source.identity}, false) as "hasCopy",
      exists (select ${unwritten}) as waits
    from sync_metadata.client_deployments d where deployment_id = ${deployment.deploymentId}`
  return row
}

/** Copies the source before anything of ours is in it, and notes where the copy is. */
async function keepCopy(run: WriteBackRun, signal: AbortSignal): Promise<void> {
  const {pool, lease, deployment, stateDir, source} = run
  const {clientName, schemaName, deploymentId} = deployment
  const folder = join(stateDir, 'backups')
  const file = join(folder, `${schemaName}-${new Date().toISOString().replaceAll(/[-:]|\.\d+/g, '')}.db`)
  inStateDir(folder, () => {
    makeFolder(folder)
    // What a process that was killed has left. Nobody else copies for this client: the lock is ours.
    for (const name of readdirSync(folder))
      if (name.endsWith('.copying') && name.replace(/-[^-]*$/, '') === schemaName) rmSync(join(folder, name))
  })
  const bytes = await copySource(source, file, signal)
  await fenced(pool, lease, async tx => {
    const copy = {file, identity: source.identity, bytes, at: new Date().toISOString()}
    await tx`update sync_metadata.client_deployments set source_backup = ${json(copy)}::jsonb
      where deployment_id = ${deploymentId}`
    const details = {file, bytes}
    await recordAudit(tx, {actor: lease.nodeId, action: 'client.copied', client: clientName, details})
  })
}

const CHANGED = 'the app has changed its schema, or its file, meanwhile'

/** A row on its way, and the table it belongs to. */
type Item = {readonly layout: TableLayout; readonly kind: WriteKind; readonly row: UnwrittenRow}
type Sent = Item & {readonly write: RowWrite; readonly target: Buffer | undefined}
/** Without its values, which may be long. */
function itemOf({layout, kind, row}: Item): Item {
  return {layout, kind, row}
}

function idOf({layout, row}: {readonly layout: TableLayout; readonly row: {readonly key: string}}): string {
  return JSON.stringify([layout.source, row.key])
}

type Refusal = Item & Pick<Extract<WriteOutcome, {is: 'refused'}>, 'why' | 'reason' | 'found'>

/** One round: from the queue to the source. */
class Round {
  readonly #run: WriteBackRun
  readonly #waiting: readonly Unwritten[]
  readonly #written: Map<string, Map<string, WrittenRow>> = new Map()
  readonly #counts = new Map<string, {inserted: number; updated: number; deleted: number}>()
  readonly #tally = new Tally()
  #done = 0
  /** The queue goes on behind this round. */
  #isCut = false
  #refused = 0
  /** Rows that are not what was decided about any more, by {@link idOf}. */
  readonly #moved = new Set<string>()
  #stoppedFor: string | undefined
  #maxHoldMs = 0
  #busyRetries = 0
  #bytes = 0

  constructor(run: WriteBackRun, waiting: readonly Unwritten[]) {
    this.#run = run
    this.#waiting = waiting
  }

  result(): WroteBack {
    const tables = [...this.#counts].map(([table, counts]) => ({table, ...counts}))
    const sum = (pick: (counts: (typeof tables)[number]) => number) =>
      tables.reduce((total, table) => total + pick(table), 0)
    const all = this.#waiting.reduce((total, {rows}) => total + rows, 0)
    const left = Math.max(0, all - this.#done - this.#refused)
    const reason =
      this.#stoppedFor ??
      (this.#moved.size > 0 ? 'rows have changed since it was decided about them' : undefined)
    return {
      inserted: sum(table => table.inserted),
      updated: sum(table => table.updated),
      deleted: sum(table => table.deleted),
      refused: this.#refused,
      left,
      ...(left > 0 && reason !== undefined ? {reason} : {}),
      tables,
      written: this.#written,
      tally: this.#tally,
      maxHoldMs: this.#maxHoldMs,
      busyRetries: this.#busyRetries,
      bytes: this.#bytes,
    }
  }

  stop(reason: string): void {
    this.#stoppedFor = reason
  }

  async write(signal: AbortSignal): Promise<void> {
    const {source, sidecar} = this.#run
    using writer = await SourceWriter.open(source, signal)
    if (cookieOf(source, writer.spec) !== sidecar.noted('cookie')) {
      this.#stoppedFor = CHANGED
      return
    }
    const blocked: Item[] = []
    let batch: Item[] = []
    let bytes = 0
    const flush = async () => {
      blocked.push(...(await this.#send(writer, batch, signal)))
      batch = []
      bytes = 0
    }
    for await (const item of this.#queue()) {
      if (batch.length >= BATCH_ROWS || (batch.length > 0 && bytes + item.row.bytes > BATCH_BYTES))
        await flush()
      if (this.#stoppedFor !== undefined) return
      batch.push(item)
      bytes += item.row.bytes
    }
    await flush()
    if (this.#stoppedFor === undefined) await this.#sendBlocked(writer, blocked, signal)
  }

  /**
   * Writes rows whose values others had: after those that have given them up, or together with those that wait for them
   * in turn.
   */
  async #sendBlocked(writer: SourceWriter, blocked: readonly Item[], signal: AbortSignal): Promise<void> {
    if (blocked.length === 0) return
    const stuck: Item[] = []
    const waits = await this.#waits(writer, blocked)
    const plan = turnsOf(waits, RING_ROWS)
    // Of an index over expressions only trying tells who is in whose way: from both ends, as long as that gets on.
    for (let rest = plan.ordered, before = Infinity; rest.length > 0; rest = rest.toReversed()) {
      if (rest.length >= before) {
        stuck.push(...rest)
        break
      }
      before = rest.length
      const still: Item[] = []
      for (let at = 0; at < rest.length; at += BATCH_ROWS) {
        still.push(...(await this.#send(writer, rest.slice(at, at + BATCH_ROWS), signal)))
        if (this.#stoppedFor !== undefined) return
      }
      rest = still
    }
    for (const ring of plan.rings) {
      if (this.#stoppedFor !== undefined) return
      stuck.push(...(await this.#send(writer, ring, signal, 'together')))
    }
    stuck.push(...plan.hopeless)
    // Of a queue that is longer than a round, what stands in the way may come later.
    if (this.#stoppedFor !== undefined || (this.#isCut && this.#done > 0)) return
    // And what has moved is decided anew first.
    const later = new Set(this.#moved)
    for (let before = -1; later.size > before;) {
      before = later.size
      for (const item of stuck) {
        const {certain = [], possible = []} = waits.get(idOf(item)) ?? {}
        if ([...certain, ...possible].some(id => later.has(id))) later.add(idOf(item))
      }
    }
    const refused = stuck.filter(item => !later.has(idOf(item)))
    await this.#refuse(
      refused.map(item => ({
        ...item,
        why: 'constraint' as const,
        reason: this.#blockedFor.get(item.row.conflictId)?.reason ?? '',
        found: this.#blockedFor.get(item.row.conflictId)?.found,
      })),
    )
  }

  /** What stands in the way of blocked rows now, by {@link idOf}. */
  async #waits(writer: SourceWriter, blocked: readonly Item[]): Promise<ReadonlyMap<string, Wait<Item>>> {
    const waits = new Map<string, Wait<Item>>()
    for (let at = 0; at < blocked.length; at += BATCH_ROWS)
      for (const sent of await this.#load(blocked.slice(at, at + BATCH_ROWS))) {
        const {layout, write} = sent
        const {certain, possible} = writer.blockers({table: layout.source, write})
        const ids = (keys: readonly string[]) => keys.map(key => idOf({layout, row: {key}}))
        waits.set(idOf(sent), {item: itemOf(sent), certain: ids(certain), possible: ids(possible)})
      }
    return waits
  }

  /** Why rows are blocked, as of the last time that it was tried. */
  readonly #blockedFor = new Map<string, {readonly reason: string; readonly found: SourceRow | undefined}>()

  async *#queue(): AsyncGenerator<Item> {
    const {pool, deployment, schema} = this.#run
    let rows = 0
    for (const kind of writeKinds)
      for (const layout of schema.tables) {
        if (!this.#waiting.some(each => each.kind === kind && each.table === layout.target)) continue
        for (let after: string | undefined; ;) {
          const page = await unwrittenRows(pool, deployment.schemaName, deployment.deploymentId, layout, {
            kind,
            after,
            limit: PAGE_ROWS,
          })
          for (const row of page) {
            this.#isCut = ++rows > ROUND_ROWS
            if (this.#isCut) return
            yield {layout, kind, row}
          }
          after = page.at(-1)?.key
          if (page.length < PAGE_ROWS) break
        }
      }
  }

  /** Writes a batch, in as many transactions as the app allows. @returns what is blocked. */
  async #send(
    writer: SourceWriter,
    items: readonly Item[],
    signal: AbortSignal,
    how: 'in order' | 'together' = 'in order',
  ): Promise<Item[]> {
    if (items.length === 0) return []
    let rest = await this.#load(items)
    if (!(await this.#isTwoWay())) {
      this.#stoppedFor = 'the client is one_way now'
      return []
    }
    const blocked: Item[] = []
    const refused: Refusal[] = []
    const {limits, lease} = this.#run
    for (let since = performance.now(); rest.length > 0;) {
      signal.throwIfAborted()
      lease.signal.throwIfAborted()
      const hasTime = lease.endsAt() - performance.now() > LEASE_MARGIN_MS
      const writes = rest.map(({layout, write}) => ({table: layout.source, write}))
      const batch = !hasTime
        ? 'busy'
        : how === 'together'
          ? writer.exchange(writes)
          : writer.write(writes, limits.lockBudgetMs / 2)
      if (batch === 'changed') {
        this.#stoppedFor = CHANGED
        break
      }
      if (batch === 'busy') {
        if (hasTime) this.#busyRetries++
        if (performance.now() - since > PATIENCE_MS) {
          this.#stoppedFor = hasTime ? 'the app keeps its file locked' : 'the lease is about to end'
          break
        }
        await sleep(20 + Math.random() * 30, undefined, {signal})
        continue
      }
      for (const [i, outcome] of batch.outcomes.entries()) {
        const sent = rest[i] as Sent
        if (outcome.is === 'written') this.#note(sent, outcome.digest)
        else if (outcome.is === 'moved') this.#moved.add(idOf(sent))
        else if (outcome.is === 'refused') refused.push({...sent, ...outcome})
        else {
          blocked.push(itemOf(sent))
          this.#blockedFor.set(sent.row.conflictId, outcome)
        }
      }
      this.#maxHoldMs = Math.max(this.#maxHoldMs, batch.holdMs)
      rest = rest.slice(batch.outcomes.length)
      since = performance.now()
      // Half of what we took from the app is given back.
      await sleep(Math.ceil(batch.holdMs / 2), undefined, {signal})
    }
    await this.#refuse(refused)
    return blocked
  }

  async #isTwoWay(): Promise<boolean> {
    const {pool, deployment} = this.#run
    const [row] = await pool<{is: boolean}>`
      select direction = 'two_way' as is from sync_metadata.client_deployments
      where deployment_id = ${deployment.deploymentId}`
    return row?.is === true
  }

  /** Reads what the rows are to hold; those that somebody has edited again are left to be decided anew. */
  async #load(items: readonly Item[]): Promise<Sent[]> {
    const {pool, deployment} = this.#run
    const values = new Map<TableLayout, ReadonlyMap<string, readonly Value[]>>()
    for (const layout of new Set(items.map(item => item.layout))) {
      const rows = items.filter(item => item.layout === layout).map(({row}) => row)
      values.set(layout, await valuesToWrite(pool, deployment.schemaName, layout, rows))
    }
    return items.flatMap(item => {
      const {layout, kind, row} = item
      const target = values.get(layout)?.get(row.key)
      if (target === undefined) {
        this.#moved.add(idOf(item))
        return []
      }
      const isKeyed = row.parts.length > 0 && !row.parts.includes(null)
      const own = layout.columns.flatMap(({source, generated}, i): [string, Value][] =>
        generated ? [] : [[source, target[i] as Value]],
      )
      const write: RowWrite = {
        key: row.key,
        parts: isKeyed ? row.parts : undefined,
        expected: row.hash,
        values: kind === 'delete' ? undefined : new Map(own),
      }
      return [{...item, write, target: kind === 'delete' ? undefined : digestOfRow(layout, row.key, target)}]
    })
  }

  #note({layout, kind, row, write, target}: Sent, source: Buffer | undefined): void {
    const rows = this.#written.get(layout.source) ?? new Map<string, WrittenRow>()
    this.#written.set(layout.source, rows)
    rows.set(row.key, {parts: write.parts, before: row.hash, source, target})
    const counts = this.#counts.get(layout.target) ?? {inserted: 0, updated: 0, deleted: 0}
    this.#counts.set(layout.target, counts)
    counts[kind === 'insert' ? 'inserted' : kind === 'update' ? 'updated' : 'deleted']++
    this.#done++
    this.#bytes += row.bytes
  }

  /** What the source does not take is asked of a person, and is not tried again before something changes. */
  async #refuse(refusals: readonly Refusal[]): Promise<void> {
    if (refusals.length === 0) return
    const {pool, lease, deployment, conflictConfig} = this.#run
    const {schemaName, deploymentId, clientName, config} = deployment
    await fenced(pool, lease, async tx => {
      const rules = rulesOf(conflictConfig, {name: clientName, config})
      const court: Court = {
        deployment,
        rules: () => rules,
        jobId: undefined,
        by: lease.nodeId,
        tally: this.#tally,
      }
      for (const layout of new Set(refusals.map(refusal => refusal.layout))) {
        const own = new Map(refusals.filter(each => each.layout === layout).map(each => [each.row.key, each]))
        const marked = await lockMarked(tx, schemaName, layout, [...own.keys()])
        const ids = marked.flatMap(({divergedBy}) => divergedBy ?? [])
        const standings = await readStandings(tx, deploymentId, ids)
        const decided = marked.flatMap(row => {
          const refusal = own.get(row.key) as Refusal
          // Edited since, or decided otherwise: that comes first.
          if (row.editedBy !== undefined || row.divergedBy !== refusal.row.conflictId) return []
          const editedBy = standings.get(row.divergedBy)?.editedBy
          return [{row, entry: refusedEntry(court, layout, {...row, editedBy}, refusal)}]
        })
        await settle(
          tx,
          schemaName,
          layout,
          decided.map(({row, entry}) => ({
            key: row.key,
            do: 'keep',
            hash: row.hash,
            divergedBy: entry.conflictId,
          })),
        )
        await closeEntries(
          tx,
          deploymentId,
          decided.map(({row}) => row.divergedBy as string),
          lease.nodeId,
        )
        await writeEntries(
          tx,
          deploymentId,
          undefined,
          decided.map(({entry}) => entry),
        )
      }
    })
    this.#refused += refusals.length
  }
}
