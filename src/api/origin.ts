import {BlockList, isIP} from 'node:net'
import {refusals} from './problem.ts'

// Who is near, and by which name we may be called. A page that a browser of this machine shows can reach loopback too:
// by a name of its own that it lets point here (DNS rebinding), or by a request across origins.

/** @returns whether an address lies in one of `networks` (`10.0.0.0/8`, `::1/128`). */
export function networkCheck(networks: readonly string[]): (address: string) => boolean {
  const list = new BlockList()
  for (const network of networks) {
    const [address = '', bits = ''] = network.split('/')
    list.addSubnet(address, Number(bits), isIP(address) === 6 ? 'ipv6' : 'ipv4')
  }
  return address => {
    // A socket that takes both families shows IPv4 as a part of IPv6; a link-local address has its interface behind it.
    const plain = address.replace(/^::ffff:(?=\d+\.)/i, '').replace(/%.*$/, '')
    const family = isIP(plain)
    return family !== 0 && list.check(plain, family === 6 ? 'ipv6' : 'ipv4')
  }
}

/** Headers that say what a request believes to be talking to. */
export type Addressed = {
  readonly host?: string | undefined
  readonly origin?: string | undefined
  readonly 'sec-fetch-site'?: string | undefined
}

/**
 * Makes the check of Host and Origin. An address may always be in Host: only a name can be made to point elsewhere.
 *
 * @param names host names that are ours, without ports; another array when they have changed.
 * @returns a function that throws when the request is not meant for us.
 */
export function originCheck(names: () => readonly string[]): (headers: Addressed, method: string) => void {
  let known: readonly string[] = []
  let ours: ReadonlySet<string> = new Set(['localhost'])
  return ({host = '', origin, 'sec-fetch-site': site}, method) => {
    if (names() !== known) {
      known = names()
      ours = new Set(['localhost', ...known.map(name => name.toLowerCase())])
    }
    const name = hostnameOf(host)
    if (name === undefined || !(isIP(name) !== 0 || isOurs(ours, name)))
      throw refusals.origin(`the API is not called ${JSON.stringify(host.slice(0, 100))}`)
    if (origin !== undefined && origin.replace(/^https?:\/\//i, '').toLowerCase() !== host.toLowerCase())
      throw refusals.origin(`requests of pages from ${JSON.stringify(origin.slice(0, 100))} are refused`)
    if (site === 'cross-site' && method !== 'GET' && method !== 'HEAD')
      throw refusals.origin('requests of other sites’ pages are refused')
  }
}

function isOurs(ours: ReadonlySet<string>, name: string): boolean {
  // A certificate may be for every name one level below another.
  return ours.has(name) || ours.has(name.replace(/^[^.]+/, '*'))
}

/** @returns the host of `host:port`, in lower case, without the brackets of IPv6; `undefined` when it is none. */
function hostnameOf(host: string): string | undefined {
  const [, bracketed, plain] = /^(?:\[([0-9a-f:.]+)\]|([a-z0-9._-]+))(?::\d{1,5})?$/i.exec(host) ?? []
  return (bracketed ?? plain?.replace(/\.$/, ''))?.toLowerCase()
}
