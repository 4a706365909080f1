import assert from 'node:assert/strict'
import {readFile} from 'node:fs/promises'
import {describe, test} from 'vitest'
import {documentOf} from './explain.ts'
import {
  ConflictRulesError,
  defaultDocument,
  defaultRules,
  readRules,
  ruleFor,
  rulesOf,
  type Rules,
} from './rules.ts'

describe('rules are read', () => {
  const document = {
    default_strategy: 'source_wins',
    compare_field: 'changed_at',
    table_strategies: {
      note: {
        strategy: 'merge',
        merge_rules: {data: 'union', 'data.list': {rule: 'union', key: 'id'}, '"odd.name".x': 'max'},
        reason: 'Notes are shared.',
      },
      chat: 'manual',
      tag: {compare_field: 'seen_at', notify: true},
    },
    resolution_log: {retention_days: 90},
    notification: {high_conflict_rate: {threshold: 3}},
  }

  for (const [what, written] of [
    ['at top level', document],
    ['under conflict_resolution', {conflict_resolution: document}],
    ['under their shorter names', shortNames(document)],
  ] as const) {
    test(`${what}, over the default rules`, () => {
      const rules = readRules(written, 'rules.json')
      assert.deepEqual(told(rules, 'note'), ['merge', 'changed_at', 'table_strategies.note', 'rules.json'])
      assert.deepEqual(ruleFor(rules, 'note').mergeRules, [
        {path: ['data'], rule: 'union', place: 'rules.json'},
        {path: ['data', 'list'], rule: 'union', key: 'id', place: 'rules.json'},
        {path: ['odd.name', 'x'], rule: 'max', place: 'rules.json'},
      ])
      assert.equal(ruleFor(rules, 'note').why, 'Notes are shared.')
      assert.deepEqual(told(rules, 'chat'), ['manual', 'changed_at', 'table_strategies.chat', 'rules.json'])
      assert.deepEqual(told(rules, 'tag'), ['newest_wins', 'seen_at', 'table_strategies.tag', 'rules.json'])
      assert.equal(ruleFor(rules, 'tag').notify, true)
      assert.deepEqual(told(rules, 'anything'), [
        'source_wins',
        'changed_at',
        'default_strategy',
        'rules.json',
      ])
      assert.deepEqual(told(rules, 'config'), [
        'manual',
        'changed_at',
        'table_strategies.config',
        'default rules',
      ])
      assert.deepEqual(rules.resolutionLog, {enabled: true, retentionDays: 90, includeDataSnapshot: false})
      assert.deepEqual(rules.notification, {highConflictRate: {threshold: 3, windowMinutes: 10}})
    })
  }

  test('an empty document changes nothing', () => {
    assert.deepEqual(readRules({}, 'rules.json'), defaultRules)
    assert.deepEqual(readRules({conflict_resolution: {}}, 'rules.json'), defaultRules)
  })

  test('the rules of the original design are taken as they are', () => {
    const rules = readRules(
      {
        conflict_resolution: {
          default_strategy: 'newest_wins',
          table_strategies: {
            user: {strategy: 'newest_wins', compare_field: 'updated_at'},
            chat: {strategy: 'merge', merge_rules: {messages: 'append', metadata: 'newest_wins'}},
            oauth_session: {strategy: 'source_wins', reason: 'Active sessions should not be overwritten'},
            config: {strategy: 'manual', notify: true, reason: 'Configuration changes require review'},
          },
          resolution_log: {enabled: true, retention_days: 30, include_data_snapshot: false},
        },
      },
      'rules.json',
    )
    assert.equal(ruleFor(rules, 'oauth_session').why, 'Active sessions should not be overwritten')
    const [first] = ruleFor(rules, 'chat').mergeRules
    assert.deepEqual(first?.path, ['chat', 'history', 'messages'])
  })

  test('a rule for a field takes the place of the one below it, the others stay', () => {
    const rules = readRules(
      {tables: {chat: {merge: {'meta.tags': 'source_wins', title: 'target_wins'}}}},
      'mine',
    )
    const byPath = new Map(ruleFor(rules, 'chat').mergeRules.map(rule => [rule.path.join('.'), rule]))
    assert.deepEqual(byPath.get('meta.tags'), {path: ['meta', 'tags'], rule: 'source_wins', place: 'mine'})
    assert.deepEqual(byPath.get('title'), {path: ['title'], rule: 'target_wins', place: 'mine'})
    assert.equal(byPath.get('chat.messages')?.place, 'default rules')
    assert.equal(ruleFor(rules, 'chat').strategy, 'merge')
  })

  test('merge rules of the default strategy hold in every table, behind the table’s own', () => {
    const rules = readRules(
      {
        default: {strategy: 'merge', merge: {tags: 'union', seen_at: 'max'}},
        tables: {note: {merge: {seen_at: 'min'}}, chat: 'merge'},
      },
      'mine',
    )
    const names = (table: string) =>
      ruleFor(rules, table).mergeRules.map(({path, rule}) => `${path.join('.')} ${rule}`)
    assert.deepEqual(names('anything'), ['tags union', 'seen_at max'])
    assert.deepEqual(names('note'), ['seen_at min', 'tags union'])
    assert.ok(names('chat').includes('seen_at max') && names('chat').includes('meta.tags union'))
  })
})

describe('what a client says goes before the file, which goes before the default rules', () => {
  const file = {
    place: '/etc/rules.json',
    document: {default: 'manual', tables: {chat: 'source_wins', note: 'merge'}},
  }
  const config = {webhook: 'https://example.org', conflict_resolution: {tables: {chat: 'target_wins'}}}

  test('setting by setting', () => {
    const rules = rulesOf(file, {name: 'acme', config})
    assert.deepEqual(told(rules, 'chat'), [
      'target_wins',
      'updated_at',
      'table_strategies.chat',
      'config of acme',
    ])
    assert.deepEqual(told(rules, 'note'), ['merge', 'updated_at', 'table_strategies.note', '/etc/rules.json'])
    assert.deepEqual(told(rules, 'other'), ['manual', 'updated_at', 'default_strategy', '/etc/rules.json'])
    assert.deepEqual(told(rules, 'auth'), [
      'source_wins',
      'updated_at',
      'table_strategies.auth',
      'default rules',
    ])
  })

  for (const [what, client] of [
    ['no client', undefined],
    ['a client without rules', {name: 'acme', config: {webhook: 'x'}}],
    ['a client without config', {name: 'acme', config: null}],
  ] as const) {
    test(`${what}: the file`, () => {
      assert.deepEqual(rulesOf(file, client), readRules(file.document, file.place))
    })
  }

  test('a mistake in a client’s rules is told as the client’s', () => {
    assert.throws(
      () => rulesOf(file, {name: 'acme', config: {conflict_resolution: {tables: {chat: 'best'}}}}),
      {
        code: 'SYNC_CONFLICT_RULES',
        message: /config of acme.*conflict_resolution\.tables\.chat: expected one of/,
      },
    )
  })
})

describe('every mistake is told with its place', () => {
  for (const [what, document, ...expected] of [
    ['no object', [], 'the document: expected an object, found a list'],
    ['nothing', null, 'the document: expected an object, found null'],
    ['an unknown key', {defualt: 'merge'}, /^defualt: is not known; known here: default_strategy, default, /],
    [
      'an unknown key beside conflict_resolution',
      {conflict_resolution: {}, tables: {}},
      'tables: is not known; known here: conflict_resolution',
    ],
    [
      'an unknown strategy',
      {default_strategy: 'newest'},
      'default_strategy: expected one of newest_wins, source_wins, target_wins, merge, manual; found "newest"',
    ],
    [
      'a strategy of another kind',
      {tables: {chat: {strategy: 1}}},
      /^tables\.chat\.strategy: expected one of .* found a number$/,
    ],
    [
      'two names for one thing',
      {default: 'merge', default_strategy: 'merge'},
      /default_strategy and default are the same/,
    ],
    ['a table that is a list', {tables: {chat: []}}, 'tables.chat: expected an object, found a list'],
    ['tables that are a list', {tables: []}, 'tables: expected an object, found a list'],
    [
      'an unknown key of a table',
      {tables: {chat: {stratgy: 'merge'}}},
      /^tables\.chat\.stratgy: is not known/,
    ],
    ['a null', {tables: {chat: {strategy: null}}}, 'tables.chat.strategy: is null; leave it out instead'],
    ['an odd name', {tables: {'a b': {x: 1}}}, /^tables\."a b"\.x: is not known/],
    [
      'an unknown merge rule',
      {tables: {chat: {merge_rules: {'meta.tags': 'join'}}}},
      'tables.chat.merge_rules."meta.tags": expected one of append, union, newest_wins, source_wins, target_wins, max, min; found "join"',
    ],
    [
      'a merge rule without a rule',
      {tables: {chat: {merge: {title: {}}}}},
      'tables.chat.merge.title: rule is missing',
    ],
    [
      'a key without union',
      {tables: {chat: {merge: {title: {rule: 'max', key: 'id'}}}}},
      'tables.chat.merge.title: key is of use only with union; here the rule is max',
    ],
    ['an empty path', {tables: {chat: {merge: {'': 'max'}}}}, /^tables\.chat\.merge\."": expected a column/],
    [
      'a path that ends in a dot',
      {tables: {chat: {merge: {'a.': 'max'}}}},
      /^tables\.chat\.merge\."a\.": expected a column/,
    ],
    [
      'a reference into another column',
      {tables: {chat: {merge: {'a.b': {rule: 'max', member_of: 'c.d'}}}}},
      /^tables\.chat\.merge\."a\.b"\.member_of: has to be a place in the same column/,
    ],
    [
      'merge rules without merge',
      {tables: {note: {strategy: 'manual', merge: {title: 'max'}}}},
      'tables.note.merge: is of use only with the strategy merge; here it is manual',
    ],
    [
      'merge rules under another default',
      {tables: {note: {merge: {title: 'max'}}}},
      /here it is newest_wins$/,
    ],
    [
      'a flag that is text',
      {resolution_log: {enabled: 'yes'}},
      'resolution_log.enabled: expected true or false, found a string',
    ],
    [
      'days that are none',
      {resolution_log: {retention_days: 0}},
      /retention_days: expected a whole number from 1 to 1000000, found 0/,
    ],
    [
      'a threshold with a fraction',
      {notification: {high_conflict_rate: {threshold: 1.5}}},
      /threshold: expected .* found 1\.5/,
    ],
    [
      'an unknown notification',
      {notification: {mail: true}},
      'notification.mail: is not known; known here: high_conflict_rate',
    ],
    ['an empty compare field', {compare_field: ''}, 'compare_field: expected text, found nothing'],
    [
      'several at once',
      {tables: {chat: {merge: {x: 'join'}}, note: {strategy: 'all', merge: {y: 'max'}}}, default: 7},
      /^default: /,
      /^tables\.chat\.merge\.x: /,
      /^tables\.note\.strategy: /,
    ],
  ] as const) {
    test(what, () => {
      const problems = problemsOf(document)
      assert.equal(problems.length, expected.length, problems.join('\n'))
      for (const [i, wanted] of expected.entries()) {
        if (typeof wanted === 'string') assert.equal(problems[i], wanted)
        else assert.match(problems[i] ?? '', wanted)
      }
    })
  }
})

test('the default rules, written as a document, are the default rules', () => {
  assert.deepEqual(readRules(defaultDocument, 'default rules'), defaultRules)
  const bare: Rules = {...defaultRules, tables: new Map()}
  assert.deepEqual(readRules(documentOf(defaultRules), 'default rules', bare), defaultRules)
})

test('docs/conflicts.md shows the default rules', async () => {
  const page = await readFile('docs/conflicts.md', 'utf8')
  const [, shown = ''] = /```json\n([\s\S]*?)```/.exec(page) ?? []
  assert.deepEqual(JSON.parse(shown), defaultDocument)
})

function told(rules: Rules, table: string): string[] {
  const {strategy, compareField, entry, place} = ruleFor(rules, table)
  return [strategy, compareField, entry, place]
}

function problemsOf(document: unknown): readonly string[] {
  try {
    readRules(document, 'rules.json')
    return []
  } catch (error) {
    assert.ok(error instanceof ConflictRulesError, String(error))
    return error.problems
  }
}

function shortNames(document: Readonly<Record<string, unknown>>): unknown {
  const text = JSON.stringify(document)
    .replace('"default_strategy"', '"default"')
    .replace('"table_strategies"', '"tables"')
    .replace('"merge_rules"', '"merge"')
  return JSON.parse(text) as unknown
}
