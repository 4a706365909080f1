import assert from 'node:assert/strict'
import {copyFileSync, mkdtempSync, rmSync} from 'node:fs'
import {tmpdir} from 'node:os'
import {join} from 'node:path'
import {DatabaseSync} from 'node:sqlite'
import {setTimeout as sleep} from 'node:timers/promises'
import {test} from 'vitest'
import {endRead, openSource, type Source} from './open.ts'
import {awaitCommit, beginAtEnd, isSameFile, mayBeCommitting, type SeenEnd} from './wal-end.ts'
import {readFrames, WAL_INDEX_BYTES, walEnd} from './wal.ts'

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
  let log = {salt1: 0, commits: 0}
  /** What a look sees, and how many commits the log says that it got since the look before. */
  const look = async (): Promise<{now: SeenEnd; committed: number}> => {
    const now = beginAtEnd(source)
    endRead(source.db)
    assert.ok(now)
    const frames = await readFrames(source.readWal, 4_096, now, undefined, signal)
    assert.ok(frames)
    const committed = frames.commits - (now.salt1 === log.salt1 ? log.commits : 0)
    log = {salt1: now.salt1, commits: frames.commits}
    return {now, committed}
  }
  let {now: last} = await look()
  for (const work of ['commit', 'nothing', 'commits', 'checkpoint', 'nothing', 'commit', 'checkpoint']) {
    if (work.startsWith('commit')) app.exec("insert into note values ('one more')")
    if (work === 'commits')
      app.exec('begin; insert into note values (hex(zeroblob(20000))); commit; delete from note')
    if (work === 'checkpoint') app.exec('pragma wal_checkpoint(passive)')
    const {now, committed} = await look()
    assert.equal(committed, {commit: 1, commits: 3}[work] ?? 0)
    assert.ok(isSameFile(last.before, now, committed), work)
    last = now
  }
  copyFileSync(file, `${file}.copy`)
  assert.ok(isSameFile(last.before, (await look()).now, 0))
  // Another instant by the coarsest clock of a file system of Linux.
  await sleep(20)
  copyFileSync(`${file}.copy`, file)
  const {now} = await look()
  assert.equal(isSameFile(last.before, now, 0), false)
  assert.equal(isSameFile({...now.before, commits: now.commits + 1}, now, 0), false)
})
