/** How far a run is in each table, until its leader is told. */
export class RunProgress {
  readonly #most = new Map<string, number>()
  readonly #untold = new Set<string>()

  /** @param rows how many of the table have been read: fewer than before when it is read again, or in part. */
  see(table: string, rows: number): void {
    // Nameless is what a run says of all its tables together.
    if (table === '' || rows < (this.#most.get(table) ?? 0)) return
    this.#most.set(table, rows)
    this.#untold.add(table)
  }

  /** @returns the tables with news, and how many of their rows have been gone over. They are told by that. */
  take(): readonly (readonly [table: string, rows: number])[] {
    const news = [...this.#untold].map(table => [table, this.#most.get(table) ?? 0] as const)
    this.#untold.clear()
    return news
  }

  /** Another run begins. */
  clear(): void {
    this.#most.clear()
    this.#untold.clear()
  }
}
