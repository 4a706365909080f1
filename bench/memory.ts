import type {Benchmark} from './bench.ts'
import {firstLoad, stateFolder} from './ours.ts'
import {unmeasured} from './result.ts'

const about = {name: 'memory', work: 'the most a first load has at once (VmHWM), one process', must: 200}

/** The memory of a worker, at its hungriest: a first load. */
export const benchMemory: Benchmark = async ({server, file, say}) => {
  await using database = await server.database('migrated')
  using state = stateFolder()
  const {peakMb} = await firstLoad(file, database, state.path)
  if (peakMb > 0)
    return [{...unmeasured(about), holds: peakMb <= about.must, value: Math.round(peakMb), unit: 'MB'}]
  say('memory: not measured, the system does not tell')
  return [unmeasured(about)]
}
