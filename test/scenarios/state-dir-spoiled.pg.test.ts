import assert from 'node:assert/strict'
import {execFileSync} from 'node:child_process'
import {
  copyFileSync,
  cpSync,
  existsSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  renameSync,
  rmSync,
  truncateSync,
  writeFileSync,
} from 'node:fs'
import {join} from 'node:path'
import {DatabaseSync} from 'node:sqlite'
import {afterAll, beforeAll, describe, test} from 'vitest'
import {assertMirror, type Mirror} from '../mirror.ts'
import {chanceOf, makeFile, mutate, seedOf, type Chance} from '../mutator.ts'
import {testSite, type RunOptions, type Site} from '../site.ts'

// STATE_DIR holds nothing that is not in the target too. Whatever happens to it, a run either heals it or says what is
// wrong with it, and the target is never worse for it.

let site: Site
let chance: Chance
let file: string
let before: Mirror

beforeAll(async () => {
  const seed = seedOf()
  process.stderr.write(`OWSYNC_SEED=${seed}\n`)
  chance = chanceOf(seed)
  site = await testSite()
  file = join(site.folder, 'webui.db')
  makeFile(file, chance, {rows: 80})
  const other = join(site.folder, 'other.db')
  makeFile(other, chance, {rows: 20})
  await succeeds('other', other)
  before = await succeeds('acme', file)
})

afterAll(() => site[Symbol.asyncDispose]())

describe('a sidecar that is', () => {
  for (const [what, spoil] of [
    [
      'gone',
      ours => {
        rmSync(ours)
      },
    ],
    [
      'empty',
      ours => {
        truncateSync(ours, 0)
      },
    ],
    [
      'cut in half',
      ours => {
        truncateSync(ours, Math.trunc(readFileSync(ours).length / 8192) * 4096)
      },
    ],
    [
      'garbage',
      ours => {
        writeFileSync(ours, 'garbage'.repeat(20_000))
      },
    ],
    [
      'garbage behind its first pages',
      ours => {
        overwrite(ours, 4)
      },
    ],
    [
      'garbage behind its first page',
      ours => {
        overwrite(ours, 1)
      },
    ],
    [
      'another client’s',
      (ours, others) => {
        copyFileSync(others, ours)
      },
    ],
    [
      'without some of its tables',
      ours => {
        dropTables(ours)
      },
    ],
  ] as const satisfies readonly [string, (ours: string, others: string) => void][]) {
    test(`${what} is built anew`, async () => {
      mutate(file, chance)
      const [ours, others] = await sidecars()
      spoil(ours, others)
      before = await succeeds('acme', file, before)
    })
  }

  test('an older copy is built anew', async () => {
    const copy = join(site.folder, 'older')
    cpSync(join(site.stateDir, 'sidecars'), copy, {recursive: true})
    mutate(file, chance)
    deleteSome(file)
    before = await succeeds('acme', file, before)
    mutate(file, chance)
    rmSync(join(site.stateDir, 'sidecars'), {recursive: true})
    renameSync(copy, join(site.stateDir, 'sidecars'))
    before = await succeeds('acme', file, before)
  })
})

test('what a killed run has spooled is removed by the next', async () => {
  insertMany(file, 'killed')
  const options = {preload: 'crash-points.ts', env: {CRASH_AT: 'intend:1:before'}}
  assert.equal((await site.sync('acme', options)).code, null)
  assert.notDeepEqual(readdirSync(join(site.stateDir, 'spool')), [])
  before = await succeeds('acme', file, before)
  assert.deepEqual(readdirSync(join(site.stateDir, 'spool')), [])
})

test('a dry run leaves nothing behind', async () => {
  mutate(file, chance)
  const listed = () => readdirSync(site.stateDir, {recursive: true, encoding: 'utf8'}).sort()
  const seen = listed()
  for (const flags of [['--dry-run'], ['--dry-run', '--full']]) {
    assert.equal((await site.sync('acme', {flags})).code, 0)
    assert.deepEqual(listed(), seen)
  }
})

describe('is told, nothing is applied, and the run after goes on, when', () => {
  for (const [what, part] of [
    ['the spool folder', 'spool'],
    ['the sidecar folder', 'sidecars'],
    ['the lock folder', 'locks'],
  ] as const) {
    test(`${what} is not a folder`, async () => {
      mutate(file, chance)
      const generation = await generationOf('acme')
      const folder = join(site.stateDir, part)
      renameSync(folder, `${folder}.aside`)
      writeFileSync(folder, '')
      await isTold()
      assert.equal(await generationOf('acme'), generation)
      rmSync(folder)
      renameSync(`${folder}.aside`, folder)
      before = await succeeds('acme', file, before)
    })
  }

  for (const kB of [0, 60, 400]) {
    test(`no file may grow beyond ${kB} kB`, async () => {
      insertMany(file, `limited-${kB}`)
      const run = await site.sync('acme', {prefix: ['prlimit', `--fsize=${kB * 1024}`]})
      toldAs(run)
      before = await succeeds('acme', file, before)
    })
  }

  test('the disk is full', async ({skip}) => {
    mkdirSync(site.stateDir, {recursive: true})
    const unmount = mountSmall(join(site.stateDir, 'spool'), '300k')
    if (unmount === undefined) skip('mounting a small disk needs root')
    try {
      insertMany(file, 'full')
      const run = await isTold()
      assert.match(run.error!.message, /no space left/)
    } finally {
      unmount?.()
    }
    before = await succeeds('acme', file, before)
  })

  test('the disk is full at a first load', async ({skip}) => {
    const stateDir = join(site.folder, 'small')
    const unmount = mountSmall(stateDir, '100k')
    if (unmount === undefined) skip('mounting a small disk needs root')
    const fresh = join(site.folder, 'fresh.db')
    makeFile(fresh, chance, {rows: 500})
    try {
      toldAs(await site.sync('fresh', {sqlite: fresh, env: {STATE_DIR: stateDir}}))
      const [row] = await site.db<{n: bigint}>`
        select generation as n from sync_metadata.client_deployments where client_name = 'fresh'`
      assert.equal(row!.n, 0n)
    } finally {
      unmount?.()
    }
    await succeeds('fresh', fresh)
  })
})

async function succeeds(client: string, source: string, since?: Mirror): Promise<Mirror> {
  const run = await site.sync(client, {sqlite: source})
  assert.equal(run.code, 0, run.out + run.err)
  return assertMirror(site.db, client, source, since)
}

async function isTold(options: RunOptions = {}) {
  return toldAs(await site.sync('acme', options))
}

function toldAs(run: Awaited<ReturnType<Site['sync']>>) {
  assert.equal(run.code, 1, run.out + run.err)
  assert.equal(run.error?.code, 'SYNC_STATE_DIR', run.out)
  assert.ok(run.error.message.startsWith(site.folder), run.error.message)
  assert.match(run.error.next, /STATE_DIR/)
  return run
}

async function generationOf(client: string): Promise<bigint> {
  const [row] = await site.db<{generation: bigint}>`
    select generation from sync_metadata.client_deployments where client_name = ${client}`
  return row!.generation
}

async function sidecars(): Promise<[ours: string, others: string]> {
  const rows = await site.db<{id: string}>`
    select deployment_id as id from sync_metadata.client_deployments order by client_name = 'acme' desc limit 2`
  const [ours, others] = rows.map(({id}) => join(site.stateDir, 'sidecars', `${id}.db`))
  assert.ok(existsSync(ours!) && existsSync(others!))
  return [ours!, others!]
}

function overwrite(sidecar: string, fromPage: number): void {
  const bytes = readFileSync(sidecar)
  bytes.fill(0x5a, fromPage * 4096)
  writeFileSync(sidecar, bytes)
}

function dropTables(sidecar: string): void {
  using db = new DatabaseSync(sidecar)
  db.exec('drop table s1; drop table s2')
}

function deleteSome(source: string): void {
  using db = new DatabaseSync(source)
  db.exec('delete from chat where rowid % 7 = 0')
}

/** More than goes as parameters of one statement, and more than fits a small disk. */
function insertMany(source: string, name: string): void {
  using db = new DatabaseSync(source)
  db.prepare(
    `with recursive n (i) as (select 1 union all select i + 1 from n where i < 1200)
     insert into message (id, content) select ? || '-' || i, hex(randomblob(200)) from n`,
  ).run(name)
}

/** @returns what unmounts it again; `undefined` when this user may not mount. */
function mountSmall(folder: string, size: string): (() => void) | undefined {
  mkdirSync(folder, {recursive: true})
  try {
    execFileSync('mount', ['-t', 'tmpfs', '-o', `size=${size}`, 'tmpfs', folder], {stdio: 'ignore'})
  } catch {
    return undefined
  }
  return () => {
    execFileSync('umount', ['-l', folder])
  }
}
