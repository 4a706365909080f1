import {Cron} from 'croner'
import {UsageError} from '../core/errors.ts'

/** When a deployment is synced without being asked for. */
export type Schedule =
  | {readonly kind: 'every'; readonly seconds: number}
  /** Five fields, in the time zone of the host. */
  | {readonly kind: 'cron'; readonly expression: string}
  /** Once a night, at a minute of its own. */
  | {readonly kind: 'daily'}
  /** As soon as the file changes. */
  | {readonly kind: 'live'}
  | {readonly kind: 'manual'}

/** A schedule as `client_deployments` has it; both `null` is manual. */
export type ScheduleColumns = {
  readonly syncInterval: number | null
  readonly syncSchedule: string | null
}

const namedSeconds: Readonly<Record<string, number>> = {
  realtime: 60,
  '1m': 60,
  '5m': 300,
  frequent: 3_600,
  hourly: 3_600,
  '4h': 14_400,
}
const LEAST_SECONDS = 10
const MOST_SECONDS = 2 ** 31 - 1

/**
 * Reads a schedule as a person writes it: `realtime`, `1m`, `5m`, `frequent`, `hourly`, `4h`, `daily`, `manual`, `live`,
 * a number of seconds from 10 on, or a cron expression of five fields.
 *
 * @throws {UsageError} when it is none of these, or a date that never comes.
 */
export function parseInterval(text: string): Schedule {
  const word = text.trim()
  const seconds = Object.hasOwn(namedSeconds, word) ? namedSeconds[word] : secondsOf(word)
  if (seconds !== undefined) return {kind: 'every', seconds}
  if (word === 'daily' || word === 'live' || word === 'manual') return {kind: word}
  const fields = word.split(/\s+/)
  if (fields.length === 5) return {kind: 'cron', expression: cronOf(fields.join(' '))}
  throw new UsageError(`"${text}" says not when to sync`, next)
}

/** @throws {UsageError} when `sync_schedule` holds something that is no schedule. */
export function scheduleOf({syncInterval, syncSchedule}: ScheduleColumns): Schedule {
  if (syncSchedule !== null) return parseInterval(syncSchedule)
  return syncInterval === null ? {kind: 'manual'} : {kind: 'every', seconds: syncInterval}
}

export function columnsOf(schedule: Schedule): ScheduleColumns {
  switch (schedule.kind) {
    case 'every':
      return {syncInterval: schedule.seconds, syncSchedule: null}
    case 'cron':
      return {syncInterval: null, syncSchedule: schedule.expression}
    case 'daily':
    case 'live':
      return {syncInterval: null, syncSchedule: schedule.kind}
    case 'manual':
      return {syncInterval: null, syncSchedule: null}
  }
}

const next =
  'Give realtime, 1m, 5m, hourly, 4h, daily, manual, live, a number of seconds from 10 on, or a cron expression of five fields.'

function secondsOf(word: string): number | undefined {
  if (!/^\d{1,10}$/.test(word)) return undefined
  const seconds = Number(word)
  if (seconds >= LEAST_SECONDS && seconds <= MOST_SECONDS) return seconds
  throw new UsageError(`${word} seconds are no interval: it is at least ${LEAST_SECONDS}`, next)
}

function cronOf(expression: string): string {
  let cron: Cron
  try {
    cron = new Cron(expression, {mode: '5-part', paused: true})
  } catch (cause) {
    throw new UsageError(`"${expression}" is not a cron expression`, next, {cause})
  }
  if (cron.nextRun() === null) throw new UsageError(`"${expression}" is a time that never comes`, next)
  return expression
}
