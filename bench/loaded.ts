import {constants, copyFileSync, mkdtempSync, rmSync} from 'node:fs'
import {tmpdir} from 'node:os'
import {join} from 'node:path'
import {loadConfig, type Config} from '../src/config/config.ts'
import {parseEndpoint} from '../src/net/endpoint.ts'
import {connect} from '../src/postgres/connect.ts'
import type {Pool} from '../src/postgres/sql.ts'
import {CLIENT, environmentOf, firstLoad, stateFolder} from './ours.ts'
import type {Database, Server} from './postgres.ts'

/** A client whose first load is done. */
export type Loaded = AsyncDisposable & {
  readonly database: Database
  readonly stateDir: string
  /** As the host's own role, for work within this process. */
  readonly pool: Pool
  readonly config: Config
}

/** Loads `file` as a client of a database of its own. */
export async function load(server: Server, file: string): Promise<Loaded> {
  await using undo = new AsyncDisposableStack()
  const database = undo.use(await server.database('migrated'))
  const {path: stateDir} = undo.use(stateFolder())
  await firstLoad(file, database, stateDir)
  const pool = connect(parseEndpoint(database.url), {max: 4, applicationName: 'owsync-bench'})
  undo.defer(() => pool.end())
  const config = await loadConfig(environmentOf(database, stateDir))
  const kept = undo.move()
  return {database, stateDir, pool, config, [Symbol.asyncDispose]: () => kept.disposeAsync()}
}

/** A copy of a source that may be changed. */
export function ownCopy(file: string): Disposable & {readonly path: string} {
  const folder = mkdtempSync(join(tmpdir(), `owsync-bench-${CLIENT}-`))
  const path = join(folder, 'webui.db')
  copyFileSync(file, path, constants.COPYFILE_FICLONE)
  return {
    path,
    [Symbol.dispose]: () => {
      rmSync(folder, {recursive: true, force: true})
    },
  }
}
