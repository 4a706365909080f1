import {randomBytes} from 'node:crypto'
import {connect} from '../src/postgres/connect.ts'
import {grantAccess} from '../src/postgres/admin.ts'
import {raw, type Pool} from '../src/postgres/sql.ts'
import {withChanges} from '../src/net/endpoint.ts'
import type {TestDatabase} from './database.ts'

/** Somebody with a login of their own who may edit a client's tables, as `db grant-access --mode edit` lets them. */
export type Editor = Pool & {readonly role: string}

/** Makes an editor of a client; its role goes with the scope. */
export async function editorOf(
  admin: TestDatabase,
  client: string,
  mode: 'read' | 'edit' = 'edit',
): Promise<Editor> {
  const role = `editor_${randomBytes(6).toString('hex')}`
  const password = randomBytes(12).toString('hex')
  await admin`${raw(`create role ${role} login password '${password}'`)}`
  await grantAccess(admin, {client, role, mode})
  const pool = connect(withChanges(admin.endpoint, {user: role, password}), {
    max: 8,
    applicationName: 'owsync-test-editor',
  })
  return Object.assign(pool, {
    role,
    async [Symbol.asyncDispose]() {
      await pool.end()
      await admin`${raw(`drop owned by ${role} cascade; drop role ${role}`)}`
    },
  })
}
