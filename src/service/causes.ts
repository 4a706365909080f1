import {UsageError} from '../core/errors.ts'
import {dueInMs} from '../schedule/due.ts'
import {scheduleOf, type Schedule} from '../schedule/interval.ts'
import type {ClusterCondition, DeploymentCondition} from '../state/conditions.ts'
import type {Cause} from '../telemetry/alert.ts'

/** From where on something is worth a message. */
export type AlertLimits = {
  /** Failed attempts in a row. */
  readonly failures: number
  readonly lagSeconds: number
  /** Takeovers within ten minutes: a switchover, or a rolling update, has two or three. */
  readonly takeovers: number
  /** Of DB_SIZE_LIMIT. */
  readonly sizeShare: number
}

export const standardLimits: AlertLimits = {
  failures: 3,
  lagSeconds: 600,
  takeovers: 4,
  sizeShare: 0.8,
}

/** When a deployment is due by its schedule, in milliseconds from now; less than 0 when it should have been. */
export type DueInMs = (
  deployment: Pick<DeploymentCondition, 'deploymentId' | 'syncInterval' | 'syncSchedule'> & {
    readonly sinceMs: number | undefined
  },
) => number

export type Situation = {
  readonly deployments: readonly DeploymentCondition[]
  readonly cluster: ClusterCondition
  readonly databaseBytes: number
  /** `undefined`: nobody has said how large it may grow. */
  readonly sizeLimitBytes: number | undefined
}

/** @returns all that is wrong. Pure. Texts hold names and numbers, nothing of a row, and no message of an error. */
export function causesOf(situation: Situation, limits: AlertLimits, due: DueInMs = dueBySchedule): Cause[] {
  return [
    ...clusterCauses(situation, limits),
    ...situation.deployments.flatMap(deployment => [...deploymentCauses(deployment, limits, due)]),
  ]
}

function* clusterCauses(
  {cluster, databaseBytes, sizeLimitBytes}: Situation,
  limits: AlertLimits,
): Generator<Cause> {
  if (cluster.takeovers >= limits.takeovers)
    yield {
      rule: 'leader_flapping',
      summary: `the lease was taken ${cluster.takeovers} times within ten minutes`,
    }
  if (sizeLimitBytes !== undefined && databaseBytes >= limits.sizeShare * sizeLimitBytes)
    yield {
      rule: 'target_size',
      summary: `the database takes ${megabytes(databaseBytes)} of ${megabytes(sizeLimitBytes)}`,
    }
}

function* deploymentCauses(
  deployment: DeploymentCondition,
  limits: AlertLimits,
  due: DueInMs,
): Generator<Cause> {
  const {client, lastErrorCode} = deployment
  const isSynced = deployment.isEnabled && deployment.status === 'active'
  const failures = Math.max(isSynced ? deployment.syncFailures : 0, deployment.verifyFailures)
  if (failures >= limits.failures)
    yield {
      rule: 'repeated_failure',
      client,
      summary: `${client}: ${failures} ${deployment.syncFailures === failures ? 'syncs' : 'verifications'} in a row have failed (${lastErrorCode ?? 'no code'})`,
    }
  if (isSynced && !deployment.isLoading) {
    const lagSeconds = lagOf(deployment, limits, due)
    if (lagSeconds !== undefined)
      yield {
        rule: 'sync_lag',
        client,
        summary: `${client}: the mirror is ${Math.round(lagSeconds)} s behind its source, or nobody has looked for so long`,
      }
  }
  if (deployment.status === 'quarantined')
    yield {
      rule: 'quarantine',
      client,
      summary: `${client}: a cut is held back until somebody confirms it (${deployment.statusReason ?? 'no reason given'})`,
    }
  if (deployment.quarantinedRows > 0)
    yield {
      rule: 'rows_quarantined',
      client,
      summary: `${client}: ${deployment.quarantinedRows} rows cannot be applied`,
    }
  if (deployment.pendingConflicts > 0)
    yield {
      rule: 'manual_conflict',
      client,
      summary: `${client}: ${deployment.pendingConflicts} conflicts wait for a decision`,
    }
  const {threshold, windowMinutes} = deployment.conflictLimit
  if (deployment.recentConflicts > threshold)
    yield {
      rule: 'conflict_rate',
      client,
      summary: `${client}: ${deployment.recentConflicts} conflicts within ${windowMinutes} minutes`,
    }
  if (deployment.conflictsToTell > 0)
    yield {
      rule: 'conflict_notice',
      client,
      summary: `${client}: ${deployment.conflictsToTell} conflicts within ten minutes in tables whose rules ask that people are told`,
    }
  if (deployment.differences > 0n)
    yield {
      rule: 'verification_difference',
      client,
      summary: `${client}: the last verification found ${deployment.differences} differences between the mirror and its source`,
    }
}

/** @returns by how many seconds the mirror is too late, as far as anybody knows; `undefined` when it is not. */
function lagOf(deployment: DeploymentCondition, {lagSeconds}: AlertLimits, due: DueInMs): number | undefined {
  const {behindSeconds, uncheckedSeconds, hasSynced} = deployment
  if (behindSeconds > lagSeconds) return behindSeconds
  // One that has never run is due at once, on whatever its schedule says: what counts is how long it waits.
  const overdueSeconds = hasSynced
    ? -due({...deployment, sinceMs: uncheckedSeconds * 1_000}) / 1_000
    : due({...deployment, sinceMs: undefined}) <= 0
      ? uncheckedSeconds
      : 0
  // A run may take as long as its interval, and one may be missed.
  const patience = Math.max(lagSeconds, 2 * (deployment.syncInterval ?? 0))
  return overdueSeconds > patience ? uncheckedSeconds : undefined
}

function megabytes(bytes: number): string {
  return `${Math.round(bytes / 1024 ** 2)} MB`
}

/** What the scheduler goes by. */
export const dueBySchedule: DueInMs = ({deploymentId, sinceMs, ...columns}) => {
  let schedule: Schedule
  try {
    schedule = scheduleOf(columns)
  } catch (error) {
    // What is no schedule is nobody's lag; the scheduler says what is wrong with it.
    if (error instanceof UsageError) return Infinity
    throw error
  }
  return dueInMs({schedule, deploymentId, sinceMs, failures: 0, now: new Date()})
}
