import type {Client} from '../service/clients.ts'

/** A client as `--json` shows it; every command that names one uses these fields. */
export function clientDocument(client: Client) {
  return {
    client: client.client_name,
    schema: client.schema_name,
    deployment_id: client.deployment_id,
    status: client.status,
    status_reason: client.status_reason,
    enabled: client.sync_enabled,
    interval: client.sync_interval,
    schedule: client.sync_schedule,
    direction: client.direction,
    sqlite_path: client.sqlite_path,
    container_name: client.container_name,
    fqdn: client.fqdn,
    port: client.port,
    generation: client.generation,
    is_loading: client.is_loading,
    last_sync_at: client.last_sync_at,
    last_sync_status: client.last_sync_status,
    next_sync_at: client.next_sync_at,
    checked_at: client.checked_at,
    behind_since: client.behind_since,
    freshness_seconds: client.freshness_seconds,
    last_error: client.last_error,
    job: client.open_job,
    pending_conflicts: client.pending_conflicts,
    quarantined_rows: client.quarantined_rows,
    last_verified_at: client.last_verified_at,
    last_differences: client.last_differences,
    size_bytes: client.size_bytes,
  }
}

/** How a client stands, in a word or two. */
export function stateOf({status, sync_enabled, open_job, is_loading, last_sync_status}: Client): string {
  if (status === 'quarantined') return sync_enabled ? 'held back' : 'held back, paused'
  if (open_job?.status === 'running') return is_loading ? 'loading' : 'running'
  if (status === 'paused' || !sync_enabled) return 'paused'
  if (status !== 'active') return status
  if (last_sync_status === 'failed') return 'failed'
  return open_job?.status === 'pending' ? 'queued' : 'active'
}

type Timing = Pick<Client, 'sync_interval' | 'sync_schedule'>

/** When a client is synced, as a person would say it: `every 5 min`. */
export function scheduleText(client: Timing): string {
  const short = shortSchedule(client)
  return client.sync_interval !== null && client.sync_schedule === null ? `every ${short}` : short
}

/** The same for a column: `5 min`. */
export function shortSchedule({sync_interval: seconds, sync_schedule}: Timing): string {
  if (sync_schedule !== null) return sync_schedule
  if (seconds === null) return 'manual'
  if (seconds % 3_600 === 0) return `${seconds / 3_600} h`
  return seconds % 60 === 0 ? `${seconds / 60} min` : `${seconds} s`
}

/** A length of time as two figures at most: `45 s`, `12 min`, `3.5 h`, `9 d`. */
export function spanText(seconds: number): string {
  if (seconds < 100) return `${Math.round(seconds)} s`
  if (seconds < 5_940) return `${amount(seconds / 60)} min`
  return seconds < 2 * 86_400 ? `${amount(seconds / 3_600)} h` : `${Math.round(seconds / 86_400)} d`
}

function amount(number: number): string {
  return number < 10 ? String(Number(number.toFixed(1))) : String(Math.round(number))
}

/** Labels and values under each other. A value that is absent is left out. */
export function fields(pairs: readonly (readonly [string, string | undefined])[]): string {
  const shown = pairs.filter(([, value]) => value !== undefined && value !== '')
  const width = Math.max(...shown.map(([label]) => label.length))
  return shown.map(([label, value = '']) => `  ${label.padEnd(width)}  ${printable(value)}`).join('\n')
}

/** An instant in UTC, to the second. */
export function instantText(at: Date | null): string | undefined {
  return at === null ? undefined : `${at.toISOString().replace('T', ' ').slice(0, 19)} UTC`
}

/** What comes from files and people of all kinds must not move the cursor. */
function printable(text: string): string {
  return text.replace(/\p{C}/gu, '?')
}
