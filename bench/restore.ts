import {join} from 'node:path'
import {race, type Benchmark} from './bench.ts'
import {CLIENT, firstLoad, owsync, stateFolder} from './ours.ts'
import {compared} from './result.ts'

/** `owsync restore`, which checks every row it has written, against the first load that it undoes. */
export const benchRestore: Benchmark = async bench => {
  const {database, stateDir} = await bench.loaded()
  const times = await race(bench, {
    ours: async () => {
      using folder = stateFolder()
      const to = join(folder.path, 'webui.db')
      return (await owsync(['restore', '--client', CLIENT, '--to', to], database, stateDir)).ms
    },
    load: async () => {
      await using fresh = await bench.server.database('migrated')
      using state = stateFolder()
      return (await firstLoad(bench.file, fresh, state.path)).ms
    },
  })
  return [
    compared(
      {
        name: 'restore',
        work: 'a new file, checked row by row, one process',
        reference: 'first load',
        must: 2,
      },
      {ours: times.ours!, reference: times.load!},
    ),
  ]
}
