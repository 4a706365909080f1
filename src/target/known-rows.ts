import type {TableLayout} from '../core/layout.ts'
import {raw, type Tx} from '../postgres/sql.ts'
import {quote} from './row-sql.ts'
import {TupleReader} from './tuples.ts'

/** A live row of the target: its key, and the digest of the source's row that was applied last. */
export type KnownRow = {readonly key: string; readonly digest: Uint8Array}

/**
 * Streams what one client table knows of the source's rows, in the order of their keys. Of a row that somebody else has
 * edited, or that may differ, its hash says whether the source has it, and not whether it is deleted here.
 */
export async function* knownRows(
  tx: Tx,
  schema: string,
  {target}: TableLayout,
  signal: AbortSignal,
): AsyncGenerator<KnownRow[]> {
  const rows = raw(`copy (select _sync_key, coalesce(_sync_hash, '') from ${quote(schema)}.${quote(target)}
    where case when _sync_edited_by is null and _sync_diverged is null then _sync_deleted_at is null
      else _sync_hash is not null end order by _sync_key) to stdout (format binary)`)
  const tuples = new TupleReader(2)
  for await (const chunk of tx.copyTo(rows, signal))
    yield tuples.read(chunk, (bytes, starts, ends) => ({
      key: bytes.toString('utf8', starts[0], ends[0]),
      digest: bytes.subarray(starts[1], ends[1]),
    }))
}
