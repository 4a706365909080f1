import assert from 'node:assert/strict'
import {join} from 'node:path'
import fc from 'fast-check'
import {afterAll, beforeAll, test} from 'vitest'
import {json, raw} from '../src/postgres/sql.ts'
import {restore} from '../src/restore/restore.ts'
import {applyChange, buildFile, openForChange} from './apply-change.ts'
import {change, filePlan} from './arbitrary.ts'
import {compareFiles} from './compare.ts'
import {syncedHost, type SyncedHost} from './synced-host.ts'

let m: SyncedHost

beforeAll(async () => {
  m = await syncedHost()
})

afterAll(async () => {
  await m[Symbol.asyncDispose]()
})

test(
  'whatever is in a file, and whatever somebody does to its target: a repair makes them equal',
  {timeout: 300_000},
  async ({annotate}) => {
    const seed = Number(process.env['OWSYNC_SEED']) || Math.trunc(Math.random() * 2 ** 31)
    await annotate(`OWSYNC_SEED=${seed}`)
    let cases = 0
    const law = fc.asyncProperty(
      filePlan,
      fc.array(change, {maxLength: 4}),
      fc.array(fc.tuple(fc.nat(), fc.nat(), fc.nat(99)), {minLength: 1, maxLength: 6}),
      async (plan, changes, deeds) => {
        const name = `fuzzed_${++cases}`
        const source = join(m.folder, `${name}.db`)
        {
          using db = openForChange(source)
          buildFile(db, plan)
        }
        await m.sync(name, source)
        {
          using db = openForChange(source)
          for (const each of changes) applyChange(db, each)
        }
        // What only the app has done is no difference.
        assert.deepEqual((await m.verify(name)).differences, [])
        await m.sync(name)
        for (const deed of deeds) await tamper(name, deed)
        const {differences, repaired} = await m.verify(name, {repair: true})
        assert.equal(repaired, differences.length)
        await holds(name, source, 'repaired')
      },
    )
    await fc.assert(law, {seed, numRuns: 25})
  },
)

/** Does something to some rows of a client table, as the superuser could. */
async function tamper(
  schema: string,
  [which, what, percent]: readonly [number, number, number],
): Promise<void> {
  const columns = await m.admin<{table: string; column: string}>`
    select c.relname as table, a.attname as column from pg_class c join pg_attribute a on a.attrelid = c.oid
    where c.relnamespace = ${schema}::regnamespace and c.relkind = 'r' and a.attnum > 0 and not a.attisdropped
      and not starts_with(a.attname, '_sync_') and obj_description(c.oid, 'pg_class') is distinct from 'dropped from the source'
    order by 1, 2`
  const chosen = columns[which % Math.max(1, columns.length)]
  if (chosen === undefined) return
  // Past the triggers: an edit that leaves a mark is another matter.
  const {sql, text} = {sql: m.admin.tamper, text: (name: string) => m.admin(name)}
  const table = m.admin(schema, chosen.table)
  const some = raw(`('x' || left(md5(_sync_key), 2))::bit(8)::int * 100 < ${percent} * 256`)
  switch (what % 8) {
    case 0:
      await sql`delete from ${table} where ${some}`
      break
    case 1:
      await sql`update ${table} set ${text(chosen.column)} = null where ${some}`
      break
    case 2:
      await sql`update ${table} set _sync_raw = null where ${some}`
      break
    case 3:
      await sql`update ${table} set _sync_hash = sha256('x') where ${some}`
      break
    case 4:
      await sql`update ${table} set _sync_deleted_at = now() where ${some}`
      break
    case 5:
      await sql`update ${table} set _sync_raw = ${json({[chosen.column]: 'i7;'})} where ${some}`
      break
    case 6:
      await sql`update ${table} set _sync_key = 'moved ' || _sync_key where ${some}`
      break
    default:
      await sql`update ${table} set _sync_deleted_at = null where ${some}`
  }
}

async function holds(client: string, source: string, suffix: string): Promise<void> {
  for (const quick of [false, true]) {
    const {differences, pending, moving, accepted} = await m.verify(client, {quick})
    assert.deepEqual(
      {differences, pending, moving, accepted},
      {differences: [], pending: 0, moving: 0, accepted: 0},
    )
  }
  const to = join(m.folder, `${client}-${suffix}.db`)
  await restore(
    {pool: m.host, clientName: client, schemaName: client, to, force: false},
    new AbortController().signal,
  )
  assert.deepEqual(compareFiles(source, to), [])
}
