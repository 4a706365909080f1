import {createHash, createHmac, pbkdf2Sync, randomBytes} from 'node:crypto'

const ITERATIONS = 4_096

/** @returns a password of 32 random bytes, in characters that need no escaping in a URL. */
export function generatePassword(): string {
  return randomBytes(32).toString('base64url')
}

/**
 * @param password ASCII, so that it is its own SASLprep form.
 * @returns what Postgres stores for it (RFC 5803): given to `create role … password`, the password stays with us.
 */
export function scramVerifier(password: string, salt = randomBytes(16)): string {
  const salted = pbkdf2Sync(password, salt, ITERATIONS, 32, 'sha256')
  const storedKey = createHash('sha256').update(hmac(salted, 'Client Key')).digest('base64')
  const serverKey = hmac(salted, 'Server Key').toString('base64')
  return `SCRAM-SHA-256$${ITERATIONS}:${salt.toString('base64')}$${storedKey}:${serverKey}`
}

function hmac(key: Buffer, text: string): Buffer {
  return createHmac('sha256', key).update(text).digest()
}
