import assert from 'node:assert/strict'
import fc from 'fast-check'
import {describe, test} from 'vitest'
import {canonicalJson, compareJson, isSame, nodeAt, parseJson, textOf, type JsonNode} from './json-text.ts'

describe('what is JSON', () => {
  for (const [text, isJson] of [
    ['{}', true],
    [' [ 1 , {"a" : [ ] } ] \n', true],
    ['"\\ud83d\\ude00 \\u0000 \\ud800"', true],
    ['-0.5e+10', true],
    ['NaN', true],
    ['[Infinity, -Infinity, NaN]', true],
    ['{"a": 1, "a": 2}', true],
    [`"${'x'.repeat(100_000)}"`, true],
    [`[${'7'.repeat(200_000)}]`, true],
    ['', false],
    ['{', false],
    ['[1,]', false],
    ['{"a":1,}', false],
    ['{a: 1}', false],
    ["{'a': 1}", false],
    ['[1 2]', false],
    ['{"a" 1}', false],
    ['{"a":}', false],
    ['01', false],
    ['1.', false],
    ['.5', false],
    ['1e', false],
    ['-', false],
    ['+1', false],
    ['tru', false],
    ['truefalse', false],
    ['"a', false],
    ['"\\x"', false],
    ['"\\u12g4"', false],
    ['"\u0001"', false],
    ['\ufeff{}', false],
    ['{} {}', false],
    ['[1]]', false],
    ['[}', false],
  ] as const) {
    test(`${JSON.stringify(text.slice(0, 40))} ${isJson ? 'is' : 'is not'}`, () => {
      assert.equal(parseJson(text) !== undefined, isJson)
    })
  }

  test('a text is taken exactly when JSON.parse takes it', {timeout: 300_000}, () => {
    const pieces = [
      '{',
      '}',
      '[',
      ']',
      ',',
      ':',
      '"a"',
      '"',
      '\\',
      '1',
      '-',
      '.',
      'e',
      '0',
      ' ',
      'null',
      'true',
    ]
    fc.assert(
      fc.property(fc.array(fc.constantFrom(...pieces), {maxLength: 9}), parts => {
        const text = parts.join('')
        assert.equal(parseJson(text) !== undefined, isAccepted(text), text)
      }),
      {numRuns: 5_000},
    )
  })

  test('20,000 levels and more are read, compared and told apart', {timeout: 300_000}, () => {
    const deep = (inner: string) => `${'[{"a":'.repeat(50_000)}${inner}${'}]'.repeat(50_000)}`
    assert.ok(isSame(parsed(deep('1')), parsed(` ${deep(' 1.0 ')}`)))
    assert.ok(!isSame(parsed(deep('1')), parsed(deep('2'))))
  })
})

test('every value knows where it stands', {timeout: 300_000}, () => {
  fc.assert(
    fc.property(fc.jsonValue(), fc.nat({max: 3}), (value, indent) => {
      const root = parsed(JSON.stringify(value, undefined, indent))
      for (const node of allNodes(root)) {
        assert.deepEqual(JSON.parse(textOf(node)), valueOf(node))
      }
    }),
  )
})

test('two texts are the same exactly when they say the same', {timeout: 300_000}, () => {
  fc.assert(
    fc.property(fc.jsonValue({noUnicodeString: false}), fc.jsonValue(), (one, other) => {
      const spelled = parsed(JSON.stringify(one))
      assert.ok(isSame(spelled, parsed(escaped(JSON.stringify(shuffled(one), undefined, 2)))))
      assert.equal(isSame(spelled, parsed(JSON.stringify(other))), isEqual(one, other))
    }),
  )
})

for (const [one, other, expected] of [
  ['1', '1.0', true],
  ['100', '1e2', true],
  ['0.001', '1E-3', true],
  ['-0', '0', true],
  ['12345678901234567890', '12345678901234567891', false],
  ['12345678901234567890', '12345678901234567890.0', true],
  ['1e400', '1e401', false],
  ['1', '"1"', false],
  ['null', 'false', false],
  ['NaN', 'NaN', true],
  ['Infinity', '-Infinity', false],
  ['"\\u00e9"', '"é"', true],
  ['"\\/"', '"/"', true],
  ['{"a": 1, "b": 2}', '{"b":2,"a":1}', true],
  ['{"a": 1, "a": 2}', '{"a": 2}', true],
  ['{"a": 1, "a": 2}', '{"a": 1}', false],
  ['[1, 2]', '[2, 1]', false],
  ['{}', '[]', false],
  ['{"a":[],"b":1}', '{"a":["b",1]}', false],
] as const) {
  test(`${one} and ${other} are ${expected ? 'the same' : 'not the same'}`, () => {
    assert.equal(isSame(parsed(one), parsed(other)), expected)
    assert.equal(canonicalJson(parsed(one)) === canonicalJson(parsed(other)), expected)
  })
}

for (const [smaller, greater] of [
  ['9007199254740992', '9007199254740993'],
  ['-2', '1'],
  ['-3', '-2.5'],
  ['0.12', '0.123'],
  ['9', '10'],
  ['1e400', '1e401'],
  ['-1e401', '-1e400'],
  ['0', '1e-400'],
  ['-1e-400', '0'],
  ['"a"', '"b"'],
] as const) {
  test(`${smaller} is less than ${greater}`, () => {
    assert.ok((compareJson(parsed(smaller), parsed(greater)) ?? 0) < 0)
    assert.ok((compareJson(parsed(greater), parsed(smaller)) ?? 0) > 0)
    assert.equal(compareJson(parsed(smaller), parsed(smaller)), 0)
  })
}

test('what has no order is not compared', () => {
  for (const [one, other] of [
    ['1', '"1"'],
    ['NaN', '1'],
    ['[]', '[]'],
    ['true', 'false'],
  ] as const) {
    assert.equal(compareJson(parsed(one), parsed(other)), undefined)
  }
})

test('a path follows the last of several members with one name', () => {
  const node = nodeAt(parsed('{"a": {"b": 1}, "a": {"b": 2}}'), ['a', 'b'])
  assert.equal(node && textOf(node), '2')
  assert.equal(nodeAt(parsed('{"a": 1}'), ['a', 'b']), undefined)
})

function parsed(text: string): JsonNode {
  const node = parseJson(text)
  assert.ok(node, `not taken: ${text.slice(0, 80)}`)
  return node
}

function isAccepted(text: string): boolean {
  try {
    JSON.parse(text)
    return true
  } catch {
    return false
  }
}

function* allNodes(node: JsonNode): Generator<JsonNode> {
  yield node
  for (const {value} of node.members) yield* allNodes(value)
  for (const item of node.items) yield* allNodes(item)
}

/** The value put together from the parts, not from the text. */
function valueOf(node: JsonNode): unknown {
  if (node.kind === 'array') return node.items.map(valueOf)
  if (node.kind !== 'object') return JSON.parse(textOf(node))
  const entries = node.members.map(({name, value}) => [name, valueOf(value)] as const)
  // As JSON.parse does it, `__proto__` included.
  return Object.defineProperties(
    {},
    Object.fromEntries(
      entries.map(([name, value]) => [name, {value, enumerable: true, configurable: true, writable: true}]),
    ),
  )
}

function shuffled(value: unknown): unknown {
  if (Array.isArray(value)) return value.map(shuffled)
  if (typeof value !== 'object' || value === null) return value
  return Object.fromEntries(
    Object.entries(value)
      .reverse()
      .map(([name, inner]) => [name, shuffled(inner)]),
  )
}

/** The same JSON with letters inside strings written as escapes. */
function escaped(text: string): string {
  return text.replaceAll(
    /[^\x20-\x7e\n]/g,
    letter => `\\u${letter.charCodeAt(0).toString(16).padStart(4, '0')}`,
  )
}

function isEqual(one: unknown, other: unknown): boolean {
  try {
    // -0 is written as 0.
    assert.deepEqual(JSON.parse(JSON.stringify(one)), JSON.parse(JSON.stringify(other)))
    return true
  } catch {
    return false
  }
}
