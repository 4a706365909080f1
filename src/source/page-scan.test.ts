import assert from 'node:assert/strict'
import {mkdtempSync, rmSync} from 'node:fs'
import {tmpdir} from 'node:os'
import {join} from 'node:path'
import {DatabaseSync} from 'node:sqlite'
import {test} from 'vitest'
import {openSource} from './open.ts'
import {beginAtEnd} from './page-scan.ts'
import {WAL_INDEX_BYTES, walEnd} from './wal.ts'

for (const commits of [0, 1, 5, Infinity])
  test(`a transaction sees the log up to where it is said to end, when ${commits} commits come just as it begins`, async () => {
    const folder = mkdtempSync(join(tmpdir(), 'owsync-scan-'))
    try {
      const file = join(folder, 'app.db')
      using app = new DatabaseSync(file)
      app.exec('pragma journal_mode = wal; pragma synchronous = off; create table note (body)')
      using source = await openSource(file, new AbortController().signal)
      const index = Buffer.alloc(WAL_INDEX_BYTES)
      /** Frames of the log, by how many rows there are then. */
      const frames: number[] = []
      const commit = () => {
        app.exec("insert into note values ('one more')")
        source.readWalIndex(index)
        frames.push(walEnd(index)!.frames)
      }
      commit()
      let [left, reads] = [commits, 0]
      const end = beginAtEnd({
        ...source,
        readWalIndex: buffer => {
          // Once the transaction has begun, and before it is asked again where the log ends.
          if (++reads % 2 === 0 && left-- > 0) commit()
          return source.readWalIndex(buffer)
        },
      })
      assert.ok(source.db.isTransaction)
      const {rows} = source.db.prepare('select count(*) as rows from note').get() as {rows: number}
      assert.equal(end?.frames, commits === Infinity ? undefined : frames[rows - 1])
      assert.equal(reads, 2 * Math.min(commits + 1, 100))
    } finally {
      rmSync(folder, {recursive: true})
    }
  })
