import {setTimeout as sleep} from 'node:timers/promises'
import {loadConfig, type Config} from '../src/config/config.ts'
import type {EndedRun} from '../src/service/job-runs.ts'
import {leadJobs, type LeadJobs} from '../src/service/leader-jobs.ts'
import {enqueue, findJob, listJobs, type Job, type JobOptions, type JobType} from '../src/state/jobs.ts'
import {silentLog} from '../src/telemetry/log.ts'
import {createMetrics, type Metrics} from '../src/telemetry/metrics.ts'
import type {LeadingClient, LeadingHost} from './leading-host.ts'

/** A leader that looks after its deployments, as a node does. */
export type LeadingJobs = AsyncDisposable & {
  readonly metrics: Metrics
  readonly ended: EndedRun[]
  readonly warnings: string[]
  notice(what: 'jobs' | 'cache' | 'marks'): void
  /** How `leadJobs` ended. */
  readonly over: Promise<void>
  readonly stop: AbortController
}

type Notices = Parameters<LeadJobs['notices']['on']>[0]

/** Quick enough for a test to wait for. */
export const quickPace = {pollMs: 100, reloadMs: 200, lookMs: 200, progressMs: 100, showAfterMs: 300}

export async function jobsConfig(leader: LeadingHost, env: Record<string, string> = {}): Promise<Config> {
  return await loadConfig({CLUSTER_NAME: 'host-a', STATE_DIR: leader.stateDir, DELETE_GUARD: 'off', ...env})
}

export async function leadingJobs(
  leader: LeadingHost,
  {env, ...changes}: Partial<LeadJobs> & {readonly env?: Record<string, string>} = {},
): Promise<LeadingJobs> {
  const listeners = new Set<Notices>()
  const metrics = createMetrics()
  const ended: EndedRun[] = []
  const warnings: string[] = []
  const warn = (_fields: unknown, message: string) => warnings.push(message)
  const stop = new AbortController()
  const over = leadJobs(
    {
      pool: leader.host,
      endpoint: leader.host.endpoint,
      config: await jobsConfig(leader, env),
      lease: leader.lease,
      log: {...silentLog, warn, error: warn, child: () => silentLog},
      metrics,
      notices: {
        on(listener) {
          listeners.add(listener)
          return {[Symbol.dispose]: () => listeners.delete(listener)}
        },
      },
      onEnd: run => ended.push(run),
      pace: quickPace,
      ...changes,
    },
    stop.signal,
  )
  over.catch(() => undefined)
  return {
    metrics,
    ended,
    warnings,
    over,
    stop,
    notice(what) {
      for (const listener of listeners) listener(what)
    },
    async [Symbol.asyncDispose]() {
      stop.abort()
      await over
    },
  }
}

/** Asks for a job of the client. @returns its id. */
export async function askFor(
  leader: LeadingHost,
  client: LeadingClient,
  syncType: JobType = 'incremental',
  options: JobOptions = {},
): Promise<string> {
  const {deploymentId} = await client.deployment()
  const job = {deploymentId, syncType, triggeredBy: 'api', options, mostWaiting: 1_000} as const
  return (await enqueue(leader.host, job)).jobId
}

/** The job once it is over. */
export async function endOf(leader: LeadingHost, jobId: string): Promise<Job> {
  return await until(`the end of job ${jobId}`, async () => {
    const job = await findJob(leader.host, jobId)
    return job !== undefined && job.status !== 'pending' && job.status !== 'running' ? job : undefined
  })
}

/** All jobs of the client, the newest first. */
export async function jobsOf(leader: LeadingHost, client: LeadingClient): Promise<readonly Job[]> {
  const {deploymentId} = await client.deployment()
  return (await listJobs(leader.host, {deploymentId}, {limit: 1_000})).jobs
}

/** Sets when the client is synced. */
export async function schedule(
  leader: LeadingHost,
  client: LeadingClient,
  {interval = null, schedule = null}: {interval?: number | null; schedule?: string | null},
): Promise<void> {
  await leader.host`update sync_metadata.client_deployments
    set sync_interval = ${interval}, sync_schedule = ${schedule} where client_name = ${client.name}`
}

/** Asks again and again for what is to come about. */
export async function until<T>(what: string, find: () => Promise<T | undefined> | T | undefined): Promise<T> {
  const deadline = performance.now() + 60_000
  for (;;) {
    const found = await find()
    if (found !== undefined) return found
    if (performance.now() > deadline) throw new Error(`there was no sign of ${what}`)
    await sleep(25)
  }
}

/** The sum of a metric over the series that have these labels. */
export async function valueOf(
  metrics: Metrics,
  name: string,
  labels: Readonly<Record<string, string>> = {},
): Promise<number> {
  const {values} = (await metrics.registry.getSingleMetric(name)!.get()) as {
    values: {labels: Record<string, string>; value: number; metricName?: string}[]
  }
  return values
    .filter(({labels: has}) => Object.entries(labels).every(([label, value]) => has[label] === value))
    .filter(
      ({metricName}) => metricName === undefined || metricName === name || metricName.endsWith('_count'),
    )
    .reduce((sum, {value}) => sum + value, 0)
}
