import assert from 'node:assert/strict'
import {spawn} from 'node:child_process'
import {once} from 'node:events'
import {
  chmodSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  readFileSync,
  readdirSync,
  rmSync,
  statSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs'
import {tmpdir} from 'node:os'
import {join} from 'node:path'
import {DatabaseSync} from 'node:sqlite'
import {afterEach, beforeEach, describe, test} from 'vitest'
import {explainWrite, openDestination, refuseLocked} from './destination.ts'
import {DestinationError} from './errors.ts'

let folder = ''
let file = ''

beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), 'owsync-destination-'))
  file = join(folder, 'webui.db')
})

afterEach(() => {
  rmSync(folder, {recursive: true, force: true})
})

describe('what is in the way is refused, and nothing is touched', () => {
  for (const [what, prepare, fault] of [
    [
      'a file',
      () => {
        writeFileSync(file, 'old')
      },
      /there is a file already/,
    ],
    [
      'a folder',
      () => {
        mkdirSync(file)
      },
      /this is a folder/,
    ],
    [
      'a link to nowhere',
      () => {
        symlinkSync(join(folder, 'gone'), file)
      },
      /link to nowhere/,
    ],
    [
      'a link to a file',
      () => {
        linkTo('real.db')
      },
      /real\.db: there is a file already/,
    ],
    [
      'the log of a file that has gone',
      () => {
        writeFileSync(`${file}-wal`, 'log')
      },
      /webui\.db-wal of an earlier file/,
    ],
    [
      'a journal',
      () => {
        writeFileSync(`${file}-journal`, 'log')
      },
      /webui\.db-journal of an earlier file/,
    ],
    [
      'a missing folder',
      () => {
        rmSync(folder, {recursive: true})
      },
      /there is no folder/,
    ],
  ] as const) {
    test(what, () => {
      prepare()
      const before = existsSync(folder) ? readdirSync(folder) : []
      assert.throws(
        () => openDestination(file, false),
        (error: unknown) => {
          assert.ok(error instanceof DestinationError)
          assert.match(error.message, fault)
          return true
        },
      )
      assert.deepEqual(existsSync(folder) ? readdirSync(folder) : [], before)
    })
  }

  test('even with force: a folder, and a missing one', () => {
    mkdirSync(file)
    assert.throws(() => openDestination(file, true), /this is a folder/)
    assert.throws(() => openDestination(join(folder, 'no', 'webui.db'), true), /there is no folder/)
  })
})

test('a new file takes its place and leaves nothing beside it', () => {
  {
    using destination = openDestination(file, false)
    writeFileSync(destination.draft, 'new')
    assert.equal(statSync(destination.draft).mode & 0o777, 0o600)
    assert.equal(destination.publish(), undefined)
  }
  assert.deepEqual(readdirSync(folder), ['webui.db'])
  assert.equal(readFileSync(file, 'utf8'), 'new')
  assert.notEqual(statSync(file).mode & 0o044, 0)
})

test('what is not published is gone with its scope', () => {
  {
    using destination = openDestination(file, false)
    writeFileSync(`${destination.draft}-wal`, 'x')
  }
  assert.deepEqual(readdirSync(folder), [])
})

test('with force the existing file is kept with its log, and its mode passes on', () => {
  writeFileSync(file, 'old')
  writeFileSync(`${file}-wal`, 'old log')
  chmodSync(file, 0o640)
  using destination = openDestination(file, true)
  writeFileSync(destination.draft, 'new')
  const backup = destination.publish()
  assert.match(backup ?? '', /webui\.db\.\d{8}T\d{6}Z\.bak$/)
  assert.equal(readFileSync(file, 'utf8'), 'new')
  assert.equal(statSync(file).mode & 0o777, 0o640)
  assert.equal(readFileSync(backup!, 'utf8'), 'old')
  assert.equal(readFileSync(`${backup!}-wal`, 'utf8'), 'old log')
  assert.ok(!existsSync(`${file}-wal`))
})

test('two backups within a second have two names', () => {
  const backups = ['one', 'two', 'three'].map(content => {
    using destination = openDestination(file, true)
    writeFileSync(destination.draft, content)
    return destination.publish()
  })
  assert.equal(backups[0], undefined)
  assert.deepEqual(
    backups.slice(1).map(backup => readFileSync(backup!, 'utf8')),
    ['one', 'two'],
  )
})

test('with force a link stays a link: the file behind it is replaced', () => {
  linkTo('real.db')
  using destination = openDestination(file, true)
  writeFileSync(destination.draft, 'new')
  const backup = destination.publish()
  assert.equal(readFileSync(join(folder, 'real.db'), 'utf8'), 'new')
  assert.equal(readFileSync(file, 'utf8'), 'new')
  assert.match(backup!, /real\.db\./)
})

test('a file that a process has open is refused, also while the new one is being written', async () => {
  makeDatabase('delete')
  {
    await using _app = await holdOpen('select 1')
    assert.throws(() => openDestination(file, true), /has it open/)
  }
  using destination = openDestination(file, true)
  await using _app = await holdOpen('select 1')
  writeFileSync(destination.draft, 'new')
  assert.throws(() => destination.publish(), /has it open/)
  assert.notEqual(readFileSync(file, 'utf8'), 'new')
})

test('a file in WAL mode that is not in use can be replaced', () => {
  makeDatabase('wal')
  using destination = openDestination(file, true)
  writeFileSync(destination.draft, 'new')
  const backup = destination.publish()
  using old = new DatabaseSync(backup!, {readOnly: true})
  assert.deepEqual({...old.prepare('select v from t').get()}, {v: 1})
})

for (const [what, journalMode, sql] of [
  ['that reads in rollback-journal mode', 'delete', 'begin; select * from t'],
  ['that has it open in WAL mode', 'wal', 'select * from t'],
] as const) {
  test(`an app ${what} is noticed by its lock, and neither it nor the file notices`, async () => {
    makeDatabase(journalMode)
    await using _app = await holdOpen(sql)
    const before = [readFileSync(file), readdirSync(folder)]
    assert.throws(() => {
      refuseLocked(file)
    }, /another process has locked it/)
    assert.deepEqual([readFileSync(file), readdirSync(folder)], before)
  })
}

test('a damaged file can be replaced: that is what a restore is for', () => {
  makeDatabase('wal')
  writeFileSync(file, Buffer.alloc(8192, 7))
  using destination = openDestination(file, true)
  writeFileSync(destination.draft, 'new')
  assert.notEqual(destination.publish(), undefined)
  assert.equal(readFileSync(file, 'utf8'), 'new')
})

test('what an interrupted restore left is cleared away, what a running one writes is not', () => {
  writeFileSync(`${file}.restoring`, 'half')
  {
    using destination = openDestination(file, false)
    assert.equal(statSync(destination.draft).size, 0)
    using _writer = new DatabaseSync(destination.draft)
    assert.throws(() => openDestination(file, false), /another restore to this path is running/)
  }
})

test('a file that appears while the new one is written is not overwritten', () => {
  using destination = openDestination(file, false)
  writeFileSync(destination.draft, 'new')
  writeFileSync(file, 'theirs')
  assert.throws(() => destination.publish(), DestinationError)
  assert.equal(readFileSync(file, 'utf8'), 'theirs')
})

for (const [what, error, fault] of [
  [
    'a full disk, from the file system',
    Object.assign(new Error('write'), {code: 'ENOSPC'}),
    /the disk is full/,
  ],
  ['a full disk, from SQLite', Object.assign(new Error('full'), {errcode: 13}), /the disk is full/],
  [
    'a folder that cannot be written',
    Object.assign(new Error('open'), {code: 'EACCES'}),
    /cannot be written/,
  ],
  ['a read-only file system', Object.assign(new Error('open'), {code: 'EROFS'}), /cannot be written/],
  ['a place that takes no file', Object.assign(new Error('open'), {code: 'ENOENT'}), /no file can be made/],
  ['a disk that fails', Object.assign(new Error('io'), {errcode: 778}), /writing failed/],
] as const) {
  test(`${what} is told as that`, () => {
    const told = explainWrite(file, error)
    assert.ok(told instanceof DestinationError)
    assert.match(told.message, fault)
  })
}

test.runIf(existsSync('/proc/self'))('a place below /proc is refused as what it is', () => {
  assert.throws(() => openDestination('/proc/webui.db', false), {
    code: 'SYNC_DESTINATION',
    message: /no file can be made there/,
  })
})

test('other errors stay what they are', () => {
  const error = new TypeError('x')
  assert.equal(explainWrite(file, error), error)
})

function linkTo(name: string): void {
  writeFileSync(join(folder, name), 'old')
  symlinkSync(join(folder, name), file)
}

function makeDatabase(journalMode: string): void {
  using db = new DatabaseSync(file)
  db.exec(`pragma journal_mode = ${journalMode}; create table t (v); insert into t values (1)`)
}

/** Another process that has the file open, as the app does. */
async function holdOpen(sql: string): Promise<AsyncDisposable> {
  const script = `const db = new (require('node:sqlite').DatabaseSync)(process.argv[1])
    for (const sql of process.argv[2].split('; ')) db.prepare(sql).iterate().next(); console.log('ready'); setInterval(() => db, 1e6)`
  const app = spawn(process.execPath, ['-e', script, file, sql], {stdio: ['ignore', 'pipe', 'inherit']})
  const ended = once(app, 'exit')
  await once(app.stdout, 'data')
  return {
    async [Symbol.asyncDispose]() {
      app.kill('SIGKILL')
      await ended
    },
  }
}
