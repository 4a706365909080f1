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
    const orphaned = new AbortController()
    // A node that was started over a channel, as the demo starts its own, goes with whoever started it.
    const abandon = () => {
      orphaned.abort(new Error('whoever started this node has gone'))
    }
    process.once('disconnect', abandon)
    try {
      await runNode(
        await context.config(),
        {log: await context.log(), metrics: createMetrics(), version: version()},
        AbortSignal.any([context.signal, orphaned.signal]),
      )
    } finally {
      process.off('disconnect', abandon)
      if (process.connected) process.disconnect()
    }
    return 0
  },
})
