import assert from 'node:assert/strict'
import fs, {closeSync, linkSync, mkdtempSync, openSync, rmSync, writeSync} from 'node:fs'
import {syncBuiltinESMExports} from 'node:module'
import {tmpdir} from 'node:os'
import {join} from 'node:path'
import {DatabaseSync} from 'node:sqlite'
import {setTimeout as sleep} from 'node:timers/promises'
import {afterAll, beforeAll, test} from 'vitest'
import type {SourceBusyError} from './errors.ts'
import {beginRead, endRead, explain, fingerprint, identity, isSharedWith, openSource} from './open.ts'

const {signal} = new AbortController()

let dir: string
beforeAll(() => {
  dir = mkdtempSync(join(tmpdir(), 'owsync-open-'))
})
afterAll(() => {
  rmSync(dir, {recursive: true, force: true})
})

test(
  'a source in WAL mode is the same after it was opened and read, also by root',
  {timeout: 20_000},
  async () => {
    const file = join(dir, 'app.db')
    using app = new DatabaseSync(file)
    app.exec('pragma journal_mode = wal; create table note (body); insert into note values (1)')
    assert.equal(fingerprint(file), undefined, 'it has just been written')
    await sleep(2_100)
    const settled = fingerprint(file)
    assert.ok(settled !== undefined)
    for (let n = 0; n < 3; n++) {
      {
        using source = await openSource(file, signal)
        assert.equal(source.db.prepare('select count(*) as n from note').get()?.['n'], 1)
        assert.equal(fingerprint(file), settled)
      }
      assert.equal(fingerprint(file), settled)
    }
    app.exec('insert into note values (2)')
    await sleep(2_100)
    assert.notEqual(fingerprint(file), settled)
  },
)

test('a transaction whose first read is refused by a lock is not left open, so that it can be tried again', async () => {
  const file = join(dir, 'refused.db')
  using app = new DatabaseSync(file)
  app.exec('create table note (body)')
  using source = await openSource(file, signal)
  app.exec('begin exclusive')
  for (let tries = 0; tries < 2; tries++)
    assert.throws(() => {
      beginRead(source.db)
    }, /database is locked/)
  assert.equal(source.db.isTransaction, false)
  app.exec('commit')
  beginRead(source.db)
  assert.equal(source.db.isTransaction, true)
  endRead(source.db)
  assert.equal(source.db.isTransaction, false)
})

test('files made beside a source are the app’s to write when they get its owner, or may be written by others', () => {
  const app = {uid: 1000, gid: 1000, mayGive: false}
  const other = {uid: 2000, gid: 2000, mayGive: false}
  const inGroup = {uid: 2000, gid: 1000, mayGive: false}
  const root = {uid: 0, gid: 0, mayGive: true}
  const folder = {gid: 1000, mode: 0o40777}
  const shared = {gid: 1000, mode: 0o42777}
  const file = (mode: number) => ({...app, mode: 0o100000 | mode})
  for (const [mode, where, who, expected] of [
    [0o644, folder, root, true],
    [0o644, folder, {...root, mayGive: false}, false],
    [0o600, folder, app, true],
    [0o644, folder, other, false],
    [0o666, folder, other, true],
    [0o664, folder, other, false],
    [0o664, folder, inGroup, true],
    [0o664, shared, other, true],
    [0o664, {...shared, gid: 2000}, inGroup, false],
    [0o644, shared, inGroup, false],
  ] as const)
    assert.equal(isSharedWith(file(mode), where, who), expected, `${mode.toString(8)}, uid ${who.uid}`)
})

test('a file is not read by a name that its log, or its journal, does not have', async () => {
  const [file, other] = [join(dir, 'linked.db'), join(dir, 'other-name.db')]
  using app = new DatabaseSync(file)
  app.exec('create table note (body)')
  linkSync(file, other)
  using first = await openSource(other, signal)
  assert.equal(first.identity, identity(file))
  app.exec('pragma journal_mode = persist; insert into note values (1); delete from note')
  await assert.rejects(openSource(other, signal), /has another name.*linked.db-journal/)
  using second = await openSource(file, signal)
  assert.equal(second.identity, identity(file))
  app.exec("pragma journal_mode = wal; insert into note values ('in the log')")
  await assert.rejects(openSource(other, signal), /has another name/)
  using source = await openSource(file, signal)
  assert.equal(source.db.prepare('select count(*) as n from note').get()?.['n'], 1)
})

test('a schema format that SQLite does not know is an error of the file', async () => {
  const file = join(dir, 'format.db')
  {
    using app = new DatabaseSync(file)
    app.exec('create table note (body)')
  }
  const fd = openSync(file, 'r+')
  writeSync(fd, Buffer.from([0, 0, 0, 9]), 0, 4, 44)
  closeSync(fd)
  await assert.rejects(openSource(file, signal), {
    code: 'SYNC_SOURCE_UNREADABLE',
    message: /schema format that SQLite does not know/,
  })
})

test('what is no error of the file stays as it is', () => {
  const cause = Object.assign(new Error('no such column: body'), {errcode: 1})
  assert.equal(explain('webui.db', cause), cause)
})

test('without memory to read it, a source is tried again', () => {
  const cause = Object.assign(new Error('out of memory'), {errcode: 7})
  const {code, retryable, message} = explain('webui.db', cause) as SourceBusyError
  assert.deepEqual([code, retryable], ['SYNC_SOURCE_BUSY', true])
  assert.match(message, /not enough memory/)
})

test('a disk that cannot be read is an error of the source, before SQLite has it open and after', async () => {
  const unreadable = {code: 'SYNC_SOURCE_UNREADABLE', message: /reading failed \(EIO/}
  // Linux has a regular file whose start cannot be read.
  if (process.platform === 'linux') await assert.rejects(openSource('/proc/self/mem', signal), unreadable)
  const file = join(dir, 'disk.db')
  using app = new DatabaseSync(file)
  app.exec('create table note (body)')
  using source = await openSource(file, signal)
  const {readSync} = fs
  fs.readSync = () => {
    throw Object.assign(new Error('EIO: i/o error, read'), {code: 'EIO', syscall: 'read'})
  }
  syncBuiltinESMExports()
  try {
    assert.throws(() => source.read(Buffer.alloc(100), 0, 100), unreadable)
  } finally {
    fs.readSync = readSync
    syncBuiltinESMExports()
  }
})
