import type {Benchmark} from './bench.ts'
import {sourceFile, type Size} from './file.ts'
import {incrementTimes, usualChange, type Change, type Journal} from './increment.ts'
import {bounded, compared, median, type Result} from './result.ts'

const files = {'10MB': '10 MB', '200MB': '200 MB', bench: '750 MB'} as const satisfies Partial<
  Record<Size, string>
>
const changes: readonly Change[] = [{changed: 1, deleted: 0}, usualChange, {changed: 10_000, deleted: 0}]
/** A sync of the same change may take so many times as long in the largest file as in the smallest one. */
const FLAT = 2

/** What a sync costs by the size of its file and by what has changed, in both journal modes. */
export const benchGrowth: Benchmark = async ({server, rounds, say}) => {
  const results: Result[] = []
  for (const journal of ['wal', 'delete'] as const satisfies Journal[]) {
    const bySize = new Map<Size, number[][]>()
    for (const size of Object.keys(files) as (keyof typeof files)[]) {
      const file = sourceFile(size, say)
      const times = await incrementTimes(
        {server, file, rounds, say},
        journal,
        changes,
        `growth ${journal} ${size}`,
      )
      bySize.set(size, times)
      for (const [i, {changed, deleted}] of changes.entries()) {
        const work = `${changed} changed + ${deleted} deleted rows, ${files[size]}, journal mode ${journal}`
        results.push({...bounded({name: 'growth', work, must: Infinity}, times[i]!), must: null})
      }
    }
    const of = (size: Size) => bySize.get(size)![1]!
    const work = `${usualChange.changed} changed + ${usualChange.deleted} deleted rows in 750 MB, journal mode ${journal}`
    const held = compared(
      {name: 'growth', work, reference: 'the same in 10 MB', must: FLAT},
      {ours: of('bench'), reference: of('10MB').map(() => median(of('10MB')))},
    )
    // Only the log tells what has changed without a look at the whole file.
    results.push(journal === 'wal' ? held : {...held, must: null, holds: true})
  }
  return results
}
