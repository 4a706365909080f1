import {withLease} from '../src/cluster/lease.ts'
import {parseEndpoint} from '../src/net/endpoint.ts'
import type {Order} from '../src/service/worker-messages.ts'
import {Workers, workersOptions} from '../src/service/workers.ts'
import {findDeployment} from '../src/state/deployments.ts'
import {silentLog} from '../src/telemetry/log.ts'
import type {Loaded} from './loaded.ts'
import {CLIENT} from './ours.ts'

/**
 * Syncs a source without a pause until the signal aborts, in a worker process, as a node does.
 *
 * @returns how many syncs there were.
 */
export async function syncing(loaded: Loaded, sqlitePath: string, signal: AbortSignal): Promise<number> {
  const {pool, config, database} = loaded
  const deployment = await findDeployment(pool, CLIENT)
  if (deployment === undefined) throw new Error(`${CLIENT} is not registered`)
  const {deploymentId, clientName, schemaName} = deployment
  const order: Order = {
    deploymentId,
    clientName,
    schemaName,
    sqlitePath,
    full: false,
    dryRun: false,
    accept: true,
  }
  const leading = {
    nodeId: `${config.clusterName}-cli`,
    clusterName: config.clusterName,
    durationMs: config.leaseDurationMs,
    renewEveryMs: config.heartbeatIntervalMs,
    patienceMs: config.leaseDurationMs,
  }
  return await withLease(
    pool,
    leading,
    async lease => {
      await using workers = new Workers(workersOptions(config, parseEndpoint(database.url), lease, silentLog))
      let rounds = 0
      // The last one is let come to its end.
      for (; !signal.aborted; rounds++) await workers.sync(order, lease.signal)
      return rounds
    },
    new AbortController().signal,
  )
}
