import {X509Certificate} from 'node:crypto'
import {readFile, stat} from 'node:fs/promises'
import {setTimeout as sleep} from 'node:timers/promises'
import {createSecureContext} from 'node:tls'
import type {Config} from '../config/config.ts'
import {UsageError} from '../core/errors.ts'
import type {Log} from '../telemetry/log.ts'

/** A certificate with its chain and its private key, as PEM, and the host names it is for. */
export type Tls = {readonly cert: string; readonly key: string; readonly names: readonly string[]}

export type TlsFiles = Pick<Config, 'apiTlsCertFile' | 'apiTlsKeyFile'>

/** Certificates are renewed days before they end. */
const LOOK_EVERY_MS = 5_000

/**
 * Reads what the settings name; `undefined` when they name nothing.
 *
 * @throws {UsageError} for files that cannot be read, or do not belong together.
 */
export async function readTls(files: TlsFiles): Promise<Tls | undefined> {
  const {apiTlsCertFile, apiTlsKeyFile} = files
  if (apiTlsCertFile === undefined || apiTlsKeyFile === undefined) return undefined
  try {
    const [cert, key] = await Promise.all([readFile(apiTlsCertFile, 'utf8'), readFile(apiTlsKeyFile, 'utf8')])
    createSecureContext({cert, key})
    const names = new X509Certificate(cert).subjectAltName?.matchAll(/DNS:([^,\s]+)/g) ?? []
    return {cert, key, names: [...names].map(([, name = '']) => name)}
  } catch (cause) {
    throw new UsageError(
      `API_TLS_CERT_FILE and API_TLS_KEY_FILE cannot be used: ${cause instanceof Error ? cause.message : String(cause)}`,
      'They name a certificate (with its chain) and its private key, as PEM, which this user may read.',
      {cause},
    )
  }
}

/**
 * Reads the files again whenever they have changed, until `signal` aborts. Files that cannot be used change nothing: what
 * was read before goes on, and the log says so once, unless the next look finds them whole.
 */
export async function followTls(
  files: TlsFiles,
  {log, onChange}: {readonly log: Log; readonly onChange: (tls: Tls) => void},
  signal: AbortSignal,
): Promise<void> {
  let used = await versionOf(files)
  let refused: string | undefined
  let isTold = false
  for (;;) {
    try {
      await sleep(LOOK_EVERY_MS, undefined, {signal})
    } catch {
      return
    }
    const version = await versionOf(files)
    if (version === used || (version === refused && isTold)) continue
    try {
      const tls = await readTls(files)
      if (tls === undefined) return
      used = version
      refused = undefined
      onChange(tls)
      log.info({names: tls.names}, 'the API’s certificate has been read anew')
    } catch (err) {
      // Two files are not replaced in one step: between the steps they do not fit.
      if (version === refused) {
        log.error(
          {err, next: err instanceof UsageError ? err.next : undefined},
          'the API keeps its old certificate',
        )
        isTold = true
      } else isTold = false
      refused = version
    }
  }
}

/** Differs whenever one of the files has been written or replaced. */
async function versionOf({apiTlsCertFile = '', apiTlsKeyFile = ''}: TlsFiles): Promise<string> {
  const versions = [apiTlsCertFile, apiTlsKeyFile].map(async file => {
    try {
      const {mtimeMs, ctimeMs, size, ino} = await stat(file)
      return [mtimeMs, ctimeMs, size, ino].join(' ')
    } catch (error) {
      return String(error)
    }
  })
  return (await Promise.all(versions)).join('\n')
}
