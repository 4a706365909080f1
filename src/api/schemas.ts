import {z} from 'zod'
import {parseClientName} from '../core/client-name.ts'
import type {SettingsChange} from '../state/deployment-settings.ts'
import {columnsOf, parseInterval} from '../schedule/interval.ts'

// What goes over the wire. Instants are ISO 8601 in UTC, whole numbers of 64 bits are numbers.

const messageOf = (error: unknown) => (error instanceof Error ? error.message : String(error))

/** Text without NUL, which Postgres has no place for. */
const text = (most: number) =>
  z
    .string()
    .min(1)
    .max(most)
    .refine(given => !given.includes('\0'), 'must not contain NUL')

/** Any JSON; bodies have been read as JSON before they are looked at. */
export const Json = z.unknown().refine(value => value !== undefined, 'is missing')

export const instant = z.codec(z.iso.datetime(), z.date(), {
  decode: given => new Date(given),
  encode: date => date.toISOString(),
})
const maybeInstant = instant.nullable()

/** A whole number; from `bigint` on the way out. */
const whole = z
  .codec(z.number(), z.bigint(), {decode: given => BigInt(given), encode: Number})
  .meta({type: 'integer'})

export const ClientName = z
  .string()
  .max(255)
  .check(({value, issues}) => {
    try {
      parseClientName(value)
    } catch (error) {
      issues.push({code: 'custom', input: value, message: messageOf(error)})
    }
  })
  .meta({description: 'A client; its name may be written with `.`, `-` or `_`.', example: 'acme'})

/** `realtime`, `5m`, `live`, a number of seconds from 10 on, a cron expression: see `owsync client interval`. */
const Interval = z
  .union([z.string().max(200), z.int()])
  .check(({value, issues}) => {
    try {
      parseInterval(String(value))
    } catch (error) {
      issues.push({code: 'custom', input: value, message: messageOf(error)})
    }
  })
  .meta({
    description:
      '`realtime`, `1m`, `5m`, `hourly`, `4h`, `daily`, `manual`, `live`, seconds from 10 on, or a cron expression.',
    example: '5m',
  })

const SqlitePath = text(4_096).refine(
  path => path.startsWith('/') && !path.split('/').includes('..'),
  'must be an absolute path without ..',
)
const Config = z
  .record(z.string().max(200), Json)
  .refine(config => JSON.stringify(config).length <= 65_536, 'must not be longer than 64 KB')
  .refine(config => !JSON.stringify(config).includes('\\u0000'), 'must not contain NUL')

/** Settings of a deployment as a body has them: by the API's names, or by the columns'. */
const settings = {
  sqlite_path: SqlitePath.nullable().optional(),
  container_name: text(255).nullable().optional(),
  fqdn: z
    .string()
    .regex(/^[A-Za-z0-9]([A-Za-z0-9.:-]{0,251}[A-Za-z0-9])?$/, 'must be a host name')
    .nullable()
    .optional(),
  port: z.int().min(1).max(65_535).nullable().optional(),
  database_type: z.enum(['sqlite', 'postgresql']).optional(),
  direction: z.enum(['one_way', 'two_way']).optional(),
  interval: Interval.optional(),
  sync_interval: z.int().min(10).max(2_147_483_647).nullable().optional(),
  sync_schedule: Interval.nullable().optional(),
  enabled: z.boolean().optional(),
  sync_enabled: z.boolean().optional(),
  status: z.enum(['active', 'paused']).optional(),
  history_days: z.int().min(0).max(3_650).nullable().optional(),
  config: Config.optional(),
}

/** Changes of a deployment's settings; at least one. */
export const SettingsBody = z
  .strictObject({
    ...settings,
    report: z.uuid().optional().meta({
      description: 'With direction two_way: the job of the dry run that has told what would be written.',
    }),
  })
  .refine(body => Object.keys(body).some(key => key !== 'report'), 'must change something')
  .refine(agrees, 'enabled, sync_enabled and status must say the same')

export const NewDeploymentBody = z
  .strictObject({...settings, client_name: ClientName})
  .refine(agrees, 'enabled, sync_enabled and status must say the same')

type Switches = {
  readonly enabled?: boolean | undefined
  readonly sync_enabled?: boolean | undefined
  readonly status?: string | undefined
}

/** Whether a body wants syncs to be on or off, by whichever name it says so. */
function switchesOf({enabled, sync_enabled, status}: Switches): boolean[] {
  return [enabled, sync_enabled, status && status === 'active'].filter(each => typeof each === 'boolean')
}

function agrees(body: Switches): boolean {
  return new Set(switchesOf(body)).size < 2
}

/** @returns the columns that a body names. */
export function changeOf(body: Omit<z.output<typeof SettingsBody>, 'report'>): SettingsChange {
  const {interval, history_days, config, sync_interval, sync_schedule} = body
  const {sqlite_path, container_name, fqdn, port, database_type, direction} = body
  const [isEnabled] = switchesOf(body)
  const schedule = sync_schedule === undefined || sync_schedule === null ? undefined : String(sync_schedule)
  const asked =
    interval !== undefined ? String(interval) : (schedule ?? (sync_interval ?? undefined)?.toString())
  const times = asked === undefined ? undefined : columnsOf(parseInterval(asked))
  return {
    ...{sqlite_path, container_name, fqdn, port, database_type, direction},
    ...(isEnabled !== undefined && {sync_enabled: isEnabled}),
    ...(times
      ? {sync_interval: times.syncInterval, sync_schedule: times.syncSchedule}
      : {
          ...(sync_interval === null && {sync_interval: null}),
          ...(sync_schedule === null && {sync_schedule: null}),
        }),
    ...((config !== undefined || history_days !== undefined) && {
      config: {...config, ...(history_days !== undefined && {history_days})},
    }),
  }
}

export const Limit = z.coerce
  .number()
  .int()
  .min(1)
  .max(1_000)
  .default(100)
  .meta({description: 'At most so many.'})
export const Cursor = z
  .string()
  .max(500)
  .optional()
  .meta({description: 'What the page before gave as `next`.'})

/** A list: `{<plural>, count, next}`; `count` is how many this page has, `next` is null on the last one. */
export const listOf = <N extends string, T extends z.ZodType>(plural: N, item: T) =>
  z.object({
    ...({[plural]: z.array(item)} as Record<N, z.ZodArray<T>>),
    count: z.int(),
    next: z.string().nullable(),
  })

export const ProblemBody = z
  .looseObject({
    type: z.string(),
    title: z.string(),
    status: z.int(),
    code: z.string(),
    detail: z.string(),
    next: z.string(),
    request_id: z.string(),
  })
  .meta({description: 'application/problem+json'})

/** What every endpoint may answer instead. */
export const problems = {'4xx': ProblemBody, '5xx': ProblemBody}

export const HealthBody = z.object({
  status: z.enum(['healthy', 'degraded', 'unhealthy']),
  node_id: z.string(),
  role: z.string(),
  is_leader: z.boolean(),
  leader_id: z.string().nullable(),
  cluster_name: z.string(),
  uptime_seconds: z.number(),
  last_sync: maybeInstant,
  version: z.string(),
  reasons: z.array(z.string()).readonly(),
})

export const ClusterBody = z.object({
  cluster_name: z.string(),
  leader_id: z.string().nullable(),
  epoch: whole,
  lease_expires_at: maybeInstant,
  acquired_at: maybeInstant,
  paused: z.boolean(),
  preferred: z.string().nullable(),
  nodes: z
    .array(
      z.object({
        node_id: z.string(),
        role: z.string(),
        health: z.enum(['active', 'degraded', 'offline']),
        is_leader: z.boolean(),
        started_at: instant,
        last_heartbeat: instant,
        version: z.string().nullable(),
        address: z.string().nullable(),
      }),
    )
    .readonly(),
})

const OpenJobBody = z.object({
  job_id: z.string(),
  sync_type: z.string(),
  status: z.string(),
  rows_total: z.number().nullable(),
  rows_processed: z.number().nullable(),
})

export const DeploymentBody = z.object({
  deployment_id: z.string(),
  client_name: z.string(),
  schema_name: z.string(),
  container_name: z.string().nullable(),
  fqdn: z.string().nullable(),
  port: z.number().nullable(),
  database_type: z.string(),
  sqlite_path: z.string().nullable(),
  direction: z.string(),
  enabled: z.boolean(),
  /** As `interval` is written in a request. */
  interval: z.string(),
  sync_interval: z.number().nullable(),
  sync_schedule: z.string().nullable(),
  history_days: z.number().nullable(),
  status: z.string(),
  status_reason: z.string().nullable(),
  version: whole,
  generation: whole,
  is_loading: z.boolean(),
  last_sync_at: maybeInstant,
  last_sync_status: z.string().nullable(),
  next_sync_at: maybeInstant,
  checked_at: maybeInstant,
  behind_since: maybeInstant,
  freshness_seconds: z.number().nullable(),
  last_error: z.object({code: z.string().nullable(), message: z.string().nullable()}).nullable(),
  open_job: OpenJobBody.nullable(),
  pending_conflicts: z.number(),
  quarantined_rows: z.number(),
  last_verified_at: maybeInstant,
  last_differences: whole.nullable(),
  size_bytes: whole.nullable(),
  created_at: instant,
  updated_at: instant,
})

export const DocumentBody = z.object({
  key: z.string(),
  value: z.unknown(),
  version: whole,
  cached: z.boolean(),
  updated_at: instant,
})
export const WrittenBody = DocumentBody.extend({success: z.literal(true)})

export const QueuedBody = z.object({
  success: z.literal(true),
  job_id: z.string(),
  sync_id: z.string(),
  status: z.literal('queued'),
  client: z.string(),
})

export const JobBody = z.object({
  job_id: z.string(),
  client: z.string(),
  sync_type: z.string(),
  triggered_by: z.string(),
  status: z.string(),
  node_id: z.string().nullable(),
  epoch: whole.nullable(),
  attempt: z.number(),
  run_after: instant,
  created_at: instant,
  started_at: maybeInstant,
  finished_at: maybeInstant,
  generation: whole.nullable(),
  rows: z.object({upserted: whole, tombstoned: whole, unchanged: whole, quarantined: whole}),
  conflicts: z.object({detected: whole, resolved: whole}),
  bytes: whole,
  duration_ms: whole.nullable(),
  error: z.object({code: z.string(), message: z.string().nullable()}).nullable(),
})
export const JobWithTablesBody = JobBody.extend({
  options: z.unknown(),
  result: z.unknown(),
  tables: z.array(
    z.object({
      table: z.string(),
      rows_total: whole.nullable(),
      rows_processed: whole,
      status: z.string(),
    }),
  ),
})

export const ConflictBody = z.object({
  conflict_id: z.string(),
  client: z.string(),
  job_id: z.string().nullable(),
  table: z.string(),
  key: z.string(),
  type: z.string(),
  strategy: z.string().nullable(),
  status: z.string(),
  detected_at: instant,
  resolved_at: maybeInstant,
  resolved_by: z.string().nullable(),
  notes: z.string().nullable(),
})
export const WholeConflictBody = ConflictBody.extend({
  source: z.unknown(),
  target: z.unknown(),
  resolved: z.unknown(),
  sides: z.record(z.string(), z.enum(['present', 'absent', 'unknown'])),
  fields: z.array(
    z.object({
      field: z.string(),
      source: z.unknown(),
      target: z.unknown(),
      resolved: z.unknown(),
      differs: z.boolean(),
    }),
  ),
})
