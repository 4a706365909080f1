import {createServer, type AddressInfo, type Socket} from 'node:net'

/** Answers every connection as a pooler does that refuses it, until it is closed. */
export type RefusingServer = AsyncDisposable & {
  readonly port: number
  /** How often somebody wanted to connect. */
  readonly tries: number
}

/** @param message what the pooler says, such as `(ENOTFOUND) tenant/user x not found`. */
export async function refusingServer(message: string): Promise<RefusingServer> {
  let tries = 0
  const sockets = new Set<Socket>()
  const server = createServer(socket => {
    sockets.add(socket)
    socket.on('error', () => undefined)
    socket.once('data', () => {
      tries++
      socket.end(fatal(message))
    })
  })
  await new Promise<void>(resolve => server.listen(0, '127.0.0.1', resolve))
  return {
    port: (server.address() as AddressInfo).port,
    get tries() {
      return tries
    },
    async [Symbol.asyncDispose]() {
      for (const socket of sockets) socket.destroy()
      await new Promise(resolve => server.close(resolve))
    },
  }
}

/** An ErrorResponse of the protocol. */
function fatal(message: string): Buffer {
  const fields = `SFATAL\0VFATAL\0CXX000\0M${message}\0\0`
  const head = Buffer.alloc(5)
  head.write('E')
  head.writeInt32BE(4 + Buffer.byteLength(fields), 1)
  return Buffer.concat([head, Buffer.from(fields)])
}
