import assert from 'node:assert/strict'
import {
  appendFileSync,
  copyFileSync,
  mkdtempSync,
  readFileSync,
  rmSync,
  statSync,
  writeFileSync,
} from 'node:fs'
import {tmpdir} from 'node:os'
import {join} from 'node:path'
import {DatabaseSync} from 'node:sqlite'
import {setImmediate as breathe} from 'node:timers/promises'
import {afterAll, beforeAll, describe, test} from 'vitest'
import {seedOf} from './mutator.ts'
import {concurrentPages, fuzzPages, newTally, PageMirror} from './page-fuzz.ts'

// The law of the capture by pages: what it finds is what the comparison of all rows finds.

let dir: string
beforeAll(() => {
  dir = mkdtempSync(join(tmpdir(), 'owsync-pages-'))
})
afterAll(() => {
  rmSync(dir, {recursive: true, force: true})
})

// CI does ten times as many, `npm run torture` three hundred times.
const steps = 2 * (Number(process.env['OWSYNC_CASES']) || 150)

test('whatever happens to a file, its pages show every change', {timeout: 900_000}, async ({annotate}) => {
  const seed = seedOf()
  await annotate(`OWSYNC_SEED=${seed}`)
  const tally = await fuzzPages(seed, steps)
  assert.ok(tally.steps >= steps && tally.upserts > steps && tally.tombstones > steps, JSON.stringify(tally))
  assert.ok(tally.byPages > tally.captures / 2, `too few by pages: ${JSON.stringify(tally)}`)
  assert.ok(tally.disturbed > steps / 4, JSON.stringify(tally))
})

test(
  'while another process writes without a pause, every capture comes nearer, and none misses',
  {timeout: 300_000},
  async ({annotate}) => {
    const seed = seedOf()
    await annotate(`OWSYNC_SEED=${seed}`)
    const tally = newTally()
    for (let i = 0; i < 3; i++) await concurrentPages(seed + i, 3_000, tally)
    assert.ok(tally.disturbed > 20, JSON.stringify(tally))
  },
)

test('a commit that is in the log, but not yet in its index, has not been seen', async () => {
  const [file, other] = [join(dir, 'written.db'), join(dir, 'published.db')]
  using app = new DatabaseSync(file)
  app.exec(`pragma journal_mode = wal; pragma wal_autocheckpoint = 0; create table note (body);
    insert into note values ('first'), ('second')`)
  for (const suffix of ['', '-wal']) copyFileSync(file + suffix, other + suffix)
  using mirror = new PageMirror(dir, other)
  {
    // Whoever opens a log first makes its index, and while anybody has it open nobody makes it again.
    using held = new DatabaseSync(other, {readOnly: true})
    held.prepare('select * from note').all()
    await mirror.look('pages', 'settle')
    assert.equal((await mirror.look('pages', 'settle')).result.comparedAll, false)

    app.exec(`update note set body = 'other' where rowid = 2`)
    appendFileSync(`${other}-wal`, readFileSync(`${file}-wal`).subarray(statSync(`${other}-wal`).size))
    assert.deepEqual((await mirror.look('pages', 'settle')).upserts, [], 'nobody can see it yet')
    mirror.leave()
  }
  const {upserts, result} = await mirror.look('pages', 'settle')
  assert.deepEqual([upserts, result.comparedAll], [['note 2 ~i2;'], false])
})

test('in WAL mode pages and rows are of one state, however often the app commits meanwhile', async () => {
  const file = join(dir, 'one-state.db')
  using app = new DatabaseSync(file)
  app.exec('pragma journal_mode = wal; create table note (body, flag integer)')
  const insert = app.prepare('insert into note values (?, 1)')
  for (let i = 0; i < 300; i++) insert.run('-'.repeat(i % 7 === 0 ? 9_000 : 40))
  const set = app.prepare('update note set flag = flag + 1 where rowid = ?')
  using mirror = new PageMirror(dir, file)
  await mirror.look('pages', 'settle')
  for (const journal of ['as it grows', 'begun anew']) {
    set.run(100)
    const {upserts, result} = await mirror.look('pages', 'settle', () => {
      set.run(100)
      set.run(200)
      if (journal === 'begun anew') app.exec('pragma wal_checkpoint(passive)')
    })
    assert.deepEqual([result.consistent, result.comparedAll, upserts], [true, false, ['note 100 ~i100;']])
    const later = await mirror.look('pages', 'settle')
    assert.deepEqual(later.upserts, ['note 100 ~i100;', 'note 200 ~i200;'])
  }
  assert.equal((await mirror.look('pages', 'settle')).result.rows, 0)
})

test('a page that is what it was before its rows were read as something else is not taken for known', async () => {
  const file = join(dir, 'again.db')
  using app = new DatabaseSync(file)
  app.exec('create table note (body, flag integer)')
  const insert = app.prepare('insert into note values (?, 1)')
  for (let i = 0; i < 300; i++) insert.run('-'.repeat(i % 7 === 0 ? 9_000 : 40))
  const set = (flag: number) => {
    app.prepare('update note set flag = ? where rowid = 150').run(flag)
  }
  using mirror = new PageMirror(dir, file)
  await mirror.look('pages', 'settle')
  set(2)
  let flag = 2
  const {result} = await mirror.look('pages', 'settle', () => {
    flag = flag === 2 ? 3 : 2
    set(flag)
  })
  assert.deepEqual([result.consistent, flag], [false, 3])
  // What was seen together with its rows is known, in spite of the commits.
  assert.equal((await mirror.look('pages', 'settle')).result.rows, 0)
  set(2)
  assert.deepEqual((await mirror.look('pages', 'settle')).upserts, ['note 150 ~i150;'])
})

test('rows that come, go and return to what they were while they are read are found', async () => {
  const file = join(dir, 'returns.db')
  using app = new DatabaseSync(file)
  app.exec('pragma synchronous = off; create table note (body, flag integer)')
  for (let i = 0; i < 60; i++) app.prepare('insert into note values (?, 1)').run('-'.repeat(40))
  const states = [
    'delete from note where rowid = 30',
    'insert or replace into note (rowid, body, flag) values (30, 1, 1)',
    'insert or replace into note (rowid, body, flag) values (30, 1, 2)',
    'insert or replace into note (rowid, body, flag) values (30, 1, 3)',
  ]
  using mirror = new PageMirror(dir, file)
  await mirror.look('pages', 'settle')
  for (let round = 0; round < 60; round++) {
    app.exec(states[0]!)
    await mirror.look('pages', 'settle')
    const end = new AbortController()
    const writing = (async () => {
      for (let at = round + 1; !end.signal.aborted; at++) {
        app.exec(states[at % states.length]!)
        await breathe()
      }
    })()
    await mirror.look('pages', 'settle').finally(() => {
      end.abort()
    })
    await writing
    app.exec(states[round % states.length]!)
    await mirror.look('pages', 'settle')
    const missed = await mirror.look('digests', 'abandon')
    assert.deepEqual([missed.upserts, missed.tombstones], [[], []], `round ${round}`)
  }
})

test('a log that the app has removed when it closed is not taken for the one before', async () => {
  const file = join(dir, 'removed.db')
  const write = (sql: string) => {
    using app = new DatabaseSync(file)
    app.exec(sql)
  }
  write(`pragma journal_mode = wal; create table note (body); insert into note values ('first'), ('second')`)
  using mirror = new PageMirror(dir, file)
  for (const body of ['a', 'b', 'c']) {
    await mirror.look('pages', 'settle')
    mirror.leave()
    write(`update note set body = '${body}' where rowid = 2`)
    assert.deepEqual((await mirror.look('pages', 'settle')).upserts, ['note 2 ~i2;'], body)
    mirror.leave()
  }
})

for (const [what, isRestarted] of [
  ['with its machine', true],
  ['in a backup that took its place', false],
] as const)
  test(`a log that has lost frames ${what} is read anew`, async () => {
    const [file, before] = [join(dir, `lost-${isRestarted}.db`), join(dir, 'before')]
    const write = (sql: string) => {
      using app = new DatabaseSync(file)
      app.exec('pragma wal_autocheckpoint = 0')
      app.exec(sql)
      // Closed last: a reader does not write the log back.
      using other = new DatabaseSync(file, {readOnly: true})
      other.prepare('select * from note').all()
      app.close()
    }
    write(
      `pragma journal_mode = wal; create table note (body); insert into note values ('first'), ('second')`,
    )
    copyFileSync(`${file}-wal`, before)
    using mirror = new PageMirror(dir, file)
    write(`update note set body = 'is lost' where rowid = 1`)
    await mirror.look('pages', 'settle')
    mirror.leave()
    copyFileSync(before, `${file}-wal`)
    // As many frames with the same salts, and another content.
    write(`update note set body = 'came after' where rowid = 2`)
    if (isRestarted) mirror.restart()
    const {upserts} = await mirror.look('pages', 'settle')
    assert.deepEqual(upserts, ['note 1 ~i1;', 'note 2 ~i2;'])
  })

for (const isLookedAt of [false, true])
  test(`a backup that was copied over a file is found behind the log that a killed app has left, ${isLookedAt ? 'looked at before' : 'at once'}`, async () => {
    const [file, backup] = [join(dir, `copied-${isLookedAt}.db`), join(dir, `backup-${isLookedAt}.db`)]
    const write = (sql: string, isKilled: boolean) => {
      using app = new DatabaseSync(file)
      app.exec(sql)
      if (!isKilled) return
      // Closed last: a reader does not write the log back.
      using other = new DatabaseSync(file, {readOnly: true})
      other.prepare('select * from note').all()
      app.close()
    }
    write(
      `pragma journal_mode = wal; create table note (body, flag);
       with recursive n(i) as (select 1 union all select i + 1 from n where i < 500)
       insert into note select printf('%.*c', 100, 'x'), 1 from n`,
      false,
    )
    copyFileSync(file, backup)
    write('update note set flag = 2', false)
    write(`update note set flag = 3 where rowid = 500; update note set flag = 4 where rowid = 500`, true)
    using mirror = new PageMirror(dir, file)
    await mirror.look('pages', 'settle')
    mirror.leave()
    if (isLookedAt) {
      assert.equal((await mirror.look('pages', 'settle')).result.rows, 0)
      mirror.leave()
    }
    copyFileSync(backup, file)
    const {upserts, result} = await mirror.look('pages', 'settle')
    assert.ok(upserts.length > 450, `${upserts.length} of ${result.rows}`)
    assert.deepEqual((await mirror.look('digests', 'settle')).upserts, [])
  })

describe('a backup that was copied over a file is found when the log that was left beside it has gone on', () => {
  /** Opens the file as an app that is killed in the end: a reader is the last to close it, and writes nothing back. */
  const startApp = (file: string) => {
    const app = new DatabaseSync(file)
    app.exec('pragma wal_autocheckpoint = 0')
    return {
      commit: (times: number) => {
        for (let i = 0; i < times; i++) app.exec(`update other set n = n + 1`)
      },
      checkpoint: () => {
        app.exec('pragma wal_checkpoint(passive)')
      },
      kill: (mirror: PageMirror) => {
        const last = new DatabaseSync(file, {readOnly: true})
        last.prepare('select * from other').all()
        app.close()
        mirror.leave()
        last.close()
      },
    }
  }

  const cases = {
    'by the same app, started again, with more commits than before': async (file, mirror, copy) => {
      const app = startApp(file)
      app.commit(3)
      await mirror.look('pages', 'settle')
      app.kill(mirror)
      copy()
      startApp(file).commit(6)
    },
    'by an app that was killed before we looked, and once more': async (file, mirror, copy) => {
      const first = startApp(file)
      first.commit(1)
      first.kill(mirror)
      await mirror.look('pages', 'settle')
      mirror.leave()
      const next = startApp(file)
      next.commit(1)
      next.kill(mirror)
      copy()
    },
    'by an app that has written some of it back': async (file, mirror, copy) => {
      const first = startApp(file)
      first.commit(1)
      first.kill(mirror)
      await mirror.look('pages', 'settle')
      mirror.leave()
      copy()
      const next = startApp(file)
      next.commit(2)
      next.checkpoint()
    },
  } satisfies Record<string, (file: string, mirror: PageMirror, copy: () => void) => Promise<void>>

  test.each(Object.entries(cases))('%s', async (name, happen) => {
    const [file, backup] = [join(dir, `${name}.db`), join(dir, `${name}.backup`)]
    {
      using app = new DatabaseSync(file)
      app.exec(`pragma journal_mode = wal; create table other (n); insert into other values (0);
        create table note (body, flag); with recursive n (i) as (select 1 union all select i + 1 from n where i < 500)
          insert into note select printf('%.*c', 100, 'x'), 1 from n`)
    }
    copyFileSync(file, backup)
    {
      using app = new DatabaseSync(file)
      app.exec('update note set flag = 2')
    }
    using mirror = new PageMirror(dir, file)
    await mirror.look('pages', 'settle')
    await happen(file, mirror, () => {
      copyFileSync(backup, file)
    })
    const {upserts} = await mirror.look('pages', 'settle')
    assert.ok(upserts.length >= 500, `${upserts.length} rows`)
    assert.deepEqual((await mirror.look('digests', 'settle')).upserts, [])
  })
})

test('behind a chain that makes no sense nothing stays unseen, also when the log only grows', async () => {
  const file = join(dir, 'senseless.db')
  {
    using app = new DatabaseSync(file)
    app.exec('pragma journal_mode = wal; create table note (body)')
    for (const row of [1, 2]) app.prepare('insert into note values (?)').run(`${'x'.repeat(6_000)}${row}`)
  }
  // The last page of the first row's chain says that it goes on, which SQLite does not look at.
  const bytes = readFileSync(file)
  const pages = Array.from({length: bytes.length / 4096}, (_, i) => bytes.subarray(i * 4096, (i + 1) * 4096))
  const ends = pages.filter(page => page.includes('x1') && page.readUInt32BE(0) === 0)
  assert.equal(ends.length, 1)
  ends[0]!.writeUInt32BE(9_999_999, 0)
  writeFileSync(file, bytes)
  using app = new DatabaseSync(file)
  app.exec('pragma wal_autocheckpoint = 0; create table other (n); insert into other values (1)')
  using mirror = new PageMirror(dir, file)
  await mirror.look('pages', 'settle')
  app.prepare('update note set body = ? where rowid = 2').run(`${'x'.repeat(5_990)}${'y'.repeat(10)}2`)
  assert.deepEqual((await mirror.look('pages', 'settle')).upserts, ['note 2 ~i2;'])
})

test('rows that are read because an interior page gave them to another one are not known by an older page', async () => {
  const file = join(dir, 'spans.db')
  using app = new DatabaseSync(file)
  app.exec(`pragma page_size = 512; pragma synchronous = off; create table other (n integer);
    insert into other values (0); create table note (body, flag integer)`)
  for (let i = 0; i < 1_200; i++) app.prepare('insert into note values (?, 2)').run('-'.repeat(200))
  using mirror = new PageMirror(dir, file)
  await mirror.look('pages', 'settle')
  // Interior pages are joined: the leaves that one of them has had stay as they are.
  app.exec('delete from note where rowid between 250 and 480')
  let pass = 0
  const {result} = await mirror.look('pages', 'settle', () => {
    app.exec(++pass < 3 ? 'update other set n = n + 1' : 'update note set flag = 3')
  })
  assert.deepEqual([pass, result.consistent, result.comparedAll], [3, false, false])
  app.exec('update note set flag = 2')
  await mirror.look('pages', 'settle')
  const missed = await mirror.look('digests', 'abandon')
  assert.deepEqual([missed.upserts, missed.tombstones], [[], []])
})

test('a row that was met at another place, and goes back, is not taken for deleted', async () => {
  const file = join(dir, 'moves.db')
  using app = new DatabaseSync(file)
  app.exec(`pragma synchronous = off; create table other (n integer); insert into other values (0);
    create table note (id text primary key, body, flag integer)`)
  for (let i = 1; i <= 600; i++) app.prepare('insert into note values (?, ?, 2)').run(`n${i}`, '-'.repeat(40))
  using mirror = new PageMirror(dir, file)
  await mirror.look('pages', 'settle')
  app.exec('update note set flag = 3 where rowid = 600')
  let pass = 0
  const {result} = await mirror.look('pages', 'settle', () => {
    app.exec(++pass < 3 ? 'update other set n = n + 1' : `update note set rowid = 601 where id = 'n10'`)
  })
  assert.deepEqual([pass, result.consistent, result.comparedAll], [3, false, false])
  app.exec(`update note set rowid = 10 where id = 'n10'`)
  await mirror.look('pages', 'settle')
  const missed = await mirror.look('digests', 'abandon')
  assert.deepEqual([missed.upserts, missed.tombstones], [[], []])
})

test('a row that goes after it was met at another place, and before its values are read there, is deleted', async () => {
  const file = join(dir, 'goes.db')
  using app = new DatabaseSync(file)
  app.exec('pragma synchronous = off; create table note (id text primary key, flag integer)')
  for (let i = 1; i <= 60; i++) app.prepare('insert into note values (?, 2)').run(`n${i}`)
  using mirror = new PageMirror(dir, file)
  await mirror.look('digests', 'settle')
  app.exec('delete from note where rowid = 50')
  await mirror.look('digests', 'settle')
  app.exec(`update note set rowid = 50, flag = 3 where id = 'n10'`)
  let pass = 0
  const doubting = () => {
    app.exec(
      ++pass < 3 ? `update note set flag = flag + 1 where id = 'n20'` : `delete from note where id = 'n10'`,
    )
  }
  await mirror.look('pages', 'settle', undefined, doubting)
  assert.equal(pass, 3)
  const {tombstones} = await mirror.look('pages', 'settle')
  assert.deepEqual(tombstones, ['note n10'])
})

test('a backup that was put back and migrated otherwise has other rows on the same pages', async () => {
  const [file, backup] = [join(dir, 'migrated.db'), join(dir, 'backup.db')]
  const write = (sql: string) => {
    using app = new DatabaseSync(file)
    app.exec(sql)
  }
  write(`create table note (body); insert into note values ('first'), ('second')`)
  copyFileSync(file, backup)
  using mirror = new PageMirror(dir, file)
  for (const kind of ['a', 'b']) {
    copyFileSync(backup, file)
    write(`alter table note add column kind default '${kind}'`)
    assert.equal((await mirror.look('pages', 'settle')).upserts.length, 2, kind)
    mirror.leave()
  }
})
