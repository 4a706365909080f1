import type {Pool} from '../src/postgres/sql.ts'
import {findDeployment} from '../src/state/deployments.ts'
import {syncDeployment} from '../src/sync/sync.ts'
import type {Benchmark} from './bench.ts'
import {CLIENT, owsync} from './ours.ts'
import {bounded, median} from './result.ts'

const about = {name: 'unchanged', work: 'the gate for a file that has not changed, warm, no query'}

/** How long a sync takes to see that there is nothing to do, within a running process. */
export const benchUnchanged: Benchmark = async ({file, loaded, rounds, say}) => {
  const {database, pool, config, stateDir} = await loaded()
  const deployment = await findDeployment(pool, CLIENT)
  if (deployment === undefined) throw new Error(`${CLIENT} is not registered`)
  const signal = new AbortController().signal
  const limits = {lockBudgetMs: 25, batchRows: 1_000, statementTimeoutMs: 60_000, deleteGuard: undefined}
  const times: number[] = []
  for (let i = 0; i < 100 * rounds; i++) {
    const since = performance.now()
    const result = await syncDeployment(
      {
        pool: closedPool,
        lease: {nodeId: config.clusterName, epoch: 0n, signal},
        deployment,
        sqlitePath: file,
        stateDir,
        limits,
        full: false,
        dryRun: false,
        accept: false,
      },
      signal,
    )
    times.push(performance.now() - since)
    if (result.mode !== 'unchanged')
      throw new Error(`the file has not changed, and the sync was ${result.mode}`)
  }
  const whole: number[] = []
  for (let i = 0; i < rounds; i++)
    whole.push((await owsync(['sync', '--client', CLIENT], database, stateDir)).ms)
  say(`the whole process: ${median(whole).toFixed(0)} ms`)
  return [bounded({...about, must: 1}, times)]
}

/** A pool that nobody may use: the gate asks Postgres nothing. */
const closedPool = new Proxy(() => undefined, {
  apply: refuse,
  get: refuse,
}) as unknown as Pool

function refuse(): never {
  throw new Error('the gate asked Postgres')
}
