import {setFlagsFromString} from 'node:v8'
import {runInNewContext} from 'node:vm'

// V8 puts off collecting what a few values of many megabytes leave behind: to it they are few. With rows of 10 MB that
// makes a process 100 MB larger than it needs to be.

/** A value, or a page of rows, is large from here on: rare enough that a collection for each two of them costs little. */
const LARGE_BYTES = 2 * 1024 * 1024
const COLLECT_EVERY_BYTES = 4 * 1024 * 1024

let collect: (() => void) | undefined

/** Counts large values that have been let go of, and collects them when they add up. */
export class LargeGarbage {
  #bytes = 0

  note(bytes: number): void {
    if (bytes >= LARGE_BYTES) this.#bytes += bytes
  }

  /** To be called when what was noted is not used any more. */
  sweep(): void {
    if (this.#bytes < COLLECT_EVERY_BYTES) return
    this.#bytes = 0
    collect ??= exposed()
    collect()
  }
}

function exposed(): () => void {
  setFlagsFromString('--expose-gc')
  return runInNewContext('gc') as () => void
}
