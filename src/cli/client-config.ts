import {readFile, writeFile} from 'node:fs/promises'
import {UsageError} from '../core/errors.ts'
import {exportClients, importClients, type Imported} from '../service/client-config.ts'
import {actorName} from './client-change.ts'
import {openHost} from './client.ts'
import {command, type Context} from './command.ts'
import {counted, table} from './table.ts'

export const config = command({
  details:
    'Export writes the settings of all clients of this host as JSON: files, schedules, what is special; no state and no data. Import registers those of a file that are not known and gives the others its settings, all of them or none; what the file does not name is left alone.',
  examples: ['client config export clients.json', 'client config import clients.json --dry-run'],
  positionals: {
    what: {about: 'Which way.', choices: ['export', 'import']},
    file: {about: 'The file; export prints without one.', optional: true},
  },
  options: {
    dryRun: {type: 'boolean', about: 'With import: say what would change, and change nothing.'},
  },
  async run({what, file, dryRun}, context) {
    return what === 'export' ? await exportTo(file, dryRun, context) : await importFrom(file, dryRun, context)
  },
})

async function exportTo(file: string | undefined, dryRun: boolean, context: Context): Promise<0> {
  if (dryRun) throw new UsageError('--dry-run is for import', 'Leave it out.')
  const {clusterName} = await context.config()
  await using target = await openHost(context)
  const clients = await exportClients(target.pool, target.clusterName ?? clusterName)
  const text = JSON.stringify(clients, undefined, 2)
  if (file === undefined) {
    context.out(clients, text)
    return 0
  }
  // What is special about a client may be the address of a webhook, with its secret.
  await inFile(file, () => writeFile(file, `${text}\n`, {mode: 0o600}))
  const {length: count} = clients.clients
  context.out({file, count}, `The settings of ${counted(count, 'client')} are in ${file}.`)
  return 0
}

async function importFrom(file: string | undefined, dryRun: boolean, context: Context): Promise<0> {
  if (file === undefined)
    throw new UsageError('import needs a file', 'Name one; /dev/stdin reads what is piped in.')
  const text = await inFile(file, () => readFile(file, 'utf8'))
  await using target = await openHost(context)
  const imported = await importClients(target.pool, text, {dryRun, actor: actorName()})
  for (const {client} of imported.filter(({isFileMissing}) => isFileMissing))
    context.err(`Warning: the file of ${client} is not here; its syncs fail until it is.`)
  const documents = imported.map(({client, what, changes, isFileMissing}) => ({
    client,
    what,
    changes,
    file_missing: isFileMissing,
  }))
  context.out({clients: documents, count: documents.length, dry_run: dryRun}, importText(imported, dryRun))
  return 0
}

function importText(imported: readonly Imported[], dryRun: boolean): string {
  if (imported.length === 0) return 'The file names no client.'
  const rows = imported.map(({client, what, changes}) => [client, what, changes.join(', ')])
  const list = table(['client', dryRun ? 'would be' : 'was', 'settings'], rows)
  return dryRun ? `${list}\n\nNothing was changed.` : list
}

async function inFile<T>(file: string, work: () => Promise<T>): Promise<T> {
  try {
    return await work()
  } catch (cause) {
    const because = cause instanceof Error && 'code' in cause ? String(cause.code) : String(cause)
    throw new UsageError(`${file} cannot be used (${because})`, 'Give another file.', {cause})
  }
}
