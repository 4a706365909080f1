import {
  choice,
  deleteGuard,
  duration,
  flag,
  list,
  networks,
  path,
  paths,
  secret,
  secretUrl,
  size,
  text,
  url,
  wholeNumber,
  type Setting,
} from './kinds.ts'

// Every setting there is. `Config`, --help and docs/settings.md come from here; a setting exists because two sites
// need different values.

const postgres = {
  databaseUrl: secretUrl(
    'DATABASE_URL',
    'Postgres, as this host’s own role. Without it the embedded Postgres is used.',
    ['postgres', 'postgresql'],
  ),
  adminDatabaseUrl: secretUrl(
    'ADMIN_DATABASE_URL',
    'Postgres as its owner; only for `db`, `cluster deploy|deregister|cleanup` and `client deregister --drop-schema`. Never stored, never given to a node.',
    ['postgres', 'postgresql'],
  ),
  dbSsl: choice(
    'DB_SSL',
    'How the server’s certificate is checked. Loopback addresses and Unix sockets need no TLS.',
    ['verify-full', 'disable'],
    'verify-full',
  ),
  dbSslCaFile: path(
    'DB_SSL_CA_FILE',
    'Certificates to trust instead of those Node comes with: Supabase’s, or your own CA’s, as PEM.',
  ),
  dbSizeLimitBytes: size(
    'DB_SIZE_LIMIT',
    'What the database may take, as its plan or its disk says: an alert comes at 80 % of it.',
  ),
} as const

/** What the nodes of a cluster may be called. */
export const nodeRoles = ['node-a', 'node-b', 'node-c'] as const

const node = {
  clusterName: text(
    'CLUSTER_NAME',
    'Name of this host’s nodes; must be the cluster that the database role belongs to.',
    {
      aliases: ['HOST_NAME'],
      shownDefault: 'the host’s name',
      pattern: /^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$/,
      shape: 'up to 63 letters, digits, ".", "_" or "-"',
    },
  ),
  role: choice(
    'ROLE',
    'Which of the cluster’s nodes this one is. Two do; a third helps while a host is being moved.',
    nodeRoles,
    'node-a',
    {synonyms: {primary: 'node-a', secondary: 'node-b'}},
  ),
  leaseDurationMs: duration('LEASE_DURATION', 'How long a lease lasts without a renewal.', '10s', {
    atLeast: '2s',
  }),
  heartbeatIntervalMs: duration(
    'HEARTBEAT_INTERVAL',
    'How often a node renews its lease and says it is alive.',
    '2.5s',
    {
      atLeast: '100ms',
    },
  ),
  cacheTtlMs: duration(
    'CACHE_TTL',
    'How long a control document is kept without asking Postgres again.',
    '300s',
  ),
  stateDir: path(
    'STATE_DIR',
    'Where sidecars, locks and the embedded Postgres live; both nodes of a host share it.',
    {
      shownDefault: '~/.local/state/openwebui-sync, as root /var/lib/openwebui-sync',
    },
  ),
  ageIdentityFile: path(
    'AGE_IDENTITY_FILE',
    'age identities that decrypt a NAME_FILE whose name ends in .age.',
  ),
} as const

const api = {
  apiHost: text('API_HOST', 'Address the API and the dashboard listen on.', {shownDefault: '127.0.0.1'}),
  apiPort: wholeNumber(
    'API_PORT',
    'Port the API and the dashboard listen on; 0 takes a free one.',
    undefined,
    {
      atLeast: 0,
      atMost: 65_535,
      shownDefault: '9443, for node-b 9444, for node-c 9445',
    },
  ),
  apiTokensFile: path(
    'API_TOKENS_FILE',
    'Who may use the API: lines of `name scope sha256hex`, which `owsync token add` writes.',
    {shownDefault: 'api-tokens in STATE_DIR'},
  ),
  apiTlsCertFile: path('API_TLS_CERT_FILE', 'Certificate of the API, as PEM.'),
  apiTlsKeyFile: path('API_TLS_KEY_FILE', 'Private key of the API, as PEM.'),
  apiLocalNetworks: networks(
    'API_LOCAL_NETWORKS',
    'From where health and metrics may be read without a token.',
    '127.0.0.0/8,::1',
  ),
  enableMetrics: flag('ENABLE_METRICS', 'Whether /metrics is served.', true),
} as const

const sync = {
  defaultSyncIntervalMs: duration(
    'DEFAULT_SYNC_INTERVAL',
    'How often a deployment is synced that has no interval of its own.',
    '300s',
    {atLeast: '10s'},
  ),
  batchSizeRows: wholeNumber(
    'BATCH_SIZE',
    'Rows sent to Postgres together; 8 MB end a batch sooner.',
    1_000,
    {
      atLeast: 1,
      atMost: 1_000_000,
    },
  ),
  maxSyncWorkers: wholeNumber('MAX_SYNC_WORKERS', 'Deployments synced at the same time.', 2, {
    atLeast: 1,
    atMost: 64,
  }),
  syncQueueSize: wholeNumber('SYNC_QUEUE_SIZE', 'Jobs that may wait before more are refused.', 1_000, {
    atLeast: 1,
  }),
  syncTimeoutMs: duration('SYNC_TIMEOUT', 'How long a sync may go without progress.', '600s', {
    atLeast: '1s',
  }),
  lockBudgetMs: wholeNumber(
    'LOCK_BUDGET_MS',
    'Longest time a lock on a source is held, in milliseconds.',
    25,
    {
      atLeast: 1,
      atMost: 1_000,
    },
  ),
  deleteGuard: deleteGuard(
    'DELETE_GUARD',
    'A cut that deletes more rows of a table than this, in number and in share, waits for a person.',
    '100,20%',
  ),
  tombstoneRetentionMs: duration(
    'TOMBSTONE_RETENTION',
    'How long a deleted row is kept in the target.',
    '30d',
  ),
  sqliteRoots: paths('SQLITE_ROOTS', 'Folders searched for SQLite files of deployments without a container.'),
  conflictResolutionConfig: text(
    'CONFLICT_RESOLUTION_CONFIG',
    'Conflict rules: a JSON file, or the JSON itself.',
    {
      shape: 'path or JSON',
    },
  ),
  dockerHost: url('DOCKER_HOST', 'The Docker Engine’s socket.', 'unix:///var/run/docker.sock', [
    'unix',
    'tcp',
    'http',
    'https',
    'ssh',
  ]),
} as const

const telemetry = {
  logLevel: choice(
    'LOG_LEVEL',
    'What is logged: this level and the more serious ones.',
    ['fatal', 'error', 'warn', 'info', 'debug', 'trace', 'silent'],
    'info',
  ),
  logFormat: choice('LOG_FORMAT', 'How a log line looks.', ['json', 'pretty'], undefined, {
    shownDefault: 'pretty on a terminal, else json',
  }),
  alertsSlackUrl: secretUrl('ALERTS_SLACK_URL', 'Slack incoming webhook that gets alerts.', [
    'https',
    'http',
  ]),
  alertsWebhookUrl: secretUrl('ALERTS_WEBHOOK_URL', 'Webhook that gets alerts as JSON.', ['https', 'http']),
  alertsPagerdutyKey: secret('ALERTS_PAGERDUTY_KEY', 'PagerDuty Events v2 integration key.'),
  alertsSmtpUrl: secretUrl(
    'ALERTS_SMTP_URL',
    'Mail server that sends alerts, with its login; `?from=ADDRESS` names the sender.',
    ['smtp', 'smtps'],
  ),
  alertsEmailTo: list('ALERTS_EMAIL_TO', 'Who gets alerts by e-mail.'),
} as const

/** The settings under the headings they are shown with. */
export const groups: Readonly<Record<string, Readonly<Record<string, Setting<unknown>>>>> = {
  Postgres: postgres,
  Node: node,
  'API and dashboard': api,
  Sync: sync,
  'Logs and alerts': telemetry,
}

export const settings = {...postgres, ...node, ...api, ...sync, ...telemetry}

/** What the settings read as, before the defaults that depend on others. */
export type Read = {
  readonly [K in keyof typeof settings]: (typeof settings)[K] extends Setting<infer T> ? T : never
}
