import {setTimeout as sleep} from 'node:timers/promises'
import {NotYoursError} from '../postgres/refusals.ts'
import {ConnectionLostError, TransactionConflictError} from '../postgres/sqlstate.ts'
import {fragment, type Connection, type Fragment} from '../postgres/sql.ts'
import {dropHint, endHintHolders, hintKey, isSession, takeHint} from './hint.ts'
import {SESSION_LOST_MS, type LeaseRow} from './policy.ts'

/** What a session says about its node. */
export type SessionOptions = {
  readonly nodeId: string
  readonly clusterName: string
  readonly role: string
  readonly version: string
  readonly address: string | undefined
  readonly durationMs: number
  readonly renewEveryMs: number
  /** Names this process: a UUID. */
  readonly instance: string
}

export type SeenLease = LeaseRow & {
  /** On the database's clock. */
  readonly expiresAt: Date
  readonly renewedAt: Date | null
  /** The process that leads, as it calls itself. */
  readonly instance: string | null
}

/** How long a statement may take before the connection is given up. */
const ANSWER_WITHIN_MS = 2_000
const SLICE_MS = 100
/** How long taking the lease waits for a commit that is under way. */
const LOCK_WAIT_MS = 1_000
/** So long after taking the lease a leader may still be about to take the hint. */
const NEW_LEADER_MS = 1_000
/** After so many renewals a hint that its leader disproved is asked for again. */
const HINT_REST = 3

/** The statements of the election on one connection, each of which answers soon or loses the connection. */
export class ElectionSession {
  readonly #connection: Connection
  readonly #options: SessionOptions
  #isSession = false
  #pid = 0
  #channel = ''
  /** The hint, when this session has it: since when, and when the lease had been renewed by then. */
  #hint: {readonly since: number; readonly renewedAt: number | undefined} | undefined
  #noHintUntil = 0
  #beatAt = -Infinity

  constructor(connection: Connection, options: SessionOptions) {
    this.#connection = connection
    this.#options = options
  }

  /** False behind a pooler that gives every transaction another session. */
  get isSession(): boolean {
    return this.#isSession
  }

  /** For how long it has had the hint; `undefined` while it has not. */
  get hintHeldMs(): number | undefined {
    return this.#hint && performance.now() - this.#hint.since
  }

  get beatDueMs(): number {
    return this.#beatAt + this.#options.renewEveryMs - performance.now()
  }

  /**
   * Finds out who we are and listens.
   *
   * @throws {NotYoursError} when the role is no host's.
   */
  async introduce(another: () => Promise<Connection>): Promise<void> {
    const sql = this.#connection
    const [host] = await this.#answer(sql<{channel: string; pid: number}>`
      select sync_metadata.channel_of(host_id) as channel, pg_backend_pid() as pid
      from sync_metadata.hosts where host_id = sync_metadata.my_host()`)
    if (!host) throw new NotYoursError('the database role is not the role of a host (any more)')
    this.#pid = host.pid
    this.#channel = host.channel
    this.#isSession = await this.#answer(isSession(sql, another), 3 * ANSWER_WITHIN_MS)
    if (!this.#isSession) return
    // So that the server, too, soon sees that we are cut off, and lets go of the hint; not before we have seen it.
    const idleS = Math.ceil((this.#options.renewEveryMs + ANSWER_WITHIN_MS + SESSION_LOST_MS) / 1_000)
    await this.#answer(sql`
      select set_config('tcp_keepalives_idle', ${String(idleS)}, false), set_config('tcp_keepalives_interval', '2', false),
        set_config('tcp_keepalives_count', '2', false)`)
    await this.#answer(sql`listen ${sql(this.#channel)}`)
  }

  /** @param mayBid whether this node would take the lease: only then does it want the hint. */
  async look(mayBid: boolean): Promise<SeenLease> {
    const {nodeId, clusterName, renewEveryMs} = this.#options
    const asks =
      mayBid && this.#isSession && this.#hint === undefined && performance.now() >= this.#noHintUntil
    // Of whoever is wanted to lead, or has just begun to: taken from under it, the session that took it would be ended.
    const isOurs = fragment`not l.paused and coalesce(w.preferred, ${nodeId}) = ${nodeId} and (
      l.expires_at < clock_timestamp()
      or coalesce(l.acquired_at, '-infinity') < clock_timestamp() - ${NEW_LEADER_MS}::float8 * interval '1 millisecond')`
    const [found] = await this.#answer(this.#connection<SeenLease & {hint: boolean; pid: number}>`
      select l.leader_id as "leaderId", l.epoch, l.expires_at < clock_timestamp() as "isFree",
        l.expires_at as "expiresAt", l.renewed_at as "renewedAt", l.paused as "isPaused", w.preferred,
        (select n.instance from sync_metadata.sync_nodes n
          where n.host_id = (select sync_metadata.my_host()) and n.node_id = l.leader_id) as instance,
        ${this.#isAlive(fragment`w.preferred`)} as "isPreferredAlive",
        ${asks ? fragment`case when ${isOurs} then pg_try_advisory_lock(${hintKey(clusterName)}) else false end` : fragment`${this.#hint !== undefined}::boolean`} as hint,
        pg_backend_pid() as pid
      from sync_metadata.leader_election l
      cross join lateral (select case when l.preferred_until > clock_timestamp() then l.preferred end as preferred) w
      where l.cluster_name = ${clusterName}`)
    if (!found) throw new NotYoursError(`cluster ${clusterName} is not the database role's`)
    const {hint, pid, ...row} = found
    const lease = seen(row)
    this.#notePid(pid)
    const renewedAt = lease.renewedAt?.getTime()
    if (this.#isSession && hint) this.#hint ??= {since: performance.now(), renewedAt}
    const isOthers = !lease.isFree && lease.leaderId !== nodeId
    if (this.#hint !== undefined && isOthers) {
      if (this.#hint.renewedAt !== renewedAt) {
        // It was only its session that had gone.
        await this.dropHint()
        this.#noHintUntil = performance.now() + HINT_REST * renewEveryMs
      } else if (asks) {
        // Whoever leads and lives renews now.
        await this.#answer(this.#connection`select pg_notify(${this.#channel}, 'lease')`)
      }
    }
    const isBarred = lease.isPaused || (lease.preferred ?? nodeId) !== nodeId
    if (this.#hint !== undefined && (!mayBid || isBarred)) await this.dropHint()
    return lease
  }

  /** @returns `undefined` when the lease is not ours any more. */
  async renew(epoch: bigint): Promise<SeenLease | undefined> {
    const {nodeId, clusterName, durationMs} = this.#options
    const asks = this.#isSession && this.#hint === undefined
    const [row] = await this.#answer(this.#connection<
      Pick<SeenLease, 'expiresAt' | 'preferred' | 'isPaused' | 'isPreferredAlive'> & {
        hint: boolean
        pid: number
      }
    >`
      select r.expires_at as "expiresAt", r.preferred, r.paused as "isPaused",
        ${this.#isAlive(fragment`r.preferred`)} as "isPreferredAlive",
        ${asks ? fragment`pg_try_advisory_lock(${hintKey(clusterName)})` : fragment`${this.#hint !== undefined}::boolean`} as hint,
        pg_backend_pid() as pid
      from sync_metadata.renew_lease(${nodeId}, ${epoch}, ${durationMs}) r`)
    if (row === undefined) return undefined
    const {hint, pid, ...lease} = row
    this.#notePid(pid)
    if (this.#isSession && hint) this.#hint ??= {since: performance.now(), renewedAt: undefined}
    return seen({...lease, leaderId: nodeId, epoch, isFree: false, renewedAt: null, instance: null})
  }

  /**
   * Takes the lease, and ends what older epochs have left on the server.
   *
   * @param isHolderDead takes it although it has not run out.
   * @param before the epoch that it had when it was seen free.
   * @returns the new epoch; `undefined` when it is not to be had.
   */
  async acquire(isHolderDead: boolean, before: bigint): Promise<bigint | undefined> {
    const {clusterName} = this.#options
    let epoch: bigint | undefined
    try {
      epoch = await this.#tryAcquire(isHolderDead)
    } catch (error) {
      if (!(error instanceof TransactionConflictError)) throw error
      // A commit under the old epoch is under way, of a process that may be frozen in it.
      await this.#endOlder(before + 1n)
      epoch = await this.#tryAcquire(isHolderDead)
    }
    if (epoch === undefined) return undefined
    await this.#endOlder(epoch)
    if (this.#isSession && this.#hint === undefined) {
      await this.#answer(endHintHolders(this.#connection, clusterName))
      if (await this.#answer(takeHint(this.#connection, clusterName)))
        this.#hint = {since: performance.now(), renewedAt: undefined}
    }
    return epoch
  }

  /** Gives the lease back. The hint first: whoever has it may take a lease from the one who took it without. */
  async release(epoch: bigint): Promise<void> {
    const {nodeId, clusterName} = this.#options
    const unlock =
      this.#hint === undefined ? fragment`false` : fragment`pg_advisory_unlock(${hintKey(clusterName)})`
    this.#hint = undefined
    await this.#answer(this.#connection`select ${unlock}, sync_metadata.release_lease(${nodeId}, ${epoch})`)
  }

  async dropHint(): Promise<void> {
    if (this.#hint === undefined) return
    this.#hint = undefined
    await this.#answer(dropHint(this.#connection, this.#options.clusterName))
  }

  /** Says that the node is alive. @param uptimeMs given once by each process. */
  async beat(uptimeMs: number | undefined): Promise<void> {
    const {nodeId, role, version, address, instance} = this.#options
    const at = performance.now()
    const started = fragment`clock_timestamp() - ${uptimeMs}::float8 * interval '1 millisecond'`
    await this.#answer(this.#connection`
      with node as (
        insert into sync_metadata.sync_nodes as n
          (node_id, role, version, address, instance, started_at, last_heartbeat)
        values (${nodeId}, ${role}, ${version}, ${address}, ${instance}, coalesce(${started}, clock_timestamp()), clock_timestamp())
        on conflict (host_id, node_id) do update set role = excluded.role, version = excluded.version,
          address = excluded.address, instance = excluded.instance, started_at = coalesce(${started}, n.started_at),
          last_heartbeat = excluded.last_heartbeat, stopped_at = null
      )
      update sync_metadata.hosts set last_heartbeat = clock_timestamp(),
        status = case when status = 'offline' then 'active' else status end
      where host_id = (select sync_metadata.my_host())`)
    this.#beatAt = at
  }

  /** Says that the node stops. */
  async leave(): Promise<void> {
    await this.#answer(this.#connection`
      update sync_metadata.sync_nodes set stopped_at = clock_timestamp() where node_id = ${this.#options.nodeId}`)
  }

  async #tryAcquire(isHolderDead: boolean): Promise<bigint | undefined> {
    const {nodeId, durationMs} = this.#options
    const taking = this.#connection.begin(
      async tx =>
        await tx<{
          epoch: bigint
        }>`select epoch from sync_metadata.acquire_lease(${nodeId}, ${durationMs}, ${isHolderDead})`,
      {setLocal: {lock_timeout: `${LOCK_WAIT_MS}ms`}},
    )
    const [taken] = await this.#answer(taking, ANSWER_WITHIN_MS + LOCK_WAIT_MS)
    return taken?.epoch
  }

  async #endOlder(epoch: bigint): Promise<void> {
    await this.#answer(this.#connection`select sync_metadata.end_older_sessions(${epoch})`)
  }

  /** Whether the node of that name is there to take over. */
  #isAlive(node: Fragment): Fragment {
    const recentMs = 3 * this.#options.renewEveryMs
    return fragment`exists (
      select from sync_metadata.sync_nodes n
      where n.host_id = (select sync_metadata.my_host()) and n.node_id = ${node} and n.stopped_at is null
        and n.last_heartbeat > clock_timestamp() - ${recentMs}::float8 * interval '1 millisecond')`
  }

  /** A session that turns out to be another one is none: what was locked in it says nothing. */
  #notePid(pid: number): void {
    if (pid === this.#pid || !this.#isSession) return
    this.#isSession = false
    this.#hint = undefined
  }

  /** @throws {ConnectionLostError} when there is no answer in time. */
  async #answer<T>(work: Promise<T>, withinMs = ANSWER_WITHIN_MS): Promise<T> {
    const answered = new AbortController()
    const {signal} = answered
    const silence = (async (): Promise<never> => {
      // Counted, not timed: a pause of this process must not look like one of the server.
      for (let slice = 0; slice * SLICE_MS < withinMs; slice++) await sleep(SLICE_MS, undefined, {signal})
      throw new ConnectionLostError(true, {cause: new Error(`no answer within ${withinMs} ms`)})
    })()
    // The race tells of whichever fails first; the other one has nobody to tell.
    silence.catch(() => undefined)
    work.catch(() => undefined)
    try {
      return await Promise.race([work, silence])
    } finally {
      answered.abort()
    }
  }
}

/** SQL's null is our absence. */
function seen(
  row: Omit<SeenLease, 'leaderId' | 'preferred'> & {
    leaderId: string | null | undefined
    preferred: string | null | undefined
  },
): SeenLease {
  return {...row, leaderId: row.leaderId ?? undefined, preferred: row.preferred ?? undefined}
}
