import {json, type Sql} from './sql.ts'

/** Who changed what, for `audit_log`. No row contents, no keys, no secrets. */
export type AuditEntry = {
  /** Who it was, as far as the program knows: `cli:root`. The database adds the role, which nobody can choose. */
  readonly actor: string
  /** `client.paused`, `cluster.promoted`: what it was done to, and what was done. */
  readonly action: string
  readonly client?: string
  readonly details?: object
}

/** Records what a person or a program asked for; part of the transaction that does it. */
export async function recordAudit(
  sql: Sql,
  {actor, action, client, details = {}}: AuditEntry,
): Promise<void> {
  await sql`
    insert into sync_metadata.audit_log (actor, action, client_name, details)
    values (${actor}, ${action}, ${client}, ${json(details)})`
}
