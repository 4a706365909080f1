import assert from 'node:assert/strict'
import {describe, test} from 'vitest'
import {keyOf, keyOfRowid} from '../core/canonical.ts'
import type {Value} from '../core/value.ts'
import {conflictTypeOf, conflictTypes, rulingOn, type Conflict, type SideChange} from './conflict.ts'
import {strategyNames} from './read-rules.ts'
import {defaultRules, readRules} from './rules.ts'
import type {Strategy} from './strategies.ts'

// Every cell of (what the source did × what the target did × the strategy × which side says it is newer × the
// direction), with every shape of key.

type Outcome = 'source' | 'target' | 'merged' | 'pending'
type Times = 'source newer' | 'target newer' | 'equal'

/** What `newest_wins` keeps by the times, what the other strategies keep whatever the times. */
type Expected = {
  readonly newest_wins: readonly [sourceNewer: Outcome, targetNewer: Outcome, equal: Outcome]
  readonly merge: Outcome
}

// prettier-ignore
const cells: readonly [source: SideChange, target: SideChange, oneWay: Expected, twoWay?: Expected][] = [
  ['update', 'update', {newest_wins: ['source', 'target', 'source'], merge: 'merged'}],
  ['insert', 'insert', {newest_wins: ['source', 'target', 'source'], merge: 'merged'}],
  ['insert', 'update', {newest_wins: ['source', 'target', 'source'], merge: 'merged'}],
  ['update', 'insert', {newest_wins: ['source', 'target', 'source'], merge: 'merged'}],
  ['update', 'delete', {newest_wins: ['source', 'source', 'source'], merge: 'source'}],
  ['insert', 'delete', {newest_wins: ['source', 'source', 'source'], merge: 'source'}],
  ['delete', 'update', {newest_wins: ['source', 'source', 'source'], merge: 'target'}],
  ['delete', 'insert', {newest_wins: ['source', 'source', 'source'], merge: 'target'}],
  ['none', 'update', {newest_wins: ['source', 'target', 'source'], merge: 'target'},
                     {newest_wins: ['source', 'target', 'target'], merge: 'target'}],
  ['none', 'insert', {newest_wins: ['source', 'source', 'source'], merge: 'target'},
                     {newest_wins: ['target', 'target', 'target'], merge: 'target'}],
  ['none', 'delete', {newest_wins: ['source', 'source', 'source'], merge: 'target'},
                     {newest_wins: ['target', 'target', 'target'], merge: 'target'}],
]

const keyShapes: readonly [what: string, key: string, columns: Readonly<Record<string, Value>>][] = [
  ['a text id', keyOf(['id-1']), {id: 'id-1'}],
  ['an integer', keyOf([7n]), {id: 7n}],
  ['several columns', keyOf(['a', 'b']), {id: 'a', user_id: 'b'}],
  ['text like an encoded key', keyOf(['~i7;']), {id: '~i7;'}],
  ['a long id', keyOf(['k'.repeat(4_000)]), {id: 'k'.repeat(4_000)}],
  ['bytes', keyOf([new Uint8Array([0, 255])]), {id: new Uint8Array([0, 255])}],
  ['the rowid', keyOfRowid(5n), {}],
]

for (const [what, key, keyColumns] of keyShapes) {
  describe(`with ${what} as key`, () => {
    for (const [source, target, oneWay, twoWay = oneWay] of cells) {
      for (const [direction, expected] of [
        ['one_way', oneWay],
        ['two_way', twoWay],
      ] as const) {
        test(`source ${source}, target ${target}, ${direction}`, () => {
          for (const strategy of strategyNames) {
            for (const [i, times] of (['source newer', 'target newer', 'equal'] as const).entries()) {
              const outcomes: Record<Strategy, Outcome | undefined> = {
                newest_wins: expected.newest_wins[i],
                merge: expected.merge,
                source_wins: 'source',
                target_wins: 'target',
                manual: 'pending',
              }
              const conflict = {...conflictOf(source, target, times, keyColumns), key, direction}
              const ruling = rulingOn(conflict, rulesWith(strategy))
              const cell = `${strategy}, ${times}`
              assert.equal(outcomeOf(ruling.verdict), outcomes[strategy], cell)
              assert.equal(ruling.strategy, strategy)
              assert.ok(ruling.reason !== '' && !ruling.reason.includes('a secret'), ruling.reason)
              if (ruling.verdict.keep !== 'merged') continue
              const row = Object.fromEntries(ruling.verdict.row)
              assert.deepEqual(
                row,
                {
                  ...keyColumns,
                  ours: 'a secret of the source',
                  theirs: 'a secret of the target',
                  tags: '["both", "s", "t"]',
                  updated_at: times === 'target newer' ? 30n : 20n,
                },
                cell,
              )
            }
          }
        })
      }
    }
  })
}

test('the table has a row for every conflict there can be', () => {
  const named = new Set(cells.map(([source, target]) => `${source} ${target}`))
  for (const [source, targets] of Object.entries(conflictTypeOf)) {
    for (const [target, type] of Object.entries(targets)) {
      assert.equal(named.has(`${source} ${target}`), type !== undefined, `${source} ${target}`)
    }
  }
})

for (const type of ['constraint_violation', 'type_mismatch'] as const) {
  test(`what the source cannot take is left to a person, unless the source wins (${type})`, () => {
    const outcomes = {
      'source newer': {
        newest_wins: 'source',
        source_wins: 'source',
        target_wins: 'pending',
        merge: 'pending',
        manual: 'pending',
      },
      'target newer': {
        newest_wins: 'pending',
        source_wins: 'source',
        target_wins: 'pending',
        merge: 'pending',
        manual: 'pending',
      },
    } as const
    for (const [times, expected] of Object.entries(outcomes) as [
      keyof typeof outcomes,
      Record<Strategy, Outcome>,
    ][]) {
      for (const strategy of strategyNames) {
        const conflict = {...conflictOf('update', 'update', times, {id: 'x'}), type}
        assert.equal(outcomeOf(rulingOn(conflict, rulesWith(strategy)).verdict), expected[strategy], strategy)
      }
    }
  })
}

test('a ruling says which entry of which document it follows, and whom to tell', () => {
  const conflict = conflictOf('update', 'update', 'equal', {id: 'x'})
  const onTable = (table: string) => {
    const {strategy, rule, place, notify} = rulingOn({...conflict, table}, defaultRules)
    return {strategy, rule, place, notify}
  }
  const place = 'default rules'
  assert.deepEqual(
    ['auth', 'oauth_session', 'user', 'tag', 'chat', 'message', 'config', 'function', 'note'].map(onTable),
    [
      {strategy: 'source_wins', rule: 'table_strategies.auth', place, notify: false},
      {strategy: 'source_wins', rule: 'table_strategies.oauth_session', place, notify: false},
      {strategy: 'newest_wins', rule: 'table_strategies.user', place, notify: false},
      {strategy: 'newest_wins', rule: 'table_strategies.tag', place, notify: false},
      {strategy: 'merge', rule: 'table_strategies.chat', place, notify: false},
      {strategy: 'merge', rule: 'table_strategies.message', place, notify: false},
      {strategy: 'manual', rule: 'table_strategies.config', place, notify: true},
      {strategy: 'manual', rule: 'table_strategies.function', place, notify: true},
      {strategy: 'newest_wins', rule: 'default_strategy', place, notify: false},
    ],
  )
})

test('every conflict type can be ruled on by every strategy, with any side missing', () => {
  const full = conflictOf('update', 'update', 'equal', {id: 'x'})
  for (const type of conflictTypes)
    for (const strategy of strategyNames)
      for (const sides of [
        {},
        {source: undefined},
        {target: undefined},
        {source: undefined, target: undefined},
      ])
        assert.ok(rulingOn({...full, ...sides, type}, rulesWith(strategy)).reason.length > 0)
})

function rulesWith(strategy: Strategy) {
  return readRules({default: {strategy, ...(strategy === 'merge' && {merge: {tags: 'union'}})}}, 'the test')
}

function outcomeOf(verdict: ReturnType<typeof rulingOn>['verdict']): Outcome {
  return verdict.keep === 'target' && verdict.isPending ? 'pending' : verdict.keep
}

/** Each side has changed a column of its own, and both their tags; what they were before is known for updates. */
function conflictOf(
  sourceDid: SideChange,
  targetDid: SideChange,
  times: Times,
  keyColumns: Readonly<Record<string, Value>>,
): Conflict {
  const type = conflictTypeOf[sourceDid][targetDid]
  assert.ok(type)
  const before = {...keyColumns, ours: null, theirs: null, tags: '["both"]', updated_at: 5n}
  const source = {...before, ours: 'a secret of the source', tags: '["both", "s"]', updated_at: 20n}
  const targetAt = {'source newer': 10n, 'target newer': 30n, equal: 20n}[times]
  const target = {...before, theirs: 'a secret of the target', tags: '["both", "t"]', updated_at: targetAt}
  const hasSource = sourceDid !== 'delete' && !(sourceDid === 'none' && targetDid === 'insert')
  return {
    table: 'note',
    key: 'k',
    type,
    columns: Object.keys(before),
    source: hasSource ? new Map<string, Value>(Object.entries(source)) : undefined,
    target: targetDid === 'delete' ? undefined : new Map<string, Value>(Object.entries(target)),
    ...(type !== 'drift' && {base: new Map<string, Value>(Object.entries(before))}),
    now: new Date('2026-03-01T12:00:00Z'),
  }
}
