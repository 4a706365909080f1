import {userInfo} from 'node:os'
import {parseClientName} from '../core/client-name.ts'
import {UsageError} from '../core/errors.ts'
import {openTarget} from '../service/target.ts'
import {listConflicts, type Conflict, type ConflictStatus} from '../state/conflicts.ts'
import {
  resolveConflict,
  undoConflict,
  UnknownConflictError,
  viewConflict,
  type Choice,
  type ConflictView,
} from '../sync/resolve.ts'
import {isUuid} from '../state/page.ts'
import {command, type Context} from './command.ts'
import {counted, table} from './table.ts'

// What a person does about rows that somebody changed in Postgres. No node needs to run.

const statuses = ['pending', 'resolved', 'superseded', 'undone'] as const satisfies readonly ConflictStatus[]

export const conflicts = command({
  details:
    'Rows that somebody changed in Postgres, and what became of them; the newest first. With an id, one of them field by field.',
  examples: [
    'client conflicts acme',
    'client conflicts acme --status resolved',
    'client conflicts --id 6f1c…',
  ],
  positionals: {name: {about: 'Which client; all when left out.', optional: true}},
  options: {
    status: {type: 'string', about: 'Only those; pending ones when left out.', choices: [...statuses, 'all']},
    id: {type: 'string', about: 'Show this one, field by field.'},
    limit: {type: 'number', about: 'How many at most; 100 when left out.'},
    cursor: {type: 'string', about: 'Go on after an earlier list: its “next”.'},
  },
  async run({name, status = 'pending', id, limit = 100, cursor}, context) {
    await using target = await openHost(context)
    if (id !== undefined) {
      const view = isUuid(id) ? await viewConflict(target.pool, id) : undefined
      if (view === undefined) throw new UnknownConflictError(id)
      context.out({...view.conflict, sides: view.sides, fields: view.fields}, viewText(view))
      return 0
    }
    const filter = {
      ...(name === undefined ? {} : {schemaName: parseClientName(name).schema}),
      ...(status === 'all' ? {} : {status}),
    }
    const page = {limit: Math.min(Math.max(limit, 1), 1_000), ...(cursor === undefined ? {} : {cursor})}
    const found = await listConflicts(target.pool, filter, page)
    context.out(
      {conflicts: found.conflicts, count: found.conflicts.length, next: found.next},
      listText(found.conflicts, status, found.next),
    )
    return 0
  },
})

export const resolve = command({
  details:
    'Decides a conflict that waits: the row becomes the source’s, stays as it is in Postgres, or becomes what --row says. A row that then differs from the source is accepted as it is until either side changes.',
  examples: [
    'client resolve 6f1c… --choice source',
    'client resolve 6f1c… --choice row --row {"title":"Both"}',
  ],
  positionals: {id: {about: 'Which conflict: its id, from `client conflicts`.'}},
  options: {
    choice: {type: 'string', about: 'What it becomes.', choices: ['source', 'target', 'row'], required: true},
    row: {type: 'string', about: 'With row: columns and their values, as JSON.', value: 'JSON'},
  },
  async run({id, choice, row}, context) {
    const chosen = choiceOf(choice, row)
    await using target = await openHost(context)
    if (!isUuid(id)) throw new UnknownConflictError(id)
    await resolveConflict(target.pool, id, chosen, actor())
    context.out({success: true, conflict_id: id, choice}, `Conflict ${id} is decided: ${choice}.`)
    return 0
  },
})

export const undo = command({
  details:
    'Takes a decision about a conflict back, whoever made it: a row that became the source’s gets what Postgres had, one that was kept gets the source’s values.',
  examples: ['client undo 6f1c…'],
  positionals: {id: {about: 'Which conflict: its id, from `client conflicts --status resolved`.'}},
  options: {},
  async run({id}, context) {
    await using target = await openHost(context)
    if (!isUuid(id)) throw new UnknownConflictError(id)
    await undoConflict(target.pool, id, actor())
    context.out({success: true, conflict_id: id}, `The decision about conflict ${id} is taken back.`)
    return 0
  },
})

function choiceOf(choice: Choice['choice'], row: string | undefined): Choice {
  if (choice !== 'row') {
    if (row !== undefined)
      throw new UsageError(`--row goes with --choice row, not with ${choice}`, 'Leave one of them out.')
    return {choice}
  }
  if (row === undefined)
    throw new UsageError('--choice row needs the row', 'Give its columns as JSON: --row \'{"title": "…"}\'.')
  const parsed = parsedRow(row)
  if (typeof parsed !== 'object' || parsed === null || Array.isArray(parsed))
    throw new UsageError('--row is not a JSON object', 'Write it like \'{"title": "…"}\'.')
  return {choice, row: parsed as Record<string, unknown>}
}

function parsedRow(text: string): unknown {
  try {
    return JSON.parse(text)
  } catch (cause) {
    throw new UsageError('--row is not JSON', 'Write it like \'{"title": "…"}\'.', {cause})
  }
}

/** Who types: for the ledger and the audit log. */
function actor(): string {
  return `cli:${userInfo().username}`
}

async function openHost({config, signal}: Context) {
  const settings = await config()
  return await openTarget(settings, {max: 2, applicationName: `owsync/${settings.clusterName}-cli`}, signal)
}

function listText(found: readonly Conflict[], status: string, next: string | null): string {
  if (found.length === 0)
    return status === 'pending' ? 'No conflict waits for a decision.' : `No conflicts (${status}).`
  const rows = found.map(each => [
    each.conflict_id,
    each.client_name,
    each.table_name,
    each.record_key.length > 32 ? `${each.record_key.slice(0, 29)}…` : each.record_key,
    each.conflict_type,
    each.status,
    each.resolution_strategy ?? undefined,
  ])
  const more = next === null ? [] : ['', `There are more: --cursor ${next}`]
  const hint =
    status === 'pending' ? ['', 'To decide one: owsync client resolve ID --choice source|target|row'] : []
  return [table(['id', 'client', 'table', 'key', 'what', 'status', 'rule'], rows), ...more, ...hint].join(
    '\n',
  )
}

function viewText({conflict, sides, fields}: ConflictView): string {
  const shown = (value: string | number | null) => {
    const text = value === null ? 'NULL' : String(value)
    return text.length > 40 ? `${text.slice(0, 39)}…` : text
  }
  const by = conflict.resolved_by === null ? '' : `, by ${conflict.resolved_by}`
  return [
    `${conflict.client_name}, table ${conflict.table_name}, row ${conflict.record_key}`,
    `${conflict.conflict_type}, ${conflict.status}${by}${conflict.notes === null ? '' : `: ${conflict.notes}`}`,
    `source: ${sides.source}, Postgres: ${sides.target}; ${counted(fields.filter(({differs}) => differs).length, 'column')} differ`,
    '',
    table(
      ['column', 'source', 'Postgres', ...(sides.resolved === 'present' ? ['now'] : [])],
      fields.map(field => [
        field.column,
        shown(field.source),
        shown(field.target),
        ...(sides.resolved === 'present' ? [shown(field.resolved)] : []),
      ]),
    ),
  ].join('\n')
}
