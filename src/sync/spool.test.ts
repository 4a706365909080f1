import assert from 'node:assert/strict'
import {existsSync, readdirSync, writeFileSync} from 'node:fs'
import {mkdtemp, rm} from 'node:fs/promises'
import {tmpdir} from 'node:os'
import {join} from 'node:path'
import {afterAll, beforeAll, describe, test} from 'vitest'
import type {TableLayout} from '../core/layout.ts'
import {COPY_HEADER, COPY_TRAILER, endOfTuple, type TargetRow} from '../target/copy-format.ts'
import {clearSpools, Spool} from './spool.ts'

const deploymentId = 'd8d4'
let stateDir: string
let folder: string
beforeAll(async () => {
  stateDir = await mkdtemp(join(tmpdir(), 'owsync-spool-'))
  folder = join(stateDir, 'spool')
  clearSpools({stateDir, deploymentId})
})
afterAll(() => rm(stateDir, {recursive: true}))

const column = (source: string, type: 'text' | 'bigint') =>
  ({source, target: source, type, declared: '', affinity: 'blob', seen: 0, generated: false}) as const
const layout: TableLayout = {
  source: 'chat',
  target: 'chat',
  withoutRowid: false,
  keyedBy: 'primary key',
  key: ['id'],
  columns: [column('id', 'text'), column('n', 'bigint')],
  indexes: [],
}

/** Keys of several bytes a character, and values of which some are absent. */
const rows = (count: number, bytes = 10): TargetRow[] =>
  Array.from({length: count}, (_, i) => ({
    key: `ключ-${i + 1}`,
    digest: Buffer.alloc(16, i),
    typed: [i % 3 === 0 ? null : 'x'.repeat(bytes), BigInt(i)],
    raw: i % 2 === 0 ? null : '{"n":"i1;"}',
  }))

let spools = 0
function spoolOf(rows: readonly TargetRow[], limit: {rows: number; bytes: number}): Spool {
  const spool = new Spool(layout, {stateDir, deploymentId}, ++spools, limit)
  for (const row of rows) spool.add(row)
  return spool
}

async function streamed(spool: Spool, ...skip: readonly number[]): Promise<Buffer> {
  const pieces: Uint8Array[] = []
  for await (const piece of spool.stream(new Set(skip))) pieces.push(Buffer.from(piece))
  return Buffer.concat(pieces)
}

/** The tuples between header and trailer. */
function tuplesOf(stream: Buffer): string[] {
  assert.deepEqual(stream.subarray(0, COPY_HEADER.length), COPY_HEADER)
  assert.deepEqual(stream.subarray(-2), COPY_TRAILER)
  const tuples: string[] = []
  for (let at = COPY_HEADER.length; at < stream.length - 2;) {
    const end = endOfTuple(stream, at)
    assert.ok(end !== undefined)
    tuples.push(stream.toString('hex', at, end))
    at = end
  }
  return tuples
}

const roomy = {rows: 1_000, bytes: 1024 * 1024}

describe('few rows', () => {
  test('stay in memory, and leave no file', () => {
    using spool = spoolOf(rows(10), {rows: 10, bytes: 10_000})
    assert.deepEqual(spool.small, rows(10))
    assert.equal(spool.count, 10)
    assert.equal(existsSync(join(folder, `${deploymentId}-${spools}.rows`)), false)
  })

  test('are streamed as many are', async () => {
    using one = spoolOf(rows(10), roomy)
    using other = spoolOf(rows(10), {rows: 3, bytes: 10_000})
    assert.ok(one.small !== undefined && other.small === undefined)
    assert.deepEqual(await streamed(one), await streamed(other))
  })
})

for (const [what, limit] of [
  ['rows', {rows: 9, bytes: 1024 * 1024}],
  ['bytes', {rows: 1_000, bytes: 300}],
] as const)
  test(`more ${what} than the limit go to a file, which goes with the spool`, async () => {
    let stream: Buffer
    {
      using spool = spoolOf(rows(10), limit)
      assert.equal(spool.small, undefined)
      assert.ok(existsSync(join(folder, `${deploymentId}-${spools}.rows`)))
      stream = await streamed(spool)
      assert.deepEqual(await streamed(spool), stream, 'again, for another try')
      assert.equal(spool.bytes, stream.length - COPY_HEADER.length - COPY_TRAILER.length)
    }
    assert.equal(tuplesOf(stream).length, 10)
    assert.deepEqual(readdirSync(folder), [])
  })

test('more rows than fit into one piece come whole and in order', async () => {
  using inFile = spoolOf(rows(3_000, 1_000), {rows: 5, bytes: 100})
  using inMemory = spoolOf(rows(3_000, 1_000), {rows: 5_000, bytes: 64 * 1024 * 1024})
  assert.ok(inMemory.small !== undefined && inFile.small === undefined)
  const stream = await streamed(inFile)
  assert.equal(inFile.count, 3_000)
  assert.ok(stream.length > 1024 * 1024)
  assert.ok(stream.equals(await streamed(inMemory)))
  const tuples = tuplesOf(stream)
  assert.equal(tuples.length, 3_000)
  // Tuples that lie across two pieces count, too.
  assert.deepEqual(tuplesOf(await streamed(inFile, 1, 1_500)), tuples.toSpliced(1_499, 1).slice(1))
  assert.equal(await inFile.keyAt(2_999), 'ключ-2999')
})

for (const [where, limit] of [
  ['memory', roomy],
  ['a file', {rows: 2, bytes: 100}],
] as const)
  describe(`rows in ${where}, counted from 1 as Postgres counts them,`, () => {
    test('can be left out of the stream', async () => {
      using spool = spoolOf(rows(5), limit)
      const all = tuplesOf(await streamed(spool))
      assert.deepEqual(tuplesOf(await streamed(spool, 1, 4)), [all[1], all[2], all[4]])
      assert.deepEqual(tuplesOf(await streamed(spool, 1, 2, 3, 4, 5)), [])
      assert.deepEqual(tuplesOf(await streamed(spool)), all)
    })

    test('are known by their keys', async () => {
      using spool = spoolOf(rows(5), limit)
      assert.deepEqual(await Promise.all([1, 2, 3, 5].map(line => spool.keyAt(line))), [
        'ключ-1',
        'ключ-2',
        'ключ-3',
        'ключ-5',
      ])
      assert.equal(await spool.keyAt(6), undefined)
    })
  })

test('a spool without rows streams none', async () => {
  using spool = spoolOf([], roomy)
  assert.deepEqual(tuplesOf(await streamed(spool)), [])
  assert.deepEqual(spool.small, [])
})

test('what a killed run has left is removed, and nothing of another deployment', () => {
  for (const name of [`${deploymentId}-7.rows`, 'other-7.rows']) writeFileSync(join(folder, name), 'rows')
  clearSpools({stateDir, deploymentId})
  assert.deepEqual(readdirSync(folder), ['other-7.rows'])
})
