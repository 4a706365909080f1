import {mkdtemp, rm} from 'node:fs/promises'
import {tmpdir} from 'node:os'
import {join} from 'node:path'
import {loadConfig, type Config} from '../src/config/config.ts'
import {urlOf} from '../src/net/endpoint.ts'
import {syncOnce} from '../src/service/sync-once.ts'
import {verifyOnce, type VerifyRequest} from '../src/service/verify-once.ts'
import type {SyncResult} from '../src/sync/sync.ts'
import type {VerifyResult} from '../src/sync/verify.ts'
import {testDatabase, type TestDatabase} from './database.ts'
import {testHost, type TestHost} from './host.ts'
import {openShape} from './shapes.ts'
import type {DatabaseSync} from 'node:sqlite'

/** A database, a host of it, and a folder: what syncs of any number of clients need. Goes with its scope. */
export type SyncedHost = AsyncDisposable & {
  readonly admin: TestDatabase
  readonly host: TestHost
  readonly config: Config
  readonly folder: string
  /** What a command line of this host has in its environment. */
  readonly env: Readonly<Record<string, string>>
  /** Makes or changes a source in the folder. @returns its path. */
  source(name: string, change: (db: DatabaseSync) => void): string
  sync(client: string, sqlite?: string): Promise<SyncResult>
  verify(client: string, request?: Partial<VerifyRequest>): Promise<VerifyResult>
}

let hosts = 0

export async function syncedHost(): Promise<SyncedHost> {
  const stack = new AsyncDisposableStack()
  const folder = await mkdtemp(join(tmpdir(), 'owsync-synced-'))
  stack.defer(() => rm(folder, {recursive: true, force: true}))
  const admin = stack.use(await testDatabase())
  const host = stack.use(await testHost(admin, `synced-${process.pid}-${++hosts}`))
  const env = {
    DATABASE_URL: urlOf(host.endpoint),
    CLUSTER_NAME: host.cluster,
    STATE_DIR: join(folder, 'state'),
  }
  const config = await loadConfig(env)
  return {
    admin,
    host,
    config,
    folder,
    env,
    source(name, change) {
      const file = join(folder, `${name}.db`)
      using db = openShape(file)
      change(db)
      return file
    },
    async sync(client, sqlite) {
      const request = {client, sqlite, full: false, dryRun: false, accept: true}
      return await syncOnce(host, config, request, new AbortController().signal)
    },
    async verify(client, request) {
      const whole = {client, quick: false, repair: false, ...request}
      return (await verifyOnce(host, config, whole, new AbortController().signal)).result
    },
    [Symbol.asyncDispose]: () => stack.disposeAsync(),
  }
}
