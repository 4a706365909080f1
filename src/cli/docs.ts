import {writeFileSync} from 'node:fs'
import {flagOf, placeholderOf, type Command} from './command.ts'
import {commands, groups} from './commands.ts'
import type {CommandList} from './parse.ts'

/** @returns docs/commands.md: every command of the list, with what it takes. */
export async function commandsPage(list: CommandList = {commands, groups}): Promise<string> {
  const loaded = await Promise.all(
    list.commands.map(async ({name, about, load}) => ({name, about, command: await load()})),
  )
  return [
    '# Commands',
    '',
    'Written by `npm run docs` from the list of commands in `src/cli/commands.ts`; change that.',
    '',
    'Data goes to standard output, talk to standard error. `--json` makes any command print data and errors as JSON, one document, or',
    'one line an event; `--help` shows what a command takes. Exit codes: 0 done, 1 failed, 2 done but a person is needed, 64 misused, 75 try',
    'again later. What cannot be undone says what it will do and waits until the name was typed; `--yes` skips that.',
    '',
    '| command | does |',
    '|---|---|',
    ...loaded.map(({name, about}) => `| [\`${name}\`](#owsync-${name.replaceAll(' ', '-')}) | ${about} |`),
    ...loaded.flatMap(({name, about, command}) => section(name, about, command)),
    '',
  ].join('\n')
}

function section(name: string, about: string, command: Command): string[] {
  const {details, examples = [], options, positionals} = command
  const places = Object.entries(positionals).map(([key, {optional}]) =>
    optional ? `[${placeholderOf(key)}]` : placeholderOf(key),
  )
  const required = Object.entries(options).flatMap(([key, spec]) =>
    spec.required ? [`${flagOf(key)} ${placeholderOf(key, spec)}`] : [],
  )
  const isMore = Object.values(options).some(({required}) => required !== true)
  const usage = ['owsync', name, ...places, ...required, ...(isMore ? ['[options]'] : [])].join(' ')
  const rows = [
    ...Object.entries(positionals).map(([key, {about, choices}]) => row(placeholderOf(key), about, choices)),
    ...Object.entries(options).map(([key, spec]) =>
      row(
        spec.type === 'boolean' ? flagOf(key) : `${flagOf(key)} ${placeholderOf(key, spec)}`,
        spec.about,
        spec.choices,
      ),
    ),
  ]
  return [
    '',
    `## owsync ${name}`,
    '',
    details === undefined ? about : `${about} ${details}`,
    '',
    // No language: what stands in capitals is not to be typed as it is.
    '```',
    usage,
    ...examples.map(example => `owsync ${example}`),
    '```',
    ...(rows.length === 0 ? [] : ['', '| takes | what for |', '|---|---|', ...rows]),
  ]
}

function row(term: string, about: string, choices: readonly string[] | undefined): string {
  const text = choices === undefined ? about : `${about} One of ${choices.join(', ')}.`
  return `| \`${term}\` | ${text.replaceAll('|', '\\|')} |`
}

if (import.meta.main) {
  writeFileSync(new URL('../../docs/commands.md', import.meta.url), await commandsPage())
}
