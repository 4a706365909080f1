import assert from 'node:assert/strict'
import {test} from 'vitest'
import {explain} from './explain.ts'
import {strategyNames} from './read-rules.ts'
import {defaultRules, readRules} from './rules.ts'

test('what would happen in a table is told case by case', () => {
  const {outcomes, ...head} = explain(defaultRules, 'user')
  assert.deepEqual(head, {
    table: 'user',
    strategy: 'newest_wins',
    rule: 'table_strategies.user',
    place: 'default rules',
    reason: null,
    notify: false,
    compare_field: 'updated_at',
    merge_rules: [],
  })
  const [later, earlier, untold, gone] = outcomes
  assert.deepEqual(later, {
    type: 'update_update',
    when: 'both have changed the row, the target later',
    keeps: 'target',
    why: "the target's updated_at is later by 1 min",
  })
  assert.equal(earlier?.keeps, 'source')
  assert.equal(untold?.why, "the source's updated_at is NULL, so the source wins")
  assert.equal(gone?.when, 'the source has changed it, the target deleted it')
})

test('a table that lacks the compared column is told so', () => {
  const {outcomes} = explain(defaultRules, 'tag', {columns: ['id', 'user_id', 'name']})
  const both = outcomes.filter(({type}) => type === 'update_update')
  assert.deepEqual(
    both.map(({keeps, why}) => [keeps, why]),
    both.map(() => ['source', 'the table has no updated_at, so the source wins']),
  )
})

test('a merge names its rules and where they were written', () => {
  const rules = readRules({tables: {chat: {merge: {title: 'target_wins'}}}}, '/etc/rules.json')
  const {merge_rules, outcomes} = explain(rules, 'chat')
  assert.deepEqual(
    merge_rules.find(({field}) => field === 'chat.messages'),
    {
      field: 'chat.messages',
      rule: 'union',
      key: 'id',
      place: 'default rules',
    },
  )
  assert.deepEqual(merge_rules.at(-1), {field: 'title', rule: 'target_wins', place: '/etc/rules.json'})
  assert.equal(outcomes.find(({type}) => type === 'update_update')?.keeps, 'merged')
  assert.equal(outcomes.find(({type}) => type === 'update_delete')?.keeps, 'source')
  assert.equal(outcomes.find(({when}) => when === 'only the target has changed it')?.keeps, 'target')
  assert.equal(outcomes.find(({type}) => type === 'constraint_violation')?.keeps, 'target, pending')
})

test('in two_way the target’s own edits are kept where no time speaks against them', () => {
  const edit = (direction: 'one_way' | 'two_way') =>
    explain(defaultRules, 'note', {direction}).outcomes.find(
      ({when}) => when === 'only the target has inserted it',
    )
  assert.equal(edit('one_way')?.keeps, 'source')
  assert.equal(edit('two_way')?.keeps, 'target')
})

test('every strategy is explained for every type of conflict', () => {
  for (const strategy of strategyNames) {
    const {outcomes} = explain(readRules({default: strategy}, 'the test'), 'anything')
    assert.equal(new Set(outcomes.map(({type}) => type)).size, 7)
    assert.equal(new Set(outcomes.map(({type, when}) => `${type} ${when}`)).size, outcomes.length)
  }
})
