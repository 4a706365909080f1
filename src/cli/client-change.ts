import {userInfo} from 'node:os'
import {parseClientName} from '../core/client-name.ts'
import {UsageError} from '../core/errors.ts'
import {dropClient} from '../postgres/admin.ts'
import {recordAudit} from '../postgres/audit-log.ts'
import {parseInterval, type Schedule} from '../schedule/interval.ts'
import {
  attach,
  change,
  detach,
  forget,
  getClient,
  listClients,
  purge as purgeRow,
  register as registerClient,
  scheduleChange,
  type Attached,
} from '../service/clients.ts'
import {syncOnce} from '../service/sync-once.ts'
import {openAdmin, openTarget} from '../service/target.ts'
import {printed, type SyncResult} from '../sync/sync.ts'
import {tally} from '../telemetry/progress.ts'
import {confirmByName} from './ask.ts'
import {openHost} from './client.ts'
import {clientDocument, scheduleText} from './client-text.ts'
import {command, type Context} from './command.ts'
import {syncText} from './sync.ts'

// What is changed about clients. Every change leaves a row in the audit log, in the transaction that makes it.

const name = {about: 'Which client.'} as const
const yes = {type: 'boolean', about: 'Do not ask.'} as const

const intervals = 'realtime, 1m, 5m, hourly, 4h, daily, manual, live, seconds, or a cron expression'

export const register = command({
  details:
    'Makes the client known and makes its schema; the nodes sync it from then on. Its file is opened first, so that a wrong path registers nothing. With --from-target the client is known already and the file is a restored or copied one: it is compared with what Postgres has, and syncs go on from there.',
  examples: [
    'client register acme --sqlite /srv/acme/webui.db --interval 5m',
    'client register acme --sqlite /srv/acme/webui.db --from-target',
  ],
  positionals: {name: {about: 'What to call it: a-z, 0-9, "-", "_" and "."; a host name will do.'}},
  options: {
    sqlite: {type: 'path', about: 'Its SQLite file.'},
    interval: {type: 'string', about: `When to sync: ${intervals}.`, value: 'WHEN'},
    container: {type: 'string', about: 'The container that Open WebUI runs in.', value: 'NAME'},
    fqdn: {type: 'string', about: 'The address it is reached at.', value: 'HOST'},
    fromTarget: {type: 'boolean', about: 'Attach the file to what Postgres has of this client.'},
    paused: {type: 'boolean', about: 'Do not sync it until it is started.'},
  },
  async run({name, sqlite, interval, container, fqdn, fromTarget, paused}, context) {
    const schedule = interval === undefined ? undefined : parseInterval(interval)
    const config = await context.config()
    const request = {client: name, sqlite, schedule, container, fqdn, paused, actor: actorName()}
    await using target = await openHost(context)
    if (fromTarget) {
      if (paused || container !== undefined || fqdn !== undefined)
        throw new UsageError(
          '--from-target takes nothing but --sqlite and --interval',
          'Leave the others out.',
        )
      const here = {...config, clusterName: target.clusterName ?? config.clusterName}
      const attached = await attach(target.pool, here, request, context.signal)
      const {client, preview} = attached
      context.out(
        {...clientDocument(client), attached: preview.status === 'success', preview: printed(preview)},
        attachedText(attached),
      )
      return preview.status === 'success' ? 0 : 2
    }
    // A new client without a wish is synced as often as the settings say.
    const standard: Schedule = {kind: 'every', seconds: Math.round(config.defaultSyncIntervalMs / 1_000)}
    const isKnown = (await listClients(target.pool, parseClientName(name).schema)).length > 0
    const {client, isNew} = await registerClient(
      target.pool,
      {...request, schedule: schedule ?? (isKnown ? undefined : standard)},
      context.signal,
    )
    const what = isNew ? 'registered' : 'registered already'
    context.out(
      {...clientDocument(client), new: isNew},
      `${client.client_name}: ${what}, ${client.sync_enabled ? `synced ${scheduleText(client)}` : 'paused'}: ${client.sqlite_path ?? ''}\nTo sync it now: owsync sync --client ${client.client_name}`,
    )
    return 0
  },
})

function attachedText({client, preview}: Attached): string {
  const {client_name: clientName, sqlite_path: sqlitePath, generation} = client
  if (preview.status !== 'success')
    return `${clientName}: not attached: ${preview.reason ?? preview.status}\nIf this file is meant all the same: owsync sync --client ${clientName} --sqlite FILE --accept`
  const {upserted, tombstoned} = preview.rows
  return `${clientName}: attached to generation ${generation}: ${sqlitePath ?? ''}\nThe next sync applies ${upserted} changed and ${tombstoned} deleted rows.`
}

export const start = command({
  details: 'Switches a client’s sync on, after a pause. What is held back stays so until it is confirmed.',
  positionals: {name},
  options: {},
  async run({name}, context) {
    await using target = await openHost(context)
    const client = await change(target.pool, {
      client: name,
      settings: {sync_enabled: true},
      actor: actorName(),
      action: 'client.started',
    })
    context.out(clientDocument(client), `${client.client_name}: synced ${scheduleText(client)}.`)
    return 0
  },
})

export const pause = command({
  details:
    'Switches a client’s sync off until it is started again; its container goes on. A sync that is under way is not cut short, and one by hand still works.',
  positionals: {name},
  options: {reason: {type: 'string', about: 'Why, for whoever looks next.', value: 'TEXT'}},
  async run({name, reason}, context) {
    await using target = await openHost(context)
    const client = await change(target.pool, {
      client: name,
      settings: {sync_enabled: false},
      actor: actorName(),
      action: 'client.paused',
      reason,
    })
    context.out(
      clientDocument(client),
      `${client.client_name}: paused. To go on: owsync client start ${client.client_name}`,
    )
    return 0
  },
})

export const interval = command({
  details:
    'Says when a client is synced: realtime (every minute), 1m, 5m, hourly, 4h, daily (at night), a number of seconds from 10 on, a cron expression in the host’s time zone, live (as soon as the file changes), or manual.',
  examples: ['client interval acme 5m', 'client interval acme live', 'client interval acme 90'],
  positionals: {name, when: {about: 'When: a name, seconds, or a cron expression in quotes.'}},
  options: {},
  async run({name, when}, context) {
    const schedule = parseInterval(when)
    await using target = await openHost(context)
    const client = await change(target.pool, {
      client: name,
      settings: scheduleChange(schedule),
      actor: actorName(),
      action: 'client.interval',
    })
    const paused = client.sync_enabled ? '' : ', but it is paused'
    context.out(clientDocument(client), `${client.client_name}: synced ${scheduleText(client)}${paused}.`)
    return 0
  },
})

export const confirm = command({
  details:
    'Applies what the guard holds back, such as mass deletes: the same as a sync with --accept, of the file the client is registered with. Look at it first with sync --dry-run.',
  examples: ['client confirm acme', 'client confirm acme --yes'],
  positionals: {name},
  options: {yes},
  async run({name, yes}, context) {
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
    const client = await getClient(target.pool, name)
    const {client_name: clientName} = client
    if (client.status !== 'quarantined')
      throw new UsageError(
        `nothing of ${clientName} is held back`,
        `See \`owsync client status ${clientName}\`; nothing has to be confirmed.`,
      )
    await confirmByName(context, {
      will: `${clientName} is held back: ${client.status_reason ?? 'nobody noted why'}. Confirmed, the file’s present state is applied all the same; rows that it lacks are marked deleted in Postgres.`,
      name: clientName,
      yes,
    })
    const progress = context.progress()
    let result: SyncResult
    try {
      result = await syncOnce(
        target.pool,
        {...config, clusterName: target.clusterName ?? config.clusterName},
        {
          client: clientName,
          full: false,
          dryRun: false,
          accept: true,
          onProgress: tally(progress, `sync ${clientName}`, undefined),
          onWait: holder => {
            progress.update({label: `waiting for ${holder}`})
          },
        },
        context.signal,
      )
    } finally {
      progress[Symbol.dispose]()
    }
    await recordAudit(target.pool, {
      actor: actorName(),
      action: 'client.confirmed',
      client: clientName,
      details: {reason: client.status_reason, status: result.status, generation: String(result.generation)},
    })
    context.out(printed(result), syncText(result, {sqlite: undefined, dryRun: false}))
    return result.status === 'success' ? 0 : 2
  },
})

export const purge = command({
  details:
    'Erases one row that Open WebUI has deleted: from the client’s table, and every trace of it in conflicts, quarantine and verifications. The SQLite file is not touched: a row that is still there is refused. KEY is the row’s _sync_key, as verify prints it; for most tables that is its id.',
  examples: ['client purge acme chat 5f1c0e9a-6b1d-4f0e-9a53-0f8f0e3f4c11'],
  positionals: {
    name,
    table: {about: 'Its table, as it is called in Postgres.'},
    key: {about: 'Its _sync_key.'},
  },
  options: {yes},
  async run({name, table, key, yes}, context) {
    await using target = await openHost(context)
    const client = await getClient(target.pool, name)
    await confirmByName(context, {
      will: `This erases row ${key} of table ${table} of ${client.client_name} from Postgres for good. SQLite files and backups made before are not touched.`,
      name: client.client_name,
      yes,
    })
    const erased = await purgeRow(target.pool, {client, table, key, actor: actorName()})
    const text = erased
      ? `${client.client_name}: the row of ${table} is erased, and what was noted of it.`
      : `${client.client_name}: Postgres has nothing of that row.`
    context.out({client: client.client_name, table, key, erased}, text)
    return 0
  },
})

export const deregister = command({
  details:
    'Gives a client up: no host syncs it any more, its tables and history stay in Postgres, and db transfer brings it back. Refused while its sync is on, unless --force is given. With --drop-schema everything of it is removed from Postgres for good; that needs ADMIN_DATABASE_URL.',
  examples: ['client deregister acme', 'client deregister acme --drop-schema --yes'],
  positionals: {name},
  options: {
    dropSchema: {type: 'boolean', about: 'Remove its schema and its history from Postgres, for good.'},
    force: {type: 'boolean', about: 'Even while its sync is on.'},
    yes,
  },
  async run({name, dropSchema, force, yes}, context) {
    return dropSchema ? await drop(name, {force, yes}, context) : await giveUp(name, {force, yes}, context)
  },
})

type Consent = {readonly force: boolean; readonly yes: boolean}

async function giveUp(name: string, {force, yes}: Consent, context: Context): Promise<0> {
  const config = await context.config()
  await using target = await openHost(context)
  const client = await getClient(target.pool, name)
  const {client_name: clientName, schema_name: schemaName} = client
  await confirmByName(context, {
    will: `${clientName} will no longer be synced by any host. Its schema ${schemaName} and its history stay in Postgres; nothing is done to its file or container.`,
    name: clientName,
    yes,
  })
  await detach(target.pool, config, client, {actor: actorName(), force})
  context.out(
    {client: clientName, schema: schemaName, detached: true, dropped: false},
    `${clientName}: deregistered. Its schema ${schemaName} stays; to take it back: owsync db transfer --client ${clientName} --to-cluster ${target.clusterName ?? config.clusterName}`,
  )
  return 0
}

async function drop(name: string, {force, yes}: Consent, context: Context): Promise<0> {
  const {name: asked, schema} = parseClientName(name)
  const config = await context.config()
  await using admin = await openAdmin(
    config,
    {max: 2, applicationName: `owsync/${config.clusterName}-cli`},
    context.signal,
  )
  const known = await admin.pool<{
    clientName: string
    deploymentId: string
    clusterName: string | null
    generation: bigint
  }>`
    select d.client_name as "clientName", d.deployment_id as "deploymentId", h.cluster_name as "clusterName", d.generation
    from sync_metadata.client_deployments d left join sync_metadata.hosts h using (host_id)
    where d.schema_name = ${schema}`
  const [client] = known
  if (client === undefined)
    throw new UsageError(`there is no client "${asked}"`, '`owsync db status` lists them.')
  const {clientName, clusterName, generation} = client
  if (clusterName !== null && config.isClusterNamed && clusterName !== config.clusterName)
    throw new UsageError(
      `${clientName} belongs to cluster ${clusterName}, and CLUSTER_NAME is ${config.clusterName}`,
      `Set CLUSTER_NAME=${clusterName} if that client is meant.`,
    )
  await confirmByName(context, {
    will: `This removes schema ${schema} with every row of ${clientName} (${clusterName === null ? 'no host has it' : `on ${clusterName}`}, generation ${generation}) and its history from Postgres, for good. Its SQLite file is not touched, and is then the only copy.`,
    name: clientName,
    yes,
  })
  await dropClient(admin.pool, {client: clientName, actor: actorName(), force})
  forget(config, client)
  context.out(
    {client: clientName, schema, detached: true, dropped: true},
    `${clientName}: deregistered, and its schema ${schema} is gone.`,
  )
  return 0
}

/** Who asks, for the audit log. */
export function actorName(): string {
  try {
    return `cli:${userInfo().username}`
  } catch {
    // In a container the user may have no name.
    return `cli:uid ${process.getuid?.() ?? '?'}`
  }
}
