import {setTimeout as sleep} from 'node:timers/promises'
import type {Health} from '../api/ports.ts'
import type {Sql} from '../postgres/sql.ts'
import {readOverview, type Overview} from '../state/overview.ts'

/** What a node knows of itself. */
export type NodeView = {
  readonly nodeId: string
  readonly role: string
  readonly clusterName: string
  readonly version: string
  /** When it began, in milliseconds of `performance.now()`. */
  readonly startedAt: number
  readonly isLeader: () => boolean
}

/** What was read is good for so long: a hundred who ask cost one statement. */
const FRESH_MS = 1_000
/** Whoever asks for health does not wait for a database that is slow to answer. */
const WAIT_MS = 1_000

/**
 * How the node and its deployments are, as the database says now or said a moment ago. A database that has not answered
 * for longer than a lease is no ground to call anything healthy.
 */
export class HealthWatch {
  readonly #sql: Sql
  readonly #node: NodeView
  readonly #leaseMs: number
  #known: {readonly overview: Overview; readonly askedAt: number} | undefined
  #asking: Promise<void> | undefined
  #failure: unknown

  constructor(sql: Sql, node: NodeView, leaseMs: number) {
    this.#sql = sql
    this.#node = node
    this.#leaseMs = leaseMs
  }

  async health(): Promise<Health> {
    await this.#look()
    const {nodeId, role, clusterName, version, startedAt, isLeader} = this.#node
    const overview = this.#known?.overview
    const outage = this.#outage()
    const reasons = [
      ...(outage ? [outage] : []),
      ...(!outage && this.#failure !== undefined ? ['Postgres does not answer at the moment'] : []),
      ...(overview ? troubles(overview, isLeader()) : []),
    ]
    return {
      status: outage ? 'unhealthy' : reasons.length > 0 ? 'degraded' : 'healthy',
      node_id: nodeId,
      role,
      is_leader: isLeader(),
      leader_id: overview?.leaderId ?? null,
      cluster_name: clusterName,
      uptime_seconds: Math.round((performance.now() - startedAt) / 100) / 10,
      last_sync: overview?.lastSyncAt ?? null,
      version,
      reasons,
    }
  }

  /** @returns why the node cannot do its part, leading or not; empty when it can. */
  async faults(): Promise<string[]> {
    await this.#look()
    const outage = this.#outage()
    return outage ? [outage] : []
  }

  /** Asks the database, unless it was asked just now; waits no longer than a person would. */
  async #look(): Promise<void> {
    if (this.#known && performance.now() - this.#known.askedAt < FRESH_MS) return
    const asking = (this.#asking ??= this.#ask().finally(() => {
      this.#asking = undefined
    }))
    const answered = new AbortController()
    await Promise.race([
      asking.then(() => {
        answered.abort()
      }),
      sleep(WAIT_MS, undefined, {signal: answered.signal}).catch(() => undefined),
    ])
  }

  async #ask(): Promise<void> {
    const askedAt = performance.now()
    try {
      this.#known = {overview: await readOverview(this.#sql), askedAt}
      this.#failure = undefined
    } catch (error) {
      // Told by what is answered, and logged where the node looks after its connection.
      this.#failure = error
    }
  }

  #outage(): string | undefined {
    if (!this.#known) return 'Postgres has not answered yet'
    const silentMs = performance.now() - this.#known.askedAt
    return silentMs > this.#leaseMs
      ? `Postgres has not answered for ${Math.round(silentMs / 1_000)} s`
      : undefined
  }
}

function troubles({leaderId, failing, lagging}: Overview, isLeader: boolean): string[] {
  return [
    ...(leaderId === null && !isLeader ? ['no node leads'] : []),
    ...(failing > 0 ? [`${counted(failing)} failed or held back`] : []),
    ...(lagging > 0 ? [`${counted(lagging)} behind`] : []),
  ]
}

function counted(deployments: number): string {
  return deployments === 1 ? '1 deployment is' : `${deployments} deployments are`
}
