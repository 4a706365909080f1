import {mkdtempSync, rmSync, writeFileSync} from 'node:fs'
import {tmpdir} from 'node:os'
import {join} from 'node:path'
import type {Database} from './postgres.ts'
import {run} from './program.ts'

/** pgloader with batches that fit into its heap: with its own defaults it does not survive chats of 30 KB. */
export async function pgloader(file: string, {url}: Pick<Database, 'url'>): Promise<number> {
  const folder = mkdtempSync(join(tmpdir(), 'owsync-bench-pgloader-'))
  try {
    const script = join(folder, 'load')
    writeFileSync(
      script,
      `load database from sqlite://${file} into ${url}
       with create tables, create indexes, reset no sequences, workers = 2, concurrency = 1,
         batch rows = 1000, prefetch rows = 1000;\n`,
    )
    const {ms} = await run('pgloader', ['--root-dir', folder, script])
    return ms
  } finally {
    rmSync(folder, {recursive: true, force: true})
  }
}
