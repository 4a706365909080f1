import {
  accessSync,
  closeSync,
  constants,
  existsSync,
  fstatSync,
  openSync,
  readdirSync,
  readFileSync,
  readSync,
  realpathSync,
  statSync,
  type BigIntStats,
  type Stats,
} from 'node:fs'
import {dirname, resolve} from 'node:path'
import {DatabaseSync} from 'node:sqlite'
import {setTimeout as sleep} from 'node:timers/promises'
import {missingFromApp} from './apps-own.ts'
import {SourceBusyError, SourceUnreadableError} from './errors.ts'

/** A source held open read-only. Nothing in this product opens one in any other way while syncing one-way. */
export type Source = Disposable & {
  readonly file: string
  /** Which file this is; see {@link identity}. */
  readonly identity: string
  readonly db: DatabaseSync
  /** How often a lock of the app made us wait, and the longest that one of ours was held where that keeps the app waiting, in ms, so far. */
  readonly lock: {busyRetries: number; maxHoldMs: number}
  /** Reads raw bytes of the database file; the caller holds a read lock. @returns how many there were. */
  read(buffer: Buffer, position: number, bytes: number): number
  /** Reads raw bytes of the write-ahead log; 0 when there is none. */
  readonly readWal: (buffer: Buffer, position: number) => number
  /** Reads the first bytes of the write-ahead log's index; 0 when there is none. */
  readWalIndex(buffer: Buffer): number
  /** Whether SQLite may write the log's index; it uses one that it may only read in another way. */
  mayWriteIndex(): boolean
  /** Size of the database file in bytes. */
  size(): number
  /** Another one after every write to the database file. */
  stamp(): string
  /** Whether another file has the name now: what is known of names (fingerprint, WAL) is not of this one. */
  isReplaced(): boolean
}

/** Begins a read transaction that sees the file as it is now, or throws and begins none. */
export function beginRead(db: DatabaseSync): void {
  db.exec('begin')
  try {
    db.prepare('select 1 from sqlite_schema limit 1').get()
  } catch (error) {
    // Some errors have ended it already.
    endRead(db)
    throw error
  }
}

/** Ends the read transaction, if one is open. */
export function endRead(db: DatabaseSync): void {
  if (db.isTransaction) db.exec('commit')
}

/** How long one attempt waits inside SQLite for a lock of the app before we count it and try again. */
const ATTEMPT_MS = 100

/** How long we keep asking for the first read before saying that the file is locked. */
const PATIENCE_MS = 5_000

/**
 * Opens a SQLite file for reading, in whatever state its app has it.
 *
 * @param lock is the source's; whoever gives it has the numbers also when opening fails.
 * @throws {SourceUnreadableError} when it is missing, not a readable SQLite file, or on a network file system.
 * @throws {SourceBusyError} when a lock or an unfinished transaction of the app is in the way.
 */
export async function openSource(
  path: string,
  signal: AbortSignal,
  lock: Source['lock'] = {busyRetries: 0, maxHoldMs: 0},
): Promise<Source> {
  const file = refuseUnfit(resolve(path))
  const seen = identity(file)
  let db: DatabaseSync
  try {
    db = new DatabaseSync(file, {readOnly: true, timeout: ATTEMPT_MS, enableDoubleQuotedStringLiterals: true})
  } catch (cause) {
    throw explain(file, cause)
  }
  const source = sourceOf(file, seen, db, lock)
  try {
    // A value or a row larger than this is refused by name; SQLite then never hands it to us.
    db.limits.length = longestValue.bytes
    await whenFree(source, () => db.prepare('select count(*) from sqlite_schema').get(), signal)
    if (source.isReplaced()) throw replaced(file)
    return source
  } catch (cause) {
    source[Symbol.dispose]()
    throw cause
  }
}

/**
 * A POSIX lock belongs to the process: closing any descriptor of the database file or of the WAL's index would drop the
 * locks of SQLite's own connection. So there is one descriptor each, opened after the connection and closed after it.
 */
function sourceOf(file: string, seen: string, db: DatabaseSync, lock: Source['lock']): Source {
  let opened: number | undefined
  const open = () => {
    if (opened !== undefined) return opened
    const fd = openSync(file, 'r')
    // Pages of another file would be taken for those of this one.
    if (identityOf(fstatSync(fd, {bigint: true})) !== seen) {
      closeSync(fd)
      throw replaced(file)
    }
    return (opened = fd)
  }
  const wal = new Companion(`${file}-wal`)
  const index = new Companion(`${file}-shm`)
  return {
    file,
    identity: seen,
    db,
    lock,
    read: (buffer, position, bytes) => reading(file, () => readAll(open(), buffer, bytes, position)),
    readWal: (buffer, position) => reading(file, () => wal.read(buffer, position)),
    readWalIndex: buffer => reading(file, () => index.read(buffer, 0)),
    mayWriteIndex: () => mayWrite(`${file}-shm`),
    size: () => fstatSync(open()).size,
    stamp: () => {
      const {size, ctimeNs} = fstatSync(open(), {bigint: true})
      return `${size}:${ctimeNs}`
    },
    isReplaced: () => {
      const now = statSync(file, {bigint: true, throwIfNoEntry: false})
      return now === undefined || identityOf(now) !== seen
    },
    [Symbol.dispose]: () => {
      db.close()
      wal.close()
      index.close()
      if (opened !== undefined) closeSync(opened)
    },
  }
}

function mayWrite(path: string): boolean {
  try {
    accessSync(path, constants.W_OK)
    return true
  } catch {
    return false
  }
}

/** A file beside the database, which the app may remove and make anew: whoever reads its start reads the one that is there. */
class Companion {
  readonly #file: string
  #opened: {readonly fd: number; readonly ino: bigint} | undefined

  constructor(file: string) {
    this.#file = file
  }

  read(buffer: Buffer, position: number): number {
    if (position === 0) this.#look()
    if (this.#opened === undefined) return 0
    return readAll(this.#opened.fd, buffer, buffer.length, position)
  }

  #look(): void {
    const now = statSync(this.#file, {bigint: true, throwIfNoEntry: false})
    if (now === undefined || now.ino !== this.#opened?.ino) this.close()
    if (now === undefined) return
    try {
      this.#opened ??= {fd: openSync(this.#file, 'r'), ino: now.ino}
    } catch (error) {
      if (!(error instanceof Error) || !('code' in error) || error.code !== 'ENOENT') throw error
    }
  }

  close(): void {
    if (this.#opened !== undefined) closeSync(this.#opened.fd)
    this.#opened = undefined
  }
}

function replaced(file: string): SourceBusyError {
  return new SourceBusyError(
    file,
    'another file took its name while it was being read',
    'Run the sync again; it reads the file that is there then.',
  )
}

/** What the system says of a read past SQLite, which has no number of SQLite's. */
function reading<T>(file: string, read: () => T): T {
  try {
    return read()
  } catch (cause) {
    throw unreadable(file, cause)
  }
}

function readAll(fd: number, buffer: Buffer, bytes: number, position: number): number {
  let length = 0
  for (let n = 1; n > 0 && length < bytes; length += n)
    n = readSync(fd, buffer, length, bytes - length, position + length)
  return length
}

/**
 * Values above this size are refused by name; a jsonb string in `_sync_raw` could not hold them. Nobody sets it but
 * tests, which would wait long for values of that size.
 */
export const longestValue = {bytes: 256 * 1024 * 1024}

/**
 * Runs a short read, again while the app's lock refuses it.
 *
 * @throws {SourceBusyError} after {@link PATIENCE_MS} of refusals; {@link SourceUnreadableError} for anything worse.
 */
export async function whenFree<T>(source: Source, read: () => T, signal: AbortSignal): Promise<T> {
  const since = performance.now()
  for (;;) {
    try {
      return read()
    } catch (cause) {
      if (primaryCode(cause) !== SQLITE_BUSY || performance.now() - since > PATIENCE_MS)
        throw explain(source.file, cause)
      source.lock.busyRetries++
      await sleep(20 + Math.random() * 30, undefined, {signal})
    }
  }
}

const SQLITE_ERROR = 1
const SQLITE_BUSY = 5
const SQLITE_NOMEM = 7
const SQLITE_READONLY = 8
const SQLITE_READONLY_ROLLBACK = 776
const SQLITE_IOERR = 10
const SQLITE_CORRUPT = 11
const SQLITE_CANTOPEN = 14
const SQLITE_NOTADB = 26

/** @returns the error as one of ours when it is SQLite's, else the error itself. */
export function explain(file: string, cause: unknown): unknown {
  const code = errcode(cause)
  if (code === undefined) return cause
  const options = {cause}
  const because = cause instanceof Error ? cause.message : String(cause)
  if (code === SQLITE_READONLY_ROLLBACK)
    return new SourceBusyError(
      file,
      'the app crashed in the middle of a write and has not rolled it back yet (hot journal)',
      'Start the app once so that it recovers its file, then try again; rolling back is never done by the sync.',
      options,
    )
  if (missingFromApp(cause) !== undefined)
    return new SourceUnreadableError(
      file,
      `its schema uses what only its app has (${because})`,
      'Open WebUI’s own schema does not: drop the column, index or collation that somebody added, then try again.',
      options,
    )
  switch (code & 0xff) {
    case SQLITE_BUSY:
      return new SourceBusyError(
        file,
        'another process keeps the file locked',
        'Look for a long transaction or an exclusive lock (a backup, a VACUUM, a shell) on the file and try again.',
        options,
      )
    case SQLITE_NOMEM:
      return new SourceBusyError(
        file,
        `there was not enough memory to read it (${because})`,
        'Give the machine or the container more memory when it comes again; it is tried again.',
        options,
      )
    case SQLITE_ERROR:
      // It has no code of its own; most errors with this one are in a statement of ours.
      if (because !== 'unsupported file format') return cause
      return new SourceUnreadableError(
        file,
        `its header names a schema format that SQLite does not know (${because})`,
        'The file is damaged or not written by SQLite: look at a copy of it; `owsync restore` rebuilds it as of the last sync.',
        options,
      )
    case SQLITE_READONLY:
    case SQLITE_CANTOPEN:
      return new SourceUnreadableError(
        file,
        `it cannot be opened for reading (${because})`,
        `Run as the user that owns the file; a file in WAL mode also needs its folder ${dirname(file)} to be writable.`,
        options,
      )
    case SQLITE_CORRUPT:
      return new SourceUnreadableError(
        file,
        `the file is damaged (${because})`,
        'Run `PRAGMA integrity_check` on a copy; `owsync restore` rebuilds the file as of the last sync.',
        options,
      )
    case SQLITE_NOTADB:
      return notADatabase(file, options)
    case SQLITE_IOERR:
      return readingFailed(file, because, options)
    default:
      return cause
  }
}

/** @returns the extended SQLite result code of an error of node:sqlite, if it is one. */
export function errcode(error: unknown): number | undefined {
  if (!(error instanceof Error) || !('errcode' in error) || typeof error.errcode !== 'number')
    return undefined
  return error.errcode
}

function primaryCode(error: unknown): number | undefined {
  const code = errcode(error)
  // A hot journal needs the app, not patience.
  return code === undefined || code === SQLITE_READONLY_ROLLBACK ? code : code & 0xff
}

const MAGIC = Buffer.from('SQLite format 3\0', 'latin1')
/** Where the header says that the file is in WAL mode: the version that is needed to read it is 2 then. */
const READ_VERSION_AT = 19

/** What is beside another name of a file that has several, or may be: its app's commits, or what they replace. */
function logElsewhere(file: string, isInWal: boolean): string | undefined {
  if (isInWal) return existsSync(`${file}-wal`) ? undefined : 'beside which its log may be'
  const {dev, ino} = statSync(file)
  const folder = dirname(file)
  for (const name of readdirSync(folder).map(name => resolve(folder, name))) {
    if (name === file || !existsSync(`${name}-journal`)) continue
    const other = statSync(name, {throwIfNoEntry: false})
    if (other?.dev === dev && other.ino === ino) return `beside which there is a journal: ${name}-journal`
  }
  return undefined
}

/** @returns the path with its links resolved: SQLite keeps the WAL and the journal beside the real file. */
function refuseUnfit(named: string): string {
  let file = named
  let [size, names] = [0, 1]
  const head = Buffer.alloc(READ_VERSION_AT + 1)
  try {
    file = realpathSync(named)
    const stat = statSync(file)
    if (stat.isDirectory())
      throw new SourceUnreadableError(
        file,
        'this is a directory',
        'Name the SQLite file in it, usually webui.db.',
      )
    if (!stat.isFile())
      throw new SourceUnreadableError(
        file,
        'this is not a regular file',
        'Name the SQLite file, usually webui.db.',
      )
    ;[size, names] = [stat.size, stat.nlink]
    refuseNetwork(file)
    // Read before SQLite has the file open: closing a descriptor later would drop its locks.
    const fd = openSync(file, 'r')
    try {
      readSync(fd, head, 0, head.length, 0)
    } finally {
      closeSync(fd)
    }
  } catch (cause) {
    if (cause instanceof SourceUnreadableError) throw cause
    throw unreadable(file, cause)
  }
  if (size === 0) throw new SourceEmptyError(file)
  if (!head.subarray(0, MAGIC.length).equals(MAGIC)) throw notADatabase(file)
  const isInWal = head[READ_VERSION_AT] === 2
  const elsewhere = names > 1 ? logElsewhere(file, isInWal) : undefined
  if (elsewhere !== undefined)
    throw new SourceUnreadableError(
      file,
      `it has another name (a hard link), ${elsewhere}`,
      'Name the file by the path that its app uses; a symbolic link to that is fine.',
    )
  if (isInWal && !['-wal', '-shm'].every(suffix => existsSync(file + suffix))) refuseLog(file)
  return file
}

/** Who a process acts as. */
export type Actor = {
  readonly uid: number
  readonly gid: number
  /** Whether it may give files to others: root, unless that was taken from it. */
  readonly mayGive: boolean
}

/**
 * Whether the app, which owns the file, may write files that SQLite makes beside it for us: they get the file's mode and,
 * when root makes them and may, its owner.
 *
 * @param folder of the file: with the set-group-id bit it gives its group to what is made in it.
 */
export function isSharedWith(
  file: Pick<Stats, 'uid' | 'gid' | 'mode'>,
  folder: Pick<Stats, 'gid' | 'mode'>,
  {uid, gid, mayGive}: Actor,
): boolean {
  if (mayGive || uid === file.uid) return true
  const group = (folder.mode & 0o2000) === 0 ? gid : folder.gid
  return (file.mode & 0o002) !== 0 || ((file.mode & 0o020) !== 0 && group === file.gid)
}

/** Reading a file in WAL mode makes its log when the app has closed it: ours it must not be. */
function refuseLog(file: string): void {
  const [uid, gid] = [process.geteuid?.(), process.getegid?.()]
  const folder = dirname(file)
  if (uid === undefined || gid === undefined || !mayWrite(folder)) return
  const actor = {uid, gid, mayGive: uid === 0 && mayGiveFiles()}
  if (isSharedWith(statSync(file), statSync(folder), actor)) return
  throw new SourceUnreadableError(
    file,
    'it is in WAL mode and its app is not running; reading it would make a log that the app could not write to',
    'Run as the user that owns the file, or as root with CAP_CHOWN, or start the app first.',
  )
}

/** Whether root has CAP_CHOWN, the first bit of https://man7.org/linux/man-pages/man7/capabilities.7.html */
function mayGiveFiles(): boolean {
  try {
    const [, effective] = /^CapEff:\s*([0-9a-f]+)$/m.exec(readFileSync('/proc/self/status', 'utf8')) ?? []
    return effective === undefined || (BigInt(`0x${effective}`) & 1n) === 1n
  } catch {
    return true // Not Linux: nothing is ever taken from root.
  }
}

/** The file has no bytes at all; for a deployment that had rows this is a reason to quarantine. */
export class SourceEmptyError extends SourceUnreadableError {
  constructor(file: string) {
    super(
      file,
      'the file is empty',
      'Name a file that Open WebUI has created, or start the app once so that it creates it.',
    )
  }
}

function notADatabase(file: string, options?: ErrorOptions): SourceUnreadableError {
  return new SourceUnreadableError(
    file,
    'this is not a SQLite database, or it is encrypted',
    'Name the plain webui.db file; encrypted files (SQLCipher) cannot be synced.',
    options,
  )
}

function readingFailed(file: string, because: string, options: ErrorOptions): SourceUnreadableError {
  return new SourceUnreadableError(
    file,
    `reading failed (${because})`,
    'Check the disk and whether the file has been truncated; nothing was applied.',
    options,
  )
}

function unreadable(file: string, cause: unknown): unknown {
  const code = cause instanceof Error && 'code' in cause ? cause.code : undefined
  const options = {cause}
  switch (code) {
    case 'ENOENT':
    case 'ENOTDIR':
      return new SourceUnreadableError(
        file,
        'there is no such file',
        'Check the path; give another one with --sqlite FILE when the file has moved.',
        options,
      )
    case 'EACCES':
    case 'EPERM':
      return new SourceUnreadableError(
        file,
        'permission denied',
        'Run as the user that owns the file (root for the stock image).',
        options,
      )
    case 'EIO':
      return readingFailed(file, 'EIO, an error of the disk or of what stands for one', options)
    case 'ERR_INVALID_ARG_VALUE':
    case 'ENAMETOOLONG':
    case 'ELOOP':
      return new SourceUnreadableError(
        JSON.stringify(file),
        'this path cannot be used',
        'Name an ordinary file path.',
        options,
      )
    default:
      return cause
  }
}

const NETWORK_TYPES =
  /^(nfs|nfs4|cifs|smb3?|smbfs|9p|virtiofs|afs|ceph|glusterfs|lustre|ncpfs|coda|prl_fs|vboxsf|vmhgfs|fuse\.(sshfs|rclone|s3fs|glusterfs|vmhgfs-fuse|gvfsd-fuse|grpcfuse|osxfs|gocryptfs-remote))$/

/** SQLite's locks do not hold across machines: a shared file would be read torn without anyone noticing. */
function refuseNetwork(file: string): void {
  let mounts: string
  try {
    mounts = readFileSync('/proc/self/mountinfo', 'utf8')
  } catch {
    return // Not Linux: there is no list of mounts to ask.
  }
  const type = fileSystemOf(file, mounts)
  if (type === undefined || !NETWORK_TYPES.test(type)) return
  throw new SourceUnreadableError(
    file,
    `it is on a network or VM-shared file system (${type}), where SQLite's locks cannot be trusted`,
    'Run the sync on the machine whose local disk holds the file.',
  )
}

/**
 * @param mounts the text of /proc/self/mountinfo: https://docs.kernel.org/filesystems/proc.html
 * @returns the type of the file system that `file` is on.
 */
export function fileSystemOf(file: string, mounts: string): string | undefined {
  let best: {length: number; type: string} | undefined
  for (const line of mounts.split('\n')) {
    const [left, right] = line.split(' - ')
    const point = left
      ?.split(' ')[4]
      ?.replace(/\\([0-7]{3})/g, (_, octal: string) => String.fromCharCode(parseInt(octal, 8)))
    const type = right?.split(' ')[0]
    if (point === undefined || type === undefined) continue
    const within = point === '/' || file === point || file.startsWith(`${point}/`)
    // A later mount on the same point hides the earlier one.
    if (within && (best === undefined || point.length >= best.length)) best = {length: point.length, type}
  }
  return best?.type
}

/**
 * What the file system says of the source and its WAL: equal fingerprints of a settled file mean equal content.
 *
 * The file's `ctime` is in it because nobody can set it back. Not that of the files beside it: whenever root opens a
 * source, SQLite sets their owner anew. Time stamps have a grain of some milliseconds, so a file that changed within the
 * last {@link GRAIN_MS} has no fingerprint yet.
 */
export type Fingerprint = string

const GRAIN_MS = 2_000

/** @returns the fingerprint, or `undefined` while the file is too fresh to have one or is not there. */
export function fingerprint(file: string): Fingerprint | undefined {
  const now = BigInt(Date.now())
  const parts: string[] = []
  for (const path of [file, `${file}-wal`, `${file}-journal`]) {
    const stat: BigIntStats | undefined = statSync(path, {bigint: true, throwIfNoEntry: false})
    if (stat === undefined) {
      if (path === file) return undefined
      continue
    }
    const {dev, ino, size, mtimeNs} = stat
    const isItself = path === file
    if ((isItself ? stat.ctimeMs : stat.mtimeMs) > now - BigInt(GRAIN_MS)) return undefined
    parts.push([dev, ino, size, mtimeNs, isItself ? stat.ctimeNs : ''].join(':'))
  }
  return parts.join('|')
}

/** @returns what makes this file this file: another one under the same name has another identity. */
export function identity(file: string): string {
  return identityOf(statSync(file, {bigint: true}))
}

function identityOf({dev, ino}: BigIntStats): string {
  return `${dev}:${ino}`
}
