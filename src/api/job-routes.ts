import {z} from 'zod'
import type {Job} from '../state/jobs.ts'
import type {ApiPorts, Asked} from './ports.ts'
import {refusals} from './problem.ts'
import {access, callerOf, type App} from './route.ts'
import {
  ClientName,
  Cursor,
  JobBody,
  JobWithTablesBody,
  Limit,
  listOf,
  problems,
  QueuedBody,
} from './schemas.ts'
import type {Caller} from './tokens.ts'

const statuses = ['pending', 'running', 'success', 'failed', 'cancelled'] as const
const types = ['full', 'incremental', 'verify', 'restore'] as const

export function jobRoutes(app: App, ports: ApiPorts): void {
  const {jobs} = ports
  const triggering = {
    ...access('operate', 'Queues a sync; the leader runs it, whichever node was asked.', 'jobs'),
    response: {202: QueuedBody, ...problems},
  }
  const asked = {
    full_sync: z.boolean().default(false).meta({description: 'Compare every row.'}),
    dry_run: z.boolean().default(false).meta({description: 'Tell what would be done, and do nothing.'}),
    direction: z.literal('two_way').optional().meta({
      description: 'Of a dry run: what would be written to the SQLite file if it had this direction.',
    }),
  }
  const isWhole = ({dry_run, direction}: {dry_run: boolean; direction?: unknown}) =>
    dry_run || direction === undefined
  const trigger = (
    client: string,
    {
      full_sync = false,
      dry_run = false,
      direction,
    }: {
      readonly full_sync?: boolean
      readonly dry_run?: boolean
      readonly direction?: 'two_way' | undefined
    },
    caller: Caller,
  ) =>
    queue(
      ports,
      client,
      {
        syncType: full_sync ? 'full' : 'incremental',
        options: {...(dry_run && {dry_run}), ...(direction && {direction})},
      },
      caller,
    )

  app.post(
    '/api/v1/sync/trigger',
    {
      config: {access: 'operate'},
      schema: {
        ...triggering,
        body: z.strictObject({client_name: ClientName, ...asked}).refine(isWhole, DIRECTION),
      },
    },
    async (request, reply) => {
      const {client_name: client, ...options} = request.body
      return reply.code(202).send(await trigger(client, options, callerOf(request)))
    },
  )
  app.post(
    '/api/v1/sync/trigger/:client',
    {
      config: {access: 'operate'},
      schema: {
        ...triggering,
        params: z.object({client: ClientName}),
        body: z.strictObject(asked).refine(isWhole, DIRECTION).nullish(),
      },
    },
    async (request, reply) => {
      const options = request.body ?? {}
      return reply.code(202).send(await trigger(request.params.client, options, callerOf(request)))
    },
  )

  app.get(
    '/api/v1/jobs',
    {
      config: {access: 'read'},
      schema: {
        ...access('read', 'Jobs that wait, run and ran, the newest first.', 'jobs'),
        querystring: z.object({
          client_name: ClientName.optional(),
          status: z.enum(statuses).optional(),
          sync_type: z.enum(types).optional(),
          limit: Limit,
          cursor: Cursor,
        }),
        response: {200: listOf('jobs', JobBody), ...problems},
      },
    },
    async request => {
      const {client_name: client, status, sync_type: syncType, limit, cursor} = request.query
      const {jobs: found, next} = await jobs.list(
        {
          ...(client !== undefined && {client}),
          ...(status !== undefined && {status: [status]}),
          ...(syncType !== undefined && {syncType: [syncType]}),
        },
        {limit, ...(cursor !== undefined && {cursor})},
      )
      return {jobs: found.map(jobBody), count: found.length, next}
    },
  )

  app.get(
    '/api/v1/jobs/:id',
    {
      config: {access: 'read'},
      schema: {
        ...access('read', 'A job, with how far each table is.', 'jobs'),
        params: z.object({id: z.string()}),
        response: {200: JobWithTablesBody, ...problems},
      },
    },
    async request => {
      const found = await jobs.find(request.params.id)
      if (!found) throw refusals.noThing('such job')
      const {job, tables} = found
      return {
        ...jobBody(job),
        options: job.options,
        result: job.result,
        tables: tables.map(({table, rowsTotal, rowsProcessed, status}) => ({
          table,
          rows_total: rowsTotal,
          rows_processed: rowsProcessed,
          status,
        })),
      }
    },
  )

  app.post(
    '/api/v1/jobs/:id/cancel',
    {
      config: {access: 'operate'},
      schema: {
        ...access('operate', 'Cancels a job that waits, or stops one that runs.', 'jobs'),
        params: z.object({id: z.string()}),
        body: z.strictObject({}).nullish(),
        response: {200: JobBody.extend({success: z.literal(true)}), ...problems},
      },
    },
    async request => {
      const cancelled = await jobs.cancel(request.params.id, callerOf(request))
      if (!cancelled) throw refusals.noThing('such job')
      const {job, isCancelled} = cancelled
      if (!isCancelled) throw refusals.jobOver(job.jobId, job.status)
      return {success: true as const, ...jobBody(job)}
    },
  )
}

const DIRECTION = 'direction is for a dry run'

/** Queues what was asked for. @throws {RefusedError} 409 when the client has an open job. */
export async function queue({jobs}: ApiPorts, name: string, asked: Asked, caller: Caller) {
  const {jobId, isNew, client} = await jobs.enqueue(name, asked, caller)
  if (!isNew) throw refusals.openJob(client, jobId)
  return {success: true as const, job_id: jobId, sync_id: jobId, status: 'queued' as const, client}
}

export function jobBody(job: Job) {
  return {
    job_id: job.jobId,
    client: job.clientName,
    sync_type: job.syncType,
    triggered_by: job.triggeredBy,
    status: job.status,
    node_id: job.nodeId,
    epoch: job.epoch,
    attempt: job.attempt,
    run_after: job.runAfter,
    created_at: job.createdAt,
    started_at: job.startedAt,
    finished_at: job.finishedAt,
    generation: job.generation,
    rows: {
      upserted: job.rowsUpserted,
      tombstoned: job.rowsTombstoned,
      unchanged: job.rowsUnchanged,
      quarantined: job.rowsQuarantined,
    },
    conflicts: {detected: job.conflictsDetected, resolved: job.conflictsResolved},
    bytes: job.bytes,
    duration_ms: job.durationMs,
    error: job.errorCode === null ? null : {code: job.errorCode, message: job.errorMessage},
  }
}
