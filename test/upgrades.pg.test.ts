import assert from 'node:assert/strict'
import {execFile} from 'node:child_process'
import {copyFileSync, existsSync, readdirSync, rmSync} from 'node:fs'
import {join} from 'node:path'
import {DatabaseSync} from 'node:sqlite'
import {fileURLToPath} from 'node:url'
import {promisify} from 'node:util'
import {afterAll, beforeAll, describe, test} from 'vitest'
import {generate, sizes} from '../src/sample/generate.ts'
import {shapes, type Version} from '../src/sample/schema.ts'
import {snapshot} from './changed-rows.ts'
import {compareFiles} from './compare.ts'
import {leadingClient, leadingHost, type LeadingHost} from './leading-host.ts'
import {assertReport, type Rows} from './reported-rows.ts'

// One file of Open WebUI as it was after each of its upgrades: real ones, which are no part of this repository, and
// ones that we make.

const archive =
  process.env['OWSYNC_UPGRADED_FILES'] ??
  fileURLToPath(new URL('../../shared/openwebui/upgraded-files.tar.xz', import.meta.url))

let leader: LeadingHost
let clients = 0
beforeAll(async () => {
  leader = await leadingHost()
})
afterAll(async () => {
  await leader[Symbol.asyncDispose]()
})

/** How an upgraded file comes to be where the last one was. */
const ways = {
  'over the old one': (from: string, to: string) => {
    copyFileSync(from, to)
  },
  'as a file of its own': (from: string, to: string) => {
    rmSync(to, {force: true})
    copyFileSync(from, to)
  },
}

// Absent from a plain checkout: then only the files of our own making are upgraded.
describe.skipIf(!existsSync(archive))('an app that was upgraded from 0.6.0 to 0.11', () => {
  let files: string[]
  beforeAll(async () => {
    await promisify(execFile)('tar', ['-xJf', archive, '-C', leader.folder])
    const folder = join(leader.folder, 'chain-b')
    files = readdirSync(folder)
      .sort()
      .map(name => join(folder, name))
  })
  for (const [way, put] of Object.entries(ways))
    for (const capture of ['digests', 'pages'] as const)
      test(`is followed upgrade by upgrade, each ${way} (${capture})`, async () => {
        assert.equal(files.length, 6)
        await followUpgrades(files, put, capture)
      })
})

describe('an app of our own making, upgraded from 0.6.31 to 0.11', () => {
  let files: string[]
  beforeAll(() => {
    files = (Object.keys(shapes) as Version[]).map(version => {
      const file = join(leader.folder, `${version}.db`)
      generate(file, {version, seed: 7, ...sizes.tiny})
      return file
    })
    keepSettings(files)
  })
  for (const [way, put] of Object.entries(ways))
    for (const capture of ['digests', 'pages'] as const)
      test(`is followed upgrade by upgrade, each ${way} (${capture})`, async () => {
        await followUpgrades(files, put, capture)
      })
})

/** As the upgrade to 0.10 does: what was in `config` is in `config_old` from then on. */
function keepSettings([, from, ...to]: readonly string[]): void {
  for (const file of to) {
    using db = new DatabaseSync(file)
    db.prepare('attach ? as old').run(from!)
    db.exec('insert into config_old select * from old.config')
  }
}

/** Syncs each file in the place of the one before, without anybody confirming anything. */
async function followUpgrades(
  files: readonly string[],
  put: (from: string, to: string) => void,
  capture: 'digests' | 'pages',
): Promise<void> {
  await using client = await leadingClient(leader, `upgraded-${++clients}`)
  let before: Rows = {rows: new Map(), relations: new Map()}
  let hasFollowed = false
  for (const upgraded of files) {
    put(upgraded, client.file)
    const result = await client.sync({capture})
    assert.deepEqual(
      {status: result.status, reason: result.reason},
      {status: 'success', reason: undefined},
      upgraded,
    )
    const now = {rows: snapshot(client.file), relations: await client.relations()}

    assertReport(result, before, now)
    const counts = new Map([...now.rows].map(([name, table]) => [name, table.rows.size]))
    assert.deepEqual(await client.differences(counts), [], upgraded)
    assert.deepEqual(compareFiles(upgraded, await client.restore()), [], upgraded)
    // What was the settings table until 0.8 goes on under its new name: its rows are not new ones.
    if (!before.rows.has('config_old') && now.rows.has('config_old')) {
      assert.equal(now.relations.get('config_old'), before.relations.get('config'))
      hasFollowed = true
    }
    before = now
  }
  assert.ok(hasFollowed)
}
