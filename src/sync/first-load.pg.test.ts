import assert from 'node:assert/strict'
import {randomBytes} from 'node:crypto'
import {DatabaseSync} from 'node:sqlite'
import {afterAll, afterEach, beforeAll, beforeEach, test} from 'vitest'
import {connect} from '../postgres/connect.ts'
import {
  interrupted,
  InterruptedError,
  leadingClient,
  leadingHost,
  type LeadingHost,
} from '../../test/leading-host.ts'
import {assertMirror} from '../../test/mirror.ts'
import {chunk} from './first-load.ts'

let leader: LeadingHost
const {bytes} = chunk

beforeAll(async () => {
  leader = await leadingHost()
})
afterAll(() => leader[Symbol.asyncDispose]())
beforeEach(() => {
  chunk.bytes = 1024 * 1024
})
afterEach(() => {
  chunk.bytes = bytes
})

test('a connection that has copied its share of a chunk is not idle in its transaction until the other has', async () => {
  await using client = await leadingClient(leader, 'acme')
  fill(client.file)
  const {admin, host} = leader
  await admin`alter role ${admin(host.role)} set idle_in_transaction_session_timeout = '1500ms'`
  await using pool = connect(host.endpoint, {max: 4, applicationName: 'owsync-test'})
  let pauses = 0
  const result = await client.sync({
    pool,
    // A source from which it may read only little at a time.
    onProgress(table: string) {
      if (table !== 'event') return
      pauses++
      Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, 300)
    },
  })
  assert.equal(result.status, 'success')
  assert.ok(pauses >= 16)
  await assertMirror(admin, 'acme', client.file)
})

test('whichever of its connections it does not get, it fails and waits for nobody, and the next one goes on', async () => {
  await using client = await leadingClient(leader, 'globex')
  fill(client.file)
  let failures = 0
  for (let at = 1; ; at++) {
    const pool = interrupted(leader.host, {at, when: 'without a connection'})
    try {
      assert.equal((await client.sync({pool})).status, 'success')
      break
    } catch (error) {
      assert.ok(error instanceof InterruptedError, String(error))
      failures++
    }
  }
  // At least both of a chunk's.
  assert.ok(failures > 2, `${failures} failures`)
  await assertMirror(leader.admin, 'globex', client.file)
})

/** Many short rows, and fewer long ones: more than a chunk of either. */
function fill(file: string): void {
  using db = new DatabaseSync(file)
  db.exec(`create table event (id integer primary key, text text);
    create table picture (id integer primary key, bytes blob);
    begin`)
  const event = db.prepare('insert into event (text) values (?)')
  for (let i = 0; i < 8_000; i++) event.run(randomBytes(100).toString('hex'))
  const picture = db.prepare('insert into picture (bytes) values (?)')
  for (let i = 0; i < 3_000; i++) picture.run(randomBytes(1_000))
  db.exec('commit')
}
