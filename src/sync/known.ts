import {join} from 'node:path'
import {DatabaseSync} from 'node:sqlite'

/**
 * What the last cut knew, for one who only looks: the sidecar opened read-only, so that a run that works with it is
 * not in the way and is not disturbed.
 */
export class Knowledge implements Disposable {
  readonly #db: DatabaseSync

  private constructor(db: DatabaseSync) {
    this.#db = db
  }

  /** @returns `undefined` when there is no sidecar that can be read. */
  static open(stateDir: string, deploymentId: string): Knowledge | undefined {
    let db: DatabaseSync
    try {
      db = new DatabaseSync(join(stateDir, 'sidecars', `${deploymentId}.db`), {
        readOnly: true,
        timeout: 1_000,
      })
    } catch {
      return undefined // none yet, or another user's: the target's own memory has to do
    }
    try {
      db.prepare('select 1 from meta').get()
      return new Knowledge(db)
    } catch {
      db.close()
      return undefined
    }
  }

  /** @returns what was noted of the source's file at `cutId`, if that is the cut it stands at. */
  fingerprint(cutId: string): string | undefined {
    return this.#meta('cut') === cutId ? this.#meta('fingerprint') : undefined
  }

  /**
   * Visits the keys and digests of one table as of `cutId`.
   *
   * @returns false when that is not the cut it stands at, and nothing was visited.
   */
  visit(cutId: string, table: string, each: (key: string, digest: Uint8Array) => void): boolean {
    this.#db.exec('begin')
    try {
      if (this.#meta('cut') !== cutId) return false
      const id = this.#db.prepare('select id from tables where name = ?').get(table)?.['id']
      if (id === undefined) return true
      const entries = this.#db.prepare(`select key, digest from s${String(id)}
        union all select key, digest from adrift where t = ${String(id)}`)
      for (const row of entries.iterate()) each(row['key'] as string, row['digest'] as Uint8Array)
      return true
    } finally {
      this.#db.exec('commit')
    }
  }

  [Symbol.dispose](): void {
    this.#db.close()
  }

  #meta(name: string): string | undefined {
    return this.#db.prepare('select value from meta where name = ?').get(name)?.['value'] as
      string | undefined
  }
}
