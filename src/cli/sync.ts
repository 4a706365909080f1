import {openTarget} from '../service/target.ts'
import {rowsToLoad} from '../service/rows-ahead.ts'
import {syncOnce} from '../service/sync-once.ts'
import {printed, type SyncResult} from '../sync/sync.ts'
import {tally} from '../telemetry/progress.ts'
import {command} from './command.ts'
import {counted, sizeText, table} from './table.ts'

export const sync = command({
  details:
    'Brings the client’s schema in Postgres to the present state of its SQLite file: one consistent cut, applied in one transaction. A client that is not known yet is registered when its file is given.',
  examples: ['sync --client acme --sqlite /opt/openwebui/acme/data/webui.db', 'sync --client acme --dry-run'],
  positionals: {},
  options: {
    client: {type: 'string', about: 'Which client.', value: 'NAME', required: true},
    sqlite: {type: 'path', about: 'Its SQLite file, when it is new or has moved.'},
    full: {
      type: 'boolean',
      about: 'Compare every row with what Postgres has, not with what is remembered here.',
    },
    dryRun: {type: 'boolean', about: 'Say what would be applied, and apply nothing.'},
    accept: {type: 'boolean', about: 'Confirm what the guard holds back, such as mass deletes.'},
  },
  async run({client, sqlite, full, dryRun, accept}, context) {
    const config = await context.config()
    await using target = await openTarget(
      config,
      {
        max: 4,
        applicationName: `owsync/${config.clusterName}-cli`,
        // Longer than any statement may take: the server has stopped it by then, or is not there any more.
        answerWithinMs: config.syncTimeoutMs + 10_000,
      },
      context.signal,
    )
    const progress = context.progress()
    const total = progress.isShown
      ? await rowsToLoad(target.pool, config, {client, sqlite}, context.signal)
      : undefined
    let result: SyncResult
    try {
      result = await syncOnce(
        target.pool,
        {...config, clusterName: target.clusterName ?? config.clusterName},
        {
          client,
          sqlite,
          full,
          dryRun,
          accept,
          onProgress: tally(progress, `sync ${client}`, total),
          onWait: holder => {
            progress.update({label: `waiting for ${holder}`})
          },
        },
        context.signal,
      )
    } finally {
      progress[Symbol.dispose]()
    }
    const shown = printed(result)
    const decisions = result.decisions?.map(decided => ({...decided, ms: undefined}))
    context.out(
      dryRun ? {...shown, ...(decisions && {decisions}), dry_run: true} : shown,
      syncText(result, {sqlite, dryRun}),
    )
    const isLeft = (result.written_to_source?.left ?? 0) > 0
    return result.status === 'success' && result.conflicts.pending === 0 && !isLeft ? 0 : 2
  },
})

/** What a sync did, for a person. */
export function syncText(
  result: SyncResult,
  {sqlite, dryRun}: {readonly sqlite: string | undefined; readonly dryRun: boolean},
): string {
  const {client, generation, rows, tables, status} = result
  const took = `${(result.duration_ms / 1000).toFixed(1)} s`
  if (status === 'quarantined' && rows.quarantined === 0)
    return [
      `${client}: held back, nothing was applied: ${result.reason ?? ''}`,
      // Without its name the file that was synced last would be taken, and that one is not meant.
      `Look at the file. If this is meant: owsync sync --client ${client}${sqlite === undefined ? '' : ` --sqlite ${shellWord(sqlite)}`} --accept`,
    ].join('\n')
  const decided = dryRun ? decisionsText(result) : conflictsText(result)
  const conflicts = `${decided}${writtenText(result, dryRun)}`
  if (result.mode === 'unchanged' && status === 'success')
    return `${client}: unchanged (generation ${generation}, ${took})${conflicts}`
  const held = rows.quarantined > 0 ? `, ${rows.quarantined} quarantined (${result.reason ?? ''})` : ''
  const healing = result.consistent
    ? ''
    : '\nThe app was writing all the while: the next sync completes this one.'
  const counts = `${rows.upserted} upserted, ${rows.tombstoned} deleted, ${rows.unchanged} unchanged${held}`
  const what = dryRun ? 'would apply' : `generation ${generation}`
  return `${client}: ${what}: ${counts} in ${counted(tables, 'table')}, ${sizeText(result.bytes)}, ${took}${healing}${conflicts}`
}

/** Rows that were decided in Postgres, on their way to the file. */
function writtenText({written_to_source: wrote}: SyncResult, dryRun: boolean): string {
  if (wrote === undefined) return ''
  const {inserted, updated, deleted, refused, left, reason} = wrote
  const rows = inserted + updated + deleted
  const lines = [
    ...(rows === 0
      ? []
      : [
          `${dryRun ? 'would write' : 'wrote'} ${counted(rows, 'row')} to the file: ${inserted} inserted, ${updated} updated, ${deleted} deleted`,
        ]),
    ...(refused === 0 ? [] : [`the file does not take ${counted(refused, 'row')}`]),
    ...(left === 0
      ? []
      : [`${counted(left, 'row')} still to be written to the file: ${reason ?? 'the next sync goes on'}`]),
    ...(dryRun && reason !== undefined ? [`a person would have to confirm it: ${reason}`] : []),
  ]
  return lines.map(line => `\n${line}`).join('')
}

/** Rows that somebody changed in Postgres: how many were decided, and what waits for whom. */
function conflictsText({client, conflicts: {detected, resolved, pending}}: SyncResult): string {
  const met = detected === 0 ? [] : [`${counted(detected, 'conflict')}, ${resolved} decided by rule`]
  const waiting =
    pending === 0
      ? []
      : [`${counted(pending, 'conflict')} to be decided by a person: owsync client conflicts ${client}`]
  return [...met, ...waiting].map(line => `\n${line}`).join('')
}

/** What would become of rows that somebody changed in Postgres. */
function decisionsText({decisions = []}: SyncResult): string {
  if (decisions.length === 0) return ''
  const rows = decisions.map(({table, type, strategy, outcome, status, count}) => [
    count,
    table,
    type,
    strategy,
    status === 'pending' ? 'a person decides' : outcome === 'merged' ? 'both, merged' : `the ${outcome}`,
  ])
  return `\nConflicts that would be decided:\n${table(['rows', 'table', 'type', 'strategy', 'keeps'], rows)}`
}

/** A path as a person can type it. */
function shellWord(text: string): string {
  return /^[\w./:@%+=-]+$/.test(text) ? text : `'${text.replaceAll("'", "'\\''")}'`
}
