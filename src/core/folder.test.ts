import assert from 'node:assert/strict'
import {existsSync, mkdtempSync, rmSync, statSync, symlinkSync, writeFileSync} from 'node:fs'
import {tmpdir} from 'node:os'
import {join} from 'node:path'
import {afterAll, beforeAll, test} from 'vitest'
import {makeFolder} from './folder.ts'

let home = ''
beforeAll(() => {
  home = mkdtempSync(join(tmpdir(), 'owsync-folder-'))
})
afterAll(() => {
  rmSync(home, {recursive: true, force: true})
})

test('makes a folder and those above it, for this user alone, and again changes nothing', () => {
  const deep = join(home, 'a/b/c')
  makeFolder(deep)
  makeFolder(deep)
  for (const path of ['a', 'a/b', 'a/b/c']) assert.equal(statSync(join(home, path)).mode & 0o777, 0o700)
  symlinkSync(join(home, 'a'), join(home, 'link'))
  makeFolder(join(home, 'link'))
})

test('a file in the way is an error', () => {
  writeFileSync(join(home, 'file'), '')
  assert.throws(
    () => {
      makeFolder(join(home, 'file'))
    },
    {code: 'EEXIST'},
  )
  assert.throws(
    () => {
      makeFolder(join(home, 'file/below'))
    },
    {code: 'ENOTDIR'},
  )
})

test.runIf(existsSync('/proc/self'))('below a folder that takes none it ends, and with an error', () => {
  for (const path of ['/proc/owsync', '/proc/owsync/state/locks'])
    assert.throws(
      () => {
        makeFolder(path)
      },
      {code: 'ENOENT'},
    )
})
