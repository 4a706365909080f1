import assert from 'node:assert/strict'
import {DatabaseSync} from 'node:sqlite'
import fc from 'fast-check'
import {describe, test} from 'vitest'
import {introspect} from './introspect.ts'
import {rowsBehind} from './keyset.ts'
import {TableReader} from './read.ts'

const directions = ['', 'desc']
const collations = ['binary', 'nocase', 'rtrim']

/** A table whose key has some of its columns compared otherwise than they are themselves. */
function keyed(terms: readonly {column: string; key: string; direction: string}[]): string {
  const columns = terms.map(({column}, i) => `k${i} text collate ${column}`)
  const key = terms.map(({key, direction}, i) => `k${i} collate ${key} ${direction}`)
  return `create table t (v, ${columns.join(', ')}, primary key (${key.join(', ')})) without rowid`
}

const keys = fc.array(
  fc.record({
    column: fc.constantFrom(...collations),
    key: fc.constantFrom(...collations),
    direction: fc.constantFrom(...directions),
  }),
  {minLength: 1, maxLength: 3},
)
const texts = fc.constantFrom('', 'a', 'A', 'a ', 'b', 'B ', 'ä')

describe('rows behind a position', () => {
  test('pages of whatever length read every row once, by any key', () => {
    fc.assert(
      fc.property(
        keys,
        fc.array(fc.tuple(texts, texts, texts), {maxLength: 60}),
        fc.integer({min: 1, max: 9}),
        (key, rows, length) => {
          using db = new DatabaseSync(':memory:')
          db.exec(keyed(key))
          const marks = key.map(() => '?').join(', ')
          const insert = db.prepare(`insert or ignore into t values (?, ${marks})`)
          for (const [i, row] of rows.entries()) insert.run(i, ...row.slice(0, key.length))
          const [table] = introspect(db).tables
          assert.ok(table !== undefined)
          const reader = new TableReader(db, table)
          const read: unknown[] = []
          for (let at, isFirst = true; isFirst || at !== undefined; isFirst = false) {
            const page = reader.page(at, {ms: 60_000, bytes: Infinity, rows: length})
            read.push(...page.rows.map(row => row.values[0]))
            at = page.next
          }
          const stored = db.prepare('select v from t').all()
          assert.deepEqual(
            read.map(Number).toSorted((a, b) => a - b),
            stored.map(({v}) => Number(v)).toSorted((a, b) => a - b),
          )
        },
      ),
      {numRuns: 300},
    )
  })

  test('are looked up in the index, never read from its start or sorted', () => {
    for (const [first, second] of [
      ['', ''],
      ['desc', ''],
      ['', 'desc'],
      ['desc', 'desc'],
    ]) {
      using db = new DatabaseSync(':memory:')
      const [a, b] = ['a collate nocase', 'b collate binary']
      db.exec(
        `create table t (a, b collate rtrim); create unique index i on t (${a} ${first}, ${b} ${second})`,
      )
      const plans = rowsBehind([
        {by: a, descends: first === 'desc', at: 0},
        {by: b, descends: second === 'desc', at: 1},
      ]).map(({where, orderBy}) =>
        db
          .prepare(`explain query plan select a, b from t where ${where} order by ${orderBy}`)
          .all()
          .map(({detail}) => String(detail)),
      )
      assert.ok(plans.length >= 2)
      for (const plan of plans) {
        assert.equal(plan.length, 1, plan.join(', '))
        assert.match(String(plan), /^SEARCH t USING COVERING INDEX i \((a=\? AND b[<>=]\?|a[<>=]\?)\)$/)
      }
    }
  })

  test('are read without sorting by all who ask for them', () => {
    using db = new DatabaseSync(':memory:')
    db.exec(`create table keyed (a collate nocase, b, primary key (a collate binary, b desc)) without rowid;
      create table indexed (a, b); create unique index i on indexed (a collate nocase, b desc);
      with recursive n (i) as (select 1 union all select i + 1 from n where i < 100)
        insert into keyed select i % 10, i from n;
      insert into indexed select * from keyed`)
    const asked: string[] = []
    const prepare = db.prepare.bind(db)
    db.prepare = sql => {
      asked.push(sql)
      return prepare(sql)
    }
    const {tables} = introspect(db)
    const keyed = tables.find(({name}) => name === 'keyed')
    assert.ok(keyed !== undefined)
    const reader = new TableReader(db, keyed)
    const budget = {ms: 60_000, bytes: Infinity, rows: 40}
    reader.page(reader.page(undefined, budget).next, budget)
    const plans = asked
      .filter(sql => / from "(keyed|indexed)" /.test(sql))
      .flatMap(sql => prepare(`explain query plan ${sql}`).all())
      .map(({detail}) => String(detail))
    assert.ok(plans.some(detail => detail.startsWith('SEARCH keyed')))
    assert.ok(plans.some(detail => detail.startsWith('SEARCH r ')))
    assert.deepEqual(
      plans.filter(detail => detail.includes('TEMP B-TREE')),
      [],
    )
  })
})
