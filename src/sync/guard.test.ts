import assert from 'node:assert/strict'
import {describe, test} from 'vitest'
import {suspicion, type Loss, type TableLoss} from './guard.ts'

const guard = {rows: 100, share: 0.2}

const table = (name: string, before: number, deleted: number, hasVanished = false): TableLoss => ({
  table: name,
  before,
  deleted,
  hasVanished,
})

const loss = (tables: readonly TableLoss[], more: Partial<Loss> = {}): Loss => ({
  tables,
  after: tables.reduce((rows, {before, deleted}) => rows + before - deleted, 0),
  revision: 'same',
  isOtherFile: false,
  ...more,
})

describe('a cut goes ahead when', () => {
  for (const [what, cut] of [
    ['nothing is deleted', loss([table('chat', 500, 0)])],
    ['there was nothing before', loss([table('chat', 0, 0)], {after: 5})],
    ['an empty file stays empty', loss([table('chat', 0, 0)])],
    ['many rows are deleted, but a small share', loss([table('chat', 10_000, 2_000)])],
    ['a large share is deleted, but few rows', loss([table('chat', 100, 99)])],
    ['just as many as both allow', loss([table('chat', 500, 100)])],
    ['an empty table vanishes', loss([table('chat', 5, 0), table('empty', 0, 0, true)])],
    ['one small table of many is emptied', loss([table('chat', 500, 0), table('tag', 50, 50)])],
    ['two tables are emptied', loss([table('a', 90, 90), table('b', 90, 90), table('c', 10, 0)])],
    [
      'three are emptied that were little of the file',
      loss(['a', 'b', 'c'].map(name => table(name, 5, 5)).concat(table('d', 50, 0))),
    ],
    [
      'nearly everything is deleted, and a little comes anew',
      loss([table('chat', 90, 90), table('tag', 5, 0)], {after: 5 + 8}),
    ],
    ['most of the few rows there were are others', loss([table('chat', 9, 9)], {after: 9})],
    ['another file holds at least half of the rows', loss([table('chat', 100, 50)], {isOtherFile: true})],
    ['another file lacks the few rows there were', loss([table('chat', 9, 8)], {isOtherFile: true})],
    ['an upgrade deletes', loss([table('chat', 1_000, 900)], {revision: 'forward'})],
    [
      'an upgrade drops tables',
      loss([table('chat', 9, 0), table('old', 1_000, 1_000, true)], {revision: 'forward'}),
    ],
  ] as const)
    test(what, () => {
      assert.equal(suspicion(cut, guard), undefined)
    })

  test('the guard is off, whatever is deleted', () => {
    const cut = loss([table('chat', 1_000, 999), table('old', 1_000, 1_000, true)], {isOtherFile: true})
    assert.equal(suspicion(cut, undefined), undefined)
  })
})

describe('a person is asked when', () => {
  for (const [what, cut, reason] of [
    ['the schema went back', loss([table('chat', 5, 0)], {revision: 'backward'}), /earlier Alembic revision/],
    ['all rows are gone', loss([table('chat', 5, 5)]), /lost all its 5 rows/],
    [
      'all rows are gone in an upgrade',
      loss([table('chat', 5, 5)], {revision: 'forward'}),
      /lost all its 5 rows/,
    ],
    [
      'a table vanishes with its rows',
      loss([table('chat', 50, 0), table('tag', 3, 3, true)]),
      /^table tag vanished with 3 rows$/,
    ],
    [
      'more rows than both limits are deleted',
      loss([table('chat', 505, 102), table('tag', 1, 0)]),
      /table chat lost 102 of 505 rows/,
    ],
    [
      'another file has less than half of the rows',
      loss([table('chat', 100, 51)], {isOtherFile: true}),
      /another file .* 51 of 100/,
    ],
    [
      'three tables are emptied that were most of the file',
      loss([table('a', 60, 60), table('b', 60, 60), table('c', 60, 60), table('d', 9, 0)]),
      /180 of 189 rows are gone, all of a, b, c: .*another client/,
    ],
    [
      'nearly all rows are gone, and others stand in their place',
      loss([table('chat', 90, 90), table('tag', 90, 90), table('config', 1, 0)], {after: 1 + 20}),
      /180 of 181 rows are gone and 20 others have come: .*another client/,
    ],
    [
      'many tables lose rows: the first few are named',
      loss(['a', 'b', 'c', 'd', 'e'].map(name => table(name, 505, 202))),
      /table a .*, table b .*, table c .* and 2 more/,
    ],
  ] as const)
    test(what, () => {
      assert.match(suspicion(cut, guard) ?? 'no reason', reason)
    })

  test('the file went back or was emptied, even with the guard off', () => {
    assert.match(suspicion(loss([table('chat', 5, 5)]), undefined) ?? '', /lost all/)
    assert.match(suspicion(loss([], {revision: 'backward'}), undefined) ?? '', /earlier/)
  })
})
