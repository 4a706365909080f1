import assert from 'node:assert/strict'
import {
  closeSync,
  copyFileSync,
  fstatSync,
  mkdtempSync,
  openSync,
  readSync,
  rmSync,
  truncateSync,
  writeSync,
} from 'node:fs'
import {tmpdir} from 'node:os'
import {join} from 'node:path'
import {DatabaseSync} from 'node:sqlite'
import {afterAll, beforeAll, test} from 'vitest'
import {SyncError} from '../src/core/errors.ts'
import {explain} from '../src/source/open.ts'
import {chanceOf, seedOf, type Chance} from './mutator.ts'
import {PageMirror} from './page-fuzz.ts'
import {makePagedFile, pagedFileOf, PageWriter} from './page-writer.ts'

// Files that lie: whatever stands in their pages, a capture ends soon, within its memory, with an answer or a named
// error, and has learned nothing false from them.

let dir: string
beforeAll(() => {
  dir = mkdtempSync(join(tmpdir(), 'owsync-hostile-'))
})
afterAll(() => {
  rmSync(dir, {recursive: true, force: true})
})

const cases = Number(process.env['OWSYNC_CASES']) || 60
const LONGEST_MS = 20_000
const MOST_BYTES = 300 * 1024 * 1024

test(
  'whatever a damaged file says of itself, a capture ends, and the mended file is captured as if nothing had been',
  {timeout: 600_000},
  async ({annotate}) => {
    const seed = seedOf()
    await annotate(`OWSYNC_SEED=${seed}`)
    const chance = chanceOf(seed)
    let refused = 0
    let byPages = 0
    for (let round = 0; round < cases; round++) {
      const file = join(dir, `${round}.db`)
      const kind = pagedFileOf(chance)
      makePagedFile(file, kind)
      {
        using app = new PageWriter(file, chance)
        for (let i = 0; i < 25; i++) app.transaction()
      }
      using mirror = new PageMirror(dir, file)
      await mirror.look('pages', 'settle')
      await mirror.look('pages', 'settle')
      {
        using app = new PageWriter(file, chance)
        for (let i = 0; i < 3; i++) app.transaction()
      }
      mirror.leave()
      settleLog(file)
      copyFileSync(file, `${file}.whole`)
      const what = damage(file, kind.pageSize, chance)
      const since = performance.now()
      const before = process.memoryUsage().rss
      const end = chance.pick(['settle', 'abandon'] as const)
      try {
        const {result} = await mirror.look('pages', end)
        if (!result.comparedAll) byPages++
      } catch (error) {
        const told = explain(file, error)
        assert.ok(told instanceof SyncError, `seed ${seed}, round ${round}, ${what}: ${String(error)}`)
        mirror.forget()
        refused++
      }
      const tookMs = performance.now() - since
      assert.ok(tookMs < LONGEST_MS, `seed ${seed}, round ${round}, ${what}: ${tookMs} ms`)
      const took = process.memoryUsage().rss - before
      assert.ok(took < MOST_BYTES, `seed ${seed}, round ${round}, ${what}: ${took} bytes`)
      mirror.leave()
      mend(file)
      await mirror.look('pages', 'settle')
      const missed = await mirror.look('digests', 'abandon')
      assert.deepEqual([missed.upserts, missed.tombstones], [[], []], `seed ${seed}, round ${round}, ${what}`)
      mirror.leave()
      for (const suffix of ['', '-wal', '-shm', '.whole']) rmSync(file + suffix, {force: true})
      mirror.restart()
      mirror.reset()
    }
    assert.ok(refused > 0 && byPages > 0, `${refused} refused, ${byPages} by pages`)
  },
)

/** Brings what stands in the log into the file, which is then damaged alone. */
function settleLog(file: string): void {
  using db = new DatabaseSync(file)
  db.exec('pragma wal_checkpoint(truncate)')
}

function mend(file: string): void {
  for (const suffix of ['-wal', '-shm', '-journal']) rmSync(file + suffix, {force: true})
  // Into the file that is there: another one would be read anew anyway.
  copyFileSync(`${file}.whole`, file)
}

/** Writes nonsense where it hurts. @returns what was done. */
function damage(file: string, pageSize: number, chance: Chance): string {
  const fd = openSync(file, 'r+')
  try {
    const pages = Math.floor(fstatSync(fd).size / pageSize)
    const done: string[] = []
    for (let n = chance.pick([1, 1, 2, 6, 20]); n > 0; n--) {
      const page = 1 + chance.below(pages)
      const start = (page - 1) * pageSize
      const header = start + (page === 1 ? 100 : 0)
      const at = start + chance.below(pageSize)
      const word = (value: number) => {
        const bytes = Buffer.alloc(4)
        bytes.writeUInt32BE(value >>> 0)
        return bytes
      }
      const somePage = chance.pick([0, 1, page, 1 + chance.below(pages), pages + 1, 0x7fff_ffff, 0xffff_ffff])
      const [position, bytes] = chance.pick<() => [number, Buffer]>([
        () => [at, Buffer.from([chance.below(256)])],
        () => [
          at,
          Buffer.alloc(Math.min(chance.pick([1, 8, 100]), start + pageSize - at), chance.below(256)),
        ],
        () => [at, word(somePage)],
        // An overflow page that goes on with another, an interior page with other children, another kind of page.
        () => [start, word(somePage)],
        () => [header + 8, word(somePage)],
        () => [header, Buffer.from([chance.pick([0, 2, 5, 10, 13, 255])])],
        () => [header + 3, Buffer.from([chance.below(256), chance.below(256)])],
        () => [header + 12 + chance.below(40), Buffer.from([255, 255, 255, 255, 255])],
        () => [start, pageOf(fd, 1 + chance.below(pages), pageSize)],
        () => [16, Buffer.from([chance.below(256), chance.below(256)])],
        () => [20, Buffer.from([chance.below(256)])],
        () => [28, word(chance.pick([0, 1, pages * 2, 0x7fff_ffff]))],
      ])()
      writeSync(fd, bytes, 0, bytes.length, position)
      done.push(`${bytes.length} bytes at ${position}`)
    }
    if (chance.below(12) === 0) {
      truncateSync(file, chance.below(pages * pageSize))
      done.push('truncated')
    }
    return done.join(', ')
  } finally {
    closeSync(fd)
  }
}

function pageOf(fd: number, page: number, pageSize: number): Buffer {
  const bytes = Buffer.alloc(pageSize)
  readSync(fd, bytes, 0, pageSize, (page - 1) * pageSize)
  return bytes
}
