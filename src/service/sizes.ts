import type {Sql} from '../postgres/sql.ts'
import {readSizes} from '../state/deployment-list.ts'
import type {Log} from '../telemetry/log.ts'

const FRESH_MS = 60_000
/** A client that was not there the last time is new. */
const UNKNOWN_FRESH_MS = 2_000

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
    const known = this.#sizes.get(schemaName)
    const now = performance.now()
    if (now - this.#askedAt > (known === undefined ? UNKNOWN_FRESH_MS : FRESH_MS)) {
      this.#askedAt = now
      this.#asking = this.#read()
    }
    return known
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
