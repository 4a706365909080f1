import {UsageError} from '../core/errors.ts'
import {openTarget} from '../service/target.ts'
import {rowsInTarget} from '../service/rows-ahead.ts'
import {verifyOnce} from '../service/verify-once.ts'
import type {Difference} from '../sync/findings.ts'
import type {VerifyResult, VerifyTotals} from '../sync/verify.ts'
import {tally} from '../telemetry/progress.ts'
import {command} from './command.ts'
import {counted, table} from './table.ts'

export const verify = command({
  details:
    'Compares every row of the client’s SQLite file with what Postgres holds, value by value, and never syncs first: what the app has changed since the last sync counts as pending, not as a difference.',
  examples: [
    'verify --client acme',
    'verify --client acme --quick',
    'verify --client acme --repair --dry-run',
  ],
  positionals: {},
  options: {
    client: {type: 'string', about: 'Which client.', value: 'NAME', required: true},
    sqlite: {type: 'path', about: 'Its SQLite file, when it has moved.'},
    quick: {type: 'boolean', about: 'Trust the hashes and marks in Postgres; do not read its values.'},
    repair: {type: 'boolean', about: 'Apply the source’s rows again where Postgres differs.'},
    dryRun: {type: 'boolean', about: 'With --repair: say what would be applied, and apply nothing.'},
  },
  async run({client, sqlite, quick, repair, dryRun}, context) {
    if (dryRun && !repair)
      throw new UsageError('--dry-run says what --repair would do', 'Give both, or neither.')
    const config = await context.config()
    await using target = await openTarget(
      config,
      {max: 4, applicationName: `owsync/${config.clusterName}-cli`},
      context.signal,
    )
    const progress = context.progress()
    const total = progress.isShown ? await rowsInTarget(target.pool, client, context.signal) : undefined
    let verified: {result: VerifyResult; totals: VerifyTotals}
    try {
      verified = await verifyOnce(
        target.pool,
        {...config, clusterName: target.clusterName ?? config.clusterName},
        {
          client,
          sqlite,
          quick,
          repair: repair && !dryRun,
          onProgress: tally(progress, `verify ${client}`, total),
          onWait: holder => {
            progress.update({label: `waiting for ${holder}`})
          },
        },
        context.signal,
      )
    } finally {
      progress[Symbol.dispose]()
    }
    const {result, totals} = verified
    context.out(dryRun ? {...result, dry_run: true} : result, textOf(result, totals, {repair, dryRun}))
    return totals.differences > result.repaired ? 2 : 0
  },
})

const MOST_SHOWN = 20

function textOf(
  result: VerifyResult,
  totals: VerifyTotals,
  asked: {readonly repair: boolean; readonly dryRun: boolean},
): string {
  const {client, generation, rows_compared, tables, accepted, pending, moving, duration_ms} = result
  const asides = [
    pending > 0 ? `${pending} not synced yet` : '',
    moving > 0 ? `${moving} changing too fast to compare` : '',
    accepted > 0 ? `${accepted} accepted as different` : '',
  ].filter(aside => aside !== '')
  const found = totals.differences === 0 ? 'no differences' : counted(totals.differences, 'difference')
  const took = `${(duration_ms / 1000).toFixed(1)} s`
  const head = `${client}: ${found} in ${counted(rows_compared, 'row')} of ${counted(tables, 'table')}${asides.length > 0 ? ` (${asides.join(', ')})` : ''}, generation ${generation}, ${took}`
  if (totals.differences === 0) return head
  const shown = result.differences.slice(0, MOST_SHOWN)
  const more = totals.differences - shown.length
  return [
    head,
    '',
    table(['table', 'key', 'kind', 'columns'], shown.map(cellsOf)),
    ...(more > 0 ? [`… and ${more} more`] : []),
    '',
    nextOf(result, totals, asked),
  ].join('\n')
}

function cellsOf({table, key, kind, columns}: Difference): string[] {
  const listed = columns.length > 4 ? `${columns.slice(0, 4).join(', ')}, …` : columns.join(', ')
  return [table, key === null ? '(the table itself)' : shortened(key), kind, listed]
}

function nextOf(
  {client, repaired}: VerifyResult,
  {differences}: VerifyTotals,
  {repair, dryRun}: {readonly repair: boolean; readonly dryRun: boolean},
): string {
  if (dryRun) return `owsync verify --client ${client} --repair would apply the source’s rows there.`
  if (!repair) return `To apply the source’s rows there: owsync verify --client ${client} --repair`
  if (repaired >= differences) return `All ${repaired} have been repaired.`
  return `${repaired} of ${differences} have been repaired; sync, then verify again.`
}

function shortened(key: string): string {
  return key.length > 48 ? `${key.slice(0, 45)}…` : key
}
