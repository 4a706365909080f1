import assert from 'node:assert/strict'
import {execFile} from 'node:child_process'
import {promisify} from 'node:util'
import {describe, test} from 'vitest'
import {command} from './command.ts'
import {completionScript} from './completion.ts'
import type {CommandList} from './parse.ts'

const list: CommandList = {
  groups: {db: "The control schema: it's shared."},
  commands: [
    entry('sync', {
      client: {type: 'string', about: 'Which client.'},
      sqlite: {type: 'path', about: 'The [file].'},
    }),
    entry('db migrate', {}),
    entry('db grant-access', {mode: {type: 'string', about: 'How far.', choices: ['read', 'edit']}}),
  ],
}

describe('in bash', () => {
  for (const [line, expected] of [
    ['owsync ', 'help sync db --json --help --version'],
    ['owsync s', 'sync'],
    ['owsync --json d', 'db'],
    ['owsync db ', 'migrate grant-access --json --help'],
    ['owsync help db g', 'grant-access'],
    ['owsync db grant-access --', '--mode --json --help'],
    ['owsync db grant-access --mode ', 'read edit'],
    ['owsync db grant-access --mode e', 'edit'],
    ['owsync sync --client a', ''],
    ['owsync sync --sqlite ./package.j', './package.json'],
    ['owsync sync --client acme --sq', '--sqlite'],
  ] as const) {
    test(`"${line}" completes to "${expected}"`, async () => {
      assert.equal(await completed(line), expected)
    })
  }
})

test('the zsh script names every command, option and choice, and quotes what it says', async () => {
  const script = await completionScript('zsh', list)
  for (const part of [
    "'sync:About sync.'",
    `'db:The control schema: it'\\''s shared.'`,
    "'--sqlite=[The \\[file\\].]:FILE:_files'",
    "'--mode=[How far.]:MODE:(read edit)'",
  ]) {
    assert.ok(script.includes(part), `${part} in\n${script}`)
  }
})

function entry(
  name: string,
  options: Parameters<typeof command>[0]['options'],
): CommandList['commands'][number] {
  const load = () =>
    Promise.resolve(command({positionals: {}, options, run: () => Promise.resolve(undefined)}))
  return {name, about: `About ${name}.`, load}
}

async function completed(line: string): Promise<string> {
  const script = await completionScript('bash', list)
  const words = line.split(' ')
  const {stdout} = await promisify(execFile)('bash', [
    '--norc',
    '-c',
    `${script}\nCOMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); _owsync; echo "\${COMPREPLY[*]}"`,
    'bash',
    ...words,
  ])
  return stdout.trim()
}
