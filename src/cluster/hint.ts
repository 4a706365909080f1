import {randomUUID} from 'node:crypto'
import {fragment, type Connection, type Fragment, type Sql} from '../postgres/sql.ts'

// The cluster's advisory lock: whoever has it knows that no leader's session is alive. Only a hint, which makes takeover
// after a killed process quick; what keeps data right is the fence. Behind a pooler that gives every transaction another
// session the lock stays with a session that others use next: there it says nothing, and nobody asks for it.

/** The lock's key, as an expression. */
export function hintKey(clusterName: string): Fragment {
  return fragment`hashtextextended(${`owsync leader ${clusterName}`}, 0)`
}

/** @returns whether the caller's session has the lock now; at once. */
export async function takeHint(sql: Sql, clusterName: string): Promise<boolean> {
  const [row] = await sql<{held: boolean}>`select pg_try_advisory_lock(${hintKey(clusterName)}) as held`
  return row?.held ?? false
}

/** Kept by a node that does not lead, it would say that the leader is dead, whoever that will be. */
export async function dropHint(sql: Sql, clusterName: string): Promise<void> {
  await sql`select pg_advisory_unlock(${hintKey(clusterName)})`
}

/** Ends the sessions that have the lock although they do not lead: of a frozen process, or a pooler's. */
export async function endHintHolders(sql: Sql, clusterName: string): Promise<void> {
  await sql`
    select pg_terminate_backend(l.pid)
    from pg_catalog.pg_locks l
    join pg_catalog.pg_stat_activity a using (pid)
    join pg_catalog.pg_database d on d.oid = l.database
    where l.locktype = 'advisory' and l.granted and l.objsubid = 1 and l.pid <> pg_backend_pid()
      and d.datname = current_database() and pg_has_role(a.usesysid, 'usage')
      and ((l.classid::bigint << 32) | l.objid::bigint) = ${hintKey(clusterName)}`
}

/** So often a pooler is given the chance to show itself: one time it may look like a server by accident. */
const ROUNDS = 5

/**
 * Whether this connection is one session all the while: not behind a pooler that gives every transaction another one.
 *
 * @param another opens a second connection for a moment, when the first alone does not tell.
 */
export async function isSession(
  connection: Connection,
  another: () => Promise<Connection>,
): Promise<boolean> {
  const mark = randomUUID()
  const [first] = await connection<{pid: number}>`
    select pg_backend_pid() as pid, set_config('owsync.session', ${mark}, false)`
  // A pooler makes up the number that it tells; a server tells its own.
  if (first?.pid === connection.pid) return true
  await using other = await another()
  for (let round = 0; round < ROUNDS; round++) {
    // Between two transactions of ours our session would be anyone's: the pooler gives out the one used last, which is
    // ours unless a third one comes between.
    const isOurs = await other.begin(async tx => {
      const [theirs] = await tx<{mark: string | null}>`select current_setting('owsync.session', true) as mark`
      const [again] = await connection<{pid: number; mark: string | null}>`
        select pg_backend_pid() as pid, current_setting('owsync.session', true) as mark`
      return theirs?.mark !== mark && again?.pid === first?.pid && again?.mark === mark
    })
    if (!isOurs) return false
  }
  return true
}
