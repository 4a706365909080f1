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

/** What the launcher gives Node, but for the check whether it is installed. */
const launcher = {
  flags: ['--disable-warning=ExperimentalWarning', '--max-semi-space-size=8'],
  environment: {
    MALLOC_ARENA_MAX: '2',
    MALLOC_MMAP_THRESHOLD_: '65536',
    MALLOC_TRIM_THRESHOLD_: '131072',
  },
}

/** Runs `owsync` as a process of its own, as its launcher does, from Node's start to its end. */
export function owsync(
  args: readonly string[],
  database: Pick<Database, 'url'>,
  stateDir: string,
  codes: readonly number[] = [0],
): Promise<Run> {
  const main = join(import.meta.dirname, '../src/main.ts')
  const options = {env: {...environmentOf(database, stateDir), ...launcher.environment}}
  return run(process.execPath, [...launcher.flags, main, ...args, '--json'], options, codes)
}

/** The first load of a file, as one process. */
export function firstLoad(file: string, database: Pick<Database, 'url'>, stateDir: string): Promise<Run> {
  return owsync(['sync', '--client', CLIENT, '--sqlite', file], database, stateDir)
}
