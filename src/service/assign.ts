/** A worker as the one who hands out runs sees it. */
export type WorkerView = {
  /** The deployments that it holds open: nobody else may run them. */
  readonly holds: ReadonlySet<string>
  readonly inHand: {readonly deployment: string; readonly since: number} | undefined
}

/** A run that waits for a worker. */
export type Waiting = {
  readonly deployment: string
  /** Not to be started earlier: its last one took its worker along. */
  readonly notBefore: number
}

export type Assignment =
  | {readonly do: 'run'; readonly waiting: number; readonly worker: number | 'new'}
  /** Its worker is to let go of the deployment, so that another one can take it. */
  | {readonly do: 'move'; readonly waiting: number; readonly from: number}
  /** Until something ends, or until the clock says `until`. */
  | {readonly do: 'wait'; readonly until: number}

/** So long a deployment waits for its own worker before it moves to another one. */
export const LOYALTY_MS = 1_000

/**
 * Who runs what next. A deployment stays with the worker that has it open, because that one alone may open its file and
 * knows what it is like; it moves when that worker is busy with another one for long (a first load) and there is
 * room elsewhere. Whoever waits longest comes first. Pure.
 *
 * @param waiting in the order in which they came.
 */
export function assign(
  waiting: readonly Waiting[],
  workers: readonly WorkerView[],
  most: number,
  now: number,
): Assignment {
  const free = [...workers.keys()].filter(i => workers[i]?.inHand === undefined)
  const leastLoaded = free.toSorted((a, b) => held(workers[a]) - held(workers[b]))[0]
  const room = leastLoaded ?? (workers.length < most ? 'new' : undefined)
  let until = Infinity
  for (const [i, {deployment, notBefore}] of waiting.entries()) {
    if (now < notBefore) {
      until = Math.min(until, notBefore)
      continue
    }
    const home = workers.findIndex(({holds}) => holds.has(deployment))
    const inHand = workers[home]?.inHand
    if (home >= 0 && inHand === undefined) return {do: 'run', waiting: i, worker: home}
    // One run of a deployment at a time; and nobody leaves while there is nowhere to go.
    if (inHand?.deployment === deployment || room === undefined) continue
    if (inHand === undefined) return {do: 'run', waiting: i, worker: room}
    const leavesAt = inHand.since + LOYALTY_MS
    if (now >= leavesAt) return {do: 'move', waiting: i, from: home}
    until = Math.min(until, leavesAt)
  }
  return {do: 'wait', until}
}

function held(worker: WorkerView | undefined): number {
  return worker?.holds.size ?? 0
}
