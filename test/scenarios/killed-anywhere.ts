import assert from 'node:assert/strict'
import {rmSync} from 'node:fs'
import {join} from 'node:path'
import {setImmediate as nextTurn, setTimeout as sleep} from 'node:timers/promises'
import {assertMirror, type Mirror} from '../mirror.ts'
import {chanceOf, makeFile, mutate, type Chance} from '../mutator.ts'
import {proxyTo, type Proxy} from '../proxy.ts'
import {testSite, type Run, type Running, type RunOptions, type Site} from '../site.ts'

/** What a torture went through. */
export type Tally = {
  readonly killed: number
  readonly cut: number
  readonly finished: number
  readonly converged: number
}

type Client = {
  readonly name: string
  readonly file: string
  /** From which size changes are found by pages. */
  readonly paged: string
  before: Mirror | undefined
  isKnown: boolean
}

/** How a run is disturbed. */
const faults = ['at a turn', 'at a turn', 'after a while', 'answer lost', 'connection cut', 'none'] as const

/**
 * Rounds of `owsync sync` as a real process, killed or cut off at random moments, while the file changes. Now and then
 * the sidecar is lost, or a new client is loaded for the first time in many small chunks. Whenever a run says success,
 * and at last in any case, the target equals the source, nothing is there twice, and no row has left without a trace.
 */
export async function torture(rounds: number, seed: number): Promise<Tally> {
  const chance = chanceOf(seed)
  await using site = await testSite()
  await using proxy = await proxyTo(site.host.endpoint)
  const tally = {killed: 0, cut: 0, finished: 0, converged: 0}
  let client = newClient(site, chance, 1)
  for (let round = 1; round <= rounds; round++) {
    // A first load that is interrupted again and again has to end at some time.
    if (client.isKnown && chance.below(9) === 0) {
      await converge(site, client)
      client = newClient(site, chance, round)
    } else mutate(client.file, chance)
    const isSidecarLost = chance.below(8) === 0
    if (isSidecarLost) rmSync(join(site.stateDir, 'sidecars'), {recursive: true, force: true})
    const fault = chance.pick(faults)
    const flags = chance.below(12) === 0 ? ['--full'] : []
    const changesMeanwhile = chance.below(5) === 0
    try {
      const started = site.start(client.name, {
        ...optionsOf(client),
        flags,
        endpoint: proxy.endpoint,
      })
      const [run] = await Promise.all([
        disturb(started, fault, proxy, chance),
        changesMeanwhile
          ? sleep(chance.below(500)).then(() => {
              mutate(client.file, chance, 1)
            })
          : undefined,
      ])
      proxy.heal()
      judge(run, fault)
      if (run.code === null) tally.killed++
      else if (run.code === 0) tally.finished++
      else tally.cut++
      if (run.code === 0 && !changesMeanwhile)
        client.before = await assertMirror(site.db, client.name, client.file, client.before)
      if (run.code === 0) client.isKnown = true
      if (chance.below(3) === 0 || round === rounds) {
        await converge(site, client)
        tally.converged++
      }
    } catch (cause) {
      const where = `${fault}${isSidecarLost ? ', sidecar lost' : ''}${changesMeanwhile ? ', changing' : ''} ${flags.join(' ')}`
      throw new Error(`round ${round} of seed ${seed}, ${client.name} (${where})`, {cause})
    }
  }
  return tally
}

function newClient(site: Site, chance: Chance, round: number): Client {
  const name = `client${round}`
  const file = join(site.folder, `${name}.db`)
  makeFile(file, chance, {journal: chance.pick(['delete', 'wal']), rows: 40})
  return {name, file, paged: chance.pick(['0', '0', '']), before: undefined, isKnown: false}
}

function optionsOf(client: Client): RunOptions {
  return {
    sqlite: client.file,
    preload: 'crash-points.ts',
    env: {CHUNK_BYTES: '100000', PAGED_BYTES: client.paged, LOCK_BUDGET_MS: '1', DELETE_GUARD: 'off'},
  }
}

/** A sync of about 25 turns takes about half a second on a machine of its own. */
async function disturb(
  started: Running,
  fault: (typeof faults)[number],
  proxy: Proxy,
  chance: Chance,
): Promise<Run> {
  const first = proxy.turns
  const wanted = 5 + chance.below(30)
  const isThere = async () => {
    while (!started.hasEnded() && proxy.turns - first < wanted) await nextTurn()
    return !started.hasEnded()
  }
  switch (fault) {
    case 'at a turn':
      if (await isThere()) {
        if (chance.below(2) === 0) await sleep(chance.below(20))
        started.kill()
      }
      break
    case 'after a while':
      await Promise.race([sleep(250 + chance.below(500)), started.ended])
      started.kill()
      break
    case 'answer lost':
      if (await isThere()) {
        proxy.silence('down')
        await Promise.race([sleep(20 + chance.below(60)), started.ended])
        started.kill()
      }
      break
    case 'connection cut':
      if (chance.below(2) === 0) proxy.cutAfter(chance.below(300_000), chance.pick(['up', 'down']))
      else if (await isThere()) proxy.cut()
      break
    case 'none':
  }
  return started.ended
}

/** A run that was not killed either did it or said that it may be tried again. */
function judge(run: Run, fault: (typeof faults)[number]): void {
  if (run.code === null) {
    assert.notEqual(fault, 'none')
    return
  }
  if (run.code === 0) {
    assert.equal(run.result?.status, 'success')
    return
  }
  assert.equal(run.code, 75, `${run.out}${run.err}`)
  assert.ok(
    ['SYNC_CONNECTION_LOST', 'SYNC_UNREACHABLE', 'SYNC_FENCED_OUT'].includes(run.error?.code ?? ''),
    run.out,
  )
}

async function converge(site: Site, client: Client): Promise<void> {
  const run = await site.sync(client.name, optionsOf(client))
  assert.equal(run.code, 0, `${run.out}${run.err}`)
  client.before = await assertMirror(site.db, client.name, client.file, client.before)
  client.isKnown = true
}
