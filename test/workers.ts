import {readFileSync} from 'node:fs'
import {join} from 'node:path'
import {setTimeout as sleep} from 'node:timers/promises'
import {expect} from 'vitest'
import {urlOf} from '../src/net/endpoint.ts'
import {Workers, type WorkersOptions} from '../src/service/workers.ts'
import type {Order} from '../src/service/worker-messages.ts'
import {lockDeployment} from '../src/sync/lock.ts'
import {silentLog} from '../src/telemetry/log.ts'
import {defaultLimits, leadingClient, type LeadingClient, type LeadingHost} from './leading-host.ts'
import {makeFile, type Chance} from './mutator.ts'

/** Workers of a host under its lease, with settings a test can wait for. */
export function workersOf(leader: LeadingHost, changes: Partial<WorkersOptions> = {}): Workers {
  return new Workers(optionsOf(leader, changes))
}

export function optionsOf(leader: LeadingHost, changes: Partial<WorkersOptions> = {}): WorkersOptions {
  const {host, lease, stateDir} = leader
  const {nodeId, epoch} = lease
  return {
    settings: {
      databaseUrl: urlOf(host.endpoint),
      ssl: host.endpoint.ssl,
      stateDir,
      limits: {...defaultLimits, deleteGuard: undefined},
      answerWithinMs: 120_000,
      nodeId,
      epoch,
    },
    lease,
    stallMs: 60_000,
    log: silentLog,
    most: 2,
    ...changes,
  }
}

/** A client with a small file, never synced. */
export async function workerClient(
  leader: LeadingHost,
  name: string,
  chance: Chance,
  journal: 'delete' | 'wal' = 'delete',
): Promise<LeadingClient & {readonly order: Order}> {
  const client = await leadingClient(leader, name)
  makeFile(client.file, chance, {journal, rows: 30})
  const {deploymentId, clientName, schemaName} = await client.deployment()
  const place = {deploymentId, clientName, schemaName}
  return {...client, order: {...place, sqlitePath: client.file, full: false, dryRun: false, accept: false}}
}

/**
 * Keeps the client's cuts from being committed while `work` runs: all of a cut is written, and its last statement waits.
 *
 * @param work is given `isHeld`, which resolves when a sync has come so far.
 */
export async function holdingUp<T>(
  leader: LeadingHost,
  {name}: LeadingClient,
  work: (isHeld: () => Promise<void>) => Promise<T>,
): Promise<T> {
  return await leader.admin.begin(async tx => {
    await tx`select from sync_metadata.client_deployments where client_name = ${name} for no key update`
    return await work(() => heldUp(leader))
  })
}

/** Waits until a worker waits for a lock: those of the leader itself, which may wait too, do not count. */
async function heldUp({admin}: LeadingHost): Promise<void> {
  const deadline = performance.now() + 60_000
  for (;;) {
    const held = await admin`
      select from pg_stat_activity
      where datname = current_database() and application_name like 'owsync/%/%' and wait_event_type = 'Lock'`
    if (held.length > 0) return
    if (performance.now() > deadline) throw new Error('no sync came to its commit')
    await sleep(10)
  }
}

/** The process that has the client's run in hand. */
export function pidOf(workers: Workers, {name}: {readonly name: string}): number {
  const found = workers.states.find(({inHand}) => inHand?.client === name)
  if (found?.pid === undefined) throw new Error(`nobody runs ${name}`)
  return found.pid
}

/** True while there is such a process, and not only its entry. */
export function isAlive(pid: number): boolean {
  try {
    const stat = readFileSync(join('/proc', String(pid), 'stat'), 'utf8')
    return !/\) [ZX] /.test(stat)
  } catch {
    return false
  }
}

export async function isGone(pids: readonly number[], withinMs: number): Promise<void> {
  await expect.poll(() => pids.filter(isAlive), {timeout: withinMs, interval: 20}).toEqual([])
}

/** Waits until nobody has these deployments open. */
export async function areFree(
  {stateDir}: LeadingHost,
  clients: readonly WorkerClient[],
  withinMs: number,
): Promise<void> {
  const isFree = ({order, name}: WorkerClient) => {
    try {
      lockDeployment(stateDir, order.deploymentId, name)[Symbol.dispose]()
      return true
    } catch {
      return false
    }
  }
  await expect.poll(() => clients.every(isFree), {timeout: Math.max(withinMs, 100), interval: 50}).toBe(true)
}

type WorkerClient = Awaited<ReturnType<typeof workerClient>>
