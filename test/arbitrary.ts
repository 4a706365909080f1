import fc, {type Arbitrary} from 'fast-check'

/** A value to write. `rawText` is bytes that become TEXT as they are, valid or not. */
export type Cell = bigint | number | string | Uint8Array | {readonly rawText: Uint8Array} | null

/** One column of a table to make. */
export type ColumnPlan = {
  readonly name: string
  readonly type: string
  readonly notNull: boolean
  readonly generated: 'virtual' | 'stored' | undefined
}

/** What makes rows of a table different from each other. */
export type KeyKind =
  | 'none'
  | 'primary'
  | 'composite'
  | 'integer'
  | 'autoincrement'
  | 'unique index'
  | 'unique column'
  | 'without rowid'

/** A table to make. Columns of a STRICT table take the nearest type that STRICT knows. */
export type TablePlan = {
  readonly name: string
  readonly columns: readonly ColumnPlan[]
  readonly key: KeyKind
  readonly strict: boolean
  readonly indexes: readonly ('plain' | 'desc' | 'nocase' | 'partial' | 'expression')[]
  /** Rows it begins with; values beyond the last column are left over. */
  readonly rows: readonly (readonly Cell[])[]
}

/** A file to make. */
export type FilePlan = {
  readonly encoding: 'UTF-8' | 'UTF-16le' | 'UTF-16be'
  readonly pageSize: number
  readonly autoVacuum: 0 | 1 | 2
  readonly journalMode: 'delete' | 'wal'
  readonly tables: readonly TablePlan[]
}

/**
 * One thing that happens to a file. Tables, rows and columns are named by number and looked up, modulo how many there
 * are, when the change is applied: so any change fits any state, and a history shrinks freely.
 */
export type Change =
  | {readonly do: 'insert'; readonly table: number; readonly cells: readonly Cell[]}
  | {readonly do: 'fill'; readonly table: number; readonly rows: number; readonly bytes: number}
  | {
      readonly do: 'update'
      readonly table: number
      readonly row: number
      readonly column: number
      readonly cell: Cell
      readonly bump: boolean
    }
  | {readonly do: 'overwrite'; readonly table: number; readonly row: number; readonly column: number}
  | {readonly do: 'delete'; readonly table: number; readonly row: number}
  | {readonly do: 'delete some'; readonly table: number; readonly every: number}
  | {readonly do: 'replace'; readonly table: number; readonly row: number; readonly cells: readonly Cell[]}
  | {readonly do: 'insert again'; readonly table: number; readonly row: number}
  | {readonly do: 'move key'; readonly table: number; readonly row: number; readonly cell: Cell}
  | {
      readonly do: 'swap'
      readonly table: number
      readonly row: number
      readonly other: number
      readonly column: number
    }
  | {
      readonly do: 'add column'
      readonly table: number
      readonly name: string
      readonly type: string
      readonly cell: Cell
    }
  | {readonly do: 'drop column'; readonly table: number; readonly column: number}
  | {readonly do: 'rename column'; readonly table: number; readonly column: number; readonly name: string}
  | {readonly do: 'rename table'; readonly table: number; readonly name: string}
  | {
      readonly do: 'rebuild'
      readonly table: number
      readonly as: '_alembic_tmp_' | '_new'
      readonly key: KeyKind
      readonly reorder: boolean
    }
  | {readonly do: 'create index'; readonly table: number; readonly column: number; readonly unique: boolean}
  | {readonly do: 'drop index'; readonly index: number}
  | {readonly do: 'create table'; readonly plan: TablePlan}
  | {readonly do: 'drop table'; readonly table: number}
  | {readonly do: 'vacuum'}
  | {readonly do: 'user_version'; readonly to: number}
  | {readonly do: 'transaction'; readonly changes: readonly Change[]; readonly end: 'commit' | 'rollback'}

const columnNames =
  'id user_id updated_at created_at chat meta data title key value email share_id timestamp n rowid oid ctid xmin'.split(
    ' ',
  )
const oddColumnNames = ['_sync_key', '_sync_hash', 'live_x', 'a b', 'a_b', 'ümlaut', 'quo"te', 'x'.repeat(70)]
const tableNames = ['chat', 'user', 'tag', 'config', 'message', 'group', 'prompt']
const oddTableNames = ['a b', 'a_b', 'Ünï', 'live_chat', 'y'.repeat(70), 'quo"te', '_sync_t', 'config_old']
const types = [
  'TEXT',
  'VARCHAR(255)',
  'INTEGER',
  'BIGINT',
  'BOOLEAN',
  'JSON',
  'DATETIME',
  'REAL',
  'NUMERIC',
  'BLOB',
  '',
  'DATE',
]

const name = (usual: readonly string[], odd: readonly string[]) =>
  fc.oneof({weight: 4, arbitrary: fc.constantFrom(...usual)}, {weight: 1, arbitrary: fc.constantFrom(...odd)})
const columnName = name(columnNames, oddColumnNames)
const tableName = name(tableNames, oddTableNames)
const place = fc.nat({max: 30})
const declared = fc.constantFrom(...types)

const max = 2n ** 63n - 1n
const integer: Arbitrary<bigint> = fc.oneof(
  fc.bigInt(-3n, 20n),
  fc.constantFrom(
    0n,
    1n,
    max,
    -max - 1n,
    2n ** 53n,
    2n ** 53n + 1n,
    -(2n ** 53n) - 1n,
    1_756_458_036_750_333_184n,
  ),
  fc.bigInt(-max - 1n, max),
)
const real: Arbitrary<number> = fc.oneof(
  fc.constantFrom(
    0,
    -0,
    1,
    2,
    1.5,
    0.1,
    1e20,
    5e-324,
    1e308,
    Infinity,
    -Infinity,
    2 ** 53,
    -(2 ** 63),
    2 ** 63,
  ),
  fc.double({noNaN: true}),
)
const oddTexts =
  '|null|NULL|true|1|1.0|-0|1e5 | 1|007|9223372036854775808|inf|~|~i1;|~h|i1;|\\N|\\.|{}|[]|3|"x"|{"a": 1, "a": 2}|é|e\u0301|\ufffd|🐍'.split(
    '|',
  )
/** A unit for `fc.string`. Its own `binary` is the same, and takes a second to list all characters there are. */
export const anyCharacter = fc
  .nat({max: 0x10_ffff - 0x800})
  .map(n => String.fromCodePoint(n < 0xd800 ? n : n + 0x800))
const text: Arbitrary<string> = fc.oneof(
  {weight: 3, arbitrary: fc.constantFrom('a', 'b', 'c', 'd', 'chat-1', 'chat-2', 'shared')},
  {
    weight: 3,
    arbitrary: fc.constantFrom(...oddTexts, '2024-01-01', '2024-01-01 10:00:00.5', 'a\nb', '\ufeff{}'),
  },
  {weight: 2, arbitrary: fc.string({unit: anyCharacter, maxLength: 20})},
  {weight: 1, arbitrary: fc.json({maxDepth: 2})},
  {
    weight: 1,
    arbitrary: fc.constantFrom('a\0b', '\0', '{"n": "\\u0000"}', '{"s": "\\ud83d"}', 'NaN', '{"a":'),
  },
  {weight: 1, arbitrary: fc.nat({max: 9_000}).map(length => 'long '.repeat(length / 5))},
)
const rawText: Arbitrary<Cell> = fc
  .oneof(
    fc.constantFrom(
      [0xff],
      [0x61, 0xc3],
      [0xed, 0xa0, 0x80],
      [0x3d, 0xd8],
      [0xd8, 0x3d],
      [0x61, 0x00, 0x62],
      [0],
    ),
    fc.array(fc.nat({max: 255}), {maxLength: 8}),
  )
  .map(bytes => ({rawText: Uint8Array.from(bytes)}))
const blob: Arbitrary<Uint8Array> = fc.oneof(
  fc.constantFrom(new Uint8Array(), Uint8Array.of(0), Uint8Array.of(0x31), new Uint8Array(5_000)),
  fc.uint8Array({maxLength: 12}),
)

/** Any value, biased to the awkward ones and to those that meet again as keys. */
export const cell: Arbitrary<Cell> = fc.oneof(
  {weight: 2, arbitrary: fc.constant(null)},
  {weight: 3, arbitrary: integer},
  {weight: 2, arbitrary: real},
  {weight: 6, arbitrary: text},
  {weight: 1, arbitrary: rawText},
  {weight: 1, arbitrary: blob},
)
const cells = fc.array(cell, {minLength: 6, maxLength: 6})

const keyKind: Arbitrary<KeyKind> = fc.oneof(
  {weight: 2, arbitrary: fc.constantFrom('primary', 'composite', 'unique index')},
  {
    weight: 1,
    arbitrary: fc.constantFrom('none', 'integer', 'autoincrement', 'unique column', 'without rowid'),
  },
)

const column: Arbitrary<ColumnPlan> = fc.record({
  name: columnName,
  type: declared,
  notNull: fc.boolean(),
  generated: fc.oneof(
    {weight: 6, arbitrary: fc.constant(undefined)},
    {weight: 1, arbitrary: fc.constantFrom('virtual', 'stored')},
  ),
})

/** A table of any kind, with up to a dozen rows. */
export const tablePlan: Arbitrary<TablePlan> = fc.record({
  name: tableName,
  columns: fc.uniqueArray(column, {minLength: 1, maxLength: 6, selector: ({name}) => name.toLowerCase()}),
  key: keyKind,
  strict: fc.oneof({weight: 6, arbitrary: fc.constant(false)}, {weight: 1, arbitrary: fc.constant(true)}),
  indexes: fc.array(fc.constantFrom('plain', 'desc', 'nocase', 'partial', 'expression'), {maxLength: 2}),
  rows: fc.array(cells, {maxLength: 12}),
})

/** A file of one to four tables. */
export const filePlan: Arbitrary<FilePlan> = fc.record({
  encoding: fc.oneof(
    {weight: 6, arbitrary: fc.constant('UTF-8' as const)},
    {weight: 1, arbitrary: fc.constantFrom('UTF-16le', 'UTF-16be')},
  ),
  pageSize: fc.constantFrom(512, 1_024, 4_096, 4_096, 65_536),
  autoVacuum: fc.constantFrom(0, 0, 0, 1, 2),
  journalMode: fc.constantFrom('delete', 'wal'),
  tables: fc.uniqueArray(tablePlan, {minLength: 1, maxLength: 4, selector: ({name}) => name.toLowerCase()}),
})

const at = {table: place, row: place}
const rowChange: Arbitrary<Change> = fc.oneof(
  {weight: 6, arbitrary: fc.record({do: fc.constant('insert'), table: place, cells})},
  {
    weight: 1,
    arbitrary: fc.record({
      do: fc.constant('fill'),
      table: place,
      rows: fc.integer({min: 1, max: 80}),
      bytes: fc.nat({max: 3_000}),
    }),
  },
  {
    weight: 8,
    arbitrary: fc.record({do: fc.constant('update'), ...at, column: place, cell, bump: fc.boolean()}),
  },
  {weight: 2, arbitrary: fc.record({do: fc.constant('overwrite'), ...at, column: place})},
  {weight: 4, arbitrary: fc.record({do: fc.constant('delete'), ...at})},
  {
    weight: 1,
    arbitrary: fc.record({do: fc.constant('delete some'), table: place, every: fc.integer({min: 1, max: 4})}),
  },
  {weight: 2, arbitrary: fc.record({do: fc.constant('replace'), ...at, cells})},
  {weight: 2, arbitrary: fc.record({do: fc.constant('insert again'), ...at})},
  {weight: 3, arbitrary: fc.record({do: fc.constant('move key'), ...at, cell})},
  {weight: 3, arbitrary: fc.record({do: fc.constant('swap'), ...at, other: place, column: place})},
)
const schemaChange: Arbitrary<Change> = fc.oneof(
  fc.record({do: fc.constant('add column'), table: place, name: columnName, type: declared, cell}),
  fc.record({do: fc.constant('drop column'), table: place, column: place}),
  fc.record({do: fc.constant('rename column'), table: place, column: place, name: columnName}),
  fc.record({do: fc.constant('rename table'), table: place, name: tableName}),
  fc.record({
    do: fc.constant('rebuild'),
    table: place,
    as: fc.constantFrom('_alembic_tmp_', '_new'),
    key: keyKind,
    reorder: fc.boolean(),
  }),
  fc.record({do: fc.constant('create index'), table: place, column: place, unique: fc.boolean()}),
  fc.record({do: fc.constant('drop index'), index: place}),
  fc.record({do: fc.constant('create table'), plan: tablePlan}),
  fc.record({do: fc.constant('drop table'), table: place}),
  fc.record({do: fc.constant('vacuum')}),
  fc.record({do: fc.constant('user_version'), to: fc.integer({min: -(2 ** 31), max: 2 ** 31 - 1})}),
)
const transaction: Arbitrary<Change> = fc.record({
  do: fc.constant('transaction'),
  changes: fc.array(fc.oneof({weight: 5, arbitrary: rowChange}, {weight: 1, arbitrary: schemaChange}), {
    minLength: 1,
    maxLength: 6,
  }),
  end: fc.oneof(
    {weight: 5, arbitrary: fc.constant('commit' as const)},
    {weight: 1, arbitrary: fc.constant('rollback' as const)},
  ),
})

/** One change; each is a commit of its own unless it is in a `transaction`. */
export const change: Arbitrary<Change> = fc.oneof(
  {weight: 10, arbitrary: rowChange},
  {weight: 2, arbitrary: schemaChange},
  {weight: 3, arbitrary: transaction},
)

/** Changes of rows alone, for histories in which the schema stays. */
export const changeOfRows: Arbitrary<Change> = rowChange

/** What happens between the syncs of a run: a list of changes for each interval. */
export const history: Arbitrary<readonly (readonly Change[])[]> = fc.array(fc.array(change, {maxLength: 6}), {
  minLength: 1,
  maxLength: 6,
})
