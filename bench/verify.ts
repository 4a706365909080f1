import {DatabaseSync} from 'node:sqlite'
import {ident, introspect} from '../src/source/introspect.ts'
import {race, type Benchmark} from './bench.ts'
import {CLIENT, owsync} from './ours.ts'
import {compared} from './result.ts'

/** `owsync verify` of equal sides, a process of its own, against reading the same file once and doing nothing with it. */
export const benchVerify: Benchmark = async bench => {
  const {database, stateDir} = await bench.loaded()
  const times = await race(bench, {
    ours: async () => (await owsync(['verify', '--client', CLIENT], database, stateDir)).ms,
    scan: () => Promise.resolve(scan(bench.file)),
  })
  return [
    compared(
      {
        name: 'verify',
        work: 'every value of equal sides, one process',
        reference: 'node:sqlite reads every row',
        must: 4,
      },
      {ours: times.ours!, reference: times.scan!},
    ),
  ]
}

function scan(file: string): number {
  const since = performance.now()
  using db = new DatabaseSync(file, {readOnly: true})
  for (const {name} of introspect(db).tables) {
    const rows = db.prepare(`select * from ${ident(name)}`)
    rows.setReadBigInts(true)
    rows.setReturnArrays(true)
    const read = rows.iterate()
    while (read.next().done !== true) continue
  }
  return performance.now() - since
}
