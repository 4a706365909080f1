import assert from 'node:assert/strict'
import {copyFileSync, mkdtempSync, rmSync} from 'node:fs'
import {tmpdir} from 'node:os'
import {join} from 'node:path'
import {DatabaseSync} from 'node:sqlite'
import {setTimeout as sleep} from 'node:timers/promises'
import {test} from 'vitest'
import {endRead, openSource, type Source} from './open.ts'
import {awaitCommit, beginAtEnd, isSameFile, mayBeCommitting, type SeenEnd} from './wal-end.ts'
import {WAL_INDEX_BYTES, walEnd} from './wal.ts'

const {signal} = new AbortController()

/** An empty table in WAL mode, open by its app and by us. */
async function inWal(pragmas = ''): Promise<Disposable & {file: string; app: DatabaseSync; source: Source}> {
  using resources = new DisposableStack()
  const folder = mkdtempSync(join(tmpdir(), 'owsync-scan-'))
  resources.defer(() => {
    rmSync(folder, {recursive: true})
  })
  const file = join(folder, 'app.db')
  const app = resources.use(new DatabaseSync(file))
  app.exec(`pragma journal_mode = wal; ${pragmas}; create table note (body)`)
  const source = resources.use(await openSource(file, signal))
  const kept = resources.move()
  return {
    file,
    app,
    source,
    [Symbol.dispose]: () => {
      kept.dispose()
    },
  }
}

for (const commits of [0, 1, 5, Infinity])
  test(`a transaction sees the log up to where it is said to end, when ${commits} commits come just as it begins`, async () => {
    using opened = await inWal('pragma synchronous = off')
    const {app, source} = opened
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
  })

test('frames behind the end make nobody doubt it but those who may not write the index', async () => {
  using opened = await inWal('pragma cache_size = 5')
  const {app, source} = opened
  const readOnly: Source = {...source, mayWriteIndex: () => false}
  const begins = (from: Source) => {
    const end = beginAtEnd(from)
    endRead(source.db)
    return end !== undefined
  }
  assert.deepEqual([mayBeCommitting(source), begins(source), begins(readOnly)], [false, true, true])
  // More than the cache holds, so that it is written to the log before it is committed.
  app.exec('begin')
  for (let i = 0; i < 50; i++) app.exec('insert into note values (hex(randomblob(2000)))')
  assert.deepEqual([mayBeCommitting(source), begins(source), begins(readOnly)], [true, true, false])
  assert.equal(await awaitCommit(source, signal), false)
  const isThere = awaitCommit(source, signal)
  app.exec('commit')
  assert.equal(await isThere, true)
  assert.deepEqual([mayBeCommitting(source), begins(source), begins(readOnly)], [false, true, true])
})

test('a log is of the same file through every checkpoint, and of no other one', async () => {
  using opened = await inWal('pragma wal_autocheckpoint = 0')
  const {file, app, source} = opened
  const look = (): SeenEnd => {
    const end = beginAtEnd(source)
    endRead(source.db)
    assert.ok(end)
    return end
  }
  let last = look()
  for (const work of ['commit', 'nothing', 'commit', 'checkpoint', 'nothing', 'commit', 'checkpoint']) {
    if (work === 'commit') app.exec("insert into note values ('one more')")
    if (work === 'checkpoint') app.exec('pragma wal_checkpoint(passive)')
    const now = look()
    assert.ok(isSameFile(last.before, now), work)
    last = now
  }
  copyFileSync(file, `${file}.copy`)
  assert.ok(isSameFile(last.before, look()))
  // Another instant by the coarsest clock of a file system of Linux.
  await sleep(20)
  copyFileSync(`${file}.copy`, file)
  const now = look()
  assert.equal(isSameFile(last.before, now), false)
  assert.equal(isSameFile({...now.before, commits: now.commits + 1}, now), false)
})
