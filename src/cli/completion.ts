import {command, flagOf, placeholderOf, type Command, type OptionSpec} from './command.ts'
import {commands, groups} from './commands.ts'
import type {CommandList} from './parse.ts'

export const completion = command({
  details:
    'Everything that can be completed is in the script, so completing starts no program; print it again after an update.',
  examples: [
    'completion bash > ~/.local/share/bash-completion/completions/owsync',
    'completion zsh > "${fpath[1]}/_owsync"',
  ],
  positionals: {shell: {about: 'Which shell.', choices: ['bash', 'zsh']}},
  options: {},
  async run({shell}, {out}) {
    const script = await completionScript(shell, {commands, groups})
    out({shell, script}, script)
    return 0
  },
})

/** One word of a command line, what may follow it, and what the commands on the way are about. */
type Place = {
  /** The words typed so far: `db grant-access`; empty at the beginning. */
  readonly path: string
  readonly words: readonly Word[]
  readonly options: readonly Flag[]
  readonly choices: readonly string[]
}

type Word = {readonly word: string; readonly about: string}
type Flag = Word & {
  readonly type: OptionSpec['type']
  readonly choices: readonly string[]
  readonly value: string
}

const globalFlags: readonly Flag[] = [
  {word: '--json', about: 'Print data and errors as JSON.', type: 'boolean', choices: [], value: ''},
  {word: '--help', about: 'Show help.', type: 'boolean', choices: [], value: ''},
]

/** @returns a script that completes every command, option and choice of `list`. */
export async function completionScript(shell: 'bash' | 'zsh', list: CommandList): Promise<string> {
  const places = await placesOf(list)
  return shell === 'bash' ? bashScript(places) : zshScript(places)
}

async function placesOf({commands, groups}: CommandList): Promise<readonly Place[]> {
  const loaded = await Promise.all(commands.map(async entry => ({...entry, command: await entry.load()})))
  const root: Word[] = [{word: 'help', about: 'Show what a command takes.'}]
  const inGroups = new Map<string, Word[]>()
  const leaves = loaded.map(({name, about, command}): Place => {
    const [first = '', second] = name.split(' ')
    if (second === undefined) root.push({word: first, about})
    else if (inGroups.has(first)) inGroups.get(first)?.push({word: second, about})
    else {
      root.push({word: first, about: groups[first] ?? ''})
      inGroups.set(first, [{word: second, about}])
    }
    return {path: name, words: [], options: flagsOf(command), choices: choicesOf(command)}
  })
  const branches = [...inGroups].map(([path, words]): Place => ({
    path,
    words,
    options: globalFlags,
    choices: [],
  }))
  const version = {
    word: '--version',
    about: 'Print the version.',
    type: 'boolean',
    choices: [],
    value: '',
  } as const
  return [{path: '', words: root, options: [...globalFlags, version], choices: []}, ...branches, ...leaves]
}

function flagsOf({options}: Command): readonly Flag[] {
  const own = Object.entries(options).map(([key, spec]): Flag => {
    const {about, type, choices = []} = spec
    return {word: flagOf(key), about, type, choices, value: placeholderOf(key, spec)}
  })
  return [...own, ...globalFlags]
}

function choicesOf({positionals}: Command): readonly string[] {
  return Object.values(positionals)[0]?.choices ?? []
}

function bashScript(places: readonly Place[]): string {
  const known = places.filter(({path}) => path !== '').map(({path}) => `'${path}'`)
  const values = places.flatMap(({path, options}) =>
    options
      .filter(({type}) => type !== 'boolean')
      .map(({word, type, choices}) => {
        const reply = choices.length > 0 ? `-W '${choices.join(' ')}'` : type === 'path' ? '-f' : "-W ''"
        return `    '${path} ${word}') COMPREPLY=($(compgen ${reply} -- "$word")); return ;;`
      }),
  )
  const words = places.map(({path, words, options, choices}) => {
    const all = [...words.map(({word}) => word), ...choices, ...options.map(({word}) => word)]
    return `    '${path}') COMPREPLY=($(compgen -W '${all.join(' ')}' -- "$word")) ;;`
  })
  return `# bash completion for owsync
_owsync() {
  local word=\${COMP_WORDS[COMP_CWORD]} before=\${COMP_WORDS[COMP_CWORD - 1]} place='' i
  COMPREPLY=()
  for ((i = 1; i < COMP_CWORD; i++)); do
    case \${COMP_WORDS[i]} in
      help | --json) continue ;;
    esac
    case "\${place:+$place }\${COMP_WORDS[i]}" in
      ${known.join(' | ')}) place="\${place:+$place }\${COMP_WORDS[i]}" ;;
      *) break ;;
    esac
  done
  case "$place $before" in
${values.join('\n')}
    *) ;;
  esac
  case "$place" in
${words.join('\n')}
  esac
}
complete -o filenames -F _owsync owsync ./owsync`
}

function zshScript(places: readonly Place[]): string {
  const known = places.filter(({path}) => path !== '').map(({path}) => `'${path}'`)
  const cases = places.map(({path, words, options, choices}) => {
    const specs = options.map(flag => `      ${zshQuoted(zshSpec(flag))}`)
    const listed = words.map(({word, about}) => zshQuoted(`${word}:${about}`))
    const first = [
      ...(words.length > 0 ? ["      '1:command:->command'"] : []),
      ...(choices.length > 0 ? [`      '1:choice:(${choices.join(' ')})'`] : []),
    ]
    return `    '${path}')
      names=(${listed.join(' ')})
      _arguments \\
${[...first, ...specs].join(' \\\n')}
      [[ $state == command ]] && _describe command names
      ;;`
  })
  return `#compdef owsync
# zsh completion for owsync
_owsync() {
  local place='' state='' i used=1
  local -a names
  for ((i = 2; i < CURRENT; i++)); do
    case \${words[i]} in
      help | --json) continue ;;
    esac
    case "\${place:+$place }\${words[i]}" in
      ${known.join(' | ')}) place="\${place:+$place }\${words[i]}"; used=$i ;;
      *) break ;;
    esac
  done
  shift $((used - 1)) words
  ((CURRENT -= used - 1))
  case $place in
${cases.join('\n')}
  esac
}
compdef _owsync owsync`
}

function zshSpec({word, about, type, choices, value}: Flag): string {
  const text = about.replace(/[[\]\\:]/g, '\\$&')
  if (type === 'boolean') return `${word}[${text}]`
  const action = choices.length > 0 ? `(${choices.join(' ')})` : type === 'path' ? '_files' : ' '
  return `${word}=[${text}]:${value}:${action}`
}

function zshQuoted(text: string): string {
  return `'${text.replaceAll("'", `'\\''`)}'`
}
