import {readFileSync} from 'node:fs'
import {homedir, hostname} from 'node:os'
import {isIP} from 'node:net'
import {join} from 'node:path'
import {SyncError} from '../core/errors.ts'
import {redact} from '../core/redact.ts'
import {decryptAge} from './age.ts'
import {nodeRoles, settings, type Read} from './settings.ts'
import type {Setting} from './kinds.ts'

/** All settings, read and checked. Frozen. Durations are milliseconds; secrets are `Secret` and never print. */
export type Config = Omit<
  Read,
  'clusterName' | 'apiHost' | 'apiPort' | 'stateDir' | 'conflictResolutionConfig'
> & {
  readonly clusterName: string
  /** False when nobody named the cluster: then it is the one that the database role belongs to. */
  readonly isClusterNamed: boolean
  readonly apiHost: string
  readonly apiPort: number
  readonly stateDir: string
  /** The conflict rules as written, to be checked by who knows them; absent when the default rules apply. */
  readonly conflictResolutionConfig: ConflictRules | undefined
}

/** `place` is what a person calls the document: its file, or the variable's name. */
export type ConflictRules = {readonly place: string; readonly document: unknown}

export type Env = Readonly<Record<string, string | undefined>>

/** Some settings cannot be used; nothing was started. Carries all problems, not only the first. Exit code 64. */
export class ConfigError extends SyncError {
  override readonly name = 'ConfigError'
  readonly code = 'SYNC_CONFIG'
  readonly next = 'Correct the environment; docs/settings.md says what each setting takes.'
  readonly problems: readonly string[]

  constructor(problems: readonly string[]) {
    const [first = '', ...others] = problems
    super(
      others.length === 0
        ? `a setting cannot be used: ${first}`
        : `${problems.length} settings cannot be used:\n${problems.map(problem => `  - ${problem}`).join('\n')}`,
    )
    this.problems = problems
  }
}

/**
 * Reads every setting from `env`: `NAME`, or the file that `NAME_FILE` names. An empty variable counts as unset.
 *
 * @throws {ConfigError} with all problems at once; no value of a secret is in it.
 */
export async function loadConfig(env: Env): Promise<Config> {
  const problems: string[] = []
  const read: Record<string, unknown> = {}
  const broken = new Set<string>()
  for (const [key, setting] of Object.entries<Setting<unknown>>(settings)) {
    try {
      const found = await writtenText(env, setting)
      read[key] = found === undefined ? setting.absent : valueOf(setting, found)
    } catch (problem) {
      problems.push(messageOf(problem))
      broken.add(key)
      read[key] = setting.absent
    }
  }
  // Every key of the table was read by its own setting just above.
  const values = read as Read
  for (const {about, needs, holds, message} of crossChecks(env)) {
    if (!needs.some(key => broken.has(key)) && !holds(values)) problems.push(`${about}: ${message}`)
  }
  const rules = conflictRules(values.conflictResolutionConfig, problems)
  if (problems.length > 0) throw new ConfigError(problems)
  return completed(values, rules)
}

/** Of node-a; each other node has the next one. */
const FIRST_PORT = 9_443

function completed(values: Read, conflictResolutionConfig: ConflictRules | undefined): Config {
  return Object.freeze({
    ...values,
    clusterName: values.clusterName ?? hostname(),
    isClusterNamed: values.clusterName !== undefined,
    apiHost: values.apiHost ?? '127.0.0.1',
    apiPort: values.apiPort ?? FIRST_PORT + nodeRoles.indexOf(values.role),
    stateDir: values.stateDir ?? defaultStateDir(),
    conflictResolutionConfig,
  })
}

function defaultStateDir(): string {
  return process.getuid?.() === 0 ? '/var/lib/openwebui-sync' : join(homedir(), '.local/state/openwebui-sync')
}

type CrossCheck = {
  readonly about: string
  /** The check is left out when one of these could not be read: that was reported already. */
  readonly needs: readonly (keyof Read)[]
  readonly holds: (values: Read) => boolean
  readonly message: string
}

function crossChecks(env: Env): readonly CrossCheck[] {
  const isLocalApi = (values: Read) => values.apiHost === undefined || isLoopback(values.apiHost)
  return [
    {
      about: 'LEASE_DURATION',
      needs: ['leaseDurationMs', 'heartbeatIntervalMs'],
      holds: values => values.leaseDurationMs >= 3 * values.heartbeatIntervalMs,
      message: 'must be at least three times HEARTBEAT_INTERVAL, so that a lease outlives two lost renewals',
    },
    {
      about: 'ADMIN_DATABASE_URL',
      needs: ['databaseUrl', 'adminDatabaseUrl'],
      holds: ({databaseUrl, adminDatabaseUrl}) =>
        databaseUrl === undefined || databaseUrl.reveal() !== adminDatabaseUrl?.reveal(),
      message: 'is the same as DATABASE_URL, which must be the host’s own role',
    },
    {
      about: 'API_TLS_CERT_FILE, API_TLS_KEY_FILE',
      needs: ['apiTlsCertFile', 'apiTlsKeyFile'],
      holds: values => (values.apiTlsCertFile === undefined) === (values.apiTlsKeyFile === undefined),
      message: 'go together; only one of them is set',
    },
    {
      about: 'API_HOST',
      needs: ['apiHost', 'apiTokensFile'],
      holds: values => isLocalApi(values) || values.apiTokensFile !== undefined,
      message: 'is not a loopback address, which needs API_TOKENS_FILE',
    },
    {
      about: 'API_HOST',
      needs: ['apiHost', 'apiTlsCertFile', 'apiLocalNetworks'],
      // Behind a published port of the host's loopback (deploy/compose.yaml) the gateway is named as local.
      holds: values =>
        isLocalApi(values) || values.apiTlsCertFile !== undefined || isSet(env, settings.apiLocalNetworks),
      message: 'is not a loopback address, which needs API_TLS_CERT_FILE and API_TLS_KEY_FILE',
    },
    {
      about: 'ALERTS_SMTP_URL, ALERTS_EMAIL_TO',
      needs: ['alertsSmtpUrl', 'alertsEmailTo'],
      holds: values => (values.alertsSmtpUrl === undefined) === (values.alertsEmailTo.length === 0),
      message: 'go together; only one of them is set',
    },
  ]
}

function isLoopback(host: string): boolean {
  return host === 'localhost' || host === '::1' || (isIP(host) === 4 && host.startsWith('127.'))
}

function valueOf(setting: Setting<unknown>, {name, text}: Written): unknown {
  try {
    return setting.read(setting.secret ? text : text.trim())
  } catch (problem) {
    const shown = setting.secret
      ? 'has a value that cannot be used'
      : `is ${JSON.stringify(redact(text.slice(0, 200)))}`
    throw new Error(`${name} ${shown}: ${messageOf(problem)}`, {cause: problem})
  }
}

type Written = {readonly name: string; readonly text: string}

/** The text of a setting and where it was written. */
async function writtenText(env: Env, setting: Setting<unknown>): Promise<Written | undefined> {
  const found: Written[] = []
  for (const name of [setting.env, ...setting.aliases]) {
    const text = env[name] ?? ''
    const file = env[`${name}_FILE`] ?? ''
    if (text !== '' && file !== '') throw new Error(`${name} and ${name}_FILE are both set; keep one`)
    if (text !== '') found.push({name, text})
    if (file !== '') found.push({name: `${name}_FILE`, text: await fileText(env, `${name}_FILE`, file)})
  }
  const [first, second] = found
  if (first && second && first.text !== second.text) {
    throw new Error(`${first.name} and ${second.name} name the same setting and differ; keep ${setting.env}`)
  }
  return first?.text.trim() === '' ? undefined : first
}

async function fileText(env: Env, name: string, file: string): Promise<string> {
  let bytes: Buffer
  try {
    bytes = readFileSync(file)
  } catch (cause) {
    throw new Error(`${name}: ${file} cannot be read (${codeOf(cause)})`, {cause})
  }
  if (!file.endsWith('.age')) return bytes.toString('utf8').replace(/\r?\n$/, '')
  const identityFile = env[settings.ageIdentityFile.env] ?? ''
  if (identityFile === '')
    throw new Error(`${name}: ${file} is encrypted; set AGE_IDENTITY_FILE to decrypt it`)
  try {
    return (await decryptAge(bytes, readFileSync(identityFile, 'utf8'))).replace(/\r?\n$/, '')
  } catch (cause) {
    throw new Error(`${name}: ${file} cannot be decrypted with AGE_IDENTITY_FILE (${messageOf(cause)})`, {
      cause,
    })
  }
}

function isSet(env: Env, {env: name}: Setting<unknown>): boolean {
  return [env[name], env[`${name}_FILE`]].some(text => text !== undefined && text !== '')
}

function conflictRules(written: string | undefined, problems: string[]): ConflictRules | undefined {
  if (written === undefined) return undefined
  const name = settings.conflictResolutionConfig.env
  const isInline = written.trimStart().startsWith('{')
  const place = isInline ? name : written
  try {
    return Object.freeze({
      place,
      document: JSON.parse(isInline ? written : readFileSync(written, 'utf8')) as unknown,
    })
  } catch (problem) {
    const why =
      problem instanceof SyntaxError
        ? `is not JSON (${problem.message})`
        : `cannot be read (${codeOf(problem)})`
    problems.push(isInline ? `${name} ${why}` : `${name}: ${written} ${why}`)
    return undefined
  }
}

function codeOf(error: unknown): string {
  return error instanceof Error && 'code' in error ? String(error.code) : messageOf(error)
}

function messageOf(error: unknown): string {
  return error instanceof Error ? error.message : String(error)
}
