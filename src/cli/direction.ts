import {change, getClient} from '../service/clients.ts'
import {syncOnce} from '../service/sync-once.ts'
import {openTarget} from '../service/target.ts'
import type {SourceWrites, SyncResult} from '../sync/sync.ts'
import {tally} from '../telemetry/progress.ts'
import {confirmByName} from './ask.ts'
import {actorName} from './client-change.ts'
import {clientDocument} from './client-text.ts'
import {command} from './command.ts'
import {counted, table} from './table.ts'

export const direction = command({
  details:
    'With one_way, as every client begins, nothing is ever written to its SQLite file. With two_way, what is decided to be kept of edits in Postgres is written to it, while the app uses it; before the first write the file is copied to STATE_DIR/backups. Switching that on shows first what would be written now, and asks; switching it off holds at once. Without a direction it says which one there is.',
  examples: ['client direction acme two_way', 'client direction acme one_way'],
  positionals: {
    name: {about: 'Which client.'},
    direction: {about: 'The direction from now on.', choices: ['one_way', 'two_way'], optional: true},
  },
  options: {yes: {type: 'boolean', about: 'Do not ask.'}},
  async run({name, direction, yes}, context) {
    const config = await context.config()
    await using target = await openTarget(
      config,
      {
        max: 4,
        applicationName: `owsync/${config.clusterName}-cli`,
        answerWithinMs: config.syncTimeoutMs + 10_000,
      },
      context.signal,
    )
    const client = await getClient(target.pool, name)
    const {client_name: clientName} = client
    if (direction === undefined || direction === client.direction) {
      context.out(clientDocument(client), `${clientName}: ${meaning[client.direction]}.`)
      return 0
    }
    let report: SyncResult | undefined
    if (direction === 'two_way' && client.sqlite_path !== null) {
      const progress = context.progress()
      try {
        report = await syncOnce(
          target.pool,
          {...config, clusterName: target.clusterName ?? config.clusterName},
          {
            client: clientName,
            full: false,
            dryRun: true,
            accept: false,
            asDirection: 'two_way',
            onProgress: tally(progress, `look at ${clientName}`, undefined),
            onWait: holder => {
              progress.update({label: `waiting for ${holder}`})
            },
          },
          context.signal,
        )
      } finally {
        progress[Symbol.dispose]()
      }
    }
    if (direction === 'two_way')
      await confirmByName(context, {will: reportText(clientName, report), name: clientName, yes})
    const changed = await change(target.pool, {
      client: clientName,
      settings: {direction},
      actor: actorName(),
      action: 'client.direction',
    })
    context.out(
      {...clientDocument(changed), would_write: report?.written_to_source ?? null},
      `${clientName}: ${meaning[changed.direction]}.`,
    )
    return 0
  },
})

const meaning = {
  one_way: 'one_way: nothing is written to its file',
  two_way: 'two_way: what is kept of edits in Postgres is written to its file',
} as const

/** What a person is asked to agree to. */
function reportText(client: string, report: SyncResult | undefined): string {
  const head = `From now on syncs of ${client} write to its SQLite file, while the app uses it: what is kept of edits in Postgres, inserts and deletes too. Before the first write the file is copied to STATE_DIR/backups.`
  if (report === undefined) return `${head}\nIt has no file yet.`
  if (report.status === 'quarantined')
    return `${head}\nIts next sync is held back (${report.reason ?? ''}): what would be written shows after that.`
  const wrote = report.written_to_source
  const rows = wrote === undefined ? 0 : wrote.inserted + wrote.updated + wrote.deleted
  const waiting = report.conflicts.pending
  return [
    head,
    ...(wrote === undefined || rows === 0
      ? ['The next sync would write nothing.']
      : [`The next sync would write ${counted(rows, 'row')}:`, '', writesText(wrote), '']),
    ...(wrote?.reason === undefined ? [] : [`A person would have to confirm it: ${wrote.reason}.`]),
    ...(waiting === 0 ? [] : [`Of ${counted(waiting, 'conflict')} a person decides first.`]),
  ].join('\n')
}

function writesText({tables = []}: SourceWrites): string {
  return table(
    ['table', 'insert', 'update', 'delete', 'first keys'],
    tables.map(({table, inserted, updated, deleted, keys}) => [
      table,
      String(inserted),
      String(updated),
      String(deleted),
      [...(keys?.insert ?? []), ...(keys?.update ?? []), ...(keys?.delete ?? [])]
        .slice(0, 3)
        .map(short)
        .join(', '),
    ]),
  )
}

function short(key: string): string {
  return key.length > 40 ? `${key.slice(0, 39)}…` : key
}
