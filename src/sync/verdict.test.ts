import assert from 'node:assert/strict'
import {test} from 'vitest'
import {judge, type RowState} from './verdict.ts'

const [a, b, c] = ['a', 'b', 'c'].map(text => Buffer.from(text)) as [Buffer, Buffer, Buffer]
const equal: RowState = {source: a, target: 'live', values: a, hash: a, isAccepted: false, known: a}
const gone = {values: undefined, hash: undefined} as const

for (const [what, seen, newer, expected] of [
  ['both sides are as the last cut left them', {}, true, 'equal'],
  ['both sides lack it', {source: undefined, target: 'deleted', known: undefined}, true, 'equal'],
  ['the source has changed since', {source: b}, true, 'pending'],
  ['the source differs although its file has not changed', {source: b}, false, 'changed'],
  ['somebody changed the target', {values: b}, true, 'changed'],
  ['both have changed', {source: b, values: c}, true, 'changed'],
  ['somebody changed the target, and its hash with it', {values: b, hash: b}, true, 'changed'],
  ['the source has changed, and somebody the hash', {source: b, hash: c}, true, 'changed'],
  ['somebody changed the hash alone', {hash: b}, true, 'hash'],
  ['somebody removed the hash', {hash: undefined}, true, 'hash'],
  ['the source has a new row', {target: 'absent', ...gone, known: undefined}, true, 'pending'],
  [
    'the source has a row again that was deleted',
    {target: 'deleted', values: a, hash: a, known: undefined},
    true,
    'pending',
  ],
  [
    'a new row, in a file that has not changed',
    {target: 'absent', ...gone, known: undefined},
    false,
    'missing',
  ],
  ['somebody removed the row', {target: 'absent', ...gone}, true, 'missing'],
  ['somebody marked the row deleted', {target: 'deleted'}, true, 'missing'],
  ['somebody removed a row that has changed since', {source: b, target: 'absent', ...gone}, true, 'missing'],
  ['the source has deleted the row since', {source: undefined}, true, 'pending'],
  ['it is gone from a source that has not changed', {source: undefined}, false, 'extra'],
  ['it is gone, and somebody changed it', {source: undefined, values: b}, true, 'extra'],
  ['somebody added a row', {source: undefined, known: undefined, hash: undefined}, true, 'extra'],
  ['somebody added a row with a hash', {source: undefined, known: undefined}, true, 'extra'],
  ['a conflict accepted the difference', {values: b, isAccepted: true}, true, 'accepted'],
  ['a conflict accepted that it is deleted', {target: 'deleted', isAccepted: true}, false, 'accepted'],
  // Without a sidecar the target's own memory has to do.
  ['unremembered: the source has changed since', {source: b, known: 'unknown'}, true, 'pending'],
  ['unremembered: somebody changed the target', {values: b, known: 'unknown'}, true, 'changed'],
  ['unremembered: the source has deleted the row', {source: undefined, known: 'unknown'}, true, 'pending'],
  [
    'unremembered: somebody added a row',
    {source: undefined, hash: undefined, known: 'unknown'},
    true,
    'extra',
  ],
  ['unremembered: a new row', {target: 'absent', ...gone, known: 'unknown'}, true, 'pending'],
  ['unremembered: a tombstone of this very row', {target: 'deleted', known: 'unknown'}, true, 'missing'],
  [
    'unremembered: a tombstone of another state',
    {source: b, target: 'deleted', known: 'unknown'},
    true,
    'pending',
  ],
] as const)
  test(`when ${what}: ${expected}`, () => {
    assert.equal(judge({...equal, ...seen}, newer), expected)
  })
