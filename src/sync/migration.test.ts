import {expect, test} from 'vitest'
import {isHalfMigrated} from './migration.ts'

test.for([
  ['nothing special', ['chat', 'user'], false],
  ['Alembic rebuilds a table', ['_alembic_tmp_chat', 'chat'], true],
  ['Alembic has dropped the original already', ['_alembic_tmp_chat', 'user'], true],
  ['a copy stands beside its original', ['prompt', 'prompt_new'], true],
  ['the original was moved aside', ['chat', 'old_chat'], true],
  ['a table that is only called like a copy', ['brand_new', 'user'], false],
  ['a table that Open WebUI keeps after its upgrade', ['config', 'config_old'], false],
] as const)('%s', ([, tables, expected]) => {
  expect(isHalfMigrated(tables)).toBe(expected)
})
