import {z} from 'zod'
import {UsageError} from '../core/errors.ts'
import type {ApiPorts, DeploymentView} from './ports.ts'
import {refusals} from './problem.ts'
import {queue} from './job-routes.ts'
import {access, callerOf, type App} from './route.ts'
import {
  changeOf,
  ClientName,
  Cursor,
  DeploymentBody,
  Json,
  Limit,
  listOf,
  NewDeploymentBody,
  problems,
  QueuedBody,
  SettingsBody,
} from './schemas.ts'
import {Shared} from './shared.ts'

const Client = z.object({client: ClientName})
const DeploymentList = listOf('deployments', DeploymentBody)
const Rules = z.record(z.string().max(200), Json)
const RulesBody = z.object({client: z.string(), conflict_resolution: z.unknown()})
const one = {200: DeploymentBody, ...problems}
const queued = {202: QueuedBody, ...problems}

export function deploymentRoutes(app: App, ports: ApiPorts): void {
  const {deployments} = ports
  listRoute(app, deployments)

  app.post(
    '/api/v1/deployments',
    {
      config: {access: 'operate'},
      schema: {
        ...access('operate', 'Registers a client and makes its schema.', 'deployments'),
        body: NewDeploymentBody,
        response: {201: DeploymentBody, ...problems},
      },
    },
    async (request, reply) => {
      const {client_name, ...settings} = request.body
      const change = changeOf(settings)
      await deployments.register(
        {...change, client_name, sync_enabled: change.sync_enabled ?? true},
        callerOf(request),
      )
      const made = bodyOf(await deployments.get(client_name))
      return reply.code(201).header('location', `/api/v1/deployments/${client_name}`).send(made)
    },
  )

  app.get(
    '/api/v1/deployments/:client',
    {
      config: {access: 'read'},
      schema: {
        ...access('read', 'One deployment.', 'deployments'),
        params: Client,
        response: one,
      },
    },
    async (request, reply) => {
      const found = await deployments.get(request.params.client)
      void reply.header('etag', `"${found.settings_version}"`)
      return bodyOf(found)
    },
  )

  app.patch(
    '/api/v1/deployments/:client',
    {
      config: {access: 'operate'},
      schema: {
        ...access('operate', 'Changes the settings that are named.', 'deployments'),
        params: Client,
        body: SettingsBody,
        response: one,
      },
    },
    async (request, reply) => {
      const {client} = request.params
      const {report, ...settings} = request.body
      await deployments.change(client, changeOf(settings), undefined, callerOf(request), report)
      const changed = await deployments.get(client)
      void reply.header('etag', `"${changed.settings_version}"`)
      return bodyOf(changed)
    },
  )

  app.delete(
    '/api/v1/deployments/:client',
    {
      config: {access: 'operate'},
      schema: {
        ...access(
          'operate',
          'Gives a client up: it is not synced any more; its tables and history stay.',
          'deployments',
        ),
        params: Client,
        querystring: z.object({
          force: z.stringbool().default(false).meta({description: 'Although its sync is enabled.'}),
        }),
        response: {
          200: z.object({success: z.literal(true), client: z.string(), status: z.literal('deregistered')}),
          ...problems,
        },
      },
    },
    async request => {
      const {client} = request.params
      const {client_name} = await deployments.get(client)
      await deployments.remove(client, request.query.force, callerOf(request))
      return {success: true as const, client: client_name, status: 'deregistered' as const}
    },
  )

  app.post(
    '/api/v1/deployments/:client/verify',
    {
      config: {access: 'operate'},
      schema: {
        ...access('operate', 'Queues a comparison of both sides, row by row.', 'deployments'),
        params: Client,
        body: z
          .strictObject({
            quick: z.boolean().default(false).meta({description: 'Trust stored digests and marks.'}),
            repair: z.boolean().default(false).meta({description: 'Put right what differs.'}),
          })
          .nullish(),
        response: queued,
      },
    },
    async (request, reply) => {
      const options = request.body ?? {}
      const answer = await queue(
        ports,
        request.params.client,
        {syncType: 'verify', options},
        callerOf(request),
      )
      return reply.code(202).send(answer)
    },
  )

  app.post(
    '/api/v1/deployments/:client/confirm',
    {
      config: {access: 'operate'},
      schema: {
        ...access('operate', 'Confirms what is held back: queues a sync that applies it.', 'deployments'),
        params: Client,
        body: z.strictObject({}).nullish(),
        response: queued,
      },
    },
    async (request, reply) => {
      const {client} = request.params
      const {status, client_name} = await deployments.get(client)
      if (status !== 'quarantined') throw refusals.notQuarantined(client_name)
      const answer = await queue(
        ports,
        client,
        {syncType: 'incremental', options: {accept: true}},
        callerOf(request),
      )
      return reply.code(202).send(answer)
    },
  )

  app.get(
    '/api/v1/deployments/:client/conflict-config',
    {
      config: {access: 'read'},
      schema: {
        ...access('read', 'The conflict rules of a deployment; null where the host’s apply.', 'deployments'),
        params: Client,
        response: {200: RulesBody, ...problems},
      },
    },
    async request => rulesOf(await deployments.get(request.params.client)),
  )

  app.put(
    '/api/v1/deployments/:client/conflict-config',
    {
      config: {access: 'operate'},
      schema: {
        ...access('operate', 'Sets conflict rules for a deployment; null takes them away.', 'deployments'),
        params: Client,
        body: z.strictObject({conflict_resolution: Rules.nullable()}),
        response: {200: RulesBody, ...problems},
      },
    },
    async request => {
      const {client} = request.params
      const rules = request.body.conflict_resolution
      if (rules !== null) checkRules(deployments, rules)
      const change = {config: {conflict_resolution: rules}}
      await deployments.change(client, change, undefined, callerOf(request))
      return rulesOf(await deployments.get(client))
    },
  )
}

/**
 * The list that dashboards ask for again and again: those who ask at the same time share one statement and one text, so
 * that neither Postgres nor this process's loop has more to do when a hundred of them do.
 */
function listRoute(app: App, deployments: ApiPorts['deployments']): void {
  const shared = new Shared(async (asked: {status?: string; after?: string; limit: number}) => {
    const {limit, ...filter} = asked
    const found = await deployments.list({...filter, limit: limit + 1})
    const shown = found.slice(0, limit)
    const last = shown.at(-1)
    const next = found.length > limit && last ? cursorOf(last.client_name) : null
    const body = {deployments: shown.map(bodyOf), count: shown.length, next}
    return JSON.stringify(z.encode(DeploymentList, body))
  })

  app.get(
    '/api/v1/deployments',
    {
      config: {access: 'read'},
      schema: {
        ...access('read', 'The deployments of this host, by name.', 'deployments'),
        querystring: z.object({
          status: z.enum(['active', 'paused', 'migrating', 'stopped', 'quarantined']).optional(),
          limit: Limit,
          cursor: Cursor,
        }),
        response: {200: DeploymentList, ...problems},
      },
    },
    async (request, reply) => {
      const {status, limit, cursor} = request.query
      const after = cursor === undefined ? undefined : nameOf(cursor)
      const text = await shared.get({
        ...(status !== undefined && {status}),
        ...(after !== undefined && {after}),
        limit,
      })
      return reply.type('application/json; charset=utf-8').send(text as never)
    },
  )
}

function checkRules(deployments: ApiPorts['deployments'], rules: Readonly<Record<string, unknown>>): void {
  if (JSON.stringify(rules).length > 65_536) throw refusals.invalid('conflict rules take no more than 64 KB')
  deployments.checkRules(rules)
}

function rulesOf({client_name: client, config}: DeploymentView) {
  return {client, conflict_resolution: config['conflict_resolution'] ?? null}
}

function bodyOf(deployment: DeploymentView) {
  const {sync_enabled, settings_version, config, ...shown} = deployment
  const {sync_interval, sync_schedule} = shown
  const {history_days} = config
  return {
    ...shown,
    enabled: sync_enabled,
    interval: sync_schedule ?? (sync_interval === null ? 'manual' : String(sync_interval)),
    history_days: typeof history_days === 'number' ? history_days : null,
    version: settings_version,
  }
}

function cursorOf(clientName: string): string {
  return Buffer.from(`name ${clientName}`).toString('base64url')
}

function nameOf(cursor: string): string {
  const [, name] = /^name ([a-z0-9._-]{1,63})$/.exec(Buffer.from(cursor, 'base64url').toString()) ?? []
  if (name === undefined)
    throw new UsageError(
      'the cursor is not one that a page of deployments has given',
      'Begin without a cursor.',
    )
  return name
}
