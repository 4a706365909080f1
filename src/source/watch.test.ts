import assert from 'node:assert/strict'
import {EventEmitter} from 'node:events'
import fs, {
  copyFileSync,
  mkdirSync,
  mkdtempSync,
  renameSync,
  rmSync,
  statSync,
  symlinkSync,
  unlinkSync,
  utimesSync,
  writeFileSync,
} from 'node:fs'
import {syncBuiltinESMExports} from 'node:module'
import {tmpdir} from 'node:os'
import {join} from 'node:path'
import {DatabaseSync} from 'node:sqlite'
import {Writable} from 'node:stream'
import {setTimeout as sleep} from 'node:timers/promises'
import {afterEach, beforeEach, describe, expect, test} from 'vitest'
import {createLog, silentLog, type Log} from '../telemetry/log.ts'
import type {Patience} from './debounce.ts'
import {sourceWatcher, type Hint, type WatchSource} from './watch.ts'

/** Looks so seldom that only what is heard can be told. */
const byEar: Patience = {quietMs: 30, mostMs: 200, lookMs: 3_600_000, deafLookMs: 50}
const soon = {timeout: 5_000, interval: 5}

let folder: string
let file: string

beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), 'owsync-watch-'))
  file = join(folder, 'data', 'webui.db')
  mkdirSync(join(folder, 'data'))
})
afterEach(() => {
  rmSync(folder, {recursive: true, force: true})
})

describe.each(['delete', 'truncate', 'persist', 'wal'])('journal mode %s', journal => {
  test('each commit is told of, and nothing while nothing happens', async () => {
    using app = appOn(file, journal)
    await using ear = await listening(sourceWatcher(silentLog, byEar), file)
    for (let i = 0; i < 5; i++) {
      const before = ear.hints.length
      const since = performance.now()
      app.exec(`insert into t values (${i})`)
      await expect.poll(() => ear.hints.length, soon).toBeGreaterThan(before)
      assert.ok(ear.hints[before]!.since >= since - 1)
      await settled(ear)
    }
    const before = ear.hints.length
    app.prepare('select count(*) from t').get()
    await sleep(300)
    assert.equal(ear.hints.length, before)
  })

  test('reading what has changed is no change that would be told of', async () => {
    appOn(file, journal).close()
    await using ear = await listening(sourceWatcher(silentLog, byEar), file, () => {
      using reader = new DatabaseSync(file, {readOnly: true})
      reader.prepare('select count(*) from t').get()
    })
    await told(ear, () => {
      commit(file)
    })
    // While times may hide a change it may be told of once more, at this quiet a few times.
    await settled(ear, 500)
    assert.ok(ear.hints.length < 15, `${ear.hints.length} hints`)
  })

  test('an app that writes without a pause is told of again and again', async () => {
    using app = appOn(file, journal)
    // A slow disk makes pauses: no pause is long enough to be one.
    await using ear = await listening(sourceWatcher(silentLog, {...byEar, quietMs: 10_000}), file)
    const before = ear.hints.length
    const since = performance.now()
    while (performance.now() - since < 2_000) {
      app.exec('insert into t values (1)')
      await sleep(5)
    }
    const told = ear.hints.length - before
    const ms = performance.now() - since
    // Once in 200 ms or, on a machine that has more to do, once in 500. The first may be about what was before.
    assert.ok(told >= 4 && told <= ms / 200 + 1, `${told} hints in ${ms} ms`)
  })
})

describe('whatever happens to the file', () => {
  test('another file takes its name', async () => {
    appOn(file).close()
    copyFileSync(file, `${file}.other`)
    await using ear = await listening(sourceWatcher(silentLog, byEar), file)
    await told(ear, () => {
      renameSync(`${file}.other`, file)
    })
    await told(ear, () => {
      commit(file)
    })
  })

  test('another one of its size is copied over it, and its time is set back', async () => {
    appOn(file).close()
    copyFileSync(file, `${file}.other`)
    commit(`${file}.other`)
    utimesSync(file, 1e9, 1e9)
    assert.equal(statSync(file).size, statSync(`${file}.other`).size)
    await using ear = await listening(sourceWatcher(silentLog, byEar), file)
    await told(ear, () => {
      copyFileSync(`${file}.other`, file)
      utimesSync(file, 1e9, 1e9)
    })
  })

  test('it is gone, and comes back', async () => {
    appOn(file).close()
    await using ear = await listening(sourceWatcher(silentLog, byEar), file)
    await told(ear, () => {
      unlinkSync(file)
    })
    await sleep(200)
    const before = ear.hints.length
    await sleep(200)
    assert.equal(ear.hints.length, before, 'a file that is not there keeps changing')
    await told(ear, () => {
      appOn(file).close()
    })
  })

  test('it is not there yet, nor is its folder', async () => {
    rmSync(join(folder, 'data'), {recursive: true})
    await using ear = await listening(sourceWatcher(silentLog, byEar), file)
    await told(ear, () => {
      mkdirSync(join(folder, 'data'))
      appOn(file).close()
    })
    await told(ear, () => {
      commit(file)
    })
  })

  test('its folder goes with all that is in it, and another comes', async () => {
    appOn(file).close()
    await using ear = await listening(sourceWatcher(silentLog, byEar), file)
    await told(ear, () => {
      renameSync(join(folder, 'data'), join(folder, 'old'))
    })
    await told(ear, () => {
      mkdirSync(join(folder, 'data'))
      appOn(file).close()
    })
    await told(ear, () => {
      commit(file)
    })
    await told(ear, () => {
      rmSync(join(folder, 'data'), {recursive: true})
    })
  })

  test('its name is a link, which leads elsewhere later', async () => {
    const link = join(folder, 'link.db')
    const other = join(folder, 'other.db')
    appOn(file, 'wal').close()
    appOn(other, 'wal').close()
    symlinkSync(file, link)
    await using ear = await listening(sourceWatcher(silentLog, {...byEar, lookMs: 100}), link)
    await told(ear, () => {
      commit(file)
    })
    // While times may hide a change it is told of again and again.
    await settled(ear, 500)
    await told(ear, () => {
      unlinkSync(link)
    })
    await settled(ear, 500)
    await told(ear, () => {
      symlinkSync(other, link)
    })
    await settled(ear, 500)
    await told(ear, () => {
      commit(other)
    })
  })
})

test('other files of the folder are nobody’s business', async () => {
  appOn(file).close()
  await using ear = await listening(sourceWatcher(silentLog, byEar), file)
  const before = ear.hints.length
  writeFileSync(join(folder, 'data', 'upload.png'), 'x')
  commit(`${file}.backup`)
  await sleep(300)
  assert.equal(ear.hints.length, before)
  await told(ear, () => {
    commit(file)
  })
})

describe('where the file system does not tell', () => {
  for (const code of ['ENOSPC', 'EMFILE'])
    test(`because of ${code}, the file is looked at, and the log says so once`, async () => {
      const {log, lines} = capturedLog()
      using _none = insteadOfWatch(() => {
        throw Object.assign(new Error(`${code}: no more watches`), {code})
      })
      appOn(file).close()
      const other = join(folder, 'data', 'other.db')
      appOn(other).close()
      const watcher = sourceWatcher(log, byEar)
      await using ear = await listening(watcher, file)
      await using second = await listening(watcher, other)
      for (let i = 0; i < 3; i++)
        await told(ear, () => {
          commit(file)
        })
      await told(second, () => {
        commit(other)
      })
      assert.equal(lines.length, 1, lines.join())
      assert.match(lines[0]!, new RegExp(code))
    })

  test('because a watch breaks later, it is looked at until another one can be had', async () => {
    const {log, lines} = capturedLog()
    appOn(file).close()
    let watches = 0
    const broken = new BrokenWatch()
    const original = fs.watch
    using _broken = insteadOfWatch((...args: Parameters<typeof fs.watch>) =>
      watches++ === 0 ? broken : original(...args),
    )
    await using ear = await listening(sourceWatcher(log, byEar), file)
    broken.emit('error', Object.assign(new Error('overflow'), {code: 'EIO'}))
    await told(ear, () => {
      commit(file)
    })
    assert.equal(lines.length, 1)
    assert.equal(watches, 2)
  })

  test('and says nothing of it, a change is found by looking, from then on more often', async () => {
    const {log, lines} = capturedLog()
    appOn(file).close()
    using _silent = insteadOfWatch(() => new BrokenWatch())
    await using ear = await listening(sourceWatcher(log, {...byEar, lookMs: 2_500}), file)
    // Files are fresh for two seconds, and looked at once more after that.
    await expect.poll(() => ear.hints.length, soon).toBe(2)
    await told(ear, () => {
      commit(file)
    })
    await expect.poll(() => lines.length, soon).toBe(1)
    for (let i = 0; i < 5; i++) {
      const before = ear.hints.length
      const since = performance.now()
      commit(file)
      await expect.poll(() => ear.hints.length, soon).toBeGreaterThan(before)
      assert.ok(performance.now() - since < 1_500, 'it is still looked at seldom')
    }
    assert.equal(lines.length, 1)
  })
})

test('commits within one grain of the file’s times are not lost without events', async () => {
  using _none = insteadOfWatch(() => {
    throw Object.assign(new Error('no more watches'), {code: 'ENOSPC'})
  })
  appOn(file).close()
  await using ear = await listening(sourceWatcher(silentLog, byEar), file)
  commit(file)
  const {mtimeMs} = statSync(file)
  // Told of for as long as a commit of the same instant could have left no trace.
  await expect.poll(() => ear.hints.at(-1)!.toldAt, soon).toBeGreaterThanOrEqual(mtimeMs + 2_000)
  await settled(ear, 700)
})

test('when the signal aborts, its reason is thrown and nothing is watched any more', async () => {
  appOn(file).close()
  const watched = () => process.getActiveResourcesInfo().filter(name => name === 'FSEventWrap').length
  const before = watched()
  {
    await using ear = await listening(sourceWatcher(silentLog, byEar), file)
    assert.equal(watched(), before + 1)
    ear.stop()
    await assert.rejects(ear.ended, /enough/)
  }
  await expect.poll(watched, soon).toBe(before)
})

/** Listens in the background. Resolves when the first hint, that of the beginning, has come and all is quiet. */
async function listening(watcher: WatchSource, path: string, read: () => void = () => undefined) {
  const over = new AbortController()
  const hints: (Hint & {readonly toldAt: number})[] = []
  const ended = (async () => {
    for await (const hint of watcher(path, over.signal)) {
      hints.push({...hint, toldAt: Date.now()})
      read()
    }
  })()
  ended.catch(() => undefined)
  const stop = () => {
    over.abort(new Error('enough'))
  }
  const ear = {
    hints,
    ended,
    stop,
    [Symbol.asyncDispose]: async () => {
      stop()
      await ended.catch(() => undefined)
    },
  }
  await expect.poll(() => hints.length, soon).toBeGreaterThan(0)
  await settled(ear)
  return ear
}

/** Waits until no hint has come for a while. */
async function settled(ear: {readonly hints: readonly Hint[]}, quietMs = 150): Promise<void> {
  for (;;) {
    const before = ear.hints.length
    await sleep(quietMs)
    if (ear.hints.length === before) return
  }
}

/** Does something and waits until a hint about it has come. */
async function told(ear: {readonly hints: readonly Hint[]}, happening: () => void): Promise<void> {
  const before = ear.hints.length
  happening()
  await expect.poll(() => ear.hints.length, soon).toBeGreaterThan(before)
}

function appOn(path: string, journal = 'delete'): DatabaseSync {
  const db = new DatabaseSync(path)
  db.exec(`pragma journal_mode = ${journal}; create table if not exists t (i)`)
  return db
}

function commit(path: string): void {
  using db = new DatabaseSync(path)
  db.exec('create table if not exists t (i); insert into t values (1)')
}

/** A watch that hears nothing. */
class BrokenWatch extends EventEmitter {
  close(): void {
    this.removeAllListeners()
  }
}

function insteadOfWatch(other: unknown): Disposable {
  const original = fs.watch
  const put = (it: unknown) => {
    Object.assign(fs, {watch: it})
    syncBuiltinESMExports()
  }
  put(other)
  return {
    [Symbol.dispose]: () => {
      put(original)
    },
  }
}

function capturedLog(): {log: Log; lines: string[]} {
  const lines: string[] = []
  const stream = new Writable({
    write(line: Buffer, _, done) {
      lines.push(line.toString())
      done()
    },
  })
  return {log: createLog({level: 'warn', format: 'json', stream}), lines}
}
