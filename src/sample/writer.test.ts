import assert from 'node:assert/strict'
import {existsSync} from 'node:fs'
import {mkdtemp, rm} from 'node:fs/promises'
import {tmpdir} from 'node:os'
import {join} from 'node:path'
import {DatabaseSync} from 'node:sqlite'
import {afterAll, beforeAll, describe, test} from 'vitest'
import {actions, type ActionName, type App} from './actions.ts'
import {generate, sizes} from './generate.ts'
import {random} from './random.ts'
import {shapes, type Version} from './schema.ts'
import {phrasebook} from './text.ts'
import {act, startWriter, writes, type WriterOptions, type WriterReport} from './writer.ts'

let folder: string
beforeAll(async () => {
  folder = await mkdtemp(join(tmpdir(), 'owsync-writer-'))
})
afterAll(() => rm(folder, {recursive: true}))

const names = Object.keys(actions) as ActionName[]
const later = 1_800_000_000

function sample(name: string, version: Version): string {
  const file = join(folder, `${name} ${version}`)
  generate(file, {version, seed: 3, ...sizes.tiny, users: 12})
  return file
}

function appOf(file: string, timeout = 100): App & Disposable {
  const db = new DatabaseSync(file, {timeout, enableForeignKeyConstraints: false, readBigInts: true})
  db.exec('pragma synchronous = off')
  const chance = random(7)
  const close = () => {
    db.close()
  }
  return {db, chance, say: phrasebook(chance), now: () => later, chatBytes: 4_000, [Symbol.dispose]: close}
}

/** The first column of the first row. */
const ask = (db: DatabaseSync, sql: string): unknown => Object.values(db.prepare(sql).get() ?? {})[0]

async function all(options: WriterOptions): Promise<WriterReport[]> {
  const reports: WriterReport[] = []
  for await (const report of writes(options, new AbortController().signal)) reports.push(report)
  return reports
}

const repeat = (app: App, name: ActionName, times = 20) => {
  for (let i = 0; i < times; i++) act(app, name)
}

for (const version of Object.keys(shapes) as Version[])
  describe(`on a file of ${version}`, () => {
    let app: App & Disposable
    beforeAll(() => {
      app = appOf(sample('every action', version))
    })
    afterAll(() => {
      app[Symbol.dispose]()
    })

    for (const name of names)
      test(`${name} changes something and leaves the file whole`, () => {
        const before = ask(app.db, 'select total_changes()')
        const results = Array.from({length: 20}, () => act(app, name).result)
        assert.ok(results.includes('written'))
        assert.ok(Number(ask(app.db, 'select total_changes()')) > Number(before))
        assert.equal(ask(app.db, 'pragma integrity_check'), 'ok')
      })
  })

describe('as in the app', () => {
  test('most updates of users and chats leave updated_at alone', () => {
    using app = appOf(sample('un-bumped', '0.10.2'))
    for (const name of [
      'touchUser',
      'changeRole',
      'changeSettings',
      'archiveChat',
      'shareChat',
      'tagChat',
    ] as const)
      repeat(app, name)
    assert.equal(ask(app.db, `select max(last_active_at) from user`), BigInt(later))
    for (const table of ['user', 'chat'])
      assert.ok(Number(ask(app.db, `select max(updated_at) from ${table}`)) < later)
  })

  test('an imported chat is older than the newest one', () => {
    using app = appOf(sample('import', '0.6.31'))
    const newest = Number(ask(app.db, 'select max(updated_at) from chat'))
    repeat(app, 'importChat')
    const added = app.db.prepare('select updated_at as at from chat order by rowid desc limit 20').all()
    assert.ok(added.some(({at}) => Number(at) < newest))
  })

  test('a message is appended under history and under messages, in ASCII', () => {
    using app = appOf(sample('append', '0.10.2'))
    const lengths = () => [
      ask(app.db, `select count(*) from chat, json_each(chat, '$.messages')`),
      ask(app.db, `select count(*) from chat, json_each(chat, '$.history.messages')`),
      ask(app.db, `select count(*) from chat_message`),
    ]
    const before = lengths().map(Number)
    act(app, 'appendToChat')
    assert.deepEqual(
      lengths().map(Number),
      before.map(length => length + 2),
    )
    assert.equal(ask(app.db, `select count(*) from chat where chat glob '*[^ -~]*'`), 0n)
    assert.equal(
      ask(
        app.db,
        `select count(*) from chat, json_each(chat, '$.messages') as m
         where json_extract(chat, '$.history.currentId') = json_extract(m.value, '$.id')
           and m.key = json_array_length(chat, '$.messages') - 1`,
      ),
      ask(app.db, 'select count(*) from chat'),
      'the current message of each chat is its last one',
    )
  })

  test('the last chat with a tag takes the tag with it', () => {
    using app = appOf(sample('tags', '0.6.31'))
    app.db.exec(`delete from tag; update chat set meta = '{}'`)
    repeat(app, 'tagChat', 60)
    repeat(app, 'deleteChat', 3)
    const [tags, used] = [
      'select count(*) from tag',
      `select count(*) from (select distinct user_id, value from chat, json_each(meta, '$.tags'))`,
    ].map(sql => ask(app.db, sql))
    assert.equal(tags, used)
  })

  test('a unique value moves between rows', () => {
    using app = appOf(sample('unique', '0.6.31'))
    app.db.exec(`update user set oauth_sub = 'google@1' where rowid = 1`)
    const holder = () => ask(app.db, `select group_concat(rowid) from user where oauth_sub = 'google@1'`)
    const holders = Array.from({length: 60}, () => {
      act(app, 'moveUniqueValue')
      return holder()
    })
    assert.ok(new Set(holders).size > 2)
  })

  test('a number is used again for another prompt', () => {
    using app = appOf(sample('prompt', '0.6.31'))
    const before = ask(app.db, 'select command from prompt where id = 4')
    act(app, 'replacePrompt')
    assert.equal(ask(app.db, 'select count(*) from prompt'), 4n)
    assert.notEqual(ask(app.db, 'select command from prompt where id = 4'), before)
  })

  test('the sessions of a deleted user stay', () => {
    using app = appOf(sample('sessions', '0.10.2'))
    repeat(app, 'newUser', 5)
    const sessions = ask(app.db, 'select count(*) from oauth_session')
    repeat(app, 'deleteUser', 10)
    assert.equal(ask(app.db, 'select count(*) from oauth_session'), sessions)
    assert.ok(Number(ask(app.db, 'select count(*) from user')) < 12)
  })

  test('an action that meets a lock is given up and leaves nothing behind', () => {
    const file = sample('locked', '0.6.31')
    using app = appOf(file)
    using other = new DatabaseSync(file)
    other.exec('begin immediate')
    assert.equal(act(app, 'touchUser').result, 'locked')
    other.exec('rollback')
    assert.equal(app.db.isTransaction, false)
    assert.equal(act(app, 'touchUser').result, 'written')
  })
})

describe('the program', () => {
  test(
    'reports each second, sets the journal mode, and ends cleanly when asked to',
    {timeout: 20_000},
    async () => {
      const file = sample('program', '0.11')
      const reports: number[] = []
      const seen = Promise.withResolvers<undefined>()
      const writer = startWriter({file, seed: 1, rate: 50, journalMode: 'wal', withTimes: true}, report => {
        reports.push(report.writes)
        assert.equal(report.times_ms?.length, report.writes + report.locked)
        if (reports.length === 2) seen.resolve(undefined)
      })
      await seen.promise
      const totals = await writer.stop()
      assert.equal(totals.locked, 0)
      assert.equal(
        totals.writes,
        reports.reduce((sum, count) => sum + count, 0),
      )
      assert.ok(totals.writes > 20 && totals.worst_ms > 0)
      using db = new DatabaseSync(file)
      assert.equal(ask(db, 'pragma journal_mode'), 'wal')
      assert.deepEqual(await writer.stop(), totals)
    },
  )

  test('ends by itself after its time', async () => {
    const file = sample('for', '0.6.31')
    const reports = await all({file, seed: 1, rate: 0, forSeconds: 0.2, journalMode: 'delete'})
    assert.equal(reports.length, 1)
    assert.ok((reports[0]?.writes ?? 0) > 5)
  })

  test('a file that does not exist is refused, and not made', async () => {
    const file = join(folder, 'nowhere')
    await assert.rejects(all({file, seed: 1, rate: 1}), {code: 'SYNC_USAGE'})
    assert.ok(!existsSync(file))
  })
})
