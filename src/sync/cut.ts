import {isDeepStrictEqual} from 'node:util'
import type {SourceSchema, TableLayout} from '../core/layout.ts'
import {capture, noteHold, type CaptureResult, type Delta, type Finder} from '../source/capture.ts'
import type {SourceRow} from '../source/read.ts'
import {sampleClasses, type SourceSpec, type TableSpec} from '../source/introspect.ts'
import type {Source} from '../source/open.ts'
import {RowEncoder} from '../target/encode.ts'
import {plan, widenTables, type Existing, type Operation, type Plan} from '../target/plan.ts'
import {Seen} from '../target/type-map.ts'
import {findRenames} from './identify.ts'
import type {Sidecar} from './sidecar.ts'
import {clearSpools, Spool, type SmallLimit} from './spool.ts'

/** A row that cannot be mirrored now. `table` is its name in the target. */
export type QuarantinedRow = {
  readonly table: string
  readonly key: string
  readonly code: string
  readonly reason: string
}

/** One captured state of a source: what differs from the last cut, kept locally, and nothing sent yet. */
export type Cut = Disposable & {
  readonly capture: CaptureResult
  readonly plan: Plan
  readonly schema: SourceSchema
  readonly isSchemaChanged: boolean
  /** After the rows: types that what they hold asks for. */
  readonly widenings: readonly Operation[]
  /** Changes by source table name; tables without any are missing. */
  readonly spools: ReadonlyMap<string, Spool>
  readonly refused: readonly QuarantinedRow[]
  /** Rows of vanished tables, which become tombstones with them. */
  readonly vanishedRows: number
  readonly upserted: number
  /** How many of them nothing was known of. */
  readonly inserted: number
  readonly tombstoned: number
  /** True when the sidecar has something to remember although nothing is to be applied. */
  readonly hasMoves: boolean
  /** Rows seen in each source table. */
  readonly counts: ReadonlyMap<string, number>
  /** Marked rows that the source has not changed, taken in by {@link Cut.take} and {@link Cut.takeAbsent}. */
  readonly taken: number
  take(table: string, row: SourceRow): void
  takeAbsent(table: string, key: string): void
  /** The source that it was captured from. */
  readonly source: Source
  /** The layouts as of the last cut, with the names of then. */
  readonly previous: readonly TableLayout[]
  /** That of a table that the source has now, by its name now. */
  readonly previousOf: (table: string) => TableLayout | undefined
  /** Rowids of the changed rows of each source table with changes, and rowids; gathered when the options ask for them. */
  readonly places: ReadonlyMap<string, readonly bigint[]> | undefined
}

export type CutOptions = {
  readonly previous: SourceSchema | undefined
  readonly existing: Existing
  readonly lockBudgetMs: number
  readonly small: SmallLimit
  readonly stateDir: string
  readonly deploymentId: string
  readonly finder?: Finder | undefined
  /** See {@link capture}. */
  readonly knownAt?: bigint | undefined
  readonly notePlaces?: boolean
  readonly onProgress?: (table: string, rows: number) => void
}

/** Captures a cut against the sidecar: nothing leaves this machine, and no lock of the app is held when it returns. */
export async function captureCut(
  source: Source,
  sidecar: Sidecar,
  options: CutOptions,
  signal: AbortSignal,
): Promise<Cut> {
  let gathering: Gathering | undefined
  clearSpools(options)
  sidecar.begin()
  try {
    const result = await capture(
      source,
      {
        lockBudgetMs: options.lockBudgetMs,
        knownAt: options.knownAt,
        finder: options.finder,
        begin: spec => {
          gathering = new Gathering(source, sidecar, options, spec)
          return gathering
        },
        delta: {
          upsert: (table, row, isNew) => gathering?.delta.upsert(table, row, isNew),
          tombstone: (table, key) => gathering?.delta.tombstone(table, key),
          place: (table, entry) => gathering?.delta.place(table, entry),
          refuse: (table, row) => gathering?.delta.refuse(table, row),
        },
        discard: () => {
          gathering?.[Symbol.dispose]()
          sidecar.discard()
        },
        onProgress: (table, rows) => {
          gathering?.counts.set(table, rows)
          options.onProgress?.(table, rows)
        },
      },
      signal,
    )
    return (gathering as Gathering).finish(result)
  } catch (error) {
    gathering?.[Symbol.dispose]()
    sidecar.abandon()
    throw error
  }
}

/** The layouts of a schema with what its columns have been seen to hold since it was recorded. */
export function withSeen(
  tables: readonly TableLayout[],
  encoders: ReadonlyMap<string, RowEncoder>,
): TableLayout[] {
  return tables.map(layout => {
    const seen = encoders.get(layout.source)?.seen
    return seen === undefined
      ? layout
      : {...layout, columns: layout.columns.map((column, i) => ({...column, seen: seen[i] as number}))}
  })
}

/** The shape of the source as it is recorded beside the rows. */
export function schemaOf(spec: SourceSpec, tables: readonly TableLayout[]): SourceSchema {
  return {objects: spec.objects, pragmas: spec.pragmas, alembicRevision: spec.alembicRevision, tables}
}

/** What the columns of the sources hold, looked at only when somebody asks. */
export function classesOf(source: Source, spec: SourceSpec): (table: string, column: string) => number {
  const sampled = new Map<string, number[]>()
  return (tableName, columnName) => {
    const table = spec.tables.find(each => each.name === tableName) as TableSpec
    let classes = sampled.get(tableName)
    if (classes === undefined) {
      classes = sampleClasses(source.db, table, Seen, ms => {
        noteHold(source, ms)
      })
      sampled.set(tableName, classes)
    }
    return classes[table.columns.findIndex(column => column.name === columnName)] as number
  }
}

/** What one pass of a capture has found so far. */
class Gathering implements Disposable {
  readonly counts = new Map<string, number>()
  readonly delta: Delta
  readonly remembered: (table: TableSpec) => ReturnType<Sidecar['remembered']>
  readonly isSameSchema: boolean
  readonly #source: Source
  readonly #previousOf: Cut['previousOf']
  readonly #plan: Plan
  readonly #layouts: ReadonlyMap<string, TableLayout>
  readonly #options: CutOptions
  readonly #spools = new Map<string, Spool>()
  readonly #encoders = new Map<string, RowEncoder>()
  readonly #refused: QuarantinedRow[] = []
  readonly #places: Map<string, bigint[]> | undefined
  #upserted = 0
  #inserted = 0
  #tombstoned = 0
  #moved = 0
  readonly #vanishedRows: number

  constructor(source: Source, sidecar: Sidecar, options: CutOptions, spec: SourceSpec) {
    this.#options = options
    this.#places = options.notePlaces === true ? new Map() : undefined
    const previous = options.previous?.tables ?? []
    this.isSameSchema = sidecar.noted('cookie') === cookieOf(source, spec)
    const renames = this.isSameSchema
      ? new Map<string, string>()
      : findRenames(source.db, spec.tables, previous, (table, limit) => sidecar.sample(table, limit))
    this.#plan = plan(spec.tables, previous, renames, options.existing, classesOf(source, spec))
    const {follows} = this.#plan
    if (follows.size > 0) sidecar.follow(follows)
    this.#vanishedRows = this.#plan.vanished.reduce((rows, layout) => rows + sidecar.count(layout.source), 0)
    for (const layout of this.#plan.vanished) sidecar.forget(layout.source)
    const layouts = new Map(this.#plan.tables.map(layout => [layout.source, layout]))
    this.#layouts = layouts
    this.#source = source
    const before = new Map(previous.map(layout => [layout.source, layout]))
    const followed = new Set(follows.values())
    this.#previousOf = table => {
      const name = follows.get(table) ?? (followed.has(table) ? undefined : table)
      return name === undefined ? undefined : before.get(name)
    }
    for (const layout of this.#plan.tables) {
      const was = this.#previousOf(layout.source)
      if (
        this.#plan.rekeyed.has(layout.source) ||
        (was !== undefined && was.withoutRowid !== layout.withoutRowid)
      )
        sidecar.setAdrift(layout.source)
    }
    const memories = new Map<string, ReturnType<Sidecar['remembered']>>()
    this.remembered = table => {
      const memory = memories.get(table.name) ?? sidecar.remembered(table.name, table.withoutRowid)
      memories.set(table.name, memory)
      return memory
    }
    this.delta = {
      upsert: (table, row, isNew) => {
        this.#upserted++
        if (isNew) this.#inserted++
        let encoder = this.#encoders.get(table.name)
        if (encoder === undefined) {
          encoder = new RowEncoder(layouts.get(table.name) as TableLayout)
          this.#encoders.set(table.name, encoder)
        }
        this.#spool(encoder.layout).add(encoder.encode(row))
        if (!table.withoutRowid) this.#placesIn(table)?.push(row.rowid)
        sidecar.remember(table.name, row, table.withoutRowid)
      },
      tombstone: (table, key) => {
        this.#tombstoned++
        this.#spool(layouts.get(table.name) as TableLayout).tombstones.push(key)
        if (!table.withoutRowid) this.#placesIn(table)
        this.remembered(table).tombstoned(key)
      },
      place: (table, entry) => {
        if (table.withoutRowid) return // known by key: there is no place to remember
        this.#moved++
        sidecar.remember(table.name, entry, false)
      },
      refuse: (table, row) => {
        const layout = layouts.get(table.name) as TableLayout
        this.#refused.push({
          table: layout.target,
          key: row.key,
          code: 'SYNC_VALUE_TOO_LARGE',
          reason: row.reason,
        })
      },
    }
  }

  finish(capture: CaptureResult): Cut {
    const {tables, operations} = widenTables(withSeen(this.#plan.tables, this.#encoders))
    const schema = schemaOf(capture.spec, tables)
    let taken = 0
    // Encoders of their own: what these rows hold has been seen.
    const takers = new Map<string, RowEncoder>()
    return {
      capture,
      plan: this.#plan,
      schema,
      widenings: operations,
      isSchemaChanged: this.#plan.operations.length > 0 || !isDeepStrictEqual(schema, this.#options.previous),
      spools: this.#spools,
      refused: this.#refused,
      vanishedRows: this.#vanishedRows,
      upserted: this.#upserted,
      inserted: this.#inserted,
      tombstoned: this.#tombstoned + this.#vanishedRows,
      hasMoves: this.#moved > 0,
      counts: this.counts,
      get taken() {
        return taken
      },
      take: (table, row) => {
        taken++
        let encoder = takers.get(table)
        if (encoder === undefined) {
          encoder = new RowEncoder(this.#layouts.get(table) as TableLayout)
          takers.set(table, encoder)
        }
        this.#spool(encoder.layout).add(encoder.encode(row))
      },
      takeAbsent: (table, key) => {
        taken++
        this.#spool(this.#layouts.get(table) as TableLayout).tombstones.push(key)
      },
      source: this.#source,
      previous: this.#options.previous?.tables ?? [],
      previousOf: this.#previousOf,
      places: this.#places,
      [Symbol.dispose]: () => {
        this[Symbol.dispose]()
      },
    }
  }

  [Symbol.dispose](): void {
    for (const spool of this.#spools.values()) spool[Symbol.dispose]()
    this.#spools.clear()
  }

  #placesIn({name}: TableSpec): bigint[] | undefined {
    const places = this.#places?.get(name) ?? []
    this.#places?.set(name, places)
    return places
  }

  #spool(layout: TableLayout): Spool {
    let spool = this.#spools.get(layout.source)
    if (spool === undefined) {
      spool = new Spool(layout, this.#options, this.#spools.size, this.#options.small)
      this.#spools.set(layout.source, spool)
    }
    return spool
  }
}

/** Moves with every change of the schema, and differs between files. */
export function cookieOf(source: Source, spec: Pick<SourceSpec, 'schemaVersion'>): string {
  return `${source.file}#${spec.schemaVersion}`
}
