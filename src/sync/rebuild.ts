import type {SourceSchema} from '../core/layout.ts'
import type {Begin} from '../postgres/sql.ts'
import {knownRows, type KnownRow} from '../target/known-rows.ts'
import type {Sidecar} from './sidecar.ts'

const BATCH_ROWS = 5_000

/**
 * Fills an empty sidecar with what the target knows of the last cut: keys and digests, without their places. The next
 * capture finds the places by comparing every row.
 */
export async function rebuildSidecar(
  pool: Begin,
  sidecar: Sidecar,
  schemaName: string,
  schema: SourceSchema,
  cutId: string,
  signal: AbortSignal,
): Promise<void> {
  sidecar.reset()
  await pool.begin(
    async tx => {
      for (const layout of schema.tables) {
        let rows: KnownRow[] = []
        for await (const more of knownRows(tx, schemaName, layout, signal)) {
          rows.push(...more)
          if (rows.length < BATCH_ROWS) continue
          sidecar.recall(layout.source, rows)
          rows = []
        }
        // A table without rows is known too.
        sidecar.recall(layout.source, rows)
      }
    },
    {readOnly: true, setLocal: {statement_timeout: '0'}, signal},
  )
  sidecar.standAt(cutId)
}
