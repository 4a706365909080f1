import {demoLive} from '../service/demo-live.ts'
import {demoStory, type Step, type StepName} from '../service/demo-story.ts'
import type {Hitch, LiveSync} from '../service/live.ts'
import {command, type Context, type ExitCode} from './command.ts'

export const demo = command({
  details:
    'Makes an Open WebUI file that a writer process keeps changing, and keeps it in sync with a database of its own in the embedded Postgres until Ctrl-C. DATABASE_URL is not used. Everything it made is removed when it ends.',
  examples: ['demo', 'demo --once'],
  positionals: {},
  options: {
    once: {
      type: 'boolean',
      about: 'Sync, crash, recover, verify, restore and compare once, then end.',
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
  'full-sync': 'syncing all of it',
  'live-changes': 'letting a writer change it',
  sync: 'syncing what changed',
  crash: 'killing a sync half-way',
  recover: 'syncing again',
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

async function live(stateDir: string, {out, err, log, signal}: Context): Promise<ExitCode> {
  err('Starting Postgres, making a file …')
  const onReady = ({file, url, schema}: {file: string; url: string; schema: string}) => {
    err(`  the file      ${file}`)
    err(`  its mirror    psql '${url}', schema ${schema}`)
    err('Syncing until Ctrl-C.')
  }
  const onEvent = (event: LiveSync | Hitch) => {
    out(...('hitch' in event ? hitchLine(event) : syncLine(event)))
  }
  try {
    await demoLive(stateDir, {onReady, onEvent, log: await log()}, signal)
  } catch (error) {
    // Asked to stop, however early: that is how it ends.
    if (!signal.aborted) throw error
  }
  return 0
}

function stepText({step, ok, ms, said}: Step): string {
  return `${ok ? 'ok    ' : 'FAILED'}  ${step.padEnd(12)}  ${seconds(ms).padStart(6)}  ${said}`
}

function syncLine({result, lagMs, ms}: LiveSync): [unknown, string] {
  const {generation, rows, status, reason} = result
  const {upserted, tombstoned} = rows
  const changes = `${amount(upserted, 6)} rows changed  ${amount(tombstoned, 4)} deleted`
  const lag = lagMs === undefined ? '' : `  lag ${seconds(lagMs)}`
  const doubt = status === 'success' ? '' : `  ${status}: ${reason ?? ''}`
  const document = {generation, status, upserted, tombstoned, lag_ms: lagMs ?? null, ms}
  return [
    document,
    `generation ${amount(Number(generation), 4)}  ${changes}  ${amount(ms, 5)} ms${lag}${doubt}`,
  ]
}

function hitchLine({hitch: {code, message}}: Hitch): [unknown, string] {
  return [{error: {code, message}}, `not now: ${message}; trying again`]
}

function amount(number: number, width: number): string {
  return number.toLocaleString('en-US').padStart(width)
}

function seconds(ms: number): string {
  return `${(ms / 1_000).toFixed(1)} s`
}
