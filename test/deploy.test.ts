import assert from 'node:assert/strict'
import {execFile, spawnSync} from 'node:child_process'
import {cp, mkdtemp, readFile, rm, writeFile} from 'node:fs/promises'
import {tmpdir} from 'node:os'
import {join} from 'node:path'
import {promisify} from 'node:util'
import {describe, test} from 'vitest'
import {alertRules, sectionOf, type AlertRule} from '../src/telemetry/alert.ts'
import {dashboardJson} from '../src/telemetry/dashboard.ts'
import {createMetrics} from '../src/telemetry/metrics.ts'

const run = promisify(execFile)
const dashboard = await readFile('deploy/grafana/dashboard.json', 'utf8')
const rules = await readFile('deploy/prometheus/rules.yml', 'utf8')
const ruleTests = await readFile('deploy/prometheus/rules.test.yml', 'utf8')
const operations = await readFile('docs/operations.md', 'utf8')

type Series = {readonly metric: string; readonly labels: readonly string[]}

/** Every series that /metrics can show, with its labels. A histogram is three of them. */
const series = new Map<string, Series>()
for (const {name, type, labelNames} of metricsOf()) {
  const add = (suffix: string, ...more: string[]) =>
    series.set(name + suffix, {metric: name, labels: [...labelNames, ...more]})
  if (type === 'histogram') {
    add('_bucket', 'le')
    add('_sum')
    add('_count')
  } else add('')
}
/** What Prometheus adds. */
const scraped = ['host', 'job', 'instance']

type Metric = {readonly name: string; readonly type: string; readonly labelNames: readonly string[]}

function metricsOf(): Metric[] {
  const {registry} = createMetrics()
  const all = registry.getMetricsAsArray() as unknown as {name: string; labelNames?: string[]}[]
  return all.map(metric => ({
    name: metric.name,
    type: metric.constructor.name.toLowerCase(),
    labelNames: metric.labelNames ?? [],
  }))
}

/** The series that an expression names, with the labels that it selects them by. */
function seriesIn(expression: string): {name: string; labels: string[]}[] {
  const bare = expression.replace(/\b(by|without|on|ignoring)\s*\([^)]*\)/g, ' ')
  const found: {name: string; labels: string[]}[] = []
  for (const [, name = '', selector = ''] of bare.matchAll(
    /\b([a-z_][a-z0-9_]*)\b(?!\s*\()(?:\{([^}]*)\})?/g,
  )) {
    // Words of the language, units of time, and what stands within braces or quotes.
    if (/^(by|or|and|unless|offset|bool|le|[smhd])$/.test(name)) continue
    found.push({
      name,
      labels: [...selector.matchAll(/([a-z_]+)\s*(?:=~|!=|!~|=)/g)].map(([, label = '']) => label),
    })
  }
  return found
}

/** Those names that no metric has, and labels that its metric has not. */
function unknownIn(expression: string): string[] {
  const withoutSelectors = expression.replace(/"[^"]*"/g, '""')
  const problems: string[] = []
  for (const {name, labels} of seriesIn(strip(withoutSelectors))) {
    const known = name === 'up' ? {labels: []} : series.get(name)
    if (known === undefined) problems.push(`no metric is called ${name}`)
    for (const label of labels)
      if (known !== undefined && ![...known.labels, ...scraped].includes(label))
        problems.push(`${name} has no label ${label}`)
  }
  return problems
}

/** Without ranges and Grafana's variables, which hold letters too. */
function strip(expression: string): string {
  return expression.replace(/\[[^\]]*\]/g, ' ').replace(/\boffset\s+\w+/g, ' ')
}

type Panel = {
  readonly title: string
  readonly type: string
  readonly targets?: readonly {readonly expr: string}[]
}
const {panels, templating} = JSON.parse(dashboard) as {
  panels: Panel[]
  templating: {list: {name: string; definition?: string}[]}
}
const queries = panels.flatMap(({targets = []}) => targets.map(({expr}) => expr))
const ruleExpressions = [...rules.matchAll(/expr: (?:\|\n((?: {10,}.*\n)+)|(.*)\n)/g)].map(
  ([, block, line]) => (block ?? line)!,
)
const alerts = [...rules.matchAll(/- alert: (\w+)/g)].map(([, name]) => name!)

test('what a check of an expression would miss', () => {
  assert.deepEqual(unknownIn('sum by (host) (rate(nothing_total{client="a"}[5m])) > 0.1'), [
    'no metric is called nothing_total',
  ])
  assert.deepEqual(unknownIn('sync_queue_size{client="a"} unless sync_jobs_active offset 10m'), [
    'sync_queue_size has no label client',
  ])
  assert.deepEqual(
    unknownIn('rate(sync_duration_seconds_bucket{le="1",host=~"$host"}[$__rate_interval])'),
    [],
  )
  assert.deepEqual(unknownIn('sync_duration_seconds'), ['no metric is called sync_duration_seconds'])
})

describe('the dashboard', () => {
  test('is what src/telemetry/dashboard.ts says (npm run docs writes it)', () => {
    assert.equal(dashboard, dashboardJson())
  })

  test('asks for nothing that does not exist', () => {
    assert.ok(queries.length > 40)
    assert.deepEqual(queries.flatMap(unknownIn), [])
    const definitions = templating.list.flatMap(({definition}) => definition ?? [])
    const asked = definitions.map(text => /label_values\(([^,]+(?:\{[^}]*\})?), (\w+)\)/.exec(text)!)
    for (const [, selector, label] of asked) {
      assert.deepEqual(unknownIn(selector!), [])
      const {labels} = series.get(selector!.replace(/\{.*/, ''))!
      assert.ok([...labels, ...scraped].includes(label!), label)
    }
  })

  test('shows every metric', () => {
    const shown = new Set(
      queries.flatMap(expr => seriesIn(strip(expr))).map(({name}) => series.get(name)?.metric),
    )
    const hidden = metricsOf().filter(({name}) => !shown.has(name))
    assert.deepEqual(
      hidden.map(({name}) => name),
      [],
    )
  })

  test('has a title for each panel, and none twice in a row of panels', () => {
    let inRow = new Set<string>()
    for (const {title, type} of panels) {
      if (type === 'row') inRow = new Set()
      assert.ok(title !== '' && !inRow.has(title), title)
      inRow.add(title)
    }
  })
})

describe('the rules', () => {
  test('ask for nothing that does not exist', () => {
    assert.equal(ruleExpressions.length, alerts.length)
    assert.deepEqual(ruleExpressions.flatMap(unknownIn), [])
  })

  test('each have a severity, a summary, and a section of docs/operations.md', () => {
    const anchors = anchorsOf(operations)
    for (const block of rules.split('- alert: ').slice(1)) {
      const [name] = block.split('\n')
      assert.match(block, /severity: (critical|warning)/, name)
      assert.match(block, /summary: '/, name)
      const [, page, anchor] = /runbook_url: (.+)#(.+)/.exec(block)!
      assert.equal(page, 'docs/operations.md', name)
      assert.ok(anchors.has(anchor!), `${name}: there is no section ${anchor}`)
    }
  })

  test('are each tested for when they keep quiet and when they fire', () => {
    for (const name of alerts) {
      assert.ok(ruleTests.includes(`name: ${name} keeps quiet`), name)
      assert.ok(ruleTests.includes(`name: ${name} fires`), name)
    }
  })

  const hasPromtool = spawnSync('promtool', ['--version']).error === undefined
  if (!hasPromtool)
    process.stderr.write(
      'promtool is not installed: the Prometheus rules are not run (apt-get install prometheus)\n',
    )

  test.skipIf(!hasPromtool)('fire and keep quiet as their tests say (promtool)', async () => {
    const {stdout} = await run('promtool', ['test', 'rules', 'deploy/prometheus/rules.test.yml'])
    assert.match(stdout, /SUCCESS/)
    await run('promtool', ['check', 'config', 'deploy/prometheus/prometheus.yml'])
  })

  test.skipIf(!hasPromtool)('that are changed fail their tests', async () => {
    const folder = await mkdtemp(join(tmpdir(), 'owsync-rules-'))
    try {
      await cp('deploy/prometheus', folder, {recursive: true})
      await writeFile(join(folder, 'rules.yml'), rules.replaceAll('> 600', '> 6000'))
      const failed = await run('promtool', ['test', 'rules', join(folder, 'rules.test.yml')]).catch(
        (error: unknown) => error as {stdout: string; stderr: string},
      )
      assert.match(failed.stdout + failed.stderr, /FAILED[^]*OwsyncLagHigh/)
    } finally {
      await rm(folder, {recursive: true})
    }
  })
})

test('every alert that a node sends has its section in docs/operations.md', () => {
  const anchors = anchorsOf(operations)
  for (const rule of Object.keys(alertRules) as AlertRule[]) {
    const [page, anchor] = sectionOf({rule}).split('#')
    assert.equal(page, 'docs/operations.md')
    assert.ok(anchors.has(anchor!), `there is no section ${anchor}`)
  }
})

function anchorsOf(page: string): Set<string> {
  const headings = [...page.matchAll(/^#+ (.+)$/gm)].map(([, heading]) => heading!)
  return new Set(
    headings.map(heading =>
      heading
        .toLowerCase()
        .replace(/[^\p{L}\p{N}_ -]/gu, '')
        .replaceAll(' ', '-'),
    ),
  )
}
