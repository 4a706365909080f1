import {DigestSums} from '../core/digest-sums.ts'
import {LONGEST_KEY_BYTES} from '../core/canonical.ts'
import type {ColumnLayout, TableLayout} from '../core/layout.ts'
import {raw, type Sql, type Tx} from '../postgres/sql.ts'
import {digestSql, KEPT_APART, quote, withPlainText} from './row-sql.ts'
import {TupleReader} from './tuples.ts'
import {canonicalSql, literal} from './type-map.ts'

/** Whether a row's digest is computed from the values that stand in it, or its stored one is trusted unless marked. */
export type DigestSource = 'values' | 'stored'

/** One row of the target, without its values. */
export type StoredDigest = {
  readonly key: string
  readonly state: 'live' | 'deleted'
  readonly values: Buffer
  readonly hash: Buffer | undefined
  /** A conflict's decision accepted that it differs from the source. */
  readonly isAccepted: boolean
}

/** What one client table holds, summed up. */
export type StoredSums = {
  readonly sums: DigestSums
  /** Buckets with rows whose stored hash, or key, is not that of their values. */
  readonly odd: ReadonlySet<number>
  readonly accepted: number
}

/** Rows a bucket: few enough that a difference costs little, many enough that the sums do. */
const BUCKET_ROWS = 1_000
const MOST_BUCKETS = 4_096

/** @returns for each client table how many buckets its digests are summed in, by Postgres' own estimate of its rows. */
export async function chooseBuckets(sql: Sql, schema: string): Promise<ReadonlyMap<string, number>> {
  const rows = await sql<{table: string; rows: number}>`
    select c.relname as table, c.reltuples::float8 as rows from pg_catalog.pg_class c
    join pg_catalog.pg_namespace n on n.oid = c.relnamespace
    where n.nspname = ${schema} and c.relkind = 'r'`
  return new Map(
    rows.map(({table, rows}) => {
      // Never counted yet: it may be any size.
      const wanted = rows < 0 ? 256 : Math.min(MOST_BUCKETS, rows / BUCKET_ROWS)
      return [table, 2 ** Math.ceil(Math.log2(Math.max(1, wanted)))]
    }),
  )
}

/** Sums the digests of a table's rows where they are: what crosses the network is one line a bucket. */
export async function sumDigests(
  sql: Sql,
  schema: string,
  layout: TableLayout,
  from: DigestSource,
  buckets: number,
): Promise<StoredSums> {
  const sums = new DigestSums(buckets)
  const odd = new Set<number>()
  let accepted = 0
  const rows = await sql<{bucket: number; rows: bigint; sum: string; odd: bigint; accepted: bigint}>`
    select (place & ${raw(String(sums.mask))})::int as bucket, count(*) filter (where counts) as rows,
      coalesce(sum(place) filter (where counts), 0)::text as sum,
      count(*) filter (where not accepted and hash is distinct from digest or not has_key) as odd,
      count(*) filter (where accepted) as accepted
    from ${raw(places(schema, layout, from))} group by 1`
  for (const row of rows) {
    sums.addSum(row.bucket, Number(row.rows), BigInt(row.sum))
    if (row.odd > 0n) odd.add(row.bucket)
    accepted += Number(row.accepted)
  }
  return {sums, odd, accepted}
}

/** Streams the digests of the rows in some buckets. */
export async function* digestsInBuckets(
  tx: Tx,
  schema: string,
  layout: TableLayout,
  from: DigestSource,
  {mask, buckets}: {readonly mask: number; readonly buckets: readonly number[]},
  signal: AbortSignal,
): AsyncGenerator<StoredDigest[]> {
  const wanted = buckets.length > mask ? 'true' : `(place & ${mask}) in (${buckets.join(', ')})`
  const tuples = new TupleReader(4)
  const copy = raw(
    `copy (select key, digest, hash, accepted from ${places(schema, layout, from)} where counts and ${wanted}) to stdout (format binary)`,
  )
  for await (const chunk of tx.copyTo(copy, signal))
    yield tuples.read(chunk, (bytes, starts, ends): StoredDigest => {
      const field = (i: number) =>
        (starts[i] as number) < 0 ? undefined : bytes.subarray(starts[i], ends[i])
      return {
        key: bytes.toString('utf8', starts[0], ends[0]),
        state: 'live',
        values: field(1) ?? Buffer.alloc(0),
        hash: field(2),
        isAccepted: field(3)?.[0] === 1,
      }
    })
}

/** @returns the digests of those of the rows that are there, tombstones among them. */
export async function digestsOf(
  sql: Sql,
  schema: string,
  layout: TableLayout,
  from: DigestSource,
  keys: readonly string[],
): Promise<StoredDigest[]> {
  const rows = await sql<{
    key: string
    deleted: boolean
    digest: Buffer
    hash: Buffer | null
    accepted: boolean
  }>`
    select _sync_key as key, _sync_deleted_at is not null as deleted, ${raw(digestExpression(layout, from))} as digest,
      _sync_hash as hash, _sync_diverged is not null as accepted
    from ${raw(nameOf(schema, layout))} where _sync_key = any(${keys}::text[])`
  return rows.map(row => ({
    key: row.key,
    state: row.deleted ? 'deleted' : 'live',
    values: row.digest,
    hash: row.hash ?? undefined,
    isAccepted: row.accepted,
  }))
}

/**
 * @returns for each of the rows a short hash of each column's canonical value, `null` for NULL, in the order of the
 * layout's columns: enough to say which columns differ.
 */
export async function columnHashes(
  sql: Sql,
  schema: string,
  layout: TableLayout,
  keys: readonly string[],
): Promise<Map<string, readonly (string | null)[]>> {
  const columns = layout.columns.map(column => {
    const value = `coalesce(_sync_raw ->> ${literal(column.target)}, ${canonicalSql(quote(column.target), column)})`
    return `encode(substring(sha256(convert_to(${value}, 'UTF8')) from 1 for 8), 'hex')`
  })
  const rows = await sql<{key: string; hashes: (string | null)[]}>`
    select _sync_key as key, array[${raw(columns.join(', '))}]::text[] as hashes
    from ${raw(nameOf(schema, layout))} where _sync_key = any(${keys}::text[])`
  return new Map(rows.map(row => [row.key, row.hashes]))
}

/**
 * Rows with their digests, each computed once (the planner must not copy the expression into every place that uses it). Of a row whose difference was accepted it is the source's that counts, if the source has one.
 */
function places(schema: string, table: TableLayout, from: DigestSource): string {
  const where = '_sync_deleted_at is null or _sync_diverged is not null'
  // Trusting the stored digests means not to look at long values at all.
  const trusted = {from: `${nameOf(schema, table)} where ${where}`, layout: table}
  const {from: rows, layout} = from === 'stored' ? trusted : withPlainText(schema, table, where)
  return `(
    select key, digest, hash, accepted, has_key, not accepted or hash is not null as counts,
      ${placeSql('case when accepted then hash else digest end')} as place
    from (
      select _sync_key as key, ${digestExpression(layout, from)} as digest, _sync_hash as hash,
        _sync_diverged is not null as accepted, ${hasKeySql(layout)} as has_key
      from ${rows}
      ${KEPT_APART}
    ) as digests
    ${KEPT_APART}
  ) as places`
}

/** Whether `_sync_key` is the key of the row's values: `keyOf` in SQL. A table keyed by rowid has no other key. */
function hasKeySql(layout: TableLayout): string {
  if (layout.keyedBy === 'rowid') return 'true'
  const columns = layout.key.map(
    name => layout.columns.find(column => column.source === name) as ColumnLayout,
  )
  const values = columns.map(
    column =>
      `coalesce(_sync_raw ->> ${literal(column.target)}, ${canonicalSql(quote(column.target), column)})`,
  )
  // A text's own content begins behind the colon of its canonical form.
  const [only] = values
  const plain = values.length === 1 ? `substring(${only ?? ''} from '^t[0-9]+:([^~].*|)$')` : 'null'
  const whole = `coalesce(${plain}, '~' || ${values.join(' || ')})`
  const key = `case when octet_length(${whole}) > ${LONGEST_KEY_BYTES}
    then '~h' || encode(sha256(convert_to(${whole}, 'UTF8')), 'hex') else ${whole} end`
  const computed = `coalesce(_sync_key = ${key}, _sync_key ~ '^~0-?[0-9]+;$')`
  const [first] = columns
  if (columns.length > 1 || first?.type !== 'text' || first.affinity !== 'text') return computed
  // The usual key is one plain text, compared at the cost of nothing.
  const c = quote(first.target)
  return `case when _sync_raw is null and _sync_key = ${c} and ascii(${c}) <> ${TILDE} and octet_length(${c}) <= ${LONGEST_KEY_BYTES}
    then true else ${computed} end`
}

/** The first eight bytes as a number: one by one, which is faster than through their hexadecimal digits. */
function placeSql(digest: string): string {
  const bytes = Array.from({length: 8}, (_, i) => `(get_byte(${digest}, ${i})::bigint << ${56 - 8 * i})`)
  return `case when octet_length(${digest}) >= 8 then ${bytes.join(' | ')} else 0 end`
}

const TILDE = 126

function digestExpression(layout: TableLayout, from: DigestSource): string {
  const computed = digestSql(layout)
  return from === 'values'
    ? computed
    : `case when _sync_edited_by is null then _sync_hash else ${computed} end`
}

function nameOf(schema: string, layout: TableLayout): string {
  return `${quote(schema)}.${quote(layout.target)}`
}
