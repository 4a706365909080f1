import assert from 'node:assert/strict'
import {readFile} from 'node:fs/promises'
import {test} from 'vitest'
import {settingsPage} from '../src/config/docs.ts'

test('docs/settings.md is what the table of settings says (npm run docs writes it)', async () => {
  assert.equal(await readFile('docs/settings.md', 'utf8'), settingsPage())
})
