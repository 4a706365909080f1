import {styleText} from 'node:util'
import {Argument, Command as Parser, CommanderError, InvalidArgumentError, Option} from 'commander'
import {UsageError} from '../core/errors.ts'
import {flagOf, placeholderOf, type Command, type OptionSpec, type PositionalSpec} from './command.ts'
import type {Entry} from './commands.ts'

/** What a command line asks for. */
export type Asked =
  | {readonly what: 'run'; readonly command: Command; readonly args: Readonly<Record<string, unknown>>}
  | {readonly what: 'help'; readonly text: string}
  | {readonly what: 'version'}

/** The list that a command line is read against. */
export type CommandList = {
  readonly commands: readonly Entry[]
  readonly groups: Readonly<Record<string, string>>
}

export type Screen = {readonly columns: number; readonly hasColours: boolean}

/**
 * Reads a command line. Only the command that it names is loaded.
 *
 * @throws {UsageError} when it names no command, or one of its options or arguments makes no sense.
 */
export async function parse(argv: readonly string[], list: CommandList, screen: Screen): Promise<Asked> {
  const words = argv[0] === 'help' ? [...argv.slice(1), '--help'] : [...argv]
  const path = leadingWords(words)
  if (path.length === 0 && words.includes('--version')) return {what: 'version'}

  const named = list.commands.find(({name}) => isPrefix(name.split(' '), path))
  const loaded = named && {entry: named, command: await named.load()}
  const {root, leaf, help} = parserOf(list, screen, loaded)
  let args: Readonly<Record<string, unknown>> | undefined
  if (loaded) {
    leaf.action(() => {
      args = argsOf(leaf, loaded.command)
    })
  }
  try {
    await root.parseAsync(words, {from: 'user'})
  } catch (error) {
    if (!(error instanceof CommanderError)) throw error
    if (error.code === 'commander.helpDisplayed') return {what: 'help', text: help()}
    throw asUsageError(error, path, list)
  }
  if (!loaded || !args)
    throw new UsageError('no command was given', 'Run "owsync --help" to see the commands.')
  return {what: 'run', command: loaded.command, args}
}

type Loaded = {readonly entry: Entry; readonly command: Command}

function parserOf(
  {commands, groups}: CommandList,
  screen: Screen,
  loaded: Loaded | undefined,
): {root: Parser; leaf: Parser; help: () => string} {
  let help = ''
  const bold = (text: string) => (screen.hasColours ? styleText('bold', text, {validateStream: false}) : text)
  const root = new Parser('owsync')
    .description("Keeps each client's Open WebUI database mirrored in its own Postgres schema.")
    .helpCommand(false)
    .helpOption('--help', 'Show this help.')
    .usage('COMMAND [options]')
    .exitOverride()
    .configureOutput({
      writeOut: text => (help += text),
      // What commander would say comes back as an error, which is told as every other.
      writeErr: () => undefined,
      getOutHelpWidth: () => screen.columns,
      getOutHasColors: () => screen.hasColours,
    })
    .configureHelp({
      showGlobalOptions: true,
      styleTitle: bold,
      subcommandTerm: parser => parser.name(),
      optionTerm: option => option.flags,
    })
    .option('--json', 'Print data and errors as JSON.')
  if (!loaded) root.option('--version', 'Print the version.').addHelpText('after', footer)

  const parsers = new Map<string, Parser>()
  let leaf = root
  for (const entry of commands) {
    const [first = '', second] = entry.name.split(' ')
    const group = second === undefined ? root : (parsers.get(first) ?? root.command(first))
    if (second !== undefined && !parsers.has(first)) {
      parsers.set(first, group.description(groups[first] ?? '').helpCommand(false))
    }
    const parser = group.command(second ?? first).description(entry.about)
    if (loaded?.entry === entry) {
      leaf = parser
      declare(parser, loaded.command)
    }
  }
  return {root, leaf, help: () => help}
}

const footer = '\nRun "owsync help COMMAND" for what a command takes.'

function declare(parser: Parser, {details, examples = [], options, positionals}: Command): void {
  for (const [key, spec] of Object.entries(positionals)) parser.addArgument(argumentOf(key, spec))
  for (const [key, spec] of Object.entries(options)) parser.addOption(optionOf(key, spec))
  if (details !== undefined) parser.description(`${parser.description()}\n\n${details}`)
  if (examples.length > 0) {
    parser.addHelpText(
      'after',
      ['', 'Examples:', ...examples.map(example => `  owsync ${example}`)].join('\n'),
    )
  }
}

function argumentOf(key: string, {about, choices, optional}: PositionalSpec): Argument {
  const name = placeholderOf(key)
  const argument = new Argument(optional ? `[${name}]` : `<${name}>`, about)
  return choices ? argument.choices(choices) : argument
}

function optionOf(key: string, spec: OptionSpec): Option {
  const {type, about, choices, required} = spec
  const flags = type === 'boolean' ? flagOf(key) : `${flagOf(key)} <${placeholderOf(key, spec)}>`
  const option = new Option(flags, about)
  if (choices) option.choices(choices)
  else if (type === 'number') option.argParser(wholeNumber)
  else if (type !== 'boolean') option.argParser(text)
  return option.makeOptionMandatory(required ?? false)
}

function argsOf(parser: Parser, {options, positionals}: Command): Readonly<Record<string, unknown>> {
  const given: Readonly<Record<string, unknown>> = parser.opts()
  const args: Record<string, unknown> = {}
  for (const [key, {type}] of Object.entries(options))
    args[key] = given[key] ?? (type === 'boolean' ? false : undefined)
  for (const [i, key] of Object.keys(positionals).entries()) args[key] = parser.args[i]
  return args
}

function text(value: string): string {
  if (value === '') throw new InvalidArgumentError('It is empty.')
  return value
}

function wholeNumber(value: string): number {
  if (!/^\d{1,15}$/.test(value)) throw new InvalidArgumentError('It is not a whole number.')
  return Number(value)
}

/** The words before the first option that is not of `owsync` itself: they name the command. */
function leadingWords(argv: readonly string[]): string[] {
  const words: string[] = []
  for (const word of argv) {
    if (word === '--json' || word === '--help' || word === '--version') continue
    if (word.startsWith('-')) break
    words.push(word)
  }
  return words
}

function isPrefix(prefix: readonly string[], words: readonly string[]): boolean {
  return prefix.every((word, i) => word === words[i])
}

function asUsageError(error: CommanderError, path: readonly string[], {commands}: CommandList): UsageError {
  const place = placeOf(path, commands)
  const help = `Run "owsync ${place === '' ? '' : `${place} `}--help" to see what there is.`
  if (error.code === 'commander.help') {
    return new UsageError(place === '' ? 'no command was given' : `"owsync ${place}" needs a command`, help)
  }
  const [message = '', hint] = error.message.replace(/^error: /, '').split('\n')
  return new UsageError(message, hint === undefined ? help : `${hint.replace(/^\(|\)$/g, '')} ${help}`)
}

/** The command or the group that the words name, as far as they name one; else empty. */
function placeOf(path: readonly string[], commands: readonly Entry[]): string {
  const names = commands.map(({name}) => name)
  const group =
    path[0] !== undefined && names.some(name => name.startsWith(`${path[0] ?? ''} `)) ? path[0] : ''
  return names.find(name => isPrefix(name.split(' '), path)) ?? group
}
