import type {Sql} from '../postgres/sql.ts'
import {readSizes} from '../state/deployment-list.ts'
import type {Log} from '../telemetry/log.ts'

const FRESH_MS = 60_000
/** A client that nobody knows the size of is new. */
const UNKNOWN_MS = 2_000

/** How large the clients' schemas are, as of a minute ago at most: whoever asks does not wait for it. */
export class Sizes {
  readonly #sql: Sql
  readonly #log: Log
  #sizes: ReadonlyMap<string, bigint> = new Map()
  #askedAt = -Infinity
  #asking: Promise<void> | undefined

  constructor(sql: Sql, log: Log) {
    this.#sql = sql
    this.#log = log
  }

  /** @returns bytes; `undefined` until they have been looked up. */
  of(schemaName: string): bigint | undefined {
    const freshMs = this.#sizes.has(schemaName) ? FRESH_MS : UNKNOWN_MS
    if (performance.now() - this.#askedAt > freshMs) {
      this.#askedAt = performance.now()
      this.#asking = this.#read()
    }
    return this.#sizes.get(schemaName)
  }

  /** Resolves when nothing is being read. */
  async settled(): Promise<void> {
    await this.#asking
  }

  async #read(): Promise<void> {
    try {
      this.#sizes = await readSizes(this.#sql)
    } catch (err) {
      this.#log.warn({err}, 'the sizes of the clients’ schemas cannot be read')
    }
  }
}
