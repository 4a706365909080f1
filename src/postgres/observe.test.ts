import assert from 'node:assert/strict'
import {test} from 'vitest'
import {queryTypeOf} from './observe.ts'

for (const [text, expected] of [
  ['select 1', 'select'],
  ['\n    select\n1', 'select'],
  ['values (1)', 'select'],
  ['INSERT into t values (1)', 'insert'],
  ['update t set a = 1', 'update'],
  ['delete from t', 'delete'],
  ['with x as (select 1) select * from x', 'select'],
  ['with gone as (delete from t returning *) insert into u select * from gone', 'delete'],
  ['with t as (select updated_at from u) select * from t', 'select'],
  ['begin; select set_config(1)', 'begin'],
  ['commit', 'commit'],
  ['rollback', 'rollback'],
  ['rollback to owsync_1; release owsync_1', 'rollback'],
  ['savepoint owsync_1', 'savepoint'],
  ['set local lock_timeout = 1', 'set'],
  ['listen "owsync:1"', 'listen'],
  ['create index on t (a)', 'ddl'],
  ['vacuum', 'other'],
  ['toString', 'other'],
  ['', 'other'],
] as const)
  test(`${JSON.stringify(text)} counts as ${expected}`, () => {
    assert.equal(queryTypeOf(text), expected)
  })
