import type {Command} from './command.ts'

/** One line of the list of commands. A name of two words is a command of a group. */
export type Entry = {
  readonly name: string
  readonly about: string
  /** Loads the command and what it needs: only the one that is called pays for it. */
  readonly load: () => Promise<Command>
}

/** What each group of commands is about. */
export const groups: Readonly<Record<string, string>> = {
  db: 'The control schema, hosts and their logins, access for others.',
}

const db = () => import('./db.ts')

/** Every command, in the order in which help and the menu show them. */
export const commands: readonly Entry[] = [
  {
    name: 'demo',
    about: 'Show it all on a sample, with a Postgres of its own.',
    load: async () => (await import('./demo.ts')).demo,
  },
  {
    name: 'sync',
    about: 'Sync one client now.',
    load: async () => (await import('./sync.ts')).sync,
  },
  {
    name: 'verify',
    about: 'Prove that Postgres holds what the SQLite file holds.',
    load: async () => (await import('./verify.ts')).verify,
  },
  {
    name: 'restore',
    about: 'Rebuild a client’s SQLite file from Postgres.',
    load: async () => (await import('./restore.ts')).restore,
  },
  {
    name: 'node',
    about: 'Run one of this host’s nodes.',
    load: async () => (await import('./node.ts')).node,
  },
  {
    name: 'db migrate',
    about: 'Create the control schema, or bring it up to date.',
    load: async () => (await db()).migrate,
  },
  {name: 'db status', about: 'Show hosts, clients and leases.', load: async () => (await db()).status},
  {name: 'db url', about: 'Print the database’s URL.', load: async () => (await db()).url},
  {name: 'db grant-host', about: 'Add a host and print its login.', load: async () => (await db()).grant},
  {name: 'db rotate-password', about: 'Give a host a new login.', load: async () => (await db()).rotate},
  {
    name: 'db grant-access',
    about: 'Let a role read or edit a client’s tables.',
    load: async () => (await db()).grantClient,
  },
  {name: 'db revoke-access', about: 'Take that access back.', load: async () => (await db()).revokeClient},
  {name: 'db transfer', about: 'Move a client to another host.', load: async () => (await db()).transfer},
  {
    name: 'completion',
    about: 'Print a completion script for bash or zsh.',
    load: async () => (await import('./completion.ts')).completion,
  },
]
