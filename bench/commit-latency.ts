import {DatabaseSync} from 'node:sqlite'
import {setTimeout as sleep} from 'node:timers/promises'
import {startWriter} from '../src/sample/writer.ts'
import type {Bench, Benchmark} from './bench.ts'
import {load, ownCopy, type Loaded} from './loaded.ts'
import {bounded, compared, median, unmeasured, type Result} from './result.ts'
import {syncing} from './syncing.ts'

/** Commits a second that the app tries, and for how long it is watched at a time. */
const RATE = 100
const WATCHED_SECONDS = 12
/** Pairs of watches, one without a sync and one with. */
const PAIRS = 5

type Journal = 'delete' | 'wal'
type Times = {readonly p50: number; readonly p99: number; readonly p999: number; readonly worst: number}
type Company = 'nobody' | 'us' | 'a long read'

/** What the app's commits cost in WAL mode while the file is synced without a pause. */
export const benchCommitLatencyWal: Benchmark = async bench => {
  const name = 'commit-latency-wal'
  const {times, locked} = await watch(bench, 'wal', name)
  const pairs = (of: keyof Times) => ({
    ours: times.us.map(each => each[of]),
    reference: times.nobody.map(each => each[of]),
  })
  const about = (what: string) => ({
    name,
    work: `the app's commits while syncing: ${what}`,
    reference: 'no sync',
  })
  const slow = compared({...about('p99'), must: 2}, pairs('p99'))
  const addedMs = median(pairs('p99').ours.map((ms, i) => ms - pairs('p99').reference[i]!))
  return [
    compared({...about('p50'), must: 1.1}, pairs('p50')),
    // A stall of a few ms that is twice as long as next to nothing is no stall.
    {...slow, holds: slow.holds === true || addedMs <= 5},
    lockedOut(name, locked),
    naive(name, times),
  ]
}

/** The same with a rollback journal, where a reader stops commits: what the slowest ones are slower by. */
export const benchCommitLatencyRollback: Benchmark = async bench => {
  const name = 'commit-latency-rollback'
  const {times, locked} = await watch(bench, 'delete', name)
  const added = (of: keyof Times) => times.us.map((each, i) => Math.max(0, each[of] - times.nobody[i]![of]))
  const work = (what: string) => `added to the app's commits by syncing: ${what}`
  return [
    bounded({name, work: work('p99.9'), must: 25}, added('p999')),
    bounded({name, work: work('the worst'), must: 75}, added('worst')),
    lockedOut(name, locked),
    naive(name, times),
  ]
}

function lockedOut(name: string, locked: number): Result {
  const about = {name, work: 'commits of the app refused with "database is locked"', must: 0}
  return {...unmeasured(about), holds: locked === 0, value: locked, unit: 'commits'}
}

/** For comparison only: what a reader does that takes its time. */
function naive(name: string, times: Record<Company, readonly Times[]>): Result {
  const worst = (of: Company) => median(times[of].map(each => each.worst))
  return {
    ...unmeasured({name, work: "the app's worst commit beside one long read transaction", must: 0}),
    ours_ms: Math.round(worst('us')),
    reference: 'one long read transaction',
    reference_ms: Math.round(worst('a long read')),
    ratio: Math.round((worst('us') / worst('a long read')) * 1000) / 1000,
    must: null,
  }
}

async function watch(
  {server, file, say}: Bench,
  journalMode: Journal,
  name: string,
): Promise<{times: Record<Company, Times[]>; locked: number}> {
  using copy = ownCopy(file)
  setJournal(copy.path, journalMode)
  await using loaded = await load(server, copy.path)
  const times: Record<Company, Times[]> = {nobody: [], us: [], 'a long read': []}
  let locked = 0
  for (let pair = 0; pair < PAIRS; pair++) {
    const order: Company[] = pair % 2 === 0 ? ['nobody', 'us'] : ['us', 'nobody']
    for (const company of pair === 0 ? [...order, 'a long read' as const] : order) {
      const seen = await beside(company, loaded, copy.path, journalMode, pair)
      times[company].push(seen.times)
      if (company === 'us') locked += seen.locked
      const {p50, p99, p999, worst} = seen.times
      const numbers = [p50, p99, p999, worst].map(ms => ms.toFixed(1)).join(', ')
      say(`${name} ${pair + 1}, ${company}: ${numbers} ms (p50, p99, p99.9, worst); ${seen.said}`)
    }
  }
  return {times, locked}
}

/** Lets the app write for a while in somebody's company. */
async function beside(
  company: Company,
  loaded: Loaded,
  path: string,
  journalMode: Journal,
  seed: number,
): Promise<{times: Times; locked: number; said: string}> {
  const over = new AbortController()
  const startReader = {
    nobody: () => Promise.resolve(0),
    us: () => syncing(loaded, path, over.signal),
    'a long read': () => readLong(path, over.signal),
  }[company]
  const seen: number[] = []
  const writer = startWriter(
    {file: path, seed: seed + 1, rate: RATE, journalMode, withTimes: true},
    report => {
      seen.push(...(report.times_ms ?? []))
    },
  )
  await sleep(500) // Node starts, and a file that comes into the cache.
  seen.length = 0
  const reading = startReader()
  await sleep(WATCHED_SECONDS * 1_000)
  const {locked} = await writer.stop()
  over.abort()
  const rounds = await reading
  return {times: timesOf(seen), locked, said: `${seen.length} commits, ${locked} refused, ${rounds} rounds`}
}

/** Reads the whole file in one transaction, again and again, as a tool would that knows nothing of its app. */
async function readLong(path: string, signal: AbortSignal): Promise<number> {
  using db = new DatabaseSync(path, {readOnly: true, timeout: 5_000})
  let rounds = 0
  for (; !signal.aborted; rounds++) {
    db.exec('begin')
    for (const table of ['chat', 'message']) {
      let rows = 0
      const statement = db.prepare(`select * from ${table}`)
      statement.setReadBigInts(true)
      const all = statement.iterate()
      while (all.next().done !== true) if (++rows % 1_000 === 0) await sleep(0)
    }
    db.exec('commit')
  }
  return rounds
}

function setJournal(path: string, journalMode: Journal): void {
  using db = new DatabaseSync(path)
  db.exec(`pragma journal_mode = ${journalMode}`)
}

function timesOf(seen: readonly number[]): Times {
  const sorted = [...seen].sort((a, b) => a - b)
  const at = (share: number) => sorted[Math.min(sorted.length - 1, Math.floor(sorted.length * share))] ?? NaN
  return {p50: at(0.5), p99: at(0.99), p999: at(0.999), worst: at(1)}
}
