import {setTimeout as sleep} from 'node:timers/promises'
import {SyncError} from '../core/errors.ts'
import {FencedOutError} from '../postgres/refusals.ts'
import type {Connection} from '../postgres/sql.ts'
import {TransactionConflictError, UnreachableError} from '../postgres/sqlstate.ts'
import type {Log} from '../telemetry/log.ts'
import type {Metrics} from '../telemetry/metrics.ts'
import {pauseAfter} from './backoff.ts'
import {ElectionSession, type SeenLease, type SessionOptions} from './election-session.ts'
import type {Lease} from './lease.ts'
import {decide, POLL_MS, SESSION_LOST_MS, type Standing} from './policy.ts'
import {Term} from './term.ts'

/** Who takes part, and how. */
export type ElectionOptions = SessionOptions & {readonly log: Log; readonly metrics: Metrics}

/** What Postgres wakes the nodes for. */
const announced = ['lease', 'cache', 'jobs', 'marks'] as const

/** What a node may have missed and should look at. `connected`: anything. */
export type Notice = (typeof announced)[number] | 'connected'

export type ElectionPorts = {
  /** Opens a connection of its own, outside any pool that work waits for. */
  connect(): Promise<Connection>
  /** Runs while this node leads, until `lease.signal` aborts. The lease is given back after it has settled. */
  lead(lease: Lease): Promise<void>
  onNotice(what: Notice): void
  onView(view: ClusterView): void
  /** Whether it is known that this process of the node, which may run on another machine, has ended. */
  isGone(nodeId: string, instance: string): boolean
  /** True for what trying again does not help: the election ends with it. */
  isFatal(error: unknown): boolean
}

/** The cluster as this node sees it. */
export type ClusterView = {
  readonly leads: boolean
  readonly leaderId: string | undefined
  readonly epoch: bigint
  /** When the lease ends unless it is renewed, on the database's clock. */
  readonly expiresAt: Date | undefined
  readonly isPaused: boolean
  /** False: what is said here may be out of date. */
  readonly isConnected: boolean
  /** Why there is no connection. */
  readonly error: unknown
  /** When a connection is tried again, of `performance.now()`; 0 while there is one. */
  readonly triesAt: number
}

const CONNECT_WITHIN_MS = 5_000
/** A stop waits so long for the work under the lease before the lease is given back: the fence holds without it. */
const SETTLE_MS = 600
/** A node that lost the lease, or whose work failed, lets others go first for so long, */
const REST_MS = 1_000
/** and at most, when its work keeps failing. */
const LONGEST_REST_MS = 60_000
/** From this pause on it is an outage. */
const OUTAGE_MS = 2_000

/**
 * Takes part in the election of the cluster's leader until `signal` aborts, over one connection for lease, hint and
 * notices. It connects again by itself; while there is no connection the lease, if this node has it, goes on until its
 * time is over. When stopped it gives the lease back.
 *
 * @throws what `isFatal` says is fatal, and what is no failure that we have a name for.
 */
export async function runElection(
  options: ElectionOptions,
  ports: ElectionPorts,
  signal: AbortSignal,
): Promise<void> {
  await new Election(options, ports).run(signal)
}

const nobody: SeenLease = {
  leaderId: undefined,
  epoch: 0n,
  isFree: false,
  isPaused: false,
  preferred: undefined,
  isPreferredAlive: false,
  expiresAt: new Date(0),
  renewedAt: null,
  instance: null,
}

const connected = {isConnected: true, error: undefined, triesAt: 0} as const

class Election {
  readonly #options: ElectionOptions
  readonly #ports: ElectionPorts
  readonly #log: Log
  readonly #startedAt = performance.now()
  #row = nobody
  #term: Term | undefined
  /** Leader as last heard of; a lease that was given back does not say whose it was. */
  #lastLeader: string | undefined
  /** Since when the lease is seen free. */
  #freeAt: number | undefined
  #isNoticed = false
  #restUntil = 0
  #failedTerms = 0
  #hasBeaten = false
  #wake = Promise.withResolvers<undefined>()
  readonly #closing = new Set<Promise<unknown>>()

  constructor(options: ElectionOptions, ports: ElectionPorts) {
    this.#options = options
    this.#ports = ports
    this.#log = options.log
  }

  async run(signal: AbortSignal): Promise<void> {
    const stop = () => {
      this.#term?.end(signal.reason)
      this.#wakeUp()
    }
    signal.addEventListener('abort', stop)
    let failures = 0
    const onConnected = () => {
      if (failures > 0) this.#log.info({failures}, 'connected to Postgres again')
      failures = 0
    }
    try {
      for (;;) {
        try {
          await this.#live(onConnected, signal)
          return
        } catch (error) {
          if (signal.aborted) return
          if (this.#ports.isFatal(error) || !mayPass(error)) throw error
          await this.#disconnected(error, ++failures, signal)
        }
      }
    } finally {
      signal.removeEventListener('abort', stop)
      this.#term?.end(signal.reason ?? new Error('the election has ended'))
      await this.#term?.settled
      await Promise.all(this.#closing)
    }
  }

  async #disconnected(error: unknown, failures: number, signal: AbortSignal): Promise<void> {
    const {metrics, nodeId} = this.#options
    const pauseMs = pauseAfter(error, failures)
    metrics.heartbeatFailures.inc({node_id: nodeId})
    metrics.errors.inc({component: 'election', error_type: error instanceof SyncError ? error.code : 'other'})
    const next = error instanceof SyncError ? error.next : undefined
    this.#log[pauseMs < OUTAGE_MS ? 'warn' : 'error'](
      {err: error, next, failures, retry_ms: pauseMs},
      'the election has no connection to Postgres',
    )
    this.#show({isConnected: false, error, triesAt: performance.now() + pauseMs})
    // A stop cuts it short, and is met by the loop.
    await sleep(pauseMs, undefined, {signal}).catch(() => undefined)
  }

  /** One connection’s life. Resolves when the node was stopped. @throws what the connection ended with. */
  async #live(onConnected: () => void, signal: AbortSignal): Promise<void> {
    const connection = await this.#connect(signal)
    const wake = () => {
      this.#leading?.limit(SESSION_LOST_MS)
      this.#wakeUp()
    }
    connection.lost.addEventListener('abort', wake)
    connection.onNotify((_channel, payload) => {
      if (payload === 'lease') {
        this.#isNoticed = true
        this.#wakeUp()
      }
      const what = announced.find(each => each === payload)
      if (what !== undefined) this.#ports.onNotice(what)
    })
    try {
      const session = new ElectionSession(connection, this.#options)
      // First of all: its time may be short.
      if (this.#leading !== undefined) await this.#renew(session)
      await session.introduce(() => this.#connect(signal))
      onConnected()
      let isWarned = false
      // Whatever was announced while nobody listened.
      this.#ports.onNotice('connected')
      while (!signal.aborted) {
        // It may look like a session at first.
        if (!session.isSession && !isWarned) {
          this.#log.warn(
            {},
            'Postgres is behind a transaction pooler: a killed leader is noticed when its lease ends',
          )
          isWarned = true
        }
        await this.#pause(await this.#turn(session), signal)
        if (connection.lost.aborted) throw connection.lost.reason
      }
      await this.#release(session, signal.reason)
      await session.leave()
    } finally {
      connection.lost.removeEventListener('abort', wake)
      // Given up by us: before the server can know of it, and let another one have the hint.
      this.#leading?.limit(SESSION_LOST_MS)
      this.#close(connection)
    }
  }

  /** @throws {UnreachableError} when there is none in time. */
  async #connect(signal: AbortSignal): Promise<Connection> {
    const connecting = this.#ports.connect()
    const isDecided = new AbortController()
    const tooLate = sleep(CONNECT_WITHIN_MS, undefined, {
      signal: AbortSignal.any([signal, isDecided.signal]),
    }).then(() => {
      throw new UnreachableError('DATABASE_URL', `no connection within ${CONNECT_WITHIN_MS} ms`)
    })
    try {
      return await Promise.race([connecting, tooLate])
    } catch (error) {
      connecting.then(
        connection => {
          this.#close(connection)
        },
        () => undefined,
      )
      throw error
    } finally {
      isDecided.abort()
      tooLate.catch(() => undefined)
    }
  }

  /** In the background: a connection that answers no more takes seconds to close. */
  #close(connection: Connection): void {
    const closed: Promise<unknown> = Promise.resolve(connection[Symbol.asyncDispose]()).catch(() => undefined)
    this.#closing.add(closed)
    void closed.then(() => this.#closing.delete(closed))
  }

  /** Looks, decides and acts until there is nothing to do. @returns for how long, in ms. */
  async #turn(session: ElectionSession): Promise<number> {
    await this.#settle(session)
    // Before the first bid: the others must not take us for the process before us, which has ended.
    if (!this.#hasBeaten) await this.#beat(session)
    if (this.#leading === undefined) {
      await this.#look(session)
      if (!session.isSession) for (const what of announced) this.#ports.onNotice(what)
    }
    for (;;) {
      const decision = decide({
        nodeId: this.#options.nodeId,
        row: this.#row,
        standing: this.#standing(session),
      })
      switch (decision.do) {
        case 'renew':
          await this.#renew(session)
          break
        case 'hand-over':
          this.#log.info({to: decision.to, epoch: this.#row.epoch}, 'the lease is handed over')
          await this.#release(session, new FencedOutError(`the lease was handed over to ${decision.to}`))
          this.#rest(REST_MS)
          await this.#look(session)
          break
        case 'stop':
          this.#lose('the lease ran out before it was renewed')
          await this.#look(session)
          break
        case 'acquire':
          await this.#acquire(session, decision.isHolderDead)
          break
        case 'wait': {
          // Asked once: time goes on between two questions.
          const {beatDueMs} = session
          if (beatDueMs > 0) return Math.min(decision.ms, beatDueMs)
          await this.#beat(session)
        }
      }
    }
  }

  async #beat(session: ElectionSession): Promise<void> {
    await session.beat(this.#hasBeaten ? undefined : performance.now() - this.#startedAt)
    this.#hasBeaten = true
  }

  /** The term that goes on. */
  get #leading(): Term | undefined {
    return this.#term?.isOver === false ? this.#term : undefined
  }

  #standing(session: ElectionSession): Standing {
    const now = performance.now()
    const term = this.#leading
    if (term !== undefined) {
      return {
        leads: true,
        remainingMs: term.endsAt - now,
        sinceRenewedMs: now - term.renewedAt,
        renewEveryMs: this.#options.renewEveryMs,
        isNoticed: this.#isNoticed,
      }
    }
    const {leaderId, instance} = this.#row
    return {
      leads: false,
      isSettling: this.#term !== undefined,
      restMs: this.#restUntil - now,
      hasSession: session.isSession,
      hintHeldMs: session.hintHeldMs,
      freeForMs: this.#freeAt === undefined ? 0 : now - this.#freeAt,
      isLeaderGone: leaderId !== undefined && instance !== null && this.#ports.isGone(leaderId, instance),
    }
  }

  async #look(session: ElectionSession): Promise<void> {
    this.#isNoticed = false
    const mayBid = this.#term === undefined && performance.now() >= this.#restUntil
    this.#see(await session.look(mayBid))
  }

  #see(row: SeenLease): void {
    const {metrics, clusterName: cluster} = this.#options
    if (!row.isFree) this.#freeAt = undefined
    else this.#freeAt ??= performance.now()
    this.#lastLeader = row.leaderId ?? this.#lastLeader
    this.#row = row
    metrics.leaseEpoch.set({cluster}, Number(row.epoch))
    metrics.leaseExpires.set({cluster}, Math.max(row.expiresAt.getTime(), 0) / 1_000)
    this.#show(connected)
  }

  #show(connection: Pick<ClusterView, 'isConnected' | 'error' | 'triesAt'>): void {
    const {leaderId, epoch, isFree, isPaused, expiresAt} = this.#row
    const {metrics, nodeId, clusterName} = this.#options
    const leads = this.#leading !== undefined
    metrics.isLeader.set({node_id: nodeId, cluster: clusterName}, leads ? 1 : 0)
    this.#ports.onView({
      leads,
      leaderId: isFree ? undefined : leaderId,
      epoch,
      expiresAt: isFree ? undefined : expiresAt,
      isPaused,
      ...connection,
    })
  }

  async #acquire(session: ElectionSession, isHolderDead: boolean): Promise<void> {
    const {metrics, nodeId, durationMs} = this.#options
    const {leaderId, isFree, preferred, epoch: before} = this.#row
    const askedAt = performance.now() // before the round trip, so that we always expire first
    let epoch: bigint | undefined
    try {
      epoch = await session.acquire(isHolderDead, before)
    } catch (error) {
      if (!(error instanceof TransactionConflictError)) throw error
      this.#log.warn({err: error}, 'the lease could not be taken: a commit under it is under way')
    }
    if (epoch === undefined) {
      metrics.leaderElections.inc({result: 'lost'})
      await session.dropHint()
      this.#rest(REST_MS / 10)
      await this.#look(session)
      return
    }
    const reason =
      preferred === nodeId ? 'promoted' : !isFree ? 'died' : leaderId === undefined ? 'released' : 'expired'
    const from = leaderId ?? this.#lastLeader
    metrics.leaderElections.inc({result: 'won'})
    if (from !== undefined && from !== nodeId)
      metrics.failovers.inc({from_node: from, to_node: nodeId, reason})
    this.#log.info({epoch, from, reason, lease_ms: durationMs}, 'this node leads')
    const term = {nodeId, epoch, askedAt, durationMs}
    this.#term = new Term(
      term,
      lease => this.#ports.lead(lease),
      () => {
        this.#wakeUp()
      },
    )
    this.#see(await session.look(true))
  }

  async #renew(session: ElectionSession): Promise<void> {
    const term = this.#term as Term
    this.#isNoticed = false
    const askedAt = performance.now()
    const row = await session.renew(term.epoch)
    if (row !== undefined) {
      term.extend(askedAt)
      this.#see(row)
      return
    }
    this.#lose('the lease has been taken over')
    await this.#look(session)
  }

  /** Ends the work under the lease, then gives the lease back, which wakes the others. */
  async #release(session: ElectionSession, reason: unknown): Promise<void> {
    const term = this.#term
    if (term === undefined) return
    term.end(reason)
    this.#show(connected)
    await Promise.race([term.settled, sleep(SETTLE_MS, undefined, {ref: false})])
    await session.release(term.epoch)
    if (term.isSettled) this.#term = undefined
  }

  #lose(why: string): void {
    this.#term?.end(new FencedOutError(why))
    this.#show(connected)
  }

  #rest(ms: number): void {
    this.#restUntil = performance.now() + ms * (1 + Math.random() / 2)
  }

  /** Sees to a term that has ended: by losing the lease, or because its work has, which is as good as stepping down. */
  async #settle(session: ElectionSession): Promise<void> {
    const term = this.#term
    if (term === undefined) return
    const {epoch, failure} = term
    if (term.isOver) {
      if (!term.isSettled) return
      this.#log.info({epoch}, 'this node does not lead any more')
      this.#term = undefined
      this.#failedTerms = 0
      this.#rest(REST_MS)
    } else if (term.isSettled) {
      const count = ++this.#failedTerms
      this.#log.error(
        {err: failure, epoch, in_a_row: count},
        'the leader’s work has failed: it gives the lease back',
      )
      await this.#release(session, new Error('the leader’s work has ended'))
      this.#rest(Math.min(REST_MS * 2 ** count, LONGEST_REST_MS))
    }
  }

  #wakeUp(): void {
    this.#wake.resolve(undefined)
  }

  async #pause(ms: number, signal: AbortSignal): Promise<void> {
    if (signal.aborted) return
    const awake = new AbortController()
    // Nodes that were started together do not stay in step.
    const spreadMs = ms < POLL_MS ? ms : ms * (0.8 + 0.2 * Math.random())
    await Promise.race([
      this.#wake.promise,
      sleep(spreadMs, undefined, {signal: awake.signal}).catch(() => undefined),
    ])
    awake.abort()
    this.#wake = Promise.withResolvers()
  }
}

/** A failure that we have a name for, or a refusal of the server's, such as a function that is not there yet. */
function mayPass(error: unknown): boolean {
  return error instanceof SyncError || (error instanceof Error && 'severity' in error)
}
