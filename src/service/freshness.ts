import {together} from '../core/together.ts'
import {versionSeen} from '../source/seen.ts'
import type {Check, Scheduled} from '../state/scheduled.ts'
import {Looks} from './looks.ts'

/**
 * How far each target is behind its source: since when the file has had a version that has not been applied. Found by
 * looking at files, not at what was scheduled: a deployment that nobody syncs is behind as soon as its app writes.
 *
 * Times are `performance.now()`.
 */
export class Freshness {
  readonly #known = new Map<string, Known>()
  readonly #looks: Looks

  constructor(looks = new Looks(versionSeen)) {
    this.#looks = looks
  }

  /** Begins to look at those that are new, and forgets those that are gone. */
  know(deployments: readonly Scheduled[]): void {
    const ids = new Set(deployments.map(({deploymentId}) => deploymentId))
    for (const id of this.#known.keys()) if (!ids.has(id)) this.#known.delete(id)
    const now = performance.now()
    for (const {deploymentId, sqlitePath, sourceVersion, behindMs} of deployments) {
      const known = this.#known.get(deploymentId)
      if (known !== undefined) {
        known.path = sqlitePath
        continue
      }
      this.#known.set(deploymentId, {
        path: sqlitePath,
        applied: sourceVersion ?? undefined,
        equalAt: undefined,
        behindSince: behindMs === null ? undefined : now - behindMs,
        freshAt: undefined,
        isNews: false,
      })
    }
  }

  /** Looks at every file, two at a time: one that does not answer holds up nobody. */
  async look(signal: AbortSignal): Promise<void> {
    const left = this.#known.values()
    const lane = async (signal: AbortSignal) => {
      for (const known of left) {
        signal.throwIfAborted()
        await this.#lookAt(known, signal)
      }
    }
    await together(signal, lane, lane)
  }

  /**
   * The version of the source that a run that begins now will apply, or a newer one; `undefined` when nobody knows: there
   * is no file, or no answer in time.
   */
  async versionOf(path: string, signal: AbortSignal): Promise<string | undefined> {
    return await this.#looks.at(path, signal)
  }

  /** A run that began at `startedAt` has applied this version, or found it applied. */
  async note(
    deploymentId: string,
    version: string | undefined,
    startedAt: number,
    signal: AbortSignal,
  ): Promise<void> {
    const known = this.#known.get(deploymentId)
    if (known === undefined || version === undefined) return
    Object.assign(known, {
      applied: version,
      equalAt: startedAt,
      freshAt: startedAt,
      behindSince: undefined,
      isNews: true,
    })
    // The app may have written meanwhile.
    await this.#lookAt(known, signal)
  }

  /** How old the oldest change is that the target does not have, in milliseconds. */
  behindMs(deploymentId: string): number {
    const since = this.#known.get(deploymentId)?.behindSince
    return since === undefined ? 0 : performance.now() - since
  }

  /** Hands over what there is to keep since the last call. */
  take(): Omit<Check, 'dueInMs'>[] {
    const now = performance.now()
    const taken = []
    for (const [deploymentId, known] of this.#known) {
      if (!known.isNews) continue
      known.isNews = false
      taken.push({
        deploymentId,
        freshMs: known.freshAt === undefined ? null : now - known.freshAt,
        sourceVersion: known.applied ?? null,
        behindMs: known.behindSince === undefined ? null : now - known.behindSince,
      })
      known.freshAt = undefined
    }
    return taken
  }

  /** What was taken could not be kept. */
  putBack(checks: readonly Pick<Check, 'deploymentId' | 'freshMs'>[], takenAt: number): void {
    for (const {deploymentId, freshMs} of checks) {
      const known = this.#known.get(deploymentId)
      if (known === undefined) continue
      known.isNews = true
      if (freshMs !== null) known.freshAt ??= takenAt - freshMs
    }
  }

  async #lookAt(known: Known, signal: AbortSignal): Promise<void> {
    if (known.path === null) return
    const before = {applied: known.applied, behindSince: known.behindSince}
    const now = performance.now()
    const version = await this.#looks.at(known.path, signal)
    // A file that is not there has no newer version; and what a run has found out meanwhile is newer than this look.
    if (version === undefined || known.applied !== before.applied) return
    if (version === known.applied) {
      known.equalAt = now
      known.behindSince = undefined
    } else {
      known.behindSince ??= known.equalAt ?? now
    }
    if ((known.behindSince === undefined) !== (before.behindSince === undefined)) known.isNews = true
  }
}

type Known = {
  path: string | null
  /** The version of the source that the target has. */
  applied: string | undefined
  /** When the source last had that version, as far as we have seen. */
  equalAt: number | undefined
  behindSince: number | undefined
  /** When it was last found to be fresh, unless that has been kept. */
  freshAt: number | undefined
  isNews: boolean
}
