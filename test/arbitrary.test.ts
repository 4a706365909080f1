import assert from 'node:assert/strict'
import {copyFileSync} from 'node:fs'
import {mkdtemp, rm} from 'node:fs/promises'
import {tmpdir} from 'node:os'
import {join} from 'node:path'
import {DatabaseSync} from 'node:sqlite'
import fc from 'fast-check'
import {afterAll, beforeAll, describe, test} from 'vitest'
import {applyChange, buildFile, openForChange} from './apply-change.ts'
import {filePlan, history, type Change} from './arbitrary.ts'
import {changedRows, snapshot} from './changed-rows.ts'
import {compareFiles} from './compare.ts'
import {openShape, shapes} from './shapes.ts'

let folder: string
beforeAll(async () => {
  folder = await mkdtemp(join(tmpdir(), 'owsync-arbitrary-'))
})
afterAll(() => rm(folder, {recursive: true}))

let made = 0
const newFile = () => join(folder, `file ${++made}`)

describe('arbitrary files and histories', () => {
  test('reach every kind of change, storage class and key', {timeout: 120_000}, () => {
    const applied = new Map<string, number>()
    const seen = new Set<string>()
    const count = (change: Change, isApplied: boolean) => {
      applied.set(change.do, (applied.get(change.do) ?? 0) + (isApplied ? 1 : 0))
    }
    const run = fc.property(filePlan, history, (plan, intervals) => {
      using db = openForChange(newFile())
      buildFile(db, plan)
      for (const change of intervals.flat()) count(change, applyChange(db, change))
      for (const {keyedBy, rows} of snapshot(db).values()) {
        seen.add(keyedBy === 'rowid' ? 'keyed by rowid' : keyedBy.includes(',') ? 'composite key' : 'key')
        for (const key of rows.keys()) seen.add(/^~[0hirtxb]/.exec(key)?.[0] ?? 'plain key')
      }
      assert.equal(Object.values(db.prepare('pragma integrity_check').get() ?? {})[0], 'ok')
    })
    fc.assert(run, {seed: 1, numRuns: 250})
    assert.deepEqual(
      [...applied].filter(([, times]) => times < 5),
      [],
    )
    assert.equal(applied.size, 22)
    assert.deepEqual([...seen].sort(), [
      'composite key',
      'key',
      'keyed by rowid',
      'plain key',
      '~0',
      '~b',
      '~h',
      '~i',
      '~r',
      '~t',
      '~x',
    ])
  })

  test('two independent readings agree on whether rows changed', {timeout: 120_000}, () => {
    const run = fc.property(filePlan, history, (plan, intervals) => {
      const [file, before] = [newFile(), newFile()]
      {
        using db = openForChange(file)
        buildFile(db, plan)
      }
      for (const changes of intervals) {
        copyFileSync(file, before)
        {
          using db = openForChange(file)
          for (const change of changes) applyChange(db, change)
        }
        const lines = compareFiles(before, file)
        const changed = changedRows(snapshot(before), snapshot(file))
        const rowLines = lines.filter(line => /^table .* \(.*: (missing|extra|".*→)/s.test(line))
        const isSameSchema = lines.every(line => rowLines.includes(line) || line.startsWith('pragma'))
        if (rowLines.length > 0) assert.ok(changed.size > 0, rowLines.join('\n'))
        // A row under a NULL key or without one is told by its rowid in one reading, by its content in the other.
        const told = [...changed].flatMap(([, {upserted, tombstoned}]) => [...upserted, ...tombstoned])
        if (isSameSchema && told.some(key => !key.startsWith('~0')))
          assert.ok(rowLines.length > 0, told.join('\n'))
      }
    })
    fc.assert(run, {seed: 2, numRuns: 120})
  })

  test('every shape can be read, before and after its changes', () => {
    for (const shape of shapes) {
      using db = openShape(newFile())
      for (const step of [shape.build, ...(shape.change ?? [])]) {
        const before = snapshot(db)
        step(db)
        const changed = changedRows(before, snapshot(db))
        for (const {upserted, tombstoned} of changed.values())
          assert.equal(new Set([...upserted, ...tombstoned]).size, upserted.length + tombstoned.length)
      }
    }
  })

  test('a change that is refused leaves nothing behind', () => {
    using db = openForChange(newFile())
    db.exec(`create table t (id text primary key, v not null); insert into t values ('a', 1), ('b', 2)`)
    const before = snapshot(db)
    assert.equal(applyChange(db, {do: 'move key', table: 0, row: 0, cell: 'b'}), false)
    assert.equal(applyChange(db, {do: 'drop column', table: 0, column: 0}), false)
    const inner: Change = {do: 'delete', table: 0, row: 0}
    assert.equal(applyChange(db, {do: 'transaction', changes: [inner], end: 'rollback'}), false)
    assert.equal(changedRows(before, snapshot(db)).size, 0)
    assert.equal(db.isTransaction, false)
  })
})

describe('changed rows', () => {
  const changesOf = (build: string, change: string) => {
    using db = new DatabaseSync(':memory:')
    db.exec(build)
    const before = snapshot(db)
    db.exec(change)
    return Object.fromEntries(changedRows(before, snapshot(db)))
  }
  const keyed = `create table t (id primary key, v); insert into t values ('a', 1), (2, 'x'), (null, 'n'), ('~c', 4);`

  for (const [what, build, change, upserted, tombstoned] of [
    ['an update', keyed, `update t set v = 2 where id = 'a'`, ['a'], []],
    ['an update to the same value', keyed, `update t set v = v`, [], []],
    ['another storage class', keyed, `update t set v = 1.0 where id = 'a'`, ['a'], []],
    ['a delete', keyed, `delete from t where id = 2`, [], ['~i2;']],
    ['an insert', keyed, `insert into t values (x'00', 1), (1.5, 2)`, ['~b00;', '~r3ff8000000000000;'], []],
    ['a row under a NULL key', keyed, `update t set v = 'm' where id is null`, ['~03;'], []],
    ['a NULL key that gets a value', keyed, `update t set id = 'd' where id is null`, ['d'], ['~03;']],
    ['a key that begins like an encoded one', keyed, `delete from t where id = '~c'`, [], ['~t2:~c']],
    ['a key that moves', keyed, `update t set id = 'b' where id = 'a'`, ['b'], ['a']],
    ['a row moved to another rowid', keyed, `update t set rowid = 99 where id = 'a'`, [], []],
    ['a new column full of NULL', keyed, 'alter table t add column w', [], []],
    [
      'a new column with a default',
      keyed,
      `delete from t where id is not 'a'; alter table t add column w default 1`,
      ['a'],
      ['~03;', '~i2;', '~t2:~c'],
    ],
    [
      'a row without key',
      'create table t (v); insert into t values (1), (1);',
      'update t set v = 2 where rowid = 2',
      ['~i2;'],
      [],
    ],
    [
      'a composite key',
      'create table t (a, b, primary key (b, a)); insert into t values (1, 2);',
      'delete from t',
      [],
      ['~i2;i1;'],
    ],
    [
      'text with NUL as key',
      'create table t (id text primary key);',
      `insert into t values ('a' || char(0))`,
      ['~x6100;'],
      [],
    ],
    ['a table that vanishes', keyed, 'drop table t', [], ['a', '~03;', '~i2;', '~t2:~c']],
    ['a new table', '', keyed, ['a', '~03;', '~i2;', '~t2:~c'], []],
  ] as const)
    test(what, () => {
      const changes = changesOf(build, change)['t'] ?? {upserted: [], tombstoned: []}
      assert.deepEqual([changes.upserted, changes.tombstoned], [upserted, tombstoned])
    })

  test('a table that loses its unique index is rekeyed', () => {
    const build = `create table t (id text not null); create unique index i on t (id); insert into t values ('a');`
    const expected = {upserted: ['~i1;'], tombstoned: ['a'], rekeyed: true}
    assert.deepEqual(changesOf(build, 'drop index i'), {t: expected})
  })

  test('a long key is hashed', () => {
    const [key] = changesOf(
      'create table t (id text primary key)',
      `insert into t values (hex(zeroblob(501)))`,
    )['t']!.upserted
    assert.match(key!, /^~h[0-9a-f]{64}$/)
  })

  test('the smallest unique index without NULL is the key', () => {
    const build = `create table t (a not null, b not null, c); create unique index x on t (a, b);
      create unique index y on t (c); create unique index z on t (b); insert into t values (1, 2, 3);`
    assert.deepEqual(changesOf(build, 'update t set a = 9')['t']?.upserted, ['~i2;'])
    assert.deepEqual(changesOf(`${build} drop index z;`, 'update t set a = 9')['t']?.upserted, ['~i3;'])
  })
})
