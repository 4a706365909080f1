import {Cron} from 'croner'
import type {Schedule} from './interval.ts'

/** What is known of a deployment when it is asked whether it is due. */
export type DueView = {
  readonly schedule: Schedule
  /** Chooses the minute of the night of a `daily` one. */
  readonly deploymentId: string
  /** How long ago its last run began, or found it to be fresh, on whatever ended it; `undefined`: it has never run. */
  readonly sinceMs: number | undefined
  /** How many runs in a row have failed for good. */
  readonly failures: number
  /** The host's clock, for the schedules that are about times of day. */
  readonly now: Date
  /** Instead of the host's own. */
  readonly timeZone?: string
}

/** A file that is followed is looked at so often in any case: what no news came of is noticed then. */
const LIVE_MS = 60_000
/** From the third failure in a row on the pauses grow, up to this; a longer interval stays what it is. */
const LONGEST_PAUSE_MS = 300_000
const PATIENT_FAILURES = 2

/** Daily runs begin between one and five in the morning. */
const NIGHT = {fromHour: 1, minutes: 240}

/**
 * In how many milliseconds a deployment is due: none or less when it is, `Infinity` when it waits to be asked for. A time
 * of day that was slept through is made up for once.
 */
export function dueInMs({schedule, deploymentId, sinceMs, failures, now, timeZone}: DueView): number {
  if (schedule.kind === 'manual') return Infinity
  if (sinceMs === undefined) return 0
  switch (schedule.kind) {
    case 'every':
      return pauseMs(schedule.seconds * 1_000, failures) - sinceMs
    case 'live':
      return pauseMs(LIVE_MS, failures) - sinceMs
    case 'daily':
      return untilCron(nightly(deploymentId), sinceMs, now, timeZone)
    case 'cron':
      return untilCron(schedule.expression, sinceMs, now, timeZone)
  }
}

/** How long a deployment that fails again and again rests between its runs. */
export function pauseMs(intervalMs: number, failures: number): number {
  const grown = intervalMs * 2 ** Math.min(30, Math.max(0, failures - PATIENT_FAILURES))
  return Math.min(grown, Math.max(intervalMs, LONGEST_PAUSE_MS))
}

/** Each deployment has its own minute, the same every night, so that they do not all come at once. */
function nightly(deploymentId: string): string {
  let hash = 0
  for (const character of deploymentId) hash = (hash * 31 + character.charCodeAt(0)) % 1_000_003
  const minute = hash % NIGHT.minutes
  return `${minute % 60} ${NIGHT.fromHour + Math.floor(minute / 60)} * * *`
}

function untilCron(expression: string, sinceMs: number, now: Date, timeZone: string | undefined): number {
  const cron = new Cron(expression, {
    mode: '5-part',
    paused: true,
    ...(timeZone === undefined ? {} : {timezone: timeZone}),
  })
  const next = cron.nextRun(new Date(now.getTime() - sinceMs))
  return next === null ? Infinity : next.getTime() - now.getTime()
}
