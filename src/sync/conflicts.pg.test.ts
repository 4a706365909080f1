import assert from 'node:assert/strict'
import {DatabaseSync} from 'node:sqlite'
import {afterAll, beforeAll, describe, test} from 'vitest'
import {compareFiles} from '../../test/compare.ts'
import {countedConflicts} from '../../test/counted-conflicts.ts'
import {editorOf, type Editor} from '../../test/editor.ts'
import {leadingClient, leadingHost, type LeadingClient, type LeadingHost} from '../../test/leading-host.ts'
import type {ConflictType} from '../conflict/conflict.ts'
import {raw} from '../postgres/sql.ts'
import type {SyncResult} from './sync.ts'

// Every change of the source against every change of the target, under every strategy, for every kind of key: what the
// row holds then, and what the ledger says. Nothing is dropped in any cell.

let leader: LeadingHost
beforeAll(async () => {
  leader = await leadingHost('conflicts')
})
afterAll(() => leader[Symbol.asyncDispose]())

type KeyShape = {
  readonly name: string
  /** Columns and constraints of the key in both dialects, and what stands behind the table. */
  readonly columns: string
  readonly constraint?: string
  readonly after?: string
  readonly index?: string
  readonly values: (i: number) => string
  readonly where: (i: number) => string
  /** Both sides can insert one and the same key. Without a key each insert is a row of its own. */
  readonly meets: boolean
}

const long = 'é'.repeat(700)
const shapes: readonly KeyShape[] = [
  {
    name: 'text',
    columns: 'id text primary key',
    values: i => `'k${i}'`,
    where: i => `id = 'k${i}'`,
    meets: true,
  },
  {
    name: 'integer',
    columns: 'id integer primary key',
    values: i => `${i + 1}`,
    where: i => `id = ${i + 1}`,
    meets: true,
  },
  {
    name: 'composite',
    columns: 'a text, b integer',
    constraint: ', primary key (a, b)',
    values: i => `'a', ${i}`,
    where: i => `a = 'a' and b = ${i}`,
    meets: true,
  },
  {
    name: 'without rowid',
    columns: 'id text primary key',
    after: 'without rowid',
    values: i => `'k${i}'`,
    where: i => `id = 'k${i}'`,
    meets: true,
  },
  {
    name: 'unique index',
    columns: 'id text',
    index: 'id',
    values: i => `'k${i}'`,
    where: i => `id = 'k${i}'`,
    meets: true,
  },
  {
    name: 'long',
    columns: 'id text primary key',
    values: i => `'${long}${i}'`,
    where: i => `id = '${long}${i}'`,
    meets: true,
  },
  {
    name: 'rowid',
    columns: 'tag text',
    values: i => `'k${i}'`,
    where: i => `tag = 'k${i}'`,
    meets: false,
  },
]

const strategies = ['source_wins', 'target_wins', 'manual', 'newest_wins', 'merge'] as const
type Strategy = (typeof strategies)[number]
type Row = {v: string; w: string; at: number}

const base: Row = {v: 'base', w: 'base', at: 1_000_000_100}
const ours: Row = {v: 'source', w: 'base', at: 1_000_000_300}
const older: Row = {v: 'target', w: 'base', at: 1_000_000_200}
const newer: Row = {v: 'target', w: 'base', at: 1_000_000_400}
const apart: Row = {v: 'base', w: 'target', at: 1_000_000_100}

/** One row's story. `before`: as both sides had it; the others: as each side has it then (`undefined`: gone, or never). */
type Cell = {
  readonly what: string
  readonly before: Row | undefined
  readonly source: Row | undefined
  readonly target: Row | undefined
  readonly type: ConflictType | 'none'
  /** The source had it and deleted it, and that was synced, before any of this. */
  readonly wasDeleted?: true
  /** What newest_wins and merge make of it. */
  readonly newest: 'source' | 'target'
  readonly merged: 'source' | 'target' | Row
}

const cells: readonly Cell[] = [
  {
    what: 'nobody changes it',
    before: base,
    source: base,
    target: base,
    type: 'none',
    newest: 'source',
    merged: 'source',
  },
  {
    what: 'the source changes it',
    before: base,
    source: ours,
    target: base,
    type: 'none',
    newest: 'source',
    merged: 'source',
  },
  {
    what: 'the source deletes it',
    before: base,
    source: undefined,
    target: base,
    type: 'none',
    newest: 'source',
    merged: 'source',
  },
  {
    what: 'the target changes it',
    before: base,
    source: base,
    target: newer,
    type: 'drift',
    newest: 'target',
    merged: 'target',
  },
  {
    what: 'the target changes it without a time',
    before: base,
    source: base,
    target: apart,
    type: 'drift',
    newest: 'source',
    merged: 'target',
  },
  {
    what: 'the target deletes it',
    before: base,
    source: base,
    target: undefined,
    type: 'drift',
    newest: 'source',
    merged: 'target',
  },
  {
    what: 'both change it, the target earlier',
    before: base,
    source: ours,
    target: older,
    type: 'update_update',
    newest: 'source',
    merged: 'source',
  },
  {
    what: 'both change it, the target later',
    before: base,
    source: ours,
    target: newer,
    type: 'update_update',
    newest: 'target',
    merged: 'target',
  },
  {
    what: 'both change it, in other columns',
    before: base,
    source: ours,
    target: apart,
    type: 'update_update',
    newest: 'source',
    merged: {v: 'source', w: 'target', at: ours.at},
  },
  {
    what: 'both change it alike',
    before: base,
    source: ours,
    target: ours,
    type: 'none',
    newest: 'source',
    merged: 'source',
  },
  {
    what: 'the source changes it, the target deletes it',
    before: base,
    source: ours,
    target: undefined,
    type: 'update_delete',
    newest: 'source',
    merged: 'source',
  },
  {
    what: 'the source deletes it, the target changes it',
    before: base,
    source: undefined,
    target: newer,
    type: 'delete_update',
    newest: 'source',
    merged: 'target',
  },
  {
    what: 'both delete it',
    before: base,
    source: undefined,
    target: undefined,
    type: 'none',
    newest: 'source',
    merged: 'source',
  },
  {
    what: 'the source inserts it',
    before: undefined,
    source: ours,
    target: undefined,
    type: 'none',
    newest: 'source',
    merged: 'source',
  },
  {
    what: 'the target inserts it',
    before: undefined,
    source: undefined,
    target: newer,
    type: 'drift',
    newest: 'source',
    merged: 'target',
  },
  {
    what: 'both insert it, the target later',
    before: undefined,
    source: ours,
    target: newer,
    type: 'insert_insert',
    newest: 'target',
    merged: 'target',
  },
  {
    what: 'both insert it, the target earlier',
    before: undefined,
    source: ours,
    target: older,
    type: 'insert_insert',
    newest: 'source',
    merged: 'source',
  },
  {
    what: 'the target brings back what the source had deleted',
    wasDeleted: true,
    before: undefined,
    source: undefined,
    target: newer,
    type: 'drift',
    newest: 'source',
    merged: 'target',
  },
  {
    what: 'both bring back what the source had deleted',
    wasDeleted: true,
    before: undefined,
    source: ours,
    target: newer,
    type: 'insert_insert',
    newest: 'target',
    merged: 'target',
  },
]

const tableOf = (strategy: Strategy) => `t_${strategy}`
const conflictConfig = {
  place: 'test',
  document: {
    compare_field: 'updated_at',
    table_strategies: Object.fromEntries(strategies.map(strategy => [tableOf(strategy), strategy])),
  },
}

/** Makes a side's row what it is to be. */
function* statements(
  table: string,
  {values, where}: KeyShape,
  i: number,
  from: Row | undefined,
  to: Row | undefined,
): Generator<string> {
  if (JSON.stringify(from) === JSON.stringify(to)) return
  if (to === undefined) yield `delete from ${table} where ${where(i)}`
  else if (from === undefined)
    yield `insert into ${table} values (${values(i)}, '${to.v}', '${to.w}', ${to.at})`
  else yield `update ${table} set v = '${to.v}', w = '${to.w}', updated_at = ${to.at} where ${where(i)}`
}

function expected(
  cell: Cell,
  strategy: Strategy,
): {row: Row | undefined; status?: string; outcome?: string | null} {
  if (cell.type === 'none') return {row: cell.source}
  const decided = {
    source_wins: 'source' as const,
    target_wins: 'target' as const,
    manual: 'pending' as const,
    newest_wins: cell.newest,
    merge: cell.merged,
  }[strategy]
  if (decided === 'pending') return {row: cell.target, status: 'pending', outcome: null}
  if (typeof decided === 'object') return {row: decided, status: 'resolved', outcome: 'merged'}
  return {row: decided === 'source' ? cell.source : cell.target, status: 'resolved', outcome: decided}
}

type Stage = AsyncDisposable & {
  readonly client: LeadingClient
  readonly app: DatabaseSync
  readonly editor: Editor
}

async function stage(name: string, ddl: string): Promise<Stage> {
  const stack = new AsyncDisposableStack()
  const client = stack.use(await leadingClient(leader, name))
  const app = stack.use(new DatabaseSync(client.file))
  app.exec(ddl)
  await client.sync()
  const editor = stack.use(await editorOf(leader.admin, name))
  return {client, app, editor, [Symbol.asyncDispose]: () => stack.disposeAsync()}
}

/** What a run says of conflicts, but for how long they took. */
function shown({conflicts, decisions = []}: SyncResult) {
  const order = (a: object, b: object) => (JSON.stringify(a) < JSON.stringify(b) ? -1 : 1)
  return {conflicts, decisions: decisions.map(decided => ({...decided, ms: undefined})).sort(order)}
}

/** What the metrics must say once all cells are decided: as `name{labels}`. */
function metricsOf(cells: readonly Cell[], client: string): Record<string, number> {
  const metrics: Record<string, number> = {}
  const count = (name: string, labels: object) => {
    const id = `${name}${JSON.stringify(labels)}`
    metrics[id] = (metrics[id] ?? 0) + 1
  }
  for (const strategy of strategies)
    for (const {type} of cells) {
      if (type === 'none') continue
      count('conflicts_detected_total', {client, table: tableOf(strategy), type})
      if (strategy === 'manual') count('conflicts_unresolved', {client})
      else count('conflicts_resolved_total', {client, strategy})
    }
  return metrics
}

const own = (shape: KeyShape) => cells.filter(cell => shape.meets || cell.before !== undefined)

describe.each(['small', 'staged'] as const)('cuts that are %s', size => {
  // One row a batch: everything beyond it is staged.
  const limits = {
    lockBudgetMs: 25,
    batchRows: size === 'small' ? 1_000 : 1,
    statementTimeoutMs: 60_000,
    deleteGuard: undefined,
  }

  test.each(shapes)('every cell of a table with a $name key', async shape => {
    const name = `cells-${size}-${shape.name.replaceAll(' ', '-')}`
    const schema = name.replaceAll('-', '_')
    const {columns, constraint = '', after = '', index} = shape
    const ddl = strategies
      .map(strategy => {
        const table = tableOf(strategy)
        const unique = index === undefined ? '' : `create unique index u_${table} on ${table} (${index});`
        const rows = own(shape).flatMap((cell, i) => {
          const first = cell.wasDeleted === true ? base : cell.before
          return first === undefined ? [] : [...statements(table, shape, i, undefined, first)]
        })
        return `create table ${table} (${columns}, v text, w text, updated_at integer ${constraint}) ${after}; ${unique} ${rows.join(';')};`
      })
      .join('\n')
    await using s = await stage(name, ddl)
    const gone = strategies.flatMap(strategy =>
      own(shape).flatMap((cell, i) =>
        cell.wasDeleted === true ? [...statements(tableOf(strategy), shape, i, base, undefined)] : [],
      ),
    )
    s.app.exec(gone.join(';'))
    const sync = () => s.client.sync({limits, conflictConfig})
    await sync()

    for (const strategy of strategies)
      for (const [i, cell] of own(shape).entries()) {
        for (const sql of statements(tableOf(strategy), shape, i, cell.before, cell.source)) s.app.exec(sql)
        for (const sql of statements(`${schema}.${tableOf(strategy)}`, shape, i, cell.before, cell.target))
          await s.editor`${raw(sql)}`
      }
    const untouched = await s.client.written()
    const planned = await s.client.sync({limits, conflictConfig, dryRun: true})
    assert.equal(await s.client.written(), untouched, 'a dry run writes nothing')
    const result = await sync()
    assert.deepEqual(shown(planned), shown(result), 'and tells what is decided then')
    assert.deepEqual(
      await countedConflicts(result),
      metricsOf(own(shape), name),
      'each decision is counted, and no other',
    )

    const conflicts = own(shape).filter(({type}) => type !== 'none').length
    assert.equal(result.status, 'success')
    assert.deepEqual(result.conflicts, {
      detected: conflicts * strategies.length,
      resolved: conflicts * (strategies.length - 1),
      pending: conflicts,
    })
    let standing = 0
    for (const strategy of strategies) {
      const table = tableOf(strategy)
      for (const [i, cell] of own(shape).entries()) {
        const want = expected(cell, strategy)
        const where = `${strategy}: ${cell.what}`
        const rows = await leader.admin<Stored>`${raw(`select v, w, updated_at::int as at, _sync_key as key,
          _sync_deleted_at is not null as gone, _sync_edited_by as mark, _sync_diverged as diverged
          from ${schema}.${table} where ${shape.where(i)}`)}`
        assert.ok(rows.length <= 1, where)
        const [row] = rows
        const live = row === undefined || row.gone ? undefined : {v: row.v, w: row.w, at: row.at}
        assert.deepEqual(live, want.row, where)
        assert.equal(row?.mark ?? null, null, where)
        const entries = await leader.admin<Entry>`
          select conflict_id, conflict_type, resolution_strategy, c.status, outcome, is_standing, edited_by,
            rule, resolved_by, source_data, target_data, resolved_data
          from sync_metadata.conflict_log c join sync_metadata.client_deployments d using (deployment_id)
          where d.client_name = ${name} and table_name = ${table} and record_key = ${row?.key ?? ''}`
        if (cell.type === 'none') {
          assert.deepEqual(entries, [], where)
          assert.equal(row?.diverged ?? null, null, where)
          continue
        }
        const differs = JSON.stringify(want.row) !== JSON.stringify(cell.source)
        const {conflict_id, source_data, target_data, resolved_data, ...entry} = entries[0]!
        assert.equal(entries.length, 1, where)
        assert.deepEqual(
          entry,
          {
            conflict_type: cell.type,
            resolution_strategy: strategy,
            status: want.status,
            outcome: want.outcome,
            is_standing: differs,
            edited_by: s.editor.role,
            rule: `table_strategies.${table} (test)`,
            resolved_by: want.status === 'pending' ? null : leader.lease.nodeId,
          },
          where,
        )
        assert.equal(source_data['_sync_digest'] === null, cell.source === undefined, where)
        assert.equal(target_data['_sync_digest'] === null, cell.target === undefined, where)
        if (want.status === 'pending') assert.equal(resolved_data, null, where)
        else assert.equal(resolved_data!['_sync_digest'] === null, want.row === undefined, where)
        assert.equal(row!.diverged, differs ? conflict_id : null, where)
        if (differs) standing++
      }
    }

    // Nothing is left to decide, for one who remembers and for one who does not.
    const before = await s.client.written()
    for (const options of [{}, {full: true}, {marks: true}]) {
      const again = await s.client.sync({limits, conflictConfig, ...options})
      assert.deepEqual(
        [again.mode, again.conflicts],
        ['unchanged', {detected: 0, resolved: 0, pending: conflicts}],
      )
    }
    assert.equal(await s.client.written(), before)
    for (const quick of [false, true]) {
      const verified = await s.client.verify({quick})
      assert.deepEqual([verified.differences, verified.accepted], [[], standing])
    }
    // A restored file has what the target has, or what the source has.
    assert.deepEqual(compareFiles(s.client.file, await s.client.restore({asSource: true})), [])
    using restored = new DatabaseSync(await s.client.restore())
    for (const strategy of strategies)
      for (const [i, cell] of own(shape).entries()) {
        const found = restored
          .prepare(`select v, w, updated_at as at from ${tableOf(strategy)} where ${shape.where(i)}`)
          .all()
          .map(row => ({...row}))
        const {row} = expected(cell, strategy)
        assert.deepEqual(found, row === undefined ? [] : [row], `${strategy}: ${cell.what}`)
      }
  })
})

type Stored = Row & {key: string; gone: boolean; mark: string | null; diverged: string | null}
type Entry = {
  conflict_id: string
  conflict_type: string
  resolution_strategy: string
  status: string
  outcome: string | null
  is_standing: boolean
  edited_by: string
  rule: string
  resolved_by: string | null
  source_data: Record<string, unknown>
  target_data: Record<string, unknown>
  resolved_data: Record<string, unknown> | null
}
