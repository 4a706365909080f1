import {closeSync, openSync, readdirSync, rmSync, writeSync} from 'node:fs'
import {open} from 'node:fs/promises'
import {join} from 'node:path'
import {COPY_HEADER, COPY_TRAILER, endOfTuple, TupleWriter, type TargetRow} from '../target/copy-format.ts'
import {makeFolder} from '../core/folder.ts'
import type {TableLayout} from '../core/layout.ts'
import {inStateDir} from './state-dir.ts'

/** Where the spools of a deployment are. */
export type SpoolPlace = {readonly stateDir: string; readonly deploymentId: string}

/** Removes what killed runs of this deployment have left. The caller holds its lock. */
export function clearSpools({stateDir, deploymentId}: SpoolPlace): void {
  const folder = folderOf(stateDir)
  inStateDir(folder, () => {
    makeFolder(folder)
    for (const name of readdirSync(folder))
      if (name.startsWith(`${deploymentId}-`)) rmSync(join(folder, name), {force: true})
  })
}

function folderOf(stateDir: string): string {
  return join(stateDir, 'spool')
}

/** How much of one table's changes is kept in memory, and sent as parameters of one statement. */
export type SmallLimit = {readonly rows: number; readonly bytes: number}

/**
 * The changed rows of one table of one cut, kept locally until the whole cut is known: in memory while they are few,
 * else in a file. No lock of the app is held any more when they are sent.
 */
export class Spool implements Disposable {
  readonly layout: TableLayout
  readonly tombstones: string[] = []
  readonly #limit: SmallLimit
  readonly #file: string
  readonly #writer: TupleWriter
  #rows: TargetRow[] = []
  #count = 0
  #bytes = 0
  #fd: number | undefined

  /** @param number tells the spools of one cut apart. */
  constructor(layout: TableLayout, place: SpoolPlace, number: number, limit: SmallLimit) {
    this.layout = layout
    this.#limit = limit
    this.#file = join(folderOf(place.stateDir), `${place.deploymentId}-${number}.rows`)
    this.#writer = new TupleWriter(layout.columns.map(column => column.type))
  }

  get count(): number {
    return this.#count
  }

  /** Bytes of the rows as they are sent. */
  get bytes(): number {
    return this.#bytes + this.#writer.bytes
  }

  /** The rows, when they are few enough to be parameters. */
  get small(): readonly TargetRow[] | undefined {
    return this.#fd === undefined && this.#count <= this.#limit.rows && this.bytes <= this.#limit.bytes
      ? this.#rows
      : undefined
  }

  add(row: TargetRow): void {
    this.#count++
    this.#writer.write(row)
    if (this.#fd === undefined) {
      this.#rows.push(row)
      if (this.#count <= this.#limit.rows && this.#writer.bytes <= this.#limit.bytes) return
      this.#rows = []
      this.#fd = inStateDir(this.#file, () => openSync(this.#file, 'w', 0o600))
    }
    if (this.#writer.bytes >= FLUSH_BYTES) this.#flush()
  }

  /**
   * The rows as a binary COPY stream, in memory that is used again: a piece is to be sent before the one after the next
   * is asked for.
   *
   * @param skip numbers of rows to leave out, counted from 1 as Postgres counts them.
   */
  async *stream(skip: ReadonlySet<number>): AsyncIterable<Uint8Array> {
    yield COPY_HEADER
    if (skip.size === 0) yield* this.#pieces()
    else for await (const {line, tuple} of this.#tuples()) if (!skip.has(line)) yield tuple
    yield COPY_TRAILER
  }

  /** The `_sync_key` of the row with this number, counted from 1. */
  async keyAt(wanted: number): Promise<string | undefined> {
    for await (const {line, tuple} of this.#tuples()) {
      if (line !== wanted) continue
      let at = 2
      for (let field = 0; field < this.layout.columns.length; field++)
        at += 4 + Math.max(0, tuple.readInt32BE(at))
      return tuple.toString('utf8', at + 4, at + 4 + tuple.readInt32BE(at))
    }
    return undefined
  }

  [Symbol.dispose](): void {
    if (this.#fd !== undefined) closeSync(this.#fd)
    this.#fd = undefined
    rmSync(this.#file, {force: true})
  }

  async *#pieces(): AsyncIterable<Buffer> {
    if (this.#fd !== undefined) {
      this.#flush()
      yield* this.#read()
      return
    }
    const writer = new TupleWriter(this.layout.columns.map(column => column.type))
    for (const row of this.#rows) {
      writer.write(row)
      if (writer.bytes >= FLUSH_BYTES) yield writer.take()
    }
    yield writer.take()
  }

  async *#tuples(): AsyncIterable<{line: number; tuple: Buffer}> {
    let rest = Buffer.alloc(0)
    let line = 0
    for await (const piece of this.#pieces()) {
      rest = Buffer.concat([rest, piece])
      let at = 0
      for (let end = endOfTuple(rest, at); end !== undefined; end = endOfTuple(rest, at)) {
        yield {line: ++line, tuple: rest.subarray(at, end)}
        at = end
      }
      rest = rest.subarray(at)
    }
  }

  /** The file's bytes, in memory that is used again: a piece is good until the one after the next is asked for. */
  async *#read(): AsyncIterable<Buffer> {
    await using file = await open(this.#file)
    const buffers = [Buffer.allocUnsafeSlow(FLUSH_BYTES), Buffer.allocUnsafeSlow(FLUSH_BYTES)] as const
    for (let turn = 0; ; turn ^= 1) {
      const {buffer, bytesRead} = await file.read(buffers[turn as 0 | 1])
      if (bytesRead === 0) return
      yield buffer.subarray(0, bytesRead)
    }
  }

  #flush(): void {
    const fd = this.#fd
    if (fd === undefined) return
    const bytes = this.#writer.take()
    this.#bytes += bytes.length
    inStateDir(this.#file, () => {
      for (let at = 0; at < bytes.length;) at += writeSync(fd, bytes, at)
    })
  }
}

const FLUSH_BYTES = 256 * 1024
