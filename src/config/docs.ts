import {writeFileSync} from 'node:fs'
import type {Setting} from './kinds.ts'
import {groups} from './settings.ts'

/** @returns docs/settings.md: every setting of the table, under its heading. */
export function settingsPage(): string {
  return [
    '# Settings',
    '',
    'Written by `npm run docs` from `src/config/settings.ts`; change that.',
    '',
    'Every setting is an environment variable. Each can also be given as a file, whose path is in `NAME_FILE` (a Docker',
    'secret, a systemd credential): both set is an error, and one newline at the end of the file is dropped. A file whose',
    'name ends in `.age` is decrypted with `AGE_IDENTITY_FILE`. An empty variable counts as unset.',
    '',
    'A duration is a number with `ms`, `s`, `m`, `h` or `d`; a bare number is seconds. All problems are reported at once,',
    'and secrets are never printed.',
    ...Object.entries(groups).flatMap(([heading, group]) => section(heading, Object.values(group))),
    '',
  ].join('\n')
}

function section(heading: string, settings: readonly Setting<unknown>[]): string[] {
  return [
    '',
    `## ${heading}`,
    '',
    '| setting | takes | default | what it is for |',
    '|---|---|---|---|',
    ...settings.map(row),
  ]
}

function row({env, aliases, accepts, standard, about}: Setting<unknown>): string {
  const name = [`\`${env}\``, ...aliases.map(alias => `(alias \`${alias}\`)`)].join(' ')
  return `| ${[name, accepts, standard === '' ? '' : code(standard), about].map(cell => cell.replaceAll('|', '\\|')).join(' | ')} |`
}

/** Only what may be typed as it stands is set as code; the rest is a sentence. */
function code(standard: string): string {
  return standard.includes(' ') ? standard : `\`${standard}\``
}

if (import.meta.main) {
  writeFileSync(new URL('../../docs/settings.md', import.meta.url), settingsPage())
}
