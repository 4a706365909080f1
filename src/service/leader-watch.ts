import {setTimeout as sleep} from 'node:timers/promises'
import type {Config} from '../config/config.ts'
import {errorTypeOf} from '../core/errors.ts'
import type {Pool} from '../postgres/sql.ts'
import {
  alertBooks,
  amendAlertBook,
  readAlertBook,
  type AlertBook,
  type Outgoing,
} from '../state/alert-book.ts'
import {readLeader, type LeaderSeen} from '../state/conditions.ts'
import {decideAlerts, type AlertMemory, type Cause, type Notice} from '../telemetry/alert.ts'
import {channelsOf, type Channel, type ChannelSettings} from '../telemetry/deliver.ts'
import type {Log} from '../telemetry/log.ts'
import {countError, type Metrics} from '../telemetry/metrics.ts'
import {AlertSender} from './alert-outbox.ts'

export type LeaderWatchOptions = {
  /** Not the connection of the election: this is its witness. */
  readonly pool: Pool
  readonly config: ChannelSettings & Pick<Config, 'clusterName'>
  readonly nodeId: string
  readonly log: Log
  readonly metrics: Metrics
  readonly channels?: readonly Channel[]
  readonly everyMs?: number
  /** How long nobody leads, or Postgres cannot be asked, before it is told: a failover takes seconds. */
  readonly patienceMs?: number
  readonly coolDownMs?: number
  readonly answerWithinMs?: number
}

const EVERY_MS = 5_000
const PATIENCE_MS = 60_000
const ANSWER_WITHIN_MS = 10_000
/** What another node was to send, and has not for so long, this one sends. */
const ADOPT_AFTER_MS = 120_000

/**
 * Says that nobody leads the cluster, and that this node cannot ask Postgres: what no leader can say. Every node does.
 * Of "nobody leads" the nodes tell once, agreeing in Postgres on who does; of its own way to Postgres each tells itself.
 * Returns when `signal` aborts.
 */
export async function watchLeader(options: LeaderWatchOptions, signal: AbortSignal): Promise<void> {
  const watch = new LeaderWatch(options)
  while (!signal.aborted) {
    await watch.look(signal)
    await sleep(options.everyMs ?? EVERY_MS, undefined, {signal}).catch(() => undefined)
  }
}

class LeaderWatch {
  readonly #options: LeaderWatchOptions
  readonly #patienceMs: number
  readonly #sender: AlertSender
  #asking: Promise<LeaderSeen> | undefined
  /** When somebody was last seen leading, or nobody was meant to. */
  #ledAt = performance.now()
  /** When all that had to be asked of Postgres was last answered. */
  #answeredAt = performance.now()
  /** What this node knows for itself: it cannot be kept where it cannot be asked for. */
  #own: {readonly alerts: AlertMemory; readonly outbox: readonly Outgoing[]} = {alerts: {}, outbox: []}

  constructor(options: LeaderWatchOptions) {
    const {config, nodeId, log, metrics} = options
    this.#options = options
    this.#patienceMs = options.patienceMs ?? PATIENCE_MS
    this.#sender = new AlertSender({
      channels: options.channels ?? channelsOf(config, {clusterName: config.clusterName, nodeId}),
      log,
      metrics,
      ...(options.everyMs !== undefined && {retryMs: options.everyMs}),
    })
  }

  async look(signal: AbortSignal): Promise<void> {
    let trouble: string | undefined
    try {
      await this.#lookForLeader(await this.#ask(), signal)
      this.#answeredAt = performance.now()
    } catch (error) {
      if (signal.aborted) return
      countError(this.#options.metrics, 'leader_watch', error)
      trouble = errorTypeOf(error)
      // Whether somebody leads meanwhile, nobody here knows.
      this.#ledAt = performance.now()
    }
    await this.#tellOfDatabase(trouble, signal)
  }

  async #lookForLeader({leaderId, isPaused}: LeaderSeen, signal: AbortSignal): Promise<void> {
    const {pool, config, nodeId, coolDownMs} = this.#options
    const now = performance.now()
    const isLed = leaderId !== null || isPaused
    if (isLed) this.#ledAt = now
    const isLong = now - this.#ledAt >= this.#patienceMs
    const causes: Cause[] = isLong
      ? [
          {
            rule: 'no_leader',
            summary: `nobody has led ${config.clusterName} for ${Math.round((now - this.#ledAt) / 1_000)} s`,
          },
        ]
      : []
    const decide = (book: AlertBook) => decideAlerts(book.alerts, causes, new Date(), coolDownMs)
    let book = await readAlertBook(pool, alertBooks.nodes)
    // In between, somebody who has looked for longer knows better.
    if ((isLed || isLong) && decide(book).notices.length > 0) {
      let notices: readonly Notice[] = []
      book = await this.#amend(current => {
        const decided = decide(current)
        // Another node was faster.
        if (decided.notices.length === 0) return current
        notices = decided.notices
        return {
          alerts: decided.memory,
          outbox: [...current.outbox, ...this.#sender.outgoing(notices, nodeId)],
        }
      })
      this.#sender.announce(notices)
    }
    const mine = book.outbox.filter(({by, notice}) => by === nodeId || isLeftBehind(notice))
    if (mine.length === 0 || (await this.#sender.deliver(mine, signal)) === mine) return
    const kept = await this.#amend(current => ({...current, outbox: this.#sender.remaining(current.outbox)}))
    this.#sender.kept([...kept.outbox, ...this.#own.outbox])
  }

  async #tellOfDatabase(trouble: string | undefined, signal: AbortSignal): Promise<void> {
    const {nodeId, coolDownMs} = this.#options
    const forMs = performance.now() - this.#answeredAt
    const causes: Cause[] =
      trouble !== undefined && forMs >= this.#patienceMs
        ? [
            {
              rule: 'database_unreachable',
              node: nodeId,
              summary: `${nodeId} has not reached Postgres for ${Math.round(forMs / 1_000)} s (${trouble})`,
            },
          ]
        : []
    const {memory, notices} = decideAlerts(this.#own.alerts, causes, new Date(), coolDownMs)
    this.#sender.announce(notices)
    const outbox = [...this.#own.outbox, ...this.#sender.outgoing(notices, nodeId)]
    this.#own = {alerts: memory, outbox: await this.#sender.deliver(outbox, signal)}
  }

  /** A question that is not answered is not asked again beside itself: it keeps its connection. */
  async #ask(): Promise<LeaderSeen> {
    this.#asking ??= readLeader(this.#options.pool).finally(() => {
      this.#asking = undefined
    })
    const over = new AbortController()
    const tooLate = sleep(this.#options.answerWithinMs ?? ANSWER_WITHIN_MS, undefined, {signal: over.signal})
    try {
      return await Promise.race([
        this.#asking,
        tooLate.then(() => {
          throw Object.assign(new Error('Postgres did not answer in time'), {code: 'TIMEOUT'})
        }),
      ])
    } finally {
      over.abort()
      tooLate.catch(() => undefined)
    }
  }

  async #amend(change: (book: AlertBook) => AlertBook): Promise<AlertBook> {
    const {pool, nodeId} = this.#options
    return await pool.begin(tx => amendAlertBook(tx, alertBooks.nodes, nodeId, change))
  }
}

function isLeftBehind({at}: Notice): boolean {
  return Date.now() - Date.parse(at) > ADOPT_AFTER_MS
}
