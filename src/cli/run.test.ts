import assert from 'node:assert/strict'
import {setTimeout as sleep} from 'node:timers/promises'
import {describe, test} from 'vitest'
import {fakeIo} from '../../test/cli.ts'
import {ConfigError, type Env} from '../config/config.ts'
import {SyncError, UsageError} from '../core/errors.ts'
import {confirmByName} from './ask.ts'
import {command, type Context} from './command.ts'
import type {CommandList} from './parse.ts'
import {main} from './run.ts'

class BusyError extends SyncError {
  override readonly name = 'BusyError'
  override readonly retryable = true
  readonly code = 'SYNC_TEST_BUSY'
  readonly next = 'Try again in a minute.'
}

class LostError extends SyncError {
  override readonly name = 'LostError'
  readonly code = 'SYNC_TEST_LOST'
  readonly next = 'Look for it.'
}

const echo = command({
  details: 'It changes nothing.',
  examples: ['echo acme --dry-run'],
  positionals: {client: {about: 'Which client.'}, key: {about: 'Which key.', optional: true}},
  options: {
    dryRun: {type: 'boolean', about: 'Only say what would be done.'},
    to: {type: 'path', about: 'File to write.'},
    mode: {type: 'string', about: 'How.', choices: ['read', 'edit'], required: true},
    times: {type: 'number', about: 'How often.'},
  },
  run(args, {out, err}) {
    err('working')
    out({...args, big: 2n ** 62n, small: 7n}, `client ${args.client}`)
    return Promise.resolve(2)
  },
})

test('a command gets its arguments by name and decides the exit code', async () => {
  const {code, out, err} = await run([
    'echo',
    'acme',
    '--mode',
    'edit',
    '--dry-run',
    '--times',
    '3',
    '--json',
  ])
  assert.equal(code, 2)
  assert.deepEqual(JSON.parse(out), {
    client: 'acme',
    dryRun: true,
    mode: 'edit',
    times: 3,
    big: '4611686018427387904',
    small: 7,
  })
  assert.equal(err, 'working\n')
})

test('a boolean that was not given is false, anything else absent', async () => {
  const {out} = await run(['echo', 'acme', '--mode', 'read', '--json'])
  const {dryRun, ...others} = JSON.parse(out) as Record<string, unknown>
  assert.equal(dryRun, false)
  assert.deepEqual(Object.keys(others), ['mode', 'client', 'big', 'small'])
})

test('without --json data is text', async () => {
  assert.equal((await run(['echo', 'acme', '--mode', 'read'])).out, 'client acme\n')
})

test('a command that returns nothing is done', async () => {
  assert.equal((await run(['group', 'quiet'])).code, 0)
})

test('only the command that is called is loaded', async () => {
  await run(['group', 'quiet'])
  assert.match((await run(['group', 'unloadable'])).err, /^owsync: loaded$/m)
})

describe('a command line that makes no sense is exit 64 and says what to do', () => {
  for (const [argv, message, next] of [
    [[], 'no command was given', 'owsync --help'],
    [['--json'], 'no command was given', 'owsync --help'],
    [['ehco'], "unknown command 'ehco'", 'Did you mean echo?'],
    [['group'], '"owsync group" needs a command', 'owsync group --help'],
    [['group', 'quite'], "unknown command 'quite'", 'Did you mean quiet? Run "owsync group --help"'],
    [
      ['echo', 'acme', '--mode', 'edit', '--dry-rum'],
      "unknown option '--dry-rum'",
      'Did you mean --dry-run?',
    ],
    [['echo', '--mode', 'edit'], "missing required argument 'CLIENT'", 'owsync echo --help'],
    [['echo', 'acme'], "required option '--mode <MODE>' not specified", 'owsync echo --help'],
    [['echo', 'acme', '--mode', 'write'], 'Allowed choices are read, edit', 'owsync echo --help'],
    [['echo', 'acme', '--mode', 'edit', '--times', 'x'], 'It is not a whole number', 'owsync echo --help'],
    [['echo', 'acme', '--mode', 'edit', '--to', ''], 'It is empty', 'owsync echo --help'],
    [['echo', 'a', 'b', 'c', '--mode', 'edit'], 'too many arguments', 'owsync echo --help'],
  ] as const) {
    test(`owsync ${argv.join(' ')}`, async () => {
      const plain = await run(argv)
      assert.equal(plain.code, 64)
      if (!argv.includes('--json' as never)) {
        assert.equal(plain.out, '')
        assert.ok(plain.err.includes(message) && plain.err.includes(next), plain.err)
      }

      const json = await run([...argv, '--json'])
      assert.equal(json.code, 64)
      const {error} = JSON.parse(json.out) as {error: Record<string, string>}
      assert.equal(error.code, 'SYNC_USAGE')
      assert.ok(error.message?.includes(message) && error.next?.includes(next), json.out)
      assert.equal(json.err, '')
    })
  }
})

describe('help', () => {
  test('lists groups and commands, and fits 80 columns', async () => {
    const {code, out} = await run(['--help'])
    assert.equal(code, 0)
    assert.match(out, /^ {2}echo {2,}Say it again\.$/m)
    assert.match(out, /^ {2}group {2,}Things that belong together\.$/m)
    assert.ok(
      out.split('\n').every(line => line.length <= 80),
      out,
    )
  })

  for (const argv of [
    ['help', 'echo'],
    ['echo', '--help'],
    ['echo', 'acme', '--help'],
  ]) {
    test(`owsync ${argv.join(' ')} shows what the command takes`, async () => {
      const {code, out} = await run(argv)
      assert.equal(code, 0)
      assert.match(out, /Usage: owsync echo \[options\] <CLIENT> \[KEY\]/)
      assert.match(out, /--dry-run/)
      assert.match(out, /It changes nothing\./)
      assert.match(out, /owsync echo acme --dry-run/)
    })
  }

  test('of a group lists its commands', async () => {
    assert.match((await run(['help', 'group'])).out, /quiet/)
  })
})

test('the version is the one of the package', async () => {
  assert.match((await run(['--version'])).out, /^\d+\.\d+\.\d+\n$/)
  assert.match((await run(['--version', '--json'])).out, /^\{"version":"\d+\.\d+\.\d+"\}\n$/)
})

describe('a failure is told once, with what to do', () => {
  const cause = new Error('connect ECONNREFUSED')
  for (const [what, error, code, expected] of [
    ['one to try again later', new BusyError('it is busy'), 75, 'SYNC_TEST_BUSY'],
    ['one that needs a change', new LostError('it is lost'), 1, 'SYNC_TEST_LOST'],
    ['a misuse', new UsageError('no such client'), 64, 'SYNC_USAGE'],
    ['wrong settings', new ConfigError(['ROLE is wrong']), 64, 'SYNC_CONFIG'],
    ['a defect', new TypeError('x is undefined'), 1, 'SYNC_UNEXPECTED'],
  ] as const) {
    test(what, async () => {
      const list = throwing(error)
      const plain = await run(['fail'], {list})
      assert.equal(plain.code, code)
      assert.equal(plain.out, '')
      assert.match(plain.err, new RegExp(`^owsync: .*${error.message.split('\n')[0]!}\n {2}next: .+\n$`))

      const json = await run(['fail', '--json'], {list})
      assert.equal(json.code, code)
      const {error: told} = JSON.parse(json.out) as {error: Record<string, unknown>}
      assert.equal(told.code, expected)
      assert.deepEqual(Object.keys(told), ['code', 'message', 'next'])
    })
  }

  test('with its cause', async () => {
    const {err} = await run(['fail'], {list: throwing(new LostError('no database', {cause}))})
    assert.match(err, /because: connect ECONNREFUSED/)
  })

  test('without any password', async () => {
    const error = new LostError('no postgres://u:hunter2@h', {cause: new Error('at x://a:hunter2@b')})
    for (const argv of [['fail'], ['fail', '--json']]) {
      const {out, err} = await run(argv, {list: throwing(error)})
      assert.ok(!`${out}${err}`.includes('hunter2'))
    }
  })

  test('a defect shows its stack when debugging', async () => {
    const {err} = await run(['fail'], {list: throwing(new TypeError('x')), env: {LOG_LEVEL: 'debug'}})
    assert.match(err, /at .*run\.test\.ts/)
  })
})

describe('when asked to stop', () => {
  const waiting = listOf(async ({signal}) => {
    await sleep(10_000, undefined, {signal})
  })

  test('a command that runs until then is done', async () => {
    const list = listOf(async ({signal}) => {
      await sleep(10_000, undefined, {signal}).catch(() => undefined)
    })
    assert.equal((await run(['fail'], {list, stopWith: 'SIGTERM'})).code, 0)
  })

  for (const [signal, code] of [
    ['SIGINT', 130],
    ['SIGTERM', 143],
  ] as const) {
    test(`by ${signal}, one cut short ends with ${code} and without an error`, async () => {
      const {code: actual, out, err} = await run(['fail'], {list: waiting, stopWith: signal})
      assert.deepEqual([actual, out, err], [code, '', ''])
    })
  }

  test('a real failure on the way is told', async () => {
    const list = listOf(async ({signal}) => {
      await sleep(10_000, undefined, {signal}).catch(() => undefined)
      throw new LostError('rolled back badly')
    })
    const {code, err} = await run(['fail'], {list, stopWith: 'SIGINT'})
    assert.equal(code, 1)
    assert.match(err, /rolled back badly/)
  })

  test('a second Ctrl-C ends the process, but not the same one delivered twice', async () => {
    const fake = fakeIo()
    const running = main(
      ['fail'],
      {},
      fake.io,
      listOf(() => sleep(700)),
    )
    await sleep(20)
    fake.signal('SIGINT')
    fake.signal('SIGINT')
    assert.deepEqual(fake.killed, [])
    await sleep(350)
    fake.signal('SIGINT')
    assert.deepEqual(fake.killed, ['SIGINT'])
    await running
    assert.equal(fake.listeners('SIGINT'), 0)
  })

  test('a reader that has gone ends it quietly', async () => {
    const fake = fakeIo()
    const running = main(['fail'], {}, fake.io, waiting)
    await sleep(20)
    fake.breakStdout('EPIPE')
    assert.equal(await running, 141)
    assert.equal(fake.err(), '')
  })
})

test('output that cannot be written is a failure, although the command went well', async () => {
  const fake = fakeIo()
  const list = listOf(({out}) => {
    out({}, 'data')
    fake.breakStdout('ENOSPC')
    return Promise.resolve()
  })
  assert.equal(await main(['fail'], {}, fake.io, list), 1)
  assert.match(fake.err(), /standard output cannot be written \(ENOSPC\)/)
})

describe('without a terminal', () => {
  test('a question is a misuse that says which option answers it', async () => {
    const {code, err} = await run(['fail'], {
      list: listOf(({ask}) => ask('Which client?')),
    })
    assert.equal(code, 64)
    assert.match(err, /no terminal to ask on: Which client\?/)
  })

  for (const [what, yes, code] of [
    ['a destructive command is refused', false, 64],
    ['--yes lets it go on', true, 0],
  ] as const) {
    test(what, async () => {
      const list = listOf(context => confirmByName(context, {will: 'This drops acme.', name: 'acme', yes}))
      const result = await run(['fail'], {list})
      assert.equal(result.code, code)
      assert.match(result.err, /^This drops acme\.\n/)
    })
  }
})

for (const [typed, expected] of [
  ['acme', 'goes on'],
  [' acme ', 'goes on'],
  ['acm', 'is refused'],
  ['', 'is refused'],
  ['yes', 'is refused'],
] as const) {
  test(`a destructive command ${expected} when ${JSON.stringify(typed)} is typed`, async () => {
    const context = {err: () => undefined, ask: () => Promise.resolve(typed)}
    const asked = confirmByName(context, {will: 'This drops acme.', name: 'acme', yes: false})
    if (expected === 'goes on') await asked
    else await assert.rejects(asked, {code: 'SYNC_NOT_CONFIRMED'})
  })
}

const list: CommandList = {
  groups: {group: 'Things that belong together.'},
  commands: [
    {name: 'echo', about: 'Say it again.', load: () => Promise.resolve(echo)},
    {
      name: 'group quiet',
      about: 'Say nothing.',
      load: () =>
        Promise.resolve(command({positionals: {}, options: {}, run: () => Promise.resolve(undefined)})),
    },
    {name: 'group unloadable', about: 'Fail to load.', load: () => Promise.reject(new Error('loaded'))},
  ],
}

function listOf(work: (context: Context) => Promise<unknown>): CommandList {
  const fail = command({
    positionals: {},
    options: {},
    async run(_args, context) {
      await work(context)
      return undefined
    },
  })
  return {groups: {}, commands: [{name: 'fail', about: 'Fail.', load: () => Promise.resolve(fail)}]}
}

function throwing(error: Error): CommandList {
  return listOf(() => Promise.reject(error))
}

type RunOptions = {list?: CommandList; env?: Env; stopWith?: 'SIGINT' | 'SIGTERM'}

async function run(argv: readonly string[], {list: of = list, env = {}, stopWith}: RunOptions = {}) {
  const fake = fakeIo()
  const running = main(argv, env, fake.io, of)
  if (stopWith) {
    await sleep(20)
    fake.signal(stopWith)
  }
  return {code: await running, out: fake.out(), err: fake.err()}
}
