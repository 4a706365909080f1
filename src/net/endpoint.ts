import {readFileSync} from 'node:fs'
import {isIP} from 'node:net'
import {UsageError} from '../core/errors.ts'

/** How the server's certificate is checked; `false` when the connection needs no TLS. */
export type Tls = false | {readonly rejectUnauthorized: true; readonly ca?: string}

/** Where a Postgres database is and how to reach it. Frozen; `password` is not enumerable, so it is never logged. */
export type Endpoint = {
  /** A name, an address, or the directory of a Unix socket (beginning with `/`). */
  readonly host: string
  readonly port: number
  readonly user: string
  readonly password: string | undefined
  readonly database: string
  readonly ssl: Tls
  /** The address as a person may see it: without the password. */
  readonly display: string
}

/** The settings that say how Postgres is reached. */
export type EndpointSettings = {
  /** `DB_SSL`. Loopback addresses and Unix sockets need none. */
  readonly ssl?: 'verify-full' | 'disable' | undefined
  /** `DB_SSL_CA_FILE`: certificates to trust instead of those Node comes with. Also asks for TLS on loopback. */
  readonly caFile?: string | undefined
}

const HOW =
  'Write it as postgres://USER:PASSWORD@HOST:5432/DATABASE, with special characters in the password %-encoded.'

/**
 * Reads a Postgres URL.
 *
 * @throws {UsageError} when it is no such URL or its CA file cannot be read; the password is never in the message.
 */
export function parseEndpoint(url: string, settings: EndpointSettings = {}): Endpoint {
  const {protocol, authority, path, query} = partsOf(url)
  if (protocol !== 'postgres' && protocol !== 'postgresql') {
    throw new UsageError('the database URL must begin with postgres:// or postgresql://', HOW)
  }
  refuseUnknown(query)

  const at = authority.lastIndexOf('@')
  const [user, password] = credentials(authority.slice(0, Math.max(at, 0)))
  const [hostInUrl, port] = hostAndPort(authority.slice(at + 1))
  const host = query.get('host') ?? decoded(hostInUrl, 'host')
  if (host === '') throw new UsageError('the database URL names no host', HOW)
  if (host.includes(',')) throw new UsageError('the database URL names several hosts; give one', HOW)
  const database = decoded(path, 'database name')
  if (database === '') throw new UsageError('the database URL names no database', HOW)

  return frozen({
    host,
    port: query.has('port') ? portOf(query.get('port') ?? '') : port,
    user: query.get('user') ?? user,
    password,
    database,
    ssl: tlsFor(host, settings),
  })
}

/** @returns the same place under another name or database; `password: undefined` keeps the password. */
export function withChanges(
  endpoint: Endpoint,
  changes: Partial<Pick<Endpoint, 'host' | 'port' | 'user' | 'password' | 'database' | 'ssl'>>,
): Endpoint {
  return frozen({
    host: changes.host ?? endpoint.host,
    port: changes.port ?? endpoint.port,
    user: changes.user ?? endpoint.user,
    password: changes.password ?? endpoint.password,
    database: changes.database ?? endpoint.database,
    ssl: changes.ssl ?? endpoint.ssl,
  })
}

/** @returns the URL with its password: for a person who asked for it, or for a secrets file; never for a log. */
export function urlOf(endpoint: Endpoint): string {
  const {host, port, user, password, database} = endpoint
  const secret = password === undefined ? '' : `:${encodeURIComponent(password)}`
  const name = encodeURIComponent(user)
  if (isSocket(host)) {
    return `postgresql://${name}${secret}@/${encodeURIComponent(database)}?host=${encodeURIComponent(host)}&port=${port}`
  }
  return `postgresql://${name}${secret}@${bracketed(host)}:${port}/${encodeURIComponent(database)}`
}

/** True for a host that only this machine reaches: a Unix socket or a loopback address. */
export function isLocal(host: string): boolean {
  return (
    isSocket(host) || host === 'localhost' || host === '::1' || (isIP(host) === 4 && host.startsWith('127.'))
  )
}

function frozen(parts: Omit<Endpoint, 'display'>): Endpoint {
  const {password, ...shown} = parts
  const display = isSocket(parts.host)
    ? `${parts.user}@${parts.host}:${parts.port}/${parts.database}`
    : `${parts.user}@${bracketed(parts.host)}:${parts.port}/${parts.database}`
  const endpoint = Object.defineProperty({...shown, display}, 'password', {
    value: password,
    enumerable: false,
  })
  return Object.freeze(endpoint as Endpoint)
}

// Not `new URL`: its errors carry the whole input, and it refuses the empty host of `postgresql:///db?host=/path`.
function partsOf(url: string): {protocol: string; authority: string; path: string; query: URLSearchParams} {
  const match = /^([a-z]+):\/\/([^?]*)(?:\?(.*))?$/s.exec(url.trim())
  if (!match) throw new UsageError('the database URL is not a URL', HOW)
  const [, protocol = '', rest = '', query = ''] = match
  // A slash within the password belongs to it: the path begins at the first slash after the last @.
  const slash = rest.indexOf('/', Math.max(rest.lastIndexOf('@'), 0))
  const authority = slash < 0 ? rest : rest.slice(0, slash)
  return {
    protocol,
    authority,
    path: slash < 0 ? '' : rest.slice(slash + 1),
    query: new URLSearchParams(query),
  }
}

function refuseUnknown(query: URLSearchParams): void {
  for (const name of query.keys()) {
    if (name === 'host' || name === 'port' || name === 'user') continue
    if (name.startsWith('ssl')) {
      throw new UsageError(
        `the database URL says ${name}=, which is not read from there`,
        'Remove it from the URL and set DB_SSL=verify-full or DB_SSL=disable, and DB_SSL_CA_FILE for a CA of your own.',
      )
    }
    // Its name could be the tail of a password with an unescaped question mark, so it is not repeated.
    throw new UsageError(
      'the database URL has a parameter that is not known',
      'Only host, port and user may follow the ?.',
    )
  }
}

function credentials(text: string): [user: string, password: string | undefined] {
  const colon = text.indexOf(':')
  const user = decoded(colon < 0 ? text : text.slice(0, colon), 'user name')
  if (user === '' && colon >= 0) throw new UsageError('the database URL has a password but no user', HOW)
  const password = colon < 0 ? undefined : decoded(text.slice(colon + 1), 'password')
  return [user === '' ? 'postgres' : user, password === '' ? undefined : password]
}

function hostAndPort(text: string): [host: string, port: number] {
  const match = /^(?:\[([^\]]*)\]|([^:]*))(?::(.*))?$/.exec(text)
  if (!match)
    throw new UsageError(
      'the database URL has no readable host',
      `${HOW} An IPv6 address stands in [brackets].`,
    )
  const [, bracketed, plain, port] = match
  return [bracketed ?? plain ?? '', port === undefined || port === '' ? 5432 : portOf(port)]
}

function portOf(text: string): number {
  const port = Number(text)
  // The text is not repeated: after an unescaped colon it is a part of the password.
  if (!/^\d+$/.test(text) || port < 1 || port > 65_535) {
    throw new UsageError('the port in the database URL is not a number from 1 to 65535', HOW)
  }
  return port
}

function decoded(text: string, what: string): string {
  try {
    return decodeURIComponent(text)
  } catch {
    // Without its cause: that error carries the text.
    throw new UsageError(`the ${what} in the database URL is not well %-encoded`, 'Write a % itself as %25.')
  }
}

function tlsFor(host: string, {ssl, caFile}: EndpointSettings): Tls {
  if (ssl === 'disable' || isSocket(host)) return false
  if (caFile === undefined) return isLocal(host) ? false : {rejectUnauthorized: true}
  return {rejectUnauthorized: true, ca: certificates(caFile)}
}

function certificates(file: string): string {
  let text: string
  try {
    text = readFileSync(file, 'utf8')
  } catch (cause) {
    throw new UsageError(`the CA file ${file} cannot be read`, 'Check DB_SSL_CA_FILE and who may read it.', {
      cause,
    })
  }
  if (text.includes('-----BEGIN CERTIFICATE-----')) return text
  throw new UsageError(
    `the CA file ${file} holds no certificate`,
    'DB_SSL_CA_FILE takes PEM, as downloaded from Supabase.',
  )
}

function isSocket(host: string): boolean {
  return host.startsWith('/')
}

function bracketed(host: string): string {
  return host.includes(':') ? `[${host}]` : host
}
