import assert from 'node:assert/strict'
import {copyFileSync, mkdtempSync, rmSync} from 'node:fs'
import {tmpdir} from 'node:os'
import {join} from 'node:path'
import {DatabaseSync} from 'node:sqlite'
import {test} from 'vitest'
import {look} from './look.ts'

test('a commit of an app that keeps its log’s index to itself is seen', () => {
  const folder = mkdtempSync(join(tmpdir(), 'owsync-look-'))
  try {
    const file = join(folder, 'webui.db')
    {
      using app = new DatabaseSync(join(folder, 'first.db'))
      app.exec('pragma journal_mode = wal; create table t (v); insert into t values (1)')
      // As a machine leaves it that stops: with a log, and the index of that.
      for (const suffix of ['', '-wal', '-shm'])
        copyFileSync(join(folder, `first.db${suffix}`), file + suffix)
    }
    const before = look(file, true)
    assert.ok(before?.content)
    assert.deepEqual(look(file, true), before)
    using app = new DatabaseSync(file)
    app.exec('pragma locking_mode = exclusive; insert into t values (2)')
    const after = look(file, true)
    assert.equal(after?.file, before.file, 'the commit is in the log alone')
    assert.notEqual(after.content, before.content)
  } finally {
    rmSync(folder, {recursive: true})
  }
})
