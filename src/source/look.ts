import {closeSync, openSync, readSync, realpathSync, statSync} from 'node:fs'
import {fingerprint} from './open.ts'

/** What can be seen of a source without opening it. */
export type Look = {
  /** Which file has the name, its size and times. Another value says that something happened, the same one nothing. */
  readonly file: string
  /** Equal ones mean equal content. Absent when that takes a connection that has been open since. */
  readonly content: string | undefined
}

/** One copy of the header of the WAL's index: https://sqlite.org/walformat.html#the_wal_index_file_format */
const HEADER_BYTES = 48
/** Where it says how many frames the WAL has. */
const FRAMES_AT = 16

/**
 * Looks at a source. In WAL mode the header of the WAL's index is read: every commit changes it, and its salts are
 * another's as soon as the WAL begins anew. An app with exclusive locks has its index in memory alone: its commits are
 * seen by the WAL itself.
 *
 * @param mayReadIndex false while this process has the source open: closing the index would drop SQLite's locks on it.
 * @returns `undefined` when there is no such file.
 */
export function look(path: string, mayReadIndex: boolean): Look | undefined {
  let file: string
  try {
    file = realpathSync(path)
  } catch {
    return undefined
  }
  const stat = statSync(file, {bigint: true, throwIfNoEntry: false})
  if (stat === undefined) return undefined
  const own = [file, stat.dev, stat.ino, stat.size, stat.mtimeNs, stat.ctimeNs].join(':')
  const index = mayReadIndex ? readIndex(`${file}-shm`) : undefined
  if (index === undefined) return {file: own, content: fingerprint(file)}
  const wal = statSync(`${file}-wal`, {bigint: true, throwIfNoEntry: false})
  // Not by its ctime: as root SQLite sets the owner of a log anew whenever it is opened.
  const log = [wal?.ino, wal?.size, wal?.mtimeNs].join(':')
  return {file: own, content: `${own}:${log}:${index.toString('hex')}`}
}

/** @returns the index's header, unless there is none or its WAL is empty: all empty ones look the same. */
function readIndex(file: string): Buffer | undefined {
  let fd: number
  try {
    fd = openSync(file, 'r')
  } catch {
    return undefined
  }
  try {
    const header = Buffer.alloc(HEADER_BYTES)
    if (readSync(fd, header, 0, HEADER_BYTES, 0) < HEADER_BYTES) return undefined
    return header.readUInt32LE(FRAMES_AT) === 0 ? undefined : header
  } finally {
    closeSync(fd)
  }
}
