import type {ApiPorts, DeploymentView} from '../api/ports.ts'
import {refusals} from '../api/problem.ts'
import type {Caller} from '../api/tokens.ts'
import type {Config} from '../config/config.ts'
import {rulesOf} from '../conflict/rules.ts'
import {parseClientName} from '../core/client-name.ts'
import {recordAudit} from '../postgres/audit-log.ts'
import type {Pool, Sql} from '../postgres/sql.ts'
import {detachClient, registerClient} from '../state/client-actions.ts'
import {listConflicts} from '../state/conflicts.ts'
import {readDeployments, type ListedDeployment} from '../state/deployment-list.ts'
import {changeSettings, type Settings, type SettingsChange} from '../state/deployment-settings.ts'
import {findDeployment, UnknownClientError, type Deployment} from '../state/deployments.ts'
import {clientOfKey, type Document, type Documents} from '../state/documents.ts'
import {cancelJob, enqueue, findJob, listJobs, readProgress} from '../state/jobs.ts'
import {readCluster} from '../state/overview.ts'
import type {Expected} from '../state/version.ts'
import {resolveConflict, undoConflict, viewConflict} from '../sync/resolve.ts'
import type {EventFeed} from './event-feed.ts'
import type {HealthWatch, NodeView} from './health-watch.ts'
import {CannotLeadError, LeaderChangedError} from './leadership.ts'
import type {Sizes} from './sizes.ts'

/** What the API of one node works with. */
export type ApiParts = {
  readonly pool: Pool
  readonly node: NodeView
  readonly documents: Documents
  readonly health: HealthWatch
  readonly feed: EventFeed
  readonly sizes: Sizes
  readonly metrics: ApiPorts['metrics']
  /** `DEFAULT_SYNC_INTERVAL`, in seconds. */
  readonly defaultIntervalSeconds: number
  readonly conflictConfig: Config['conflictResolutionConfig']
  /** `SYNC_QUEUE_SIZE`. */
  readonly mostWaiting: number
}

/** For how long nobody but the node that was asked may take the lease. */
const WISH_MS = 15_000

/** What the API asks of a node, answered by Postgres: any node can, leading or not. */
export function apiPorts(parts: ApiParts): ApiPorts {
  const {pool, node, documents, health, feed, metrics} = parts
  return {
    health: () => health.health(),
    faults: () => health.faults(),
    isLeader: () => node.isLeader(),
    ...(metrics && {metrics}),
    cluster: clusterPorts(parts),
    state: {
      get: key => documents.get(key),
      put: (key, value, expected, caller) =>
        documents.put(pool, {key, value, expected, actor: actorOf(caller)}, (tx, {version}) =>
          audit(parts, tx, caller, 'state.written', {details: {key, version: Number(version)}}),
        ),
      change: (key, change, expected, caller, report) =>
        changeSettingsOf(parts, key, change, expected, caller, report),
    },
    deployments: deploymentPorts(parts),
    jobs: jobPorts(parts),
    conflicts: {
      list: ({client, ...filter}, page) =>
        listConflicts(pool, {...filter, ...(client !== undefined && {schemaName: schemaOf(client)})}, page),
      find: id => viewConflict(pool, id),
      resolve: (id, choice, caller) => resolveConflict(pool, id, choice, actorOf(caller)),
      undo: (id, caller) => undoConflict(pool, id, actorOf(caller)),
    },
    events: (after, send, signal) => {
      feed.subscribe(after, send, signal)
    },
  }
}

function clusterPorts(parts: ApiParts): ApiPorts['cluster'] {
  const {pool} = parts
  return {
    status: () => readCluster(pool),
    async promote({nodeId: asked, expectedLeader, force}, caller) {
      const {leader_id: from, nodes, paused} = await readCluster(pool)
      const chosen = nodes.find(each => each.node_id === asked) ?? nodes.find(each => each.role === asked)
      if (!chosen) throw refusals.noThing(`node ${JSON.stringify(asked)}`)
      const {node_id: to, health} = chosen
      if (expectedLeader !== undefined && from !== expectedLeader)
        throw new LeaderChangedError(expectedLeader, from)
      if (from === to) return to
      if (paused) throw new CannotLeadError('leadership is paused: nobody may take over', 'Resume it first.')
      if (health !== 'active')
        throw new CannotLeadError(`${to} is ${health}`, 'Start it, wait until it is active, then try again.')
      await pool.begin(async tx => {
        const [row] = await tx<{asked: boolean}>`
          select sync_metadata.prefer_node(${to}, ${WISH_MS}, ${expectedLeader}, ${force}) as asked`
        if (row?.asked !== true) throw new LeaderChangedError(expectedLeader ?? to, null)
        await audit(parts, tx, caller, 'cluster.promote', {details: {from, to, force}})
      })
      return to
    },
    async stepDown(expectedLeader, caller) {
      const {leader_id: from, paused} = await readCluster(pool)
      if (expectedLeader !== undefined && from !== expectedLeader)
        throw new LeaderChangedError(expectedLeader, from)
      if (from === null) throw new CannotLeadError('nobody leads the cluster', 'Start a node.')
      if (paused) throw new CannotLeadError('leadership is paused: nobody may take over', 'Resume it first.')
      return await pool.begin(async tx => {
        const [row] = await tx<{successor: string | null}>`
          select sync_metadata.step_down(${from}, ${WISH_MS}) as successor`
        const to = row?.successor ?? null
        if (to === null)
          throw new CannotLeadError(
            `no other node is alive that could take over from ${from}`,
            'Start the other node, wait until it is active, then try again.',
          )
        await audit(parts, tx, caller, 'cluster.step_down', {details: {from, to}})
        return to
      })
    },
  }
}

function deploymentPorts(parts: ApiParts): ApiPorts['deployments'] {
  const {pool, documents, sizes} = parts
  const view = (deployment: ListedDeployment): DeploymentView => ({
    ...deployment,
    size_bytes: sizes.of(deployment.schema_name) ?? null,
  })
  return {
    async list(query) {
      return (await readDeployments(pool, query)).map(view)
    },
    async get(client) {
      const [found] = await readDeployments(pool, {schemaName: schemaOf(client), limit: 1})
      if (!found) throw new UnknownClientError(client)
      return view(found)
    },
    async register({client_name: client, ...given}, caller) {
      const hasSchedule = given.sync_interval !== undefined || given.sync_schedule !== undefined
      requireRules(parts, given)
      const settings = {...given, ...(!hasSchedule && {sync_interval: parts.defaultIntervalSeconds})}
      await pool.begin(async tx => {
        const id = await registerClient(tx, client, settings)
        // The same client again is given back as it is. A new one is as old as this transaction.
        const [made] = await tx`
          select from sync_metadata.client_deployments where deployment_id = ${id} and created_at = now()`
        if (!made) throw refusals.exists(client)
        // For what a new client is not registered with, such as its status while its sync is switched off.
        await changeSettings(tx, client, settings, undefined)
        await auditChange(parts, tx, caller, client, settings)
      })
      documents.forget(`deployment.${client}`)
    },
    async change(client, change, expected, caller, report) {
      await changeSettingsOf(parts, `deployment.${client}`, change, expected, caller, report)
    },
    async remove(client, force, caller) {
      const {deploymentId, clientName} = await getDeployment(pool, client)
      // Records who did it by itself.
      await detachClient(pool, deploymentId, {actor: actorOf(caller), force})
      documents.forget(`deployment.${clientName}`)
    },
    checkRules: rules => {
      requireRules(parts, {config: {conflict_resolution: rules}})
    },
  }
}

async function changeSettingsOf(
  parts: ApiParts,
  key: string,
  change: SettingsChange,
  expected: Expected,
  caller: Caller,
  report: string | undefined,
): Promise<Document> {
  const {pool, documents} = parts
  const client = clientOfKey(key)
  requireRules(parts, change)
  if (change.direction === 'two_way' && client !== undefined) await requireReport(pool, client, report)
  return await documents.put(pool, {key, change, expected, actor: actorOf(caller)}, (tx, document) =>
    auditChange(parts, tx, caller, nameIn(document), {...change, ...(report && {report})}),
  )
}

/** Whichever way a client's own rules come: wrong ones would only show when a sync needs them. @throws {ConflictRulesError} */
function requireRules({conflictConfig}: ApiParts, {config}: SettingsChange): void {
  if (config?.['conflict_resolution'] != null) rulesOf(conflictConfig, {name: 'this request', config})
}

/**
 * A client that is switched to two_way has its file written from then on: whoever does that must have been told what would
 * be. One of which Postgres has nothing yet has nothing to be told of.
 *
 * @throws {RefusedError} 409 when no dry run of the last hour has told.
 */
async function requireReport(sql: Sql, client: string, report: string | undefined): Promise<void> {
  const [row] = await sql<{isTold: boolean}>`
    select d.direction = 'two_way' or d.generation = 0 or exists (
      select from sync_metadata.sync_jobs j
      where j.job_id = ${report ?? null}::uuid and j.deployment_id = d.deployment_id and j.status = 'success'
        and j.options @> '{"dry_run": true, "direction": "two_way"}' and j.finished_at > now() - interval '1 hour'
    ) as "isTold"
    from sync_metadata.client_deployments d
    where d.schema_name = ${schemaOf(client)} and d.host_id = (select sync_metadata.my_host())`
  if (row?.isTold === false) throw refusals.reportFirst(client)
}

function jobPorts(parts: ApiParts): ApiPorts['jobs'] {
  const {pool, mostWaiting} = parts
  return {
    async enqueue(name, {syncType, options = {}}, caller) {
      const {deploymentId, clientName: client} = await getDeployment(pool, name)
      return await pool.begin(async tx => {
        const queued = await enqueue(tx, {
          deploymentId,
          syncType,
          triggeredBy: 'api',
          options,
          mostWaiting,
        })
        const details = {job_id: queued.jobId, sync_type: syncType, options}
        if (queued.isNew) await audit(parts, tx, caller, 'job.queued', {client, details})
        return {...queued, client}
      })
    },
    async list({client, ...filter}, page) {
      const deployment = client === undefined ? undefined : await findDeployment(pool, schemaOf(client))
      if (client !== undefined && !deployment) return {jobs: [], next: null}
      return await listJobs(
        pool,
        {...filter, ...(deployment && {deploymentId: deployment.deploymentId})},
        page,
      )
    },
    async find(jobId) {
      const job = await findJob(pool, jobId)
      return job && {job, tables: await readProgress(pool, jobId)}
    },
    cancel: (jobId, caller) =>
      pool.begin(async tx => {
        const cancelled = await cancelJob(tx, jobId)
        if (cancelled?.isCancelled) {
          const {clientName: client} = cancelled.job
          await audit(parts, tx, caller, 'job.cancelled', {client, details: {job_id: jobId}})
        }
        return cancelled
      }),
  }
}

async function getDeployment(sql: Sql, client: string): Promise<Deployment> {
  const found = await findDeployment(sql, schemaOf(client))
  if (!found) throw new UnknownClientError(client)
  return found
}

/** Which settings were changed, and to what; of the configuration only the names: its values may be long. */
async function auditChange(
  parts: ApiParts,
  tx: Sql,
  caller: Caller,
  client: string,
  {config, ...columns}: SettingsChange & {readonly report?: string},
): Promise<void> {
  const details = {...columns, ...(config && {config: Object.keys(config)})}
  await audit(parts, tx, caller, 'client.configured', {client, details})
}

async function audit(
  {node}: ApiParts,
  tx: Sql,
  caller: Caller,
  action: string,
  {client, details}: {readonly client?: string; readonly details: object},
): Promise<void> {
  await recordAudit(tx, {
    actor: actorOf(caller),
    action,
    ...(client !== undefined && {client}),
    details: {...details, node: node.nodeId},
  })
}

/** Not to be mistaken for a node or a person at a terminal, whatever a token is called. */
function actorOf({name}: Caller): string {
  return `api:${name}`
}

/** The name that a client was registered with, whichever was asked for. */
function nameIn({value}: Document): string {
  return (value as Settings).client_name
}

function schemaOf(client: string): string {
  return parseClientName(client).schema
}
