import {demoLive, type LiveEvent, type LivePlace} from '../service/demo-live.ts'
import {demoStory, type Step, type StepName} from '../service/demo-story.ts'
import {command, type Context, type ExitCode} from './command.ts'

export const demo = command({
  details:
    'Makes an Open WebUI file that a writer process keeps changing, and lets two nodes keep a database of its own in the embedded Postgres in sync with it until Ctrl-C. Kill the one that leads, and the other takes over. DATABASE_URL is not used. Everything it made is removed when it ends.',
  examples: ['demo', 'demo --once'],
  positionals: {},
  options: {
    once: {
      type: 'boolean',
      about: 'Sync, kill the leader, take over, verify, restore and compare once, then end.',
    },
  },
  async run({once}, context) {
    const {databaseUrl, adminDatabaseUrl, stateDir} = await context.config()
    if (databaseUrl ?? adminDatabaseUrl)
      context.err('The demo uses the embedded Postgres; the database of your settings is left alone.')
    return once ? await tell(stateDir, context) : await live(stateDir, context)
  },
})

const underWay: Readonly<Record<StepName, string>> = {
  postgres: 'starting Postgres',
  sample: 'making a file',
  nodes: 'starting two nodes',
  'full-sync': 'syncing all of it',
  'live-changes': 'letting a writer change it',
  kill: 'killing the leader half-way',
  takeover: 'taking over',
  verify: 'verifying',
  restore: 'restoring',
  compare: 'comparing',
}

async function tell(stateDir: string, {out, err, progress, signal}: Context): Promise<ExitCode> {
  const since = performance.now()
  let line = progress()
  const begin = (step: StepName) => {
    line = progress()
    line.update({label: underWay[step], rows: 0, bytes: 0})
  }
  try {
    for await (const {step, ok, ms, said} of demoStory(stateDir, begin, signal)) {
      line[Symbol.dispose]()
      out({step, ok, ms}, stepText({step, ok, ms, said}))
    }
  } finally {
    line[Symbol.dispose]()
  }
  err(`Everything held, in ${seconds(performance.now() - since)}; nothing is left of it.`)
  return 0
}

async function live(stateDir: string, {out, err, signal}: Context): Promise<ExitCode> {
  err('Starting Postgres and two nodes, making a file …')
  const onReady = ({file, url, schema, addresses, token}: LivePlace) => {
    err(`  the file      ${file}`)
    err(`  its mirror    psql '${url}', schema ${schema}`)
    err(`  the nodes     ${addresses.join(', ')}`)
    err(`  their token   ${token}`)
    err('Syncing until Ctrl-C.')
  }
  const onEvent = (event: LiveEvent) => {
    out(documentOf(event), lineOf(event))
  }
  try {
    await demoLive(stateDir, {onReady, onEvent}, signal)
  } catch (error) {
    // Asked to stop, however early: that is how it ends.
    if (!signal.aborted) throw error
  }
  return 0
}

function stepText({step, ok, ms, said}: Step): string {
  return `${ok ? 'ok    ' : 'FAILED'}  ${step.padEnd(12)}  ${seconds(ms).padStart(6)}  ${said}`
}

function documentOf(event: LiveEvent): unknown {
  switch (event.kind) {
    case 'cut': {
      const {generation, status, upserted, tombstoned, ms} = event
      return {generation, status, upserted, tombstoned, ms}
    }
    case 'leader':
      return {leader: event.leader, epoch: event.epoch}
    case 'ended':
      return {node: event.nodeId, ended: event.how}
  }
}

function lineOf(event: LiveEvent): string {
  switch (event.kind) {
    case 'cut': {
      const {generation, status, upserted, tombstoned, ms} = event
      const changes = `${amount(upserted, 6)} rows changed  ${amount(tombstoned, 4)} deleted`
      const doubt = status === 'success' ? '' : `  ${status}`
      return `generation ${amount(Number(generation), 4)}  ${changes}  ${amount(ms, 5)} ms${doubt}`
    }
    case 'leader':
      return `${event.leader} leads with epoch ${event.epoch}`
    case 'ended':
      return `${event.nodeId} ${event.how}; it is started again`
  }
}

function amount(number: number, width: number): string {
  return number.toLocaleString('en-US').padStart(width)
}

function seconds(ms: number): string {
  return `${(ms / 1_000).toFixed(1)} s`
}
