import {createHash, randomBytes, timingSafeEqual} from 'node:crypto'
import {readFile, stat} from 'node:fs/promises'
import type {Log} from '../telemetry/log.ts'
import {Guesses, type GuessPace} from './guesses.ts'
import {refusals} from './problem.ts'

// Who may use the API: a file of lines `name scope sha256hex`. It holds no token, only what a token is recognized by.

export type Scope = 'read' | 'operate'

/** Whoever has sent a valid token. */
export type Caller = {readonly name: string; readonly scope: Scope}

type Line = Caller & {readonly hash: Buffer}

/** A name of a token, as it stands in the file and in the audit log. */
export const TOKEN_NAME = /^[A-Za-z0-9][A-Za-z0-9._@-]{0,62}$/

/** @returns a new token, to be shown once, and its line for the file. */
export function newToken(name: string, scope: Scope): {readonly token: string; readonly line: string} {
  const token = `owsync_${randomBytes(32).toString('base64url')}`
  return {token, line: `${name} ${scope} ${hashOf(token).toString('hex')}`}
}

/** What a token file says. `problems` name lines that were left out, by their number. */
export function parseTokens(text: string): {readonly tokens: Line[]; readonly problems: string[]} {
  const tokens: Line[] = []
  const problems: string[] = []
  for (const [i, line] of text.split('\n').entries()) {
    const words = line.replace(/#.*$/, '').trim().split(/\s+/)
    if (words[0] === '') continue
    const [name = '', scope = '', hex = ''] = words
    const isRight =
      words.length === 3 && TOKEN_NAME.test(name) && isScope(scope) && /^[0-9a-f]{64}$/i.test(hex)
    if (isRight) tokens.push({name, scope, hash: Buffer.from(hex, 'hex')})
    else problems.push(`line ${i + 1} is not \`name scope sha256hex\``)
  }
  return {tokens, problems}
}

/** How soon a change of the file is noticed. */
const FRESH_MS = 1_000
/** For a token that is not known the file is looked at sooner: it may have just been added. */
const UNKNOWN_FRESH_MS = 50

/**
 * The tokens of a file, read again whenever it changes. A file that is missing, cannot be read, or can be written by
 * everybody lets nobody in.
 */
export class Tokens {
  readonly #file: string
  readonly #log: Log
  #tokens: readonly Line[] = []
  #version = ''
  #lookedAt = -Infinity
  #looking: Promise<void> | undefined
  readonly #guesses: Guesses
  /** Hashes of tokens that have been right: whoever has one is never slowed, whatever others try. */
  readonly #welcome = new Set<string>()
  readonly #finding = new Map<string, Promise<Caller | undefined>>()

  constructor(file: string, log: Log, pace?: GuessPace) {
    this.#file = file
    this.#log = log
    this.#guesses = new Guesses(log, pace)
  }

  /**
   * @param address of the caller: tokens that come from where wrong ones keep coming from are looked up more slowly.
   * @throws {RefusedError} 401 without a valid token, 403 when it may not do that.
   */
  async authenticate(authorization: string | undefined, needed: Scope, address?: string): Promise<Caller> {
    if (authorization === undefined) throw refusals.noToken('this needs a token')
    const [, token] = /^bearer +([A-Za-z0-9._~+/=-]{1,200})$/i.exec(authorization) ?? []
    if (token === undefined) throw refusals.noToken('the Authorization header is not `Bearer TOKEN`')
    const caller = address === undefined ? await this.find(token) : await this.#findFor(token, address)
    if (!caller) throw refusals.noToken('the token is not valid')
    if (needed === 'operate' && caller.scope !== 'operate') throw refusals.scope(caller.name)
    return caller
  }

  /** @returns whose token it is. */
  async find(token: string): Promise<Caller | undefined> {
    await this.#look(FRESH_MS)
    const hash = hashOf(token)
    const known = this.#match(hash)
    if (known) return known
    await this.#look(UNKNOWN_FRESH_MS)
    return this.#match(hash)
  }

  async #findFor(token: string, address: string): Promise<Caller | undefined> {
    const hash = hashOf(token).toString('hex')
    const known = this.#welcome.has(hash) ? await this.find(token) : undefined
    if (known) return known
    this.#welcome.delete(hash)
    // A page asks for ten things at once when it is opened: that is one token.
    const key = `${address} ${hash}`
    let finding = this.#finding.get(key)
    if (!finding) {
      finding = this.#guesses.slowed(address, () => this.find(token)).finally(() => this.#finding.delete(key))
      this.#finding.set(key, finding)
    }
    const found = await finding
    if (found) this.#welcome.add(hash)
    return found
  }

  /** Compares with every line, whichever matches, so that the time it takes says nothing. */
  #match(hash: Buffer): Caller | undefined {
    let found: Caller | undefined
    for (const {name, scope, hash: known} of this.#tokens)
      if (timingSafeEqual(hash, known)) found ??= {name, scope}
    return found
  }

  async #look(freshMs: number): Promise<void> {
    if (performance.now() - this.#lookedAt < freshMs) return
    await (this.#looking ??= this.#read().finally(() => {
      this.#looking = undefined
    }))
  }

  async #read(): Promise<void> {
    const askedAt = performance.now()
    try {
      const {mtimeMs, ctimeMs, size, ino, mode} = await stat(this.#file)
      const version = [mtimeMs, ctimeMs, size, ino, mode].join(' ')
      if (version !== this.#version) {
        if ((mode & 0o002) !== 0) throw new Error('everybody may write it')
        const {tokens, problems} = parseTokens(await readFile(this.#file, 'utf8'))
        this.#tokens = tokens
        this.#version = version
        for (const problem of problems)
          this.#log.warn({file: this.#file, problem}, 'a line of the token file is left out')
        this.#log.info({file: this.#file, tokens: tokens.length}, 'API tokens read')
      }
    } catch (err) {
      this.#tokens = []
      // Told once for each way in which it fails.
      const version = err instanceof Error ? err.message : String(err)
      if (version !== this.#version) {
        const isMissing = err instanceof Error && 'code' in err && err.code === 'ENOENT'
        if (isMissing)
          this.#log.info({file: this.#file}, 'there are no API tokens; owsync token add makes one')
        else this.#log.error({file: this.#file, err}, 'the token file cannot be used; nobody is let in')
      }
      this.#version = version
    }
    this.#lookedAt = askedAt
  }
}

function hashOf(token: string): Buffer {
  return createHash('sha256').update(token).digest()
}

function isScope(text: string): text is Scope {
  return text === 'read' || text === 'operate'
}
