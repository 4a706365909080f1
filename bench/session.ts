import {withLease} from '../src/cluster/lease.ts'
import {limitsOf} from '../src/service/sync-once.ts'
import {findDeployment} from '../src/state/deployments.ts'
import {waitForDeployment} from '../src/sync/lock.ts'
import {Session, type SessionRun} from '../src/sync/session.ts'
import type {Loaded} from './loaded.ts'
import {CLIENT} from './ours.ts'

/** A deployment held open as a node holds it, under a lease of its own, and what each run in it is given. */
export async function inSession(
  {pool, config}: Loaded,
  sqlitePath: string,
  work: (session: Session, run: SessionRun) => Promise<void>,
): Promise<void> {
  const {signal} = new AbortController()
  const deployment = await findDeployment(pool, CLIENT)
  if (deployment === undefined) throw new Error(`${CLIENT} is not registered`)
  const lock = await waitForDeployment(config.stateDir, deployment, 1_000, signal)
  using session = new Session({stateDir: config.stateDir, ...deployment}, lock)
  const leading = {
    nodeId: `${config.clusterName}-cli`,
    clusterName: config.clusterName,
    durationMs: config.leaseDurationMs,
    renewEveryMs: config.heartbeatIntervalMs,
    patienceMs: config.leaseDurationMs,
  }
  await withLease(
    pool,
    leading,
    lease =>
      work(session, {
        pool,
        lease,
        sqlitePath,
        limits: limitsOf(config),
        full: false,
        dryRun: false,
        accept: false,
      }),
    signal,
  )
}
