import {parseDuration} from '../config/kinds.ts'
import {parseClientName} from '../core/client-name.ts'
import {UsageError} from '../core/errors.ts'
import {urlOf} from '../net/endpoint.ts'
import {
  dbStatus,
  grantAccess,
  grantHost,
  revokeAccess,
  rotatePassword,
  transferClient,
  type DbStatus,
} from '../postgres/admin.ts'
import {migrate as migrateSchema} from '../postgres/migrate.ts'
import {openAdmin, openTarget, saveLogin, type Target} from '../service/target.ts'
import {command, type Context} from './command.ts'
import {sizeText, table} from './table.ts'

// Everything here but `url` and a host's own `status` needs the database's owner: ADMIN_DATABASE_URL, or the embedded
// Postgres.

const connection = {max: 3, applicationName: 'owsync/db'}

const cluster = {type: 'string', about: 'Which cluster; CLUSTER_NAME when left out.', value: 'C'} as const
const client = {type: 'string', about: 'Which client.', value: 'NAME', required: true} as const
const role = {type: 'string', about: 'A role that exists in the database.', required: true} as const

export const migrate = command({
  details: 'Everything is applied in one transaction, or nothing. Running it again changes nothing.',
  positionals: {},
  options: {},
  async run(_args, context) {
    await using admin = await adminOf(context)
    const {applied, version} = await migrateSchema(admin.pool)
    const text =
      applied.length === 0
        ? `The control schema is up to date (version ${version}).`
        : `The control schema is now at version ${version}:\n${applied.map(file => `  ${file}`).join('\n')}`
    context.out({version, applied}, text)
    return 0
  },
})

export const status = command({
  details: 'With DATABASE_URL alone it shows what this host may see.',
  positionals: {},
  options: {},
  async run(_args, context) {
    const config = await context.config()
    await using target = config.adminDatabaseUrl
      ? await adminOf(context)
      : await openTarget(config, connection, context.signal)
    const found = await dbStatus(target.pool)
    context.out(statusDocument(found, target), statusText(found, target))
    return 0
  },
})

export const url = command({
  details:
    'The URL holds its password. Without settings it is the embedded Postgres, which is started when needed.',
  positionals: {},
  options: {admin: {type: 'boolean', about: 'The owner’s URL instead of this host’s.'}},
  async run({admin}, context) {
    const config = await context.config()
    await using target = admin ? await adminOf(context) : await openTarget(config, connection, context.signal)
    if (target.isEmbedded) context.err('The embedded Postgres runs only while a command or a node uses it.')
    context.out({url: urlOf(target.endpoint), embedded: target.isEmbedded}, urlOf(target.endpoint))
    return 0
  },
})

export const grant = command({
  details:
    'Makes a login of its own for a host’s nodes, and prints its URL: once, since its password is kept nowhere.',
  examples: ['db grant-host --cluster prod-host-1 > /etc/openwebui-sync/database-url'],
  positionals: {},
  options: {
    cluster: {...cluster, about: 'Name of the new cluster.', required: true},
    hostname: {type: 'string', about: 'The host’s name, for people; the cluster’s when left out.'},
  },
  async run({cluster, hostname = cluster}, context) {
    await using admin = await adminOf(context)
    const login = await grantHost(admin.pool, admin.endpoint, {cluster, hostname})
    context.err('This URL holds the password and is not shown again. It goes into DATABASE_URL on that host.')
    context.out({cluster, hostname, role: login.role, url: login.url}, login.url)
    return 0
  },
})

export const rotate = command({
  details:
    'Makes a second login for the host and prints its URL, once. The old one works for a while, so that the nodes can be restarted one after the other.',
  positionals: {},
  options: {
    cluster,
    grace: {type: 'string', about: 'How long the old login still works: 1h when left out.', value: 'TIME'},
  },
  async run({cluster: named, grace = '1h'}, context) {
    const graceMs = durationOf(grace)
    const config = await context.config()
    const name = named ?? config.clusterName
    await using admin = await adminOf(context)
    const login = await rotatePassword(admin.pool, admin.endpoint, {cluster: name, graceMs})
    // Nobody else sets the embedded login: this host's nodes find the new one there.
    if (admin.isEmbedded && name === config.clusterName) {
      await saveLogin(config, {role: login.role, password: login.endpoint.password ?? ''})
    }
    const {oldValidUntil, dropped} = login
    context.err(`The old login works until ${oldValidUntil.toISOString()}. This URL is not shown again.`)
    context.out(
      {cluster: name, role: login.role, url: login.url, old_valid_until: oldValidUntil, dropped},
      login.url,
    )
    return 0
  },
})

export const grantClient = command({
  details:
    'Gives a role of a person or program the right to read a client’s tables, or to read and edit them: those there are and those to come.',
  positionals: {},
  options: {
    client,
    role,
    mode: {type: 'string', about: 'What it may do.', choices: ['read', 'edit'], required: true},
  },
  async run({client, role, mode}, context) {
    const {name} = parseClientName(client)
    await using admin = await adminOf(context)
    await grantAccess(admin.pool, {client: name, role, mode})
    context.out({client: name, role, mode}, `${role} may ${mode} ${name}.`)
    return 0
  },
})

export const revokeClient = command({
  details: 'Takes back what grant-access gave; nothing to take back is no error.',
  positionals: {},
  options: {client, role},
  async run({client, role}, context) {
    const {name} = parseClientName(client)
    await using admin = await adminOf(context)
    await revokeAccess(admin.pool, {client: name, role})
    context.out({client: name, role, mode: null}, `${role} has no access to ${name}.`)
    return 0
  },
})

export const transfer = command({
  details:
    'Moves a client’s rights to another host, when a host is lost or a client moves. The old host is fenced: nothing it has in flight can be committed. No data is touched.',
  positionals: {},
  options: {
    client,
    toCluster: {type: 'string', about: 'The cluster that gets the client.', value: 'C', required: true},
  },
  async run({client, toCluster}, context) {
    const {name} = parseClientName(client)
    await using admin = await adminOf(context)
    await transferClient(admin.pool, {client: name, toCluster})
    context.out({client: name, cluster: toCluster}, `${name} belongs to ${toCluster} now.`)
    return 0
  },
})

async function adminOf({config, signal}: Context): Promise<Target> {
  return await openAdmin(await config(), connection, signal)
}

function durationOf(text: string): number {
  try {
    return parseDuration(text)
  } catch (cause) {
    throw new UsageError(`--grace is ${JSON.stringify(text)}`, 'It takes a duration such as 10m, 1h or 2d.', {
      cause,
    })
  }
}

function statusDocument(
  {schemaVersion, server, sizeBytes, hosts, deployments, leases}: DbStatus,
  target: Target,
) {
  return {
    database: target.endpoint.display,
    embedded: target.isEmbedded,
    server,
    schema_version: schemaVersion,
    size_bytes: sizeBytes,
    hosts: hosts.map(host => ({
      cluster_name: host.cluster,
      hostname: host.hostname,
      status: host.status,
      last_heartbeat: host.lastHeartbeat ?? null,
      roles: host.roles.map(({role, validUntil}) => ({role, valid_until: validUntil ?? null})),
      clients: host.clients,
    })),
    deployments: deployments.map(deployment => ({
      client: deployment.client,
      schema: deployment.schema,
      cluster_name: deployment.cluster ?? null,
      status: deployment.status,
      generation: deployment.generation,
      last_sync_at: deployment.lastSyncAt ?? null,
      size_bytes: deployment.sizeBytes,
    })),
    leases: leases.map(lease => ({
      cluster_name: lease.cluster,
      leader_id: lease.leader ?? null,
      epoch: lease.epoch,
      // Nobody has ever led: -infinity, which no calendar can show.
      expires_at: lease.epoch === 0n ? null : lease.expiresAt,
      paused: lease.paused,
    })),
  }
}

function statusText(
  {schemaVersion, server, sizeBytes, hosts, deployments, leases}: DbStatus,
  target: Target,
): string {
  const leaseOf = new Map(leases.map(lease => [lease.cluster, lease]))
  const sections = [
    `${target.endpoint.display}${target.isEmbedded ? ' (embedded)' : ''}: PostgreSQL ${server}, control schema version ${schemaVersion}, ${sizeText(sizeBytes)}`,
    hosts.length === 0
      ? 'No hosts yet: "owsync db grant-host --cluster C" adds one.'
      : table(
          ['cluster', 'host', 'status', 'last heartbeat', 'leader', 'epoch', 'clients'],
          hosts.map(host => {
            const lease = leaseOf.get(host.cluster)
            const {cluster, hostname, status, lastHeartbeat, clients} = host
            return [cluster, hostname, status, lastHeartbeat, lease?.leader, lease?.epoch, clients]
          }),
        ),
    deployments.length === 0
      ? 'No clients yet.'
      : table(
          ['client', 'cluster', 'status', 'generation', 'last sync', 'size'],
          deployments.map(({client, cluster, status, generation, lastSyncAt, sizeBytes}) => [
            client,
            cluster,
            status,
            generation,
            lastSyncAt,
            sizeText(sizeBytes),
          ]),
        ),
  ]
  return sections.join('\n\n')
}
