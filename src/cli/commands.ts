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
  client: 'Clients: register, schedule, pause, look at, decide about conflicts, give up.',
  cluster: 'The nodes of this host: who leads, and who should.',
  db: 'The control schema, hosts and their logins, access for others.',
  token: 'Who may use the API.',
}

const client = () => import('./client.ts')
const change = () => import('./client-change.ts')
const cluster = () => import('./cluster.ts')

const db = () => import('./db.ts')
const conflicts = () => import('./conflicts.ts')

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
  {name: 'client list', about: 'Show all clients of this host.', load: async () => (await client()).list},
  {
    name: 'client register',
    about: 'Make a client known, so that it is synced.',
    load: async () => (await change()).register,
  },
  {name: 'client start', about: 'Sync a client again.', load: async () => (await change()).start},
  {name: 'client pause', about: 'Stop syncing a client.', load: async () => (await change()).pause},
  {
    name: 'client interval',
    about: 'Say when a client is synced.',
    load: async () => (await change()).interval,
  },
  {
    name: 'client direction',
    about: 'Say whether edits in Postgres are written to the file.',
    load: async () => (await import('./direction.ts')).direction,
  },
  {name: 'client status', about: 'Show how a client stands.', load: async () => (await client()).status},
  {
    name: 'client history',
    about: 'Show what has happened to a client.',
    load: async () => (await client()).history,
  },
  {
    name: 'client strategy',
    about: 'Show or change how conflicts are decided.',
    load: async () => (await import('./strategy.ts')).strategy,
  },
  {
    name: 'client confirm',
    about: 'Apply what the guard holds back.',
    load: async () => (await change()).confirm,
  },
  {name: 'client purge', about: 'Erase one deleted row for good.', load: async () => (await change()).purge},
  {
    name: 'client config',
    about: 'Export or import the settings of all clients.',
    load: async () => (await import('./client-config.ts')).config,
  },
  {
    name: 'client deregister',
    about: 'Give a client up, or remove it from Postgres.',
    load: async () => (await change()).deregister,
  },
  {
    name: 'cluster status',
    about: 'Show who leads and how the nodes are.',
    load: async () => (await cluster()).status,
  },
  {
    name: 'client conflicts',
    about: 'Show edits made in Postgres, and what became of them.',
    load: async () => (await conflicts()).conflicts,
  },
  {
    name: 'client resolve',
    about: 'Decide a conflict that waits.',
    load: async () => (await conflicts()).resolve,
  },
  {
    name: 'client undo',
    about: 'Take a decision about a conflict back.',
    load: async () => (await conflicts()).undo,
  },
  {name: 'cluster nodes', about: 'List the nodes.', load: async () => (await cluster()).nodes},
  {name: 'cluster promote', about: 'Make a node the leader.', load: async () => (await cluster()).promote},
  {
    name: 'cluster step-down',
    about: 'Let the other node lead.',
    load: async () => (await cluster()).stepDown,
  },
  {name: 'cluster pause', about: 'Stop failovers for a while.', load: async () => (await cluster()).pause},
  {name: 'cluster resume', about: 'Allow failovers again.', load: async () => (await cluster()).resume},
  {
    name: 'cluster failover-test',
    about: 'Try a failover and measure it.',
    load: async () => (await cluster()).failoverTest,
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
    name: 'run-due',
    about: 'Sync every client that is due, once: for cron.',
    load: async () => (await import('./run-due.ts')).runDueCommand,
  },
  {
    name: 'token add',
    about: 'Make a token for the API.',
    load: async () => (await import('./token.ts')).add,
  },
  {
    name: 'completion',
    about: 'Print a completion script for bash or zsh.',
    load: async () => (await import('./completion.ts')).completion,
  },
]
