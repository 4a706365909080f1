import {setTimeout as sleep} from 'node:timers/promises'
import {errorTypeOf, SyncError} from '../core/errors.ts'
import type {Connection, Pool, Tx} from '../postgres/sql.ts'
import {FencedOutError} from '../postgres/refusals.ts'
import {dropHint, hintKey, isSession, takeHint} from './hint.ts'

/** The bounded right to write for one cluster. `signal` aborts when it is over, before another node can have it. */
export type Lease = {
  readonly nodeId: string
  readonly epoch: bigint
  readonly signal: AbortSignal
  /** When it ends unless it is renewed once more, in milliseconds of `performance.now()`. */
  readonly endsAt: () => number
}

export type LeaseOptions = {
  readonly nodeId: string
  readonly clusterName: string
  readonly durationMs: number
  readonly renewEveryMs: number
  /** How long to wait for a lease that another holder has. */
  readonly patienceMs: number
  readonly onWait?: (holder: string) => void
}

/** Another node leads the cluster and did not stop in time. */
export class LeaseHeldError extends SyncError {
  override readonly name = 'LeaseHeldError'
  readonly code = 'SYNC_LEASE_HELD'
  override readonly retryable = true
  readonly holder: string
  readonly next = 'Wait until it has finished, or ask it: `owsync db status` shows who leads.'

  constructor(clusterName: string, holder: string) {
    super(`cluster ${clusterName} is led by ${holder}`)
    this.holder = holder
  }
}

/**
 * Leads the cluster while `work` runs: acquires the lease, renews it on a connection of its own, releases it after.
 *
 * The lease elects, the fence protects: `work` must end every write with {@link fenced} or a function of
 * `sync_metadata` that asserts the epoch.
 *
 * @throws {LeaseHeldError} when another holder keeps the lease for longer than `patienceMs`.
 * @throws {FencedOutError} when the lease was lost while `work` ran.
 * @throws {ConnectionLostError} when `work` stopped because the connection was lost that renews the lease.
 */
export async function withLease<T>(
  pool: Pool,
  options: LeaseOptions,
  work: (lease: Lease) => Promise<T>,
  signal: AbortSignal,
): Promise<T> {
  await using connection = await pool.reserve()
  const hasSession = await isSession(connection, () => pool.reserve())
  const acquired = await acquire(connection, {...options, hasSession}, signal)
  const {epoch} = acquired
  // Local and monotonic: a frozen or cut-off holder knows that its time is over without asking anyone.
  const term = {endsAt: acquired.askedAt + options.durationMs}
  const over = new AbortController()
  const lease: Lease = {
    nodeId: options.nodeId,
    epoch,
    signal: AbortSignal.any([signal, over.signal, connection.lost]),
    endsAt: () => term.endsAt,
  }
  const renewing = new AbortController()
  const renewal = keepRenewing(
    connection,
    options,
    acquired,
    term,
    AbortSignal.any([renewing.signal, signal]),
  ).catch((reason: unknown) => {
    over.abort(reason)
  })
  try {
    return await work(lease)
  } catch (error) {
    if (signal.aborted) throw error
    // The work failed because the lease was over, or stopped because nobody renews it any more: that is what to tell.
    if (over.signal.aborted) throw over.signal.reason
    throw connection.lost.aborted && errorTypeOf(error) === 'aborted' ? connection.lost.reason : error
  } finally {
    renewing.abort()
    await renewal
    if (!connection.lost.aborted) await release(connection, options, epoch)
  }
}

/** Gives the lease back. When that fails, what was done under it still holds, and the lease ends by itself. */
async function release(
  connection: Connection,
  {nodeId, clusterName, durationMs}: LeaseOptions,
  epoch: bigint,
): Promise<void> {
  // The hint first: whoever has it may take a lease from the one who took it without.
  const released = connection`
    select pg_advisory_unlock(${hintKey(clusterName)}),
      sync_metadata.release_lease(${nodeId}, ${epoch})`.catch(() => undefined)
  const answered = new AbortController()
  await Promise.race([
    released.then(() => {
      answered.abort()
    }),
    sleep(durationMs, undefined, {signal: answered.signal}).catch(() => undefined),
  ])
}

/**
 * Runs `write` in a transaction that commits only while `lease` is the newest.
 *
 * The check comes last: a takeover is never kept waiting by a long write, and between check and commit the key lock
 * keeps the epoch from moving.
 *
 * @throws {FencedOutError} and rolls back when another node has taken the lease.
 */
export async function fenced<T>(pool: Pool, lease: Lease, write: (tx: Tx) => Promise<T>): Promise<T> {
  return pool.begin(async tx => {
    const result = await write(tx)
    lease.signal.throwIfAborted()
    await tx`select sync_metadata.assert_lease(${lease.epoch})`
    return result
  })
}

type Acquired = {epoch: bigint; askedAt: number; hint: boolean; hasSession: boolean}

/** Without the hint, a lease must have been free for so long: whoever has the hint is about to take it. */
const UNHINTED_MS = 1_000

async function acquire(
  connection: Connection,
  options: LeaseOptions & {readonly hasSession: boolean},
  signal: AbortSignal,
): Promise<Acquired> {
  const since = performance.now()
  let freeSince: number | undefined
  for (;;) {
    const hint = options.hasSession && (await takeHint(connection, options.clusterName))
    const mayTake = hint || (freeSince !== undefined && performance.now() - freeSince >= UNHINTED_MS)
    const askedAt = performance.now() // before the round trip, so that we always expire first
    const [taken] = mayTake
      ? await connection<{epoch: bigint}>`
          select epoch from sync_metadata.acquire_lease(${options.nodeId}, ${options.durationMs}, ${hint})`
      : []
    if (taken) return {epoch: taken.epoch, askedAt, hint, hasSession: options.hasSession}
    // Kept, it would say that the leader is dead, whoever that will be.
    if (hint) await dropHint(connection, options.clusterName)
    const [row] = await connection<{leader_id: string | null; paused: boolean; free: boolean}>`
      select leader_id, paused, expires_at < clock_timestamp() as free
      from sync_metadata.leader_election where cluster_name = ${options.clusterName}`
    if (row?.free !== true) freeSince = undefined
    else freeSince ??= performance.now()
    const holder = row?.paused === true ? 'nobody: it is paused' : (row?.leader_id ?? 'another node')
    if (performance.now() - since > options.patienceMs) throw new LeaseHeldError(options.clusterName, holder)
    options.onWait?.(holder)
    await sleep(250, undefined, {signal})
  }
}

async function keepRenewing(
  connection: Connection,
  options: LeaseOptions,
  {epoch, hint, hasSession}: Acquired,
  term: {endsAt: number},
  signal: AbortSignal,
): Promise<void> {
  let hasHint = hint
  for (;;) {
    try {
      await sleep(Math.max(0, Math.min(options.renewEveryMs, term.endsAt - performance.now())), undefined, {
        signal,
      })
    } catch {
      return // asked to stop
    }
    if (performance.now() >= term.endsAt)
      throw new FencedOutError(`the lease of epoch ${epoch} ran out before it was renewed`)
    const askedAt = performance.now()
    const remaining = AbortSignal.timeout(Math.max(1, Math.floor(term.endsAt - askedAt)))
    const renewed = await Promise.race([
      connection<{hint: boolean}>`
        select ${hasHint || !hasSession} or pg_try_advisory_lock(${hintKey(options.clusterName)}) as hint
        from sync_metadata.renew_lease(${options.nodeId}, ${epoch}, ${options.durationMs})`,
      new Promise<undefined>(resolve => {
        remaining.addEventListener(
          'abort',
          () => {
            resolve(undefined)
          },
          {once: true},
        )
      }),
    ])
    if (renewed === undefined)
      throw new FencedOutError(`the lease of epoch ${epoch} could not be renewed in time`)
    if (renewed.length === 0) throw new FencedOutError(`the lease of epoch ${epoch} has been taken over`)
    term.endsAt = askedAt + options.durationMs
    hasHint = renewed[0]?.hint ?? false
  }
}
