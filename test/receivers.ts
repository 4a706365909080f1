import {once} from 'node:events'
import {createServer, type IncomingHttpHeaders} from 'node:http'
import type {AddressInfo} from 'node:net'
import {SMTPServer, type SMTPServerOptions} from 'smtp-server'

// Real receivers of alerts on loopback: an HTTP listener, and a mail server.

export type Post = {
  readonly path: string
  readonly headers: IncomingHttpHeaders
  readonly body: unknown
}

export type HttpReceiver = AsyncDisposable & {
  readonly url: string
  /** What has arrived, oldest first. */
  readonly posts: Post[]
  /** What the next requests are answered: a status, or nothing at all. */
  answer: number | 'silence'
}

/** Listens on a free port and takes what it is sent. */
export async function httpReceiver(): Promise<HttpReceiver> {
  const posts: Post[] = []
  const server = createServer((request, response) => {
    const chunks: Buffer[] = []
    request.on('data', (chunk: Buffer) => chunks.push(chunk))
    request.on('end', () => {
      const text = Buffer.concat(chunks).toString()
      posts.push({
        path: request.url ?? '',
        headers: request.headers,
        body: text === '' ? undefined : JSON.parse(text),
      })
      if (receiver.answer === 'silence') return
      response.writeHead(receiver.answer, {location: '/elsewhere'}).end('whatever')
    })
  })
  server.listen(0, '127.0.0.1')
  await once(server, 'listening')
  const receiver: HttpReceiver = {
    url: `http://127.0.0.1:${(server.address() as AddressInfo).port}`,
    posts,
    answer: 200,
    async [Symbol.asyncDispose]() {
      server.closeAllConnections()
      server.close()
      await once(server, 'close')
    },
  }
  return receiver
}

export type MailReceived = {readonly from: string; readonly to: readonly string[]; readonly text: string}

export type MailReceiver = AsyncDisposable & {
  readonly port: number
  readonly mails: MailReceived[]
  /** Every login that was tried: `user:password`. */
  readonly logins: string[]
}

/** A mail server on a free port that takes one login. */
export async function mailReceiver(login: string, options: SMTPServerOptions = {}): Promise<MailReceiver> {
  const mails: MailReceived[] = []
  const logins: string[] = []
  const server = new SMTPServer({
    authOptional: true,
    allowInsecureAuth: true,
    hideSTARTTLS: true,
    onAuth({username = '', password = ''}, _session, callback) {
      logins.push(`${username}:${password}`)
      if (logins.at(-1) === login) callback(null, {user: username})
      else callback(new Error(`no such login: ${password}`))
    },
    onData(stream, {envelope}, callback) {
      const chunks: Buffer[] = []
      stream.on('data', (chunk: Buffer) => chunks.push(chunk))
      stream.on('end', () => {
        mails.push({
          from: envelope.mailFrom === false ? '' : envelope.mailFrom.address,
          to: envelope.rcptTo.map(({address}) => address),
          text: Buffer.concat(chunks).toString(),
        })
        callback()
      })
    },
    ...options,
  })
  // A client that leaves in the middle is one of the cases.
  server.on('error', () => undefined)
  const listening = server.listen(0, '127.0.0.1')
  await once(listening, 'listening')
  return {
    port: (listening.address() as AddressInfo).port,
    mails,
    logins,
    [Symbol.asyncDispose]: () =>
      new Promise(resolve => {
        server.close(() => {
          resolve()
        })
      }),
  }
}
