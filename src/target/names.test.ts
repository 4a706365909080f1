import assert from 'node:assert/strict'
import fc from 'fast-check'
import {describe, test} from 'vitest'
import {anyCharacter} from '../../test/arbitrary.ts'
import {columnName, indexName, tableName, viewColumnName} from './names.ts'

const system = ['ctid', 'xmin', 'xmax', 'cmin', 'cmax', 'tableoid']

describe('a source table is called in the target', () => {
  for (const [source, taken, target] of [
    ['chat', [], 'chat'],
    ['Größe "x" 🐍', [], 'Größe "x" 🐍'],
    ['user', ['users'], 'user'],
    ['chat', ['chat'], 'chat_2'],
    ['chat', ['Chat', 'CHAT_2'], 'chat_3'],
    ['', [], 'unnamed'],
    ['a\0b', [], 'a_b'],
    ['_sync_rows', [], 'source__sync_rows'],
    ['_SYNC_rows', [], 'source__SYNC_rows'],
    ['live_chat', [], 'source_live_chat'],
    ['Live_chat', [], 'source_Live_chat'],
    ['alive_chat', [], 'alive_chat'],
    ['ctid', [], 'ctid'],
    ['y'.repeat(58), [], 'y'.repeat(58)],
  ] as const)
    test(`${JSON.stringify(source)} beside ${JSON.stringify(taken)}: ${target}`, () => {
      assert.equal(tableName(source, taken), target)
    })
})

describe('a source column is called in the target', () => {
  for (const [source, taken, target] of [
    ['id', [], 'id'],
    ['ID', ['id'], 'ID_2'],
    ['', [], 'unnamed'],
    ['', ['unnamed'], 'unnamed_2'],
    ['_sync_key', [], 'source__sync_key'],
    ['_sync_key', ['source__sync_key'], 'source__sync_key_2'],
    ['live_x', [], 'live_x'],
    ['xmin', [], 'source_xmin'],
    ['XMIN', [], 'source_XMIN'],
    ['oid', [], 'oid'],
    ['x'.repeat(63), [], 'x'.repeat(63)],
  ] as const)
    test(`${JSON.stringify(source)} beside ${JSON.stringify(taken)}: ${target}`, () => {
      assert.equal(columnName(source, taken), target)
    })
})

const name = fc.oneof(
  fc.constantFrom(
    '_sync_',
    'live_',
    'unnamed',
    '',
    ...system,
    'y'.repeat(70),
    `${'y'.repeat(70)}z`,
    '🐍'.repeat(20),
  ),
  fc.string({unit: anyCharacter, maxLength: 80}),
)

for (const [what, choose, longest, reserved] of [
  ['table', tableName, 58, /^(_sync_|live_)/i],
  ['column', columnName, 63, new RegExp(`^(_sync_|(${system.join('|')})$)`, 'i')],
] as const)
  test(`every ${what} gets a name that Postgres takes, of its own whatever the case`, () => {
    fc.assert(
      fc.property(fc.array(name, {maxLength: 12}), names => {
        const taken: string[] = []
        for (const source of names) {
          const chosen = choose(source, taken)
          assert.equal(choose(source, taken), chosen)
          assert.ok(Buffer.byteLength(chosen) <= longest && chosen !== '' && !chosen.includes('\0'))
          assert.doesNotMatch(chosen, reserved)
          assert.equal(Buffer.from(chosen).toString(), chosen) // no character was cut in two
          taken.push(chosen)
        }
        assert.equal(new Set(taken.map(each => each.toLowerCase())).size, taken.length)
      }),
      {numRuns: 1_000},
    )
  })

test('long names that begin alike stay apart', () => {
  const [one, other] = [tableName(`${'y'.repeat(70)}1`, []), tableName(`${'y'.repeat(70)}2`, [])]
  assert.notEqual(one, other)
  assert.match(one, /^y{49}_[0-9a-f]{8}$/)
})

test('a view shows the name of the source wherever Postgres can', () => {
  for (const [source, target, shown] of [
    ['_sync_key', 'source__sync_key', '_sync_key'],
    ['ID', 'ID_2', 'ID'],
    ['xmin', 'source_xmin', 'source_xmin'],
    ['XMIN', 'source_XMIN', 'XMIN'],
    ['', 'unnamed', 'unnamed'],
    ['x'.repeat(64), 'x_short', 'x_short'],
  ] as const)
    assert.equal(viewColumnName(source, target), shown)
})

test('an index is named after its table and columns, and fits', () => {
  assert.equal(indexName('chat', ['user_id', 'updated_at']), 'chat_user_id_updated_at_idx')
  const long = indexName('y'.repeat(58), ['x'.repeat(63)])
  assert.equal(Buffer.byteLength(long), 63)
  assert.notEqual(long, indexName('y'.repeat(58), ['x'.repeat(62)]))
})
