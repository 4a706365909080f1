import {parseClientName} from '../core/client-name.ts'
import {json, type Sql} from '../postgres/sql.ts'
import {UnknownClientError} from './deployments.ts'
import {VersionMovedError, type Expected} from './version.ts'

/** What a deployment is set to, as documents and the API show it. */
export type Settings = {
  readonly client_name: string
  readonly schema_name: string
  readonly container_name: string | null
  readonly fqdn: string | null
  readonly port: number | null
  readonly database_type: 'sqlite' | 'postgresql'
  readonly sqlite_path: string | null
  readonly direction: 'one_way' | 'two_way'
  readonly sync_enabled: boolean
  /** Seconds; with no schedule either, syncs are asked for by hand. */
  readonly sync_interval: number | null
  /** Cron text or `live`. */
  readonly sync_schedule: string | null
  readonly status: string
  readonly status_reason: string | null
  readonly config: Readonly<Record<string, unknown>>
}

/** Settings with their version, which every change of them raises, and no sync does. */
export type DeploymentSettings = {
  readonly deploymentId: string
  readonly settings: Settings
  readonly version: bigint
  readonly updatedAt: Date
}

/** What may be changed. What is left out stays; in `config`, which is merged, `null` removes an entry. */
export type SettingsChange = {
  readonly [
    K in
      | 'container_name'
      | 'fqdn'
      | 'port'
      | 'database_type'
      | 'sqlite_path'
      | 'direction'
      | 'sync_enabled'
      | 'sync_interval'
      | 'sync_schedule'
      | 'config'
  ]?: Settings[K] | undefined
}

/** @returns the settings of the deployment whose schema is `schemaName`, or `undefined`. */
export async function findSettings(sql: Sql, schemaName: string): Promise<DeploymentSettings | undefined> {
  const [row] = await sql<SettingsRow>`
    select deployment_id, client_name, schema_name, container_name, fqdn, port, database_type, sqlite_path, direction,
      sync_enabled, sync_interval, sync_schedule, status, status_reason, config, settings_version, updated_at
    from sync_metadata.client_deployments
    where schema_name = ${schemaName} and host_id = (select sync_metadata.my_host())`
  return row && settingsOf(row)
}

/**
 * Changes some settings of a client, in one statement. Switching its sync on ends a pause, switching it off begins one; a
 * deployment that is quarantined stays so. Whenever it is to be synced at other times, the leader plans it anew.
 *
 * @throws {UnknownClientError} when this host has no such client.
 * @throws {VersionMovedError} when the settings are not those that were expected.
 */
export async function changeSettings(
  sql: Sql,
  clientName: string,
  change: SettingsChange,
  expected: Expected,
): Promise<DeploymentSettings> {
  const {schema} = parseClientName(clientName)
  const {config = {}, ...columns} = change
  const removed = Object.keys(config).filter(key => config[key] === null)
  const [row] = await sql<SettingsRow>`
    update sync_metadata.client_deployments d
    set container_name = case when c ? 'container_name' then c ->> 'container_name' else d.container_name end,
      fqdn = case when c ? 'fqdn' then lower(c ->> 'fqdn') else d.fqdn end,
      port = case when c ? 'port' then (c ->> 'port')::int else d.port end,
      database_type = case when c ? 'database_type' then c ->> 'database_type' else d.database_type end,
      sqlite_path = case when c ? 'sqlite_path' then c ->> 'sqlite_path' else d.sqlite_path end,
      direction = case when c ? 'direction' then c ->> 'direction' else d.direction end,
      sync_enabled = case when c ? 'sync_enabled' then (c ->> 'sync_enabled')::boolean else d.sync_enabled end,
      sync_interval = case when c ? 'sync_interval' then (c ->> 'sync_interval')::int else d.sync_interval end,
      sync_schedule = case when c ? 'sync_schedule' then c ->> 'sync_schedule' else d.sync_schedule end,
      status = case
        when c -> 'sync_enabled' = 'true' and d.status in ('paused', 'stopped') then 'active'
        when c -> 'sync_enabled' = 'false' and d.status in ('active', 'stopped') then 'paused'
        else d.status end,
      status_reason = case
        when c ? 'sync_enabled' and d.status in ('active', 'paused', 'stopped') then null
        else d.status_reason end,
      next_sync_at = case when c ?| array['sync_enabled', 'sync_interval', 'sync_schedule'] then null
        else d.next_sync_at end,
      config = (d.config || ${json(config)}::jsonb) - ${removed}::text[],
      updated_at = now()
    from (select ${json(columns)}::jsonb as c) given
    where d.schema_name = ${schema} and d.host_id = (select sync_metadata.my_host())
      and (${typeof expected !== 'bigint'} or d.settings_version = ${typeof expected === 'bigint' ? expected : 0n})
    returning d.deployment_id, d.client_name, d.schema_name, d.container_name, d.fqdn, d.port, d.database_type,
      d.sqlite_path, d.direction, d.sync_enabled, d.sync_interval, d.sync_schedule, d.status, d.status_reason, d.config,
      d.settings_version, d.updated_at`
  if (row) return settingsOf(row)
  const known = await findSettings(sql, schema)
  if (!known) throw new UnknownClientError(clientName)
  throw new VersionMovedError(clientName, expected, known.version)
}

type SettingsRow = Settings & {
  readonly deployment_id: string
  readonly settings_version: bigint
  readonly updated_at: Date
}

function settingsOf({
  deployment_id: deploymentId,
  settings_version: version,
  updated_at: updatedAt,
  ...settings
}: SettingsRow): DeploymentSettings {
  return {deploymentId, settings, version, updatedAt}
}
