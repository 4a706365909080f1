import {existsSync, mkdirSync, statSync} from 'node:fs'
import {dirname} from 'node:path'

/**
 * Makes a folder and those above it, for this user alone; one that is there is left as it is.
 *
 * Not `mkdir` with `recursive`: below a folder that takes none, such as /proc, that never returns.
 *
 * @throws what the file system says.
 */
export function makeFolder(path: string): void {
  try {
    mkdirSync(path, {mode: 0o700})
  } catch (error) {
    const {code} = error as NodeJS.ErrnoException
    if (code === 'EEXIST' && statSync(path).isDirectory()) return
    if (code !== 'ENOENT' || existsSync(dirname(path))) throw error
    makeFolder(dirname(path))
    makeFolder(path)
  }
}
