import {NotYoursError} from '../postgres/refusals.ts'
import {openTarget, type Target} from '../service/target.ts'
import {countBoth, getClient, listClients, type Client, type Counts} from '../service/clients.ts'
import {readHistory, readLog, type LogEntry, type PastJob} from '../state/history.ts'
import {
  clientDocument,
  fields,
  instantText,
  scheduleText,
  shortSchedule,
  spanText,
  stateOf,
} from './client-text.ts'
import {command, type Context} from './command.ts'
import {counted, sizeText, table} from './table.ts'

// What is to be seen of clients. All of it is read from Postgres: no node needs to run.

export const list = command({
  examples: ['client list', 'client list --json'],
  positionals: {},
  options: {},
  async run(_args, context) {
    await using target = await openHost(context)
    const clients = await listClients(target.pool)
    context.out({clients: clients.map(clientDocument), count: clients.length}, listText(clients))
    return 0
  },
})

export const status = command({
  details:
    'What is known of one client. --count counts the rows of both sides as they are now; the app may have written since the last sync, so a few more in the source are no fault.',
  examples: ['client status acme', 'client status acme --count'],
  positionals: {name: {about: 'Which client.'}},
  options: {count: {type: 'boolean', about: 'Count the rows of every table on both sides.'}},
  async run({name, count}, context) {
    await using target = await openHost(context)
    const client = await getClient(target.pool, name)
    const counts = count
      ? await countBoth(target.pool, await context.config(), client, context.signal)
      : undefined
    const text = [statusText(client), ...(counts === undefined ? [] : ['', countsText(counts)])].join('\n')
    context.out({...clientDocument(client), ...(counts === undefined ? {} : countsDocument(counts))}, text)
    return 0
  },
})

export const history = command({
  details:
    'The last syncs, verifications and restores that did something or failed, of one client or of all; the newest first. --log shows everything that was recorded, line by line: jobs, verifications, conflicts, and who changed what.',
  examples: ['client history acme', 'client history acme --log --limit 200', 'client history'],
  positionals: {name: {about: 'Which client; all when left out.', optional: true}},
  options: {
    log: {type: 'boolean', about: 'Show all that was recorded, the oldest first.'},
    limit: {type: 'number', about: 'How many at most; 20 when left out.'},
  },
  async run({name, log, limit = 20}, context) {
    await using target = await openHost(context)
    const client = name === undefined ? undefined : await getClient(target.pool, name)
    const query = {deploymentId: client?.deployment_id, limit: Math.min(limit, 10_000)}
    if (log) {
      const entries = (await readLog(target.pool, query)).reverse()
      context.out({log: entries, count: entries.length}, logText(entries, client === undefined))
    } else {
      const jobs = await readHistory(target.pool, query)
      context.out({jobs, count: jobs.length}, historyText(jobs, client === undefined))
    }
    return 0
  },
})

/** Opens the database as this host, for a command that is soon over. */
export async function openHost({config, signal}: Context): Promise<Target> {
  const settings = await config()
  const options = {max: 4, applicationName: `owsync/${settings.clusterName}-cli`}
  const target = await openTarget(settings, options, signal)
  if (target.isEmbedded || target.clusterName !== undefined) return target
  await target[Symbol.asyncDispose]()
  throw new NotYoursError('the role in DATABASE_URL is no host’s')
}

function listText(clients: readonly Client[]): string {
  if (clients.length === 0) return 'No clients yet: "owsync client register NAME --sqlite FILE" adds one.'
  const waiting = clients.map(client => client.pending_conflicts + client.quarantined_rows)
  const isAnyWaiting = waiting.some(rows => rows > 0)
  return table(
    ['client', 'state', 'every', 'gen', 'up to date', ...(isAnyWaiting ? ['waiting'] : []), 'size'],
    clients.map((client, i) => [
      client.client_name,
      stateOf(client),
      shortSchedule(client),
      client.generation,
      agoText(client.freshness_seconds),
      ...(isAnyWaiting ? [waiting[i] === 0 ? undefined : waiting[i]] : []),
      sizeText(client.size_bytes),
    ]),
  )
}

function agoText(seconds: number | null): string | undefined {
  return seconds === null ? undefined : `${spanText(Math.max(seconds, 0))} ago`
}

function statusText(client: Client): string {
  const {
    client_name: name,
    last_error,
    last_differences,
    pending_conflicts,
    quarantined_rows,
    open_job,
  } = client
  const verified =
    client.last_verified_at === null
      ? 'never'
      : `${instantText(client.last_verified_at) ?? ''}, ${last_differences === 0n ? 'equal' : counted(Number(last_differences), 'difference')}`
  const lines = fields([
    ['state', stateOf(client)],
    ['because', client.status_reason ?? undefined],
    ['synced', scheduleText(client)],
    ['next', client.sync_enabled ? instantText(client.next_sync_at) : undefined],
    ['file', client.sqlite_path ?? 'none yet'],
    ['container', client.container_name ?? undefined],
    ['address', client.fqdn ?? undefined],
    ['direction', client.direction === 'two_way' ? 'both ways' : undefined],
    ['schema', client.schema_name],
    ['generation', String(client.generation)],
    ['last sync', instantText(client.last_sync_at) ?? 'never'],
    ['up to date', agoText(client.freshness_seconds)],
    ['behind since', instantText(client.behind_since)],
    ['last error', last_error === null ? undefined : `${last_error.code ?? ''}: ${last_error.message ?? ''}`],
    ['job', open_job === null ? undefined : `${open_job.sync_type} ${open_job.status} (${open_job.job_id})`],
    ['conflicts', pending_conflicts > 0 ? `${pending_conflicts} wait for a decision` : undefined],
    ['rows waiting', quarantined_rows > 0 ? `${quarantined_rows} could not be applied` : undefined],
    ['verified', verified],
    ['size', sizeText(client.size_bytes)],
  ])
  const next =
    client.status === 'quarantined'
      ? [`\nNothing is applied until this is looked at. If it is meant: owsync client confirm ${name}`]
      : []
  return [name, lines, ...next].join('\n')
}

function countsDocument({tables, sourceError}: Counts) {
  const {code, message} = sourceError ?? {}
  return {
    tables: tables.map(({table, source, target, deleted}) => ({
      table,
      source: source ?? null,
      target: target ?? null,
      deleted: deleted ?? null,
    })),
    source_error: sourceError === undefined ? null : {code, message},
  }
}

function countsText({tables, sourceError}: Counts): string {
  const sum = (side: 'source' | 'target' | 'deleted') =>
    tables.some(count => count[side] !== undefined)
      ? tables.reduce((total, count) => total + (count[side] ?? 0), 0)
      : undefined
  const rows = tables.map(({table, source, target, deleted}) => [
    table,
    source,
    target,
    differenceText(source, target),
    deleted,
  ])
  const [source, target] = [sum('source'), sum('target')]
  const total = ['all', source, target, differenceText(source, target), sum('deleted')]
  return [
    tables.length === 0
      ? 'Neither side has a table.'
      : table(['table', 'source', 'target', 'difference', 'deleted'], [...rows, total]),
    ...(sourceError === undefined
      ? []
      : ['', `The source could not be counted: ${sourceError.message}`, sourceError.next]),
  ].join('\n')
}

function differenceText(source: number | undefined, target: number | undefined): string | undefined {
  if (source === undefined || target === undefined || source === target) return undefined
  return `${source > target ? '+' : ''}${(source - target).toLocaleString('en-US')}`
}

function historyText(jobs: readonly PastJob[], ofAll: boolean): string {
  if (jobs.length === 0) return 'Nothing has happened yet.'
  const failures = jobs.filter(({status}) => status === 'failed').slice(0, 5)
  const rows = jobs.map(job => {
    const at = job.finished_at ?? job.started_at ?? job.created_at
    return [
      // Names are long, and so are instants: who looks at all clients looks for what happened of late.
      ...(ofAll ? [job.client, agoText((Date.now() - at.getTime()) / 1_000)] : [at]),
      kinds[job.sync_type] ?? job.sync_type,
      job.status,
      job.generation ?? undefined,
      job.rows_upserted,
      job.rows_tombstoned,
      ...(ofAll ? [] : [sizeText(job.bytes)]),
      job.duration_ms === null ? undefined : spanOf(job.duration_ms),
    ]
  })
  return [
    table(
      [
        ...(ofAll ? ['client', 'ended'] : ['ended (UTC)']),
        'what',
        'result',
        'gen',
        'changed',
        'deleted',
        ...(ofAll ? [] : ['bytes']),
        'took',
      ],
      rows,
    ),
    ...(failures.length === 0 ? [] : ['']),
    ...failures.map(
      job =>
        `${job.client} ${instantText(job.finished_at) ?? ''}: ${job.error_code ?? 'failed'}: ${job.error_message ?? ''}`,
    ),
  ].join('\n')
}

const kinds: Readonly<Record<string, string>> = {incremental: 'sync', full: 'full sync'}

function spanOf(ms: bigint): string {
  return ms < 1_000n ? `${ms} ms` : spanText(Number(ms) / 1_000)
}

function logText(entries: readonly LogEntry[], ofAll: boolean): string {
  if (entries.length === 0) return 'Nothing has been recorded yet.'
  return entries
    .map(({at, client, kind, what, by, text}) => {
      const words = kind === 'audit' ? [what, text] : [kind, what, text]
      const said = words.filter(word => word !== '').join(' ')
      return `${instantText(at)?.slice(0, 19) ?? ''}  ${ofAll ? `${client}  ` : ''}${said}${by === null ? '' : ` (${by})`}`
    })
    .join('\n')
    .replace(/[^\P{C}\n]/gu, '?')
}
