import {mkdtempSync, rmSync} from 'node:fs'
import {tmpdir} from 'node:os'
import {join} from 'node:path'
import {CLUSTER, type Database} from './postgres.ts'
import {run, type Run} from './program.ts'

export const CLIENT = 'acme'

/** A state directory that goes with its scope. */
export function stateFolder(): Disposable & {readonly path: string} {
  const path = mkdtempSync(join(tmpdir(), 'owsync-bench-state-'))
  return {
    path,
    [Symbol.dispose]: () => {
      rmSync(path, {recursive: true, force: true})
    },
  }
}

/** The settings of a run, and nothing of the caller's own environment but where programs are. */
export function environmentOf({url}: Pick<Database, 'url'>, stateDir: string) {
  return {
    PATH: process.env['PATH'] ?? '',
    HOME: stateDir,
    DATABASE_URL: url,
    STATE_DIR: stateDir,
    CLUSTER_NAME: CLUSTER,
  }
}

/** Runs `owsync` as a process of its own, from its launcher's start to its end. */
export function owsync(
  args: readonly string[],
  database: Pick<Database, 'url'>,
  stateDir: string,
  codes: readonly number[] = [0],
): Promise<Run> {
  const launcher = join(import.meta.dirname, '../owsync')
  return run(launcher, [...args, '--json'], {env: environmentOf(database, stateDir)}, codes)
}

/** The first load of a file, as one process. */
export function firstLoad(file: string, database: Pick<Database, 'url'>, stateDir: string): Promise<Run> {
  return owsync(['sync', '--client', CLIENT, '--sqlite', file], database, stateDir)
}
