/** What a watcher of one source knows, and when: milliseconds of a monotonic clock. */
export type Sight = {
  readonly now: number
  /** The first and the last sign of a change since the last hint; absent without any. */
  readonly signs: {readonly firstAt: number; readonly lastAt: number} | undefined
  /** When the file was last looked at without a sign. */
  readonly lookedAt: number
  /** True while the file system does not tell us of changes. */
  readonly isDeaf: boolean
}

/** How patient a watcher is. */
export type Patience = {
  /** A hint waits until nothing has happened for so long, */
  readonly quietMs: number
  /** but never for longer than this after the first sign: an app may write without a pause. */
  readonly mostMs: number
  /** How often the file is looked at although nothing was heard, */
  readonly lookMs: number
  /** and how often where nothing can be heard. */
  readonly deafLookMs: number
}

/** Leaves the better part of the two seconds from commit to Postgres to the sync. */
export const usualPatience: Patience = {quietMs: 100, mostMs: 500, lookMs: 10_000, deafLookMs: 1_000}

export type Step = {readonly do: 'tell' | 'look'} | {readonly do: 'wait'; readonly ms: number}

/** The whole policy of watching a source: tell that it may have changed, look at it, or wait. Pure. */
export function decide({now, signs, lookedAt, isDeaf}: Sight, patience: Patience): Step {
  const {quietMs, mostMs, lookMs, deafLookMs} = patience
  const tellAt = signs === undefined ? Infinity : Math.min(signs.lastAt + quietMs, signs.firstAt + mostMs)
  if (tellAt <= now) return {do: 'tell'}
  const lookAt = lookedAt + (isDeaf ? deafLookMs : lookMs)
  if (lookAt <= now) return {do: 'look'}
  return {do: 'wait', ms: Math.min(tellAt, lookAt) - now}
}
