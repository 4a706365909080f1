import assert from 'node:assert/strict'
import {closeSync, openSync, writeFileSync} from 'node:fs'
import {mkdtemp, realpath, rm} from 'node:fs/promises'
import {tmpdir} from 'node:os'
import {join} from 'node:path'
import {setImmediate} from 'node:timers/promises'

import {afterAll, beforeAll, describe, test} from 'vitest'

import {watchOpenFiles} from './open-files.ts'

let folder: string

beforeAll(async () => {
  folder = await realpath(await mkdtemp(join(tmpdir(), 'owsync-open-')))
})

afterAll(async () => {
  await rm(folder, {recursive: true})
})

const made = (name: string): string => {
  const file = join(folder, name)
  writeFileSync(file, '')
  return file
}

// By what the kernel says of this process's open files.
describe.runIf(process.platform === 'linux')('of the files that are watched', () => {
  test('one that is open for writing is seen', async () => {
    const file = made('written')
    await using files = await watchOpenFiles([file])
    const fd = openSync(file, 'r+')
    try {
      while ((await files.seen()).looks < 20);
      assert.deepEqual((await files.seen()).writable, [file])
    } finally {
      closeSync(fd)
    }
  })

  test('one that is only read is not, though its descriptors go to another that is written', async () => {
    const [read, written] = [made('read'), made('other')]
    await using files = await watchOpenFiles([read])
    const descriptors = Array.from({length: 50}, () => openSync(read, 'r'))
    try {
      while ((await files.seen()).looks < 1_000) {
        for (const [file, flags] of [
          [written, 'r+'],
          [read, 'r'],
        ] as const) {
          descriptors.forEach((fd, at) => {
            closeSync(fd)
            descriptors[at] = openSync(file, flags)
          })
        }
        await setImmediate()
      }
    } finally {
      for (const fd of descriptors) closeSync(fd)
    }
    assert.deepEqual((await files.seen()).writable, [])
  })
})
