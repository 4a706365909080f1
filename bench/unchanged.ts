import type {Pool} from '../src/postgres/sql.ts'
import type {Benchmark} from './bench.ts'
import {CLIENT, owsync} from './ours.ts'
import {bounded, median} from './result.ts'
import {inSession} from './session.ts'

const about = {name: 'unchanged', work: 'the gate of an open session: file unchanged, no query', must: 1}

/** How long a node takes to see that there is nothing to do. */
export const benchUnchanged: Benchmark = async ({file, loaded, rounds, say}) => {
  const client = await loaded()
  const times: number[] = []
  await inSession(client, file, async (session, run) => {
    await session.run(run, run.lease.signal)
    const blind = {...run, pool: closedPool}
    for (let i = 0; i < 1_000 * rounds; i++) {
      const since = performance.now()
      const result = session.unchanged(blind)
      times.push(performance.now() - since)
      if (result === undefined) throw new Error('the file has not changed, and the gate let it through')
    }
  })
  const whole: number[] = []
  for (let i = 0; i < rounds; i++)
    whole.push((await owsync(['sync', '--client', CLIENT], client.database, client.stateDir)).ms)
  say(`the whole command, with Node's start and the lease: ${median(whole).toFixed(0)} ms`)
  return [bounded(about, times)]
}

/** A pool that nobody may use: the gate asks Postgres nothing. */
const closedPool = new Proxy(() => undefined, {apply: refuse, get: refuse}) as unknown as Pool

function refuse(): never {
  throw new Error('the gate asked Postgres')
}
