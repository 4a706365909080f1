import {Socket, type SocketConnectOpts} from 'node:net'

// Node gives each address of a name 250 ms before it aborts the attempt, which a slow but working path does not
// survive (nodejs/node#54359).
const ATTEMPT_MS = 2_000

/** A socket that tries a name's IPv6 and IPv4 addresses one after the other and gives each of them two seconds. */
export class PatientSocket extends Socket {
  // The driver calls `connect(port, host)` for TCP and `connect(path)` for a Unix socket; both overloads stay valid.
  override connect(...args: unknown[]): this {
    const [where, host] = args
    if (typeof where === 'number' && typeof host === 'string') {
      return super.connect({
        port: where,
        host,
        autoSelectFamily: true,
        autoSelectFamilyAttemptTimeout: ATTEMPT_MS,
      })
    }
    if (typeof where === 'string') return super.connect({path: where})
    // What remains is Node's own call with an options object, made while upgrading to TLS.
    return super.connect(where as SocketConnectOpts)
  }
}
