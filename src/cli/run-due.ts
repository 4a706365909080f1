import {runDue} from '../service/run-due.ts'
import type {EndedRun} from '../service/job-runs.ts'
import {openTarget} from '../service/target.ts'
import {createLog} from '../telemetry/log.ts'
import {command, type ExitCode} from './command.ts'
import {table} from './table.ts'

export const runDueCommand = command({
  details:
    'One pass of the scheduler, for cron or a systemd timer on hosts that run no node: runs the jobs that wait, and syncs every client that is due. Where a node leads, it does all this, and nothing is done here.',
  examples: ['run-due', 'run-due --json'],
  positionals: {},
  options: {},
  async run(_, context) {
    const config = await context.config()
    await using target = await openTarget(
      config,
      {
        max: 4,
        applicationName: `owsync/${config.clusterName}-cli`,
        answerWithinMs: config.syncTimeoutMs + 10_000,
      },
      context.signal,
    )
    const clusterName = target.clusterName ?? config.clusterName
    const {logLevel: level, logFormat: format} = config
    const {leader, runs} = await runDue(
      target,
      {...config, clusterName},
      // What there is to say of each run is printed; a defect is worth more.
      createLog({level: level === 'info' ? 'fatal' : level, format}),
      context.signal,
    )
    context.out(
      {cluster: clusterName, leader: leader ?? null, runs: runs.map(shown)},
      leader === undefined ? textOf(runs) : `${leader} leads: it syncs what is due.`,
    )
    return exitCodeOf(runs)
  },
})

function shown({client, syncType, triggeredBy, status, result, failure}: EndedRun): object {
  const generation = result === null ? null : 'mode' in result ? result.generation : result.result.generation
  const error = failure && {code: failure.code, message: failure.message, next: failure.next}
  return {client, sync_type: syncType, triggered_by: triggeredBy, status, generation, error}
}

function textOf(runs: readonly EndedRun[]): string {
  if (runs.length === 0) return 'Nothing is due.'
  const cells = runs.map(({client, syncType, status, result, failure}) => [
    client,
    syncType,
    status,
    failure?.message ?? (result !== null && 'mode' in result ? (result.reason ?? '') : ''),
  ])
  return table(['client', 'type', 'status', 'why'], cells)
}

/** As of a sync: 1 when one failed, 75 when it may pass, 2 when a person has to look. */
function exitCodeOf(runs: readonly EndedRun[]): ExitCode {
  const failures = runs.flatMap(({failure}) => failure ?? [])
  if (failures.some(({retryable}) => !retryable)) return 1
  if (failures.length > 0) return 75
  return runs.some(({status}) => status === 'quarantined') ? 2 : 0
}
