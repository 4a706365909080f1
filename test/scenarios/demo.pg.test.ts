import assert from 'node:assert/strict'
import {spawn} from 'node:child_process'
import {once} from 'node:events'
import {mkdtemp, readdir, readFile, readlink, rm} from 'node:fs/promises'
import {tmpdir} from 'node:os'
import {join} from 'node:path'
import {createInterface} from 'node:readline'
import {setTimeout as sleep} from 'node:timers/promises'
import {afterAll, afterEach, beforeAll, expect, test} from 'vitest'
import {loadConfig} from '../../src/config/config.ts'
import {urlOf} from '../../src/net/endpoint.ts'
import {openAdmin} from '../../src/service/target.ts'
import {testDatabase} from '../database.ts'

const story = [
  'postgres',
  'sample',
  'nodes',
  'full-sync',
  'live-changes',
  'kill',
  'takeover',
  'verify',
  'restore',
  'compare',
]
let stateDir = ''

beforeAll(async () => {
  stateDir = await mkdtemp(join(tmpdir(), 'owsync-demo-'))
})
afterEach(async () => {
  for (const {pid} of await processes())
    try {
      process.kill(pid, 'SIGKILL')
    } catch (error) {
      // It has just ended by itself.
      if ((error as NodeJS.ErrnoException).code !== 'ESRCH') throw error
    }
})
afterAll(() => rm(stateDir, {recursive: true, force: true}))

test('the story holds, beside a live demo and a real project, and nothing is left of it', async () => {
  await using project = await testDatabase()
  const before = await project`select count(*) from pg_class`
  const live = demo([], {DATABASE_URL: urlOf(project.endpoint)})
  const told = demo(['--once'], {DATABASE_URL: urlOf(project.endpoint)})

  const since = performance.now()
  assert.equal(await told.ended, 0, told.err())
  assert.ok(performance.now() - since < 60_000)
  assert.deepEqual(
    told.lines.map(({step, ok}) => ({step, ok})),
    story.map(step => ({step, ok: true})),
  )
  for (const line of told.lines) assert.deepEqual(Object.keys(line), ['step', 'ok', 'ms'])

  const seen = live.lines.length
  assert.ok(seen > 2, live.err())
  await live.until(lines => lines.length > seen)
  live.kill('SIGINT')
  assert.equal(await live.ended, 0, live.err())
  const cuts = live.lines.filter(line => 'generation' in line)
  for (const {generation, status} of cuts) assert.ok(Number(generation) > 0 && status === 'success')
  assert.ok(cuts.some(({tombstoned}) => Number(tombstoned) > 0))
  assert.ok(live.lines.some(({leader}) => /^demo-node-[ab]$/.test(String(leader))))
  await nothingIsLeft()
  assert.deepEqual(await project`select count(*) from pg_class`, before)
}, 180_000)

test('a demo that is killed leaves no process, and the next one removes the rest, though it is interrupted', async () => {
  const killed = demo([])
  await killed.until(lines => lines.some(line => 'generation' in line))
  const commands = (await processes()).map(({command}) => command)
  assert.equal(commands.filter(command => /main\.[jt]s node/.test(command)).length, 2)
  assert.ok(
    commands.some(command => command.includes('worker-main')),
    'the demo syncs in a worker',
  )
  killed.kill('SIGKILL')
  await killed.ended
  await expect.poll(processes, {timeout: 10_000}).toEqual([])
  assert.equal((await runs()).length, 1)

  const next = demo(['--once'])
  await next.until(lines => lines.length >= 3)
  next.kill('SIGINT')
  assert.equal(await next.ended, 130, next.err())
  await nothingIsLeft()
}, 120_000)

test('a demo whose writer dies says so, and leaves nothing', async () => {
  const failing = demo([])
  await failing.until(lines => lines.length > 0)
  const writer = (await processes()).find(({command}) => command.includes('writer.ts'))
  process.kill(writer!.pid, 'SIGKILL')
  assert.equal(await failing.ended, 1)
  const {code, message} = failing.lines.at(-1)!['error'] as Line
  assert.equal(code, 'SYNC_DEMO_FAILED')
  assert.match(String(message), /the sample writer ended with a signal/)
  await nothingIsLeft()
}, 120_000)

type Line = Readonly<Record<string, unknown>>

/** Starts the real command, its Postgres below `stateDir`, and reads what it prints. */
function demo(args: readonly string[], env: Readonly<Record<string, string>> = {}) {
  const child = spawn('./owsync', ['demo', ...args, '--json'], {
    stdio: ['ignore', 'pipe', 'pipe'],
    env: {PATH: process.env['PATH'], STATE_DIR: stateDir, ...env},
  })
  const lines: Line[] = []
  createInterface({input: child.stdout}).on('line', line => lines.push(JSON.parse(line) as Line))
  let err = ''
  child.stderr.setEncoding('utf8').on('data', (more: string) => (err += more))
  const ended = once(child, 'close').then(([code]) => code as number | null)
  return {
    lines,
    err: () => err + JSON.stringify(lines),
    ended,
    kill: (signal: NodeJS.Signals) => child.kill(signal),
    async until(isEnough: (lines: readonly Line[]) => boolean): Promise<void> {
      while (!isEnough(lines)) {
        assert.equal(child.exitCode, null, err)
        await sleep(20)
      }
    },
  }
}

async function nothingIsLeft(): Promise<void> {
  // The guard sees a moment later that there is nothing left to guard.
  await expect.poll(processes, {timeout: 10_000}).toEqual([])
  assert.deepEqual(await runs(), [])
  await using admin = await openAdmin(await loadConfig({STATE_DIR: stateDir}), {
    applicationName: 'owsync-test',
  })
  const databases = await admin.pool`select datname from pg_database where datname like '%demo%'`
  const roles = await admin.pool`select rolname from pg_roles where rolname like 'sync_host_%'`
  assert.deepEqual([databases, roles], [[], []])
}

/** The demos that have a folder. */
async function runs(): Promise<string[]> {
  return (await readdir(join(stateDir, 'demo'))).filter(name => name.startsWith('run-'))
}

/** Every process that works below `stateDir` or was told of it. */
async function processes(): Promise<{readonly pid: number; readonly command: string}[]> {
  const found = []
  for (const name of await readdir('/proc')) {
    if (!/^\d+$/.test(name)) continue
    const read = (what: string) => readFile(`/proc/${name}/${what}`, 'utf8').catch(() => '')
    const command = (await read('cmdline')).replaceAll('\0', ' ')
    const cwd = await readlink(`/proc/${name}/cwd`).catch(() => '')
    if (command.includes(stateDir) || cwd.startsWith(stateDir) || (await read('environ')).includes(stateDir))
      found.push({pid: Number(name), command})
  }
  return found
}
