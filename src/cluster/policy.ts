/** The lease as the database had it when it was asked last. */
export type LeaseRow = {
  /** Whoever took it last and has not given it back. */
  readonly leaderId: string | undefined
  readonly epoch: bigint
  /** Given back, or run out on the database's clock. */
  readonly isFree: boolean
  readonly isPaused: boolean
  /** The node that is wanted to lead, while that wish lasts. */
  readonly preferred: string | undefined
  /** Whether that node has given a sign of life lately. */
  readonly isPreferredAlive: boolean
}

/** Where a node stands: as the leader, by its own clock, or not. */
export type Standing =
  | {
      readonly leads: true
      /** Until the lease ends unless it is renewed. */
      readonly remainingMs: number
      readonly sinceRenewedMs: number
      readonly renewEveryMs: number
      /** Somebody said that there is something to see. */
      readonly isNoticed: boolean
    }
  | {
      readonly leads: false
      /** The work of its last term has not ended yet. */
      readonly isSettling: boolean
      /** For how long it lets others go first. */
      readonly restMs: number
      /** False behind a pooler that gives every transaction another session: then nobody has the hint. */
      readonly hasSession: boolean
      /** For how long it has had the cluster's advisory lock, with nobody renewing the lease; `undefined`: it has not. */
      readonly hintHeldMs: number | undefined
      /** For how long it has seen the lease free. */
      readonly freeForMs: number
      /** This machine knows that the process which leads has ended. */
      readonly isLeaderGone: boolean
    }

export type View = {readonly nodeId: string; readonly row: LeaseRow; readonly standing: Standing}

export type Decision =
  | {readonly do: 'renew'}
  | {readonly do: 'hand-over'; readonly to: string}
  /** The lease is over. */
  | {readonly do: 'stop'}
  | {readonly do: 'acquire'; readonly isHolderDead: boolean}
  | {readonly do: 'wait'; readonly ms: number}

/** A standby looks this often. */
export const POLL_MS = 1_000
/** A leader that has lost its session stops when it has not renewed on another one within this, */
export const SESSION_LOST_MS = 1_500
/** and whoever has the hint takes its lease only after this. */
export const HINT_GRACE_MS = 2_000
/** Without the hint, a lease must have been free for so long: whoever has the hint is about to take it. */
export const UNHINTED_MS = 1_000
/** Notices do not make a leader renew more often than this. */
const NOTICED_MS = 50

/** The whole leader policy. Pure: reads nothing, changes nothing, cannot fail. */
export function decide({nodeId, row, standing}: View): Decision {
  const wanted = row.preferred ?? nodeId
  if (standing.leads) {
    const {remainingMs, sinceRenewedMs, renewEveryMs, isNoticed} = standing
    if (remainingMs <= 0) return {do: 'stop'}
    // To a node that is dead nobody hands over: the cluster would be without a leader while the wish lasts.
    if (wanted !== nodeId && row.isPreferredAlive) return {do: 'hand-over', to: wanted}
    const dueInMs = (isNoticed ? NOTICED_MS : renewEveryMs) - sinceRenewedMs
    return dueInMs <= 0 ? {do: 'renew'} : {do: 'wait', ms: Math.min(dueInMs, remainingMs)}
  }
  const {isSettling, restMs, hasSession, hintHeldMs, freeForMs, isLeaderGone} = standing
  if (isSettling || row.isPaused || wanted !== nodeId) return {do: 'wait', ms: POLL_MS}
  // Whoever is asked for by name does not let others go first.
  if (restMs > 0 && row.preferred !== nodeId) return {do: 'wait', ms: Math.min(restMs, POLL_MS)}
  const isHolderDead = isLeaderGone || hintHeldMs !== undefined
  // An earlier process of this node had it; nobody else may be called like us.
  if (row.leaderId === nodeId || isLeaderGone) return {do: 'acquire', isHolderDead}
  if (row.isFree) {
    if (isHolderDead || !hasSession || row.preferred === nodeId || freeForMs >= UNHINTED_MS)
      return {do: 'acquire', isHolderDead}
    return {do: 'wait', ms: UNHINTED_MS - freeForMs}
  }
  if (hintHeldMs === undefined) return {do: 'wait', ms: POLL_MS}
  // Its holder's session is gone. Perhaps only the session.
  if (hintHeldMs >= HINT_GRACE_MS) return {do: 'acquire', isHolderDead}
  return {do: 'wait', ms: Math.min(HINT_GRACE_MS - hintHeldMs, POLL_MS / 4)}
}
