import assert from 'node:assert/strict'
import {spawnSync} from 'node:child_process'
import {mkdirSync, readFileSync, readdirSync, writeFileSync} from 'node:fs'
import {dirname, join} from 'node:path'
import {DatabaseSync} from 'node:sqlite'
import {afterAll, beforeAll, describe, test} from 'vitest'
import {compareFiles} from '../../test/compare.ts'
import {syncedHost, type SyncedHost} from '../../test/synced-host.ts'
import {restore} from './restore.ts'

const {signal} = new AbortController()
let m: SyncedHost

beforeAll(async () => {
  m = await syncedHost()
})

afterAll(async () => {
  await m[Symbol.asyncDispose]()
})

describe('values that the schema forbids come back as they were', () => {
  test('texts, numbers and NULL where the column would not take them', async () => {
    const source = m.source('legacy', db => {
      legacy(
        db,
        'create table t (id integer primary key, n integer not null, s text, r real, j json, flag boolean)',
        'create table t (id integer primary key, n, s, r, j, flag)',
        `insert into t values (1, '123', 5, '2.5', '3', ' 7 '), (2, null, 1.5, 'x', '0x10', '1e3'), (3, 4, 'ok', 0.5, '{}', 1)`,
      )
      legacy(
        db,
        'create table checked (id text primary key, v int check (v > 0), w text check (no_such_function(w)))',
        'create table checked (id text primary key, v int, w text)',
        `insert into checked values ('a', -1, 'x'), ('b', 1, null)`,
      )
      legacy(
        db,
        'create table strict_one (id int primary key, v int) strict',
        'create table strict_one (id int primary key, v)',
        `insert into strict_one values (1, 'text'), (2, 2)`,
      )
      legacy(
        db,
        'create table clustered (b int not null, a text, v blob, primary key (a desc, b)) without rowid',
        'create table clustered (b, a, v, primary key (a desc, b)) without rowid',
        `insert into clustered values ('1', 'x', 1), (2, 'y', '2'), (2, 'x', null)`,
      )
      legacy(
        db,
        `create table computed (a int, b int as (a + 1) stored unique, c int as (a || 'x') virtual unique, d int)`,
        'create table computed (a, b, d)',
        `insert into computed values (1, 2, '4'), ('7', 8, 5)`,
        'b',
        'c',
      )
    })
    await m.sync('legacy', source)
    const {remarks} = await equalAfterRestore('legacy', source, '1')
    assert.ok(remarks.forbidden.includes('NULL value in t.n'))
  })

  test('a value twice in a unique index, which edits of the target can bring', async () => {
    const source = m.source('twice', db => {
      db.exec(`create table u (id text primary key, name text unique, mail text);
        create unique index u_mail on u (mail);
        insert into u values ('a', 'A', 'a@x'), ('b', 'B', 'b@x'), ('c', 'C', 'c@x')`)
    })
    await m.sync('twice', source)
    await m.admin.tamper`update twice.u set name = 'A', mail = 'a@x' where id = 'b'`
    const to = join(m.folder, 'twice-restored.db')
    const {remarks} = await restoreClient('twice', to)
    assert.deepEqual(remarks.forbidden.toSorted(), [
      'non-unique entry in index sqlite_autoindex_u_2',
      'non-unique entry in index u_mail',
    ])
    using db = new DatabaseSync(to, {readOnly: true})
    assert.equal(db.prepare(`select count(*) as n from u where +name = 'A' and +mail = 'a@x'`).get()!['n'], 2)
    assert.match(
      String(db.prepare(`select sql from sqlite_schema where name = 'u_mail'`).get()!['sql']),
      /UNIQUE/,
    )
  })
})

test('a full-text index over a table that gets new rowids finds the right rows', async () => {
  const source = m.source('fts', db => {
    db.exec(`create table doc (id text primary key, body text);
      insert into doc values ('a', 'alpha'), ('b', 'beta'), ('c', 'gamma'), ('d', 'delta');
      create virtual table doc_fts using fts5(body, content = 'doc');
      insert into doc_fts (doc_fts) values ('rebuild');
      delete from doc where id in ('a', 'b');
      insert into doc_fts (doc_fts) values ('rebuild')`)
  })
  await m.sync('fts', source)
  const to = join(m.folder, 'fts-restored.db')
  await restoreClient('fts', to)
  using db = new DatabaseSync(to, {readOnly: true})
  const found = db.prepare(
    `select doc.id from doc_fts join doc on doc.rowid = doc_fts.rowid where doc_fts match 'delta'`,
  )
  assert.deepEqual(
    found.all().map(row => row['id']),
    ['d'],
  )
})

test('tombstones and tables that the app dropped stay behind; the schema is listed in its old order', async () => {
  const source = m.source('order', db => {
    db.exec(`create table b (id integer primary key autoincrement, v text unique); create view v as select * from b;
      create table a (id text primary key); create index b_v on b (v); create table gone (v);
      insert into b (v) values ('x'), ('y'); insert into a values ('1'); insert into gone values (1)`)
  })
  await m.sync('order', source)
  m.source('order', db => {
    db.exec(
      `delete from b where v = 'x'; drop table gone; create trigger t after insert on a begin select 1; end`,
    )
  })
  await m.sync('order')
  await equalAfterRestore('order', source, '1')
  using here = new DatabaseSync(source, {readOnly: true})
  using there = new DatabaseSync(join(m.folder, 'order-1.db'), {readOnly: true})
  const names = 'select type, name from sqlite_schema order by rowid'
  assert.deepEqual(there.prepare(names).all(), here.prepare(names).all())
})

describe('what cannot be restored is refused, and no file is made', () => {
  const refused = async (client: string, code: string, message: RegExp, more: object = {}) => {
    const to = join(m.folder, 'refused', 'webui.db')
    mkdirSync(dirname(to), {recursive: true})
    await assert.rejects(restoreClient(client, to, more), (error: Error & {code?: string}) => {
      assert.equal(error.code, code)
      assert.match(error.message, message)
      return true
    })
    assert.deepEqual(readdirSync(dirname(to)), [])
  }

  beforeAll(async () => {
    const source = m.source('plain', db => {
      db.exec(`create table t (id text primary key, r real); insert into t values ('a', 1.5)`)
    })
    await m.sync('plain', source)
  })

  test('a client nobody knows', () => refused('nobody', 'SYNC_UNKNOWN_CLIENT', /nobody/))

  test('a client that has never been synced', async () => {
    await m.host`select sync_metadata.register_deployment('unsynced')`
    await refused('unsynced', 'SYNC_NOT_RESTORABLE', /never been synced/)
  })

  test('a first load that has not finished', async () => {
    await m.host`select sync_metadata.register_deployment('half')`
    await m.admin`update sync_metadata.client_deployments set load_position = '{}' where client_name = 'half'`
    await refused('half', 'SYNC_NOT_RESTORABLE', /first load has not finished/)
  })

  test('another generation than the newest', () =>
    refused('plain', 'SYNC_USAGE', /generation 7 .* is not kept/, {asOf: 7n}))

  test('a target with values that no SQLite file can hold', async () => {
    await m.admin.tamper`update plain.t set _sync_raw = '{"r": "i5;"}' where id = 'a'`
    await refused('plain', 'SYNC_RESTORE_FAILED', /table t read back with other values/)
    await m.admin.tamper`update plain.t set _sync_raw = null where id = 'a'`
  })

  test('a file with an index that only its app can make', async () => {
    const source = m.source('extended', db => {
      legacy(
        db,
        'create table t (id text primary key, name text collate of_the_app)',
        'create table t (id text primary key, name text)',
        `insert into t values ('a', 'x')`,
      )
    })
    await m.sync('extended', source)
    await refused(
      'extended',
      'SYNC_NOT_RESTORABLE',
      /what only its app has \(no such collation sequence: of_the_app\)/,
    )
  })

  test('an abort', async () => {
    const controller = new AbortController()
    const onProgress = () => {
      controller.abort(new Error('stopped'))
    }
    const to = join(m.folder, 'refused', 'webui.db')
    await assert.rejects(
      restore(
        {pool: m.host, clientName: 'plain', schemaName: 'plain', to, force: false, onProgress},
        controller.signal,
      ),
      /stopped/,
    )
    assert.deepEqual(readdirSync(dirname(to)), [])
  })

  test('a target whose schema was changed by hand', async () => {
    await m.admin`alter table plain.t drop column r cascade`
    await refused('plain', 'SYNC_NOT_RESTORABLE', /column r of t is not what the sync made/)
    await m.admin`drop table plain.t cascade`
    await refused('plain', 'SYNC_NOT_RESTORABLE', /table t of its schema is gone/)
  })

  test('a disk that is too small', async context => {
    const source = m.source('large', db => {
      db.exec(`create table t (b); insert into t values (randomblob(2000000))`)
    })
    await m.sync('large', source)
    const small = join(m.folder, 'small')
    mkdirSync(small)
    if (spawnSync('mount', ['-t', 'tmpfs', '-o', 'size=512k', 'tmpfs', small]).status !== 0) {
      context.skip('only root may mount')
      return
    }
    try {
      writeFileSync(join(small, 'webui.db'), 'old')
      await assert.rejects(restoreClient('large', join(small, 'webui.db'), {force: true}), {
        code: 'SYNC_DESTINATION',
        message: /the disk is full/,
      })
      assert.deepEqual(readdirSync(small), ['webui.db'])
      assert.equal(readFileSync(join(small, 'webui.db'), 'utf8'), 'old')
    } finally {
      spawnSync('umount', [small])
    }
  })
})

test('a restore while syncs go on is of one generation', async () => {
  const source = m.source('moving', db => {
    db.exec(
      'create table a (n int); create table b (n int); insert into a values (0); insert into b values (0)',
    )
  })
  await m.sync('moving', source)
  const running = new AbortController()
  const syncing = (async () => {
    for (let n = 1; !running.signal.aborted; n++) {
      m.source('moving', db => {
        db.exec(`begin; update a set n = ${n}; update b set n = ${n}; commit`)
      })
      await m.sync('moving')
    }
  })()
  try {
    for (let i = 0; i < 5; i++) {
      const to = join(m.folder, `moving-${i}.db`)
      const {result} = await restoreClient('moving', to)
      using db = new DatabaseSync(to, {readOnly: true})
      const [row] = db.prepare('select a.n as a, b.n as b from a, b').all() as {a: number; b: number}[]
      assert.equal(row!.a, row!.b)
      assert.equal(result.generation, BigInt(row!.a + 1))
    }
  } finally {
    running.abort()
    await syncing
  }
})

/** A table as it can have become over the years: made without the DDL's demands, which it then got by hand. */
function legacy(db: DatabaseSync, sql: string, loose: string, insert: string, ...unique: string[]): void {
  db.exec(`${loose}; ${insert}`)
  const name = /table (\w+)/.exec(sql)![1]!
  unique.forEach((column, i) => {
    db.exec(`create index x${i} on ${name} (${column === 'c' ? `a || 'x'` : column})`)
  })
  db.exec('pragma writable_schema = on')
  unique.forEach((_, i) => {
    db.prepare(`update sqlite_schema set name = ?, sql = null where name = ?`).run(
      `sqlite_autoindex_${name}_${i + 1}`,
      `x${i}`,
    )
  })
  db.prepare('update sqlite_schema set sql = ? where name = ?').run(
    sql.replace('create table', 'CREATE TABLE'),
    name,
  )
  db.exec('pragma writable_schema = reset')
}

async function restoreClient(client: string, to: string, more: object = {}) {
  const schemaName = client.replaceAll('-', '_')
  return await restore({pool: m.host, clientName: client, schemaName, to, force: false, ...more}, signal)
}

async function equalAfterRestore(client: string, source: string, suffix: string) {
  const to = join(m.folder, `${client}-${suffix}.db`)
  const restored = await restoreClient(client, to)
  assert.deepEqual(compareFiles(source, to), [])
  return restored
}
