import {z} from 'zod'
import type {Conflict} from '../state/conflicts.ts'
import type {ConflictView} from '../sync/resolve.ts'
import type {ApiPorts} from './ports.ts'
import {refusals} from './problem.ts'
import {access, callerOf, type App} from './route.ts'
import {
  ClientName,
  ConflictBody,
  Cursor,
  Json,
  Limit,
  listOf,
  problems,
  WholeConflictBody,
} from './schemas.ts'

const Id = z.object({id: z.string()})
const Decided = z.object({success: z.literal(true), conflict_id: z.string()})

export function conflictRoutes(app: App, {conflicts}: ApiPorts): void {
  app.get(
    '/api/v1/conflicts',
    {
      config: {access: 'read'},
      schema: {
        ...access('read', 'Conflicts, the newest first.', 'conflicts'),
        querystring: z.object({
          client_name: ClientName.optional(),
          status: z.enum(['pending', 'resolved', 'superseded', 'undone']).optional(),
          limit: Limit,
          cursor: Cursor,
        }),
        response: {200: listOf('conflicts', ConflictBody), ...problems},
      },
    },
    async request => {
      const {client_name: client, status, limit, cursor} = request.query
      const {conflicts: found, next} = await conflicts.list(
        {...(client !== undefined && {client}), ...(status !== undefined && {status})},
        {limit, ...(cursor !== undefined && {cursor})},
      )
      return {conflicts: found.map(conflictBody), count: found.length, next}
    },
  )

  app.get(
    '/api/v1/conflicts/:id',
    {
      config: {access: 'read'},
      schema: {
        ...access('read', 'A conflict field by field.', 'conflicts'),
        params: Id,
        response: {200: WholeConflictBody, ...problems},
      },
    },
    async request => {
      const found = await conflicts.find(request.params.id)
      if (!found) throw refusals.noThing('such conflict')
      return wholeBody(found)
    },
  )

  app.post(
    '/api/v1/conflicts/:id/resolve',
    {
      config: {access: 'operate'},
      schema: {
        ...access('operate', 'Decides a conflict that waits for a person.', 'conflicts'),
        params: Id,
        body: z.discriminatedUnion('choice', [
          z.strictObject({choice: z.literal('source')}),
          z.strictObject({choice: z.literal('target')}),
          z.strictObject({choice: z.literal('row'), row: z.record(z.string(), Json)}),
        ]),
        response: {200: Decided, ...problems},
      },
    },
    async request => {
      const {id} = request.params
      if (!(await conflicts.find(id))) throw refusals.noThing('such conflict')
      await conflicts.resolve(id, request.body, callerOf(request))
      return {success: true as const, conflict_id: id}
    },
  )

  app.post(
    '/api/v1/conflicts/:id/undo',
    {
      config: {access: 'operate'},
      schema: {
        ...access('operate', 'Takes a decision back.', 'conflicts'),
        params: Id,
        body: z.strictObject({}).nullish(),
        response: {200: Decided, ...problems},
      },
    },
    async request => {
      const {id} = request.params
      if (!(await conflicts.find(id))) throw refusals.noThing('such conflict')
      await conflicts.undo(id, callerOf(request))
      return {success: true as const, conflict_id: id}
    },
  )
}

function conflictBody(conflict: Conflict) {
  return {
    conflict_id: conflict.conflict_id,
    client: conflict.client_name,
    job_id: conflict.job_id,
    table: conflict.table_name,
    key: conflict.record_key,
    type: conflict.conflict_type,
    strategy: conflict.resolution_strategy,
    status: conflict.status,
    detected_at: conflict.detected_at,
    resolved_at: conflict.resolved_at,
    resolved_by: conflict.resolved_by,
    notes: conflict.notes,
  }
}

function wholeBody({conflict, sides, fields}: ConflictView) {
  const side = (name: keyof typeof sides) =>
    sides[name] === 'present' ? Object.fromEntries(fields.map(field => [field.column, field[name]])) : null
  return {
    ...conflictBody(conflict),
    source: side('source'),
    target: side('target'),
    resolved: side('resolved'),
    sides,
    fields: fields.map(({column, ...values}) => ({field: column, ...values})),
  }
}
