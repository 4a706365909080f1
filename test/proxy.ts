import {connect, createServer, type AddressInfo, type Socket} from 'node:net'
import {withChanges, type Endpoint} from '../src/net/endpoint.ts'

/** Which way bytes go: up to the server, down to the client. */
export type Direction = 'up' | 'down'

/** A TCP proxy before a real server, for faults of the network. Every switch also acts on open connections. */
export type Proxy = AsyncDisposable & {
  /** The server's endpoint, through this proxy. */
  readonly endpoint: Endpoint
  /** Round trips so far: how often a client spoke after its server had (or first). Opening takes some as well. */
  readonly turns: number
  readonly bytes: Readonly<Record<Direction, number>>
  readonly connections: number
  /** Holds every chunk back this long, both ways. */
  delay(ms: number): void
  /** Swallows what goes that way; the connection stays open and says nothing. */
  silence(...directions: Direction[]): void
  /** Ends delay, silence, refusal and cutAfter. What was swallowed is gone. */
  heal(): void
  /** Resets every connection now. */
  cut(): void
  /** Resets a connection as soon as this many further bytes went that way; what lies beyond is not forwarded. */
  cutAfter(bytes: number, direction: Direction): void
  /** Resets new connections at once. */
  refuse(): void
}

/** Starts a proxy on a free loopback port. */
export async function proxyTo(target: Endpoint): Promise<Proxy> {
  const pairs = new Set<readonly [client: Socket, server: Socket]>()
  const bytes = {up: 0, down: 0}
  const silenced = new Set<Direction>()
  let turns = 0
  let delayMs = 0
  let isRefusing = false
  let limit: {left: number; direction: Direction} | undefined

  const server = createServer(client => {
    client.on('error', () => undefined)
    if (isRefusing) {
      client.resetAndDestroy()
      return
    }
    const upstream = target.host.startsWith('/')
      ? connect(`${target.host}/.s.PGSQL.${target.port}`)
      : connect(target.port, target.host)
    upstream.on('error', () => client.resetAndDestroy())
    const pair = [client, upstream] as const
    pairs.add(pair)
    client.setNoDelay(true)
    upstream.setNoDelay(true)

    let lastSpeaker: Direction = 'down'
    const carry = (from: Socket, to: Socket, direction: Direction) => {
      const after = (act: () => void) => {
        if (delayMs === 0) act()
        else setTimeout(act, delayMs)
      }
      from.on('data', (chunk: Buffer) => {
        if (direction === 'up' && lastSpeaker === 'down') turns++
        lastSpeaker = direction
        bytes[direction] += chunk.length
        if (silenced.has(direction)) return
        let rest = chunk
        let isCut = false
        if (limit?.direction === direction) {
          isCut = chunk.length >= limit.left
          rest = chunk.subarray(0, limit.left)
          limit.left -= rest.length
          if (isCut) limit = undefined
        }
        after(() => {
          if (to.destroyed) return
          if (isCut) {
            to.write(rest, () => {
              reset(pair)
            })
          } else if (!to.write(rest)) {
            from.pause()
            to.once('drain', () => from.resume())
          }
        })
      })
      from.on('end', () => {
        if (!silenced.has(direction)) after(() => to.end())
      })
      from.on('close', () => {
        pairs.delete(pair)
        if (!silenced.has(direction)) after(() => to.destroy())
      })
    }
    carry(client, upstream, 'up')
    carry(upstream, client, 'down')
  })
  await new Promise<void>(resolve => server.listen(0, '127.0.0.1', resolve))

  const cut = () => {
    for (const pair of pairs) reset(pair)
  }
  return {
    endpoint: withChanges(target, {host: '127.0.0.1', port: (server.address() as AddressInfo).port}),
    bytes,
    cut,
    get turns() {
      return turns
    },
    get connections() {
      return pairs.size
    },
    delay(ms) {
      delayMs = ms
    },
    silence(...directions) {
      for (const direction of directions) silenced.add(direction)
    },
    heal() {
      silenced.clear()
      limit = undefined
      isRefusing = false
      delayMs = 0
    },
    cutAfter(left, direction) {
      limit = {left, direction}
    },
    refuse() {
      isRefusing = true
    },
    async [Symbol.asyncDispose]() {
      cut()
      await new Promise(resolve => server.close(resolve))
    },
  }
}

function reset([client, server]: readonly [Socket, Socket]): void {
  for (const socket of [client, server]) {
    // A Unix socket cannot be reset, only closed.
    if (socket.remoteAddress === undefined) socket.destroy()
    else socket.resetAndDestroy()
  }
}
