import assert from 'node:assert/strict'
import {DatabaseSync} from 'node:sqlite'
import {afterAll, beforeAll, test} from 'vitest'
import {connect} from '../../src/postgres/connect.ts'
import {leadingClient, leadingHost, type LeadingHost} from '../leading-host.ts'
import {proxyTo} from '../proxy.ts'

// A sync waits for Postgres as often as its cut has tables, never as often as it has rows: a project may be an ocean away.

let leader: LeadingHost
beforeAll(async () => {
  leader = await leadingHost()
})
afterAll(() => leader[Symbol.asyncDispose]())

const rows = 2_500
const tables = ['a', 'b', 'c', 'd', 'e']

/** BEGIN, the generation with the fence, COMMIT, and one to spare; then what each table may take. */
const allowed = (tables: number, perTable: number) => 4 + tables * perTable

for (const [what, changed, perTable] of [
  ['one row', 1, 2],
  ['hundreds of rows', 400, 2],
  // More than BATCH_SIZE: they are staged.
  ['thousands of rows', 2_000, 4],
] as const)
  test(`${what} changed and deleted in each of 1, 3 and 5 tables: the tables count, the rows do not`, async () => {
    await using client = await leadingClient(leader, `trips-${changed}`)
    await using proxy = await proxyTo(leader.host.endpoint)
    await using pool = connect(proxy.endpoint, {max: 1, applicationName: 'owsync-test'})
    using app = new DatabaseSync(client.file)
    for (const table of tables)
      app.exec(`create table ${table} (id text primary key, n integer, body text);
          with recursive numbers (n) as (select 1 union all select n + 1 from numbers where n < ${rows})
          insert into ${table} select 'k' || n, n, hex(randomblob(20)) from numbers`)
    using session = client.session()
    await session.sync({pool})
    for (const count of [1, 3, 5]) {
      // The second time, when nothing has to be asked for that a session remembers.
      for (const round of [1, 2]) {
        for (const table of tables.slice(0, count)) {
          app.exec(
            `update ${table} set n = n + 1 where id in (select id from ${table} order by id limit ${changed})`,
          )
          app.exec(`delete from ${table} where id = (select max(id) from ${table})`)
        }
        const before = proxy.turns
        const result = await session.sync({pool, accept: true})
        assert.equal(result.rows.upserted, count * changed)
        assert.equal(result.rows.tombstoned, count)
        const turns = proxy.turns - before
        if (round === 2)
          assert.ok(turns <= allowed(count, perTable), `${turns} round trips for ${count} tables`)
      }
    }
  })
