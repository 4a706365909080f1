import {race, type Bench, type Benchmark, type Contestant} from './bench.ts'
import {copyAlone, makeReady, type Ready} from './copy-alone.ts'
import {csvPipe} from './csv-pipe.ts'
import {firstLoad, stateFolder} from './ours.ts'
import {pgloader} from './pgloader.ts'
import type {Database} from './postgres.ts'
import {areInstalled} from './program.ts'
import {compared, unmeasured, type Result} from './result.ts'

const about = {name: 'first-load', work: 'the whole file into a migrated database, one process'}

const references = {
  csv: {reference: 'sqlite3 -csv | psql \\copy', must: 1, needs: ['sqlite3', 'psql']},
  pgloader: {reference: 'pgloader, tuned', must: 1 / 1.4, needs: ['pgloader']},
  copy: {reference: 'COPY alone, then the indexes', must: 1.5, needs: ['psql']},
} as const

type Reference = keyof typeof references

/** A first load against the usual ways from SQLite to Postgres, and against the least that there is to do. */
export const benchFirstLoad: Benchmark = async bench => {
  const {server, file, say} = bench
  using ready = areInstalled('psql') ? await loadOnce(bench) : undefined
  const contestants: Partial<Record<Reference | 'ours', Contestant>> = {
    ours: async () => {
      await using database = await server.database('migrated')
      using state = stateFolder()
      return (await firstLoad(file, database, state.path)).ms
    },
  }
  const into = (load: (database: Database) => Promise<number>) => async () => {
    await using database = await server.database('empty')
    return await load(database)
  }
  if (areInstalled(...references.csv.needs)) contestants.csv = into(database => csvPipe(file, database))
  if (areInstalled(...references.pgloader.needs))
    contestants.pgloader = into(database => pgloader(file, database))
  if (ready) contestants.copy = into(database => copyAlone(ready, database))

  const times = await race(bench, contestants)
  return (Object.keys(references) as Reference[]).map((name): Result => {
    const {needs, ...held} = references[name]
    const reference = times[name]
    if (times.ours && reference) return compared({...about, ...held}, {ours: times.ours, reference})
    say(`${held.reference}: not measured, it needs ${needs.join(' and ')}`)
    return unmeasured({...about, ...held})
  })
}

/** One load that is not counted: it warms the caches and makes what COPY alone is given. */
async function loadOnce({server, file}: Bench): Promise<Ready> {
  await using database = await server.database('migrated')
  using state = stateFolder()
  await firstLoad(file, database, state.path)
  return await makeReady(database)
}
