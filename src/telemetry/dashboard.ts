import {mkdirSync, writeFileSync} from 'node:fs'

// The Grafana dashboard as code: deploy/grafana/dashboard.json is what this says (npm run docs writes it).

type Unit = 'short' | 's' | 'bytes' | 'percentunit' | 'dateTimeFromNow' | 'none'

type Query = {readonly expr: string; readonly legend: string}

type PanelSpec = {
  readonly title: string
  /** What a person reads from it. */
  readonly about: string
  readonly unit: Unit
  readonly queries: readonly Query[]
  readonly kind?: 'timeseries' | 'stat' | 'table'
  /** From this value on it is shown in red. */
  readonly red?: number
  /** Of 24. */
  readonly width?: number
}

const all = 'host=~"$host"'
const each = 'host=~"$host",client=~"$client"'

const q = (expr: string, legend: string): Query => ({expr, legend})
const rate = (metric: string, by: string, labels = all): string =>
  `sum by (${by}) (rate(${metric}{${labels}}[$__rate_interval]))`
const increase = (metric: string, by: string, labels = all): string =>
  `sum by (${by}) (increase(${metric}{${labels}}[$__range]))`
const quantile = (share: number, metric: string, by: string, labels = all): string =>
  `histogram_quantile(${share}, sum by (${by}, le) (rate(${metric}_bucket{${labels}}[$__rate_interval])))`

const rows: Readonly<Record<string, readonly PanelSpec[]>> = {
  'At a glance': [
    {
      title: 'Leaders of each cluster',
      about: 'Exactly one, but for the seconds of a failover.',
      unit: 'none',
      kind: 'stat',
      queries: [q(`sum by (cluster) (sync_container_is_leader{${all}})`, '{{cluster}}')],
      width: 4,
    },
    {
      title: 'Oldest change not mirrored',
      about: 'The age of the oldest version of a source that was seen and is not applied; 0 when all are.',
      unit: 's',
      kind: 'stat',
      red: 600,
      queries: [q(`max(state_sync_lag_seconds{${each}})`, 'lag')],
      width: 4,
    },
    {
      title: 'Failed syncs',
      about: 'In the time shown.',
      unit: 'short',
      kind: 'stat',
      red: 1,
      queries: [q(`sum(increase(sync_operations_total{${each},status="failed"}[$__range]))`, 'failed')],
      width: 4,
    },
    {
      title: 'Conflicts waiting',
      about: 'For a person to decide.',
      unit: 'short',
      kind: 'stat',
      red: 1,
      queries: [q(`sum(max by (host, client) (conflicts_unresolved{${each}}))`, 'waiting')],
      width: 4,
    },
    {
      title: 'Rows not applied',
      about: 'Set aside because Postgres refused them, in the time shown.',
      unit: 'short',
      kind: 'stat',
      red: 1,
      queries: [q(`sum(increase(sync_rows_failed_total{${each}}[$__range]))`, 'rows')],
      width: 4,
    },
    {
      title: 'Mirrored',
      about: 'Size of all clients’ schemas in Postgres.',
      unit: 'bytes',
      kind: 'stat',
      queries: [q(`sum(max by (host, client) (target_size_bytes{${each}}))`, 'size')],
      width: 4,
    },
  ],
  Syncs: [
    {
      title: 'Lag',
      about: 'What was seen in a source and is not applied yet, by the age of its oldest version.',
      unit: 's',
      red: 600,
      queries: [q(`max by (client) (state_sync_lag_seconds{${each}})`, '{{client}}')],
    },
    {
      title: 'Last successful sync',
      about: 'When the mirror was last found or made equal to its source.',
      unit: 'dateTimeFromNow',
      kind: 'table',
      queries: [q(`max by (client) (last_successful_sync_timestamp{${each}}) * 1000`, '{{client}}')],
    },
    {
      title: 'Syncs by how they ended',
      about: 'Each second.',
      unit: 'short',
      queries: [q(rate('sync_operations_total', 'status', each), '{{status}}')],
    },
    {
      title: 'Duration of a sync',
      about: 'Of those that did something.',
      unit: 's',
      red: 60,
      queries: [
        q(quantile(0.5, 'sync_duration_seconds', 'client', each), '{{client}}, median'),
        q(quantile(0.95, 'sync_duration_seconds', 'client', each), '{{client}}, p95'),
      ],
    },
    {
      title: 'Rows written',
      about: 'Rows of each table each second, tombstones included.',
      unit: 'short',
      queries: [q(rate('sync_rows_processed_total', 'client, table', each), '{{client}}.{{table}}')],
    },
    {
      title: 'Rows refused',
      about: 'In the time shown, by table and reason.',
      unit: 'short',
      kind: 'table',
      queries: [
        q(
          increase('sync_rows_failed_total', 'client, table, error_type', each),
          '{{client}}.{{table}} {{error_type}}',
        ),
      ],
    },
    {
      title: 'Bytes of row data',
      about: 'Sent to Postgres or fetched from it, each second.',
      unit: 'bytes',
      queries: [
        q(rate('sync_bytes_transferred_total', 'client, direction', each), '{{client}} {{direction}}'),
      ],
    },
    {
      title: 'Size in Postgres',
      about: 'Of each client’s schema.',
      unit: 'bytes',
      queries: [q(`max by (client) (target_size_bytes{${each}})`, '{{client}}')],
    },
    {
      title: 'Last verification',
      about: 'When the mirror was last compared with its source, row by row.',
      unit: 'dateTimeFromNow',
      kind: 'table',
      queries: [q(`max by (client) (last_verified_timestamp{${each}}) * 1000`, '{{client}}')],
    },
  ],
  'The app’s files': [
    {
      title: 'Longest lock on a source',
      about: 'In the last sync; LOCK_BUDGET_MS bounds it.',
      unit: 's',
      red: 0.1,
      queries: [q(`max by (client) (sync_lock_hold_seconds{${each}})`, '{{client}}')],
    },
    {
      title: 'Reads that gave way to the app',
      about: 'Each second.',
      unit: 'short',
      queries: [q(rate('sync_lock_busy_total', 'client', each), '{{client}}')],
    },
  ],
  Conflicts: [
    {
      title: 'Conflicts met',
      about: 'In the time shown, by table and kind.',
      unit: 'short',
      queries: [
        q(increase('conflicts_detected_total', 'client, table, type', each), '{{client}}.{{table}} {{type}}'),
      ],
    },
    {
      title: 'Conflicts decided',
      about: 'In the time shown, by the rule that did.',
      unit: 'short',
      queries: [q(increase('conflicts_resolved_total', 'client, strategy', each), '{{client}} {{strategy}}')],
    },
    {
      title: 'Conflicts waiting',
      about: 'For a person to decide.',
      unit: 'short',
      queries: [q(`max by (client) (conflicts_unresolved{${each}})`, '{{client}}')],
    },
    {
      title: 'Time to decide a conflict',
      about: 'p95, by the rule that did.',
      unit: 's',
      queries: [q(quantile(0.95, 'conflict_resolution_duration_seconds', 'strategy'), '{{strategy}}')],
    },
  ],
  Cluster: [
    {
      title: 'Who leads',
      about: 'One line at 1, all others at 0.',
      unit: 'none',
      queries: [q(`max by (cluster, node_id) (sync_container_is_leader{${all}})`, '{{node_id}}')],
    },
    {
      title: 'Time left of the lease',
      about: 'It is renewed long before it is over.',
      unit: 's',
      queries: [q(`max by (cluster) (leader_lease_expires_timestamp{${all}}) - time()`, '{{cluster}}')],
    },
    {
      title: 'Epoch',
      about: 'Grows by one with each leader.',
      unit: 'none',
      queries: [q(`max by (cluster) (leader_lease_epoch{${all}})`, '{{cluster}}')],
    },
    {
      title: 'Elections',
      about: 'In the time shown: won, or lost by a leader.',
      unit: 'short',
      queries: [q(increase('leader_elections_total', 'instance, result'), '{{instance}} {{result}}')],
    },
    {
      title: 'Takeovers',
      about: 'In the time shown: who from whom, and why.',
      unit: 'short',
      kind: 'table',
      queries: [
        q(
          increase('failover_events_total', 'from_node, to_node, reason'),
          '{{from_node}} to {{to_node}}: {{reason}}',
        ),
      ],
    },
    {
      title: 'Heartbeats that failed',
      about: 'Each second; two in a row are survived.',
      unit: 'short',
      queries: [q(rate('heartbeat_failures_total', 'node_id'), '{{node_id}}')],
    },
    {
      title: 'Writes that the fence refused',
      about: 'Of a leader that was one no more. Each was rolled back.',
      unit: 'short',
      queries: [q(increase('fenced_writes_total', 'instance'), '{{instance}}')],
    },
    {
      title: 'Uptime of the nodes',
      about: 'Falls to 0 when a node is started again.',
      unit: 's',
      queries: [q(`max by (node_id) (container_uptime_seconds{${all}})`, '{{node_id}}')],
    },
    {
      title: 'Versions',
      about: 'What runs.',
      unit: 'none',
      kind: 'table',
      queries: [
        q(
          `max by (instance, version, node_version) (build_info{${all}})`,
          '{{instance}}: {{version}}, Node {{node_version}}',
        ),
      ],
    },
  ],
  'Jobs and state': [
    {
      title: 'Jobs',
      about: 'That wait, and that run.',
      unit: 'short',
      queries: [
        q(`max by (host) (sync_queue_size{${all}})`, '{{host}} waiting'),
        q(`max by (host) (sync_jobs_active{${all}})`, '{{host}} running'),
      ],
    },
    {
      title: 'From due to done',
      about: 'How long a job takes from the time that it could run.',
      unit: 's',
      queries: [q(quantile(0.95, 'sync_queue_processing_time_seconds', 'host'), '{{host}}, p95')],
    },
    {
      title: 'Cache hits',
      about: 'Share of control documents that needed no question to Postgres.',
      unit: 'percentunit',
      queries: [
        q(
          `${rate('state_cache_hits_total', 'instance')} / (${rate('state_cache_hits_total', 'instance')} + ${rate('state_cache_misses_total', 'instance')})`,
          '{{instance}}',
        ),
      ],
    },
    {
      title: 'Cache invalidations',
      about: 'Each second, by what caused them.',
      unit: 'short',
      queries: [q(rate('state_cache_invalidations_total', 'instance, reason'), '{{instance}} {{reason}}')],
    },
    {
      title: 'Documents in the cache',
      about: '',
      unit: 'short',
      queries: [q(`max by (instance) (state_cache_size{${all}})`, '{{instance}}')],
    },
  ],
  'Postgres and API': [
    {
      title: 'Connections',
      about: 'Open ones of each pool, and what is left.',
      unit: 'short',
      queries: [
        q(`max by (instance, pool_name) (db_pool_size{${all}})`, '{{instance}} {{pool_name}} open'),
        q(`max by (instance, pool_name) (db_pool_available{${all}})`, '{{instance}} {{pool_name}} free'),
      ],
    },
    {
      title: 'Statements',
      about: 'Each second, by what they are and how they ended.',
      unit: 'short',
      queries: [q(rate('db_queries_total', 'query_type, status'), '{{query_type}} {{status}}')],
    },
    {
      title: 'Duration of a statement',
      about: 'p95, by what it is. A COPY takes as long as what feeds it.',
      unit: 's',
      queries: [q(quantile(0.95, 'db_query_duration_seconds', 'query_type'), '{{query_type}}')],
    },
    {
      title: 'Failures',
      about: 'Each second, by where and what: docs/errors.md explains the codes.',
      unit: 'short',
      queries: [q(rate('errors_total', 'component, error_type'), '{{component}} {{error_type}}')],
    },
    {
      title: 'Requests to the API',
      about: 'Each second, by how they were answered.',
      unit: 'short',
      queries: [q(rate('http_request_duration_seconds_count', 'route, status'), '{{route}} {{status}}')],
    },
    {
      title: 'Time to answer',
      about: 'p95, by route.',
      unit: 's',
      queries: [q(quantile(0.95, 'http_request_duration_seconds', 'route'), '{{route}}')],
    },
  ],
}

/** @returns the dashboard as Grafana imports it: the data source and the hosts are chosen there. */
export function dashboard(): object {
  const datasource = {type: 'prometheus', uid: '${datasource}'}
  const panels: object[] = []
  let y = 0
  let id = 0
  for (const [title, specs] of Object.entries(rows)) {
    panels.push({
      id: ++id,
      type: 'row',
      title,
      collapsed: false,
      gridPos: {h: 1, w: 24, x: 0, y: y++},
      panels: [],
    })
    let x = 0
    let height = 0
    for (const spec of specs) {
      const {kind = 'timeseries', width = 8} = spec
      const h = kind === 'stat' ? 4 : 8
      if (x + width > 24) {
        x = 0
        y += height
      }
      height = h
      panels.push({...panelOf(spec, ++id, datasource), gridPos: {h, w: width, x, y}})
      x += width
    }
    y += height
  }
  const variable = (name: string, label: string, query: string) => ({
    name,
    label,
    type: 'query',
    datasource,
    query: {query, refId: name},
    definition: query,
    refresh: 2,
    sort: 1,
    multi: true,
    includeAll: true,
    allValue: '.*',
    current: {selected: true, text: ['All'], value: ['$__all']},
  })
  return {
    uid: 'openwebui-sync',
    title: 'openwebui-sync',
    description: 'Mirrors of Open WebUI databases: what is fresh, who leads, what waits for a person.',
    tags: ['openwebui-sync'],
    schemaVersion: 39,
    version: 1,
    editable: true,
    graphTooltip: 1,
    timezone: 'browser',
    refresh: '30s',
    time: {from: 'now-6h', to: 'now'},
    templating: {
      list: [
        {name: 'datasource', label: 'Prometheus', type: 'datasource', query: 'prometheus', current: {}},
        variable('host', 'Host', 'label_values(sync_container_is_leader, host)'),
        variable('client', 'Client', 'label_values(sync_operations_total{host=~"$host"}, client)'),
      ],
    },
    annotations: {list: []},
    links: [],
    panels,
  }
}

function panelOf(
  {title, about, unit, queries, kind = 'timeseries', red}: PanelSpec,
  id: number,
  datasource: object,
): object {
  const steps = [{color: 'green', value: null}, ...(red === undefined ? [] : [{color: 'red', value: red}])]
  const isNow = kind !== 'timeseries'
  return {
    id,
    type: kind,
    title,
    description: about,
    datasource,
    targets: queries.map(({expr, legend}, i) => ({
      refId: String.fromCharCode(65 + i),
      datasource,
      expr,
      legendFormat: legend,
      ...(isNow && {instant: true, range: false}),
      ...(kind === 'table' && {format: 'table'}),
    })),
    fieldConfig: {
      defaults: {
        unit,
        ...(unit === 'short' || unit === 'none' ? {decimals: 0} : {}),
        color: {mode: kind === 'stat' ? 'thresholds' : 'palette-classic'},
        thresholds: {mode: 'absolute', steps},
        ...(kind === 'timeseries' && {
          custom: {
            fillOpacity: 8,
            showPoints: 'never',
            thresholdsStyle: {mode: red === undefined ? 'off' : 'dashed'},
          },
        }),
      },
      overrides: [],
    },
    ...(kind === 'timeseries' && {
      options: {legend: {displayMode: 'list', placement: 'bottom'}, tooltip: {mode: 'multi', sort: 'desc'}},
    }),
    ...(kind === 'stat' && {
      options: {reduceOptions: {calcs: ['lastNotNull']}, colorMode: 'value', graphMode: 'none'},
    }),
    ...(kind === 'table' && {
      options: {showHeader: true},
      transformations: [
        {id: 'organize', options: {excludeByName: {Time: true}, renameByName: {Value: title}}},
      ],
    }),
  }
}

/** @returns the file's text. */
export function dashboardJson(): string {
  return `${JSON.stringify(dashboard(), null, 2)}\n`
}

if (import.meta.main) {
  const file = new URL('../../deploy/grafana/dashboard.json', import.meta.url)
  mkdirSync(new URL('.', file), {recursive: true})
  writeFileSync(file, dashboardJson())
}
