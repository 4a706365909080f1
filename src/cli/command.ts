import type {Config, Env} from '../config/config.ts'
import type {Log} from '../telemetry/log.ts'
import type {Progress} from '../telemetry/progress.ts'

/** One option of a command. Its key in camel case is its flag: `dryRun` is `--dry-run`. */
export type OptionSpec = {
  /** `path` is a string that completion fills with files; `number` is a whole number of 0 or more. */
  readonly type: 'boolean' | 'string' | 'path' | 'number'
  readonly about: string
  /** How help calls the value: `NAME`. */
  readonly value?: string
  readonly choices?: readonly string[]
  readonly required?: true
}

/** One argument that stands by its position. Only the last may be optional. */
export type PositionalSpec = {
  readonly about: string
  readonly choices?: readonly string[]
  readonly optional?: true
}

export type OptionSpecs = Readonly<Record<string, OptionSpec>>
export type PositionalSpecs = Readonly<Record<string, PositionalSpec>>

type ValueOf<O extends OptionSpec> = O['type'] extends 'boolean'
  ? boolean
  : | (O['type'] extends 'number'
        ? number
        : O['choices'] extends readonly string[]
          ? O['choices'][number]
          : string)
    | (O['required'] extends true ? never : undefined)

type PlaceOf<P extends PositionalSpec> =
  | (P['choices'] extends readonly string[] ? P['choices'][number] : string)
  | (P['optional'] extends true ? undefined : never)

/** What a command is called with: its options and positionals by name. A boolean that was not given is false. */
export type Args<O extends OptionSpecs, P extends PositionalSpecs> = {
  readonly [K in keyof O]: ValueOf<O[K]>
} & {
  readonly [K in keyof P]: PlaceOf<P[K]>
}

/** 0 done (also when nothing is returned), 1 failed, 2 done but a person is needed, 64 misused, 75 try again later. */
export type ExitCode = 0 | 1 | 2 | 64 | 75

/**
 * A command as data: help, completion and the menu are drawn from it. Its name and one-line description stand in
 * commands.ts, so that listing all commands loads none.
 */
export type Command = {
  /** More than the one line, for `owsync help COMMAND`. */
  readonly details?: string
  /** Ways to call it, without `owsync`. */
  readonly examples?: readonly string[]
  readonly positionals: PositionalSpecs
  readonly options: OptionSpecs
  /**
   * Does it. Failures are thrown. One that runs until it is stopped returns when `context.signal` aborts; one that was
   * interrupted half-way throws the signal's reason.
   */
  run(args: Readonly<Record<string, unknown>>, context: Context): Promise<ExitCode | undefined>
}

/** What a command may use of the world around it. */
export type Context = {
  /** Data, on standard output: `document` as one line of JSON with --json, else `text`. Once, or once an event. */
  readonly out: (document: unknown, text: string) => void
  /** Talk, on standard error. */
  readonly err: (text: string) => void
  readonly json: boolean
  /** Aborts when the person, or whoever started this, wants it to stop. */
  readonly signal: AbortSignal
  readonly env: Env
  /** @throws {ConfigError} */
  readonly config: () => Promise<Config>
  /** A log on standard error, as `LOG_LEVEL` and `LOG_FORMAT` say. */
  readonly log: () => Promise<Log>
  /** A progress line on standard error; silent without a terminal. Dispose of it before saying anything else. */
  readonly progress: () => Progress
  /** True when a person can be asked. */
  readonly isTerminal: boolean
  /** @throws {UsageError} without a terminal. */
  readonly ask: (question: string, options?: AskOptions) => Promise<string>
  /** @throws {UsageError} without a terminal. */
  readonly confirm: (question: string) => Promise<boolean>
  /** @throws {UsageError} without a terminal. */
  readonly choose: <T>(question: string, choices: readonly Choice<T>[]) => Promise<T>
}

export type AskOptions = {
  readonly placeholder?: string
  /** Hides what is typed. */
  readonly secret?: boolean
  /** @returns what is wrong with the answer, if anything. */
  readonly fault?: (answer: string) => string | undefined
}

export type Choice<T> = {readonly value: T; readonly label: string; readonly hint?: string}

/** Declares a command; `run` gets its arguments typed by `options` and `positionals`. */
export function command<const O extends OptionSpecs, const P extends PositionalSpecs>(declared: {
  readonly details?: string
  readonly examples?: readonly string[]
  readonly positionals: P
  readonly options: O
  run(args: Args<O, P>, context: Context): Promise<ExitCode | undefined>
}): Command {
  // The parser builds the arguments from the same `options` and `positionals`.
  return {...declared, run: (args, context) => declared.run(args as Args<O, P>, context)}
}

/** @returns the flag of an option: `--dry-run` for `dryRun`. */
export function flagOf(key: string): string {
  return `--${key.replace(/[A-Z]/g, letter => `-${letter.toLowerCase()}`)}`
}

/** @returns how help calls the value of an option or a positional: `FILE`, `N`, `CLIENT`. */
export function placeholderOf(key: string, {type, value}: Partial<OptionSpec> = {}): string {
  return value ?? (type === 'path' ? 'FILE' : type === 'number' ? 'N' : flagOf(key).slice(2).toUpperCase())
}
