import assert from 'node:assert/strict'
import fc from 'fast-check'
import {describe, test} from 'vitest'
import type {TableLayout} from '../core/layout.ts'
import type {PgType} from '../core/value.ts'
import {
  plan,
  TooManyColumnsError,
  widenTables,
  type Existing,
  type Operation,
  type Plan,
  type PlannedSource,
} from './plan.ts'
import {Seen} from './type-map.ts'

type Columns = Readonly<Record<string, string>>

/** A table keyed by its first column, unless said otherwise. */
function source(name: string, columns: Columns, more: Partial<PlannedSource> = {}): PlannedSource {
  return {
    name,
    withoutRowid: false,
    keyedBy: 'primary key',
    key: [Object.keys(columns)[0]!],
    columns: Object.entries(columns).map(([name, declared]) => ({name, declared, generated: false})),
    indexes: [],
    ...more,
  }
}

/** A client schema as the operations of one cut after the other have made it. */
class Model {
  tables = new Map<string, Map<string, PgType>>()
  layouts: readonly TableLayout[] = []

  follow(sources: readonly PlannedSource[], renamed: Readonly<Record<string, string>> = {}, seen = 0): Plan {
    const result = plan(sources, this.layouts, new Map(Object.entries(renamed)), this.existing(), () => seen)
    const {tables, operations} = widenTables(result.tables)
    for (const operation of [...result.operations, ...result.finish, ...operations]) this.#apply(operation)
    this.layouts = tables
    return result
  }

  existing(): Existing {
    return new Map([...this.tables].map(([name, columns]) => [name, new Map(columns)]))
  }

  /** Refuses whatever Postgres would. */
  #apply(operation: Operation): void {
    const {op, table} = operation
    const columns = this.tables.get(table)
    if (op !== 'create_table') assert.ok(columns, `${op}: there is no table ${table}`)
    const column = operation['column'] as string
    switch (op) {
      case 'create_table': {
        assert.ok(!columns, `${table} exists`)
        const list = operation['columns'] as {name: string; type: PgType}[]
        assert.equal(new Set(list.map(({name}) => name)).size, list.length)
        this.tables.set(table, new Map(list.map(({name, type}) => [name, type])))
        return
      }
      case 'rename_table': {
        const to = operation['to'] as string
        assert.ok(!this.tables.has(to), `${to} exists`)
        this.tables.delete(table)
        this.tables.set(to, columns!)
        return
      }
      case 'add_column':
        assert.ok(!columns!.has(column), `${table}.${column} exists`)
        columns!.set(column, operation['type'] as PgType)
        return
      case 'set_type':
        assert.ok(columns!.has(column), `${table}.${column} does not exist`)
        columns!.set(column, operation['type'] as PgType)
        return
      default:
        if (column) assert.ok(columns!.has(column), `${op}: there is no ${table}.${column}`)
    }
  }
}

/** Operations as one readable line each. */
function told({operations}: Pick<Plan, 'operations'>): string[] {
  return operations.map(({op, table, ...more}) => {
    const {column, to, type, name} = more as Record<string, string | undefined>
    const columns = op === 'create_index' ? ` (${(more['columns'] as string[]).join(', ')})` : ''
    return (
      [`${op} ${table}${column === undefined ? '' : `.${column}`}`, to, type, name]
        .filter(Boolean)
        .join(' ') + columns
    )
  })
}

const chat = source('chat', {id: 'TEXT', title: 'TEXT', n: 'INTEGER'})

describe('a table', () => {
  test('that is new is created, and gets key, index and view once its rows are there', () => {
    const model = new Model()
    const {operations, finish, tables} = model.follow([
      source('chat', {id: 'TEXT', updated_at: 'BIGINT', chat: 'JSON'}),
    ])
    assert.deepEqual(operations, [
      {
        op: 'create_table',
        table: 'chat',
        columns: [
          {name: 'id', type: 'text'},
          {name: 'updated_at', type: 'bigint'},
          {name: 'chat', type: 'json'},
        ],
      },
    ])
    assert.deepEqual(finish, [
      {
        op: 'finish_table',
        table: 'chat',
        indexes: [
          {name: 'chat_id_idx', columns: ['id']},
          {name: 'chat_updated_at_idx', columns: ['updated_at']},
        ],
        view_columns: ['id', 'updated_at', 'chat'].map(name => ({name, as: name})),
      },
    ])
    assert.equal(tables[0]!.keyedBy, 'primary key')
  })

  test('that has not changed needs nothing', () => {
    const model = new Model()
    model.follow([chat])
    assert.deepEqual(told(model.follow([chat])), [])
  })

  test('that vanishes stays, marked; its layout says what is to be tombstoned', () => {
    const model = new Model()
    model.follow([chat, source('tag', {id: 'TEXT'})])
    const result = model.follow([chat])
    assert.deepEqual(told(result), ['mark_dropped tag'])
    assert.deepEqual(
      result.vanished.map(({source}) => source),
      ['tag'],
    )
  })

  test('that comes back takes up the one it has left, other columns and all', () => {
    const model = new Model()
    model.follow([chat])
    model.follow([])
    const result = model.follow([source('chat', {id: 'TEXT', subject: 'TEXT'})])
    assert.deepEqual(told(result), [
      'unmark_dropped chat.id',
      'add_column chat.subject text',
      'unmark_dropped chat',
      'create_index chat chat_id_idx (id)',
      'replace_view chat',
    ])
    assert.deepEqual(result.clear, [])
    assert.deepEqual([...model.tables.keys()], ['chat'])
  })

  test('that the app renamed is renamed', () => {
    const model = new Model()
    model.follow([chat])
    const result = model.follow([source('old_chat', {id: 'TEXT', title: 'TEXT', n: 'INTEGER'})], {
      old_chat: 'chat',
    })
    assert.deepEqual(told(result).slice(0, 2), [
      'rename_table chat moving_0_old_chat',
      'rename_table moving_0_old_chat old_chat',
    ])
    assert.deepEqual([...model.tables.keys()], ['old_chat'])
    assert.deepEqual(result.vanished, [])
    assert.deepEqual([...result.follows], [['old_chat', 'chat']])
  })

  test('whose name a new one takes makes room for it', () => {
    const model = new Model()
    model.follow([source('config', {id: 'INTEGER', data: 'JSON'})])
    const result = model.follow(
      [source('config_old', {id: 'INTEGER', data: 'JSON'}), source('config', {key: 'TEXT', value: 'JSON'})],
      {config_old: 'config'},
    )
    assert.deepEqual(model.tables.get('config_old'), new Map(Object.entries({id: 'bigint', data: 'json'})))
    assert.deepEqual(model.tables.get('config'), new Map(Object.entries({key: 'text', value: 'json'})))
    assert.deepEqual([...result.follows], [['config_old', 'config']])
  })

  test('that swaps its name with another goes by way of a name that nobody has', () => {
    const model = new Model()
    model.follow([source('a', {id: 'TEXT', of_a: 'TEXT'}), source('b', {id: 'TEXT', of_b: 'TEXT'})])
    const result = model.follow(
      [source('a', {id: 'TEXT', of_b: 'TEXT'}), source('b', {id: 'TEXT', of_a: 'TEXT'})],
      {a: 'b', b: 'a'},
    )
    assert.deepEqual([...model.tables.get('a')!.keys()], ['id', 'of_b'])
    assert.deepEqual([...model.tables.get('b')!.keys()], ['id', 'of_a'])
    assert.deepEqual(result.vanished, [])
  })

  test('that is renamed to the name of one that vanishes takes it; the vanished one steps aside', () => {
    const model = new Model()
    model.follow([source('a', {id: 'TEXT', of_a: 'TEXT'}), source('b', {id: 'TEXT', of_b: 'TEXT'})])
    const result = model.follow([source('b', {id: 'TEXT', of_a: 'TEXT'})], {b: 'a'})
    assert.deepEqual([...model.tables.get('b')!.keys()], ['id', 'of_a'])
    assert.deepEqual([...model.tables.get('b_dropped')!.keys()], ['id', 'of_b'])
    assert.deepEqual(
      result.vanished.map(({source, target}) => [source, target]),
      [['b', 'b_dropped']],
    )
  })

  test('whose name changes in nothing but case is the same table', () => {
    const model = new Model()
    model.follow([chat])
    const result = model.follow([{...chat, name: 'Chat'}])
    assert.deepEqual([...model.tables.keys()], ['Chat'])
    assert.deepEqual([...result.follows], [['Chat', 'chat']])
    assert.deepEqual(result.vanished, [])
  })

  test('whose name another one has but for the case gets a name of its own', () => {
    const model = new Model()
    const {tables} = model.follow([source('ünï', {id: 'TEXT'}), source('ÜNÏ', {id: 'TEXT'})])
    assert.deepEqual(
      tables.map(({target}) => target),
      ['ünï', 'ÜNÏ_2'],
    )
  })

  test('with more columns than Postgres holds is refused by name', () => {
    const columns = (n: number) => Object.fromEntries(Array.from({length: n}, (_, i) => [`c${i}`, 'INT']))
    assert.doesNotThrow(() => new Model().follow([source('wide', columns(1_500))]))
    assert.throws(() => new Model().follow([source('wide', columns(1_501))]), TooManyColumnsError)
  })
})

describe('a column', () => {
  test('that is new is added, and the view shows it', () => {
    const model = new Model()
    model.follow([chat])
    const result = model.follow([source('chat', {id: 'TEXT', title: 'TEXT', n: 'INTEGER', meta: 'JSON'})])
    assert.deepEqual(told(result), ['add_column chat.meta json', 'replace_view chat'])
  })

  test('that is dropped stays, marked, and the view leaves it out', () => {
    const model = new Model()
    model.follow([chat])
    const result = model.follow([source('chat', {id: 'TEXT', n: 'INTEGER'})])
    assert.deepEqual(told(result), ['mark_dropped chat.title', 'replace_view chat'])
    assert.deepEqual(
      result.tables[0]!.columns.map(({source}) => source),
      ['id', 'n'],
    )
    assert.ok(model.tables.get('chat')!.has('title'))
  })

  test('that comes back is emptied first, and keeps the type it has', () => {
    const model = new Model()
    model.follow([chat])
    model.follow([source('chat', {id: 'TEXT', title: 'TEXT'})])
    const result = model.follow([source('chat', {id: 'TEXT', title: 'TEXT', n: 'TEXT'})])
    assert.deepEqual(told(result), ['unmark_dropped chat.n', 'replace_view chat'])
    assert.deepEqual(result.clear, [{table: 'chat', column: 'n'}])
    assert.equal(result.tables[0]!.columns[2]!.type, 'bigint')
  })

  test('that is renamed is one dropped and one new', () => {
    const model = new Model()
    model.follow([chat])
    assert.deepEqual(told(model.follow([source('chat', {id: 'TEXT', subject: 'TEXT', n: 'INTEGER'})])), [
      'add_column chat.subject text',
      'mark_dropped chat.title',
      'replace_view chat',
    ])
  })

  test('whose name changes in nothing but case gets another one beside the old', () => {
    const model = new Model()
    model.follow([chat])
    const result = model.follow([source('chat', {id: 'TEXT', Title: 'TEXT', n: 'INTEGER'})])
    assert.deepEqual(told(result).slice(0, 2), ['add_column chat.Title_2 text', 'mark_dropped chat.title'])
  })

  test('that is named like one dropped long ago, but for the case, stands beside it', () => {
    const model = new Model()
    model.follow([chat])
    model.follow([source('chat', {id: 'TEXT', title: 'TEXT'})])
    const result = model.follow([source('chat', {id: 'TEXT', title: 'TEXT', N: 'INTEGER'})])
    assert.deepEqual(told(result), ['add_column chat.N_2 bigint', 'replace_view chat'])
  })

  test('that moves changes nothing but the view', () => {
    const model = new Model()
    model.follow([chat])
    const result = model.follow([source('chat', {n: 'INTEGER', title: 'TEXT', id: 'TEXT'}, {key: ['id']})])
    assert.deepEqual(told(result), ['replace_view chat'])
    assert.deepEqual(
      result.tables[0]!.columns.map(({source}) => source),
      ['n', 'title', 'id'],
    )
  })

  test('takes the type of what it holds', () => {
    const {tables} = new Model().follow([source('chat', {created_at: 'DATETIME'})], {}, Seen.integer)
    assert.equal(tables[0]!.columns[0]!.type, 'bigint')
  })

  test('that has held what its type cannot show is widened, and keeps its rule of reading', () => {
    const [layout] = new Model().follow([chat]).tables
    const seen = {...layout!, columns: layout!.columns.map(each => ({...each, seen: Seen.text}))}
    const {tables, operations} = widenTables([seen])
    assert.deepEqual(operations, [{op: 'set_type', table: 'chat', column: 'n', type: 'text'}])
    assert.deepEqual(
      tables[0]!.columns.map(({type, affinity}) => [type, affinity]),
      [
        ['text', 'text'],
        ['text', 'text'],
        ['text', 'integer'],
      ],
    )
  })
})

test('a column is not widened to what would read its numbers back as text', () => {
  const [layout] = new Model().follow([source('chat', {at: 'DATE BLOB'})], {}, Seen.integer).tables
  assert.deepEqual(
    layout!.columns.map(({type, affinity}) => [type, affinity]),
    [['bigint', 'blob']],
  )
  const seen = {...layout!, columns: layout!.columns.map(each => ({...each, seen: Seen.integer | Seen.text}))}
  assert.deepEqual(widenTables([seen]).operations, [])
})

describe('a key', () => {
  for (const [what, before, now, isRekeyed] of [
    ['stays', {}, {}, false],
    ['is of other columns', {}, {key: ['title']}, true],
    ['has its columns in another order', {key: ['id', 'n']}, {key: ['n', 'id']}, true],
    ['becomes the rowid', {}, {keyedBy: 'rowid', key: []}, true],
    ['was the rowid', {keyedBy: 'rowid', key: []}, {}, true],
    ['stays the rowid', {keyedBy: 'rowid', key: []}, {keyedBy: 'rowid', key: []}, false],
    ['turns from an index into a primary key over the same columns', {keyedBy: 'unique index'}, {}, false],
  ] as const)
    test(`that ${what}: ${isRekeyed ? 'the rows have other keys' : 'the rows keep theirs'}`, () => {
      const model = new Model()
      model.follow([{...chat, ...before}])
      assert.deepEqual([...model.follow([{...chat, ...now}]).rekeyed], isRekeyed ? ['chat'] : [])
    })
})

describe('indexes', () => {
  const indexed = (...indexes: readonly (readonly string[])[]) => ({
    ...source('chat', {id: 'TEXT', title: 'TEXT', meta: 'JSON'}),
    indexes: indexes.map(columns => ({columns})),
  })

  test('come and go with those of the source', () => {
    const model = new Model()
    model.follow([indexed(['title'])])
    assert.deepEqual(told(model.follow([indexed(['title', 'id'])])), [
      'drop_index chat chat_title_idx',
      'create_index chat chat_title_id_idx (title, id)',
    ])
  })

  test('that Postgres could not have are left out: over json, or over more than 32 columns', () => {
    const {finish} = new Model().follow([
      indexed(['meta'], ['title', 'meta'], Array<string>(33).fill('title')),
    ])
    assert.deepEqual(finish[0]!['indexes'], [{name: 'chat_id_idx', columns: ['id']}])
  })
})

const names = [
  'chat',
  'Chat',
  'tag',
  'config',
  'config_old',
  '_sync_t',
  'live_x',
  'y'.repeat(70),
  'y'.repeat(71),
  '',
]
const columnNames = ['id', 'ID', 'n', '_sync_key', 'xmin', 'x'.repeat(70), 'ü', 'Ü']
const types = ['TEXT', 'INTEGER', 'JSON', 'REAL', 'BOOLEAN', '', 'BLOB']

/** Tables as SQLite could have them: names differ, whatever their case. */
const sources = fc.uniqueArray(
  fc.record({
    name: fc.constantFrom(...names),
    columns: fc.uniqueArray(fc.tuple(fc.constantFrom(...columnNames), fc.constantFrom(...types)), {
      minLength: 1,
      maxLength: 5,
      selector: ([name]) => name.replace(/[A-Z]/g, letter => letter.toLowerCase()),
    }),
  }),
  {maxLength: 5, selector: ({name}) => name.toLowerCase()},
)

test('whatever comes, goes, returns and changes names, every step fits what the steps before have made', () => {
  fc.assert(
    fc.property(
      fc.array(fc.tuple(sources, fc.array(fc.nat({max: 4}), {maxLength: 3})), {maxLength: 8}),
      cuts => {
        const model = new Model()
        for (const [tables, picks] of cuts) {
          // Some of the tables are found to be, by their content, tables that were there.
          const renamed: Record<string, string> = {}
          for (const [i, pick] of picks.entries()) {
            const [now, was] = [tables[i], model.layouts[pick]]
            if (now && was && now.name !== was.source && !Object.values(renamed).includes(was.source))
              renamed[now.name] = was.source
          }
          const planned = tables.map(({name, columns}) => source(name, Object.fromEntries(columns)))
          const before = new Set(model.layouts.map(layout => layout.source))
          const result = model.follow(planned, renamed)

          assert.deepEqual(
            result.tables.map(({source}) => source),
            tables.map(({name}) => name),
          )
          const targets = [...result.tables, ...result.vanished].map(({target}) => target)
          assert.equal(new Set(targets).size, targets.length)
          for (const {target, columns} of model.layouts) {
            assert.equal(new Set(columns.map(column => column.target)).size, columns.length)
            for (const column of columns)
              assert.equal(model.tables.get(target)?.get(column.target), column.type)
          }
          for (const {target} of result.vanished) assert.ok(model.tables.has(target))
          const after = [
            ...result.tables.map(({source}) => result.follows.get(source) ?? source),
            ...result.vanished.map(({source}) => source),
          ]
          for (const name of before) assert.ok(after.includes(name), `${name} is neither there nor vanished`)
          assert.deepEqual(told(model.follow(planned)), [])
        }
      },
    ),
    {numRuns: 2_000},
  )
})
