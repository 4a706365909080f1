import assert from 'node:assert/strict'
import {glob, readFile} from 'node:fs/promises'
import {test} from 'vitest'
import {settingsPage} from '../src/config/docs.ts'

test('docs/settings.md is what the table of settings says (npm run docs writes it)', async () => {
  assert.equal(await readFile('docs/settings.md', 'utf8'), settingsPage())
})

test('docs/errors.md has one paragraph for each error code, and no other', async () => {
  const codes = new Map<string, string>()
  for await (const file of glob('src/**/*.ts', {exclude: ['**/*.test.ts']})) {
    for (const [, code] of (await readFile(file, 'utf8')).matchAll(/(?:\b|_)code\s*[=:]\s*'(SYNC_\w+)'/g))
      codes.set(code!, file)
  }
  const page = await readFile('docs/errors.md', 'utf8')
  const headings = [...page.matchAll(/^## (.+)$/gm)].map(([, heading]) => heading!)

  assert.ok(codes.size > 10, 'the codes were not found')
  assert.deepEqual(
    [...codes]
      .filter(([code]) => !headings.includes(code))
      .map(([code, file]) => `${code} of ${file} has no paragraph`),
    [],
  )
  assert.deepEqual(
    headings.filter(heading => !codes.has(heading)),
    [],
    'paragraphs without an error',
  )
  assert.equal(new Set(headings).size, headings.length, 'no code twice')
})
