import {parseArgs} from 'node:util'
import {isSize, sizes, sourceFile} from './file.ts'
import {benchApi} from './api.ts'
import type {Benchmark} from './bench.ts'
import {benchCommitLatencyRollback, benchCommitLatencyWal} from './commit-latency.ts'
import {benchEdits} from './edits.ts'
import {benchFailover} from './failover.ts'
import {benchFirstLoad} from './first-load.ts'
import {benchFleet} from './fleet.ts'
import {benchGrowth} from './growth.ts'
import {benchIncrementRollback, benchIncrementWal} from './increment.ts'
import {load, type Loaded} from './loaded.ts'
import {benchMemory} from './memory.ts'
import {startServer} from './postgres.ts'
import {benchRestore} from './restore.ts'
import {tableOf, type Result} from './result.ts'
import {benchUnchanged} from './unchanged.ts'
import {benchVerify} from './verify.ts'

// `npm run bench [-- --json] [name…]`: docs/benchmarks.md says how to read it.

const benchmarks: Readonly<Record<string, Benchmark>> = {
  'first-load': benchFirstLoad,
  unchanged: benchUnchanged,
  'increment-rollback': benchIncrementRollback,
  'increment-wal': benchIncrementWal,
  'commit-latency-rollback': benchCommitLatencyRollback,
  'commit-latency-wal': benchCommitLatencyWal,
  growth: benchGrowth,
  verify: benchVerify,
  memory: benchMemory,
  edits: benchEdits,
  fleet: benchFleet,
  restore: benchRestore,
  failover: benchFailover,
  api: benchApi,
}

const usage = `npm run bench [-- --json] [--runs N] [--size ${Object.keys(sizes).join('|')}] [--server FOLDER] [name…]
names: ${Object.keys(benchmarks).join(', ')}`

const say = (text: string) => process.stderr.write(`${text}\n`)

async function main(argv: string[]): Promise<number> {
  const {values, positionals} = parseArgs({
    args: argv,
    allowPositionals: true,
    options: {
      json: {type: 'boolean', default: false},
      runs: {type: 'string', default: '3'},
      size: {type: 'string', default: 'bench'},
      server: {type: 'string'},
    },
  })
  const {json, size, server: bin} = values
  const rounds = Number(values.runs)
  const unknown = positionals.filter(name => !Object.hasOwn(benchmarks, name))
  if (!isSize(size) || !Number.isInteger(rounds) || rounds < 1 || unknown.length > 0) {
    say(usage)
    return 64
  }
  await using resources = new AsyncDisposableStack()
  const server = resources.use(await startServer(bin))
  say(`PostgreSQL ${server.version}, Node ${process.version}`)
  let made: string | undefined
  const bench = {
    server,
    // Made for those who want it.
    get file() {
      return (made ??= sourceFile(size, say))
    },
    rounds,
    say,
  }
  let shared: Promise<Loaded> | undefined
  const loaded = () => (shared ??= load(server, bench.file).then(loaded => resources.use(loaded)))
  const results: Result[] = []
  for (const [name, benchmark] of Object.entries(benchmarks)) {
    if (positionals.length > 0 && !positionals.includes(name)) continue
    say(name)
    results.push(...(await benchmark(Object.assign(bench, {loaded}))))
  }
  process.stdout.write(json ? `${JSON.stringify({results})}\n` : `${tableOf(results)}\n`)
  return results.some(result => result.holds === false) ? 1 : 0
}

process.exitCode = await main(process.argv.slice(2))
