import assert from 'node:assert/strict'
import {glob, readFile} from 'node:fs/promises'
import {dirname, join} from 'node:path'
import {test} from 'vitest'

// Each row may import from the rows above it; folders in one row do not know each other.
const layers = [
  ['core'],
  ['config', 'telemetry'],
  ['net'],
  ['postgres'],
  ['source', 'target', 'conflict', 'cluster', 'state', 'docker', 'sample'],
  ['sync', 'restore', 'schedule'],
  ['api'],
  ['service'],
  ['cli'],
  ['main.ts'],
]
const longestFileLines = 600

type SourceFile = {readonly path: string; readonly text: string}

test('imports point one way only', async () => {
  assert.deepEqual(problemsIn(await sourceFiles()), [])
})

for (const [what, path, text, expected] of [
  ['a folder in no layer', 'src/misc/thing.ts', '', 'src/misc/thing.ts is in no layer'],
  [
    'an import of a folder below',
    'src/cluster/lease.ts',
    `import {run} from '../sync/run.ts'`,
    'src/cluster/lease.ts must not import src/sync/run.ts',
  ],
  [
    'an import of a neighbour in the same row',
    'src/cluster/lease.ts',
    `import type {State} from '../state/state.ts'`,
    'src/cluster/lease.ts must not import src/state/state.ts',
  ],
  [
    'a lazy import of a folder below',
    'src/core/late.ts',
    `const late = await import('../cli/run.ts')`,
    'src/core/late.ts must not import src/cli/run.ts',
  ],
  [
    'an import for effect of a folder below',
    'src/core/effect.ts',
    `import '../cli/run.ts'`,
    'src/core/effect.ts must not import src/cli/run.ts',
  ],
  [
    'a re-export of a folder below',
    'src/core/barrel.ts',
    `export * from "../cli/run.ts"`,
    'src/core/barrel.ts must not import src/cli/run.ts',
  ],
  [
    'an import from outside src',
    'src/core/odd.ts',
    `import '../../test/x.ts'`,
    'src/core/odd.ts must not import test/x.ts',
  ],
  [
    'a folder inside a folder',
    'src/core/deep/thing.ts',
    '',
    'src/core/deep/thing.ts lies deeper than one folder',
  ],
  [
    'a file that grew too long',
    'src/core/long.ts',
    'x\n'.repeat(longestFileLines + 1),
    `src/core/long.ts has ${longestFileLines + 1} lines, more than ${longestFileLines}`,
  ],
] as const) {
  test(`the rule refuses ${what}`, () => {
    assert.deepEqual(problemsIn([{path, text}]), [expected])
  })
}

test('the rule accepts imports from above, from the same folder, and of test support by tests', () => {
  const files = [
    {path: 'src/sync/run.ts', text: `import {cut} from '../source/cut.ts'\nimport {x} from './x.ts'`},
    {path: 'src/sync/run.pg.test.ts', text: `import {testDatabase} from '../../test/database.ts'`},
    {path: 'src/main.ts', text: `import {main} from './cli/run.ts'`},
  ]
  assert.deepEqual(problemsIn(files), [])
})

function problemsIn(files: readonly SourceFile[]): string[] {
  return files.flatMap(file => [...shapeProblems(file), ...importProblems(file)])
}

function* shapeProblems({path, text}: SourceFile): Generator<string> {
  if (layerOf(path) === -1) yield `${path} is in no layer`
  if (path.split('/').length > 3) yield `${path} lies deeper than one folder`
  const lines = text.split('\n').length - 1
  if (lines > longestFileLines) yield `${path} has ${lines} lines, more than ${longestFileLines}`
}

function* importProblems({path, text}: SourceFile): Generator<string> {
  for (const [, specifier] of text.matchAll(/(?:\bfrom\s*|\bimport\s*\(?\s*)['"](\.[^'"]+)['"]/g)) {
    const imported = join(dirname(path), specifier!)
    if (path.endsWith('.test.ts') && imported.startsWith('test/')) continue
    const isAllowed =
      imported.startsWith('src/') &&
      (folderOf(imported) === folderOf(path) || layerOf(imported) < layerOf(path))
    if (!isAllowed) yield `${path} must not import ${imported}`
  }
}

async function sourceFiles(): Promise<SourceFile[]> {
  const files: SourceFile[] = []
  for await (const path of glob('src/**/*.{ts,tsx,sql}'))
    files.push({path, text: await readFile(path, 'utf8')})
  assert.ok(files.length > 0, 'no source files found')
  return files
}

function folderOf(path: string): string {
  return path.split('/')[1] ?? ''
}

function layerOf(path: string): number {
  return layers.findIndex(row => row.includes(folderOf(path)))
}
