import assert from 'node:assert/strict'
import {copyFile, mkdtemp, rm} from 'node:fs/promises'
import {tmpdir} from 'node:os'
import {join} from 'node:path'
import {DatabaseSync} from 'node:sqlite'
import {afterAll, beforeAll, test} from 'vitest'
import {compareContent} from './differences.ts'
import {generate, sizes} from './generate.ts'

let folder: string
let sample: string
beforeAll(async () => {
  folder = await mkdtemp(join(tmpdir(), 'owsync-differences-'))
  sample = join(folder, 'webui.db')
  generate(sample, {version: '0.11', seed: 5, ...sizes.tiny})
  change(
    sample,
    `create table "a ""b" (c text collate nocase, v); insert into "a ""b" values ('x', 1), ('x', 1), ('y', x'00')`,
  )
})
afterAll(() => rm(folder, {recursive: true}))

test('a copy is equal, also when its rows stand elsewhere', async () => {
  const copy = await changed('vacuum')
  const {tables, rows, differences} = compareContent(sample, copy)
  assert.deepEqual(differences, [])
  assert.ok(tables > 30 && rows > 100, `${tables} tables, ${rows} rows`)
})

for (const [what, sql, expected] of [
  ['a value', `update user set name = name || '!' where rowid = 1`, 'user: 2 rows are in one file only'],
  ['a storage class', `update "a ""b" set v = 1.0 where rowid = 1`, /^a "b: \d rows/],
  ['the case of a text', `update "a ""b" set c = 'Y' where c = 'y'`, 'a "b: 2 rows are in one file only'],
  ['text for bytes', `update "a ""b" set v = cast(v as text) where c = 'y'`, /^a "b: 2 rows/],
  ['a row that comes once instead of twice', `delete from "a ""b" where rowid = 1`, /^a "b: 2 rows/],
  ['a missing row', `delete from user where rowid = 1`, 'user: 1 rows are in one file only'],
  ['a row too many', `insert into "a ""b" values (null, null)`, 'a "b: 1 rows are in one file only'],
  ['a table that is missing', `drop table "a ""b"`, 'a "b is declared differently'],
  ['a table that is new', 'create table later (x)', 'later is declared differently'],
  ['an index', 'create index later on user (name)', 'later is declared differently'],
  ['a setting of the file', 'pragma user_version = 7', 'user_version is 0 and 7'],
  ['the journal mode', 'pragma journal_mode = wal', 'journal_mode is delete and wal'],
] as const)
  test(`${what} is a difference`, async () => {
    const {differences} = compareContent(sample, await changed(sql))
    assert.equal(differences.length, 1, differences.join('; '))
    assert.match(
      differences[0]!,
      typeof expected === 'string' ? new RegExp(`^${RegExp.escape(expected)}$`) : expected,
    )
  })

async function changed(sql: string): Promise<string> {
  const copy = join(folder, 'copy.db')
  await rm(copy, {force: true})
  await copyFile(sample, copy)
  change(copy, sql)
  return copy
}

function change(file: string, sql: string): void {
  using db = new DatabaseSync(file, {enableForeignKeyConstraints: false})
  db.exec(sql)
}
