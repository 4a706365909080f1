import {withLease} from '../cluster/lease.ts'
import type {Config} from '../config/config.ts'
import type {Endpoint} from '../net/endpoint.ts'
import type {Pool} from '../postgres/sql.ts'
import type {Log} from '../telemetry/log.ts'
import {createMetrics} from '../telemetry/metrics.ts'
import {findLeader} from './ask-leader.ts'
import type {EndedRun} from './job-runs.ts'
import {passOnce} from './leader-jobs.ts'

/** What a pass came to. */
export type DuePass = {
  /** The node that leads and looks after all of it; then nothing was done here. */
  readonly leader: string | undefined
  readonly runs: readonly EndedRun[]
}

/** How long a pass waits for another command that leads. */
const PATIENCE_MS = 15_000

/**
 * One pass of the scheduler, for hosts that run no node: leads as `<cluster>-cli` meanwhile.
 *
 * @throws {LeaseHeldError} when another command leads for longer than we wait.
 */
export async function runDue(
  {pool, endpoint}: {readonly pool: Pool; readonly endpoint: Endpoint},
  config: Config,
  log: Log,
  signal: AbortSignal,
): Promise<DuePass> {
  const {clusterName, leaseDurationMs, heartbeatIntervalMs} = config
  const leader = await findLeader(pool, clusterName)
  if (leader !== undefined) return {leader, runs: []}
  const runs: EndedRun[] = []
  await withLease(
    pool,
    {
      nodeId: `${clusterName}-cli`,
      clusterName,
      durationMs: leaseDurationMs,
      renewEveryMs: heartbeatIntervalMs,
      patienceMs: PATIENCE_MS,
    },
    async lease => {
      await passOnce(
        {
          pool,
          endpoint,
          config,
          lease,
          log,
          metrics: createMetrics(),
          // Whoever passes once looks at everything itself.
          notices: {on: () => ({[Symbol.dispose]: () => undefined})},
          onEnd: run => runs.push(run),
        },
        lease.signal,
      )
    },
    signal,
  )
  return {leader: undefined, runs}
}
