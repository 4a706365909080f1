import assert from 'node:assert/strict'
import {mkdtemp, rm} from 'node:fs/promises'
import {tmpdir} from 'node:os'
import {join} from 'node:path'
import {DatabaseSync} from 'node:sqlite'
import {setImmediate as nextTurn} from 'node:timers/promises'
import {test} from 'vitest'
import {spawn} from 'node:child_process'
import {once} from 'node:events'
import {capture, nextRest, Pace, readSchema, type Remembered} from './capture.ts'
import {introspect} from './introspect.ts'
import {openSource} from './open.ts'
import {TableReader} from './read.ts'

for (const [what, restMs, wasRefused, expected] of [
  ['nobody was in the way', 0, false, 0],
  ['the app was in the way for the first time', 0, true, 10],
  ['it was again', 10, true, 20],
  ['it is all the time', 200, true, 250],
  ['it was not this time', 40, false, 20],
  ['it has not been for a while', 10, false, 0],
] as const) {
  test(`when ${what}, the app is left alone for ${expected} ms`, () => {
    assert.equal(nextRest(restMs, wasRefused), expected)
  })
}

test('reads that the app refuses come further apart', async () => {
  const folder = await mkdtemp(join(tmpdir(), 'owsync-pace-'))
  try {
    const file = join(folder, 'webui.db')
    using app = new DatabaseSync(file)
    app.exec('create table t (x)')
    const {signal} = new AbortController()
    using source = await openSource(file, signal)
    const pace = new Pace(source, 25, signal)
    let readAt = 0
    const read = () => {
      source.db.prepare('select * from t').all()
      readAt = performance.now()
      return {holdMs: 0}
    }
    for (let i = 0; i < 3; i++) {
      app.exec('begin exclusive')
      const before = source.lock.busyRetries
      const waiting = pace.read(read)
      while (source.lock.busyRetries === before) await nextTurn()
      app.exec('commit')
      await waiting
    }
    const since = readAt
    await pace.read(read)
    // A timer may be early by a fraction of a millisecond.
    assert.ok(readAt - since >= 39)
  } finally {
    await rm(folder, {recursive: true, force: true})
  }
})

test('while SQLite waits for the app’s lock we hold none', async () => {
  const folder = await mkdtemp(join(tmpdir(), 'owsync-pace-'))
  try {
    const file = join(folder, 'webui.db')
    {
      using app = new DatabaseSync(file)
      app.exec("create table t (x); insert into t values ('a'), ('b'), ('c')")
    }
    using source = await openSource(file, new AbortController().signal)
    source.db.exec('pragma busy_timeout = 10000')
    const [table] = introspect(source.db).tables
    assert.ok(table)
    const reader = new TableReader(source.db, table)
    // A process of its own lets go of its lock while this one waits within SQLite.
    const app = spawn(
      process.execPath,
      [
        '--disable-warning=ExperimentalWarning',
        '--input-type=module',
        '-e',
        `import {DatabaseSync} from 'node:sqlite'
         const db = new DatabaseSync(process.argv[1])
         db.exec('begin exclusive')
         process.stdout.write('locked')
         Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, 500)
         db.exec('commit')`,
        file,
      ],
      {stdio: ['ignore', 'pipe', 'inherit']},
    )
    const ended = once(app, 'close')
    await once(app.stdout, 'data')
    const since = performance.now()
    const page = reader.page(undefined, {ms: 12, bytes: 1_000, rows: 100})
    const took = performance.now() - since
    await ended
    assert.equal(page.rows.length, 1, 'the wait has used up the budget')
    assert.ok(took > 20 && page.holdMs < took / 2, `${page.holdMs} of ${took} ms`)
  } finally {
    await rm(folder, {recursive: true, force: true})
  }
})

test('the longest lock of all passes is told, not that of the last one', async () => {
  const folder = await mkdtemp(join(tmpdir(), 'owsync-pace-'))
  try {
    const file = join(folder, 'webui.db')
    using app = new DatabaseSync(file)
    app.exec("create table t (x); insert into t values ('a'), ('b'), ('c')")
    const {signal} = new AbortController()
    using source = await openSource(file, signal)
    let passes = 0
    await capture(
      source,
      {
        lockBudgetMs: 25,
        begin: () => {
          passes++
          return {isSameSchema: true, remembered: () => nothing}
        },
        delta: {
          upsert: () => undefined,
          tombstone: () => undefined,
          place: () => undefined,
          refuse: () => undefined,
        },
        discard: () => undefined,
        finder: {
          find: () => Promise.resolve(() => undefined),
          doubt: () => undefined,
          // Under the lock.
          witness: () => {
            if (passes === 1) Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, 60)
          },
        },
        onProgress: () => {
          if (passes === 1) app.exec("update t set x = 'another'")
        },
      },
      signal,
    )
    assert.equal(passes, 2)
    assert.ok(source.lock.maxHoldMs >= 59, `${source.lock.maxHoldMs} ms`)
  } finally {
    await rm(folder, {recursive: true, force: true})
  }
})

test.each(['delete', 'wal'])(
  'reading a schema tells how long it held a lock, in journal mode %s',
  async journal => {
    const folder = await mkdtemp(join(tmpdir(), 'owsync-pace-'))
    try {
      const file = join(folder, 'webui.db')
      using app = new DatabaseSync(file)
      // Whether this index can be a key is to be seen in all of its rows.
      app.exec(`pragma journal_mode = ${journal};
      create table t (a text, b text); create unique index t_key on t (a, b); insert into t values ('a', 'b')`)
      const {signal} = new AbortController()
      using source = await openSource(file, signal)
      const [table] = (await readSchema(source, signal)).tables
      assert.deepEqual(table?.key, ['a', 'b'])
      assert.equal(source.lock.maxHoldMs > 0, journal === 'delete')
    } finally {
      await rm(folder, {recursive: true, force: true})
    }
  },
)

const nothing: Remembered = {
  range: () => [],
  highestRowid: () => undefined,
  hasAdrift: () => false,
  setAside: () => undefined,
  setAsideRow: () => undefined,
  claim: () => undefined,
  rowsAside: () => [],
  unclaimed: () => [],
  keep: () => undefined,
}
