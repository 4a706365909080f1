import {
  chmodSync,
  chownSync,
  closeSync,
  existsSync,
  fsyncSync,
  linkSync,
  lstatSync,
  openSync,
  readdirSync,
  realpathSync,
  renameSync,
  rmSync,
  statSync,
  type Stats,
} from 'node:fs'
import {basename, dirname, join, resolve} from 'node:path'
import {DatabaseSync} from 'node:sqlite'
import {DestinationError} from './errors.ts'

/** Where a restored file goes: it is written beside its place and takes it when it is complete. */
export type Destination = Disposable & {
  readonly file: string
  /** Where it is written. Disposing of the destination removes it. */
  readonly draft: string
  /** Puts the draft, which nobody has open any more, in its place. @returns where an existing file was kept. */
  publish(): string | undefined
}

// What SQLite keeps beside a file. Left there, it would be taken for a part of the new one.
const companions = ['-wal', '-shm', '-journal']

/**
 * Makes sure that a file can be written to `path`.
 *
 * @param force keep an existing file, and what lies beside it, under another name; without it they are a reason to refuse.
 * @throws {DestinationError} saying what is in the way.
 */
export function openDestination(path: string, force: boolean): Destination {
  const file = locate(resolve(path))
  refuseOccupied(file, force)
  const draft = `${file}.restoring`
  const mode = claimDraft(draft)
  return {
    file,
    draft,
    publish: () => publish(draft, file, {force, mode}),
    [Symbol.dispose]: () => {
      for (const suffix of ['', ...companions]) rmSync(draft + suffix, {force: true})
    },
  }
}

/** @returns the error as one of ours when it says that the file system refused a write, else the error itself. */
export function explainWrite(file: string, cause: unknown): unknown {
  const options = {cause}
  const because = cause instanceof Error ? cause.message : String(cause)
  const code = errorCode(cause)
  if (code === 'ENOSPC' || code === 'EDQUOT' || code === SQLITE_FULL)
    return new DestinationError(
      file,
      'the disk is full',
      'Free some space, or restore to another disk; the unfinished file was removed.',
      options,
    )
  if (
    code === 'EACCES' ||
    code === 'EPERM' ||
    code === 'EROFS' ||
    code === SQLITE_CANTOPEN ||
    code === SQLITE_READONLY
  )
    return new DestinationError(
      file,
      `it cannot be written (${because})`,
      `Run as a user who may write to ${dirname(file)}, or restore to another folder.`,
      options,
    )
  if (typeof code === 'string' && refusals.has(code))
    return new DestinationError(
      file,
      `no file can be made there (${because})`,
      'Restore to a folder on an ordinary disk.',
      options,
    )
  if (code === SQLITE_IOERR || code === 'EIO')
    return new DestinationError(
      file,
      `writing failed (${because})`,
      'Check the disk, or restore to another one.',
      options,
    )
  return cause
}

// /proc and its like, names that are too long, file systems without what a file needs.
const refusals = new Set([
  'ENOENT',
  'ENOTDIR',
  'ENAMETOOLONG',
  'EINVAL',
  'ENOTSUP',
  'EOPNOTSUPP',
  'ENOSYS',
  'ELOOP',
])

const SQLITE_BUSY = 5
const SQLITE_READONLY = 8
const SQLITE_IOERR = 10
const SQLITE_FULL = 13
const SQLITE_CANTOPEN = 14

function errorCode(error: unknown): string | number | undefined {
  if (!(error instanceof Error)) return undefined
  if ('errcode' in error && typeof error.errcode === 'number') return error.errcode & 0xff
  return 'code' in error && typeof error.code === 'string' ? error.code : undefined
}

/** @returns the path with its folder's links resolved, and its own when it is a link to a file. */
function locate(path: string): string {
  let folder: string
  try {
    folder = realpathSync(dirname(path))
  } catch (cause) {
    throw new DestinationError(
      path,
      `there is no folder ${dirname(path)}`,
      'Create the folder first, as the user who will own the file.',
      {cause},
    )
  }
  const file = join(folder, basename(path))
  const stat = lstatSync(file, {throwIfNoEntry: false})
  if (stat?.isSymbolicLink() !== true) return file
  try {
    return realpathSync(file)
  } catch (cause) {
    throw new DestinationError(
      file,
      'this is a link to nowhere',
      'Remove the link, or name the file itself.',
      {cause},
    )
  }
}

function refuseOccupied(file: string, force: boolean): void {
  const stat = lstatSync(file, {throwIfNoEntry: false})
  if (stat?.isDirectory() === true)
    throw new DestinationError(file, 'this is a folder', 'Name a file in it, for example webui.db.')
  if (stat !== undefined && !stat.isFile())
    throw new DestinationError(file, 'this is not a regular file', 'Name a path where there is no file yet.')
  if (stat !== undefined && !force)
    throw new DestinationError(
      file,
      'there is a file already',
      'Name another path, or give --force to keep the existing file as a backup and replace it.',
    )
  const left = companions.filter(suffix => existsSync(file + suffix))
  if (left.length > 0 && !force)
    throw new DestinationError(
      file,
      `${left.map(suffix => basename(file) + suffix).join(' and ')} of an earlier file lies there, and SQLite would take it for a part of the new one`,
      'Name another path, or give --force to keep what is there as a backup.',
    )
  refuseOpen(file)
}

/** @throws {DestinationError} while any process that can be seen has the file, or what lies beside it, open. */
function refuseOpen(file: string): void {
  const wanted = new Set<string>()
  for (const suffix of ['', ...companions]) {
    const stat = statSync(file + suffix, {throwIfNoEntry: false})
    if (stat !== undefined) wanted.add(inodeOf(stat))
  }
  const holder = wanted.size === 0 ? undefined : holderOf(wanted)
  if (holder !== undefined) throw inUse(file, `process ${holder} has it open`)
}

function inUse(file: string, what: string): DestinationError {
  return new DestinationError(
    file,
    what,
    'Stop the app (or the sync) that uses the file, or restore to another path.',
  )
}

/** @returns the id of a process that has one of these open, as far as /proc lets us see; by inode, so through mounts too. */
function holderOf(inodes: ReadonlySet<string>): string | undefined {
  for (const pid of entriesOf('/proc')) {
    if (!/^\d+$/.test(pid)) continue
    for (const fd of entriesOf(`/proc/${pid}/fd`)) {
      try {
        if (inodes.has(inodeOf(statSync(`/proc/${pid}/fd/${fd}`)))) return pid
      } catch {
        continue // closed meanwhile
      }
    }
  }
  return undefined
}

function entriesOf(folder: string): string[] {
  try {
    return readdirSync(folder)
  } catch {
    return [] // not Linux, another user's process, or one that has just ended
  }
}

function inodeOf(stat: Stats): string {
  return `${stat.dev}:${stat.ino}`
}

/**
 * Asks SQLite for the exclusive lock: it sees users of the file that /proc hides, such as a container's. A file that is
 * damaged or no database at all has no such users, and replacing it is what a restore is for.
 *
 * It is opened by another name, under which no log lies beside it: SQLite would apply that log, or delete it.
 *
 * @throws {DestinationError} while somebody has it locked.
 */
export function refuseLocked(file: string): void {
  const probe = `${file}.probe`
  let db: DatabaseSync | undefined
  try {
    linkSync(file, probe)
    db = new DatabaseSync(probe, {timeout: 100})
    db.exec('pragma locking_mode = exclusive; begin exclusive; rollback')
  } catch (error) {
    if (errorCode(error) === SQLITE_BUSY) throw inUse(file, 'another process has locked it')
  } finally {
    db?.close()
    for (const suffix of ['', ...companions]) rmSync(probe + suffix, {force: true})
  }
}

/**
 * Creates the draft, which is then ours and nobody else's to read. One that an interrupted restore left is removed.
 *
 * @returns the mode that a new file gets here.
 */
function claimDraft(draft: string): number {
  try {
    const left = statSync(draft, {throwIfNoEntry: false})
    if (left !== undefined) {
      const holder = holderOf(new Set([inodeOf(left)]))
      if (holder !== undefined)
        throw inUse(draft, `another restore to this path is running (process ${holder})`)
      for (const suffix of ['', ...companions]) rmSync(draft + suffix, {force: true})
    }
    closeSync(openSync(draft, 'wx', 0o666))
    const {mode} = statSync(draft)
    chmodSync(draft, 0o600)
    return mode
  } catch (cause) {
    throw explainWrite(draft, cause)
  }
}

function publish(
  draft: string,
  file: string,
  {force, mode}: {readonly force: boolean; readonly mode: number},
): string | undefined {
  try {
    const existing = statSync(file, {throwIfNoEntry: false})
    // Of the file that is replaced, else of its folder: the app must be able to write to it.
    const {uid, gid} = existing ?? statSync(dirname(file))
    if (process.getuid?.() === 0) chownSync(draft, uid, gid)
    chmodSync(draft, (existing?.mode ?? mode) & 0o7777)
    sync(draft)
    // Again, and as late as can be: the app may have been started meanwhile.
    refuseOccupied(file, force)
    if (existing !== undefined) refuseLocked(file)
    const backup = force ? setAside(file) : undefined
    if (force) renameSync(draft, file)
    else place(draft, file)
    sync(dirname(file))
    return backup
  } catch (cause) {
    throw explainWrite(file, cause)
  }
}

function sync(path: string): void {
  const fd = openSync(path, 'r')
  try {
    fsyncSync(fd)
  } finally {
    closeSync(fd)
  }
}

/** Keeps what is there under a name that says when, the file and what lies beside it together. */
function setAside(file: string): string | undefined {
  const stamp = new Date()
    .toISOString()
    .replace(/\.\d+Z$/, 'Z')
    .replaceAll(/[-:]/g, '')
  let backup = `${file}.${stamp}.bak`
  for (let n = 2; ['', ...companions].some(suffix => existsSync(backup + suffix)); n++)
    backup = `${file}.${stamp}-${n}.bak`
  for (const suffix of companions) if (existsSync(file + suffix)) renameSync(file + suffix, backup + suffix)
  if (!existsSync(file)) return undefined
  // A second name, so that there is no moment at which the path has no file.
  linkOrMove(file, backup)
  return backup
}

function linkOrMove(from: string, to: string): void {
  try {
    linkSync(from, to)
  } catch {
    renameSync(from, to) // a file system without links
  }
}

/** Gives the draft its name unless somebody else has taken it since we looked. */
function place(draft: string, file: string): void {
  try {
    linkSync(draft, file)
  } catch (error) {
    if (errorCode(error) !== 'EEXIST') {
      renameSync(draft, file) // a file system without links
      return
    }
    throw new DestinationError(
      file,
      'a file has appeared there meanwhile',
      'Name another path, or give --force.',
      {
        cause: error,
      },
    )
  }
  rmSync(draft)
}
