import {setTimeout as sleep} from 'node:timers/promises'
import {backoffMs} from '../core/backoff.ts'
import type {Log} from '../telemetry/log.ts'

/** What those are told who want to know of each cut of a client. */
export type Announcement = {
  readonly client: string
  readonly generation: number
  /** The tables of the target that have changed. */
  readonly tables: readonly string[]
}

const TRIES = 4
const ANSWER_WITHIN_MS = 10_000

/** @returns the address that a deployment's settings name under `webhook`, when it is one that can be posted to. */
export function webhookOf(config: Readonly<Record<string, unknown>>): URL | undefined {
  const {webhook} = config
  const url = typeof webhook === 'string' && URL.canParse(webhook) ? new URL(webhook) : undefined
  return url?.protocol === 'https:' || url?.protocol === 'http:' ? url : undefined
}

/**
 * Posts an announcement as JSON, again a few times when it is not taken. What matters is in Postgres, where the NOTIFY on
 * `owsync_<schema>` came from the cut itself: a hook that stays deaf is logged and left.
 */
export async function announce(
  url: URL,
  announcement: Announcement,
  log: Log,
  signal: AbortSignal,
  firstPauseMs = 1_000,
): Promise<boolean> {
  for (let tries = 1; ; tries++) {
    try {
      const answer = await fetch(url, {
        method: 'POST',
        headers: {'content-type': 'application/json'},
        body: JSON.stringify(announcement),
        redirect: 'error',
        signal: AbortSignal.any([signal, AbortSignal.timeout(ANSWER_WITHIN_MS)]),
      })
      await answer.body?.cancel()
      if (answer.ok) return true
      throw new Error(`it answered ${answer.status}`)
    } catch (error) {
      if (signal.aborted) return false
      if (tries >= TRIES) {
        // Its path may be a secret.
        log.warn({err: error, client: announcement.client, host: url.host, tries}, 'a webhook was not told')
        return false
      }
    }
    await sleep(backoffMs(tries, {firstMs: firstPauseMs, mostMs: 30_000}), undefined, {signal}).catch(
      () => undefined,
    )
  }
}
