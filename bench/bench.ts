import type {Loaded} from './loaded.ts'
import type {Server} from './postgres.ts'
import type {Result} from './result.ts'

/** What every benchmark is given. */
export type Bench = {
  readonly server: Server
  /** The source to measure with; nobody changes it. */
  readonly file: string
  readonly rounds: number
  /** A client whose first load of `file` is done: made when first asked for, shared by those that only read it. */
  readonly loaded: () => Promise<Loaded>
  /** Says on standard error how far we are, and why something is not measured. */
  readonly say: (text: string) => void
}

/** One benchmark: it gives one result for each thing that it is held against. */
export type Benchmark = (bench: Bench) => Promise<readonly Result[]>

/** Someone who does the work; resolves with how long it took, in ms. */
export type Contestant = () => Promise<number>

/** Lets each contestant run once a round, in an order that turns, so that nobody always comes after the same one. */
export async function race<Name extends string>(
  {rounds, say}: Pick<Bench, 'rounds' | 'say'>,
  contestants: Readonly<Partial<Record<Name, Contestant>>>,
): Promise<Partial<Record<Name, number[]>>> {
  const runners = Object.entries(contestants) as [Name, Contestant][]
  const times: Partial<Record<Name, number[]>> = {}
  for (let round = 0; round < rounds; round++) {
    for (const i of runners.keys()) {
      const [name, work] = runners[(i + round) % runners.length]!
      const ms = await work()
      ;(times[name] ??= []).push(ms)
      say(`round ${round + 1}, ${name}: ${(ms / 1000).toFixed(2)} s`)
    }
  }
  return times
}
