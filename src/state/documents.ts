import {parseClientName} from '../core/client-name.ts'
import {json, type Begin, type Sql} from '../postgres/sql.ts'
import type {Metrics} from '../telemetry/metrics.ts'
import {CacheFollower, type CacheEvent, type Following} from './cache-events.ts'
import {
  changeSettings,
  findSettings,
  type DeploymentSettings,
  type SettingsChange,
} from './deployment-settings.ts'
import {ReadThrough} from './read-through.ts'
import {VersionMovedError, type Expected} from './version.ts'

/** A control document of this host: a free JSON value, or a deployment's settings. */
export type Document = {
  readonly key: string
  readonly value: unknown
  /** Grows with every change. */
  readonly version: bigint
  readonly updatedAt: Date
}

const DEPLOYMENT = 'deployment.'

/** @returns the client that a key speaks of, as written; `undefined` for a free document. */
export function clientOfKey(key: string): string | undefined {
  return key.startsWith(DEPLOYMENT) ? key.slice(DEPLOYMENT.length) : undefined
}

/** Reads a document from Postgres. */
export async function findDocument(sql: Sql, key: string): Promise<Document | undefined> {
  const client = clientOfKey(key)
  if (client !== undefined) {
    const found = await findSettings(sql, parseClientName(client).schema)
    return found && settingsDocument(key, found)
  }
  const [row] = await sql<Document>`
    select key, value, version, updated_at as "updatedAt" from sync_metadata.state
    where key = ${key} and host_id = (select sync_metadata.my_host())`
  return row
}

/**
 * Writes a free document, whole.
 *
 * @throws {VersionMovedError} when it is not what was expected.
 */
export async function saveDocument(
  sql: Sql,
  {key, value, actor, expected}: Writing & {readonly value: unknown},
): Promise<Document> {
  const written =
    expected === undefined
      ? await sql<Document>`
          insert into sync_metadata.state as s (key, value, updated_by) values (${key}, ${json(value)}, ${actor})
          on conflict (host_id, key) do update
          set value = excluded.value, version = s.version + 1, updated_at = now(), updated_by = excluded.updated_by
          returning key, value, version, updated_at as "updatedAt"`
      : await sql<Document>`
          update sync_metadata.state
          set value = ${json(value)}, version = version + 1, updated_at = now(), updated_by = ${actor}
          where host_id = (select sync_metadata.my_host()) and key = ${key}
            and (${expected === 'any'} or version = ${expected === 'any' ? 0n : expected})
          returning key, value, version, updated_at as "updatedAt"`
  if (written[0]) return written[0]
  throw new VersionMovedError(key, expected, (await findDocument(sql, key))?.version)
}

type Writing = {readonly key: string; readonly actor: string; readonly expected: Expected}

/** The host's documents, through a cache that hears of every change. */
export class Documents {
  readonly #cache: ReadThrough<Document>
  readonly #follower: CacheFollower

  constructor({sql, ttlMs, metrics, ...following}: DocumentsOptions) {
    const measure = () => metrics?.cacheSize.set(this.#cache.size)
    this.#cache = new ReadThrough<Document>({
      load: key => findDocument(sql, key),
      ttlMs,
      onHit: () => metrics?.cacheHits.inc(),
      onMiss: () => metrics?.cacheMisses.inc(),
      onDropped: (reason, count) => {
        metrics?.cacheInvalidations.inc({reason}, count)
        measure()
      },
      onLoaded: measure,
    })
    this.#follower = new CacheFollower({
      sql,
      ...following,
      onEvent: event => {
        this.#hear(event)
        following.onEvent?.(event)
      },
      onMissed: () => {
        this.#cache.invalidateAll('reconnected')
        following.onMissed?.()
      },
    })
  }

  /**
   * @returns the document as it was at some moment that is no longer ago than `pollEveryMs` and a round trip; when the
   * database cannot be asked, than the cache's time to live.
   */
  async get(key: string): Promise<(Document & {readonly isCached: boolean}) | undefined> {
    const {entry, isCached} = await this.#cache.get(cacheKey(key))
    return entry && {...entry, key, isCached}
  }

  /**
   * Writes a document: a free one whole, a deployment's settings as far as `value` names them.
   *
   * @param within does more in the same transaction.
   * @throws {VersionMovedError} when it is not what was expected.
   */
  async put(
    pool: Begin,
    writing: Writing & ({readonly value: unknown} | {readonly change: SettingsChange}),
    within: (tx: Sql, document: Document) => Promise<void>,
  ): Promise<Document> {
    try {
      return await pool.begin(async tx => {
        const document = 'change' in writing ? await changed(tx, writing) : await saveDocument(tx, writing)
        await within(tx, document)
        return document
      })
    } finally {
      // Also when it failed: a commit whose answer was lost may have happened.
      this.forget(writing.key)
    }
  }

  /** Something was written past {@link put}, and has been committed. */
  forget(key: string): void {
    this.#cache.invalidate(cacheKey(key), 'write')
  }

  /** There may be changes to be heard of. */
  look(): void {
    this.#follower.look()
  }

  /** Notices may have been missed: forgets everything. */
  restart(): void {
    this.#cache.invalidateAll('reconnected')
    this.#follower.restart()
  }

  /** Hears of what has been committed by now. {@link follow} does it by itself. */
  catchUp(): Promise<void> {
    return this.#follower.step()
  }

  /** Hears of changes until `signal` aborts. */
  follow(signal: AbortSignal): Promise<void> {
    return this.#follower.run(signal)
  }

  #hear({key, version, action}: CacheEvent): void {
    // A key that came to be, or ceased to, may count its versions anew.
    const isNewer = action === 'update' && version > 0n
    this.#cache.invalidate(cacheKey(key), 'notice', isNewer ? version : undefined)
  }
}

export type DocumentsOptions = Omit<Following, 'onEvent' | 'onMissed'> &
  Partial<Pick<Following, 'onEvent' | 'onMissed'>> & {
    readonly ttlMs: number
    readonly metrics?: Pick<Metrics, 'cacheHits' | 'cacheMisses' | 'cacheInvalidations' | 'cacheSize'>
  }

async function changed(
  tx: Sql,
  {key, change, expected}: Writing & {readonly change: SettingsChange},
): Promise<Document> {
  const client = clientOfKey(key)
  if (client === undefined) throw new Error(`${key} is no deployment's key`)
  return settingsDocument(key, await changeSettings(tx, client, change, expected))
}

function settingsDocument(key: string, {settings, version, updatedAt}: DeploymentSettings): Document {
  return {key, value: settings, version, updatedAt}
}

/** Every spelling of a client's name is one entry: an event has the name as it was first registered. */
function cacheKey(key: string): string {
  const client = clientOfKey(key)
  return client === undefined ? key : DEPLOYMENT + client.replace(/[.-]/g, '_')
}
