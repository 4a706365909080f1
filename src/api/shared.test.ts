import assert from 'node:assert/strict'
import {test} from 'vitest'
import {Shared} from './shared.ts'

/** Work that a test lets end, run by run. */
function held() {
  const runs: PromiseWithResolvers<string>[] = []
  const shared = new Shared<{readonly of: string}, string>(() => {
    const run = Promise.withResolvers<string>()
    runs.push(run)
    return run.promise
  })
  return {runs, shared}
}

const turn = () => new Promise(resolve => setImmediate(resolve))

test('who asks while a run goes on shares the next one, which began after he asked', async () => {
  const {runs, shared} = held()
  const first = shared.get({of: 'a'})
  const [second, third] = [shared.get({of: 'a'}), shared.get({of: 'a'})]
  assert.equal(runs.length, 1)
  runs[0]!.resolve('old')
  assert.equal(await first, 'old')
  await turn()
  assert.equal(runs.length, 2)
  const fourth = shared.get({of: 'a'})
  runs[1]!.resolve('new')
  assert.deepEqual(await Promise.all([second, third]), ['new', 'new'])
  await turn()
  runs[2]!.resolve('newest')
  assert.equal(await fourth, 'newest')
})

test('another question is another run', async () => {
  const {runs, shared} = held()
  const both = Promise.all([shared.get({of: 'a'}), shared.get({of: 'b'})])
  runs[0]!.resolve('A')
  runs[1]!.resolve('B')
  assert.deepEqual(await both, ['A', 'B'])
})

test('a run that fails is told to those who share it, and the next one is tried', async () => {
  const {runs, shared} = held()
  const first = shared.get({of: 'a'})
  const second = shared.get({of: 'a'})
  runs[0]!.reject(new Error('no'))
  await assert.rejects(first, /no/)
  await turn()
  runs[1]!.resolve('yes')
  assert.equal(await second, 'yes')
})
