import assert from 'node:assert/strict'
import {readFileSync} from 'node:fs'
import {mkdir, writeFile} from 'node:fs/promises'
import {join} from 'node:path'
import {DatabaseSync} from 'node:sqlite'
import {afterAll, beforeAll, expect, test} from 'vitest'
import {newToken} from '../../src/api/tokens.ts'
import {raw} from '../../src/postgres/sql.ts'
import {apiOf, leaderOf, patient, startNode, type NodeProcess} from '../nodes.ts'
import {httpReceiver, mailReceiver, type HttpReceiver, type MailReceiver} from '../receivers.ts'
import {testSite, type Site} from '../site.ts'

// A node that logs all it can, whose receivers of alerts fail, whose rows are refused, and whose callers are wrong: no
// secret and nothing of a row is in what it logs, shows and sends.

/** Nothing else looks like these. */
const secrets = {
  slack: 'S3CRET-slack-path',
  webhookPath: 'S3CRET-webhook-path',
  webhookPassword: 'S3CRET-webhook-password',
  pagerduty: 'S3CRET-routing-key',
  smtp: 'S3CRET-mail-password',
  announce: 'S3CRET-announce-path',
}
const row = {key: 'R0W-key', title: 'R0W-title', refused: 'R0W-refused', long: 'R0W-long'}
/** What a caller sends may come back to that caller, and goes nowhere else. */
const sent = {token: 'S3NT-wrong-token', name: 'S3NT-name', value: 'S3NT-value'}

let site: Site
let node: NodeProcess
let http: HttpReceiver
let mail: MailReceiver
let url: string
let token: string
let tokenLine: string
const shown = new Map<string, string>()

beforeAll(async () => {
  site = await testSite()
  http = await httpReceiver()
  http.answer = 500
  mail = await mailReceiver('nobody:nothing')
  const made = newToken('test', 'operate')
  token = made.token
  tokenLine = made.line
  await mkdir(site.stateDir, {recursive: true})
  await writeFile(join(site.stateDir, 'tokens'), `${tokenLine}\n`, {mode: 0o600})
  const {host} = new URL(http.url)
  node = startNode(site, 'node-a', {
    env: {
      LOG_LEVEL: 'trace',
      API_TOKENS_FILE: join(site.stateDir, 'tokens'),
      ALERTS_SLACK_URL: `${http.url}/${secrets.slack}`,
      ALERTS_WEBHOOK_URL: `http://user:${secrets.webhookPassword}@${host}/${secrets.webhookPath}`,
      ALERTS_PAGERDUTY_KEY: secrets.pagerduty,
      ALERTS_SMTP_URL: `smtp://user:${secrets.smtp}@127.0.0.1:${mail.port}`,
      ALERTS_EMAIL_TO: 'ops@site.example',
      // Nobody answers there, and it must not be asked in earnest.
      HTTPS_PROXY: 'http://127.0.0.1:9',
      NODE_USE_ENV_PROXY: '1',
    },
  })
})

afterAll(async () => {
  await node[Symbol.asyncDispose]()
  await http[Symbol.asyncDispose]()
  await mail[Symbol.asyncDispose]()
  await site[Symbol.asyncDispose]()
})

test('a client is synced, a row of it refused, a job fails, and receivers of alerts are told in vain', async () => {
  await leaderOf(site, [node])
  url = await apiOf(node)
  const file = join(site.folder, 'acme.db')
  using source = new DatabaseSync(file, {timeout: 5_000})
  source.exec('create table chat (id text primary key, title text, n int)')
  const insert = source.prepare('insert into chat values (?, ?, ?)')
  insert.run(row.key, row.title, 1)
  insert.run(`${row.key}-2`, row.long.repeat(20_000), 2)
  await register('acme', {
    sqlite_path: file,
    sync_schedule: 'live',
    sync_enabled: true,
    config: {webhook: `${http.url}/${secrets.announce}`},
  })
  await reaches('acme', 1n)
  await site.db`${raw("alter table acme.chat add constraint not_refused check (title not like 'R0W-refused%')")}`
  insert.run('refused-key', row.refused, 3)
  source.exec(`update chat set n = 'R0W-no-number' where id = '${row.key}'`)
  await expect
    .poll(
      async () => (await site.db`select from sync_metadata.row_quarantine where resolved_at is null`).length,
      patient,
    )
    .toBe(1)

  const broken = join(site.folder, 'broken.db')
  await writeFile(broken, `SQLite format 3\0 ${row.title}`.padEnd(8_192, row.title))
  await register('broken', {sqlite_path: broken, sync_interval: 10, sync_enabled: true})
  await expect
    .poll(
      async () => (await site.db`select from sync_metadata.sync_jobs where error_code is not null`).length,
      patient,
    )
    .toBeGreaterThanOrEqual(2)
  await expect.poll(() => new Set(failedChannels()).size, {...patient, timeout: 90_000}).toBe(4)
})

test('every address of the API is asked, rightly and wrongly', async () => {
  const {body: spec} = await ask('GET', '/docs/json', {token})
  const paths = (JSON.parse(spec) as {paths: Record<string, Record<string, unknown>>}).paths
  assert.ok(Object.keys(paths).length > 15)
  const {jobs} = JSON.parse((await ask('GET', '/api/v1/jobs', {token})).body) as {jobs: {job_id: string}[]}
  assert.ok(jobs.length > 0)
  for (const [path, methods] of Object.entries(paths)) {
    if (path.endsWith('/events')) continue
    const place = path
      .replace('{client}', 'acme')
      .replace('{key}', 'alerts.leader')
      .replace('/jobs/{id}', `/jobs/${jobs[0]!.job_id}`)
      .replace('{id}', '5f0c1f2e-8f34-4a83-9f0e-2b1b0f0f0f0f')
    if ('get' in methods) {
      await ask('GET', place, {token})
      await ask('GET', `${place}?limit=3`, {token})
    }
    await ask('GET', place, {token: sent.token})
    for (const method of Object.keys(methods).filter(method => method !== 'get' && method !== 'delete')) {
      const name = method.toUpperCase()
      await ask(name, place, {token: sent.token, body: {value: sent.value}})
      await ask(name, place, {token, body: `{"value": "${sent.value}`})
      await ask(name, place, {token, body: {[sent.name]: sent.value, password: sent.value}})
    }
  }
  await ask('GET', `/api/v1/nothing?token=${sent.token}`, {token})
  const response = await fetch(`${url}/api/v1/events`, {
    headers: {authorization: `Bearer ${token}`},
    signal: AbortSignal.timeout(3_000),
  })
  let events = ''
  try {
    for await (const chunk of response.body!.pipeThrough(new TextDecoderStream())) events += chunk
  } catch (error) {
    assert.equal((error as Error).name, 'TimeoutError')
  }
  assert.ok(events.length > 0)
  shown.set('GET /api/v1/events', events)
})

test('what is looked through is really there', async () => {
  const metrics = await ask('GET', '/metrics', {})
  assert.match(metrics.body, /sync_rows_processed_total\{client="acme",table="chat"\}/)
  assert.ok(node.log.length > 20)
  assert.ok(node.log.some(({client}) => client === 'acme'))
  assert.ok(node.log.some(({level}) => level === 'debug' || level === 'trace'))
  assert.ok([...shown.values()].some(text => text.includes('"acme"')))
  assert.ok(http.posts.some(({path}) => path.includes(secrets.slack)))
  assert.ok(http.posts.some(({path}) => path.includes(secrets.announce)))
  assert.ok(node.workers().length > 0)
  assert.ok(mail.logins.some(login => login.includes(secrets.smtp)))
})

test('no secret is in the log, in metrics, in answers, or in the arguments of a process', () => {
  const forbidden = [...Object.values(secrets), token, site.host.endpoint.password!, hashOf(tokenLine)]
  assert.deepEqual(found(forbidden, [...logged(), ...shown, ...processes()]), [])
})

test('nothing of a row is in the log, in metrics, in answers, or in what is sent', () => {
  const posts = http.posts.map(({path, body}) => [`sent to ${path}`, JSON.stringify(body)] as const)
  assert.deepEqual(found(Object.values(row), [...logged(), ...shown, ...processes(), ...posts]), [])
})

test('what callers send is not in the log or in metrics', () => {
  const metrics = [...shown].filter(([name]) => name.includes('/metrics'))
  assert.ok(metrics.length > 0)
  assert.deepEqual(found(Object.values(sent), [...logged(), ...metrics]), [])
})

type Place = readonly [name: string, text: string]

function found(words: readonly string[], places: readonly Place[]): string[] {
  return places.flatMap(([name, text]) =>
    words.filter(word => text.includes(word)).map(word => `${word} in ${name}: ${text.slice(0, 600)}`),
  )
}

function logged(): Place[] {
  return node.log.map(line => [`log: ${line.msg}`, JSON.stringify(line)] as const)
}

function processes(): Place[] {
  return [node.pid, ...node.workers()].map(
    pid => [`arguments of ${pid}`, readFileSync(`/proc/${pid}/cmdline`, 'utf8')] as const,
  )
}

function failedChannels(): string[] {
  return node.log.filter(({msg}) => msg === 'an alert was not delivered').map(({channel}) => String(channel))
}

async function register(name: string, settings: object): Promise<void> {
  await site.host`select sync_metadata.register_deployment(${name}, ${JSON.stringify(settings)})`
}

async function reaches(client: string, generation: bigint): Promise<void> {
  await expect
    .poll(async () => {
      const [found] = await site.db<{generation: bigint}>`
        select generation from sync_metadata.client_deployments where client_name = ${client}`
      return found!.generation
    }, patient)
    .toBeGreaterThanOrEqual(generation)
}

async function ask(
  method: string,
  path: string,
  {token: bearer, body}: {readonly token?: string; readonly body?: unknown},
): Promise<{readonly status: number; readonly body: string}> {
  const response = await fetch(`${url}${path}`, {
    method,
    headers: {
      ...(bearer !== undefined && {authorization: `Bearer ${bearer}`}),
      ...(body !== undefined && {'content-type': 'application/json'}),
    },
    ...(body !== undefined && {body: typeof body === 'string' ? body : JSON.stringify(body)}),
    signal: AbortSignal.timeout(30_000),
  })
  const text = `${JSON.stringify([...response.headers])} ${await response.text()}`
  shown.set(`${method} ${path} ${shown.size}`, text)
  return {status: response.status, body: text.slice(text.indexOf('] ') + 2)}
}

function hashOf(line: string): string {
  return line.split(' ')[2]!
}
