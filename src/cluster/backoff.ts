import {SyncError} from '../core/errors.ts'
import {PoolerRefusedError, TooManyConnectionsError, WrongPasswordError} from '../postgres/sqlstate.ts'

/** The first pause after a failure, in ms, and the longest. */
type Pauses = readonly [first: number, longest: number]

// Servers and poolers block an address after a handful of wrong passwords, for everyone who uses it.
const wrongPassword: Pauses = [10_000, 300_000]
const full: Pauses = [2_000, 30_000]
/** Nothing will change by itself; somebody may be changing it right now. */
const needsPerson: Pauses = [5_000, 60_000]
const passing: Pauses = [100, 5_000]

/**
 * How long to wait before Postgres is asked again.
 *
 * @param failures how many there have been in a row; from 1.
 * @param chance from 0 to 1: spreads those who failed together.
 */
export function pauseAfter(error: unknown, failures: number, chance = Math.random()): number {
  const [first, longest] = pausesOf(error)
  const ms = Math.min(first * 2 ** Math.min(failures - 1, 20), longest)
  const spread = ms * (0.9 + 0.2 * chance)
  return Math.round(error instanceof PoolerRefusedError ? Math.max(spread, error.waitMs) : spread)
}

/** True when the login is refused: each try more, also of another pool of this process, can prolong that. */
export function isLoginRefused(error: unknown): boolean {
  return error instanceof WrongPasswordError || error instanceof PoolerRefusedError
}

function pausesOf(error: unknown): Pauses {
  if (error instanceof WrongPasswordError) return wrongPassword
  if (error instanceof TooManyConnectionsError || error instanceof PoolerRefusedError) return full
  return error instanceof SyncError && error.retryable ? passing : needsPerson
}
