import type {Command} from './command.ts'

/** One line of the list of commands. A name of two words is a command of a group. */
export type Entry = {
  readonly name: string
  readonly about: string
  /** Loads the command and what it needs: only the one that is called pays for it. */
  readonly load: () => Promise<Command>
}

/** What each group of commands is about. */
export const groups: Readonly<Record<string, string>> = {}

/** Every command, in the order in which help and the menu show them. */
export const commands: readonly Entry[] = [
  {
    name: 'completion',
    about: 'Print a completion script for bash or zsh.',
    load: async () => (await import('./completion.ts')).completion,
  },
]
