import assert from 'node:assert/strict'
import fc from 'fast-check'
import {describe, test} from 'vitest'
import type {Value} from '../core/value.ts'
import {rulingOn, type Conflict, type Ruling} from './conflict.ts'
import {interleave} from './merge-json.ts'
import {readRules} from './rules.ts'

type Row = Readonly<Record<string, Value>>
type Rules = Readonly<Record<string, unknown>>

describe('a column is merged as its rule says', () => {
  // The source is the newer side in each.
  for (const [what, rule, source, target, expected] of [
    ['newest_wins', 'newest_wins', 'a', 'b', 'a'],
    ['source_wins', 'source_wins', 'a', 'b', 'a'],
    ['target_wins', 'target_wins', 'a', 'b', 'b'],
    ['max of integers', 'max', 9_007_199_254_740_992n, 9_007_199_254_740_993n, 9_007_199_254_740_993n],
    ['max of an integer and a REAL', 'max', 2n, 2.5, 2.5],
    ['max of text', 'max', 'b', 'a', 'b'],
    ['max of nothing and something', 'max', null, 1n, 1n],
    ['max of what has no order', 'max', 1n, 'a', 1n],
    ['min of integers', 'min', 3n, -2n, -2n],
    ['min of something and nothing', 'min', 1n, null, 1n],
    ['append of lines', 'append', 'one\ntwo', 'one\nthree', 'one\ntwo\nthree'],
    ['append of the same lines', 'append', 'one\ntwo', 'two', 'one\ntwo'],
    ['append to an empty text', 'append', '', 'one', 'one'],
    ['append to nothing', 'append', null, 'one', 'one'],
    ['append of lists', 'append', '[1, 2]', '[1, 2, 3]', '[1, 2, 3]'],
    ['append keeps what is there twice', 'append', '[1]', '[1, 1, 2]', '[1, 1, 2]'],
    ['append puts the target’s behind', 'append', '["s"]', '["t"]', '["s", "t"]'],
    ['union of lists by value', 'union', '["a", "b"]', '["b","c"]', '["a", "b", "c"]'],
    ['union takes nothing twice', 'union', '["a"]', '["c", "c"]', '["a", "c"]'],
    ['union of an empty list', 'union', '[]', '["c"]', '["c"]'],
    ['union of nothing and a list', 'union', null, '["c"]', '["c"]'],
    ['union of JSON null and a list', 'union', 'null', '["c"]', '["c"]'],
    ['union of a list and nothing', 'union', '["c"]', null, '["c"]'],
    ['union of objects by name', 'union', '{"a": 1}', '{"b": 2}', '{"a": 1, "b": 2}'],
    [
      'union of objects that differ in one',
      'union',
      '{"a": 1, "c": 1}',
      '{"a": 2, "b": 2}',
      '{"a": 1, "c": 1, "b": 2}',
    ],
    ['union of a list and an object', 'union', '["a"]', '{"b": 2}', '["a"]'],
    ['union of what is not JSON', 'union', '{"a": 1}', '{oops', '{"a": 1}'],
    ['union of bytes', 'union', new Uint8Array([1]), new Uint8Array([2]), new Uint8Array([1])],
    ['union with NaN in it', 'union', '{"a": NaN}', '{"b": Infinity}', '{"a": NaN, "b": Infinity}'],
  ] as const) {
    test(what, () => {
      assert.deepEqual(merged({c: rule}, {c: source}, {c: target}), expected)
    })
  }
})

describe('a place in JSON is merged as its rule says', () => {
  for (const [what, rules, source, target, expected] of [
    [
      'members only one side has stay, those that differ go to the newer side',
      {'c.tags': 'union'},
      '{"x": 1, "s": 1, "tags": ["a"]}',
      '{"x": 2, "t": 1, "tags": ["b"]}',
      '{"x": 1, "s": 1, "t": 1, "tags": ["a", "b"]}',
    ],
    [
      'a list of objects by key: new ones come in, those on both sides are merged member by member',
      {'c.l': {rule: 'union', key: 'id'}},
      '{"l": [{"id": 1, "v": "s", "s": 1}, {"id": 2}]}',
      '{"l": [{"id": 1, "v": "t", "t": 1}, {"id": 3}]}',
      '{"l": [{"id": 1, "v": "s", "s": 1, "t": 1}, {"id": 2}, {"id": 3}]}',
    ],
    [
      'items without the key are known by what they say',
      {c: {rule: 'union', key: 'id'}},
      '[{"id": 1}, {"x": 1}, 5]',
      '[{"x": 1}, {"x": 2}, 5, {"id": 1}]',
      '[{"id": 1}, {"x": 1}, {"x": 2}, 5]',
    ],
    [
      'a star stands for any member',
      {'c.*.n': 'max'},
      '{"a": {"n": 1}, "b": {"n": 5}}',
      '{"a": {"n": 3}, "b": {"n": 4}}',
      '{"a": {"n": 3}, "b": {"n": 5}}',
    ],
    [
      'the more exact path goes before the star',
      {'c.*': 'source_wins', 'c.b': 'target_wins'},
      '{"a": 1, "b": 1}',
      '{"a": 2, "b": 2}',
      '{"a": 1, "b": 2}',
    ],
    [
      'a rule for an object holds for what no deeper rule names',
      {c: 'target_wins', 'c.tags': 'union'},
      '{"x": 1, "s": 1, "tags": ["a"]}',
      '{"x": 2, "t": 1, "tags": ["b"]}',
      '{"x": 2, "t": 1, "tags": ["a", "b"]}',
    ],
    [
      'a list that only one side has stays whole when it is to be united',
      {c: 'source_wins', 'c.tags': 'union'},
      '{"x": 1}',
      '{"x": 2, "tags": ["b"]}',
      '{"x": 1, "tags": ["b"]}',
    ],
    [
      'max of numbers beyond every float',
      {'c.n': 'max'},
      '{"n": 12345678901234567890123}',
      '{"n": 12345678901234567890124}',
      '{"n": 12345678901234567890124}',
    ],
    [
      'a quoted name may hold dots',
      {'c."a.b"': 'target_wins'},
      '{"a.b": 1, "c": 1}',
      '{"a.b": 2, "c": 2}',
      '{"a.b": 2, "c": 1}',
    ],
    [
      'without rules a document goes whole to the newer side',
      {other: 'union'},
      '{"a": 1}',
      '{"b": 1}',
      '{"a": 1}',
    ],
  ] as const) {
    test(what, () => {
      assert.equal(merged(rules, {c: source}, {c: target}), expected)
    })
  }
})

describe('JSON that is untouched keeps its exact text', () => {
  for (const [what, rules, source, target, expected] of [
    [
      'blanks, escapes and numbers of the source stay',
      {c: 'union'},
      ' { "a" : 1.50 , "b":"\\u00e9", "c":  [1,2 ] }\n',
      '{"a": 1.5, "b": "é", "c": [1, 2], "d": 1E2}',
      ' { "a" : 1.50 , "b":"\\u00e9", "c":  [1,2 ] , "d": 1E2 }\n',
    ],
    [
      'what comes from the target has its text from there',
      {c: 'union'},
      '{"a":1,"b":2}',
      '{"a":1, "x" :  {"y":1.00}}',
      '{"a":1,"b":2,"x" :  {"y":1.00}}',
    ],
    [
      'a document that was indented stays so',
      {c: 'union'},
      '{\n  "a": 1,\n  "b": 2\n}',
      '{"c": 3}',
      '{\n  "a": 1,\n  "b": 2,\n  "c": 3\n}',
    ],
    [
      'a name that stands twice stays twice; the last one counts',
      {'c.a': 'target_wins'},
      '{"a": 1, "b": 0, "a": 2}',
      '{"a": 3}',
      '{"a": 1, "b": 0, "a": 3}',
    ],
    [
      'a name that the target has twice comes twice',
      {c: 'union'},
      '{"b": 0, "d": 0}',
      '{"b": 0, "a": 1, "a": 2}',
      '{"b": 0, "d": 0, "a": 1, "a": 2}',
    ],
    [
      'a side that has all of it already is taken as it is',
      {c: 'union'},
      '{"a": 1}',
      '{"b": [ ], "a": 1}',
      '{"b": [ ], "a": 1}',
    ],
    ['the source too', {c: 'union'}, '{"b": [ ], "a": 1}', '{"a":1.0}', '{"b": [ ], "a": 1}'],
    [
      'a document that was only spelled otherwise is not touched',
      {c: 'union'},
      '{"b": "\\u00e9", "a": 1}',
      '{"a":1.0,"b":"é"}',
      '{"b": "\\u00e9", "a": 1}',
    ],
    [
      'what is new stands behind what it stood behind',
      {c: 'union'},
      '["a", "s", "b"]',
      '["a", "t", "b"]',
      '["a", "s", "t", "b"]',
    ],
    ['what is new at the front stays there', {c: 'union'}, '["a", "b"]', '["t", "a"]', '["t", "a", "b"]'],
  ] as const) {
    test(what, () => {
      assert.equal(merged(rules, {c: source}, {c: target}), expected)
    })
  }

  test('20,000 levels below a merged member stay as they are', {timeout: 300_000}, () => {
    const deep = `${'[{"a":'.repeat(20_000)}1${'}]'.repeat(20_000)}`
    assert.equal(
      merged({c: 'union'}, {c: `{"d": ${deep}, "s": 1}`}, {c: `{"t": ${deep}, "d": ${deep}}`}),
      `{"t": ${deep}, "d": ${deep}, "s": 1}`,
    )
  })
})

describe('where it is known which side changed a field', () => {
  const rules = {'c.l': 'union', n: 'max', s: 'source_wins'}
  const base = {c: '{"x": 1, "y": 1, "l": ["a", "b"]}', t: 'old', n: 5n, s: 'old'}

  test('each change is taken, whichever side is newer', () => {
    const source = {...base, t: 'new'}
    const target = {...base, c: '{"x": 2, "y": 1, "l": ["a", "b"]}'}
    assert.deepEqual(ruling(rules, source, target, {base}).row, {...base, t: 'new', c: target.c})
  })

  test('a removal by one side stands when the other left it alone, except in what is united', () => {
    const source = {...base, c: '{"x": 1, "l": ["a", "b", "s"]}'}
    const target = {...base, c: '{"x": 1, "y": 1, "l": ["b"]}'}
    assert.equal(ruling(rules, source, target, {base}).row['c'], '{"x": 1, "l": ["a", "b", "s"]}')
    const changed = {...base, c: '{"x": 1, "y": 2, "l": ["a"]}'}
    assert.equal(ruling(rules, source, changed, {base}).row['c'], '{"x": 1, "y": 2, "l": ["a", "b", "s"]}')
  })

  test('a rule that names a side or an end holds nevertheless', () => {
    const target = {...base, s: 'edited', n: 3n, t: 'edited'}
    assert.deepEqual(ruling(rules, base, target, {base}).row, {...base, t: 'edited'})
  })

  test('drift knows that the source has not changed', () => {
    const target = {...base, t: 'edited', c: '{"x": 1, "l": []}'}
    const {verdict, fields} = ruling(rules, base, target, {type: 'drift'})
    assert.deepEqual(verdict, {keep: 'target'})
    assert.deepEqual(
      fields.map(({field, reason}) => [field, reason]),
      [
        ['c', 'only the target has changed it'],
        ['t', 'only the target has changed it'],
      ],
    )
  })

  test('columns that a side is known not to have touched come from the other', () => {
    const source = {...base, t: 'source', c: '{"z": 1}'}
    const target = {...base, t: 'target', c: '{"z": 2}'}
    const found = ruling(rules, source, target, {changed: {target: new Set(['c']), source: new Set(['t'])}})
    assert.deepEqual(found.row, {...base, t: 'source', c: '{"z": 2}'})
  })
})

test('a merge that ends at one side keeps that side', () => {
  const rules = {c: 'union'}
  assert.deepEqual(ruling(rules, {c: '{"a": 1}'}, {c: '{"a": 1, "b": 1}'}, {}).verdict.keep, 'merged')
  assert.deepEqual(ruling(rules, {c: '["a"]'}, {c: '["a", "b"]'}, {targetIsNewer: true}).verdict, {
    keep: 'target',
  })
  assert.deepEqual(ruling(rules, {c: '["a", "b"]'}, {c: '["a"]'}, {}).verdict, {keep: 'source'})
})

test('the fields of a ruling name places, not contents', () => {
  const {fields, reason} = ruling(
    {'c.l': {rule: 'union', key: 'id'}, 'c.l.*.kids': 'union'},
    {c: '{"t": "s", "l": [{"id": "secret", "kids": [1]}, {"id": "two"}]}', d: 1n},
    {c: '{"t": "t", "l": [{"id": "secret", "kids": [2]}, {"id": "three"}]}', d: 1n},
    {},
  )
  assert.deepEqual(fields, [
    {field: 'c.t', from: 'source', reason: "the source's updated_at is later by 10 s"},
    {
      field: 'c.l',
      from: 'both',
      reason: 'union: 1 only in the source, 1 only in the target, 1 that differ, 0 alike',
    },
    {field: 'updated_at', from: 'source', reason: "the source's updated_at is later by 10 s"},
  ])
  assert.equal(reason, 'c.t, updated_at from the source; c.l from both')
})

describe('a reference stays valid', () => {
  const rules = {
    c: 'source_wins',
    'c.m': 'union',
    'c.current': {rule: 'newest_wins', member_of: 'c.m'},
  }
  for (const [what, source, target, expected] of [
    ['the newer side’s', '{"m": {"a": 1}, "current": "a"}', '{"m": {"b": 1}, "current": "b"}', '"a"'],
    ['the other side’s', '{"m": {"a": 1}, "current": "gone"}', '{"m": {"b": 1}, "current": "b"}', '"b"'],
    ['the last member', '{"m": {"a": 1}, "current": "gone"}', '{"m": {"b": 1}, "current": "lost"}', '"b"'],
    ['null as it was', '{"m": {"a": 1}, "current": null}', '{"m": {"b": 1}, "current": "lost"}', 'null'],
  ] as const) {
    test(what, () => {
      const text = merged(rules, {c: source}, {c: target})
      assert.equal(text, `{"m": {"a": 1, "b": 1}, "current": ${expected}}`)
    })
  }
})

test('laws of the order of a union', {timeout: 300_000}, () => {
  const names = fc.uniqueArray(fc.nat({max: 7}).map(String), {maxLength: 8})
  fc.assert(
    fc.property(names, names, (ours, theirs) => {
      const order = interleave(ours, theirs)
      assert.deepEqual(new Set(order), new Set([...ours, ...theirs]))
      assert.equal(order.length, new Set(order).size)
      assert.deepEqual(
        order.filter(name => ours.includes(name)),
        ours,
      )
      assert.deepEqual(interleave(ours, order), order)
      assert.deepEqual(interleave(order, theirs), order)
      assert.deepEqual(interleave(order, order), order)
    }),
    {numRuns: 2_000},
  )
})

describe('laws of a merge, whatever the documents and the rules', () => {
  const key = fc.constantFrom('a', 'b', 'c', 'id')
  const {tree} = fc.letrec(tie => ({
    tree: fc.oneof(
      {maxDepth: 4},
      fc.constantFrom(null, 0, 1, 2.5, 'x', 'é', true),
      tie('list'),
      tie('object'),
    ),
    list: fc.array(tie('tree'), {maxLength: 4}),
    object: fc.dictionary(key, tie('tree'), {maxKeys: 4}),
  }))
  const document = fc
    .tuple(tree, fc.constantFrom(undefined, 1))
    .map(([value, indent]) => JSON.stringify(value, undefined, indent))
  const rule = fc.oneof(
    fc.constantFrom('append', 'union', 'newest_wins', 'source_wins', 'target_wins', 'max', 'min'),
    fc.constant({rule: 'union', key: 'id'}),
  )
  const path = fc
    .array(fc.oneof(key, fc.constant('*')), {maxLength: 3})
    .map(names => ['c', ...names].join('.'))
  const rules = fc.dictionary(path, rule, {maxKeys: 4})

  test(
    'doing it again with either side changes nothing, in the order of who wrote last',
    {timeout: 300_000},
    () => {
      fc.assert(
        fc.property(document, document, rules, fc.boolean(), (source, target, rules, targetIsNewer) => {
          const once = ruling(rules, {c: source}, {c: target}, {targetIsNewer}).row
          said(once)
          const same = decided(rules, once, once).row
          assert.deepEqual(same, once)
          // With a rule that names a side, that side's fields come back: only then is the outcome another.
          if (Object.values(rules).some(rule => rule === 'source_wins' || rule === 'target_wins')) return
          const withSource = decided(rules, {c: source, updated_at: sourceAt(targetIsNewer)}, once).row
          const withTarget = decided(rules, once, {c: target, updated_at: targetAt}).row
          assertSays(withSource, once)
          assertSays(withTarget, once)
        }),
        {numRuns: 3_000},
      )
    },
  )

  test(
    'a union of objects keeps every name of both sides, and the text of what is untouched',
    {timeout: 300_000},
    () => {
      const object = fc.dictionary(fc.string({maxLength: 3}), tree, {maxKeys: 6})
      fc.assert(
        fc.property(object, object, object, (shared, mine, others) => {
          const source = JSON.stringify({...mine, ...shared}, undefined, 1)
          const target = JSON.stringify({...shared, ...others})
          const text = String(merged({c: 'union'}, {c: source}, {c: target}))
          const result = JSON.parse(text) as Record<string, unknown>
          assert.deepEqual(
            new Set(Object.keys(result)),
            new Set(Object.keys({...mine, ...shared, ...others})),
          )
          for (const name of Object.keys(shared)) {
            if (Object.hasOwn(others, name)) continue
            const member = JSON.stringify({[name]: shared[name]}, undefined, 1)
              .slice(1, -1)
              .trim()
            const plain = JSON.stringify({[name]: shared[name]}).slice(1, -1)
            assert.ok(
              text.includes(member) || (text === target && text.includes(plain)),
              `${name} in ${text}`,
            )
          }
        }),
        {numRuns: 1_000},
      )
    },
  )
})

const T = 1_770_000_000n
const targetAt = T
const sourceAt = (targetIsNewer: boolean) => (targetIsNewer ? T - 10n : T + 10n)

type Known = Partial<Pick<Conflict, 'type' | 'changed'>> & {base?: Row; targetIsNewer?: boolean}
type Decided = Ruling & {readonly row: Row}

/** The source is newer unless said otherwise; with what is known of both sides, no times are needed. */
function ruling(rules: Rules, source: Row, target: Row, known: Known): Decided {
  const {targetIsNewer = false} = known
  if (known.type === 'drift' || known.base !== undefined || known.changed !== undefined)
    return decided(rules, source, target, known)
  return decided(
    rules,
    {...source, updated_at: sourceAt(targetIsNewer)},
    {...target, updated_at: targetAt},
    known,
  )
}

function decided(rules: Rules, source: Row, target: Row, known: Known = {}): Decided {
  const {type = 'update_update', base, changed} = known
  const found = rulingOn(
    {
      table: 't',
      key: 'k',
      type,
      columns: Object.keys(source),
      source: new Map(Object.entries(source)),
      target: new Map(Object.entries(target)),
      base: base && new Map(Object.entries(base)),
      changed,
      now: new Date('2026-03-01T12:00:00Z'),
    },
    readRules({tables: {t: {strategy: 'merge', merge_rules: rules}}}, 'the test'),
  )
  const {verdict} = found
  const rows = {source, target, merged: verdict.keep === 'merged' ? Object.fromEntries(verdict.row) : {}}
  return {...found, row: rows[verdict.keep]}
}

function merged(rules: Rules, source: Row, target: Row): unknown {
  return ruling(rules, source, target, {}).row['c']
}

function assertSays(one: Row, other: Row): void {
  assert.deepEqual(said(one), said(other))
}

function said({c}: Row): unknown {
  assert.ok(typeof c === 'string')
  return JSON.parse(c)
}
