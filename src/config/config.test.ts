import assert from 'node:assert/strict'
import {mkdtempSync, rmSync, writeFileSync} from 'node:fs'
import {homedir, hostname, tmpdir} from 'node:os'
import {join} from 'node:path'
import {inspect} from 'node:util'
import {armor, Encrypter, generateX25519Identity, identityToRecipient} from 'age-encryption'
import {afterAll, describe, test} from 'vitest'
import {ConfigError, loadConfig, type Config, type Env} from './config.ts'
import {parseDuration} from './kinds.ts'

const folder = mkdtempSync(join(tmpdir(), 'owsync-config-'))
afterAll(() => {
  rmSync(folder, {recursive: true})
})

test('nothing set is a working configuration', async () => {
  const config = await loadConfig({})
  assert.equal(config.databaseUrl, undefined)
  assert.equal(config.clusterName, hostname())
  assert.equal(config.role, 'node-a')
  assert.equal(config.apiHost, '127.0.0.1')
  assert.equal(config.apiPort, 9443)
  assert.equal(config.leaseDurationMs, 10_000)
  assert.equal(config.heartbeatIntervalMs, 2_500)
  assert.deepEqual(config.deleteGuard, {rows: 100, share: 0.2})
  assert.equal(
    config.stateDir,
    process.getuid?.() === 0 ? '/var/lib/openwebui-sync' : join(homedir(), '.local/state/openwebui-sync'),
  )
})

test('a configuration cannot be changed', async () => {
  const config = await loadConfig({})
  assert.throws(() => Object.assign(config, {apiPort: 1}), TypeError)
  assert.throws(() => Object.assign(config.sqliteRoots, {0: '/etc'}), TypeError)
})

describe('a setting is read as what it says', () => {
  for (const [env, key, expected] of [
    [{LEASE_DURATION: '30'}, 'leaseDurationMs', 30_000],
    [{LEASE_DURATION: '1m'}, 'leaseDurationMs', 60_000],
    [{HEARTBEAT_INTERVAL: '500ms'}, 'heartbeatIntervalMs', 500],
    [{HEARTBEAT_INTERVAL: ' 1.5s '}, 'heartbeatIntervalMs', 1_500],
    [{TOMBSTONE_RETENTION: '7d'}, 'tombstoneRetentionMs', 604_800_000],
    [{ROLE: 'node-b'}, 'apiPort', 9444],
    [{ROLE: 'node-c'}, 'apiPort', 9445],
    [{ROLE: 'secondary'}, 'role', 'node-b'],
    [{ROLE: 'primary'}, 'role', 'node-a'],
    [{ROLE: 'node-b', API_PORT: '0'}, 'apiPort', 0],
    [{HOST_NAME: 'prod-host-1'}, 'clusterName', 'prod-host-1'],
    [{HOST_NAME: 'prod-host-1', CLUSTER_NAME: 'prod-host-1'}, 'clusterName', 'prod-host-1'],
    [{CLUSTER_NAME: ''}, 'clusterName', hostname()],
    [{DELETE_GUARD: 'off'}, 'deleteGuard', 'off'],
    [{DELETE_GUARD: '5, 0.5%'}, 'deleteGuard', {rows: 5, share: 0.005}],
    [{ENABLE_METRICS: 'no'}, 'enableMetrics', false],
    [{SQLITE_ROOTS: '/srv/a, ~/b,'}, 'sqliteRoots', ['/srv/a', join(homedir(), 'b')]],
    [{API_LOCAL_NETWORKS: '172.18.0.1,fd00::/8'}, 'apiLocalNetworks', ['172.18.0.1/32', 'fd00::/8']],
    [{STATE_DIR: 'state'}, 'stateDir', join(process.cwd(), 'state')],
    [{LOG_FORMAT: 'pretty'}, 'logFormat', 'pretty'],
    [{DB_SIZE_LIMIT: '500MB'}, 'dbSizeLimitBytes', 524_288_000],
    [{DB_SIZE_LIMIT: '1.5 tb'}, 'dbSizeLimitBytes', 1.5 * 1024 ** 4],
    [{DB_SIZE_LIMIT: '1024'}, 'dbSizeLimitBytes', 1_024],
    [
      {CONFLICT_RESOLUTION_CONFIG: '{"default": "manual"}'},
      'conflictResolutionConfig',
      {place: 'CONFLICT_RESOLUTION_CONFIG', document: {default: 'manual'}},
    ],
  ] satisfies [Env, keyof Config, unknown][]) {
    test(`${JSON.stringify(env)} makes ${key} ${JSON.stringify(expected)}`, async () => {
      assert.deepEqual((await loadConfig(env))[key], expected)
    })
  }
})

describe('a value that cannot be used is refused by name', () => {
  for (const [env, problem] of [
    [{LEASE_DURATION: 'soon'}, /LEASE_DURATION is "soon": expected a duration/],
    [{LEASE_DURATION: '1s'}, /LEASE_DURATION is "1s": expected a duration, at least 2s/],
    [{LEASE_DURATION: '-5'}, /LEASE_DURATION/],
    [
      {LEASE_DURATION: '5s', HEARTBEAT_INTERVAL: '2s'},
      /LEASE_DURATION: must be at least three times HEARTBEAT/,
    ],
    [{API_PORT: '70000'}, /API_PORT is "70000": expected a whole number, at least 0, at most 65535/],
    [{API_PORT: '1e3'}, /API_PORT/],
    [{BATCH_SIZE: '0'}, /BATCH_SIZE/],
    [{DB_SIZE_LIMIT: '8 gigs'}, /DB_SIZE_LIMIT is "8 gigs": expected a size such as 500MB or 8GB/],
    [{DB_SIZE_LIMIT: '0'}, /DB_SIZE_LIMIT/],
    [{ROLE: 'node-d'}, /ROLE is "node-d": expected node-a \| node-b \| node-c \| primary \| secondary/],
    [{CLUSTER_NAME: 'a b'}, /CLUSTER_NAME is "a b"/],
    [{CLUSTER_NAME: 'a', HOST_NAME: 'b'}, /CLUSTER_NAME and HOST_NAME name the same setting and differ/],
    [{ENABLE_METRICS: 'maybe'}, /ENABLE_METRICS is "maybe": expected true or false/],
    [{DELETE_GUARD: '100'}, /DELETE_GUARD is "100"/],
    [{DELETE_GUARD: '1,101%'}, /DELETE_GUARD/],
    [{API_LOCAL_NETWORKS: '10.0.0.0/33'}, /API_LOCAL_NETWORKS/],
    [{API_LOCAL_NETWORKS: 'example.com'}, /API_LOCAL_NETWORKS/],
    [{API_HOST: '0.0.0.0'}, /API_HOST: .* needs API_TOKENS_FILE/],
    [{API_HOST: '0.0.0.0', API_TOKENS_FILE: '/t'}, /API_HOST: .* needs API_TLS_CERT_FILE/],
    [{API_TLS_CERT_FILE: '/c'}, /go together/],
    [{ALERTS_EMAIL_TO: 'ops@example.com'}, /ALERTS_SMTP_URL, ALERTS_EMAIL_TO: go together/],
    [
      {ALERTS_SLACK_URL: 'hooks.slack.com/x'},
      /ALERTS_SLACK_URL has a value that cannot be used: .*https:\/\//,
    ],
    [{DATABASE_URL: 'mysql://u:p@h/d'}, /DATABASE_URL has a value that cannot be used/],
    [
      {DATABASE_URL: 'postgres://u@h/d', ADMIN_DATABASE_URL: 'postgres://u@h/d'},
      /ADMIN_DATABASE_URL: is the same/,
    ],
    [{DOCKER_HOST: '/var/run/docker.sock'}, /DOCKER_HOST/],
    [{CONFLICT_RESOLUTION_CONFIG: '{"default":'}, /CONFLICT_RESOLUTION_CONFIG is not JSON/],
    [{CONFLICT_RESOLUTION_CONFIG: '/nowhere/rules.json'}, /rules\.json cannot be read \(ENOENT\)/],
    [{CLUSTER_NAME_FILE: '/nowhere/name'}, /CLUSTER_NAME_FILE: \/nowhere\/name cannot be read \(ENOENT\)/],
  ] satisfies [Env, RegExp][]) {
    test(JSON.stringify(env), async () => {
      assert.match((await refusal(env)).message, problem)
    })
  }
})

test('a published port needs tokens, and its gateway named as local, but no TLS', async () => {
  const env = {API_HOST: '0.0.0.0', API_TOKENS_FILE: '/t', API_LOCAL_NETWORKS: '127.0.0.0/8,172.18.0.1'}
  assert.equal((await loadConfig(env)).apiHost, '0.0.0.0')
})

test('all problems are reported at once, and a broken setting is not reported twice', async () => {
  const env = {
    LEASE_DURATION: 'x',
    HEARTBEAT_INTERVAL: '20s',
    API_PORT: 'y',
    ROLE: 'z',
    API_TLS_KEY_FILE: '/k',
  }
  const {problems, code} = await refusal(env)
  assert.equal(code, 'SYNC_CONFIG')
  assert.deepEqual(
    problems.map(problem => problem.split(' ', 1)[0]),
    ['ROLE', 'LEASE_DURATION', 'API_PORT', 'API_TLS_CERT_FILE,'],
  )
})

describe('secrets never print', () => {
  const env = {DATABASE_URL: 'postgres://host:hunter2@db/x', ALERTS_PAGERDUTY_KEY: 'hunter2'}

  for (const [how, print] of [
    ['util.inspect', (config: Config) => inspect(config, {depth: 9, showHidden: true})],
    ['JSON.stringify', (config: Config) => JSON.stringify(config)],
    ['String()', (config: Config) => Object.values(config).map(String).join()],
    ['a template', (config: Config) => `${String(config.databaseUrl)} ${inspect(config.databaseUrl)}`],
  ] as const) {
    test(`by ${how}`, async () => {
      const printed = print(await loadConfig(env))
      assert.ok(!printed.includes('hunter2'), printed)
      assert.ok(printed.includes('***'), printed)
    })
  }

  test('and yet are there for who asks', async () => {
    assert.equal((await loadConfig(env)).databaseUrl?.reveal(), env.DATABASE_URL)
  })

  test('nor does a problem with one repeat it, or a password within another setting', async () => {
    const {message} = await refusal({
      ADMIN_DATABASE_URL: 'hunter2://x',
      ALERTS_SMTP_URL: 'smtps://u:hunter2@',
      DOCKER_HOST: 'ftp://u:hunter2@h',
    })
    assert.ok(!message.includes('hunter2'), message)
    assert.match(message, /ADMIN_DATABASE_URL[^]*ALERTS_SMTP_URL|ALERTS_SMTP_URL[^]*ADMIN_DATABASE_URL/)
  })
})

describe('a setting may be given as a file', () => {
  test('whose one trailing newline is dropped, and no more', async () => {
    const config = await loadConfig({
      DATABASE_URL_FILE: file('url', 'postgres://u:p@h/d\n'),
      ALERTS_PAGERDUTY_KEY_FILE: file('key', 'k\n\n'),
    })
    assert.equal(config.databaseUrl?.reveal(), 'postgres://u:p@h/d')
    assert.equal(config.alertsPagerdutyKey?.reveal(), 'k\n')
  })

  test('an alias may be, too', async () => {
    assert.equal((await loadConfig({HOST_NAME_FILE: file('host', 'h1')})).clusterName, 'h1')
  })

  test('but not both as a file and as a value', async () => {
    const {message} = await refusal({CLUSTER_NAME: 'a', CLUSTER_NAME_FILE: file('name', 'a')})
    assert.match(message, /CLUSTER_NAME and CLUSTER_NAME_FILE are both set; keep one/)
  })

  test('a JSON file of conflict rules is read', async () => {
    const place = file('rules.json', '{"default": {"strategy": "manual"}}')
    const config = await loadConfig({CONFLICT_RESOLUTION_CONFIG: place})
    assert.deepEqual(config.conflictResolutionConfig, {place, document: {default: {strategy: 'manual'}}})
  })
})

describe('a file that ends in .age', () => {
  for (const form of ['binary', 'armored'] as const) {
    test(`is decrypted when ${form}`, async () => {
      const identity = await generateX25519Identity()
      const encrypted = await encryptedFor(identity, 'postgres://u:p@h/d\n')
      const config = await loadConfig({
        DATABASE_URL_FILE: file(`${form}.age`, form === 'binary' ? encrypted : armor.encode(encrypted)),
        AGE_IDENTITY_FILE: file(`${form}.txt`, `# created: today\n${identity}\n`),
      })
      assert.equal(config.databaseUrl?.reveal(), 'postgres://u:p@h/d')
    })
  }

  test('says so when there is no identity', async () => {
    const {message} = await refusal({DATABASE_URL_FILE: file('alone.age', 'x')})
    assert.match(message, /alone\.age is encrypted; set AGE_IDENTITY_FILE/)
  })

  test('says so when the identity does not fit, and prints no key', async () => {
    const identity = await generateX25519Identity()
    const {message} = await refusal({
      DATABASE_URL_FILE: file('other.age', await encryptedFor(await generateX25519Identity(), 'x')),
      ALERTS_PAGERDUTY_KEY_FILE: file('broken.age', 'no age file'),
      AGE_IDENTITY_FILE: file('mine.txt', identity),
    })
    assert.match(message, /other\.age cannot be decrypted with AGE_IDENTITY_FILE/)
    assert.match(message, /broken\.age cannot be decrypted with AGE_IDENTITY_FILE/)
    assert.ok(!message.includes(identity))
  })
})

describe('a duration', () => {
  for (const [text, ms] of [
    ['0', 0],
    ['10', 10_000],
    ['10s', 10_000],
    ['2.5 s', 2_500],
    ['250ms', 250],
    ['5m', 300_000],
    ['4h', 14_400_000],
    ['1d', 86_400_000],
  ] as const) {
    test(`${text} is ${ms} ms`, () => {
      assert.equal(parseDuration(text), ms)
    })
  }

  for (const text of ['', 's', '-1s', '1w', '1e3', '1 0', '0x10', 'Infinity', '1s1s', '9'.repeat(20)]) {
    test(`${JSON.stringify(text)} is none`, () => {
      assert.throws(() => parseDuration(text), /expected a duration/)
    })
  }
})

function file(name: string, content: string | Uint8Array): string {
  const path = join(folder, name)
  writeFileSync(path, content)
  return path
}

async function encryptedFor(identity: string, text: string): Promise<Uint8Array> {
  const encrypter = new Encrypter()
  encrypter.addRecipient(await identityToRecipient(identity))
  return encrypter.encrypt(text)
}

async function refusal(env: Env): Promise<ConfigError> {
  try {
    await loadConfig(env)
  } catch (error) {
    assert.ok(error instanceof ConfigError, String(error))
    return error
  }
  throw new assert.AssertionError({message: 'the settings were accepted'})
}
