import {parseClientName} from '../core/client-name.ts'
import {UsageError} from '../core/errors.ts'
import {restore as restoreFile, type RestoreRemarks, type RestoreResult} from '../restore/restore.ts'
import {openTarget} from '../service/target.ts'
import {rowsInTarget} from '../service/rows-ahead.ts'
import {tally} from '../telemetry/progress.ts'
import {command} from './command.ts'
import {counted} from './table.ts'

export const restore = command({
  details:
    'Writes a new SQLite file: the source’s own schema, every row with its exact values, checked against Postgres row by row before it gets its name. Nothing is left behind when it fails.',
  examples: [
    'restore --client acme --to /tmp/acme.db',
    'restore --client acme --to /opt/openwebui/acme/data/webui.db --force',
  ],
  positionals: {},
  options: {
    client: {type: 'string', about: 'Which client.', value: 'NAME', required: true},
    to: {type: 'path', about: 'The file to write.', required: true},
    asOf: {type: 'string', about: 'A generation; the newest without it.', value: 'GENERATION'},
    asSource: {
      type: 'boolean',
      about: 'Rows that conflicts let differ come as the source has them.',
    },
    force: {type: 'boolean', about: 'Keep an existing file as a backup and replace it.'},
  },
  async run({client, to, asOf, asSource, force}, context) {
    const {name, schema} = parseClientName(client)
    const generation = asOf === undefined ? undefined : generationOf(asOf)
    const config = await context.config()
    await using target = await openTarget(
      config,
      {max: 2, applicationName: `owsync/${config.clusterName}-cli`},
      context.signal,
    )
    const progress = context.progress()
    const total = progress.isShown ? await rowsInTarget(target.pool, name, context.signal) : undefined
    let restored: {result: RestoreResult; remarks: RestoreRemarks}
    try {
      restored = await restoreFile(
        {
          pool: target.pool,
          clientName: name,
          schemaName: schema,
          to,
          asSource,
          force,
          ...(generation !== undefined && {asOf: generation}),
          onProgress: tally(progress, `restore ${name}`, total),
        },
        context.signal,
      )
    } finally {
      progress[Symbol.dispose]()
    }
    const {result, remarks} = restored
    for (const line of remarkLines(result, remarks)) context.err(line)
    context.out(result, textOf(result))
    return remarks.quarantinedRows === 0 ? 0 : 2
  },
})

function generationOf(text: string): bigint {
  if (/^\d{1,18}$/.test(text)) return BigInt(text)
  throw new UsageError(`"${text}" is not a generation`, 'Give the number of a generation, such as 42.')
}

function textOf({client, generation, file, tables, rows, duration_ms}: RestoreResult): string {
  const took = `${(duration_ms / 1000).toFixed(1)} s`
  return `${client}: generation ${generation} restored to ${file}: ${counted(rows, 'row')} in ${counted(tables, 'table')}, verified, ${took}`
}

/** What is worth knowing about a file that is as good as the source was. */
function* remarkLines(
  {client}: RestoreResult,
  {backup, quarantinedRows, forbidden, orphans}: RestoreRemarks,
): Generator<string> {
  if (backup !== undefined) yield `The file that was there before is ${backup}`
  if (quarantinedRows > 0)
    yield `Warning: Postgres had refused ${quarantinedRows} rows of ${client}; the file lacks them, or has them as they were before. owsync sync --client ${client} names them.`
  if (forbidden.length > 0)
    yield `Values that the schema forbids, as the source had them: ${forbidden.slice(0, 3).join('; ')}${forbidden.length > 3 ? '; …' : ''}`
  if (orphans > 0)
    yield `${orphans === 1 ? '1 row refers to a row that is' : `${orphans} rows refer to rows that are`} not there, as in the source.`
}
