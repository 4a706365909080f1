import assert from 'node:assert/strict'
import {setTimeout as sleep} from 'node:timers/promises'
import {test} from 'vitest'
import {emptyDatabase} from '../../test/database.ts'
import {proxyTo} from '../../test/proxy.ts'
import {connect} from './connect.ts'
import {fragment, type Tx} from './sql.ts'
import {ConnectionLostError, DataError} from './sqlstate.ts'

const applicationName = 'owsync-test'

async function* chunks(...texts: string[]): AsyncGenerator<Buffer> {
  await sleep(0)
  for (const text of texts) yield Buffer.from(text)
}

/** A source that gives `before` and then fails as `work` does. */
async function* failing(before: string, work: () => Promise<never>): AsyncGenerator<Buffer> {
  yield Buffer.from(before)
  await work()
}

async function contents(rows: AsyncIterable<Buffer>): Promise<string> {
  const chunks: Buffer[] = []
  for await (const chunk of rows) chunks.push(chunk)
  return Buffer.concat(chunks).toString()
}

test('rows are copied in and out', async () => {
  await using db = await emptyDatabase()
  await db`create table t (a int, b text)`
  await db.begin(async tx => {
    assert.equal(await tx.copyFrom(fragment`copy t from stdin`, chunks('1\to', 'ne\n2\t\\N', '\n')), 2)
    assert.equal(await tx.copyFrom(fragment`copy t from stdin`, chunks()), 0)
    assert.equal(
      await contents(tx.copyTo(fragment`copy (select * from t order by a) to stdout`)),
      '1\tone\n2\t\\N\n',
    )
    assert.deepEqual(await tx`select count(*) as n from t`, [{n: 2n}])
  })
})

test('rows are read from the source no faster than the server takes them', async () => {
  await using db = await emptyDatabase()
  await db`create table t (a text)`
  let given = 0
  const line = Buffer.from(`${'x'.repeat(65_535)}\n`)
  // eslint-disable-next-line @typescript-eslint/require-await
  const source = async function* () {
    for (; given < 500; given++) yield line
  }
  const locked = Promise.withResolvers<undefined>()
  const release = Promise.withResolvers<undefined>()
  const holder = db.begin(async tx => {
    await tx`lock table t in access exclusive mode`
    locked.resolve(undefined)
    await release.promise
  })
  await locked.promise
  const copying = db.begin(tx => tx.copyFrom(fragment`copy t from stdin`, source()))
  await sleep(300)
  const meanwhile = given
  release.resolve(undefined)
  await holder
  assert.equal(await copying, 500)
  assert.ok(meanwhile < 10, `${meanwhile} chunks were read while the server took none`)
})

test('what a source has yielded may be overwritten once it is asked for more', async () => {
  await using db = await emptyDatabase()
  // A server that takes nothing for a while: what is sent piles up.
  await db`create table t (a text)`
  await db`create function pause() returns trigger language plpgsql as 'begin perform pg_sleep(0.5); return null; end'`
  await db`create trigger pause before insert on t for each statement execute function pause()`
  for (const bytes of [1_000, 70_000]) {
    const line = Buffer.alloc(bytes, '\n')
    // eslint-disable-next-line @typescript-eslint/require-await
    const source = async function* () {
      for (let i = 0; i < 20_000_000 / bytes; i++) {
        line.fill(65 + (i % 26), 0, bytes - 1)
        yield line
      }
    }
    await db`truncate t`
    await db.begin(tx => tx.copyFrom(fragment`copy t from stdin`, source()))
    const wrong = await db`select from (select a, row_number() over (order by ctid) - 1 as n from t) t
      where a <> repeat(chr((65 + n % 26)::int), ${bytes - 1})`
    assert.equal(wrong.length, 0)
  }
})

test('a failing source fails the COPY with its own error and leaves the connection usable', async () => {
  await using db = await emptyDatabase()
  await using pool = connect(db.endpoint, {max: 1, applicationName})
  await pool`create table t (a int)`
  const [before] = await pool<{pid: number}>`select pg_backend_pid() as pid`
  const ours = new Error('the file went away')
  for (const lines of ['', '1\n', '1\n'.repeat(100_000)]) {
    const copy = (tx: Tx) =>
      tx.copyFrom(
        fragment`copy t from stdin`,
        failing(lines, () => Promise.reject(ours)),
      )
    await assert.rejects(pool.begin(copy), error => error === ours)
    await pool.begin(async tx => {
      await assert.rejects(
        tx.savepoint(() => copy(tx)),
        error => error === ours,
      )
      assert.equal(await tx.copyFrom(fragment`copy t from stdin`, chunks('7\n')), 1)
    })
  }
  const [after] = await pool<{
    pid: number
    n: bigint
  }>`select pg_backend_pid() as pid, (select count(*) from t) as n`
  assert.deepEqual(after, {pid: before!.pid, n: 3n})
})

test('a refused line surfaces as the server said it, with its number and without its content', async () => {
  await using db = await emptyDatabase()
  await using pool = connect(db.endpoint, {max: 1, applicationName})
  await pool`create table t (a int)`
  let isClosed = false
  const source = async function* () {
    try {
      yield* chunks('1\n2\nsecret\n')
      for (;;) yield* chunks('3\n'.repeat(10_000))
    } finally {
      isClosed = true
    }
  }
  const error = await pool
    .begin(tx => tx.copyFrom(fragment`copy t from stdin`, source()))
    .catch((e: unknown) => e)
  assert.ok(error instanceof DataError)
  assert.deepEqual([error.line, error.sqlstate], [3, '22P02'])
  assert.doesNotMatch(error.message, /secret/)
  assert.ok(isClosed)
  await assert.rejects(
    pool.begin(tx => tx.copyFrom(fragment`copy missing from stdin`, chunks('1\n'))),
    /relation "missing" does not exist/,
  )
  assert.deepEqual(await pool`select 1 as ok`, [{ok: 1}])
})

test('a long COPY holds no more than a few chunks', async () => {
  await using db = await emptyDatabase()
  await db`create unlogged table t (a text)`
  const finalized = new Set<number>()
  const registry = new FinalizationRegistry<number>(n => finalized.add(n))
  const source = async function* () {
    for (let n = 0; n < 200; n++) {
      const chunk = Buffer.alloc(100_000, 'x')
      chunk[chunk.length - 1] = 10
      registry.register(chunk, n)
      yield chunk
      if (n % 20 === 19) {
        globalThis.gc?.()
        await sleep(0)
      }
    }
    await until(() => {
      // Without --expose-gc, pressure makes the collector run.
      void Array.from({length: 10}, () => Buffer.alloc(1_000).toString('hex').repeat(100).split('0'))
      return finalized.size > 150
    })
  }
  assert.equal(await db.begin(tx => tx.copyFrom(fragment`copy t from stdin`, source())), 200)
})

test('an aborted COPY ends at once, even while its source hangs', async () => {
  await using db = await emptyDatabase()
  await using pool = connect(db.endpoint, {max: 1, applicationName})
  await pool`create table t (a int)`
  const hanging = failing('1\n', () => new Promise<never>(() => undefined))
  const started = performance.now()
  await assert.rejects(
    pool.begin(tx => tx.copyFrom(fragment`copy t from stdin`, hanging, AbortSignal.timeout(100))),
    {name: 'TimeoutError'},
  )
  assert.ok(performance.now() - started < 2_000)
  assert.deepEqual(await pool`select count(*) as n from t`, [{n: 0n}])
})

test('an aborted COPY ends soon when it waits for a lock or the network has gone silent', async () => {
  await using db = await emptyDatabase()
  await using proxy = await proxyTo(db.endpoint)
  await using pool = connect(proxy.endpoint, {max: 2, applicationName})
  await pool`create table t (a int)`
  const copy = () =>
    pool.begin(tx => tx.copyFrom(fragment`copy t from stdin`, chunks('1\n'), AbortSignal.timeout(100)))
  await db.begin(async tx => {
    await tx`lock table t in access exclusive mode`
    await assert.rejects(copy(), {name: 'TimeoutError'})
  })
  const endless = async function* () {
    for (;;) yield* chunks('1\n')
  }
  const started = performance.now()
  const copying = pool.begin(async tx => {
    await tx`select 1`
    proxy.silence('up', 'down')
    await tx.copyFrom(fragment`copy t from stdin`, endless(), AbortSignal.timeout(100))
  })
  await assert.rejects(copying, {name: 'TimeoutError'})
  assert.ok(performance.now() - started < 6_000)
})

test('a connection that breaks within a COPY fails it, and the next one is new', async () => {
  await using db = await emptyDatabase()
  await using proxy = await proxyTo(db.endpoint)
  await using pool = connect(proxy.endpoint, {max: 1, applicationName})
  await pool`create table t (a int)`
  for (const [direction, bytes] of [
    ['up', 50_000],
    ['up', 2_000_000],
    ['down', 1],
  ] as const) {
    proxy.cutAfter(bytes, direction)
    const lines = Array.from({length: 200}, () => '12345678\n'.repeat(10_000))
    const error = await pool
      .begin(tx => tx.copyFrom(fragment`copy t from stdin`, chunks(...lines)))
      .catch((e: unknown) => e)
    assert.ok(error instanceof ConnectionLostError, String(error))
    assert.equal(error.outcomeUnknown, false)
    assert.deepEqual(await pool`select count(*) as n from t`, [{n: 0n}])
  }
})

test('output left before its end, aborted or broken does not reach the next caller', async () => {
  await using db = await emptyDatabase()
  await using proxy = await proxyTo(db.endpoint)
  await using pool = connect(proxy.endpoint, {max: 1, applicationName})
  const endless = fragment`copy (select repeat('x', 1000) from generate_series(1, 10000000)) to stdout`
  const left = pool.begin(async tx => {
    for await (const chunk of tx.copyTo(endless)) if (chunk.length > 0) break
    await tx`select 1`
  })
  await assert.rejects(left, ConnectionLostError)
  assert.deepEqual(await pool`select 1 as ok`, [{ok: 1}])

  const aborted = pool.begin(tx => contents(tx.copyTo(endless, AbortSignal.timeout(50))))
  await assert.rejects(aborted, {name: 'TimeoutError'})
  assert.deepEqual(await pool`select 2 as ok`, [{ok: 2}])

  proxy.cutAfter(1_000_000, 'down')
  await assert.rejects(
    pool.begin(tx => contents(tx.copyTo(endless))),
    ConnectionLostError,
  )
  const failing = fragment`copy (select 1 / (5000 - n) from generate_series(1, 10000) n) to stdout`
  await assert.rejects(
    pool.begin(tx => contents(tx.copyTo(failing))),
    DataError,
  )
  assert.deepEqual(await pool`select 3 as ok`, [{ok: 3}])
})

test('a COPY that the server refused leaves no clock behind that cuts off the next user', async () => {
  await using db = await emptyDatabase()
  await using pool = connect(db.endpoint, {max: 1, applicationName, answerWithinMs: 1_000})
  await db`create table t (a int check (a < 5))`
  await assert.rejects(
    pool.begin(tx => tx.copyFrom(fragment`copy t from stdin`, chunks('9\n'))),
    DataError,
  )
  const [before] = await pool<{pid: number}>`select pg_backend_pid() as pid`
  await sleep(1_300)
  assert.deepEqual(await pool`select pg_backend_pid() as pid`, [before])
})

async function until(condition: () => boolean | Promise<boolean>): Promise<void> {
  const deadline = performance.now() + 10_000
  while (!(await condition())) {
    if (performance.now() > deadline) throw new Error('the condition did not come true in time')
    await sleep(10)
  }
}
