import {join} from 'node:path'
import {DatabaseSync} from 'node:sqlite'
import type {Benchmark} from './bench.ts'
import {firstLoad, stateFolder} from './ours.ts'
import {unmeasured, type Result} from './result.ts'

const about = {name: 'memory', must: 200}
const wholeFile = {...about, work: 'the most a first load has at once (VmHWM), one process'}
const longRows = {...about, work: 'the same, of 40 rows of 10 MB'}

/** The memory of a worker, at its hungriest: a first load. */
export const benchMemory: Benchmark = async ({server, file, say}) => {
  using long = fileOfLongRows()
  const results: Result[] = []
  for (const [held, source] of [
    [wholeFile, file],
    [longRows, long.path],
  ] as const) {
    await using database = await server.database('migrated')
    using state = stateFolder()
    const {peakMb} = await firstLoad(source, database, state.path)
    if (peakMb === 0) say('memory: not measured, the system does not tell')
    results.push(
      peakMb === 0
        ? unmeasured(held)
        : {...unmeasured(held), holds: peakMb <= held.must, value: Math.round(peakMb), unit: 'MB'},
    )
  }
  return results
}

/** Text that takes JavaScript two bytes a character. */
function fileOfLongRows(): Disposable & {readonly path: string} {
  const folder = stateFolder()
  const path = join(folder.path, 'webui.db')
  using db = new DatabaseSync(path)
  db.exec('create table chat (id text primary key, chat json)')
  const insert = db.prepare('insert into chat values (?, ?)')
  for (let i = 0; i < 40; i++)
    insert.run(`chat ${i}`, JSON.stringify({text: 'grün €, '.repeat(1_000_000), i}))
  return {path, [Symbol.dispose]: folder[Symbol.dispose]}
}
