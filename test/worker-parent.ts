import {Workers, type WorkersOptions} from '../src/service/workers.ts'
import type {Order} from '../src/service/worker-messages.ts'
import {silentLog} from '../src/telemetry/log.ts'

// A process that leads and has workers, for tests to kill or to freeze: it keeps saying that its lease holds for another
// `leaseMs`, runs the orders once, and tells which processes it has started.

export type ParentOrder = {
  readonly settings: WorkersOptions['settings']
  readonly leaseMs: number
  readonly orders: readonly Order[]
}

export type ParentNews = {readonly pids: readonly (number | undefined)[]; readonly ended: number}

process.once('message', ({settings, leaseMs, orders}: ParentOrder) => {
  const {signal} = new AbortController()
  const {nodeId, epoch} = settings
  const workers = new Workers({
    settings,
    lease: {nodeId, epoch, signal, endsAt: () => performance.now() + leaseMs},
    stallMs: 60_000,
    most: orders.length,
    log: silentLog,
  })
  let ended = 0
  for (const order of orders)
    void workers.sync(order, signal).finally(() => {
      ended++
    })
  setInterval(() => {
    const news: ParentNews = {pids: workers.states.map(({pid}) => pid), ended}
    process.send?.(news)
  }, 50)
})
