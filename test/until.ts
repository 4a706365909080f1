import assert from 'node:assert/strict'
import {setTimeout as sleep} from 'node:timers/promises'

/** Waits until something holds; fails when it does not within a time that is long for any machine. */
export async function until(
  holds: () => boolean | Promise<boolean>,
  what = 'it did not happen',
  withinMs = 60_000,
): Promise<void> {
  const since = performance.now()
  while (!(await holds())) {
    if (performance.now() - since > withinMs) assert.fail(`${what} within ${withinMs / 1_000} s`)
    await sleep(20)
  }
}
