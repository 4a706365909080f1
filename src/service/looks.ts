/** A look is waited for so long. */
const PATIENCE_MS = 2_000
/**
 * While so many looks hang, no other is begun: Node has four threads for files, a look that hangs keeps one, and the
 * names of hosts are looked up there too.
 */
const MOST_HANGING = 2

type Look = {readonly answer: Promise<string | undefined>; hangs: boolean}

/**
 * Looks at files whose file system may hang, as those of a network do when the other side has gone. Such a look cannot
 * be stopped: it is left alone, there is one of it for each path, and nobody waits for it for long.
 */
export class Looks {
  readonly #see: (path: string) => Promise<string | undefined>
  readonly #patienceMs: number
  readonly #underWay = new Map<string, Look>()

  /** @param see must not reject. */
  constructor(see: (path: string) => Promise<string | undefined>, patienceMs = PATIENCE_MS) {
    this.#see = see
    this.#patienceMs = patienceMs
  }

  /** What a look shows that begins now; `undefined` also when there is no answer in time, or the signal aborts. */
  async at(path: string, signal: AbortSignal): Promise<string | undefined> {
    // One that has begun before may show what was so before.
    for (let other = this.#underWay.get(path); other !== undefined; other = this.#underWay.get(path)) {
      if (signal.aborted || other.hangs) return undefined
      await unlessAborted(other.answer, signal)
    }
    const hanging = [...this.#underWay.values()].filter(({hangs}) => hangs)
    if (signal.aborted || hanging.length >= MOST_HANGING) return undefined
    return await unlessAborted(this.#begin(path).answer, signal)
  }

  #begin(path: string): Look {
    const late = Promise.withResolvers<undefined>()
    const seen = this.#see(path).finally(() => {
      clearTimeout(timer)
      this.#underWay.delete(path)
    })
    const look: Look = {answer: Promise.race([seen, late.promise]), hangs: false}
    const timer = setTimeout(() => {
      look.hangs = true
      late.resolve(undefined)
    }, this.#patienceMs)
    this.#underWay.set(path, look)
    return look
  }
}

async function unlessAborted<T>(work: Promise<T>, signal: AbortSignal): Promise<T | undefined> {
  const aborted = Promise.withResolvers<undefined>()
  const stop = () => {
    aborted.resolve(undefined)
  }
  signal.addEventListener('abort', stop)
  try {
    return await Promise.race([work, aborted.promise])
  } finally {
    signal.removeEventListener('abort', stop)
  }
}
