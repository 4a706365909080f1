import {inspect} from 'node:util'

/**
 * A value that prints as `***` wherever it is printed by accident: in a log, a JSON document, a message, a REPL.
 * Whoever needs it says so with `reveal()`.
 */
export class Secret {
  readonly #value: string

  constructor(value: string) {
    this.#value = value
  }

  reveal(): string {
    return this.#value
  }

  toString(): string {
    return '***'
  }

  toJSON(): string {
    return '***'
  }

  [inspect.custom](): string {
    return '***'
  }
}
