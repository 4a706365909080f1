import assert from 'node:assert/strict'
import {existsSync} from 'node:fs'
import {glob, readFile} from 'node:fs/promises'
import {dirname, join} from 'node:path'
import {describe, test} from 'vitest'
import {flagOf} from '../src/cli/command.ts'
import {commands, groups} from '../src/cli/commands.ts'
import {commandsPage} from '../src/cli/docs.ts'
import {settingsPage} from '../src/config/docs.ts'

const pages: string[] = []
for await (const page of glob(['*.md', 'docs/**/*.md'])) pages.push(page)

test('docs/settings.md is what the table of settings says (npm run docs writes it)', async () => {
  assert.equal(await readFile('docs/settings.md', 'utf8'), settingsPage())
})

test('docs/commands.md is what the list of commands says (npm run docs writes it)', async () => {
  assert.equal(await readFile('docs/commands.md', 'utf8'), await commandsPage())
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

test('the README and the pages are found', () => {
  for (const page of ['README.md', 'docs/concepts.md', 'docs/operations.md', 'docs/benchmarks.md'])
    assert.ok(pages.includes(page), page)
})

for (const page of pages)
  test(`links in ${page} lead to files and headings that exist`, async () => {
    const broken: string[] = []
    for (const [link, target = ''] of (await readFile(page, 'utf8')).matchAll(/\]\(([^)\s]+)\)/g)) {
      if (/^[a-z]+:/.test(target)) continue
      const [path = '', anchor] = target.split('#')
      const file = path === '' ? page : join(dirname(page), path)
      const isThere = existsSync(file) && (anchor === undefined || (await anchorsOf(file)).has(anchor))
      if (!isThere) broken.push(link)
    }
    assert.deepEqual(broken, [])
  })

describe.each(pages.filter(page => !page.startsWith('docs/decisions/')))('in %s', page => {
  test('every owsync command exists, with its options', async () => {
    assert.deepEqual(await impossible(commandLines(await readFile(page, 'utf8'))), [])
  })
})

test('every owsync command that a message tells to type exists, with its options', async () => {
  const told: string[] = []
  for await (const file of glob(['src/**/*.ts', 'sql/*.sql'], {exclude: ['**/*.test.ts']})) {
    // In a template a backtick is escaped, and what is filled in is a value.
    const text = (await readFile(file, 'utf8')).replaceAll('\\`', '`').replace(/\$\{[^{}]*\}/g, 'X')
    // Templates that begin with `owsync` and are no command: what locks and programs are called, and what help is made of.
    told.push(...commandLines(text).filter(line => !/^(X|leader )/.test(line)))
  }
  assert.ok(told.length > 10, 'the commands were not found')
  assert.deepEqual(await impossible(told), [])
})

/** @returns those command lines that `owsync` would refuse. */
async function impossible(lines: readonly string[]): Promise<string[]> {
  const wrong: string[] = []
  for (const line of lines) {
    const words = line.split(/\s+/)
    const entry = commands.find(({name}) => `${line} `.startsWith(`${name} `))
    const options = entry ? Object.keys((await entry.load()).options).map(flagOf) : []
    const flags = words.filter(word => word.startsWith('--'))
    const isRight = entry
      ? flags.every(flag => [...options, '--json'].includes(flag))
      : line in groups || /^(help|--version)\b/.test(line)
    if (!isRight) wrong.push(line)
  }
  return wrong
}

/** What follows `owsync` wherever a text shows it being typed. */
function commandLines(text: string): string[] {
  const fenced = [...text.matchAll(/^```\w+\n(.*?)^```/gms)].flatMap(([, block = '']) => block.split('\n'))
  const inline = [...text.matchAll(/`([^`\n]+)`/g)].map(([, code = '']) => code)
  return [...fenced, ...inline].flatMap(line => {
    const [, typed] = /^\s*(?:sudo )?(?:\.\/)?owsync ([^#>|]+)/.exec(line) ?? []
    return typed === undefined ? [] : [typed.trim()]
  })
}

/** The anchors that GitHub gives a page's headings. */
async function anchorsOf(file: string): Promise<Set<string>> {
  const headings = (await readFile(file, 'utf8')).matchAll(/^#+ (.+)$/gm)
  const anchor = (heading: string) =>
    heading
      .toLowerCase()
      .replace(/[^\p{L}\p{N}_ -]/gu, '')
      .replaceAll(' ', '-')
  return new Set([...headings].map(([, heading = '']) => anchor(heading)))
}
