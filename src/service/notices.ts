import type {Notice} from '../cluster/election.ts'

/** Where the parts of a node hear that there may be something to look at. A hint: whoever needs to be sure also polls. */
export class Notices {
  readonly #listeners = new Set<(what: Notice) => void>()

  emit(what: Notice): void {
    for (const listener of this.#listeners) listener(what)
  }

  /** Calls `listener` for each notice until it is disposed of. */
  on(listener: (what: Notice) => void): Disposable {
    this.#listeners.add(listener)
    return {
      [Symbol.dispose]: () => {
        this.#listeners.delete(listener)
      },
    }
  }
}
