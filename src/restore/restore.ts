import {setImmediate as breathe} from 'node:timers/promises'
import {DatabaseSync} from 'node:sqlite'
import {rowDigester} from '../core/canonical.ts'
import {DigestSums} from '../core/digest-sums.ts'
import {UsageError} from '../core/errors.ts'
import type {ColumnLayout, SourceSchema, TableLayout} from '../core/layout.ts'
import type {Value} from '../core/value.ts'
import type {Pool, Tx} from '../postgres/sql.ts'
import {findDeployment, findSourceSchema, UnknownClientError, type Deployment} from '../state/deployments.ts'
import {sideFromJson} from '../state/ledger-data.ts'
import {missingFromApp} from '../source/apps-own.ts'
import {readExisting} from '../target/plan.ts'
import {divergedRows} from '../target/marks.ts'
import {storedRows, type StoredRow} from '../target/stored-rows.ts'
import {checkFile, type FilledTable, type Remarks} from './check.ts'
import {explainWrite, openDestination} from './destination.ts'
import {NotRestorableError, RestoreFailedError} from './errors.ts'
import {NewFile} from './new-file.ts'
import type {TableWriter} from './table-writer.ts'

export type RestoreOptions = {
  readonly pool: Pool
  /** Any name of the client. */
  readonly clientName: string
  readonly schemaName: string
  /** The file to write. */
  readonly to: string
  /** A generation; the newest without it. */
  readonly asOf?: bigint
  /** Rows that may differ from the source come as the source has them, not as the target does. */
  readonly asSource?: boolean
  /** Keep an existing file as a backup and replace it. */
  readonly force: boolean
  readonly onProgress?: (table: string, rows: number) => void
}

/** How a restore went: SPEC §4's JSON. The file is complete, verified and on the disk. */
export type RestoreResult = {
  readonly client: string
  readonly generation: bigint
  readonly file: string
  readonly tables: number
  readonly rows: number
  readonly verified: true
  readonly duration_ms: number
}

/** What a person may want to know beside the result. */
export type RestoreRemarks = Remarks & {
  /** Where the file that was there before is now. */
  readonly backup: string | undefined
  /** Rows that Postgres refused: the file has them as they were last accepted, or not at all. */
  readonly quarantinedRows: number
}

/**
 * Makes a new SQLite file of what the target holds, proves it equal, and only then gives it its name.
 *
 * Everything comes from one snapshot of the target. Nothing is left behind when it fails or is aborted, and an existing
 * file is not touched before the new one is complete.
 *
 * @throws {DestinationError} when the file cannot be put there, {@link NotRestorableError} when there is no whole cut to
 * restore, {@link RestoreFailedError} when the new file does not read back as what the target holds.
 */
export async function restore(
  options: RestoreOptions,
  signal: AbortSignal,
): Promise<{result: RestoreResult; remarks: RestoreRemarks}> {
  const since = performance.now()
  using destination = openDestination(options.to, options.force)
  try {
    const {deployment, schema, tables, rows} = await write(destination.draft, options, signal)
    const remarks = await checkFile(destination.draft, tables, signal, options.onProgress)
    if (schema.pragmas.journalMode === 'wal') enterWal(destination.draft)
    signal.throwIfAborted()
    const backup = destination.publish()
    const result: RestoreResult = {
      client: deployment.clientName,
      generation: deployment.generation,
      file: destination.file,
      tables: schema.tables.length,
      rows,
      verified: true,
      duration_ms: Math.round(performance.now() - since),
    }
    return {result, remarks: {...remarks, backup, quarantinedRows: deployment.quarantinedRows}}
  } catch (cause) {
    // A connection cut by the abort is lost in the middle of something: that is not what happened.
    signal.throwIfAborted()
    const missing = missingFromApp(cause)
    if (missing !== undefined)
      throw new NotRestorableError(
        options.clientName,
        `its schema uses what only its app has (${missing})`,
        'Its rows are in Postgres, in the tables of its schema. Drop that column, index or collation in the source, if it still exists, and sync.',
        {cause},
      )
    throw explainWrite(destination.file, cause)
  }
}

type Written = {
  readonly deployment: Deployment
  readonly schema: SourceSchema
  /** What the target said of the rows of each table that is to read back equal. */
  readonly tables: readonly FilledTable[]
  readonly rows: number
}

/** Reads the target in one transaction, which is over before anything slow is done to the file. */
async function write(draft: string, options: RestoreOptions, signal: AbortSignal): Promise<Written> {
  using stack = new DisposableStack()
  const {deployment, schema, filled, file} = await options.pool.begin(
    async tx => {
      const {deployment, schema} = await readCut(tx, options)
      const file = stack.use(new NewFile(draft, schema))
      const filled: Awaited<ReturnType<typeof fillTable>>[] = []
      // The counters of AUTOINCREMENT last: filling the tables moves them.
      const isCounter = ({source}: TableLayout) => Number(source === 'sqlite_sequence')
      for (const layout of schema.tables.toSorted((a, b) => isCounter(a) - isCounter(b)))
        filled.push(await fillTable(tx, deployment.schemaName, layout, file, options, signal))
      return {deployment, schema, filled, file}
    },
    {isolation: 'repeatable read', readOnly: true, setLocal: {statement_timeout: '0'}},
  )
  for (const {finish} of filled) {
    await breathe(undefined, {signal})
    finish?.()
  }
  file.complete()
  const rebuilt = file.rebuildFullText(schema.tables)
  file.close()
  const isRebuilt = ({layout}: FilledTable) => rebuilt.some(name => layout.source.startsWith(`${name}_`))
  const rows = filled.reduce((total, {sums}) => total + sums.rows, 0)
  return {deployment, schema, tables: filled.filter(table => !isRebuilt(table)), rows}
}

async function readCut(
  tx: Tx,
  {clientName, schemaName, asOf, asSource}: RestoreOptions,
): Promise<{deployment: Deployment; schema: SourceSchema}> {
  const deployment = await findDeployment(tx, schemaName)
  if (deployment === undefined) throw new UnknownClientError(clientName)
  const schema = await findSourceSchema(tx, deployment.deploymentId)
  if (deployment.loadPosition !== null)
    throw new NotRestorableError(
      deployment.clientName,
      'its first load has not finished, so the target holds only a part of the file',
      'Run `owsync sync` until it succeeds; it goes on where it stopped.',
    )
  if (schema === undefined || deployment.generation === 0n)
    throw new NotRestorableError(
      deployment.clientName,
      'it has never been synced',
      'Run `owsync sync` first; until then the only copy of its data is the SQLite file itself.',
    )
  if (asOf !== undefined && asOf !== deployment.generation)
    throw new UsageError(
      `generation ${asOf} of ${deployment.clientName} is not kept; the newest is ${deployment.generation}`,
      'Leave --as-of out to restore the newest generation.',
    )
  if (asSource === true && deployment.hasMarks)
    throw new NotRestorableError(
      deployment.clientName,
      'somebody has edited rows in Postgres that no sync has decided about, and what the source had there is not known',
      'Run `owsync sync` first, or restore without --as-source.',
    )
  const existing = await readExisting(tx, deployment.schemaName)
  for (const {target, columns} of schema.tables) {
    const present = existing.get(target)
    const wrong = columns.find(column => present?.get(column.target) !== column.type)
    if (present === undefined || wrong !== undefined)
      throw new NotRestorableError(
        deployment.clientName,
        present === undefined
          ? `the table ${target} of its schema is gone`
          : `the column ${wrong?.target ?? ''} of ${target} is not what the sync made`,
        'Somebody changed the schema by hand. Run `owsync verify --repair` while the source exists, or put it back.',
      )
  }
  return {deployment, schema}
}

async function fillTable(
  tx: Tx,
  schemaName: string,
  layout: TableLayout,
  file: NewFile,
  {onProgress, asSource, clientName}: RestoreOptions,
  signal: AbortSignal,
): Promise<FilledTable & {readonly finish?: () => void}> {
  let rows = 0
  async function* rowsOf(part: TableLayout) {
    yield* storedRows(tx, schemaName, part, signal, asSource === true ? 'agreed' : 'all')
    if (asSource === true) yield* sourceRows(tx, {clientName, schemaName}, layout, part)
  }
  const copy = async (writer: TableWriter): Promise<FilledTable | undefined> => {
    const columns = writer.columns.map(
      name => layout.columns.find(column => column.source === name) as ColumnLayout,
    )
    const part = {...layout, columns}
    const sums = new DigestSums()
    let fits = true
    for await (const batch of rowsOf(part)) {
      for (const row of batch) {
        // What is on its way is read to its end: leaving a COPY costs the connection, and with it the snapshot.
        fits &&= writer.add(row)
        if (fits) sums.add(row.digest)
      }
      onProgress?.(layout.source, (rows += fits ? batch.length : 0))
    }
    return fits ? {layout: part, sums} : undefined
  }
  const exact = file.createExact(layout)
  const filled = exact && (await copy(exact))
  if (filled) return filled
  rows = 0
  const loose = file.createLoose(layout)
  const again = await copy(loose)
  if (again === undefined) throw new RestoreFailedError(`table ${layout.source} does not take its rows`)
  return {...again, finish: loose.finish}
}

const PAGE_ROWS = 200

/** The source's rows where the target may differ: what the ledger says of them, over what they have in common. */
async function* sourceRows(
  tx: Tx,
  {clientName, schemaName}: Pick<RestoreOptions, 'clientName' | 'schemaName'>,
  layout: TableLayout,
  part: TableLayout,
): AsyncGenerator<StoredRow[]> {
  const isByRowid = layout.keyedBy === 'rowid'
  const namesOf = ({columns}: TableLayout) => columns.map(({source}) => source)
  const digester = rowDigester(namesOf(layout), isByRowid)
  const partDigester = rowDigester(namesOf(part), isByRowid)
  for await (const page of divergedRows(tx, schemaName, layout, PAGE_ROWS))
    yield page.map(({key, hash, values: stored, source}): StoredRow => {
      const side = source === null ? undefined : sideFromJson(source)
      const row = new Map(
        layout.columns.map(({source: name}, i): [string, Value] => {
          const value = side?.fields.get(name)
          return [name, value === undefined ? (stored[i] as Value) : value]
        }),
      )
      if (side === undefined || !digester([...row.values()], key).equals(hash))
        throw new NotRestorableError(
          clientName,
          `the ledger does not have what the source holds in ${layout.source} where the target differs`,
          'Restore without --as-source, or copy the source itself while it exists.',
        )
      const values = namesOf(part).map(name => row.get(name) as Value)
      return {key, values, digest: partDigester(values, key)}
    })
}

/** The journal mode stands in the file's header; the log itself goes when the file is closed. */
function enterWal(file: string): void {
  using db = new DatabaseSync(file)
  db.exec('pragma journal_mode = wal')
}
