import assert from 'node:assert/strict'
import {readFileSync} from 'node:fs'
import {mkdtemp, rm} from 'node:fs/promises'
import {tmpdir} from 'node:os'
import {join} from 'node:path'
import {DatabaseSync} from 'node:sqlite'
import {afterAll, beforeAll, describe, test} from 'vitest'
import {generate, sizes} from './generate.ts'
import {shapes, type Version} from './schema.ts'

let folder: string
beforeAll(async () => {
  folder = await mkdtemp(join(tmpdir(), 'owsync-generate-'))
})
afterAll(() => rm(folder, {recursive: true}))

const tiny = (
  name: string,
  version: Version,
  more: {seed?: number; journalMode?: 'wal'; pageSize?: number} = {},
) => {
  const file = join(folder, name)
  return {file, made: generate(file, {version, seed: 1, ...sizes.tiny, ...more})}
}

/** The first column of the first row. */
const ask = (db: DatabaseSync, sql: string): unknown => Object.values(db.prepare(sql).get() ?? {})[0]

test('the same seed gives the same file, another seed another one', () => {
  const [one, again, other] = [1, 1, 2].map((seed, i) =>
    readFileSync(tiny(`seed-${i}`, '0.10.2', {seed}).file),
  )
  assert.deepEqual(one, again)
  assert.notDeepEqual(one, other)
})

test('an existing file is left alone', () => {
  const {file} = tiny('existing', '0.6.31')
  const before = readFileSync(file)
  assert.throws(() => generate(file, {version: '0.11', seed: 2, ...sizes.tiny}), {code: 'SYNC_USAGE'})
  assert.deepEqual(readFileSync(file), before)
})

test('page size and journal mode are as asked, and progress ends at the total', () => {
  const seen: number[] = []
  const file = join(folder, 'pragmas')
  const onProgress = (done: number, total: number) => seen.push(done / total)
  generate(file, {version: '0.11', seed: 1, ...sizes.tiny, journalMode: 'wal', pageSize: 512, onProgress})
  using db = new DatabaseSync(file, {readOnly: true})
  assert.equal(ask(db, 'pragma page_size'), 512)
  assert.equal(ask(db, 'pragma journal_mode'), 'wal')
  assert.equal(seen.at(-1), 1)
})

for (const version of Object.keys(shapes) as Version[])
  describe(`a file of ${version}`, () => {
    let db: DatabaseSync
    beforeAll(() => {
      db = new DatabaseSync(tiny(`shape-${version}`, version).file, {readOnly: true})
    })
    afterAll(() => {
      db.close()
    })

    const isLegacy = version === '0.6.31' || version === '0.8.12'

    test('is whole, and holds rows whose parent is gone', () => {
      assert.equal(ask(db, 'pragma integrity_check'), 'ok')
      assert.ok(db.prepare('pragma foreign_key_check').all().length > 0)
      assert.equal(ask(db, 'select version_num from alembic_version'), shapes[version].revision)
    })

    test('has the keys of its release', () => {
      const primary = ask(db, `select count(*) from pragma_table_info('chat') where pk > 0`)
      assert.equal(primary, isLegacy ? 0 : 1)
      assert.equal(
        ask(db, `select count(*) from pragma_index_list('chat') where name = 'chat_id' and "unique"`),
        isLegacy ? 1 : 0,
      )
    })

    test('holds the awkward values of real files', () => {
      assert.equal(ask(db, `select typeof(created_at) from chat`), 'integer')
      assert.ok(Number(ask(db, `select count(*) from chat where chat like '%\\u0000%'`)) > 0)
      assert.ok(
        Number(ask(db, `select count(*) from chat where chat glob '*[^ -~]*'`)) === 0,
        'JSON is ASCII',
      )
      assert.ok(Number(ask(db, `select count(*) from message where content glob '*[^ -~]*'`)) > 0)
      assert.equal(ask(db, `select min(created_at) > 9007199254740991 from message`), 1)
      assert.ok(Number(ask(db, `select count(*) from message where meta is null`)) > 0)
      assert.ok(Number(ask(db, `select count(*) from message where meta = 'null'`)) > 0)
      const [integers, reals] = isLegacy
        ? [0, 0]
        : ['integer', 'real'].map(type =>
            ask(db, `select count(*) from config where typeof(value) = '${type}'`),
          )
      assert.deepEqual([integers, reals], isLegacy ? [0, 0] : [3, 1])
    })

    test('every JSON column that holds text holds JSON', () => {
      const columns = db
        .prepare(
          `select t.name as "table", c.name as "column" from sqlite_schema t, pragma_table_info(t.name) c
           where t.type = 'table' and c.type = 'JSON'`,
        )
        .all()
      assert.ok(columns.length > 10)
      for (const {table, column} of columns) {
        const broken = `select count(*) from "${String(table)}" where not json_valid("${String(column)}")`
        assert.equal(ask(db, broken), 0, `${String(table)}.${String(column)}`)
      }
    })
  })
