import type {SourceSchema} from '../core/layout.ts'
import {raw, type Sql} from '../postgres/sql.ts'
import {quote} from '../target/row-sql.ts'
import type {Sidecar} from './sidecar.ts'

const PAGE_ROWS = 20_000

/**
 * Fills an empty sidecar with what the target knows of the last cut: keys and digests, without their places. The next
 * capture finds the places by comparing every row.
 */
export async function rebuildSidecar(
  sql: Sql,
  sidecar: Sidecar,
  schemaName: string,
  schema: SourceSchema,
  cutId: string,
  signal: AbortSignal,
): Promise<void> {
  sidecar.reset()
  for (const {source, target} of schema.tables) {
    const table = raw(`${quote(schemaName)}.${quote(target)}`)
    for (let after: string | null = null; ;) {
      signal.throwIfAborted()
      const rows: {key: string; digest: Buffer}[] = await sql<{key: string; digest: Buffer}>`
        select _sync_key as key, coalesce(_sync_hash, '') as digest from ${table}
        where _sync_deleted_at is null and (${after}::text is null or _sync_key > ${after})
        order by _sync_key limit ${PAGE_ROWS}`
      sidecar.recall(source, rows)
      if (rows.length < PAGE_ROWS) break
      after = rows.at(-1)?.key ?? null
    }
  }
  sidecar.standAt(cutId)
}
