import assert from 'node:assert/strict'
import {once} from 'node:events'
import {setTimeout as sleep} from 'node:timers/promises'
import {test} from 'vitest'
import {adminEndpoint, emptyDatabase} from '../../test/database.ts'
import {proxyTo} from '../../test/proxy.ts'
import {withChanges} from '../net/endpoint.ts'
import {connect, requireServerVersion} from './connect.ts'
import {fragment, json, join, type Pool, type Tx} from './sql.ts'
import {
  ConnectionLostError,
  DataError,
  StatementTimeoutError,
  UnreachableError,
  WrongPasswordError,
} from './sqlstate.ts'

const applicationName = 'owsync-test'

test('values come back as they went', async () => {
  await using db = await emptyDatabase()
  const instant = new Date('2024-02-29T12:34:56.789Z')
  const furthest = new Date(8.64e15)
  const [row] = await db`
    select ${2n ** 62n}::int8 as big, ${"a'b\\"}::text as text, ${instant}::timestamptz as instant, ${null}::text as nothing,
      ${undefined}::int as missing, ${Buffer.from([0, 255])}::bytea as bytes, ${json({a: ['x']})}::jsonb as doc,
      ${['a,"b', 'null', null]}::text[] as texts, ${[1n, -(2n ** 63n)]}::int8[] as bigs, ${[Buffer.from([0, 92])]}::bytea[] as blobs,
      ${-0}::float8 as zero, ${0.1}::float8 as tenth, ${true}::bool as yes, 1.50::numeric as num, 7::int4 as small,
      'infinity'::timestamptz as never, '-infinity'::timestamptz as ever, ${furthest}::timestamptz = 'infinity' as same,
      '2024-02-29'::date as day, ${[instant]}::timestamptz[] as instants, ${[]}::text[] as none, '5'::xid8 as xid`
  assert.deepEqual(row, {
    big: 2n ** 62n,
    text: "a'b\\",
    instant,
    nothing: null,
    missing: null,
    bytes: Buffer.from([0, 255]),
    doc: {a: ['x']},
    texts: ['a,"b', 'null', null],
    bigs: [1n, -(2n ** 63n)],
    blobs: [Buffer.from([0, 92])],
    zero: -0,
    tenth: 0.1,
    yes: true,
    num: '1.50',
    small: 7,
    never: furthest,
    ever: new Date(-8.64e15),
    same: true,
    day: '2024-02-29',
    instants: [instant],
    none: [],
    xid: 5n,
  })
})

test('names and fragments make one statement', async () => {
  await using db = await emptyDatabase()
  await db`create schema ${db('a "b"')}`
  await db`create table ${db('a "b"', 'C')} (id bigint, name text)`
  const rows = [fragment`(${1n}, ${'one'})`, fragment`(${2n}, ${'two'})`]
  await db`insert into ${db('a "b"', 'C')} values ${join(rows)}`
  assert.deepEqual(await db`select * from ${db('a "b"', 'C')} where id > ${1n}`, [{id: 2n, name: 'two'}])
})

test('text without values may be several statements, and the last one gives the rows', async () => {
  await using db = await emptyDatabase()
  assert.deepEqual(await db`create table t (a int); insert into t values (1); select a from t`, [{a: 1}])
})

test('a transaction costs one round trip to begin, settings included, and one to commit', async () => {
  await using db = await emptyDatabase()
  await using proxy = await proxyTo(db.endpoint)
  await using pool = connect(proxy.endpoint, {max: 1, applicationName})
  await pool`select 1`
  const before = proxy.turns
  await pool.begin(
    async tx => {
      const [row] = await tx`
        select current_setting('lock_timeout') as lock, current_setting('transaction_read_only') as ro,
          current_setting('transaction_isolation') as isolation, ${1}::int as value`
      assert.deepEqual(row, {lock: '3s', ro: 'on', isolation: 'repeatable read', value: 1})
    },
    {readOnly: true, isolation: 'repeatable read', setLocal: {lock_timeout: '3s', 'owsync.note': "it's"}},
  )
  assert.equal(proxy.turns - before, 3)
  assert.deepEqual(await pool`select current_setting('lock_timeout') as lock`, [{lock: '0'}])
})

test('what fails is rolled back, and its own error comes out', async () => {
  await using db = await emptyDatabase()
  await using pool = connect(db.endpoint, {max: 1, applicationName})
  await pool`create table t (a int primary key)`
  const ours = new Error('ours')
  await assert.rejects(
    pool.begin(async tx => {
      await tx`insert into t values (1)`
      throw ours
    }),
    error => error === ours,
  )
  await assert.rejects(
    pool.begin(async tx => {
      await tx`insert into t values (2), (2)`
    }),
    DataError,
  )
  assert.deepEqual(await pool`select count(*) as n from t`, [{n: 0n}])
})

test('a transaction whose failed statement was forgotten does not pass for committed', async () => {
  await using db = await emptyDatabase()
  await db`create table t (a int)`
  const work = async (tx: Tx) => {
    await tx`insert into t values (1)`
    await tx`select 1 / 0`.catch(() => undefined)
  }
  await assert.rejects(db.begin(work), /was rolled back/)
  assert.deepEqual(await db`select * from t`, [])
})

test('a savepoint undoes its own work alone', async () => {
  await using db = await emptyDatabase()
  await db`create table t (a int primary key)`
  await db.begin(async tx => {
    await tx`insert into t values (1)`
    await assert.rejects(
      tx.savepoint(async () => {
        await tx`insert into t values (2)`
        await tx.savepoint(() => tx`insert into t values (3)`)
        await tx`insert into t values (1)`
      }),
      DataError,
    )
    assert.equal(await tx.savepoint(() => Promise.resolve('kept')), 'kept')
    await tx`insert into t values (4)`
  })
  assert.deepEqual(await db`select a from t order by a`, [{a: 1}, {a: 4}])
})

test('a statement after the end of its transaction is refused', async () => {
  await using db = await emptyDatabase()
  const tx = await db.begin(tx => Promise.resolve({tx}))
  await assert.rejects(tx.tx`select 1`, /transaction has ended/)
})

test('a connection left within a transaction does not reach the next caller', async () => {
  await using db = await emptyDatabase()
  await using pool = connect(db.endpoint, {max: 1, applicationName})
  await pool`begin; set local lock_timeout = '9s'`
  assert.deepEqual(await pool`select current_setting('lock_timeout') as lock`, [{lock: '0'}])
})

test('statements side by side in one transaction take turns', async () => {
  await using db = await emptyDatabase()
  const warnings: Error[] = []
  const listen = (warning: Error) => warnings.push(warning)
  process.on('warning', listen)
  await db.begin(async tx => {
    const rows = await Promise.all([1, 2, 3, 4].map(n => tx<{n: number}>`select ${n}::int as n`))
    assert.deepEqual(
      rows.map(([row]) => row?.n),
      [1, 2, 3, 4],
    )
  })
  await sleep(0)
  process.off('warning', listen)
  assert.deepEqual(warnings, [])
})

test('whoever asks for a commit whose answer never came learns that it may have happened', async () => {
  await using db = await emptyDatabase()
  await using proxy = await proxyTo(db.endpoint)
  await using pool = connect(proxy.endpoint, {max: 1, applicationName})
  await pool`create table t (a int)`
  const committing = pool.begin(async tx => {
    await tx`insert into t values (1)`
    proxy.silence('down')
    setTimeout(() => {
      proxy.cut()
    }, 200)
  })
  const error = await committing.catch((e: unknown) => e)
  assert.ok(error instanceof ConnectionLostError)
  assert.equal(error.outcomeUnknown, true)
  proxy.heal()
  assert.deepEqual(await pool`select a from t`, [{a: 1}])

  const early = await pool
    .begin(async tx => {
      await tx`insert into t values (2)`
      proxy.cut()
      await tx`insert into t values (3)`
    })
    .catch((e: unknown) => e)
  assert.ok(early instanceof ConnectionLostError)
  assert.equal(early.outcomeUnknown, false)
})

test('an idle connection that the server ended is replaced unnoticed', async () => {
  await using db = await emptyDatabase()
  await using pool = connect(db.endpoint, {max: 1, applicationName: 'idle-one'})
  await pool`select 1`
  await db`select pg_terminate_backend(pid) from pg_stat_activity where application_name = 'idle-one'`
  await until(async () => {
    const rows = await db`select from pg_stat_activity where application_name = 'idle-one'`
    return rows.length === 0
  })
  await sleep(20)
  assert.deepEqual(await pool`select 1 as ok`, [{ok: 1}])
})

test('a server that says nothing is given up after the time allowed', async () => {
  await using db = await emptyDatabase()
  await using proxy = await proxyTo(db.endpoint)
  await using pool = connect(proxy.endpoint, {max: 1, applicationName, answerWithinMs: 500})
  await pool`select 1`
  proxy.silence('up', 'down')
  const started = performance.now()
  await assert.rejects(pool`select 1`, ConnectionLostError)
  assert.ok(performance.now() - started < 2_000)
  proxy.heal()
  assert.deepEqual(await pool`select 1 as ok`, [{ok: 1}])
  await assert.rejects(pool`select pg_sleep(2)`, ConnectionLostError)
})

test('a pool ends in bounded time when the network has gone silent', async () => {
  await using db = await emptyDatabase()
  await using proxy = await proxyTo(db.endpoint)
  const pool = connect(proxy.endpoint, {max: 2, applicationName})
  await Promise.all([pool`select pg_sleep(0.05)`, pool`select pg_sleep(0.05)`])
  proxy.silence('up', 'down')
  const hanging = pool`select 1`.catch((error: unknown) => error)
  const second = pool`select 2`.catch((error: unknown) => error)
  const third = pool`select 3`.catch((error: unknown) => error)
  await sleep(50)
  const started = performance.now()
  await pool.end()
  assert.ok(performance.now() - started < 5_000)
  assert.ok((await hanging) instanceof ConnectionLostError)
  assert.ok((await second) instanceof ConnectionLostError)
  assert.match(String(await third), /^Error: the pool was closed/)
  await assert.rejects(pool`select 1`)
  await pool.end()
})

test('a dedicated connection hears notifications and says when it is lost', async () => {
  await using db = await emptyDatabase()
  await using proxy = await proxyTo(db.endpoint)
  await using pool = connect(proxy.endpoint, {max: 2, applicationName})
  await using connection = await pool.reserve()
  const [row] = await connection<{pid: number}>`select pg_backend_pid() as pid`
  assert.equal(connection.pid, row?.pid)
  const heard: string[] = []
  connection.onNotify((channel, payload) => heard.push(`${channel} ${payload}`))
  await connection`listen ${connection('Changes')}`
  await pool`select pg_notify('Changes', 'acme')`
  await until(() => heard.length > 0)
  assert.deepEqual(heard, ['Changes acme'])

  const together = [1, 2].map(n => connection.begin(tx => tx<{n: number}>`select ${n}::int as n`))
  assert.deepEqual(await Promise.all(together), [[{n: 1}], [{n: 2}]])

  const lost = once(connection.lost, 'abort')
  proxy.cut()
  await lost
  assert.ok(connection.lost.reason instanceof ConnectionLostError)
  await assert.rejects(connection`select 1`, ConnectionLostError)
})

test('what a dedicated connection held is free when its scope ends', async () => {
  await using db = await emptyDatabase()
  {
    await using connection = await db.reserve()
    await connection`select pg_advisory_lock(1)`
    assert.deepEqual(await db`select pg_try_advisory_lock(1) as got`, [{got: false}])
  }
  await until(async () => {
    const [row] = await db<{got: boolean}>`select pg_try_advisory_xact_lock(1) as got`
    return row?.got === true
  })
})

test('only user, database and application name are sent when a connection opens', async () => {
  await using db = await emptyDatabase()
  process.env['PGOPTIONS'] = '-c lock_timeout=1234'
  process.env['PGAPPNAME'] = 'from the environment'
  try {
    await using pool: Pool = connect(db.endpoint, {max: 1, applicationName: 'owsync/node-a'})
    const [row] = await pool`
      select current_setting('lock_timeout') as lock, current_setting('application_name') as name`
    assert.deepEqual(row, {lock: '0', name: 'owsync/node-a'})
  } finally {
    delete process.env['PGOPTIONS']
    delete process.env['PGAPPNAME']
  }
})

test('more callers than connections wait for their turn', async () => {
  await using db = await emptyDatabase()
  await using pool = connect(db.endpoint, {max: 2, applicationName})
  const rows = await Promise.all(Array.from({length: 20}, (_, n) => pool<{n: number}>`select ${n}::int as n`))
  assert.equal(rows.length, 20)
})

test('each way of not getting in has its own error', async () => {
  await using db = await emptyDatabase()
  const refuses = async (changes: Parameters<typeof withChanges>[1], expected: object) => {
    await using pool = connect(withChanges(db.endpoint, changes), {max: 1, applicationName})
    await assert.rejects(pool`select 1`, expected)
    await assert.rejects(
      pool.begin(tx => tx`select 1`),
      expected,
    )
    await assert.rejects(pool.reserve(), expected)
  }
  await refuses({password: 'wrong-s3cret'}, (error: unknown) => {
    assert.ok(error instanceof WrongPasswordError)
    assert.doesNotMatch(JSON.stringify([error.message, error, error.stack]), /s3cret/)
    return true
  })
  await refuses({database: 'nowhere'}, {code: 'SYNC_NO_SUCH_DATABASE'})
  await refuses({port: 1}, UnreachableError)
  await refuses({host: 'no-such-host.invalid'}, UnreachableError)
  await refuses({ssl: {rejectUnauthorized: true}}, {code: 'SYNC_TLS'})
})

test('a statement that takes too long says so', async () => {
  await using db = await emptyDatabase()
  const slow = db.begin(tx => tx`select pg_sleep(5)`, {setLocal: {statement_timeout: '50ms'}})
  await assert.rejects(slow, StatementTimeoutError)
})

test('the server is new enough', async () => {
  await using pool = connect(adminEndpoint(), {max: 1, applicationName})
  assert.ok((await requireServerVersion(pool)) >= 150_000)
})

async function until(condition: () => boolean | Promise<boolean>): Promise<void> {
  const deadline = performance.now() + 10_000
  while (!(await condition())) {
    if (performance.now() > deadline) throw new Error('the condition did not come true in time')
    await sleep(10)
  }
}
