import assert from 'node:assert/strict'
import type {SyncResult} from '../src/sync/sync.ts'
import {changedRows, type Snapshot} from './changed-rows.ts'

/** Both sides at one instant. */
export type Rows = {
  readonly rows: Snapshot
  /** The relation that holds each source table: it stays the same one when it is renamed. */
  readonly relations: ReadonlyMap<string, number>
}

/** Holds that a result tells exactly how many rows have changed. */
export function assertReport({rows}: SyncResult, before: Rows, now: Rows): void {
  const expected = expectedChanges(before, now)
  assert.equal(rows.tombstoned, expected.tombstoned)
  assert.ok(
    rows.upserted >= expected.upserted && rows.upserted <= expected.mostUpserted,
    `upserted ${rows.upserted} instead of ${expected.upserted} to ${expected.mostUpserted}`,
  )
}

/**
 * How many rows a cut must have changed. A table that the app renamed may be followed under its new name or be taken
 * for a new one: the relation that holds it says which. Everything else is compared by name.
 */
function expectedChanges(before: Rows, now: Rows) {
  const expected = {upserted: 0, tombstoned: 0, mostUpserted: 0}
  const heldBy = new Map([...before.relations].map(([name, relation]) => [relation, name]))
  const followed = new Set<string | undefined>()
  for (const [name, table] of now.rows) {
    const as = heldBy.get(now.relations.get(name)!)
    followed.add(as)
    const was = as === undefined ? undefined : before.rows.get(as)
    const changes = changedRows(new Map(was && [[name, was]]), new Map([[name, table]])).get(name)
    const upserted = changes?.upserted.length ?? 0
    expected.upserted += upserted
    expected.tombstoned += changes?.tombstoned.length ?? 0
    // `~i7;` names the row at place 7 before, and the row with the key 7 after, a table gets an integer key. Whether
    // that row has changed is a matter of opinion.
    expected.mostUpserted += changes?.rekeyed === true ? table.rows.size : upserted
  }
  for (const [name, table] of before.rows) if (!followed.has(name)) expected.tombstoned += table.rows.size
  return expected
}
