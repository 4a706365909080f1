import {setTimeout as sleep} from 'node:timers/promises'
import {SyncError} from '../core/errors.ts'
import {recordAudit} from '../postgres/audit-log.ts'
import type {Pool, Sql} from '../postgres/sql.ts'
import {readCluster, type ClusterStatus} from '../state/overview.ts'

// What `owsync cluster` asks of a cluster. The nodes decide; this asks, waits, and notes who asked.

/** There is nobody who could lead, or who leads: what was asked for makes no sense now. */
export class CannotLeadError extends SyncError {
  override readonly name = 'CannotLeadError'
  readonly code = 'SYNC_CANNOT_LEAD'
  readonly next: string

  constructor(message: string, next: string) {
    super(message)
    this.next = next
  }
}

/** Another node leads than the caller thought. Nothing was changed. */
export class LeaderChangedError extends SyncError {
  override readonly name = 'LeaderChangedError'
  readonly code = 'SYNC_LEADER_CHANGED'
  readonly next = 'Look at `owsync cluster status`, then decide again.'

  constructor(expected: string, actual: string | null) {
    super(`${expected} does not lead: ${actual ?? 'nobody'} does`)
  }
}

/** The node that was asked to lead has not taken over in time. The wish was taken back. */
export class TakeoverTimeoutError extends SyncError {
  override readonly name = 'TakeoverTimeoutError'
  readonly code = 'SYNC_TAKEOVER_TIMEOUT'
  override readonly retryable = true
  readonly next =
    'Look at the logs of both nodes; a leader that does not answer is fenced with `owsync cluster promote --force`.'

  constructor(nodeId: string, waitedMs: number, leaderId: string | null) {
    super(`${nodeId} does not lead after ${Math.round(waitedMs / 1_000)} s; ${leaderId ?? 'nobody'} does`)
  }
}

/** How a switch of leaders went. */
export type Takeover = {
  readonly from: string | null
  readonly to: string
  readonly epoch: bigint
  /** From asking until the other node led, as this process saw it. */
  readonly tookMs: number
}

export type PromoteRequest = {
  readonly nodeId: string
  /** Only if this node leads. */
  readonly expectedLeader?: string | undefined
  /** Fences the present leader at once, when it does not answer. */
  readonly force: boolean
  readonly actor: string
}

/** For how long nobody but the node that was asked may take the lease. */
const WISH_MS = 15_000

/**
 * Asks that a node leads, and waits until it does.
 *
 * @throws {CannotLeadError} for a node that is not there, or a paused cluster.
 * @throws {LeaderChangedError} when `expectedLeader` does not lead.
 * @throws {TakeoverTimeoutError} when it does not lead in time.
 */
export async function promote(
  pool: Pool,
  {nodeId, expectedLeader, force, actor}: PromoteRequest,
  signal: AbortSignal,
): Promise<Takeover | 'leads already'> {
  const cluster = await readCluster(pool)
  const {leader_id: from} = cluster
  if (expectedLeader !== undefined && from !== expectedLeader)
    throw new LeaderChangedError(expectedLeader, from)
  if (from === nodeId) return 'leads already'
  requireAlive(cluster, nodeId)
  const askedAt = performance.now()
  const isAsked = await pool.begin(async tx => {
    const [row] = await tx<{asked: boolean}>`
      select sync_metadata.prefer_node(${nodeId}, ${WISH_MS}, ${expectedLeader}, ${force}) as asked`
    if (row?.asked !== true) return false
    const details = {from, to: nodeId, force}
    await recordAudit(tx, {actor, action: 'cluster.promote', details})
    return true
  })
  if (!isAsked) throw new LeaderChangedError(expectedLeader ?? '', (await readCluster(pool)).leader_id)
  return await awaitTakeover(pool, {from, to: nodeId, askedAt}, signal)
}

/**
 * Asks the leader to hand over to the other node, and waits until that one leads.
 *
 * @throws {CannotLeadError} when nobody leads, when there is nobody to take over, or when the cluster is paused.
 * @throws {TakeoverTimeoutError} when it does not lead in time.
 */
export async function stepDown(pool: Pool, actor: string, signal: AbortSignal): Promise<Takeover> {
  const cluster = await readCluster(pool)
  const {leader_id: from} = cluster
  if (from === null)
    throw new CannotLeadError('nobody leads the cluster', 'Start a node; `owsync cluster status` shows them.')
  requireRunning(cluster)
  const askedAt = performance.now()
  const to = await pool.begin(async tx => {
    const [row] = await tx<{successor: string | null}>`
      select sync_metadata.step_down(${from}, ${WISH_MS}) as successor`
    const successor = row?.successor ?? undefined
    if (successor !== undefined)
      await recordAudit(tx, {actor, action: 'cluster.step_down', details: {from, to: successor}})
    return successor
  })
  if (to === undefined)
    throw new CannotLeadError(
      `no other node is alive that could take over from ${from}`,
      'Start the other node, wait until `owsync cluster nodes` shows it active, then try again.',
    )
  return await awaitTakeover(pool, {from, to, askedAt}, signal)
}

/** While a cluster is paused nobody takes the lease; whoever has it keeps it. */
export async function pauseLeadership(pool: Pool, isPaused: boolean, actor: string): Promise<void> {
  await pool.begin(async tx => {
    await tx`select sync_metadata.set_paused(${isPaused})`
    await recordAudit(tx, {actor, action: isPaused ? 'cluster.paused' : 'cluster.resumed'})
  })
}

/** How a failover went that was asked for to see whether it works. */
export type FailoverTest = Takeover & {
  /** How long nobody led, on the database's clock; `undefined` when the lease was taken over rather than given back. */
  readonly withoutLeaderMs: number | undefined
  /** The new epoch is greater than the old one, so the old leader cannot write any more. */
  readonly isFenced: boolean
  /** The old leader is alive still, as a standby. */
  readonly isStandbyAlive: boolean
}

/**
 * Lets the leader step down, measures until the other node leads, and looks at both afterwards.
 *
 * @throws {CannotLeadError} unless two nodes are active and one of them leads.
 */
export async function testFailover(pool: Pool, actor: string, signal: AbortSignal): Promise<FailoverTest> {
  const before = await readCluster(pool)
  const active = before.nodes.filter(({health}) => health === 'active')
  if (active.length < 2)
    throw new CannotLeadError(
      `a failover needs two active nodes, and ${before.cluster_name} has ${active.length === 0 ? 'none' : `only ${active[0]?.node_id ?? ''}`}`,
      'Start both nodes, wait until `owsync cluster nodes` shows them active, then try again.',
    )
  if (!active.some(({is_leader}) => is_leader))
    throw new CannotLeadError(
      `no node of ${before.cluster_name} leads: ${before.leader_id ?? 'nobody'} does`,
      'Wait until one does; `owsync cluster status` shows it.',
    )
  const takeover = await stepDown(pool, actor, signal)
  const after = await readCluster(pool)
  const [gap] = await pool<{ms: number | null}>`
    select extract(epoch from max(recorded_at) filter (where action = 'lease.acquired')
      - max(recorded_at) filter (where action = 'lease.released'))::float8 * 1000 as ms
    from sync_metadata.audit_log
    where host_id = (select sync_metadata.my_host())
      and (action = 'lease.acquired' and details ->> 'epoch' = ${String(takeover.epoch)}
        or action = 'lease.released' and details ->> 'epoch' = ${String(before.epoch)})`
  return {
    ...takeover,
    withoutLeaderMs: gap?.ms == null ? undefined : Math.max(0, Math.round(gap.ms)),
    isFenced: takeover.epoch > before.epoch,
    isStandbyAlive: after.nodes.some(({node_id, health}) => node_id === takeover.from && health === 'active'),
  }
}

function requireAlive(cluster: ClusterStatus, nodeId: string): void {
  requireRunning(cluster)
  const node = cluster.nodes.find(node => node.node_id === nodeId)
  const known = cluster.nodes.map(({node_id}) => node_id).join(', ')
  if (node === undefined)
    throw new CannotLeadError(
      `${cluster.cluster_name} has no node ${nodeId}`,
      known === '' ? 'Start it: no node of this cluster has been started yet.' : `Its nodes are ${known}.`,
    )
  if (node.health !== 'active')
    throw new CannotLeadError(
      `${nodeId} was last heard of at ${node.last_heartbeat.toISOString()}`,
      'Start it, wait until `owsync cluster nodes` shows it active, then try again.',
    )
}

function requireRunning({cluster_name, paused}: ClusterStatus): void {
  if (paused)
    throw new CannotLeadError(
      `leadership of ${cluster_name} is paused: nobody may take over`,
      'Run `owsync cluster resume` first.',
    )
}

const POLL_MS = 50

/** How long to wait for a leader that does not answer: its lease ends, and the wish with it, long before. */
const PATIENCE_MS = 30_000

async function awaitTakeover(
  sql: Sql,
  {from, to, askedAt}: {readonly from: string | null; readonly to: string; readonly askedAt: number},
  signal: AbortSignal,
): Promise<Takeover> {
  for (;;) {
    const [row] = await sql<{leader_id: string | null; epoch: bigint}>`
      select case when expires_at > clock_timestamp() then leader_id end as leader_id, epoch
      from sync_metadata.leader_election where cluster_name = (select sync_metadata.my_cluster())`
    const {leader_id: leader = null, epoch = 0n} = row ?? {}
    const tookMs = performance.now() - askedAt
    if (leader === to) return {from, to, epoch, tookMs: Math.round(tookMs)}
    if (tookMs > PATIENCE_MS) {
      await sql`select sync_metadata.prefer_node(null)`
      throw new TakeoverTimeoutError(to, tookMs, leader)
    }
    await sleep(POLL_MS, undefined, {signal})
  }
}
