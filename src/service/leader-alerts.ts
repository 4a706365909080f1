import {setTimeout as sleep} from 'node:timers/promises'
import {isDeepStrictEqual} from 'node:util'
import {fenced, type Lease} from '../cluster/lease.ts'
import type {Config} from '../config/config.ts'
import {rulesOf} from '../conflict/rules.ts'
import type {Pool} from '../postgres/sql.ts'
import {alertBooks, amendAlertBook, readAlertBook, type AlertBook} from '../state/alert-book.ts'
import {
  readClusterCondition,
  readDeploymentConditions,
  readSizes,
  type ConflictLimits,
  type DeploymentCondition,
  type Sizes,
} from '../state/conditions.ts'
import {decideAlerts, keyOf, type Cause, type Notice} from '../telemetry/alert.ts'
import {channelsOf, type Channel, type ChannelSettings} from '../telemetry/deliver.ts'
import type {Log} from '../telemetry/log.ts'
import {countError, type Metrics} from '../telemetry/metrics.ts'
import {AlertSender} from './alert-outbox.ts'
import {causesOf, standardLimits} from './causes.ts'

export type AlertOptions = {
  readonly pool: Pool
  readonly config: ChannelSettings &
    Pick<Config, 'clusterName' | 'dbSizeLimitBytes' | 'conflictResolutionConfig'>
  readonly lease: Lease
  readonly log: Log
  readonly metrics: Metrics
  /** Where to, instead of what the settings say. */
  readonly channels?: readonly Channel[]
  readonly everyMs?: number
  readonly coolDownMs?: number
  /** After a takeover the work that was left lying is done first: for so long no new lag is told. */
  readonly settleMs?: number
}

const EVERY_MS = 15_000
const SETTLE_MS = 120_000
/** Sizes cost a look at every file of the target. */
const SIZES_EVERY_MS = 300_000
/** From this many failures in a row on, the log says it louder. */
const LOUD_FAILURES = 3

/**
 * Watches the clients of the host while this node leads: tells each trouble once, and its end, over whichever node leads;
 * fills the gauges that come from the control schema. Returns when `signal` or the lease has ended; what fails meanwhile
 * is counted, logged, and tried again.
 */
export async function runAlerts(options: AlertOptions, signal: AbortSignal): Promise<void> {
  const alerts = new LeaderAlerts(options)
  const until = AbortSignal.any([signal, options.lease.signal])
  const {log, metrics, everyMs = EVERY_MS} = options
  let failures = 0
  try {
    while (!until.aborted) {
      try {
        await alerts.look(until)
        failures = 0
      } catch (error) {
        // The lease is over, or the node stops: nothing has failed.
        if (signal.aborted || options.lease.signal.aborted) return
        countError(metrics, 'alerts', error)
        const level = ++failures < LOUD_FAILURES ? 'info' : 'warn'
        log[level]({err: error, in_a_row: failures}, 'alerts could not be looked after')
      }
      await sleep(everyMs, undefined, {signal: until}).catch(() => undefined)
    }
  } finally {
    // A standby knows nothing of this, and what it knew is old.
    metrics.conflictsUnresolved.reset()
    metrics.lastVerified.reset()
    metrics.targetSize.reset()
  }
}

class LeaderAlerts {
  readonly #options: AlertOptions
  readonly #conflicts: ConflictLimits
  readonly #sender: AlertSender
  readonly #startedAt = performance.now()
  #sizes: {readonly sizes: Sizes; readonly at: number} | undefined

  constructor(options: AlertOptions) {
    const {config, lease, log, metrics} = options
    this.#options = options
    const {notification, resolutionLog} = rulesOf(config.conflictResolutionConfig)
    this.#conflicts = {...notification.highConflictRate, isLogged: resolutionLog.enabled}
    const sender = {clusterName: config.clusterName, nodeId: lease.nodeId}
    this.#sender = new AlertSender({
      channels: options.channels ?? channelsOf(config, sender),
      log,
      metrics,
      ...(options.everyMs !== undefined && {retryMs: options.everyMs}),
    })
  }

  async look(signal: AbortSignal): Promise<void> {
    const {pool, config} = this.#options
    const deployments = await readDeploymentConditions(pool, this.#conflicts)
    const cluster = await readClusterCondition(pool)
    const sizes = await this.#readSizes()
    this.#fill(deployments, sizes)
    const situation = {
      deployments,
      cluster,
      databaseBytes: sizes.databaseBytes,
      sizeLimitBytes: config.dbSizeLimitBytes,
    }
    const book = await this.#note(causesOf(situation, standardLimits), cluster.now)
    if (book.outbox.length === 0) return
    const left = await this.#sender.deliver(book.outbox, signal)
    if (left === book.outbox) return
    const kept = await this.#amend(current => ({...current, outbox: this.#sender.remaining(current.outbox)}))
    this.#sender.kept(kept.outbox)
  }

  /** Decides what is told and remembers it, before anybody is told. */
  async #note(causes: readonly Cause[], now: Date): Promise<AlertBook> {
    const decide = (book: AlertBook) =>
      decideAlerts(book.alerts, this.#told(causes, book), now, this.#coolDownMs)
    const seen = await readAlertBook(this.#options.pool, alertBooks.leader)
    if (isDeepStrictEqual(decide(seen).memory, seen.alerts)) return seen
    let notices: readonly Notice[] = []
    const book = await this.#amend(current => {
      const decided = decide(current)
      notices = decided.notices
      const outgoing = this.#sender.outgoing(notices, this.#options.lease.nodeId)
      return {alerts: decided.memory, outbox: [...current.outbox, ...outgoing]}
    })
    this.#sender.announce(notices)
    return book
  }

  /** Without lag that a new leader has only inherited. */
  #told(causes: readonly Cause[], {alerts}: AlertBook): readonly Cause[] {
    const {settleMs = SETTLE_MS} = this.#options
    if (performance.now() - this.#startedAt >= settleMs) return causes
    return causes.filter(cause => cause.rule !== 'sync_lag' || alerts[keyOf(cause)] !== undefined)
  }

  async #amend(change: (book: AlertBook) => AlertBook): Promise<AlertBook> {
    const {pool, lease} = this.#options
    return await fenced(pool, lease, tx => amendAlertBook(tx, alertBooks.leader, lease.nodeId, change))
  }

  async #readSizes(): Promise<Sizes> {
    const now = performance.now()
    if (this.#sizes === undefined || now - this.#sizes.at >= SIZES_EVERY_MS)
      this.#sizes = {sizes: await readSizes(this.#options.pool), at: now}
    return this.#sizes.sizes
  }

  #fill(deployments: readonly DeploymentCondition[], sizes: Sizes): void {
    const {conflictsUnresolved, lastVerified, targetSize} = this.#options.metrics
    // Clients that are gone must not stay.
    conflictsUnresolved.reset()
    lastVerified.reset()
    targetSize.reset()
    for (const {client, pendingConflicts, lastVerifiedAt} of deployments) {
      conflictsUnresolved.set({client}, pendingConflicts)
      if (lastVerifiedAt !== null) lastVerified.set({client}, lastVerifiedAt.getTime() / 1_000)
    }
    for (const [client, bytes] of sizes.clients) targetSize.set({client}, bytes)
  }

  get #coolDownMs(): number | undefined {
    return this.#options.coolDownMs
  }
}
