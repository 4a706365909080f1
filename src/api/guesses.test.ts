import assert from 'node:assert/strict'
import {mkdtemp, rm, writeFile} from 'node:fs/promises'
import {tmpdir} from 'node:os'
import {join} from 'node:path'
import {PassThrough} from 'node:stream'
import {test} from 'vitest'
import {createLog, silentLog} from '../telemetry/log.ts'
import {Guesses, usualGuessPace} from './guesses.ts'
import {newToken, Tokens} from './tokens.ts'

const pace = {free: 3, firstMs: 40, longestMs: 160, forgetMs: 60_000}
const wrong = () => Promise.resolve(undefined)
const right = () => Promise.resolve('ada')

/** Tries once. @returns for how many milliseconds that took, at least: timers are a little early. */
async function tookMs(work: Promise<unknown>): Promise<number> {
  const since = performance.now()
  await work
  return performance.now() - since + 2
}

test('wrong tokens of one address are answered more and more slowly, those of another are not', async () => {
  const guesses = new Guesses(silentLog, pace)
  for (let i = 0; i < pace.free; i++) await guesses.slowed('192.0.2.1', wrong)
  for (const pauseMs of [40, 80, 160, 160])
    assert.ok((await tookMs(guesses.slowed('192.0.2.1', wrong))) >= pauseMs, `${pauseMs} ms`)
  // Where nobody has guessed nothing is waited for: else this one would come last.
  const order: string[] = []
  await Promise.all([
    guesses.slowed('192.0.2.1', wrong).then(() => order.push('slowed')),
    guesses.slowed('192.0.2.2', wrong).then(() => order.push('at once')),
  ])
  assert.deepEqual(order, ['at once', 'slowed'])
})

test('many at once are as many guesses', async () => {
  const guesses = new Guesses(silentLog, pace)
  const took = await tookMs(Promise.all(Array.from({length: 6}, () => guesses.slowed('192.0.2.1', wrong))))
  assert.ok(took >= 160, `${took} ms`)
})

test('addresses of one IPv6 network are one', async () => {
  const guesses = new Guesses(silentLog, pace)
  for (const address of ['2001:db8::1', '2001:db8:0:0::2', '2001:db8:0:0:1::3'])
    await guesses.slowed(address, wrong)
  assert.ok((await tookMs(guesses.slowed('2001:db8:0:0:ffff::4', wrong))) >= 40)
  const order: string[] = []
  await Promise.all([
    guesses.slowed('2001:db8::9', wrong).then(() => order.push('slowed')),
    guesses.slowed('2001:db8:0:1::9', wrong).then(() => order.push('at once')),
  ])
  assert.deepEqual(order, ['at once', 'slowed'])
})

test('an address is forgotten when it has been quiet, and is told of once until then', async () => {
  let now = 0
  let logged = ''
  const stream = new PassThrough()
  stream.on('data', (chunk: Buffer) => (logged += chunk.toString()))
  const guesses = new Guesses(
    createLog({level: 'info', format: 'json', stream}),
    {...pace, firstMs: 0},
    () => now,
  )
  const told = () => logged.split('\n').filter(line => line.includes('keep coming')).length
  for (let i = 0; i < 6; i++) await guesses.slowed('192.0.2.1', wrong)
  assert.equal(told(), 1)
  assert.match(logged, /192\.0\.2\.1/)
  now = pace.forgetMs
  for (let i = 0; i < 3; i++) await guesses.slowed('192.0.2.1', wrong)
  assert.equal(told(), 1)
  await guesses.slowed('192.0.2.1', wrong)
  assert.equal(told(), 2)
})

test('right tokens are no guesses', async () => {
  const guesses = new Guesses(silentLog, {...pace, free: 1, firstMs: 60_000, longestMs: 60_000})
  for (let i = 0; i < 20; i++) assert.equal(await guesses.slowed('192.0.2.1', right), 'ada')
})

test('whoever has been let in is not slowed by those who guess from the same address; a new token is let in, late', async () => {
  const folder = await mkdtemp(join(tmpdir(), 'owsync-guesses-'))
  try {
    const file = join(folder, 'tokens')
    const [ada, grace] = [newToken('ada', 'read'), newToken('grace', 'read')]
    await writeFile(file, `${ada.line}\n${grace.line}\n`)
    const tokens = new Tokens(file, silentLog, {...usualGuessPace, free: 2, firstMs: 500, longestMs: 500})
    const isIn = async ({token}: {token: string}) =>
      (await tokens.authenticate(`Bearer ${token}`, 'read', '127.0.0.1')).name
    // A page that asks for many things at once is not a guesser.
    assert.deepEqual(new Set(await Promise.all(Array.from({length: 20}, () => isIn(ada)))), new Set(['ada']))
    const order: string[] = []
    const guessing = Promise.all(
      Array.from({length: 20}, (_, i) =>
        assert
          .rejects(isIn({token: `wrong${i}`}), {code: 'SYNC_API_TOKEN'})
          .then(() => order.push(i < 2 ? 'free' : 'guess')),
      ),
    )
    await Promise.all([
      guessing,
      isIn(ada).then(name => order.push(name)),
      isIn(grace).then(name => order.push(name)),
    ])
    assert.ok(order.indexOf('ada') < order.indexOf('guess'), order.join())
    assert.ok(order.includes('grace'))
  } finally {
    await rm(folder, {recursive: true})
  }
})
