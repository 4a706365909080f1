import type {BigIntStats} from 'node:fs'
import {realpath, stat} from 'node:fs/promises'

/**
 * Which version of a source its folder shows: another value says that something was written. It opens no file, so it
 * disturbs no lock of anybody. A log without content counts as none.
 *
 * @returns `undefined` while there is no such file.
 */
export async function versionSeen(path: string): Promise<string | undefined> {
  const file = await realpath(path).catch(() => undefined)
  const own = file === undefined ? undefined : await statOf(file)
  if (own === undefined) return undefined
  const log = await statOf(`${String(file)}-wal`)
  const logged = log === undefined || log.size === 0n ? '' : ` ${textOf(log)}`
  return `${own.dev}:${textOf(own)}${logged}`
}

/** Not `ctime`, which our own reads change. */
function textOf({ino, size, mtimeNs}: BigIntStats): string {
  return `${ino}:${size}:${mtimeNs}`
}

async function statOf(path: string): Promise<BigIntStats | undefined> {
  return await stat(path, {bigint: true}).catch(() => undefined)
}
