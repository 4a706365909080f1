import assert from 'node:assert/strict'
import {setTimeout as sleep} from 'node:timers/promises'
import type {Sql} from '../src/postgres/sql.ts'

/** Resolves once somebody in this database waits for a lock. */
export async function waitsForLock(sql: Sql): Promise<void> {
  for (let i = 0; i < 400; i++) {
    const waiting = await sql`select from pg_stat_activity
      where datname = current_database() and wait_event_type = 'Lock'`
    if (waiting.length > 0) return
    await sleep(25)
  }
  assert.fail('nobody waits for a lock')
}
