import {existsSync, statfsSync} from 'node:fs'
import {tmpdir} from 'node:os'

const memory = '/dev/shm'

/** A test needs no more than this; a container is often given less. */
const ENOUGH_BYTES = 1024 ** 3

/**
 * Where tests make files that no machine has to survive: in memory if there is enough, because on a disk most of the
 * time goes into waiting for it.
 */
export function memoryFolder(): string {
  if (!existsSync(memory)) return tmpdir()
  const {bavail, bsize} = statfsSync(memory)
  return bavail * bsize >= ENOUGH_BYTES ? memory : tmpdir()
}
