import {mkdtemp, rm} from 'node:fs/promises'
import {join} from 'node:path'
import {setTimeout as sleep} from 'node:timers/promises'
import {withLease, type Lease} from '../src/cluster/lease.ts'
import type {SourceSchema} from '../src/core/layout.ts'
import {Fragment, fragment, join as joined, raw, type Pool, type Sql} from '../src/postgres/sql.ts'
import {restore} from '../src/restore/restore.ts'
import {findDeployment, findSourceSchema, type Deployment} from '../src/state/deployments.ts'
import {lockDeployment} from '../src/sync/lock.ts'
import {Session} from '../src/sync/session.ts'
import {syncDeployment, type SyncResult, type SyncRun} from '../src/sync/sync.ts'
import {verifyDeployment, type VerifyResult} from '../src/sync/verify.ts'
import {digestSql, quote} from '../src/target/row-sql.ts'
import {literal} from '../src/target/type-map.ts'
import {testDatabase, type TestDatabase} from './database.ts'
import {testClient, testHost, type TestHost} from './host.ts'
import {memoryFolder} from './memory-folder.ts'

/**
 * A host that leads its cluster all the while and keeps its files in memory: a sync costs what the sync costs, so that
 * a test can have thousands of them. Any number of clients live in its one database.
 */
export type LeadingHost = AsyncDisposable & {
  readonly admin: TestDatabase
  readonly host: TestHost
  readonly lease: Lease
  /** For sources and restored files. */
  readonly folder: string
  readonly stateDir: string
}

/** One client of a {@link LeadingHost}. Disposing of it drops its schema and its files. */
export type LeadingClient = AsyncDisposable & {
  readonly name: string
  /** Where its source is to be. */
  readonly file: string
  sync(options?: SyncOptions): Promise<SyncResult>
  /** A session, as a node keeps one: what it knows of the client stays between its syncs. */
  session(): Disposable & Pick<LeadingClient, 'sync'>
  deployment(): Promise<Deployment>
  schema(): Promise<SourceSchema>
  /** The relation that holds each source table. */
  relations(): Promise<Map<string, number>>
  /** @returns the new file. */
  restore(options?: {readonly asSource?: boolean}): Promise<string>
  verify(options?: {readonly quick?: boolean}): Promise<VerifyResult>
  /** One line for each table whose live rows are not `rows` many, or do not have the digest that is noted for them. */
  differences(rows: ReadonlyMap<string, number>): Promise<string[]>
  /** Equal before and after whatever has not written to the client's tables or to what is recorded of its syncs. */
  written(): Promise<string>
}

export type SyncOptions = Partial<Omit<SyncRun, 'deployment' | 'stateDir' | 'pages' | 'knownSchema'>>

const {signal} = new AbortController()

/**
 * Where a run is cut short: in its transaction of that number, before it commits or after, or before the statement of
 * that number outside of transactions.
 */
export type Interruption = {
  readonly at: number
  readonly when: 'without a connection' | 'before commit' | 'after commit' | 'before statement'
}

/** What a pool that cuts a run short does it with. */
export class InterruptedError extends Error {}

/** @returns `pool`, but one of its transactions ends a run. */
export function interrupted(pool: Pool, {at, when}: Interruption): Pool {
  let left = at
  const isStatement = when === 'before statement'
  const begin: Pool['begin'] = async (work, options) => {
    if (isStatement || --left !== 0) return await pool.begin(work, options)
    if (when === 'without a connection') {
      // As a connection that is waited for in vain; what goes on beside it has come to wait for it.
      await sleep(500)
      throw new InterruptedError()
    }
    await pool.begin(async tx => {
      await work(tx)
      if (when === 'before commit') throw new InterruptedError()
    }, options)
    throw new InterruptedError()
  }
  return new Proxy(pool, {
    get: (_, name) => (name === 'begin' ? begin : (Reflect.get(pool, name) as unknown)),
    apply: (_, self, given: unknown[]) => {
      // A quoted name is no statement.
      const isName = typeof given[0] === 'string'
      if (isStatement && !isName && --left === 0) return Promise.reject(new InterruptedError())
      return Reflect.apply(pool, self, given) as unknown
    },
  })
}

/**
 * @returns `pool`, or a transaction, but before its statements that contain `text`, `work` is done; those of a pool's
 * transactions are not its own.
 */
export function tapped<S extends Sql>(pool: S, text: string, work: () => void | Promise<void>): S {
  return new Proxy(pool, {
    apply: (_, self, given: [TemplateStringsArray | string, ...unknown[]]) => {
      const [strings, ...values] = given
      const run = () => Reflect.apply(pool, self, given) as unknown
      if (typeof strings === 'string' || !statementOf(strings, values).includes(text)) return run()
      return Promise.resolve(work()).then(run)
    },
  })
}

/** The text of a statement, with those of its parts that are text themselves. */
function statementOf(strings: readonly string[], values: readonly unknown[]): string {
  const parts = values.map(value =>
    value instanceof Fragment
      ? value.parts.map(part => (typeof part === 'string' ? part : '?')).join('')
      : '?',
  )
  return strings.map((string, i) => string + (parts[i] ?? '')).join('')
}

/** As the settings are by default. */
export const defaultLimits: SyncRun['limits'] = {
  lockBudgetMs: 25,
  batchRows: 1_000,
  statementTimeoutMs: 60_000,
  deleteGuard: {rows: 100, share: 0.2},
}

/** A host whose scope removes it. */
export async function leadingHost(cluster = 'host-a', node = 'cli'): Promise<LeadingHost> {
  await using resources = new AsyncDisposableStack()
  const folder = await mkdtemp(join(memoryFolder(), 'owsync-leading-'))
  resources.defer(() => rm(folder, {recursive: true, force: true}))
  const admin = resources.use(await testDatabase())
  const host = resources.use(await testHost(admin, cluster, 12))

  const over = Promise.withResolvers<undefined>()
  const leading = Promise.withResolvers<Lease>()
  const options = {
    nodeId: `${cluster}-${node}`,
    clusterName: cluster,
    durationMs: 60_000,
    renewEveryMs: 15_000,
    patienceMs: 0,
  }
  const leadership = withLease(
    host,
    options,
    async lease => {
      leading.resolve(lease)
      await over.promise
    },
    signal,
  )
  leadership.catch(leading.reject)
  resources.defer(async () => {
    over.resolve(undefined)
    await leadership
  })
  const lease = await leading.promise
  const kept = resources.move()
  return {
    admin,
    host,
    lease,
    folder,
    stateDir: join(folder, 'state'),
    [Symbol.asyncDispose]: () => kept.disposeAsync(),
  }
}

/** Registers a client, whose source the caller makes. */
export async function leadingClient(leader: LeadingHost, name: string): Promise<LeadingClient> {
  const {admin, host, lease, folder, stateDir} = leader
  const file = join(folder, `${name}.db`)
  const deploymentId = await testClient(host, name, {sqlite_path: file})
  const schemaName = name.replaceAll('-', '_')
  const run = {
    pool: host,
    lease,
    sqlitePath: file,
    limits: defaultLimits,
    full: false,
    dryRun: false,
    accept: false,
  }
  let restored = 0
  const deployment = async () => (await findDeployment(host, schemaName))!
  const schema = async () => (await findSourceSchema(host, deploymentId))!
  return {
    name,
    file,
    deployment,
    schema,
    sync: async (options = {}) =>
      await syncDeployment({...run, deployment: await deployment(), stateDir, ...options}, signal),
    session() {
      const session = new Session(
        {stateDir, deploymentId, clientName: name, schemaName},
        lockDeployment(stateDir, deploymentId, name),
      )
      return {
        sync: (options = {}) => session.run({...run, ...options}, signal),
        [Symbol.dispose]: () => {
          session[Symbol.dispose]()
        },
      }
    },
    async relations() {
      const rows = await host<{name: string; oid: number}>`
        select relname as name, oid::int from pg_class where relnamespace = ${schemaName}::regnamespace and relkind = 'r'`
      const oids = new Map(rows.map(({name, oid}) => [name, oid]))
      return new Map((await schema()).tables.map(({source, target}) => [source, oids.get(target)!]))
    },
    async restore({asSource = false} = {}) {
      const to = join(folder, `${name}-restored-${++restored}.db`)
      await restore({pool: host, clientName: name, schemaName, to, asSource, force: false}, signal)
      return to
    },
    async verify({quick = false} = {}) {
      const {lockBudgetMs} = defaultLimits
      const verification = {
        pool: host,
        deployment: await deployment(),
        sqlitePath: file,
        stateDir,
        lockBudgetMs,
        quick,
      }
      return (await verifyDeployment(verification, signal)).result
    },
    async differences(rows) {
      const {tables} = await schema()
      const counts = tables.map(
        layout => fragment`select ${layout.source}::text as name, count(*)::int as live,
          count(*) filter (where ${raw(digestSql(layout))} is distinct from _sync_hash)::int as wrong
          from ${host(schemaName, layout.target)} where _sync_deleted_at is null`,
      )
      const found = tables.length === 0 ? [] : await host<Count>`${joined(counts, ' union all ')}`
      const missing = [...rows.keys()].filter(name => !found.some(table => table.name === name))
      return [
        ...missing.map(name => `${name}: no such table`),
        ...found.flatMap(({name, live, wrong}) => [
          ...(live === (rows.get(name) ?? 0)
            ? []
            : [`${name}: ${live} rows instead of ${rows.get(name) ?? 0}`]),
          ...(wrong === 0 ? [] : [`${name}: ${wrong} rows have other values`]),
        ]),
      ]
    },
    async written() {
      const own = await admin<{table: string}>`
        select relname as table from pg_class where relnamespace = ${schemaName}::regnamespace and relkind = 'r' order by 1`
      const control = ['client_deployments', 'sync_jobs', 'source_schemas', 'row_quarantine', 'conflict_log']
      // A version of a row has a place and the transaction that wrote it; the schema's own catalogue rows have them too.
      const versions = (from: Fragment) =>
        fragment`(select string_agg(concat(ctid, ' ', xmin), ',' order by ctid) from ${from})`
      const parts = [
        ...own.map(({table}) => versions(host(schemaName, table))),
        ...control.map(table =>
          versions(fragment`sync_metadata.${host(table)} where deployment_id = ${deploymentId}`),
        ),
        versions(fragment`pg_class where relnamespace = ${schemaName}::regnamespace`),
        versions(
          fragment`pg_attribute where attrelid in (select oid from pg_class where relnamespace = ${schemaName}::regnamespace)`,
        ),
      ]
      const [row] = await admin<{
        versions: string
      }>`select array_to_string(array[${joined(parts)}], ';', '-') as versions`
      return row!.versions
    },
    async [Symbol.asyncDispose]() {
      await admin`${raw(`drop schema ${quote(schemaName)} cascade;
        delete from sync_metadata.client_deployments where deployment_id = ${literal(deploymentId)}`)}`
      await rm(join(stateDir, 'sidecars', `${deploymentId}.db`), {force: true})
      const files = [
        file,
        ...Array.from({length: restored}, (_, i) => join(folder, `${name}-restored-${i + 1}.db`)),
      ]
      for (const each of files)
        for (const suffix of ['', '-wal', '-shm', '-journal']) await rm(each + suffix, {force: true})
    },
  }
}

type Count = {name: string; live: number; wrong: number}
