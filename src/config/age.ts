/**
 * Decrypts an age file, binary or armored.
 *
 * @param identities the text of an identity file: a line each, `#` begins a comment.
 * @throws Error when no identity fits; it names no key.
 */
export async function decryptAge(encrypted: Uint8Array, identities: string): Promise<string> {
  // Loaded here alone: most hosts never need it.
  const {armor, Decrypter} = await import('age-encryption')
  const decrypter = new Decrypter()
  const keys = identities
    .split('\n')
    .map(line => line.trim())
    .filter(line => line !== '' && !line.startsWith('#'))
  if (keys.length === 0) throw new Error('the identity file holds no identity')
  for (const key of keys) {
    try {
      decrypter.addIdentity(key)
    } catch {
      // Without its cause, which may carry the key.
      throw new Error('the identity file holds a line that is no age identity')
    }
  }
  const head = Buffer.from(encrypted.subarray(0, 64)).toString('latin1')
  const isArmored = head.trimStart().startsWith('-----BEGIN AGE ENCRYPTED FILE-----')
  return decrypter.decrypt(
    isArmored ? armor.decode(Buffer.from(encrypted).toString('latin1').trim()) : encrypted,
    'text',
  )
}
