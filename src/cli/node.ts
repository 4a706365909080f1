import {runNode} from '../service/node.ts'
import {createMetrics} from '../telemetry/metrics.ts'
import {command} from './command.ts'
import {version} from './version.ts'

export const node = command({
  details:
    'One of the two nodes of this host: of those that run, one leads and syncs, the other takes over. It runs until it is stopped; SIGTERM gives the lease back at once. Its settings are in the environment: docs/settings.md.',
  examples: ['node'],
  positionals: {},
  options: {},
  async run(_args, context) {
    await runNode(
      await context.config(),
      {log: await context.log(), metrics: createMetrics(), version: version()},
      context.signal,
    )
    return 0
  },
})
