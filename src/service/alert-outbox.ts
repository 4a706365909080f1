import type {Outgoing} from '../state/alert-book.ts'
import {keyOf, sectionOf, type Notice} from '../telemetry/alert.ts'
import type {Channel, ChannelName} from '../telemetry/deliver.ts'
import type {Log} from '../telemetry/log.ts'
import {countError, type Metrics} from '../telemetry/metrics.ts'

export type OutboxOptions = {
  readonly channels: readonly Channel[]
  readonly log: Log
  readonly metrics: Pick<Metrics, 'errors'>
  /** The first pause after a failure; the next ones double, up to forty times as long. */
  readonly retryMs?: number
}

/** As many in one message. */
const MOST_AT_ONCE = 50
const KEEP_MS = 86_400_000
const RETRY_MS = 15_000

/** Sends what is in the outbox, each channel at its own pace: one that fails does not keep the others waiting. */
export class AlertSender {
  readonly #options: OutboxOptions
  readonly #pauses = new Map<ChannelName, {readonly failures: number; readonly until: number}>()
  /** What a channel has taken and the outbox may not know yet. */
  readonly #sent = new Set<string>()

  constructor(options: OutboxOptions) {
    this.#options = options
  }

  /** @returns entries for the outbox: to every channel; none when there is no channel. */
  outgoing(notices: readonly Notice[], by: string): Outgoing[] {
    const to = this.#options.channels.map(({name}) => name)
    return to.length === 0 ? [] : notices.map(notice => ({notice, to, by}))
  }

  /** Says in the log what has been decided; that is all when no channel is set up. */
  announce(notices: readonly Notice[]): void {
    for (const notice of notices) {
      const {event, rule, client, node, summary} = notice
      const fields = {rule, client, node, summary, runbook: sectionOf(notice)}
      if (event === 'raised') this.#options.log.warn(fields, 'alert raised')
      else this.#options.log.info(fields, 'alert recovered')
    }
  }

  /**
   * Sends what is due. Never rejects: what fails is counted, logged, and tried again later.
   *
   * @returns what is left of the outbox; the same array when nothing has changed.
   */
  async deliver(outbox: readonly Outgoing[], signal: AbortSignal): Promise<readonly Outgoing[]> {
    await Promise.all(this.#options.channels.map(channel => this.#send(channel, outbox, signal)))
    return this.remaining(outbox)
  }

  /** Says that `outbox` has been kept as it is now: what is not in it any more need not be remembered as sent. */
  kept(outbox: readonly Outgoing[]): void {
    const open = new Set(outbox.flatMap(({to, notice}) => to.map(name => idOf(name, notice))))
    for (const id of this.#sent) if (!open.has(id)) this.#sent.delete(id)
  }

  /** @returns `outbox` without what has been sent, and without what nobody will send any more. */
  remaining(outbox: readonly Outgoing[]): readonly Outgoing[] {
    const names = new Set(this.#options.channels.map(({name}) => name))
    const left = outbox.flatMap(entry => {
      const to = entry.to.filter(name => names.has(name) && !this.#sent.has(idOf(name, entry.notice)))
      if (to.length > 0 && isTooOld(entry)) {
        const {rule, client} = entry.notice
        this.#options.log.error(
          {rule, client, channels: to},
          'an alert was given up: it was not taken for a day',
        )
        for (const name of to) this.#sent.add(idOf(name, entry.notice))
        return []
      }
      if (to.length === entry.to.length) return [entry]
      return to.length === 0 ? [] : [{...entry, to}]
    })
    return left.length === outbox.length && left.every((entry, i) => entry === outbox[i]) ? outbox : left
  }

  async #send(channel: Channel, outbox: readonly Outgoing[], signal: AbortSignal): Promise<void> {
    const {name} = channel
    const pause = this.#pauses.get(name)
    if (pause !== undefined && performance.now() < pause.until) return
    const due = outbox
      .filter(entry => entry.to.includes(name) && !this.#sent.has(idOf(name, entry.notice)))
      .slice(0, MOST_AT_ONCE)
      .map(({notice}) => notice)
    if (due.length === 0) return
    try {
      await channel.send(due, signal)
      for (const notice of due) this.#sent.add(idOf(name, notice))
      this.#pauses.delete(name)
    } catch (error) {
      if (signal.aborted) return
      const {log, metrics, retryMs = RETRY_MS} = this.#options
      const failures = (pause?.failures ?? 0) + 1
      const pauseMs = retryMs * Math.min(40, 2 ** (failures - 1))
      this.#pauses.set(name, {failures, until: performance.now() + pauseMs})
      countError(metrics, 'alerts', error)
      const level = failures < 3 ? 'warn' : 'error'
      log[level](
        {err: error, channel: name, in_a_row: failures, retry_ms: pauseMs},
        'an alert was not delivered',
      )
    }
  }
}

function idOf(channel: ChannelName, notice: Notice): string {
  return `${channel} ${notice.event} ${keyOf(notice)} ${notice.at}`
}

function isTooOld({notice}: Outgoing): boolean {
  return Date.now() - Date.parse(notice.at) > KEEP_MS
}
