// In which order rows are written that stand in each other's way: a unique value is free once the row that has it has moved.

/** Something to be done, and what has to be done before, by their ids. */
export type Wait<Item> = {
  readonly item: Item
  readonly certain: readonly string[]
  /** Counts if it is to be done at all: nobody knows whether it is in the way. */
  readonly possible: readonly string[]
}

export type Turns<Item> = {
  /** One after the other. */
  readonly ordered: readonly Item[]
  /** Those that wait for each other, and for nothing else that is still to come: all of a ring at once. */
  readonly rings: readonly (readonly Item[])[]
  /** What they wait for is not to be done, or their ring is too large. */
  readonly hopeless: readonly Item[]
}

/** Sorts what is to be done by what has to be done before. */
export function turnsOf<Item>(waits: ReadonlyMap<string, Wait<Item>>, mostInRing: number): Turns<Item> {
  const open = new Map(
    [...waits].map(([id, {item, certain, possible}]) => [
      id,
      {item, for: new Set([...certain, ...possible.filter(other => waits.has(other))])},
    ]),
  )
  const hopeless: Item[] = []
  // What nobody moves stays in the way of those behind it.
  for (let before = Infinity; open.size < before;) {
    before = open.size
    for (const [id, wait] of open)
      if ([...wait.for].some(other => !open.has(other))) {
        open.delete(id)
        hopeless.push(wait.item)
      }
  }
  const ordered: Item[] = []
  for (let before = Infinity; open.size < before;) {
    before = open.size
    for (const [id, wait] of open)
      if (wait.for.size === 0) {
        open.delete(id)
        ordered.push(wait.item)
        for (const other of open.values()) other.for.delete(id)
      }
  }
  const rings: Item[][] = []
  for (const [first] of open) {
    const ring: Item[] = []
    const reached = [first]
    for (let id = reached.pop(); id !== undefined; id = reached.pop()) {
      const wait = open.get(id)
      if (wait === undefined) continue
      open.delete(id)
      ring.push(wait.item)
      reached.push(...wait.for)
      for (const [other, {for: others}] of open) if (others.has(id)) reached.push(other)
    }
    if (ring.length <= mostInRing) rings.push(ring)
    else hopeless.push(...ring)
  }
  return {ordered, rings, hopeless}
}
