import {mkdtempSync, rmSync} from 'node:fs'
import {tmpdir} from 'node:os'
import {join} from 'node:path'
import {DatabaseSync} from 'node:sqlite'
import type {Benchmark} from './bench.ts'
import {CLIENT, firstLoad, owsync, stateFolder} from './ours.ts'
import {unmeasured} from './result.ts'

const EDITS = 100_000
const about = {
  name: 'edits',
  work: `the most a sync has at once (VmHWM) that decides ${EDITS} edits, one process`,
  must: 200,
}

/** What somebody costs who changes every row of a table in Postgres at once. */
export const benchEdits: Benchmark = async ({server, say}) => {
  const folder = mkdtempSync(join(tmpdir(), 'owsync-bench-edits-'))
  using _ = {
    [Symbol.dispose]: () => {
      rmSync(folder, {recursive: true, force: true})
    },
  }
  const file = join(folder, 'webui.db')
  {
    using app = new DatabaseSync(file)
    app.exec(`create table note (id text primary key, v text, body text, updated_at integer);
      with recursive n (n) as (select 1 union all select n + 1 from n where n < ${EDITS})
      insert into note select 'k' || n, 'v', hex(randomblob(400)), 1700000000 from n`)
  }
  const peaks: number[] = []
  for (const strategy of ['source_wins', 'target_wins', 'manual']) {
    await using database = await server.database('migrated')
    using state = stateFolder()
    await firstLoad(file, database, state.path)
    const config = JSON.stringify({conflict_resolution: {default_strategy: strategy}})
    await database.admin`update sync_metadata.client_deployments set config = ${config}::jsonb`
    await database.admin`update acme.note set v = 'edited'`
    const isManual = strategy === 'manual'
    const {ms, peakMb} = await owsync(
      ['sync', '--client', CLIENT],
      database,
      state.path,
      isManual ? [0, 2] : [0],
    )
    say(`edits, ${strategy}: ${(ms / 1_000).toFixed(1)} s, ${peakMb.toFixed(0)} MB`)
    peaks.push(peakMb)
  }
  const peak = Math.round(Math.max(...peaks))
  if (peak === 0) return [unmeasured(about)]
  return [{...unmeasured(about), holds: peak <= about.must, value: peak, unit: 'MB'}]
}
